"""Feature graphs as DOT: what is drawn, in which order, and that Graphviz takes it."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Conditions
from circuitfind.names import parse_edge, parse_node
from circuitfind.output.dot_features import ABREAST, DRAWN, feature_dot
from circuitfind.output.draw import render
from tests.circuit.test_feature_graph import graph


def node_lines(text: str) -> dict[str, str]:
    found = re.findall(r'^  "([^"]+)" \[label=(<<TABLE.*)$', text, re.MULTILINE)
    return dict(found)


def edges_of(text: str) -> set[tuple[str, str]]:
    return set(re.findall(r'^  "([^"]+)":n -> "([^"]+)":s ', text, re.MULTILINE))


def large(features: int, layers: int = 4) -> FeatureGraph:
    """Every feature feeds each of the next layer."""
    names = [[f"s{layer}.f{i}" for i in range(features // layers)] for layer in range(layers)]
    edges = [f"{a}->{b}" for low, high in pairwise(names) for a in low for b in high]
    edges += [f"{a}->logits" for a in names[-1]]
    flat = [name for layer in names for name in layer]
    return FeatureGraph(
        nodes=tuple(map(parse_node, flat)),
        edges=tuple(map(parse_edge, edges)),
        conditions=Conditions("t", "m", "x", "logit-diff", "resample", "noising", "default", "rule"),
        node_scores={name: 1 / (i + 1) for i, name in enumerate(flat)},
        edge_weights={name: (-1) ** i / (i + 1) for i, name in enumerate(edges)},
    )


def test_every_node_and_edge_of_a_small_graph() -> None:
    text = feature_dot(graph())
    nodes = node_lines(text)
    assert set(nodes) == {*(str(n) for n in graph().nodes), "logits"}
    assert edges_of(text) == {(str(e.sender), str(e.receiver)) for e in graph().edges}
    assert "names &lt;&amp;&gt;" in nodes["s0.f2"]
    assert 'STYLE="DASHED"' in nodes["s0.err"]
    assert 'STYLE="DASHED"' not in nodes["s0.f2"]
    assert "0.910 [0.880, 0.950] under mean ablation (40 prompts)" in text
    assert "7 of 80 features that fire and 1 error, 4 edges" in text.replace("<BR/>", " ")
    assert "Drawn" not in text
    assert feature_dot(graph()) == text


def test_labels_from_elsewhere_stand_behind_the_graph_s_own() -> None:
    text = feature_dot(graph(), labels={"s0.f2": "other", "sm0.f11": "dates"})
    nodes = node_lines(text)
    assert "dates" in nodes["sm0.f11"]
    assert "other" not in nodes["s0.f2"]


def test_layers_run_upwards() -> None:
    text = feature_dot(graph())
    titles = re.findall(r'shape=plaintext, label="([^"]*)"', text)
    assert titles == ["attn 0", "attn 0", "MLP 0", "stream 0", "mid 1", "MLP 1", "stream 1", ""]
    spine = re.findall(r'^  "(row:[^"]+)" -> "(row:[^"]+)" ', text, re.MULTILINE)
    assert [high for _, high in spine[:-1]] == [low for low, _ in spine[1:]]


def test_large_graphs_are_cut_to_the_strongest() -> None:
    made = large(160)
    text = feature_dot(made)
    nodes = set(node_lines(text)) - {"logits"}
    assert len(nodes) == DRAWN
    strongest = sorted(made.node_scores, key=lambda n: -made.node_scores[n])[:DRAWN]
    assert nodes == set(strongest)
    drawn = edges_of(text)
    assert len(drawn) <= 2.5 * (DRAWN + 1)
    assert {sender for sender, _ in drawn} >= {n for n in nodes if n.startswith("s0")}, (
        "none is without its best edge"
    )
    assert f"Drawn: {DRAWN} of 160 nodes and {len(drawn)} of {len(made.edges):,} edges" in text.replace(
        "<BR/>", " "
    )
    rows = re.findall(r"\{ rank=same; (.*) \}", text)
    assert max(row.count(";") for row in rows) <= ABREAST + 1


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@pytest.mark.parametrize(
    "made", [graph(), graph(nodes=(), edges=()), large(80)], ids=["small", "empty", "large"]
)
def test_graphviz_draws_it(made: FeatureGraph, tmp_path: Path) -> None:
    text = feature_dot(made)
    (path,) = render(text, tmp_path / "graph", ("svg",))
    assert b"<svg" in path.read_bytes()
    done = subprocess.run(["dot", "-Tplain"], input=text.encode(), capture_output=True, check=True)
    assert not done.stderr
    heights = {
        parts[1].strip('"'): float(parts[3])
        for parts in (line.split(" ") for line in done.stdout.decode().splitlines())
        if parts[0] == "node"
    }
    for edge in made.edges:
        if str(edge.sender) in heights and str(edge.receiver) in heights:
            assert heights[str(edge.sender)] < heights[str(edge.receiver)], edge
