"""Run every method on the behaviours of ``mini`` and on models whose circuit is known; write docs/method-comparison.md.

python scripts/compare_methods.py                     everything, in some minutes
python scripts/compare_methods.py --methods eap,relp --tasks ioi --seeds 3 --out page.md
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from circuitfind.circuit.curve import (
    SHARES,
    Curve,
    circuits,
    curve,
    edge_order,
    edge_strengths,
    roc_auc,
)
from circuitfind.circuit.evaluate import Evaluator
from circuitfind.config import Direction
from circuitfind.errors import CircuitfindError
from circuitfind.methods import METHODS, get_method
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model, planted
from circuitfind.model.runs import Runs
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPairs
from circuitfind.task.prompts import make_pairs
from circuitfind.task.spec import find_tasks, load_task
from circuitfind.zoo.planted import NAMES

ROOT = Path(__file__).resolve().parent.parent
RANDOM = "random"
RANDOM_DRAWS = 5
PROMPTS, FEWEST = 32, 8
PLANTED_PROMPTS = 16
PASSES = 2500
"""A method that plans more passes over the prompts than this (a backward one counts as two) is given fewer prompts."""
LEFT_OUT = {"path-patching": "it scores paths that are asked for, and ranks no edges of the whole model"}
SHOWN = (0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Result:
    """One method on one task or planted model. ``case`` groups: the task, or the kind of planted model."""

    case: str
    method: str
    level: str
    curve: Curve
    cpr: float | None
    prompts: int
    passes: float
    seconds: float
    auc: float | None = None
    at_true: float | None = None


@dataclass(frozen=True)
class Case:
    """A model with prompts to score edges with, and others to run circuits on."""

    name: str
    model: Model
    scored: PromptPairs
    evaluator: Evaluator
    metric: str
    direction: Direction
    truth: np.ndarray | None = None

    def runs(self, count: int) -> Runs:
        return Runs(
            self.model, self.scored.subset(list(range(min(count, len(self.scored))))), get_metric(self.metric)
        )


def main() -> int:
    """Run, write, say where."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", default="", help="tasks of mini, separated by commas  [default: all]")
    parser.add_argument("--methods", default="", help="methods, separated by commas  [default: all]")
    parser.add_argument("--seeds", type=int, default=20, help="planted models of each kind")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "method-comparison.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    methods = [name for name in args.methods.split(",") if name] or [m for m in METHODS if m not in LEFT_OUT]
    refused: dict[tuple[str, str], str] = {}
    start = time.perf_counter()
    mini: list[Result] = []
    for case in mini_cases([name for name in args.tasks.split(",") if name]):
        mini += results_of(case, methods, refused)
        args.out.write_text(page(mini, [], refused, 0), encoding="utf-8")
        say(f"{case.name}: {time.perf_counter() - start:.0f} s")
    known: list[Result] = []
    for kind in NAMES:
        for seed in range(args.seeds):
            case = planted_case(kind, seed)
            known += results_of(case, methods, refused)
        args.out.write_text(page(mini, known, refused, args.seeds), encoding="utf-8")
        say(f"planted/{kind}: {time.perf_counter() - start:.0f} s")
    say(f"{args.out}: {time.perf_counter() - start:.0f} s")
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- what is run --------------------------------------------------------------------------------------------------


def mini_cases(chosen: Sequence[str]) -> Iterable[Case]:
    """The tasks of ``mini``: edges are scored on every other pair that it answers rightly, circuits run on the others."""
    model = load_model("mini", device="cpu")
    for name, path in find_tasks([ROOT / "tasks"]).items():
        spec = load_task(path)
        if spec.model != "mini" or (chosen and name not in chosen):
            continue
        settings = resolve(spec, count=2 * PROMPTS)
        session = Session(spec, settings, "cpu")
        session.__dict__["model"] = model  # loaded once for all tasks
        pairs = session.all_pairs
        kept = [int(i) for i in np.flatnonzero(session.runs_of(pairs).answered_rightly)]
        tested = Runs(model, pairs.subset(kept[1::2]), get_metric(settings.metric))
        yield Case(
            name,
            model,
            pairs.subset(kept[::2]),
            Evaluator(tested, "resample"),
            settings.metric,
            settings.direction,
        )


def planted_case(kind: str, seed: int) -> Case:
    """A planted model, its prompts of one seed to score edges with and of another to run circuits on."""
    name = f"planted/{kind}:{seed}"
    truth, model = planted(name), load_model(name, device="cpu")

    tasks = map(load_task, find_tasks([ROOT / "tasks"]).values())
    spec = next(spec for spec in tasks if spec.model == f"planted/{kind}")

    def pairs(draw: int) -> PromptPairs:
        return make_pairs(spec, None, zoo_pairs=truth.pairs(PLANTED_PROMPTS, draw), n_vocab=model.n_vocab)

    mask = np.zeros_like(model.anatomy.edge_mask)
    for edge in truth.edges["resample"]:
        mask[model.anatomy.index_of(edge)] = True
    evaluator = Evaluator(Runs(model, pairs(1), get_metric("logit-diff")), "resample")
    direction: Direction = "denoising" if truth.direction == "denoising" else "noising"
    return Case(kind, model, pairs(0), evaluator, "logit-diff", direction, mask)


def results_of(case: Case, methods: Sequence[str], refused: dict[tuple[str, str], str]) -> list[Result]:
    """Every method on a case, and random rankings."""
    found = []
    anatomy = case.model.anatomy
    for name in methods:
        method = get_method(name)
        cost = method.cost(anatomy)
        planned = cost.forward + 2 * cost.backward
        runs = case.runs(max(FEWEST, min(PROMPTS, int(PROMPTS * PASSES / planned))))
        before, start = case.model.passes["work"], time.perf_counter()
        try:
            scores = method.run(runs, ablation="resample", direction=case.direction)
        except CircuitfindError as error:
            refused[case.name, name] = str(error).splitlines()[0]
            continue
        seconds = time.perf_counter() - start
        tokens = sum(batch.clean.numel() for batch in runs.batches)
        passes = (case.model.passes["work"] - before) / (tokens * anatomy.n_layers)
        strengths = edge_strengths(scores)
        signed = edge_strengths(scores, signed=True)
        found.append(result(case, name, scores.level, strengths, signed, len(runs), passes, seconds))
    for seed in range(RANDOM_DRAWS if case.truth is None else 1):
        generator = np.random.default_rng([seed, *f"{case.name} {case.model.name}".encode()])
        made = generator.normal(size=anatomy.edge_mask.shape)
        made[~anatomy.edge_mask] = np.nan
        found.append(result(case, RANDOM, "edge", np.abs(made), made, 0, 0.0, 0.0))
    return found


def result(
    case: Case,
    name: str,
    level: str,
    strengths: np.ndarray,
    signed: np.ndarray,
    prompts: int,
    passes: float,
    seconds: float,
) -> Result:
    anatomy, evaluator = case.model.anatomy, case.evaluator
    order = edge_order(anatomy, strengths)
    auc, at_true, cpr = None, None, None
    if case.truth is None:
        cpr = curve(evaluator, edge_order(anatomy, signed)).cpr()
    else:
        auc = roc_auc(strengths[anatomy.edge_mask], case.truth[anatomy.edge_mask])
        at_true = float(
            evaluator.faithfulness(circuits(anatomy, order, (case.truth.sum() / anatomy.n_edges,)))[0]
        )
    return Result(
        case.name,
        name,
        level,
        curve(evaluator, order),
        cpr,
        prompts,
        passes,
        seconds,
        auc,
        at_true,
    )


# --- what is written ----------------------------------------------------------------------------------------------

HEAD = f"""# The methods compared

Made by `scripts/compare_methods.py`: every method with its default options, on the behaviours of the embedded model
`mini`, and on planted models, whose circuit is known because their weights were written. Replaced edges carry the corrupted
run's values (resample ablation); the metric is the logit difference. Edges are scored on {PROMPTS} prompt pairs and circuits
run on {PROMPTS} others, all answered rightly (planted models: {PLANTED_PROMPTS} and {PLANTED_PROMPTS}).

## What the columns mean

* **f at k %**: faithfulness of the circuit made of the k % of all edges with the largest |score|, less what of them is on
  no way from the input to the logits. Faithfulness is (m(circuit) - m(nothing)) / (m(model) - m(nothing)), with m the mean
  over prompts, a ratio of means. 1 is the whole model; more than 1 is better than it, and no more faithful.
* **CMD**: the area between that curve and 1 over the share of edges, as in the MIB benchmark (arXiv 2504.13151): trapezoids
  over the shares {", ".join(f"{s:g}" for s in SHARES)}. 0 is best; a circuit that does nothing before all edges are in it has
  0.75. Nine tenths of its weight lie above 5 % of the edges.
* **log CMD**: the same over the logarithm of the share, divided by the length of that axis: the mean of |1 - f| when every
  factor of ten weighs the same. Small circuits show here.
* **CPR**: the area under f (linear), edges ranked by signed score; more than 1 is to do better than the model.
* **ROC-AUC** (planted models): the chance that a true edge has a larger |score| than another one, ties counting half.
  0.5 is chance.
* **f at true size**: faithfulness of the circuit of as many edges as the true one has.
* **passes**: what the scores cost, in passes over all prompts through all layers: forward and backward ones alike, a pass
  that starts or ends in between in part, clean and corrupted runs included. **prompts** is how many pairs a method was given:
  one that plans more than {PASSES} passes (a backward one as two) gets fewer, at least {FEWEST}.
* **seconds**: of one thread of one core, for the prompts given; not to be compared with times from elsewhere.

Methods marked (nodes) score nodes; an edge is then as strong as the weaker of its ends. `{RANDOM}` are rankings by chance.
All rankings are cut alike; MIB grows the circuits of `ifr` edge by edge from the logits instead, which suits it better.
Left out: {"; ".join(f"`{name}` ({why})" for name, why in LEFT_OUT.items())}.
"""


def page(mini: list[Result], known: list[Result], refused: dict[tuple[str, str], str], seeds: int) -> str:
    parts = [HEAD]
    if mini:
        parts += [mini_part(mini)]
    if known:
        parts += [known_part(known, seeds)]
    if refused:
        lines: dict[tuple[str, str], list[str]] = {}
        for (case, name), why in refused.items():
            lines.setdefault((name, why), []).append(case)
        parts += ["\n## What was refused\n\n"]
        parts += [f"* `{name}` on {', '.join(cases)}: {why}\n" for (name, why), cases in lines.items()]
    parts += ["\n## What can be learned\n\n", *(f"* {line}\n" for line in lessons(mini, known))]
    return "".join(parts)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def methods_of(results: Sequence[Result]) -> list[str]:
    """Methods, the random ranking last."""
    found = list(dict.fromkeys(r.method for r in results))
    return [name for name in found if name != RANDOM] + [RANDOM] * (RANDOM in found)


def of(results: Sequence[Result], method: str, case: str | None = None) -> list[Result]:
    return [r for r in results if r.method == method and case in (None, r.case)]


def mean(results: Sequence[Result], key: Callable[[Result], float | None]) -> float:
    values = [value for value in map(key, results) if value is not None]
    return float(np.mean(values)) if values else float("nan")


def number(value: float, digits: int = 2) -> str:
    """Without the sign of a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def spread(results: Sequence[Result], key: Callable[[Result], float | None], digits: int = 2) -> str:
    """``0.93 [0.80, 1.00]``: mean, smallest and largest."""
    values = [value for value in map(key, results) if value is not None]
    if not values:
        return "-"
    mid, low, high = (number(float(v), digits) for v in (np.mean(values), min(values), max(values)))
    return f"{mid} [{low}, {high}]"


def shown(results: Sequence[Result], name: str) -> str:
    nodes = any(r.level == "node" for r in of(results, name))
    return f"{name} (nodes)" if nodes else name


def cmd(r: Result) -> float:
    return r.curve.cmd()


def log_cmd(r: Result) -> float:
    return r.curve.cmd(log=True)


def at(share: float) -> Callable[[Result], float]:
    return lambda r: r.curve.at(share)


def mini_part(results: list[Result]) -> str:
    tasks = list(dict.fromkeys(r.case for r in results))
    names = sorted(methods_of(results), key=lambda name: mean(of(results, name), log_cmd))

    def row(name: str) -> list[str]:
        mine = of(results, name)
        is_random = name == RANDOM
        return [
            shown(results, name),
            spread(mine, cmd, 3),
            spread(mine, log_cmd, 3),
            *(number(mean(mine, at(share))) for share in SHOWN),
            number(mean(mine, lambda r: r.cpr)),
            "" if is_random else f"{mean(mine, lambda r: r.passes):.1f}",
            "" if is_random else f"{mean(mine, lambda r: r.seconds):.2f}",
            "" if is_random else f"{mean(mine, lambda r: float(r.prompts)):.0f}",
        ]

    columns = [
        "method",
        "CMD",
        "log CMD",
        *(f"f at {100 * s:g} %" for s in SHOWN),
        "CPR",
        "passes",
        "seconds",
        "prompts",
    ]
    text = f"\n## On `mini`\n\nMean over {len(tasks)} tasks [smallest, largest], best log CMD first.\n\n"
    text += table(columns, map(row, names))
    for title, key, digits in (("log CMD", log_cmd, 3), ("CMD", cmd, 3), ("f at 2 %", at(0.02), 2)):
        text += f"\n{title}, task by task:\n\n"
        rows = [
            [
                shown(results, name),
                *(f"{mean(of(results, name, task), key):.{digits}f}" for task in tasks),
            ]
            for name in names
        ]
        text += table(["method", *tasks], rows)
    return text


def known_part(results: list[Result], seeds: int) -> str:
    text = f"\n## On planted models\n\nMean over {seeds} seeds [smallest, largest]; each seed draws sizes, places and noise. "
    for kind in dict.fromkeys(r.case for r in results):
        some = [r for r in results if r.case == kind]
        names = sorted(methods_of(some), key=lambda name: -mean(of(some, name), lambda r: r.auc))
        text += f"\n### {kind}{' (denoising)' if kind == 'or-gate' else ''}\n\n"
        rows = [
            [
                shown(results, name),
                spread(of(some, name), lambda r: r.auc, 3),
                spread(of(some, name), lambda r: r.at_true),
                spread(of(some, name), cmd, 3),
                str(len(of(some, name))),
            ]
            for name in names
        ]
        text += table(["method", "ROC-AUC", "f at true size", "CMD", "seeds"], rows)
    return text


# --- what the figures say -----------------------------------------------------------------------------------------


def lessons(mini: list[Result], known: list[Result]) -> list[str]:
    found = []
    if mini:
        found += mini_lessons(mini)
    if known:
        found += known_lessons(known)
    if mini and known:
        both = [name for name in methods_of(mini) if name in methods_of(known) and name != RANDOM]
        if len(both) > 3:
            value = correlation(
                [mean(of(mini, name), log_cmd) for name in both],
                [-mean(of(known, name), lambda r: r.auc) for name in both],
            )
            found.append(
                f"Methods ranked by log CMD on `mini` and by ROC-AUC on planted models: rank correlation {value:.2f} over "
                f"{len(both)} methods."
            )
    return found


def mini_lessons(results: list[Result]) -> list[str]:
    names = [name for name in methods_of(results) if name != RANDOM]
    tasks = list(dict.fromkeys(r.case for r in results))

    def score(name: str, key: Callable[[Result], float] = log_cmd) -> float:
        return mean(of(results, name), key)

    by_log, by_cmd = sorted(names, key=score), sorted(names, key=lambda n: score(n, cmd))
    near = sum(score(n, cmd) < score(by_cmd[0], cmd) + 0.01 for n in names)
    found = [
        f"Lowest mean log CMD on `mini`: {listed(by_log[:3], score)}; random rankings have {score(RANDOM):.3f}."
    ]
    found.append(
        f"Lowest mean CMD: {listed(by_cmd[:3], lambda n: score(n, cmd))}; random {score(RANDOM, cmd):.3f}. {near} of "
        f"{len(names)} methods are within 0.01 of the lowest, so the linear area hardly tells these apart."
    )
    cheap: list[str] = []
    for name in sorted(names, key=lambda n: score(n, lambda r: r.passes)):
        if not cheap or score(name) < score(cheap[-1]) - 5e-4:
            cheap.append(name)
    steps = ", ".join(f"{n} ({score(n, lambda r: r.passes):.1f} passes, {score(n):.3f})" for n in cheap)
    found.append(f"What more passes buy, in log CMD, each better than all that cost less: {steps}.")
    if "eap" in names:
        ahead, behind = [], []
        for name in by_log:
            gaps = [mean(of(results, name, t), log_cmd) - mean(of(results, "eap", t), log_cmd) for t in tasks]
            better, worse = sum(g < -0.005 for g in gaps), sum(g > 0.005 for g in gaps)
            if better != worse:
                (ahead if better > worse else behind).append(
                    f"{name} ({better} : {worse}, {np.mean(gaps):+.3f})"
                )
        found.append(
            f"Against eap, task by task over {len(tasks)} tasks (log CMD; how often better : worse by more than 0.005, and the "
            f"mean difference): ahead are {', '.join(ahead) or 'none'}; behind are {', '.join(behind) or 'none'}."
        )
    few = [n for n in names if score(n, lambda r: float(r.prompts)) < PROMPTS / 2]
    if few:
        counts = ", ".join(f"{n} {score(n, lambda r: float(r.prompts)):.0f}" for n in few)
        found.append(f"Scored on fewer prompt pairs than the rest, which may cost them: {counts}.")
    return found


def known_lessons(results: list[Result]) -> list[str]:
    found = []
    names = [name for name in methods_of(results) if name != RANDOM]
    for kind in dict.fromkeys(r.case for r in results):
        some = [r for r in results if r.case == kind]
        perfect = [n for n in names if of(some, n) and min(r.auc or 0.0 for r in of(some, n)) > 1 - 1e-9]
        weak = {n: mean(of(some, n), lambda r: r.auc) for n in names if of(some, n)}
        below = [f"{n} {value:.3f}" for n, value in sorted(weak.items(), key=lambda x: x[1]) if value < 0.95]
        who = ", ".join(perfect) or "no method"
        text = f"{kind}: every true edge is above every other one, on all seeds that it ran on, for {who}"
        found.append(text + (f"; mean ROC-AUC below 0.95: {', '.join(below)}." if below else "."))
    return found


def listed(names: Sequence[str], value: Callable[[str], float]) -> str:
    return ", ".join(f"{name} {value(name):.3f}" for name in names)


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, ties sharing ranks."""

    def ranks(x: Sequence[float]) -> np.ndarray:
        values = np.asarray(x)
        return np.asarray((values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2)

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


if __name__ == "__main__":
    sys.exit(main())
