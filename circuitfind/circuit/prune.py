"""Pruning: from scores to a small connected circuit.

By faithfulness (the default), every step is decided by running the circuit, the scores only give the order in which edges
are tried:

1. rank edges by |score| and find, among the prefixes of that order, the smallest one that reaches the target;
2. drop edges from it, least harmful first, as long as the target holds (many trial circuits to a batch);
3. what is left is connected, and no edge of it can be dropped alone without missing the target.

Under ``denoising`` an edge that alone brings back more than the target leaves out, when only its clean value is put into
the corrupted run, stays in the circuit even when others could stand in for it: both arms of an OR are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.graph import connected
from circuitfind.circuit.prefix import check_left, prefix_circuit, prefix_mask, rank
from circuitfind.circuit.rule import Rule
from circuitfind.circuit.scores import Scores
from circuitfind.circuit.subsets import Subsets
from circuitfind.config import Direction
from circuitfind.model.node_pass import Patch

Mask = Bool[np.ndarray, "writer reader"]

__all__ = ["Pruned", "overlap", "prefix_mask", "prune", "rank"]


@dataclass(frozen=True)
class Pruned:
    """A connected circuit and how it was found.

    Attributes:
        mask: Its edges.
        prefix: Edges of the ranking that were needed to reach the target, before any was dropped.
        minimal: Whether every single edge was tried for dropping (False when evaluations ran out, or not asked for).
        evaluations: Circuits run.
    """

    mask: Mask
    prefix: int
    minimal: bool
    evaluations: int


def prune(
    scores: Scores,
    rule: Rule,
    evaluator: Evaluator,
    *,
    direction: Direction = "noising",
    report: Callable[[str], None] = lambda text: None,
) -> Pruned:
    """Prune by ``rule``.

    Raises:
        RunError: All scores are zero or none was computed, or no connected circuit is left.
    """
    anatomy = scores.anatomy
    order = rank(scores)
    before = evaluator.n_evaluations
    if rule.faithfulness is None:
        (size, mask), minimal = prefix_circuit(scores, rule), False
    else:
        search = Subsets(
            _candidates(scores), order, evaluator.faithfulness, rule.faithfulness, partial(connected, anatomy)
        )
        size, mask = search.smallest_prefix()
        report(f"{int(mask.sum())} edges reach {rule.faithfulness:g}; dropping what is not needed")
        kept = np.zeros_like(mask)
        if direction == "denoising":
            kept = _sufficient_alone(scores, order, evaluator, rule.faithfulness)
            mask = connected(anatomy, mask | kept)
        budget = rule.evaluations - (evaluator.n_evaluations - before)
        mask, minimal = search.drop(
            mask,
            kept,
            budget=budget,
            report=lambda left, tried: report(f"{left} edges, {tried} circuits tried"),
        )
        minimal = minimal and not (mask & kept).any()  # what is kept on purpose was not tried
    check_left(mask, rule)
    return Pruned(mask, size, minimal, evaluator.n_evaluations - before)


def _candidates(scores: Scores) -> Mask:
    """The edges that may be in the circuit: all, but for those that a method left unscored on purpose."""
    every = scores.anatomy.edge_mask
    return np.array(every) if scores.level == "node" else every & ~np.isnan(scores.values)


def _sufficient_alone(
    scores: Scores, order: list[tuple[int, int]], evaluator: Evaluator, target: float, most: int = 256
) -> Mask:
    """Edges that alone restore more than (1 - target) of the behaviour when clean is put into the corrupted run."""
    runs = evaluator.runs
    chosen = order[:most]
    patches = []
    for w, r in chosen:
        edges = np.zeros_like(scores.anatomy.edge_mask)
        edges[w, r] = True
        patches.append(Patch(edges=edges))
    effects = runs.patched(patches, base="corrupted", ablation="clean").mean(1) - runs.corrupted.mean()
    gap = runs.clean.mean() - runs.corrupted.mean()
    kept = np.zeros_like(scores.anatomy.edge_mask)
    for (w, r), effect in zip(chosen, effects, strict=True):
        kept[w, r] = effect > (1 - target) * gap
    return kept


def overlap(found: Float[np.ndarray, "writer reader"] | Mask, truth: Mask) -> tuple[float, float]:
    """Precision and recall of a set of edges against the true one."""
    hits = float((found.astype(bool) & truth).sum())
    return hits / max(1.0, float(found.astype(bool).sum())), hits / max(1.0, float(truth.sum()))
