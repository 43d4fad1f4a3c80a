"""Our jobs, what each is measured against, and its bar.

A side is a function from a ``Case`` to a closure; ``make_side`` finds it by name. A job names our side, what stands against
it (passes of the bare model, another tool, or another side of ours) and a bar for the ratio of the two. To add one: write
the side, enter it in ``SIDES``, and add a ``Job``.

Attribution starts at the prompts: the clean and corrupted runs are made anew each time. Circuits are evaluated and pruned
by the hundred on the same prompts, so there those two runs are made beforehand, as in use.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import attribution as graphs
from benchmarks import floors, peers
from benchmarks.case import Case, Closure, Kind, NotAvailable
from benchmarks.checks import same_edges, same_heads

if TYPE_CHECKING:
    from circuitfind.methods.base import Method
    from circuitfind.model.anatomy import Anatomy
    from circuitfind.model.runs import Runs

Mask = np.ndarray[Any, np.dtype[np.bool_]]

SCALE = (16, 64, 256, 1024)
"""Prompt pairs of the scaling curve."""

SCALE_BUDGET = 3 * 10**9
"""Bytes that the scaling curve plans for, so that memory is seen to end there."""


def find_method(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """The method of that name.

    Raises:
        NotAvailable: This version has no such method, or it takes no such options.
    """
    from circuitfind.errors import UsageError
    from circuitfind.methods import get_method

    call: Callable[..., Method] = get_method
    try:
        plain = call(name)
        return call(name, dict(options)) if options else plain
    except UsageError as error:
        raise NotAvailable(str(error).splitlines()[0]) from error
    except TypeError as error:
        raise NotAvailable(f"'{name}' takes no options") from error


def fresh_runs(
    case: Case, kind: Kind = "early", count: int = 16, budget: int | None = None
) -> Callable[[], Runs]:
    """Makes ``Runs`` that have run nothing yet, for so many bytes or for what is free."""
    from circuitfind.model.memory import make_plan
    from circuitfind.model.runs import Runs
    from circuitfind.task.metrics import get_metric

    model, pairs, metric = case.model, case.pairs(kind, count), get_metric("logit-diff")
    return lambda: Runs(model, pairs, metric, plan=make_plan(model, budget))


def cached_runs(case: Case) -> Runs:
    """``Runs`` with the clean and corrupted runs made."""
    runs = fresh_runs(case)()
    _ = runs.clean, runs.corrupted
    return runs


# Sides


def attribution(
    name: str, options: Mapping[str, Any] | None = None, count: int = 16, budget: int | None = None
) -> Callable[[Case], Closure]:
    """A method that scores everything at once, from prompts to scores."""

    def make(case: Case) -> Closure:
        method, runs = find_method(name, options), fresh_runs(case, count=count, budget=budget)
        return lambda: method.run(runs(), ablation="resample", direction="noising")

    return make


def units(case: Case) -> Closure:
    """Attribution of every head and of every neuron as a node of its own, from the model to scores."""
    from circuitfind.methods.node_gradients import node_scores
    from circuitfind.model.memory import make_plan
    from circuitfind.model.runs import Runs
    from circuitfind.model.split import split_neurons
    from circuitfind.task.metrics import get_metric

    whole, pairs, metric = case.model, case.pairs("early"), get_metric("logit-diff")

    def run() -> Any:
        model = split_neurons(whole)
        runs = Runs(model, pairs, metric, plan=make_plan(model, None, edges=False))
        return node_scores(runs, "atp", ablation="resample", direction="noising", positions="none")

    return run


def heads(kind: Kind) -> Callable[[Case], Closure]:
    """The exact effect of every head, from prompts: the metric of each prompt under each patch."""

    def make(case: Case) -> Closure:
        from circuitfind.model.node_pass import Patch

        runs, anatomy = fresh_runs(case, kind), case.model.anatomy
        rows = [row for layer in range(anatomy.n_layers) for row in _rows(anatomy.head_slice(layer))]
        patches = [Patch(nodes=np.arange(len(anatomy.writers)) == row) for row in rows]
        return lambda: runs().patched(patches, ablation="resample")

    return make


def _rows(part: slice) -> range:
    return range(part.start, part.stop)


def half_of_edges(anatomy: Anatomy) -> Mask:
    """Half of all edges, at random: most of them lead somewhere, and no structure helps."""
    return anatomy.edge_mask & (np.random.default_rng(0).random(anatomy.edge_mask.shape) < 0.5)


def fifth_of_nodes(anatomy: Anatomy) -> Mask:
    """A fifth of the heads and MLPs, at random, with every edge between them, the input and the logits."""
    chosen = set(random.Random(0).sample(anatomy.writer_names[1:], k=round(0.2 * len(anatomy.writers))))
    writers = [name in chosen or name == "input" for name in anatomy.writer_names]
    readers = [str(node) in chosen or str(node) == "logits" for node, _ in anatomy.readers]
    return anatomy.edge_mask & np.outer(writers, readers)


def circuit(choose: Callable[[Anatomy], Mask]) -> Callable[[Case], Closure]:
    """One evaluation of a circuit."""

    def make(case: Case) -> Closure:
        from circuitfind.circuit.evaluate import Evaluator

        evaluator = Evaluator(cached_runs(case), "resample")
        mask = choose(case.model.anatomy)
        return lambda: evaluator.values([mask])

    return make


def acdc(case: Case) -> Closure:
    """ACDC over all edges; returns its scores."""
    method, runs = find_method("acdc", {"threshold": 1e-3}), cached_runs(case)
    return lambda: method.run(runs, ablation="resample", direction="noising")


def visited(scores: Any) -> float:
    """How many edges ACDC looked at: as it says itself, or those that have a score."""
    return float(scores.facts.get("visited", np.isfinite(scores.values).sum()))


SIDES: dict[str, Callable[[Case], Closure]] = {
    "eap": attribution("eap"),
    "eap-ig": attribution("eap-ig", {"steps": 5}),
    "relp": attribution("relp"),
    "gim": attribution("gim"),
    "atp": attribution("atp"),
    "atp-star": attribution("atp-star"),
    "neurons": attribution("atp", {"neurons": True}),
    "units": units,
    "heads late": heads("late"),
    "heads early": heads("early"),
    "circuit half": circuit(half_of_edges),
    "circuit fifth": circuit(fifth_of_nodes),
    "acdc": acdc,
    **graphs.SIDES,
    **{f"eap {count}": attribution("eap", count=count, budget=SCALE_BUDGET) for count in SCALE},
}


def make_side(case: Case, name: str) -> Closure:
    """The closure of a side: ours, a floor's or a peer's.

    Raises:
        NotAvailable: This version does not have it, or the other tool is not installed.
    """
    for sides in (SIDES, floors.SIDES, peers.SIDES):
        if name in sides:
            try:
                return sides[name](case)
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("circuitfind"):
                    raise
                raise NotAvailable(f"{error.name} is not installed") from error
    raise KeyError(name)


# Jobs


@dataclass(frozen=True)
class Bar:
    """What a figure has to keep to; ``at_least`` where more is better."""

    limit: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"

    def met(self, figure: float) -> bool:
        return figure >= self.limit if self.at_least else figure <= self.limit


@dataclass(frozen=True)
class Job:
    """One line of work and its bars.

    Attributes:
        name: ``group`` or ``group:variant``.
        summary: What is done.
        ours: Our side.
        against: A floor or another side of ours (the figure is ours over theirs), or a peer (theirs over ours).
        bar: For that ratio; None where it is only told.
        memory_bar: For peak memory beyond the model, over that of the floor.
        gigabytes: A bar for peak memory beyond the model itself.
        shape: Where it cannot be the one asked for.
        per: How many pieces our result counts; seconds are for one of them.
        pieces: What such a piece is called.
        check: The largest difference between our values and the peer's.
        most: At most so many turns.
    """

    name: str
    summary: str
    ours: str
    against: floors.Floor | peers.Peer | str
    bar: Bar | None = None
    memory_bar: Bar | None = None
    gigabytes: Bar | None = None
    shape: str | None = None
    per: Callable[[Any], float] | None = None
    pieces: str = ""
    check: Callable[[Case, Any, Any], float] | None = None
    most: int = 99

    @property
    def group(self) -> str:
        return self.name.partition(":")[0]


SAME = Bar(1e-5)
"""For the difference between our values and a peer's."""


def _gradient_job(
    name: str,
    summary: str,
    against: floors.Floor,
    bar: float | None,
    memory: float | None = None,
    most: int = 99,
) -> Job:
    time_bar, memory_bar = (None if limit is None else Bar(limit) for limit in (bar, memory))
    return Job(name, summary, name, against, time_bar, memory_bar, most=most)


JOBS: tuple[Job, ...] = (
    _gradient_job("eap", "edge attribution, all edges", floors.GRADIENT, 1.35, 1.5),
    _gradient_job(
        "eap-ig", "edge attribution with integrated gradients, 5 steps", floors.INTEGRATED, 1.2, most=5
    ),
    _gradient_job("relp", "relevance patching, all edges", floors.GRADIENT, 1.5),
    _gradient_job("gim", "edge attribution with GIM's gradients", floors.GRADIENT, 1.5),
    _gradient_job("atp", "node attribution", floors.GRADIENT, None),
    _gradient_job("atp-star", "node attribution with QK fix and GradDrop", floors.DROPPED, 1.3, most=5),
    Job(
        "neurons",
        "attribution of every MLP neuron beside that of heads and MLPs",
        "neurons",
        "atp",
        Bar(1.3),
    ),
    _gradient_job(
        "units",
        "neuron attribution: all neurons and heads as nodes, the split of the MLPs included",
        floors.GRADIENT,
        1.5,
    ),
    Job(
        "heads:late",
        "exact patching of every head; the first 10 of 16 tokens and the last 5 agree",
        "heads late",
        peers.TL_HEADS["late"],
        Bar(6.5, at_least=True),
        check=same_heads,
        most=3,
    ),
    Job(
        "heads:early",
        "exact patching of every head; only the first token agrees",
        "heads early",
        peers.TL_HEADS["early"],
        Bar(2.8, at_least=True),
        check=same_heads,
        most=3,
    ),
    Job(
        "circuit:half",
        "one evaluation of a circuit of half of all edges, at random",
        "circuit half",
        floors.ONE_PASS,
        Bar(1.8),
    ),
    Job(
        "circuit:fifth",
        "one evaluation of a circuit of a fifth of the nodes, all edges between them",
        "circuit fifth",
        floors.ONE_PASS,
        Bar(0.6),
    ),
    Job(
        "acdc",
        "ACDC over all edges, for each edge visited",
        "acdc",
        floors.ONE_PASS,
        Bar(0.3),
        shape="four-layers",
        per=visited,
        pieces="edges visited",
        most=3,
    ),
    Job(
        "attribution",
        "attribution graph of one prompt, transcoders of 24,576 features a layer read from the disk",
        "attribution",
        graphs.PROMPT,
        Bar(200),
        gigabytes=Bar(6),
        most=1,
    ),
    Job(
        "peer:eap",
        "edge attribution beside TransformerLens's",
        "eap",
        peers.TL_EDGES,
        check=same_edges,
        most=3,
    ),
    Job("peer:atp", "node attribution beside TransformerLens's", "atp", peers.TL_NODES, most=3),
)

SCALING = "scaling"
"""The name of the curve of ``SCALE``, which is no ratio."""
