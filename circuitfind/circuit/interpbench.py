"""The area under a ROC curve as the MIB benchmark takes it for models whose true edges are known (InterpBench).

It differs from the usual one (``curve.roc_auc``) in three ways: points are the connected circuits that a greedy search
finds at ten sizes, not every threshold; the curve begins at the smallest of them, not at (0, 0); and its x axis is divided
by the last false-positive rate. Source: Mueller et al. 2025 (arXiv 2504.13151) and the code of its circuit track.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.curve import SHARES, Edges, Mask
from circuitfind.circuit.graph import connected
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UsageError
from circuitfind.model.anatomy import Anatomy


def greedy_order(anatomy: Anatomy, strengths: Float[np.ndarray, "writer reader"]) -> Edges:
    """(writer, reader) of every edge in the order in which a search from the logits down takes them.

    At each step it takes the strongest edge into what it has reached, the logits at first; the edge's writer is then reached.
    NaN counts as 0, and equally strong edges go by the order in which they came within reach.
    """
    filled = np.nan_to_num(strengths)
    into: list[tuple[float, int, int, int]] = []
    reached: set[str] = set()
    order: list[tuple[int, int]] = []

    def reach(readers: Iterable[str]) -> None:
        for name in readers:
            if name in reached:  # a key/value head serves several
                continue
            reached.add(name)
            column = anatomy.reader_index[name]
            for row in np.flatnonzero(anatomy.edge_mask[:, column]):
                heapq.heappush(into, (-float(filled[row, column]), len(order) + len(into), int(row), column))

    reach(["logits"])
    while into:
        _, _, row, column = heapq.heappop(into)
        order.append((row, column))
        reach(anatomy.readers_of(anatomy.writers[row]))
    return order


def greedy_circuits(anatomy: Anatomy, order: Edges, shares: Sequence[float] = SHARES) -> list[Mask]:
    """The connected part of the first ceil(share * edges) edges of a greedy order, share by share."""
    found = []
    for share in shares:
        mask = np.zeros_like(anatomy.edge_mask)
        for edge in order[: math.ceil(share * anatomy.n_edges)]:
            mask[edge] = True
        found.append(connected(anatomy, mask))
    return found


def rates(anatomy: Anatomy, circuits: Sequence[Mask], truth: Mask) -> tuple[list[float], list[float]]:
    """False-positive and true-positive rate of each circuit, over the edges of the model."""
    other = anatomy.edge_mask & ~truth
    false = [float((mask & other).sum() / other.sum()) for mask in circuits]
    return false, [float((mask & truth).sum() / truth.sum()) for mask in circuits]


def interpbench_auroc(
    scores: Scores, truth: Iterable[str], *, absolute: bool = True, shares: Sequence[float] = SHARES
) -> float:
    """How well a ranking of edges finds the true ones: 1 is best, and chance is not 0.5 (docs/mib.md).

    Args:
        scores: Of every edge.
        truth: Names of the true edges.
        absolute: Rank by |score|, as the benchmark does, or by score.
        shares: Sizes of the circuits, as shares of all edges; the last is 1.

    Raises:
        UsageError: The scores are of nodes, a name is no edge of the model, or all edges are true, or none.
    """
    anatomy = scores.anatomy
    if scores.level != "edge":
        raise UsageError(
            f"'{scores.method}' scores nodes, and this area is of edges",
            hint="choose a method that scores edges (`circuitfind list methods`)",
        )
    true = np.zeros_like(anatomy.edge_mask)
    for name in truth:
        true[anatomy.index_of(name)] = True
    if not true.any() or bool(true[anatomy.edge_mask].all()):
        raise UsageError(
            f"{int(true.sum())} of the {anatomy.n_edges} edges are true: a ROC curve needs edges of both kinds",
            hint="check the list of true edges",
        )
    strengths = np.abs(scores.values) if absolute else np.asarray(scores.values)
    x, y = rates(anatomy, greedy_circuits(anatomy, greedy_order(anatomy, strengths), shares), true)
    steps = zip(x, x[1:], y, y[1:], strict=False)
    return sum((right - left) / x[-1] * (low + high) / 2 for left, right, low, high in steps)
