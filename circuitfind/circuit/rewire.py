"""Random graphs with the same degrees, in which every edge is one that the model could have.

A walk by switches (Maslov and Sneppen 2002; Rao et al. 1996): two edges a to b and c to d are drawn and become a to d and c
to b, unless one of these is there already or runs against the order of the layers. Every switch is as likely as its
reverse, so in the long run all graphs that the walk can reach are equally likely. It may be that not every graph of these
degrees is reached by switches alone where some edges cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from circuitfind.circuit.graph_stats import COMPARED, Order

SWITCHES = 10
"""Tried for each edge, before the first graph and between two."""


@dataclass(frozen=True)
class Against:
    """A number of a graph beside those of random graphs.

    Attributes:
        value: Of the graph.
        mean, sd: Over the random graphs.
        z: (value - mean) / sd; None where all random graphs have the same.
        p: Share of graphs, this one included, whose number is at least as far from their mean.
    """

    value: float
    mean: float
    sd: float
    z: float | None
    p: float


@dataclass(frozen=True)
class Compared:
    """What random graphs of the same degrees have.

    Attributes:
        count: Of random graphs.
        different: How many of them differ from each other; few where the degrees leave little choice.
        found: By what was compared.
    """

    count: int
    different: int
    found: dict[str, Against]

    def as_dict(self) -> dict[str, Any]:
        return {
            "null": "same degrees, edges that the model can have, by switches",
            "count": self.count,
            "different": self.different,
            **{name: vars(one).copy() for name, one in self.found.items()},
        }


def rewired(
    order: Order, count: int, *, seed: int = 0, switches: int = SWITCHES
) -> Iterator[Bool[np.ndarray, "node node"]]:
    """Random graphs, one after the other along one walk.

    Args:
        order: The graph to start from.
        count: How many.
        seed: Of the walk.
        switches: Tried for each edge before each graph.
    """
    rng = np.random.default_rng(seed)
    n, allowed = len(order.names), order.possible.tolist()
    listed = [(int(u), int(v)) for u, v in np.argwhere(order.edges)]
    there = set(listed)
    tries = switches * len(listed)
    for _ in range(count):
        for i, j in rng.integers(len(listed), size=(tries, 2)).tolist():
            (a, b), (c, d) = listed[i], listed[j]
            if not (allowed[a][d] and allowed[c][b]) or (a, d) in there or (c, b) in there:
                continue  # an edge with itself, or with one of the same end, ends here too: it is there
            there.remove((a, b))
            there.remove((c, d))
            there.add((a, d))
            there.add((c, b))
            listed[i], listed[j] = (a, d), (c, b)
        edges = np.zeros((n, n), dtype=bool)
        edges[tuple(np.array(listed).T)] = True
        yield edges


def compare(order: Order, count: int = 100, *, seed: int = 0) -> Compared:
    """Hold the numbers of ``COMPARED`` against random graphs.

    Args:
        order: The graph.
        count: Of random graphs, 2 or more.
        seed: Of the walk.
    """
    values: dict[str, list[float]] = {name: [] for name in COMPARED}
    seen = set()
    for edges in rewired(order, count, seed=seed):
        one = replace(order, edges=edges, sizes=np.zeros_like(order.sizes))
        seen.add(edges.tobytes())
        for name, measure in COMPARED.items():
            values[name].append(measure(one))
    found = {name: _against(measure(order), values[name]) for name, measure in COMPARED.items()}
    return Compared(count, len(seen), found)


def _against(value: float, random: list[float]) -> Against:
    mean, sd = float(np.mean(random)), float(np.std(random, ddof=1))
    rigid = math.isclose(sd, 0, abs_tol=1e-12)
    far = sum(abs(one - mean) >= abs(value - mean) - 1e-12 for one in random)
    return Against(
        float(value), mean, sd, None if rigid else (value - mean) / sd, (1 + far) / (1 + len(random))
    )
