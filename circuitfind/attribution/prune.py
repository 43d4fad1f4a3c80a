"""From all nodes and edges to those that carry most of the influence; and how much of it the errors carry. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitfind.attribution.graph import AttributionGraph, NodeKind
from circuitfind.attribution.influence import influence
from circuitfind.errors import UsageError
from circuitfind.shown import Shown

NODE_THRESHOLD, EDGE_THRESHOLD = 0.8, 0.98


@dataclass(frozen=True)
class GraphScores:
    """How much of a graph is explained.

    Attributes:
        replacement: Share of the influence that reaches tokens, of all that ends in tokens, in errors, or (in a pruned graph)
            in what was left out.
        completeness: Share of the inputs of its nodes that comes from no error and from nothing left out, each node weighted
            by its influence.
    """

    replacement: float
    completeness: float


@dataclass(frozen=True)
class PrunedGraph(Shown):
    """A part of an attribution graph.

    Attributes:
        graph: The whole.
        node_threshold, edge_threshold: Shares of influence that were kept.
        kept: Which nodes.
        targets, sources: The two ends of each edge that is kept, as nodes.
        weights: Of those edges.
        flows: Their weights, as shares of all that their targets read, times the influence of those.
        influence: Of every node, in the whole graph.
        cumulative: The share of all influence that this node and the more influential ones have.
        full, pruned: Scores of the whole graph and of this part.
    """

    graph: AttributionGraph
    node_threshold: float
    edge_threshold: float
    kept: Bool[np.ndarray, " node"]
    targets: Int[np.ndarray, " edge"]
    sources: Int[np.ndarray, " edge"]
    weights: Float[np.ndarray, " edge"]
    flows: Float[np.ndarray, " edge"]
    influence: Float[np.ndarray, " node"]
    cumulative: Float[np.ndarray, " node"]
    full: GraphScores
    pruned: GraphScores

    @cached_property
    def nodes(self) -> Int[np.ndarray, " some"]:
        """What is kept."""
        return np.flatnonzero(self.kept)

    def count(self, kind: NodeKind) -> int:
        """How many nodes of a kind are kept."""
        return int((self.kept & self.graph.nodes.of(kind)).sum())


def prune(
    graph: AttributionGraph, node_threshold: float = NODE_THRESHOLD, edge_threshold: float = EDGE_THRESHOLD
) -> PrunedGraph:
    """Keep the most influential nodes, then the most influential edges between them.

    Nodes stay until they have ``node_threshold`` of all influence; tokens and logits always stay. Between those, edges stay
    until they have ``edge_threshold`` of the influence that then flows. What is left without an edge out (features, errors)
    or in (features) goes, and what that leaves bare, and so on. A feature whose inputs were not computed is a source, as
    an error is, and needs no edge in. (Ameisen et al. 2025; the order of steps is that of circuit-tracer.)

    Raises:
        UsageError: A threshold is no share.
    """
    for name, value in (("node", node_threshold), ("edge", edge_threshold)):
        if not 0 <= value <= 1:
            raise UsageError(
                f"an influence of {value} does not exist", hint=f"give --{name}-threshold from 0 to 1"
            )
    nodes = graph.nodes
    levels = nodes.layer[graph.row_nodes]
    found = influence(graph.edges, graph.row_nodes, levels, graph.weights)
    ends = nodes.of(NodeKind.TOKEN) | nodes.of(NodeKind.LOGIT)
    kept = (found >= threshold_of(found, node_threshold)) | ends
    rows = np.flatnonzero(kept[graph.row_nodes])
    columns = np.flatnonzero(kept[: graph.n_sources])
    block = graph.edges[np.ix_(rows, columns)]
    chosen = _influential_edges(graph, block, rows, columns, edge_threshold)
    _drop_bare(graph, kept, chosen, rows, columns)
    at, of = np.nonzero(chosen)
    weights = block[at, of]
    ranked = np.argsort(-found, kind="stable")
    cumulative = np.empty(len(found))
    cumulative[ranked] = np.cumsum(found[ranked]) / max(found.sum(), 1e-30)
    sizes = np.abs(graph.edges[rows]).sum(1, dtype=np.float64)
    targets = graph.row_nodes[rows[at]]
    return PrunedGraph(
        graph=graph,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        kept=kept,
        targets=targets,
        sources=columns[of],
        weights=weights.astype(float),
        flows=np.abs(weights) / sizes[at] * (found + graph.weights)[targets],
        influence=found,
        cumulative=cumulative,
        full=_scores_of_whole(graph, found),
        pruned=_scores_of_part(graph, np.where(chosen, block, 0), rows, columns, sizes),
    )


def threshold_of(scores: Float[np.ndarray, " some"], share: float) -> float:
    """The score down to which scores, largest first, make up a share of their sum."""
    if not len(scores):
        return 0.0
    ranked = -np.sort(-scores.astype(np.float64))
    sums = np.cumsum(ranked)
    at = int(np.searchsorted(sums / max(float(sums[-1]), 1e-30), share))
    return float(ranked[min(at, len(ranked) - 1)])


def _influential_edges(
    graph: AttributionGraph,
    block: Float[np.ndarray, "row source"],
    rows: Int[np.ndarray, " row"],
    columns: Int[np.ndarray, " source"],
    share: float,
) -> Bool[np.ndarray, "row source"]:
    """Edges by what flows through them when only the kept nodes are there."""
    placed, weights = _among_kept(graph, rows, columns)
    levels = graph.nodes.layer[graph.row_nodes[rows]]
    total = influence(block, placed, levels, weights) + weights
    size = np.abs(block).sum(1, dtype=np.float64)
    flow = np.divide(total[placed], size, out=np.zeros(len(rows)), where=size > 0)
    scores = np.abs(block) * flow[:, None]
    chosen: Bool[np.ndarray, "row source"] = (scores >= threshold_of(scores.ravel(), share)) & (scores > 0)
    return chosen


def _among_kept(
    graph: AttributionGraph, rows: Int[np.ndarray, " row"], columns: Int[np.ndarray, " source"]
) -> tuple[Int[np.ndarray, " row"], Float[np.ndarray, " node"]]:
    """The place of each row's node among kept sources and the logits behind them, and the weights of all these."""
    place = np.full(len(graph.nodes), -1)
    logits = np.arange(graph.n_sources, len(graph.nodes))
    members = np.concatenate([columns, logits])
    place[members] = np.arange(len(members))
    return place[graph.row_nodes[rows]], graph.weights[members]


def _drop_bare(
    graph: AttributionGraph,
    kept: Bool[np.ndarray, " node"],
    chosen: Bool[np.ndarray, "row source"],
    rows: Int[np.ndarray, " row"],
    columns: Int[np.ndarray, " source"],
) -> None:
    """Drop nodes that lack an edge out or in, again and again; changes ``kept`` and ``chosen``."""
    kind, lead = graph.nodes.kind, graph.row_nodes[rows]
    needs_out = np.isin(kind[columns], (NodeKind.FEATURE, NodeKind.ERROR))
    needs_in = kind[lead] == NodeKind.FEATURE
    while True:
        bare = np.concatenate([columns[needs_out & ~chosen.any(0)], lead[needs_in & ~chosen.any(1)]])
        bare = bare[kept[bare]]
        if not len(bare):
            return
        kept[bare] = False
        chosen[~kept[lead]] = False
        chosen[:, ~kept[columns]] = False


def _scores_of_whole(graph: AttributionGraph, found: Float[np.ndarray, " node"]) -> GraphScores:
    nodes = graph.nodes
    errors = nodes.of(NodeKind.ERROR)
    tokens, missed = found[nodes.of(NodeKind.TOKEN)].sum(), found[errors].sum()
    size = np.abs(graph.edges).sum(1, dtype=np.float64)
    explained = size - np.abs(graph.edges[:, errors[: graph.n_sources]]).sum(1, dtype=np.float64)
    share = np.divide(explained, size, out=np.ones(len(size)), where=size > 0)
    weight = (found + graph.weights)[graph.row_nodes]
    return GraphScores(_ratio(tokens, tokens + missed), _ratio(share @ weight, weight.sum()))


def _scores_of_part(
    graph: AttributionGraph,
    block: Float[np.ndarray, "row source"],
    rows: Int[np.ndarray, " row"],
    columns: Int[np.ndarray, " source"],
    sizes: Float[np.ndarray, " row"],
) -> GraphScores:
    """What was left out counts as an error does: else a graph would look the better the more is cut from it."""
    placed, weights = _among_kept(graph, rows, columns)
    levels = graph.nodes.layer[graph.row_nodes[rows]]
    found = influence(block, placed, levels, weights, sizes)
    kind = graph.nodes.kind[columns]
    tokens = found[: len(columns)][kind == NodeKind.TOKEN].sum()
    explained = np.abs(block[:, kind != NodeKind.ERROR]).sum(1, dtype=np.float64)
    share = np.divide(explained, sizes, out=np.ones(len(sizes)), where=sizes > 0)
    weight = (found + weights)[placed]
    return GraphScores(_ratio(tokens, weights.sum()), _ratio(share @ weight, weight.sum()))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
