"""Circuits that follow from scores alone: the strongest edges that lie on a way from input to logits. No torch here."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from circuitfind.circuit.curve import edge_order, edge_strengths
from circuitfind.circuit.graph import connected
from circuitfind.circuit.rule import Rule
from circuitfind.circuit.scores import Scores
from circuitfind.errors import RunError, UsageError
from circuitfind.model.anatomy import Anatomy

Mask = Bool[np.ndarray, "writer reader"]


def rank(scores: Scores) -> list[tuple[int, int]]:
    """(writer, reader) of every edge, strongest first.

    Edges that were scored go by |score|. From node scores an edge is as strong as the weaker of its ends.

    Raises:
        RunError: Nothing was scored, or everything is zero.
    """
    values = scores.values
    if not np.isfinite(values).any():
        raise RunError("the method scored nothing", hint="choose another method")
    if not np.nanmax(np.abs(values)) > 0:
        raise RunError(
            "every score is exactly zero: the method saw no difference between clean and corrupted prompts",
            hint="check that the corrupted prompts differ before the answer position; try another counterfactual",
        )
    if scores.level == "edge":
        return scores.ranked_edges()
    return edge_order(scores.anatomy, edge_strengths(scores))


def prefix_mask(anatomy: Anatomy, order: list[tuple[int, int]], size: int) -> Mask:
    """The first ``size`` edges of an order."""
    mask = np.zeros_like(anatomy.edge_mask)
    for w, r in order[:size]:
        mask[w, r] = True
    return mask


def prefix_size(scores: Scores, order: list[tuple[int, int]], rule: Rule) -> int:
    """How many edges of an order a rule by number or by threshold takes.

    Raises:
        UsageError: A threshold on scores of nodes, or a rule by faithfulness, which scores do not tell.
    """
    if rule.edges is not None:
        return _by_count(scores.anatomy, order, rule.edges)
    if rule.threshold is None:
        raise UsageError("scores do not tell how faithful a circuit is", hint="run it: circuitfind discover")
    return _by_threshold(scores, order, rule.threshold)


def prefix_circuit(scores: Scores, rule: Rule) -> tuple[int, Mask]:
    """The size of the prefix that a rule takes, and the connected part of it.

    Raises:
        RunError: All scores are zero or none was computed, or no connected circuit is left.
        UsageError: A threshold on scores of nodes, or a rule by faithfulness.
    """
    order = rank(scores)
    size = prefix_size(scores, order, rule)
    mask = connected(scores.anatomy, prefix_mask(scores.anatomy, order, size))
    check_left(mask, rule)
    return size, mask


def check_left(mask: Mask, rule: Rule) -> None:
    """Refuse an empty circuit.

    Raises:
        RunError: It is one.
    """
    if not mask.any():
        raise RunError(
            f"no way from the input to the logits is left ({rule})",
            hint="keep more: a lower threshold, more edges, or a target faithfulness",
        )


def _by_count(anatomy: Anatomy, order: list[tuple[int, int]], wanted: int) -> int:
    """The longest prefix whose connected part has at most ``wanted`` edges (connected parts only grow)."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if connected(anatomy, prefix_mask(anatomy, order, middle)).sum() <= wanted:
            low = middle
        else:
            high = middle - 1
    return low


def _by_threshold(scores: Scores, order: list[tuple[int, int]], threshold: float) -> int:
    if scores.level == "node":
        raise UsageError(
            "a threshold needs edge scores, and this method scores nodes",
            hint="use --faithfulness or --edges, or --method eap",
        )
    return int(sum(abs(scores.values[w, r]) >= threshold for w, r in order))
