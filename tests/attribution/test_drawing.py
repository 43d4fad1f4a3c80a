"""Pictures of attribution graphs: what is drawn, and what the caption says of the rest."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from circuitfind.attribution.average import average
from circuitfind.attribution.graph import NodeKind
from circuitfind.attribution.prune import PrunedGraph, prune
from circuitfind.output.dot_attribution import ALL_TOKENS, attribution_dot, average_dot
from circuitfind.output.draw import dot_binary, render
from tests.attribution.graphs import random_graph


def nodes_in(text: str) -> set[str]:
    return set(re.findall(r'^  "([^"]+)" \[label=', text, re.MULTILINE))


def edges_in(text: str) -> list[tuple[str, str, str]]:
    return re.findall(r'^  "([^"]+)":n -> "([^"]+)":s \[penwidth=[\d.]+, color="(#\w{6})', text, re.MULTILINE)


@pytest.fixture(scope="module")
def pruned() -> PrunedGraph:
    return prune(random_graph(5), 0.95, 0.95)


def test_everything_is_drawn_where_there_is_room(pruned: PrunedGraph) -> None:
    text = attribution_dot(pruned, 1000)
    assert nodes_in(text) == {pruned.graph.nodes.name(int(i)) for i in pruned.nodes}
    inner = pruned.count(NodeKind.FEATURE) + pruned.count(NodeKind.ERROR)
    assert f"Drawn: {inner} of {inner} features" in text
    signs = {"#0072B2": 1, "#D55E00": -1}
    name = pruned.graph.nodes.name
    weights = {
        (name(int(s)), name(int(t))): w
        for s, t, w in zip(pruned.sources, pruned.targets, pruned.weights, strict=True)
    }
    for source, target, colour in edges_in(text):
        assert np.sign(weights[source, target]) == signs[colour]


def test_the_most_influential_are_drawn(pruned: PrunedGraph) -> None:
    text = attribution_dot(pruned, 6)
    nodes = pruned.graph.nodes
    inner = [i for i in pruned.nodes if nodes.kind[i] in (NodeKind.FEATURE, NodeKind.ERROR)]
    best = sorted(inner, key=lambda i: -pruned.influence[i])[:6]
    drawn = {n for n in nodes_in(text) if n.startswith("t")}
    assert drawn == {nodes.name(int(i)) for i in best}
    assert f"Drawn: 6 of {len(inner)} features" in text
    told = re.search(r"(\d+)(?:<BR/>| )of(?:<BR/>| )([\d,]+)(?:<BR/>| )edges", text)
    assert told is not None
    assert int(told[1]) == len(edges_in(text)) < len(pruned.weights) == int(told[2].replace(",", ""))
    for source, target, _ in edges_in(text):
        assert {source, target} <= nodes_in(text)
    # No node hangs in the air that has an edge to another drawn one.
    linked = {end for edge in edges_in(text) for end in edge[:2]}
    ids = {nodes.name(int(i)): int(i) for i in pruned.nodes}
    chosen = {ids[n] for n in nodes_in(text)}
    for source, target in zip(pruned.sources, pruned.targets, strict=True):
        if int(source) in chosen and int(target) in chosen:
            assert {nodes.name(int(source)), nodes.name(int(target))} <= linked


def test_errors_are_told_apart(pruned: PrunedGraph) -> None:
    text = attribution_dot(pruned, 1000)
    for line in text.splitlines():
        found = re.match(r'  "(t\d+\.\w+)@\d+" \[label=', line)
        if found:
            assert ('STYLE="DASHED"' in line) == found[1].endswith(".err")


def test_labels(pruned: PrunedGraph) -> None:
    nodes = pruned.graph.nodes
    name = next(
        nodes.name(int(i)).partition("@")[0] for i in pruned.nodes if nodes.kind[i] == NodeKind.FEATURE
    )
    text = attribution_dot(pruned, 1000, {name: "months <of> the year"})
    count = sum(line.startswith(f'  "{name}@') and "[label=" in line for line in text.splitlines())
    assert text.count("months &lt;of&gt; the year") == count > 0
    mean = average_dot(average([pruned]), model="m", task="t", most=1000, labels={name: "months"})
    assert mean.count("months") == 1


def test_long_prompts_show_the_tokens_that_matter() -> None:
    graph = random_graph(1, n_pos=ALL_TOKENS + 4, each=1, n_layers=2)
    graph = replace(graph, pieces=tuple("w" for _ in graph.tokens))
    text = attribution_dot(prune(graph, 0.3, 0.3), 4)
    tokens = {n for n in nodes_in(text) if n.startswith("input")}
    assert 0 < len(tokens) < len(graph.tokens)
    assert tokens == {s for s, _, _ in edges_in(text) if s.startswith("input")}


@pytest.mark.parametrize("most", [3, 40])
def test_averages(most: int) -> None:
    mean = average([prune(random_graph(seed), 0.9, 0.9) for seed in range(3)])
    text = average_dot(mean, model="mini", task="ioi", most=most)
    inner = [n for n in mean.nodes if n.name not in ("input", "logits") and n.kept > 0]
    assert {n for n in nodes_in(text) if n.startswith("t")} == {n.name for n in inner[:most]}
    assert "Averages over 3 prompts" in text
    assert "Attribution graphs of ioi in mini, averaged" in text
    assert {"input", "logits"} <= nodes_in(text)


@pytest.mark.skipif(dot_binary() is None, reason="Graphviz is not installed")
def test_graphviz_draws_them(pruned: PrunedGraph, tmp_path: Path) -> None:
    graph = replace(pruned.graph, pieces=('"', "\\N", "<&>", "\n"), logit_pieces=("日", "\x00"), prompt="")
    odd = replace(pruned, graph=graph)
    (path,) = render(attribution_dot(odd), tmp_path / "graph")
    assert path.read_text(encoding="utf-8").count("<title>") > 20
