"""Feature graphs as data: order, JSON there and back, damaged files."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from circuitfind.circuit.feature_graph import ErrorShare, FeatureGraph, Source
from circuitfind.circuit.graph import Conditions, Evaluation, Interval
from circuitfind.errors import UsageError
from circuitfind.names import parse_edge, parse_node

NAMES = ("a0.h1", "t0.f3", "sa0.f2", "sm0.f11", "s0.f2", "s0.err", "m1.n7+9", "sh1.f4", "s1.f0@END", "s1.f0")


def graph(**changes: Any) -> FeatureGraph:
    edges = ("sa0.f2->sm0.f11", "s0.f2->s1.f0", "s0.err->logits", "s1.f0@END->logits")
    interval = Interval(0.91, 0.88, 0.95)
    given: dict[str, Any] = {
        "nodes": tuple(map(parse_node, random.Random(0).sample(NAMES, len(NAMES)))),
        "edges": tuple(map(parse_edge, edges)),
        "conditions": Conditions("ioi", "mini", "m", "logit-diff", "resample", "noising", "default", "rule"),
        "node_scores": {name: i - 3.5 for i, name in enumerate(NAMES)} | {"s0.err": math.nan},
        "edge_weights": {name: 0.5 * i for i, name in enumerate(edges)},
        "evaluations": (Evaluation("mean", "logit-diff", interval, 2.0, 2.2, 0.1, 40),),
        "sources": (Source("s0", "blocks.0.hook_resid_post", "folder", "topk", 512, 80, 1.0, math.nan, 1.5),),
        "errors": ErrorShare(0.2, interval, None),
        "n_active": 80,
        "labels": {"s0.f2": "names <&>"},
        "minimal": True,
    }
    return FeatureGraph(**{**given, **changes})


def test_nodes_stand_in_the_order_of_the_forward_pass() -> None:
    names = [str(node) for node in graph().nodes]
    assert names == [
        "a0.h1", "sa0.f2", "sm0.f11", "t0.f3", "s0.f2", "s0.err", "sh1.f4", "m1.n7+9", "s1.f0", "s1.f0@END",
    ]  # fmt: skip
    ranks = [node.layer_rank for node in graph().nodes]
    assert ranks == sorted(ranks)


def test_ends_of_edges_are_nodes() -> None:
    found = graph(nodes=())
    assert {str(n) for n in found.nodes} == {"sa0.f2", "sm0.f11", "s0.f2", "s1.f0", "s0.err", "s1.f0@END"}
    assert [str(n) for n in found.error_nodes] == ["s0.err"]
    assert len(found.features) == 5


def test_there_and_back() -> None:
    first = graph()
    text = first.text()
    again = FeatureGraph.from_dict(json.loads(text))
    assert again.text() == text
    assert (again.nodes, again.edges, again.conditions) == (first.nodes, first.edges, first.conditions)
    assert again.evaluations == first.evaluations
    assert again.errors == first.errors
    assert again.labels == first.labels
    assert math.isnan(again.score(parse_node("s0.err")))
    assert again.weight(first.edges[1]) == first.weight(first.edges[1])
    data = json.loads(text)
    assert data["counts"] == {"nodes": 10, "features": 7, "errors": 1, "edges": 4, "active_features": 80}
    assert data["sources"][0]["errors"] is None
    bare = graph(errors=None, evaluations=(), sources=(), labels={})
    assert FeatureGraph.from_dict(bare.as_dict()).as_dict() == bare.as_dict()


def test_an_empty_graph() -> None:
    found = graph(nodes=(), edges=())
    assert found.nodes == ()
    assert FeatureGraph.from_dict(found.as_dict()).nodes == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "circuitfind.circuit"}, "no feature graph of version 1"),
        ({"nodes": None}, "incomplete"),
        ({"edges": [{"name": "s1.f0->s0.f2", "weight": 1}]}, "no edge runs"),
        ({"conditions": {}}, "incomplete"),
        ({"errors": 3}, "incomplete"),
        ({"sources": [{}]}, "incomplete"),
        ({"counts": {}}, "incomplete"),
    ],
)
def test_damaged_data(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        FeatureGraph.from_dict({**graph().as_dict(), **change}, where="graph.json")
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"format": 1}'])
def test_damaged_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        FeatureGraph.load(path)
    assert caught.value.where == str(path)
    with pytest.raises(UsageError, match="cannot read"):
        FeatureGraph.load(tmp_path / "none.json")
    path.write_text(graph().text())
    assert FeatureGraph.load(path).as_dict() == graph().as_dict()


def test_the_example_of_the_docs_is_one() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "feature-graph-json.md"
    data = json.loads(page.read_text(encoding="utf-8").split("```json")[1].split("```")[0])
    found = FeatureGraph.from_dict(data)
    assert json.loads(found.text()) == data
