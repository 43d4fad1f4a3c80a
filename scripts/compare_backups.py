"""Find backup heads in models whose backups are known, with our search and with other scores; write docs/backup-comparison.md.

python scripts/compare_backups.py                     100 seeds, with backups and without, in some minutes
python scripts/compare_backups.py --seeds 10 --out page.md
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from circuitfind.backups.report import BackupReport
from circuitfind.backups.screen import node_mask
from circuitfind.backups.search import find_backups
from circuitfind.circuit.curve import roc_auc
from circuitfind.config import Ablation
from circuitfind.methods import get_method
from circuitfind.model.bridge import Model
from circuitfind.model.node_pass import NodePass, Patch, first_stage
from circuitfind.model.runs import Runs
from circuitfind.model.tl_format import boot_native
from circuitfind.task.metrics import get_metric
from circuitfind.task.prompts import make_pairs
from circuitfind.task.spec import find_tasks, load_task
from circuitfind.zoo.planted import INNER, REDUNDANT, Planted, build
from circuitfind.zoo.planted.ioi_redundant import build as build_ioi

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = 64
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")
BACKUPS = ("backup", "second-order backup")


@dataclass
class Case:
    """A model, its prompts, and what is true of its heads."""

    truth: Planted
    model: Model
    runs: Runs

    @property
    def heads(self) -> list[int]:
        return list(self.model.anatomy.head_rows)

    def name(self, row: int) -> str:
        return self.model.anatomy.writer_names[row]

    @property
    def backups(self) -> set[str]:
        return {name for name, kind in self.truth.classes.items() if kind in BACKUPS}


@dataclass
class Tally:
    """What became of many models."""

    auc: dict[str, list[float]] = field(default_factory=dict)
    hits: int = 0
    found: int = 0
    true: int = 0
    seconds: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    with_any: int = 0
    models: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--case-seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "backup-comparison.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    tally = Tally()
    for seed in range(args.seeds):
        one(tally, case_of(build_ioi(seed)))
        say(
            f"ioi-redundant:{seed} {time.perf_counter() - start:.0f} s, {tally.hits}/{tally.found}/{tally.true}"
        )
    none = Tally()
    for seed in range(args.seeds):
        case = case_of(build_ioi(seed, backups=0))
        count(none, case, search(case))
    say(f"without backups: {none.with_any} of {none.models}; {time.perf_counter() - start:.0f} s")
    cases: dict[str, list[bool]] = {}
    for kind in (*REDUNDANT, *INNER):
        if kind == "ioi-redundant":
            continue
        for seed in range(args.case_seeds):
            case = case_of(build(kind, seed))
            got = classes_of(search(case), case.truth.reader)
            right = {name: got.get(name) == wanted for name, wanted in case.truth.classes.items()}
            extra = {n: k for n, k in got.items() if k in BACKUPS and n not in case.backups}
            cases.setdefault(kind, []).append(all(right.values()) and not extra)
            if not cases[kind][-1]:
                say(f"{kind}:{seed} wanted {case.truth.classes}, found {got}")
        say(f"{kind}: {sum(cases[kind])} of {len(cases[kind])}")
    args.out.write_text(page(tally, none, cases, args.seeds), encoding="utf-8")
    say(f"{args.out}: {time.perf_counter() - start:.0f} s")
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- what is run --------------------------------------------------------------------------------------------------


def case_of(truth: Planted) -> Case:
    """A planted model and its prompts."""
    name = f"planted/{truth.name}:{truth.seed}"
    model = boot_native(truth.config, truth.state, name, torch.device("cpu"), name, source=name)
    spec = load_task(find_tasks([ROOT / "tasks"])[truth.name])
    pairs = make_pairs(spec, None, zoo_pairs=truth.pairs(PROMPTS), n_vocab=model.n_vocab)
    return Case(truth, model, Runs(model, pairs, get_metric("logit-diff")))


def search(case: Case) -> BackupReport:
    return find_backups(case.runs, ABLATIONS)


def classes_of(report: BackupReport, reader: str = "logits") -> dict[str, str]:
    """The class of each component at a reader; of several the strongest claim."""
    found: dict[str, str] = {}
    for f in report.findings:
        if f.reader == reader:
            found.setdefault(f.name, f.kind)
    return found


def count(tally: Tally, case: Case, report: BackupReport) -> None:
    """What the search says, beside the truth."""
    got = {name for name, kind in classes_of(report).items() if kind in BACKUPS}
    tally.models += 1
    tally.with_any += bool({f.name for f in report.backups})
    tally.hits += len(got & case.backups)
    tally.found += len(got)
    tally.true += len(case.backups)
    tally.passes.append(report.cost["screen"] + report.cost["verify"])
    if got != case.backups:
        missed, extra = sorted(case.backups - got), sorted(got - case.backups)
        kinds = {n: classes_of(report).get(n) for n in missed}
        say(f"ioi-redundant:{case.truth.seed} missed {kinds}, extra {extra}")


def one(tally: Tally, case: Case) -> None:
    """Our search and the other scores on one model."""
    begin = time.perf_counter()
    report = search(case)
    tally.seconds.append(time.perf_counter() - begin)
    count(tally, case, report)
    if not case.backups:
        return
    scores: dict[str, dict[str, float]] = {"circuitfind": dict(report.scores["logits"])}
    single = single_ablation(case)
    scores["single ablation, zero"] = single
    for name in ("atp", "atp-star"):
        values = get_method(name, {}).run(case.runs, ablation="resample", direction="noising").values
        scores[name] = {case.name(row): abs(float(values[row])) for row in case.heads}
    scores["CoAx, name movers given"] = coax(case, list(case.truth.primaries))
    scores["CoAx, 3 strongest of atp"] = coax(case, strongest(scores["atp"]))
    scores["CoAx, 3 strongest of ablation energy"] = coax(case, strongest(energies(case)))
    scores["CoAx, seeds of circuitfind"] = coax(case, list(report.seeds["logits"]))
    for name, values in scores.items():
        heads = [case.name(row) for row in case.heads if np.isfinite(values.get(case.name(row), np.nan))]
        marks = np.array([head in case.backups for head in heads])
        if marks.any() and not marks.all():
            tally.auc.setdefault(name, []).append(roc_auc(np.array([values[head] for head in heads]), marks))


def strongest(scores: dict[str, float], number: int = 3) -> list[str]:
    return sorted(scores, key=lambda name: -scores[name])[:number]


def single_ablation(case: Case) -> dict[str, float]:
    """What each head's removal costs, all positions."""
    patches = [Patch(nodes=node_mask(case.model.anatomy, [row])) for row in case.heads]
    lost = case.runs.clean.mean() - case.runs.patched(patches, ablation="zero").mean(1)
    return {case.name(row): float(value) for row, value in zip(case.heads, lost, strict=True)}


# --- CoAx (arXiv 2607.01940) ----------------------------------------------------------------------------------------


def logits_without(case: Case, sets: Sequence[Sequence[int]]) -> Float[np.ndarray, "set prompt vocab"]:
    """Logits when heads are zero at the answer position."""
    runs, anatomy = case.runs, case.model.anatomy
    masks = [node_mask(anatomy, rows) for rows in sets]
    order = sorted(range(len(masks)), key=lambda i: first_stage(anatomy, masks[i]))
    out = np.zeros((len(masks), len(runs), case.model.n_vocab_out))
    for number, batch in enumerate(runs.batches):
        contrast = runs.contrast(number, "zero")
        at = np.zeros((contrast.n_rows, contrast.length), dtype=bool)
        at[np.arange(contrast.n_rows), contrast.base.place.answers.numpy()] = True
        with torch.no_grad():
            final = NodePass(contrast, np.stack([masks[i] for i in order]), [at] * len(order)).run()
            found = case.model.head(final).numpy()
        for i, rows in zip(order, found, strict=True):
            out[i, batch.index] = rows
    return out


def energy(
    change: Float[np.ndarray, "*set prompt vocab"], p: Float[np.ndarray, "prompt vocab"]
) -> np.ndarray:
    """Centred Fisher energy of a change of logits at the clean output: its variance under the clean probabilities."""
    mean = (p * change).sum(-1)
    return np.asarray(((p * change**2).sum(-1) - mean**2).mean(-1))


def clean_probabilities(
    case: Case, clean: Float[np.ndarray, "prompt vocab"]
) -> Float[np.ndarray, "prompt vocab"]:
    shifted = np.exp(clean - clean.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def energies(case: Case) -> dict[str, float]:
    """The energy of each head's removal alone."""
    logits = logits_without(case, [[], *[[row] for row in case.heads]])
    found = energy(logits[1:] - logits[0], clean_probabilities(case, logits[0]))
    return {case.name(row): float(value) for row, value in zip(case.heads, found, strict=True)}


def coax(case: Case, seeds: Sequence[str]) -> dict[str, float]:
    """comp_u(S) = E(change by u when S is gone) - E(change by u alone), for every head but the seeds."""
    rows = [case.model.anatomy.writer_names.index(name) for name in seeds]
    others = [row for row in case.heads if row not in rows]
    sets = [[], rows, *[[row] for row in others], *[[*rows, row] for row in others]]
    logits = logits_without(case, sets)
    p, n = clean_probabilities(case, logits[0]), len(others)
    alone, beside = energy(logits[2 : 2 + n] - logits[0], p), energy(logits[2 + n :] - logits[1], p)
    return {case.name(row): float(b - a) for row, a, b in zip(others, alone, beside, strict=True)}


# --- the page -------------------------------------------------------------------------------------------------------


HEAD = """# The search for backups, compared

Made by `scripts/compare_backups.py` on models whose weights were written, so that it is known which heads are backups.
{prompts} prompt pairs for each model; ours with its default options, under resample, mean and zero
ablation, of which two must agree.

## Which heads are backups? ({models} seeds of `planted/ioi-redundant`)

Each seed draws a model with 1 to 3 name movers, 0 to 8 backups that wake when name movers are gone, 0 to 2 negative
heads, idle and noisy heads and distractors, LayerNorm, sizes and noise. ROC-AUC: the chance that a backup scores higher
than another head, over all heads but those that the score was told about (the seeds of CoAx); mean over the
{with_backups} models that have backups [smallest, largest].

| score | ROC-AUC |
| --- | --- |
"""


def page(tally: Tally, none: Tally, cases: dict[str, list[bool]], seeds: int) -> str:
    """The Markdown page."""
    with_backups = len(tally.auc["circuitfind"])
    text = HEAD.format(prompts=PROMPTS, models=seeds, with_backups=with_backups)
    for name, values in sorted(tally.auc.items(), key=lambda item: -float(np.mean(item[1]))):
        text += f"| {name} | {np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}] |\n"
    each = len(next(iter(cases.values()))) if cases else 0
    precision, recall = tally.hits / max(1, tally.found), tally.hits / max(1, tally.true)
    text += f"""
* At our own cut: {tally.found} heads called backups, {tally.hits} of them rightly (precision {precision:.3f}), of the
  {tally.true} that there are (recall {recall:.3f}).
* With no backups planted (the same {none.models} seeds): {none.with_any} models in which one is reported.
* Cost of a search: {np.mean(tally.seconds):.1f} s of one thread on average, {np.mean(tally.passes):.1f} passes over all
  prompts through all layers.

`single ablation` is what the metric loses when a head is zero everywhere; `atp` and `atp-star` are |score| under resample
ablation. CoAx (arXiv 2607.01940) was computed from its formula: the energy (variance under the clean probabilities) that a
head's removal adds to the logits when its seeds are gone, less the same when they are not; zero ablation at the answer position.
It needs to be told the seeds: the true name movers, or a guess (the three strongest heads by `atp`, or by the energy of
removing them alone, or the seeds that our search found).

These models were written with the definition of a backup in mind that our search tests. They show that it finds what it
is meant to find and not what is not there; they do not show how often trained models have it
([backup-heads.md](backup-heads.md#in-trained-models)).

## Is it called by its right name? ({each} seeds of each case)

| case | every head in its class, and no other backup |
| --- | --- |
"""
    for kind, right in cases.items():
        text += f"| `planted/{kind}` | {sum(right)} of {len(right)} |\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
