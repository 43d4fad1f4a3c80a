"""Statistics of a circuit as a graph: density, paths, centrality, communities, motifs. No torch here.

The graph is simple and directed: edges into ``q``, ``k`` and ``v`` of a head are one, and a shared key/value head stands for
the heads of the circuit that it serves. Sizes of edges are sums of |score|. docs/graph-statistics.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit
from circuitfind.errors import UsageError
from circuitfind.names import LOGITS, Kind, Node

if TYPE_CHECKING:
    import networkx as nx

DAMPING = 0.85
"""Of PageRank (Page et al. 1999)."""


@dataclass(frozen=True)
class Order:
    """A directed graph without rings, its nodes in an order in which every edge runs on.

    Attributes:
        names: Of the nodes.
        edges: Whether one leads to another.
        sizes: Of the edges; 0 where there is none, or no score.
        possible: Whether the model could have an edge there.
    """

    names: tuple[str, ...]
    edges: Bool[np.ndarray, "node node"]
    sizes: Float[np.ndarray, "node node"]
    possible: Bool[np.ndarray, "node node"]

    @cached_property
    def sources(self) -> tuple[int, ...]:
        """Nodes without an edge in: the input."""
        return tuple(int(i) for i in np.flatnonzero(~self.edges.any(axis=0) & self.edges.any(axis=1)))

    @cached_property
    def sinks(self) -> tuple[int, ...]:
        """Nodes without an edge out: the logits."""
        return tuple(int(i) for i in np.flatnonzero(~self.edges.any(axis=1) & self.edges.any(axis=0)))

    def network(self) -> nx.DiGraph[str]:
        """The same for networkx, with ``size`` on its edges."""
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(self.names)
        for u, v in np.argwhere(self.edges):
            graph.add_edge(self.names[u], self.names[v], size=float(self.sizes[u, v]))
        return graph


def order_of(what: Circuit | FeatureGraph) -> Order:
    """The simple graph of a circuit or of features.

    Raises:
        UsageError: It has no edges.
    """
    if not what.edges:
        raise UsageError("a graph without edges has no statistics", hint="prune less: keep some edges")
    links: dict[tuple[Node, Node], float] = {}
    for edge in what.edges:
        score = what.edge_scores.get(str(edge), math.nan) if isinstance(what, Circuit) else what.weight(edge)
        receivers = _served(what, edge.receiver)
        for receiver in receivers:
            size = abs(score) / len(receivers) if math.isfinite(score) else 0.0
            links[edge.sender, receiver] = links.get((edge.sender, receiver), 0.0) + size
    nodes = sorted({node for link in links for node in link}, key=lambda n: (n.layer_rank, n.order))
    place = {node: i for i, node in enumerate(nodes)}
    edges = np.zeros((len(nodes), len(nodes)), dtype=bool)
    sizes = np.zeros(edges.shape)
    for (u, v), size in links.items():
        edges[place[u], place[v]] = True
        sizes[place[u], place[v]] = size
    possible = _possible(what, nodes) if isinstance(what, Circuit) else _possible_of_features(what, nodes)
    return Order(tuple(map(str, nodes)), edges, sizes, (possible & _in_time(nodes)) | edges)


def _served(what: Circuit | FeatureGraph, receiver: Node) -> list[Node]:
    """The heads of the circuit that a key/value head serves; else the node itself."""
    if receiver.kind is not Kind.KV or not isinstance(what, Circuit):
        return [receiver]
    served = what.anatomy.served_by(receiver)
    return [head for head in what.heads if head.bare in served] or [receiver]


def _possible(circuit: Circuit, nodes: list[Node]) -> Bool[np.ndarray, "node node"]:
    """Whether the model has an edge from one node into any input of another."""
    anatomy = circuit.anatomy
    found = np.zeros((len(nodes), len(nodes)), dtype=bool)
    rows = [
        (i, anatomy.row_of(node)) for i, node in enumerate(nodes) if str(node.bare) in anatomy.writer_index
    ]
    for j, node in enumerate(nodes):
        names = (str(LOGITS),) if node.kind is Kind.LOGITS else anatomy.readers_of(node.bare)
        columns = [anatomy.reader_index[name] for name in names]
        for i, row in rows:
            found[i, j] = anatomy.edge_mask[row, columns].any()
    return found


def _possible_of_features(graph: FeatureGraph, nodes: list[Node]) -> Bool[np.ndarray, "node node"]:
    """Whether a node writes before another reads; errors that stay those of the base run read nothing."""
    rank = np.array([node.layer_rank for node in nodes])
    frozen = graph.conditions.errors == "frozen"
    reads = np.array([not (frozen and node.kind is Kind.ERROR) for node in nodes])
    return np.asarray((rank[:, None] < rank[None]) & reads[None])


def _in_time(nodes: list[Node]) -> Bool[np.ndarray, "node node"]:
    """Whether a node's position is no later than another's, where both have a number."""
    at = [
        int(n.position.partition("-")[0]) if n.position and n.position[0].isdecimal() else None for n in nodes
    ]
    return np.array([[a is None or b is None or a <= b for b in at] for a in at])


@dataclass(frozen=True)
class Paths:
    """Ways from the sources to the sinks, in edges.

    Attributes:
        count: How many there are.
        mean: Length over all of them.
    """

    shortest: int
    longest: int
    mean: float
    count: int


def paths(order: Order) -> Paths:
    """Lengths of all ways from a source to a sink, counted without listing them."""
    size = len(order.names)
    count = [0] * size  # ways to each node; Python's whole numbers do not overflow
    total = [0] * size  # their lengths together
    shortest, longest = [size] * size, [-1] * size
    for i in order.sources:
        count[i], shortest[i], longest[i] = 1, 0, 0
    for v in range(size):
        for u in np.flatnonzero(order.edges[:, v]):
            if count[u]:
                count[v] += count[u]
                total[v] += total[u] + count[u]
                shortest[v] = min(shortest[v], shortest[u] + 1)
                longest[v] = max(longest[v], longest[u] + 1)
    ends = [v for v in order.sinks if count[v]]
    every = sum(count[v] for v in ends)
    mean = sum(total[v] for v in ends) / every
    return Paths(min(shortest[v] for v in ends), max(longest[v] for v in ends), mean, every)


@dataclass(frozen=True)
class Motifs:
    """Connected triads without rings: in each, no other edge runs among the three nodes.

    Attributes:
        feed_forward: a to b, b to c and a to c (030T of a triad census).
        chain: a to b and b to c alone (021C).
        fan_in: a to c and b to c alone (021U).
        fan_out: a to b and a to c alone (021D).
    """

    feed_forward: int
    chain: int
    fan_in: int
    fan_out: int


def motifs(edges: Bool[np.ndarray, "node node"]) -> Motifs:
    """Counts of the four triads. Those of two edges are all pairs that meet in a node, less the closed ones."""
    a = edges.astype(np.float64)  # whole numbers far below 2**53, by fast products
    two_steps = a @ a
    closed = int((two_steps * a).sum())
    ins, outs = a.sum(0), a.sum(1)
    return Motifs(
        feed_forward=closed,
        chain=int(two_steps.sum()) - closed,
        fan_in=int((ins * (ins - 1) / 2).sum()) - closed,
        fan_out=int((outs * (outs - 1) / 2).sum()) - closed,
    )


def pagerank(order: Order, *, tolerance: float = 1e-12) -> Float[np.ndarray, " node"]:
    """PageRank along the edges, weighed by their sizes; from the sinks it goes on anywhere (networkx does the same).

    Where no edge has a size all count alike.
    """
    sizes = order.sizes if order.sizes.any() else order.edges.astype(float)
    out = sizes.sum(1)
    step = np.divide(sizes, out[:, None], out=np.zeros_like(sizes), where=out[:, None] > 0)
    n = len(out)
    rank = np.full(n, 1 / n)
    while True:
        new = DAMPING * (rank @ step + rank[out == 0].sum() / n) + (1 - DAMPING) / n
        if np.abs(new - rank).sum() < tolerance:
            return np.asarray(new)
        rank = new


@dataclass(frozen=True)
class Communities:
    """Groups of nodes that are joined more than by chance (Blondel et al. 2008), and how much more (Newman's modularity)."""

    groups: tuple[tuple[str, ...], ...]
    modularity: float


def communities(order: Order, *, seed: int = 0) -> Communities:
    """Louvain's groups of the graph without directions, edges weighed by size; the largest first."""
    import networkx as nx

    graph: nx.Graph[str] = order.network().to_undirected()
    weight = "size" if order.sizes.any() else None
    found = nx.community.louvain_communities(graph, weight=weight, seed=seed)
    modularity = nx.community.modularity(graph, found, weight=weight)
    place = {name: i for i, name in enumerate(order.names)}
    groups = [tuple(sorted(group, key=place.__getitem__)) for group in found]
    groups.sort(key=lambda group: (-len(group), place[group[0]]))
    return Communities(tuple(groups), float(modularity))


@dataclass(frozen=True)
class Standing:
    """A node among the others.

    Attributes:
        ins, outs: Nodes that feed it, and that it feeds.
        betweenness: Share of shortest ways between other nodes that pass it, over all ordered pairs of them.
        pagerank: Sums to 1.
    """

    name: str
    ins: int
    outs: int
    betweenness: float
    pagerank: float


def standings(order: Order) -> tuple[Standing, ...]:
    """Every node, the one that most ways pass first."""
    import networkx as nx

    between: Mapping[str, float] = nx.betweenness_centrality(order.network())
    ranks = pagerank(order)
    found = [
        Standing(
            name,
            int(order.edges[:, i].sum()),
            int(order.edges[i].sum()),
            float(between[name]),
            float(ranks[i]),
        )
        for i, name in enumerate(order.names)
    ]
    return tuple(sorted(found, key=lambda one: -one.betweenness))


COMPARED: dict[str, Callable[[Order], float]] = {
    "feed_forward": lambda order: motifs(order.edges).feed_forward,
    "longest_path": lambda order: paths(order).longest,
    "mean_path": lambda order: paths(order).mean,
}
"""What is held against random graphs. The other motifs follow from ``feed_forward`` where the degrees are given."""


def as_rows(order: Order) -> dict[str, Any]:
    """All statistics that need no random graphs, as plain data."""
    n_edges, n = int(order.edges.sum()), len(order.names)
    return {
        "nodes": n,
        "edges": n_edges,
        "density": n_edges / (n * (n - 1)),
        "share_of_possible": n_edges / int(order.possible.sum()),
        "paths": vars(paths(order)).copy(),
        "motifs": vars(motifs(order.edges)).copy(),
        "communities": {
            "modularity": (found := communities(order)).modularity,
            "groups": [list(group) for group in found.groups],
        },
        "centrality": [vars(one).copy() for one in standings(order)],
    }
