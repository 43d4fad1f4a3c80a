"""Scores of a method when its prompts are drawn again, without running it again for each draw.

Where a score is the mean over prompts of what each prompt gives, the scores of drawn prompts are a weighted mean, and one run
that keeps prompts apart has them for any number of draws:

    eap, eap-ig, eap-ig-activations, clean-corrupted, relp, gim    the contraction, prompt by prompt
    atp, atp-star, activation-patching, path-patching              what these methods keep of each prompt
    edge-patching                                                  the effects of single prompts
    hybrid        the proposal of each draw chooses what is verified; an edge is patched once for all draws that choose it
    ensemble      the members' scores of each draw, joined as ever

Not so for acdc, edge-pruning and ifr, for positions kept apart (sums of absolute means), and under ``mean`` ablation, where
what a prompt is ablated to depends on the other prompts. Under ``optimal`` ablation the constants are those of all prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction
from circuitfind.methods.activation_patching import ActivationPatching
from circuitfind.methods.atp import AtP
from circuitfind.methods.atp_star import AtPStar
from circuitfind.methods.base import Method
from circuitfind.methods.edge_patching import EdgePatching
from circuitfind.methods.ensemble import HOW, Ensemble
from circuitfind.methods.exact import effects, needs_corrupted_run
from circuitfind.methods.gradient_edges import GradientMethod, weighted_scores
from circuitfind.methods.hybrid import Hybrid, joined
from circuitfind.methods.path_patching import PathPatching
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs

Weights = Float[np.ndarray, "draw prompt"]
MOST_EFFECTS = 1 << 24
"""Effects of single prompts that are computed at once."""


def is_additive(method: Method, ablation: Ablation) -> bool:
    """Whether the scores of drawn prompts can be had from one run over all of them."""
    if ablation == "mean":
        return False
    if isinstance(method, ActivationPatching):
        return not method.both  # which direction is the larger one is decided over all prompts
    if isinstance(method, Hybrid):
        return is_additive(method.proposal(), ablation)
    if isinstance(method, Ensemble):
        return all(is_additive(member, ablation) for member in method.members())
    if isinstance(method, EdgePatching):
        return not method.of or is_additive(method.proposer(), ablation)
    return isinstance(method, (GradientMethod, AtP, AtPStar, PathPatching))


def redrawn_scores(
    runs: Runs, method: Method, weights: Weights, *, ablation: Ablation, direction: Direction
) -> list[Scores]:
    """What the method gives for each row of weights: its scores on prompts of which each counts by its weight.

    Args:
        runs: All prompts.
        method: One that ``is_additive``.
        weights: Of each prompt in each draw; a row sums to 1.
        ablation: As for a method, but not ``mean``.
        direction: As for a method.

    Raises:
        ValueError: The method is not additive.
        UnsupportedError, RunError: As for the method.
    """
    if not is_additive(method, ablation):
        raise ValueError(f"{method.name} is no mean over prompts under {ablation} ablation")
    return _redrawn(runs, method, weights, ablation, direction)


def _redrawn(
    runs: Runs, method: Method, weights: Weights, ablation: Ablation, direction: Direction
) -> list[Scores]:
    if isinstance(method, Ensemble):
        members = [_redrawn(runs, one, weights, ablation, direction) for one in method.members()]
        return [_ensemble(method, drawn) for drawn in zip(*members, strict=True)]
    if isinstance(method, Hybrid):
        return _hybrid(runs, method, weights, ablation, direction)
    if isinstance(method, EdgePatching):
        return _edge_patching(runs, method, weights, ablation, direction)
    if isinstance(method, GradientMethod):
        edges, nodes = weighted_scores(runs, method, weights, ablation=ablation, direction=direction)
        given = zip(edges, nodes, strict=True)
        return [_scores(runs, method, ablation, direction, each, node) for each, node in given]
    found = method.run(runs, ablation=ablation, direction=direction)
    assert found.per_prompt is not None
    values = weights @ found.per_prompt
    return [replace(found, values=row, per_prompt=None, extra={}, facts={}) for row in values]


def _scores(
    runs: Runs,
    method: Method,
    ablation: Ablation,
    direction: Direction,
    values: np.ndarray,
    nodes: np.ndarray | None = None,
) -> Scores:
    return Scores(
        anatomy=runs.model.anatomy,
        level=method.level,
        values=np.array(values),
        nodes=None if nodes is None else np.array(nodes),
        method=method.name,
        direction=direction,
        metric=runs.metric.name,
        ablation=ablation,
    )


def _ensemble(method: Ensemble, members: Sequence[Scores]) -> Scores:
    values = HOW[method.how]([scores.values for scores in members])
    return replace(members[0], values=np.asarray(values), nodes=None, method=method.name)


def _hybrid(
    runs: Runs, method: Hybrid, weights: Weights, ablation: Ablation, direction: Direction
) -> list[Scores]:
    needs_corrupted_run(direction, ablation)
    proposed = _redrawn(runs, method.proposal(), weights, ablation, direction)
    chosen = []
    for scores in proposed:
        top, drawn, _ = method.choose(scores.values.ravel())
        chosen.append(np.concatenate([top, drawn]))
    exact = _Exact(runs, proposed[0], np.unique(np.concatenate(chosen)), ablation, direction)
    found = []
    for scores, some, row in zip(proposed, chosen, weights, strict=True):
        values = joined(scores.values.ravel(), exact.of(some, row)).reshape(scores.values.shape)
        nodes = scores.nodes if method.level == "edge" else None
        found.append(replace(scores, values=values, nodes=nodes, method=method.name))
    return found


def _edge_patching(
    runs: Runs, method: EdgePatching, weights: Weights, ablation: Ablation, direction: Direction
) -> list[Scores]:
    needs_corrupted_run(direction, ablation)
    like = _scores(runs, method, ablation, direction, np.full(runs.model.anatomy.edge_mask.shape, np.nan))
    every = np.flatnonzero(runs.model.anatomy.edge_mask)
    chosen = [every] * len(weights)
    if method.of:
        width = like.values.shape[1]
        drawn = _redrawn(runs, method.proposer(), weights, ablation, direction)
        ranked = [scores.ranked_edges()[: method.n_edges] for scores in drawn]
        chosen = [np.array([w * width + r for w, r in edges]) for edges in ranked]
    exact = _Exact(runs, like, np.unique(np.concatenate(chosen)), ablation, direction)
    return [
        replace(like, values=exact.of(some, row).reshape(like.values.shape))
        for some, row in zip(chosen, weights, strict=True)
    ]


class _Exact:
    """Exact effects of edges or nodes on each prompt, each patched once.

    Args:
        runs: The prompts.
        like: Scores of the same level.
        parts: Where the edges or nodes stand among the values of these, in order.
        ablation: As for a method.
        direction: The same.
    """

    def __init__(
        self, runs: Runs, like: Scores, parts: np.ndarray, ablation: Ablation, direction: Direction
    ) -> None:
        self._parts, self._size = parts, like.values.size
        width = like.values.shape[-1]
        order = parts
        if like.level == "edge":
            order = parts[np.lexsort((parts // width, parts % width))]  # those into one layer share passes
        patches = [
            Patch(edge=(int(i) // width, int(i) % width))
            if like.level == "edge"
            else Patch(nodes=np.arange(width) == i)
            for i in order
        ]
        self._found = np.empty((len(parts), len(runs)))
        at = np.searchsorted(parts, order)
        for some in _slices(len(patches), max(1, MOST_EFFECTS // len(runs))):
            self._found[at[some]] = runs.fitted(
                lambda: effects(runs, patches[some], direction, ablation)  # noqa: B023  called at once
            )

    def of(self, some: np.ndarray, weights: Float[np.ndarray, " prompt"]) -> Float[np.ndarray, " scored"]:
        """Their effects on drawn prompts, NaN elsewhere."""
        values = np.full(self._size, np.nan)
        values[some] = self._found[np.searchsorted(self._parts, some)] @ weights
        return values


def _slices(total: int, size: int) -> Iterable[slice]:
    return (slice(first, min(first + size, total)) for first in range(0, total, size))
