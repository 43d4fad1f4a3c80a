"""Neurons that act together: no single one of them matters, all of them do.

In superposition a behaviour is spread over several neurons, which single ablation misses: each does little alone, or, where
something behind them saturates, nothing at all, and no gradient shows them either. They are found by what they have in
common: their activations differ between the two runs in the same way.

1. Among neurons that do little alone, those are put together whose differences between the base run and what they carry when
   replaced, over all tokens of all prompts, have a cosine of at least ``ALIKE`` with that of the neuron that moves most.
2. Each such set is replaced together. One that then does much more than its largest member is a group.
3. Its members are those that contribute: the mean of what a neuron adds to the effect in random orders of the set (its
   Shapley value, sampled), which is zero for one that only fires beside the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from circuitfind.config import Ablation
from circuitfind.model.runs import Runs
from circuitfind.names import Kind
from circuitfind.units.circuits import NodeCircuits

ALIKE = 0.7
WEAK = 0.1
"""Neurons that do at most this share of what there is to explain, alone, may be members."""
JOINT = 0.05
"""A group does at least this share together,"""
MORE = 2.0
"""and so many times what its largest member does alone."""
TRIED = 48
"""Sets of a layer that are replaced together, those that write most first."""
LARGEST = 48
"""Members of a set, those that write most."""
ORDERS = 12
"""Random orders behind a Shapley value."""
PART = 0.25
"""A member contributes at least this share of what an equal part would be."""


@dataclass(frozen=True)
class Group:
    """Neurons of one layer that act together.

    Attributes:
        rows: Their rows in the list of writers.
        effect: What the metric loses when all are replaced.
        largest: The most that it loses by a single one of them.
        shares: What each contributes, in the order of ``rows``; they sum to the effect of the set that was sampled.
    """

    rows: tuple[int, ...]
    effect: float
    largest: float
    shares: tuple[float, ...]


def find_groups(
    circuits: NodeCircuits,
    attribution: Float[np.ndarray, " writer"],
    exact: Mapping[int, float],
    *,
    seed: int = 0,
) -> list[Group]:
    """Groups in a model of which every neuron is a node, layer by layer.

    Args:
        circuits: Runs sets of them.
        attribution: Of every writer.
        exact: What the metric really loses without a writer, where that is known.
        seed: Of the random orders.
    """
    anatomy, found = circuits.runs.model.anatomy, []
    rng = np.random.default_rng(seed)
    alone = np.abs(attribution)
    for row, effect in exact.items():
        alone[row] = abs(effect)
    for layer in range(anatomy.n_layers):
        rows = [
            row
            for row, node in enumerate(anatomy.writers)
            if node.kind is Kind.NEURON and node.layer == layer and alone[row] <= WEAK * circuits.gap
        ]
        if len(rows) > 1:
            found += _of_layer(circuits, layer, rows, rng)
    return found


def _of_layer(circuits: NodeCircuits, layer: int, rows: Sequence[int], rng: np.random.Generator) -> list[Group]:
    clusters = _clusters(circuits.runs, circuits.ablation, layer, rows)
    if not clusters:
        return []
    joint = circuits.effects([_mask(circuits, cluster) for cluster in clusters])
    found = []
    for cluster, effect in zip(clusters, joint, strict=True):
        if abs(effect) < JOINT * circuits.gap:
            continue
        members, shares = _members(circuits, cluster, float(effect), rng)
        if len(members) < 2:
            continue
        singles = circuits.effects([_mask(circuits, [row]) for row in members])
        largest, together = float(np.abs(singles).max()), float(circuits.effects([_mask(circuits, members)])[0])
        if abs(together) >= max(MORE * largest, JOINT * circuits.gap):
            found.append(Group(tuple(members), together, largest, tuple(shares)))
    return found


def _clusters(runs: Runs, ablation: Ablation, layer: int, rows: Sequence[int]) -> list[list[int]]:
    """Sets of neurons that move alike; a neuron is in one at the most, and sets of one are left out."""
    moved = _differences(runs, ablation, layer, rows)
    parts = runs.model.layers[layer].parts
    assert parts is not None
    first = runs.model.anatomy.mlp_slice(layer).start
    write = parts.w_out[[row - first for row in rows]].norm(dim=1).double().cpu().numpy()
    size = np.linalg.norm(moved, axis=0)
    unit = moved / np.where(size > 0, size, 1.0)
    strength, found = size * write, []
    left = strength > 1e-6 * strength.max(initial=0.0)
    for leader in np.argsort(-strength, kind="stable"):
        if not left[leader]:
            continue
        alike = np.flatnonzero(left & (np.abs(unit.T @ unit[:, leader]) >= ALIKE))
        left[alike] = False
        if len(alike) > 1:
            most = sorted(alike, key=lambda i: -strength[i])[:LARGEST]
            found.append((float(strength[alike].sum()), sorted(rows[int(i)] for i in most)))
    return [cluster for _, cluster in sorted(found, reverse=True)[:TRIED]]


def _differences(
    runs: Runs, ablation: Ablation, layer: int, rows: Sequence[int]
) -> Float[np.ndarray, "token neuron"]:
    """How far the activations of neurons are from what they carry when replaced."""
    first, found = runs.model.anatomy.mlp_slice(layer).start, []
    columns = [row - first for row in rows]
    with torch.no_grad():
        for number in range(len(runs.batches)):
            contrast = runs.contrast(number, ablation)
            change = contrast.written.part(layer).values - contrast.cut.part(layer).values
            found.append(change[..., columns].flatten(0, 1).double().cpu())
    return torch.cat(found).numpy()


def _members(
    circuits: NodeCircuits, cluster: Sequence[int], effect: float, rng: np.random.Generator
) -> tuple[list[int], list[float]]:
    """Who contributes, and how much."""
    orders = [rng.permutation(len(cluster)) for _ in range(ORDERS // 2)]
    orders += [order[::-1] for order in orders]  # each with its reverse: less noise for the same runs
    sets, none = [], np.zeros(len(circuits.runs.model.anatomy.writers), dtype=bool)
    for order in orders:
        removed = none.copy()
        for member in order[:-1]:
            removed[cluster[member]] = True
            sets.append(removed.copy())
    values = circuits.effects(sets).reshape(len(orders), len(cluster) - 1)
    shares = np.zeros(len(cluster))
    for order, along in zip(orders, values, strict=True):
        shares[order] += np.diff([0.0, *along, effect]) / len(orders)
    sign = 1.0 if effect > 0 else -1.0
    kept = sorted(range(len(cluster)), key=lambda i: -sign * shares[i])
    # Equal parts among those that are left: idle neurons in the set must not lower the bar.
    while len(kept) > 1 and sign * shares[kept[-1]] < PART * sign * shares[kept].sum() / len(kept):
        kept.pop()
    kept.sort()
    return [cluster[i] for i in kept], [float(shares[i]) for i in kept]


def _mask(circuits: NodeCircuits, rows: Sequence[int]) -> np.ndarray:
    mask = np.zeros(len(circuits.runs.model.anatomy.writers), dtype=bool)
    mask[list(rows)] = True
    return mask
