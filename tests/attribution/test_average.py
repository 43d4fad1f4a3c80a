"""Averages over prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from circuitfind.attribution.average import average
from circuitfind.attribution.graph import NodeKind
from circuitfind.attribution.prune import PrunedGraph, prune
from circuitfind.errors import UsageError
from tests.attribution.graphs import random_graph


def graphs(count: int = 3) -> list[PrunedGraph]:
    """Prompts of several lengths whose features have few numbers, so that some fire at several places."""
    found = []
    for seed in range(count):
        graph = random_graph(seed, n_pos=3 + seed % 2)
        nodes = graph.nodes
        few = np.where(nodes.kind == NodeKind.FEATURE, nodes.index % 5, nodes.index)
        found.append(prune(replace(graph, nodes=replace(nodes, index=few)), 0.7, 0.9))
    return found


@pytest.mark.parametrize(
    "positions", [None, [{"END": 2, "SUBJ": 0}, {"END": 3, "SUBJ": 0}, {"END": 2, "SUBJ": 1}]]
)
def test_averages_are_sums_over_positions_and_means_over_prompts(
    positions: list[dict[str, int]] | None,
) -> None:
    made = graphs()
    found = average(iter(made), positions)
    assert found.n_prompts == 3

    def name(one: PrunedGraph, node: int, number: int) -> str:
        kind = one.graph.nodes.kind[node]
        if kind == NodeKind.LOGIT:
            return "logits"
        bare, _, at = one.graph.nodes.name(node).partition("@")
        named = {} if positions is None else {str(v): k for k, v in positions[number].items()}
        return f"{bare}@{named[at]}" if at in named else bare

    every = {
        name(one, node, number) for number, one in enumerate(made) for node in range(len(one.graph.nodes))
    }
    assert {node.name for node in found.nodes} == every
    assert any("@END" in n for n in every) == (positions is not None)
    for node in found.nodes:
        influence, activation, active, kept = [], [], [], []
        for number, one in enumerate(made):
            mine = [i for i in range(len(one.graph.nodes)) if name(one, i, number) == node.name]
            influence.append(one.influence[mine].sum())
            activation.append(one.graph.nodes.value[mine].sum())
            active.append(bool(mine))
            kept.append(bool(one.kept[mine].any()))
        assert node.influence == pytest.approx(np.mean(influence))
        assert node.activation == pytest.approx(np.mean(activation))
        assert (node.active, node.kept) == pytest.approx((np.mean(active), np.mean(kept)))
    edges: dict[tuple[str, str], float] = {}
    for number, one in enumerate(made):
        for target, source, weight in zip(one.targets, one.sources, one.weights, strict=True):
            ends = name(one, int(source), number), name(one, int(target), number)
            edges[ends] = edges.get(ends, 0) + float(weight) / 3
    assert dict(found.edges) == pytest.approx(edges)
    assert found.replacement == pytest.approx(np.mean([one.full.replacement for one in made]))
    assert found.completeness == pytest.approx(np.mean([one.full.completeness for one in made]))
    assert found.positions == (() if positions is None else ("SUBJ", "END"))
    order = [node.influence for node in found.nodes]
    assert order == sorted(order, reverse=True)
    assert all(".f" in node.name for node in found.features())


def test_some_fire_in_some_prompts_only() -> None:
    found = average(graphs(4))
    shares = {node.active for node in found.features()}
    assert len(shares) > 1
    assert all(node.kept <= node.active for node in found.nodes)


def test_nothing_to_average() -> None:
    with pytest.raises(UsageError, match="no graphs"):
        average([])
    with pytest.raises(UsageError, match="more graphs than positions"):
        average(graphs(2), [{}])
