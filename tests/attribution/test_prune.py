"""Influence is the closed form, and pruning what its description says, done slowly on dense matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from circuitfind.attribution.graph import AttributionGraph, NodeKind
from circuitfind.attribution.influence import influence
from circuitfind.attribution.prune import prune, threshold_of
from circuitfind.errors import UsageError
from tests.attribution.graphs import random_graph


def dense(graph: AttributionGraph) -> np.ndarray:
    """Sizes of the edges as a square matrix [target, source] in double precision."""
    n = len(graph.nodes)
    out = np.zeros((n, n))
    out[graph.row_nodes, : graph.n_sources] = np.abs(graph.edges.astype(float))
    return out


def normalised(matrix: np.ndarray) -> np.ndarray:
    sums = matrix.sum(1, keepdims=True)
    return np.divide(matrix, sums, out=np.zeros_like(matrix), where=sums > 0)


def closed_form(matrix: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """w A (I - A)^-1, which is w (A + A^2 + ...)."""
    found: np.ndarray = weights @ matrix @ np.linalg.inv(np.eye(len(matrix)) - matrix)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", [None, 20])
def test_influence_is_the_closed_form(seed: int, rows: int | None) -> None:
    graph = random_graph(seed, rows=rows, bare=seed > 2)
    found = influence(graph.edges, graph.row_nodes, graph.nodes.layer[graph.row_nodes], graph.weights)
    wanted = closed_form(normalised(dense(graph)), graph.weights)
    assert np.abs(found - wanted).max() < 1e-6 * wanted.max()
    assert wanted.max() > 0.04
    # Power iteration ends: no path is longer than there are layers.
    power, total = graph.weights @ normalised(dense(graph)), np.zeros(len(wanted))
    for _ in range(graph.n_layers + 1):
        total += power
        power = power @ normalised(dense(graph))
    assert not power.any()
    assert np.allclose(total, wanted)
    # All that starts at the logits ends in a node without a row (tokens, errors): nothing is lost.
    ends = np.setdiff1d(np.arange(len(graph.nodes)), graph.row_nodes)
    bare = [n for n, row in zip(graph.row_nodes, graph.edges, strict=True) if not row.any()]
    lost = (found + graph.weights)[bare].sum()
    assert found[ends].sum() + lost == pytest.approx(graph.weights.sum())


def test_influence_of_a_graph_done_by_hand() -> None:
    """One logit that reads a token (1) and a feature (-3), which reads the token (2) and an error (2)."""
    graph = random_graph(n_layers=1, n_pos=1, each=1, logits=1)
    edges = np.array([[2.0, 0.0, 0.0], [1.0, -3.0, 0.0]], dtype=np.float32)  # token, feature, error
    graph = replace(graph, edges=edges, probability=np.array([0.8]))
    found = prune(graph, 1.0, 1.0)
    assert found.influence == pytest.approx([0.8, 0.6, 0.0, 0.0])
    edges[0, 2] = 2.0
    found = prune(replace(graph, edges=edges), 1.0, 1.0)
    assert found.influence == pytest.approx([0.8 * (0.25 + 0.75 * 0.5), 0.6, 0.3, 0.0])
    assert found.full.replacement == pytest.approx(0.625)
    assert found.full.completeness == pytest.approx((0.8 * 1 + 0.6 * 0.5) / 1.4)
    assert found.pruned.replacement == pytest.approx(found.full.replacement, abs=1e-6)
    assert found.pruned.completeness == pytest.approx(found.full.completeness, abs=1e-6)


def slow_prune(
    graph: AttributionGraph, node_share: float, edge_share: float
) -> tuple[set[int], set[tuple[int, int]]]:
    """Kept nodes, and kept (target, source), by the words of the description."""
    matrix, weights, kind = dense(graph), graph.weights, graph.nodes.kind
    score = closed_form(normalised(matrix), weights)
    kept: set[int] = set()
    for node in np.argsort(-score):
        if score[list(kept)].sum() >= node_share * score.sum():
            break
        kept.add(int(node))
    kept |= {i for i in range(len(kind)) if kind[i] in (NodeKind.TOKEN, NodeKind.LOGIT)}
    for node in range(len(kind)):
        if node not in kept:
            matrix[node] = matrix[:, node] = 0
    inner = normalised(matrix)
    flow = inner * (closed_form(inner, weights) + weights)[:, None]
    edges: set[tuple[int, int]] = set()
    total = 0.0
    for at in np.argsort(-flow, axis=None):
        if total >= edge_share * flow.sum():
            break
        target, source = (int(i) for i in np.unravel_index(at, flow.shape))
        edges.add((target, source))
        total += flow[target, source]
    sources_only = {int(i) for i in np.flatnonzero(graph.without_row)}
    while True:
        gone = {
            node
            for node in kept
            if kind[node] in (NodeKind.FEATURE, NodeKind.ERROR)
            and (
                not any(s == node for _, s in edges)
                or (
                    kind[node] == NodeKind.FEATURE
                    and node not in sources_only
                    and not any(t == node for t, _ in edges)
                )
            )
        }
        if not gone:
            return kept, edges
        kept -= gone
        edges = {(t, s) for t, s in edges if t not in gone and s not in gone}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows", [None, 22])
@pytest.mark.parametrize(("nodes", "edges"), [(0.8, 0.98), (0.5, 0.9), (0.95, 0.6), (0.3, 0.3)])
def test_pruning_is_as_described(seed: int, rows: int | None, nodes: float, edges: float) -> None:
    graph = random_graph(seed, rows=rows)
    found = prune(graph, nodes, edges)
    kept, wanted = slow_prune(graph, nodes, edges)
    assert set(found.nodes.tolist()) == kept
    assert set(zip(found.targets.tolist(), found.sources.tolist(), strict=True)) == wanted
    row_of = {int(n): r for r, n in enumerate(graph.row_nodes)}
    for target, source, weight in zip(found.targets, found.sources, found.weights, strict=True):
        assert weight == graph.edges[row_of[int(target)], source]
    order = np.argsort(-found.influence, kind="stable")
    assert (np.diff(found.cumulative[order]) >= -1e-12).all()
    assert found.cumulative[order[-1]] == pytest.approx(1)


@pytest.mark.parametrize("rows", [None, 22])
def test_scores(rows: int | None) -> None:
    graph = random_graph(3, rows=rows)
    found = prune(graph, 0.7, 0.9)
    inner = normalised(dense(graph))
    errors, tokens = graph.nodes.of(NodeKind.ERROR), graph.nodes.of(NodeKind.TOKEN)

    def scores(part: np.ndarray, ends_in_errors: float | None) -> tuple[float, float]:
        """Of edges with the normalisation of the whole graph."""
        score = closed_form(part, graph.weights)
        missed = score[errors].sum() if ends_in_errors is None else ends_in_errors - score[tokens].sum()
        weight = score + graph.weights
        read = np.isin(np.arange(len(score)), graph.row_nodes) & (weight > 0)
        explained = part[:, ~errors].sum(1)[read]
        return (
            score[tokens].sum() / (score[tokens].sum() + missed),
            (explained * weight[read]).sum() / weight[read].sum(),
        )

    assert (found.full.replacement, found.full.completeness) == pytest.approx(scores(inner, None), rel=1e-5)
    part = np.zeros_like(inner)
    part[found.targets, found.sources] = inner[found.targets, found.sources]
    wanted = scores(part, graph.weights.sum())
    assert (found.pruned.replacement, found.pruned.completeness) == pytest.approx(wanted, rel=1e-5)
    assert found.pruned.replacement < found.full.replacement
    assert found.pruned.completeness < found.full.completeness


def test_all_and_nothing() -> None:
    graph = random_graph(1)
    everything = prune(graph, 1.0, 1.0)
    assert len(everything.weights) > 0.9 * (graph.edges != 0).sum()
    assert everything.pruned.replacement == pytest.approx(everything.full.replacement, abs=1e-3)
    least = prune(graph, 0.0, 0.0)
    ends = graph.nodes.of(NodeKind.TOKEN) | graph.nodes.of(NodeKind.LOGIT)
    assert least.kept[ends].all()
    assert least.kept.sum() <= ends.sum() + 1


def test_thresholds() -> None:
    assert threshold_of(np.array([1.0, 4.0, 3.0, 2.0]), 0.7) == 3.0
    assert threshold_of(np.array([1.0, 4.0, 3.0, 2.0]), 0.71) == 2.0
    assert threshold_of(np.array([]), 0.5) == 0.0
    for thresholds in ((1.1, 0.9), (0.9, -0.1)):
        with pytest.raises(UsageError, match="does not exist"):
            prune(random_graph(), *thresholds)
