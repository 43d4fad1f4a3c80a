"""Edges: what an upstream node does to the metric through one downstream node, by the direct way between the two.

    weight(u -> d) = sum over positions of (dm/dd) * (dd/du) . (u - u_ablated)

at the clean run. ``dm/dd`` is the whole effect of d on the metric, whatever it goes through above d. ``dd/du`` is the direct way
alone: what stands at every site between the two is held at its clean value, features and error alike, so that what reaches d
from u went through attention, MLPs, norms and the residual skip between sites, and through no other node. ``u -> logits`` is what
goes past all sites above u.

By the chain rule, the weights out of a node into every node above it and the logits sum to its score by the plain gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.sparse.ablate import Mask
from circuitfind.sparse.baseline import Baseline
from circuitfind.sparse.passes import run_points
from circuitfind.sparse.scores import clean_gradients
from circuitfind.sparse.sites import Point


@dataclass(frozen=True, eq=False)
class _Kept:
    """The nodes of a site that edges are wanted of.

    Attributes:
        site: Which.
        features: Which of its features.
        own: Where they stand among the nodes that are kept.
        error: Where its error stands among them; None where it is not kept.
    """

    site: int
    features: Int[Tensor, " some"]
    own: Int[np.ndarray, " some"]
    error: int | None


@torch.no_grad()
def score_edges(
    base: Baseline, mask: Mask, *, progress: Callable[[int], None] = lambda rows: None
) -> Float[np.ndarray, "sender receiver"]:
    """The weight of every edge among kept nodes, a mean over prompts in units of the metric.

    Args:
        base: Prompts, SAEs, ablation.
        mask: The nodes that are kept.
        progress: Called with the prompts that a gradient was taken of.

    Returns:
        ``[kept, kept + 1]`` in the order of ``base.nodes``; the last column is the logits.
    """
    base.runs.check_gradient("clean")
    kept = _kept(base, mask)
    size = int(mask.sum())
    weights = np.zeros((size, size + 1))
    for number, batch in enumerate(base.runs.batches):
        graph = _Broken(base, number)
        total = clean_gradients(base, number)
        change = _changes(base, number, kept)
        for receiver, output, below in _outputs(base, graph, total, kept, size):
            if not below:
                continue
            base.model.passes["backward"] += 1
            leaves = [graph.leaves[base.sites[one.site].point] for one in below]
            found = torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True)
            for one, grad in zip(below, found, strict=True):
                if grad is not None:
                    _add(weights[:, receiver], base, one, grad, change[one.site])
            progress(len(batch.index))
    return weights / len(base.runs)


class _Broken:
    """The clean run of a batch, cut at every site: what comes in is a function of what went out of the sites below."""

    def __init__(self, base: Baseline, number: int) -> None:
        held, points = base.batch(number), {site.point for site in base.sites}
        self.leaves: dict[Point, Tensor] = {}
        self.inputs: dict[Point, Tensor] = {}

        def visit(point: Point, x: Tensor) -> Tensor:
            if point not in points:
                return x
            self.inputs[point] = x
            self.leaves[point] = x.detach().requires_grad_()
            return self.leaves[point]

        begin = base.sites[0].point[0]
        with torch.enable_grad():
            final = run_points(base.model, held.place, held.entry[begin], visit, begin=begin)
            self.metric = base.metric(number, final).sum()


def _kept(base: Baseline, mask: Mask) -> list[_Kept]:
    found, start = [], 0
    for at in range(len(base.sites)):
        own = mask[base.nodes.span(at)]
        features = np.flatnonzero(own[:-1])
        place = start + np.arange(len(features))
        start += int(own.sum())
        if own.any():
            index = torch.from_numpy(base.nodes.held[at][features]).to(base.model.device)
            found.append(_Kept(at, index, place, start - 1 if own[-1] else None))
    return found


def _outputs(
    base: Baseline,
    graph: _Broken,
    total: dict[Point, Tensor],
    kept: list[_Kept],
    logits: int,
) -> Iterator[tuple[int, Tensor, list[_Kept]]]:
    """(receiver, a number whose gradient is that of the metric through it alone, what may feed it)."""
    for at, one in enumerate(kept):
        site = base.sites[one.site]
        x, grad = graph.inputs[site.point], total[site.point]
        if not x.requires_grad:
            continue  # nothing that is spliced in stands below
        with torch.enable_grad():
            found = site.encode_some(x, one.features) if len(one.features) else None
            for number, receiver in enumerate(one.own):
                assert found is not None
                pull = grad @ site.decoder[one.features[number]]
                yield int(receiver), (found[..., number] * pull).sum(), kept[:at]
            if one.error is not None:
                left = site.error(x, site.encode(x))
                yield one.error, (left * grad).sum(), kept[:at]
    yield logits, graph.metric, kept


def _changes(base: Baseline, number: int, kept: list[_Kept]) -> dict[int, tuple[Tensor, Tensor | None]]:
    """By site, what kept features and a kept error carry less what they carry when ablated."""
    held = base.batch(number)
    found: dict[int, tuple[Tensor, Tensor | None]] = {}
    for one in kept:
        site = base.sites[one.site]
        x = held.clean[site.point]
        features = site.encode_some(x, one.features) - base.cut_features(number, site, one.features)
        error = None
        if one.error is not None:
            error = base.errors_of(site, x) - held.errors[site.point]
        found[one.site] = features, error
    return found


def _add(
    column: Float[np.ndarray, " kept"],
    base: Baseline,
    one: _Kept,
    grad: Float[Tensor, "row pos d_model"],
    change: tuple[Tensor, Tensor | None],
) -> None:
    """Add the weights from a site's kept nodes, given the gradient at what stands there."""
    features, error = change
    pull = grad @ base.sites[one.site].decoder[one.features].T
    column[one.own] += (features * pull).double().sum((0, 1)).cpu().numpy()
    if error is not None and one.error is not None:
        column[one.error] += float((error * grad).double().sum())
