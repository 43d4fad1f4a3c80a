"""Attribution graphs of many prompts, averaged: which features take part, how often and how much. No torch here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuitfind.attribution.graph import NodeKind
from circuitfind.attribution.prune import PrunedGraph
from circuitfind.errors import UsageError

TOKENS, LOGITS = "input", "logits"


@dataclass(frozen=True)
class AverageNode:
    """A node over prompts.

    Attributes:
        name: ``t5.f88``, ``t5.err``, ``input`` or ``logits``; with positions kept apart ``t5.f88@END``.
        influence: Summed over the positions that it stands for, averaged over all prompts.
        activation: Likewise; of errors the size.
        active: Share of prompts in which it is there.
        kept: Share of prompts whose pruned graph has it.
    """

    name: str
    influence: float
    activation: float
    active: float
    kept: float


@dataclass(frozen=True)
class AverageGraph:
    """Many graphs as one.

    Attributes:
        n_prompts: How many.
        nodes: The most influential first.
        edges: (source, target) to the weight, summed over positions and averaged over all prompts; of kept edges.
        replacement, completeness: Means of the scores of the whole graphs.
        positions: Names of positions that were kept apart, in the order of the prompts.
    """

    n_prompts: int
    nodes: tuple[AverageNode, ...]
    edges: Mapping[tuple[str, str], float]
    replacement: float
    completeness: float
    positions: tuple[str, ...] = ()

    def features(self) -> tuple[AverageNode, ...]:
        """Without tokens, logits and errors."""
        return tuple(node for node in self.nodes if ".f" in node.name)


def average(
    graphs: Iterable[PrunedGraph], positions: Sequence[Mapping[str, int]] | None = None
) -> AverageGraph:
    """Average graphs of the same model and dictionaries.

    Nodes are joined over positions: a feature that fires at three of them is one node. Where ``positions`` are given, nodes
    are kept apart by the names in them; what stands at no named position keeps no position.

    Args:
        graphs: One a prompt; each may be let go once it is read.
        positions: Of each prompt, names to positions.

    Raises:
        UsageError: There are none, or as many positions as there are no graphs.
    """
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))
    edges: dict[tuple[str, str], float] = defaultdict(float)
    scores = np.zeros(2)
    count = 0
    for graph in graphs:
        if positions is not None and count >= len(positions):
            raise UsageError("there are more graphs than positions", hint="give the positions of each prompt")
        named = {} if positions is None else {at: name for name, at in positions[count].items()}
        _add(graph, named, totals, edges)
        scores += graph.full.replacement, graph.full.completeness
        count += 1
    if not count:
        raise UsageError("there are no graphs to average", hint="give at least one prompt")
    nodes = [
        AverageNode(name, *(float(value) / count for value in values)) for name, values in totals.items()
    ]
    return AverageGraph(
        n_prompts=count,
        nodes=tuple(sorted(nodes, key=lambda node: (-node.influence, node.name))),
        edges={ends: weight / count for ends, weight in sorted(edges.items())},
        replacement=float(scores[0] / count),
        completeness=float(scores[1] / count),
        positions=_in_order(positions or ()),
    )


def _in_order(positions: Sequence[Mapping[str, int]]) -> tuple[str, ...]:
    """Names of positions by where they stand on average."""
    found: dict[str, list[int]] = defaultdict(list)
    for one in positions:
        for name, at in one.items():
            found[name].append(at)
    return tuple(sorted(found, key=lambda name: (sum(found[name]) / len(found[name]), name)))


def _add(
    pruned: PrunedGraph,
    named: Mapping[int, str],
    totals: dict[str, np.ndarray],
    edges: dict[tuple[str, str], float],
) -> None:
    nodes = pruned.graph.nodes
    names = [_name(pruned, node, named) for node in range(len(nodes))]
    seen: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))
    for node, name in enumerate(names):
        one = seen[name]
        one[0] += pruned.influence[node]
        one[1] += nodes.value[node]
        one[2] = 1.0
        one[3] = max(one[3], float(pruned.kept[node]))
    for name, values in seen.items():
        totals[name] += values
    for target, source, weight in zip(pruned.targets, pruned.sources, pruned.weights, strict=True):
        edges[names[source], names[target]] += float(weight)


def _name(pruned: PrunedGraph, node: int, named: Mapping[int, str]) -> str:
    nodes = pruned.graph.nodes
    if nodes.kind[node] == NodeKind.LOGIT:
        return LOGITS
    bare = nodes.name(node).partition("@")[0]
    at = named.get(int(nodes.position[node]))
    return bare if at is None else f"{bare}@{at}"
