"""How much circuits have in common: Jaccard indices of edges and of nodes, and what chance would give. No torch here.

The Jaccard index of two sets is the size of what they share over the size of what either has. Two empty circuits share
nothing: 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, nan
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.json_form import filled, finite, number
from circuitfind.circuit.random import RandomCircuits
from circuitfind.evidence.statistics import log_choose
from circuitfind.model.anatomy import Anatomy

Mask = Bool[np.ndarray, "writer reader"]
Sets = Sequence[frozenset[str]]

RANDOM_CIRCUITS = 20
"""Random circuits that a circuit is compared with."""


@dataclass(frozen=True)
class Overlap:
    """Jaccard indices of several pairs of circuits.

    Attributes:
        mean: Of all pairs; NaN of no pair.
        low, high: Between which 95 % of the pairs lie (quantiles of the pairs, no interval of the mean: pairs that share a
            circuit depend on each other).
        least: Of the two that have the least in common.
        pairs: How many.
    """

    mean: float
    low: float
    high: float
    least: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @classmethod
    def of(cls, values: Float[np.ndarray, " pair"]) -> Overlap:
        """Of the indices of some pairs."""
        if not len(values):
            return cls(nan, nan, nan, nan, 0)
        low, high = np.quantile(values, [0.025, 0.975])
        return cls(float(values.mean()), float(low), float(high), float(values.min()), len(values))

    def as_dict(self) -> dict[str, Any]:
        """Plain data; what is not a number is null."""
        return {name: finite(value) for name, value in vars(self).items()} | {"pairs": self.pairs}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Overlap:
        """Read what ``as_dict`` wrote."""
        numbers = {name: number(value) for name, value in data.items() if name != "pairs"}
        return filled(cls, {**data, **numbers})


def jaccard(a: Collection[str], b: Collection[str]) -> float:
    """Shared over all; 0 of two empty sets."""
    either = len(set(a) | set(b))
    return len(set(a) & set(b)) / either if either else 0.0


def between(sets: Sets) -> Overlap:
    """Of all pairs among some sets."""
    return Overlap.of(
        np.array([jaccard(a, b) for i, a in enumerate(sets) for b in sets[i + 1 :]], dtype=float)
    )


def beside(sets: Sets, one: Collection[str]) -> Overlap:
    """Of each of some sets with one other."""
    return Overlap.of(np.array([jaccard(a, one) for a in sets], dtype=float))


def edge_names(anatomy: Anatomy, mask: Mask) -> frozenset[str]:
    """Names of the edges of a circuit."""
    return frozenset(str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(mask))


def node_names(anatomy: Anatomy, mask: Mask) -> frozenset[str]:
    """Names of the nodes that the edges of a circuit touch."""
    written = {anatomy.writer_names[row] for row in np.flatnonzero(mask.any(1))}
    return frozenset(written | {str(anatomy.readers[column][0]) for column in np.flatnonzero(mask.any(0))})


def expected_jaccard(first: int, second: int, among: int) -> float:
    """Mean Jaccard index of two sets of given sizes, drawn at random from so many: the sum over the hypergeometric."""
    if not 0 < max(first, second) <= among:
        return 0.0

    total = log_choose(among, second)
    shared = range(max(0, first + second - among), min(first, second) + 1)
    return sum(
        exp(log_choose(first, k) + log_choose(among - first, second - k) - total) * k / (first + second - k)
        for k in shared
    )


@dataclass(frozen=True)
class Specificity:
    """What a circuit shares with circuits that have nothing to do with its behaviour.

    A method that always returns the same edges is perfectly stable; that shows here.

    Attributes:
        edges: Its size.
        chance: Mean Jaccard index of its edges with as many edges drawn at random.
        random_edges, random_nodes: Jaccard indices with random connected circuits of its size.
        others: By name, Jaccard indices of edges with circuits of other tasks, or of shuffled answers.
        other_nodes: The same of nodes.
    """

    edges: int
    chance: float
    random_edges: Overlap
    random_nodes: Overlap
    others: Mapping[str, float] = field(default_factory=dict)
    other_nodes: Mapping[str, float] = field(default_factory=dict)

    @property
    def nearest(self) -> tuple[str, float]:
        """Which of them has most in common with the circuit, and how much."""
        named = {"random circuits of its size": self.random_edges.mean, **self.others}
        return max(named.items(), key=lambda item: item[1])

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "edges": self.edges,
            "chance": self.chance,
            "random_edges": self.random_edges.as_dict(),
            "random_nodes": self.random_nodes.as_dict(),
            "others": dict(self.others),
            "other_nodes": dict(self.other_nodes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Specificity:
        """Read what ``as_dict`` wrote."""
        ranges = {name: Overlap.from_dict(data[name]) for name in ("random_edges", "random_nodes")}
        return filled(cls, {**data, **ranges})


def specificity(
    anatomy: Anatomy, circuit: Mask, others: Mapping[str, Mask] | None = None, *, seed: int = 0
) -> Specificity:
    """Compare a circuit with what it should not be like.

    Args:
        anatomy: The model's parts.
        circuit: Its edges.
        others: By name, circuits of other tasks on the same model, or of shuffled answers; best of a like size, since
            the Jaccard index of a small and a large circuit is small whatever they are.
        seed: Of the random circuits.
    """
    size, generator = int(circuit.sum()), np.random.default_rng(seed)
    drawn = RandomCircuits(anatomy)
    random = [drawn.draw(size, generator) for _ in range(RANDOM_CIRCUITS)]
    edges, nodes = edge_names(anatomy, circuit), node_names(anatomy, circuit)
    given = others or {}
    return Specificity(
        edges=size,
        chance=expected_jaccard(size, size, anatomy.n_edges),
        random_edges=beside([edge_names(anatomy, mask) for mask in random], edges),
        random_nodes=beside([node_names(anatomy, mask) for mask in random], nodes),
        others={name: jaccard(edge_names(anatomy, mask), edges) for name, mask in given.items()},
        other_nodes={name: jaccard(node_names(anatomy, mask), nodes) for name, mask in given.items()},
    )
