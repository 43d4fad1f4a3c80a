"""Which neurons of a model add two numbers modulo p, and at how few frequencies they do it; write docs/modular-addition.md.

python scripts/modular_addition.py MODEL_FOLDER       a model of one layer that reads ``a b p`` and answers (a+b) mod p

The folder has the model in TransformerLens's format and ``prompts.jsonl``, pairs with ``clean``, ``corrupted``, ``answer`` and
``wrong`` as token ids.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from circuitfind.circuit.subsets import fewest
from circuitfind.config import Ablation
from circuitfind.errors import CircuitfindError
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model
from circuitfind.model.runs import Runs
from circuitfind.names import Kind
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPairs
from circuitfind.units.find import Found, Neurons, UnitOptions, find

if __package__ in (None, ""):  # run as a file: the package is the folder above it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.sums import DRAWS, Addition, bins, filtered, held_by, read_pairs

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "modular-addition.svg"
TARGET = 0.95
"""Faithfulness, and then accuracy."""
BUDGET = 400
"""Sets tried to find the fewest neurons for the accuracy."""
ABLATIONS: tuple[Ablation, ...] = ("mean", "zero", "resample")
FOUND_UNDER: tuple[Ablation, ...] = ("mean", "resample")
OPTIONS = UnitOptions(verify=64, evaluations=1500)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="MODEL_FOLDER")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "modular-addition.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        run(args.folder, args.out)
    except CircuitfindError as error:
        say(str(error))
        return error.exit_code
    return 0


def run(folder: Path, out: Path) -> None:
    """Measure, and write the page and its picture.

    Raises:
        UnsupportedError: The model is none of one layer with neurons.
    """
    model = load_model(str(folder), device="cpu")
    addition, prompts = Addition(model), read_pairs(folder)
    sets = []
    order: list[int] = []
    for ablation in FOUND_UNDER:
        found = find_neurons(model, prompts, ablation)
        order = order or by_strength(found)
        name = f"{TARGET:.0%} faithfulness, {ablation} ablation"
        sets.append(measured(addition, name, found.faithfulness, found))
        say(f"{name}: {len(sets[-1].neurons)} neurons")
    few = fewest_for_accuracy(addition, order, TARGET)
    sets.append(measured(addition, f"accuracy {TARGET:g}, mean ablation", None, few))
    say(f"{sets[-1].name}: {len(few)} neurons")
    images = out.with_name("images")
    images.mkdir(exist_ok=True)
    (images / IMAGE).write_text(picture(addition, sets[0].neurons), encoding="utf-8")
    out.write_text(page(addition, prompts, sets), encoding="utf-8")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- what is found ---------------------------------------------------------------------------------------------------


def find_neurons(
    model: Model, pairs: PromptPairs, ablation: Ablation, options: UnitOptions = OPTIONS
) -> Found:
    """The heads and neurons that keep most of the logit difference."""

    def runs_of(split: Model) -> Runs:
        return Runs(split, pairs, get_metric("logit-diff"))

    return find(Neurons(model), runs_of, ablation=ablation, target=TARGET, options=options)


def neurons_of(found: Found) -> set[int]:
    """Those that are kept."""
    return {i for node in found.kept if node.kind is Kind.NEURON for i in node.units}


def by_strength(found: Found) -> list[int]:
    """All neurons, those first that do most alone: as really replaced, or by attribution where they were not."""
    names = found.scores.anatomy.writer_names
    rows = [row for row, node in enumerate(found.scores.anatomy.writers) if node.kind is Kind.NEURON]
    strength = [abs(found.exact.get(names[row], float(found.scores.values[row]))) for row in rows]
    return [
        found.scores.anatomy.writers[rows[i]].index for i in np.argsort(-np.array(strength), kind="stable")
    ]


def fewest_for_accuracy(addition: Addition, order: Sequence[int], target: float) -> set[int]:
    """The fewest neurons found that keep the accuracy when all others are replaced by their mean."""

    def evaluate(sets: list[np.ndarray]) -> np.ndarray:
        return addition.accuracy([np.flatnonzero(kept).tolist() for kept in sets], "mean")

    full = np.ones(addition.n_neurons, dtype=bool)
    found = fewest(full, [(i,) for i in order], evaluate, target, budget=BUDGET)
    return set(np.flatnonzero(found.kept).tolist())


# --- what is told -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A set of neurons and what it does.

    Attributes:
        name: What it was chosen for.
        neurons: Which.
        heads: How many heads are kept beside them.
        faithfulness: On the prompts that it was found on, if it was chosen for that.
        on_all: By the logit difference on all sums, the others replaced by their mean.
        accuracy: By what the others are replaced by.
        random, alike: Accuracy of random sets, the others replaced by their mean; ``alike`` has as many of each frequency.
    """

    name: str
    neurons: set[int]
    heads: int
    faithfulness: float | None
    on_all: float
    accuracy: dict[str, float]
    random: Float[np.ndarray, " draw"]
    alike: Float[np.ndarray, " draw"]


def measured(addition: Addition, name: str, faithfulness: float | None, chosen: Found | set[int]) -> Kept:
    """A set of neurons with all that is told of it."""
    if isinstance(chosen, set):
        neurons, heads = chosen, addition.model.anatomy.n_heads
    else:
        neurons = neurons_of(chosen)
        heads = sum(node.kind is Kind.HEAD for node in chosen.kept)
    return Kept(
        name,
        neurons,
        heads,
        faithfulness,
        float(addition.faithfulness([neurons], "mean")[0]),
        {ablation: float(addition.accuracy([neurons], ablation)[0]) for ablation in ABLATIONS},
        addition.accuracy(addition.random_sets(neurons), "mean"),
        addition.accuracy(addition.random_sets(neurons, alike=True), "mean"),
    )


HEAD = """# Modular addition: the neurons that add, and their frequencies

Made by `scripts/modular_addition.py MODEL_FOLDER`. The model has one layer, {heads} heads and {neurons} neurons, and was
trained until it grokked: it reads `a b {p}` and answers (a+b) mod {p}, rightly for {clean:.2%} of all {sums:,} sums. How such
a model does it is known (Nanda et al. 2023, *Progress measures for grokking via mechanistic interpretability*): at a few
frequencies k it makes cos and sin of 2πka/{p} and 2πkb/{p}, multiplies them in its neurons, and reads off
cos(2πk(a+b-c)/{p}) at every answer c. The search for neurons knows nothing of frequencies; this page asks whether what it
keeps is at a few of them.

## Neurons that are kept

Found on {prompts} pairs of prompts that differ in b, by the logit difference between the right sum and that of the corrupted
prompt: all heads and neurons are scored by attribution, the {verify} strongest are replaced one by one, and the fewest are
sought that keep {target:.0%} of what is lost when everything is replaced. The last row is instead the fewest neurons found
that keep an accuracy of {target:g} when all other neurons carry their mean.

* **faithfulness**: on those prompts, under that ablation. **on all sums**: on all {sums:,}, under mean ablation.
* **others mean**, **zero**, **resample**: accuracy over all sums (the right answer is the likeliest of all tokens) when all
  other neurons carry their mean over all sums, zero, or what they have on another sum with the same a.
* **random**: {draws} random sets of as many neurons, all others at their mean; mean accuracy, and that of the best one.
  **alike**: the same with as many neurons of each frequency.

"""


def page(addition: Addition, prompts: PromptPairs, sets: Sequence[Kept]) -> str:
    """The Markdown page."""
    text = HEAD.format(
        heads=addition.model.anatomy.n_heads,
        neurons=addition.n_neurons,
        p=addition.p,
        clean=addition.clean,
        sums=len(addition.pairs),
        prompts=len(prompts),
        verify=OPTIONS.verify,
        target=TARGET,
        draws=DRAWS,
    )
    text += table(
        [
            "kept for",
            "heads",
            "neurons",
            "faithfulness",
            "on all sums",
            *(f"others {a}" for a in ABLATIONS),
            "random",
            "alike",
        ],
        [
            [
                one.name,
                str(one.heads),
                str(len(one.neurons)),
                "" if one.faithfulness is None else f"{one.faithfulness:.3f}",
                f"{one.on_all:.3f}",
                *(f"{one.accuracy[a]:.4f}" for a in ABLATIONS),
                *(f"{x.mean():.3f}, {x.max():.3f}" for x in (one.random, one.alike)),
            ]
            for one in sets
        ],
    )
    first, second = sets[0].neurons, sets[1].neurons
    text += f"\nThe first two sets share {len(first & second)} neurons; "
    text += (
        f"of the {len(sets[-1].neurons)} of the last one, {len(sets[-1].neurons & first)} are in the first. "
    )
    text += "Faithfulness asks for the size of the logit difference, which every strong neuron adds to; the right answer asks "
    text += "only that no other one is likelier.\n"
    return wrapped(text + frequency_text(addition, sets) + filter_text(addition))


def frequency_text(addition: Addition, sets: Sequence[Kept]) -> str:
    """How many neurons have each frequency, and what is left without them."""
    best, key, kept = addition.best, addition.key, sets[0].neurons
    top = addition.shares.max(0)
    own = sorted(kept)
    many = [addition.frequencies(one.neurons) for one in sets]
    outside = [sum(n for k, n in found.items() if k not in key) for found in many]
    weights = addition.activations.var((0, 1))
    text = "\n## Frequencies\n\n"
    text += "The activation of a neuron is a function of a and b. Its frequency is the k at which a constant, cos and sin of "
    text += f"2πka/{addition.p} and of 2πkb/{addition.p}, and their products explain most of its variance. Of all "
    text += f"{addition.n_neurons} neurons, {int(np.isin(best, key).sum())} have one of {len(key)} frequencies of "
    text += f"{len(addition.shares) - 1}: {listed(sorted(key))}. "
    text += (
        f"Of those kept, {listed(outside)} have another one (row by row of the table above). "
        if any(outside)
        else "So have all of those kept, in every row of the table above. "
    )
    text += "The share of a neuron's variance that its frequency explains is "
    text += f"{top[own].mean():.2f} in the mean over the {len(own)} neurons of row 1, and {top.mean():.2f} over all neurons; "
    text += f"weighted by their variance, {np.average(top[own], weights=weights[own]):.2f} and "
    text += f"{np.average(top, weights=weights):.2f}.\n\n"
    text += f"![Neurons by frequency: all, and those of row 1](images/{IMAGE})\n\n"
    text += "**share**: that mean over the neurons of row 1. **without**: accuracy when all neurons of this frequency, kept "
    text += "or not, carry their mean, and no other neuron does. **with one more**: accuracy when the neurons of this "
    text += "frequency and of those in the rows above are as they are, and all others carry their mean.\n\n"
    everyone = set(range(addition.n_neurons))
    groups = [set(np.flatnonzero(best == k).tolist()) for k in key]
    without = addition.accuracy([everyone - group for group in groups], "mean")
    sums = [set().union(*groups[: i + 1]) for i in range(len(groups))]
    along = addition.accuracy(sums, "mean")
    rows = [
        [
            str(k),
            str(len(group)),
            *(str(found.get(k, 0)) for found in many),
            f"{top[sorted(group & kept)].mean():.2f}" if group & kept else "",
            f"{alone:.3f}",
            f"{more:.3f}",
        ]
        for k, group, alone, more in zip(key, groups, without, along, strict=True)
    ]
    rest = everyone - sums[-1]
    alone = addition.accuracy([everyone - rest], "mean")[0]
    share = f"{top[sorted(rest & kept)].mean():.2f}" if rest & kept else ""
    rows.append(
        ["all others", str(len(rest)), *map(str, outside), share, f"{alone:.3f}", f"{addition.clean:.3f}"]
    )
    columns = ["frequency", "neurons", *(f"kept, row {i + 1}" for i in range(len(sets)))]
    return text + table([*columns, "share", "without", "with one more"], rows)


def filter_text(addition: Addition) -> str:
    """What the model answers when activations have only some waves."""
    key, p, values = addition.key, addition.p, addition.activations
    others = [k for k in range(1, len(addition.shares)) if k not in key]
    wanted = [
        ("the mean of each neuron alone", bins(p, [])),
        ("all waves of the key frequencies", bins(p, key)),
        ("of these, cos and sin of k(a+b) alone", bins(p, key, ["a+b"])),
        ("of these, all but cos and sin of k(a+b)", bins(p, key, ["a", "b", "a-b"])),
        *((f"all waves of frequency {k} alone", bins(p, [k])) for k in key),
        ("all that is not of the key frequencies", ~bins(p, key)),
        ("all waves of all other frequencies", bins(p, others)),
    ]
    text = "\n## Waves\n\nNo neuron replaced, but the activation of each over all a and b stripped of all waves but some; its "
    text += "mean always stays. The share is that of the variance of all neurons together. What is left of the accuracy:\n\n"
    rows = [
        [name, f"{held_by(values, kept):.1%}", f"{addition.accuracy_with(filtered(values, kept)):.3f}"]
        for name, kept in wanted
    ]
    return text + table(["waves", "share of all variance", "accuracy"], rows)


def listed(values: Sequence[int]) -> str:
    """``1, 2 and 3``."""
    words = [str(value) for value in values]
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def wrapped(text: str) -> str:
    """With paragraphs folded, but no tables, lists, headings or pictures."""
    parts = text.split("\n\n")
    fold = partial(textwrap.fill, width=120, break_long_words=False, break_on_hyphens=False)
    kept = ("|", "* ", "#", "!")
    return (
        "\n\n".join(part if part.strip().startswith(kept) else fold(part) for part in parts).rstrip() + "\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def picture(addition: Addition, kept: Collection[int]) -> str:
    """A bar for each frequency: neurons that have it, and those of them that are kept."""
    every = addition.frequencies(range(addition.n_neurons))
    mine = addition.frequencies(kept)
    left, bottom, height, step = 40, 190, 150, 11
    most, n = max(every.values()), len(addition.shares) - 1
    width = left + step * n + 15
    size = 'font-family="Helvetica, Arial, sans-serif" font-size="11" fill="#333"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="235" viewBox="0 0 {width} 235">',
        f'<rect width="{width}" height="235" fill="white"/>',
    ]
    for tick in range(0, most + 1, 25):
        y = bottom - height * tick / most
        out.append(f'<line x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e3e3"/>')
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" {size}>{tick}</text>')
    for found, colour in ((every, "#b9cbe0"), (mine, "#1f4e8c")):
        for k, count in found.items():
            x, h = left + step * (k - 1) + 2, height * count / most
            out.append(
                f'<rect x="{x}" y="{bottom - h:.1f}" width="{step - 3}" height="{h:.1f}" fill="{colour}"/>'
            )
    for k in range(1, n + 1):
        middle = left + step * (k - 0.5)
        bold = ' font-weight="bold"' if k in addition.key else ""
        if k in addition.key or (k % 10 == 0 and not {k - 1, k + 1} & set(addition.key)):
            out.append(
                f'<text x="{middle:.1f}" y="{bottom + 15}" text-anchor="middle" {size}{bold}>{k}</text>'
            )
    out.append(f'<text x="{width / 2:.0f}" y="{bottom + 35}" text-anchor="middle" {size}>frequency</text>')
    for i, (colour, label) in enumerate((("#b9cbe0", "all neurons"), ("#1f4e8c", "kept"))):
        x = left + 8 + 100 * i
        out.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{colour}"/>')
        out.append(f'<text x="{x + 15}" y="17" {size}>{label}</text>')
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    sys.exit(main())
