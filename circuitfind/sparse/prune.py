"""From scores to few nodes that carry the behaviour, decided by running the model with them alone.

Nodes are ranked by |score|, the smallest prefix of that order that reaches the target is found, then nodes are dropped from it,
least harmful first, as long as the target holds: groups of nodes with like scores, then smaller groups, then single nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.subsets import Subsets
from circuitfind.errors import RunError
from circuitfind.sparse.ablate import Mask, NodeEvaluator

GROUPS = 32
"""Groups that the prefix is first parted into; they are dropped whole, then smaller ones, then single nodes."""


@dataclass(frozen=True)
class PrunedNodes:
    """Nodes that are kept, and how they were found.

    Attributes:
        mask: True for them.
        prefix: Nodes of the ranking that were needed to reach the target, before any was dropped.
        minimal: Whether every node was tried for dropping alone, in vain.
        evaluations: Sets of nodes run.
    """

    mask: Mask
    prefix: int
    minimal: bool
    evaluations: int


def prune_by_threshold(scores: Float[np.ndarray, " node"], threshold: float) -> PrunedNodes:
    """Every node whose |score| is at least this.

    Raises:
        RunError: There is none.
    """
    mask = np.abs(scores) >= threshold
    _check(scores)
    if not mask.any():
        raise RunError(
            f"no node has a score of {threshold:g} or more; the strongest has {np.abs(scores).max():.3g}",
            hint="give a lower --node-threshold, or --faithfulness",
        )
    return PrunedNodes(mask, int(mask.sum()), False, 0)


def prune_nodes(
    scores: Float[np.ndarray, " node"],
    evaluator: NodeEvaluator,
    target: float,
    *,
    evaluations: int = 300,
    report: Callable[[str], None] = lambda text: None,
) -> PrunedNodes:
    """The fewest nodes found that keep faithfulness at ``target`` or above.

    Args:
        scores: Of every node.
        evaluator: Runs sets of nodes.
        target: Faithfulness to keep.
        evaluations: Sets to run at the most.
        report: Hears how far it is.

    Raises:
        RunError: All scores are zero, or there is no behaviour to explain.
    """
    _check(scores)
    order = [(int(i),) for i in np.argsort(-np.abs(scores), kind="stable")]
    search = Subsets(np.ones(len(scores), dtype=bool), order, evaluator.faithfulness, target)
    size, mask = search.smallest_prefix()
    report(f"{size} nodes reach {target:g}; dropping what is not needed")
    left, together, minimal = evaluations - search.evaluations, max(1, size // GROUPS), False
    while left > 0:
        mask, minimal, used = _drop(scores, mask, together, evaluator, target, left)
        left -= used
        report(f"{int(mask.sum())} nodes, {evaluations - left} sets tried")
        if together == 1:
            break
        minimal, together = False, max(1, together // 4)
    return PrunedNodes(mask, size, minimal, evaluations - left)


def _drop(
    scores: Float[np.ndarray, " node"],
    mask: Mask,
    together: int,
    evaluator: NodeEvaluator,
    target: float,
    budget: int,
) -> tuple[Mask, bool, int]:
    """Drop groups of so many nodes while the target holds; what is left, whether none can go, and the sets that were run.

    Groups run from the nodes that help most to those that hinder most: only nodes of one sign can be harmless together.
    """
    kept = [int(i) for i in np.argsort(-scores, kind="stable") if mask[i]]
    groups = [kept[start : start + together] for start in range(0, len(kept), together)]

    def expanded(some: Bool[np.ndarray, " group"]) -> Mask:
        found = np.zeros_like(mask)
        found[[node for group, there in zip(groups, some, strict=True) if there for node in group]] = True
        return found

    search = Subsets(
        np.ones(len(groups), dtype=bool),
        [(number,) for number in range(len(groups))],
        lambda sets: evaluator.faithfulness([expanded(some) for some in sets]),
        target,
    )
    some, minimal = search.drop(np.ones(len(groups), dtype=bool), budget=budget)
    return expanded(some), minimal, search.evaluations


def _check(scores: Float[np.ndarray, " node"]) -> None:
    if not np.abs(scores).max(initial=0.0) > 0:
        raise RunError(
            "every score is exactly zero: no SAE sees a difference between the clean prompts and what ablated nodes carry",
            hint="check that the corrupted prompts differ before the answer position; try another counterfactual",
        )
