"""Graphs of circuit-tracer as feature graphs: names, weights, shares of influence, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.attribution.export import pairing, to_circuit_tracer
from circuitfind.attribution.graph import NodeKind
from circuitfind.attribution.prune import PrunedGraph, prune
from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.tracer_read import from_circuit_tracer, is_circuit_tracer, load_circuit_tracer
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.names import Kind
from tests.attribution.graphs import random_graph


@pytest.fixture(scope="module")
def pruned() -> PrunedGraph:
    return prune(random_graph(2), 0.8, 0.9)


@pytest.fixture
def data(pruned: PrunedGraph) -> dict[str, Any]:
    return copy.deepcopy(to_circuit_tracer(pruned, labels={"t1.f82": "months"}))


def name_of(pruned: PrunedGraph, node: int) -> str:
    nodes = pruned.graph.nodes
    if nodes.kind[node] == NodeKind.LOGIT:
        return f"logits@{nodes.position[node]}-{nodes.index[node]}"
    return nodes.name(node)


def test_nodes_and_edges_are_those_of_the_graph(pruned: PrunedGraph, data: dict[str, Any]) -> None:
    found = from_circuit_tracer(data)
    assert {str(n) for n in found.nodes} == {name_of(pruned, int(i)) for i in pruned.nodes}
    assert found.edge_weights == {
        f"{name_of(pruned, int(s))}->{name_of(pruned, int(t))}": float(w)
        for s, t, w in zip(pruned.sources, pruned.targets, pruned.weights, strict=True)
    }
    assert {str(e) for e in found.edges} == found.edge_weights.keys()
    assert (found.conditions.model, found.conditions.task) == ("model", pruned.graph.prompt)
    assert found.conditions.rule == "node threshold 0.8, edge threshold 0.9"
    labels = {name.partition("@")[0]: text for name, text in found.labels.items()}
    assert labels["t1.f82"] == "months"
    assert found.labels["input@0"] == '"a"'
    assert next(t for n, t in found.labels.items() if n.startswith("logits")).startswith('Output "')


def test_scores_are_shares_of_the_influence(pruned: PrunedGraph, data: dict[str, Any]) -> None:
    found = from_circuit_tracer(data)
    cumulative = {name_of(pruned, int(i)): pruned.cumulative[i] for i in pruned.nodes}
    ranked = sorted(found.node_scores, key=lambda name: cumulative[name])
    shares = np.array([found.node_scores[name] for name in ranked])
    assert (np.diff(shares) <= 1e-12).all()
    # Of the most influential nodes none is missing, so their shares are exact.
    steps = np.diff([0.0, *(cumulative[name] for name in ranked)])
    exact = int(np.argmax(np.diff(steps) > 1e-9)) + 1
    assert exact >= 5
    np.testing.assert_allclose(shares[:exact], steps[:exact])
    assert not any(name.startswith("logits") for name in found.node_scores)


def test_other_spellings_of_the_same_nodes(data: dict[str, Any]) -> None:
    """Errors as circuit-tracer names them, features as Neuronpedia may number them, layers as numbers."""
    wanted = from_circuit_tracer(data).as_dict()
    new = {}
    for row in data["nodes"]:
        old = row["node_id"]
        if row["feature_type"] == "mlp reconstruction error":
            row["node_id"] = f"0_{row['layer']}_{row['ctx_idx']}"
        elif row["feature_type"] == "cross layer transcoder":
            row["feature"] = int(old.split("_")[1])
            row["layer"] = int(row["layer"])
            row["feature_type"] = "transcoder"
        new[old] = row["node_id"]
    for link in data["links"]:
        link["source"], link["target"] = new[link["source"]], new[link["target"]]
    assert from_circuit_tracer(data).as_dict() == wanted


def test_numbers_come_from_the_pairing_where_ids_say_nothing() -> None:
    node = {
        "node_id": "whatever",
        "feature": pairing(15, 24829),
        "layer": "15",
        "ctx_idx": 3,
        "feature_type": "cross layer transcoder",
    }
    data = {
        "metadata": {"slug": "s", "scan": "m", "prompt": "", "prompt_tokens": []},
        "nodes": [node],
        "links": [],
    }
    # Without an id that bears it out, a number may as well be the feature's own.
    assert [str(n) for n in from_circuit_tracer(data).nodes] == [f"t15.f{pairing(15, 24829)}@3"]
    node["node_id"] = "15_24829_3"
    assert [str(n) for n in from_circuit_tracer(data).nodes] == ["t15.f24829@3"]


def test_there_and_back_as_our_own(data: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    found = load_circuit_tracer(path)
    again = FeatureGraph.from_dict(json.loads(found.text()))
    assert again.as_dict() == found.as_dict()
    assert {n.kind for n in again.nodes} == {Kind.INPUT, Kind.FEATURE, Kind.ERROR, Kind.LOGITS}


def test_is_circuit_tracer(data: dict[str, Any]) -> None:
    assert is_circuit_tracer(data)
    assert not is_circuit_tracer({"cfg": {}, "nodes": {}, "edges": {}})
    assert not is_circuit_tracer({**data, "links": None})


def without(key: str) -> Any:
    def change(data: dict[str, Any]) -> None:
        del data["nodes"][0][key]

    return change


def put(part: str, key: str, value: Any) -> Any:
    def change(data: dict[str, Any]) -> None:
        data[part][0][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("node_id"), "incomplete: 'node_id'"),
        (without("ctx_idx"), "incomplete: 'ctx_idx'"),
        (put("nodes", "node_id", "E_101_1"), "two nodes have the id 'E_101_1'"),
        (put("nodes", "ctx_idx", None), "incomplete"),
        (put("links", "source", "nobody"), "'nobody', which no node has"),
        (put("links", "weight", "heavy"), "incomplete"),
        (lambda data: data["metadata"].pop("slug"), "incomplete: 'slug'"),
        (lambda data: data["metadata"].update(prompt="", prompt_tokens=3), "incomplete"),
    ],
)
def test_damaged_graphs(data: dict[str, Any], change: Any, says: str) -> None:
    data["metadata"]["prompt"] = ""
    change(data)
    with pytest.raises(UsageError, match=says):
        from_circuit_tracer(data, where="graph.json")


def test_unknown_types_are_refused(data: dict[str, Any]) -> None:
    data["nodes"][4]["feature_type"] = "lorsa"
    with pytest.raises(UnsupportedError, match="type 'lorsa'"):
        from_circuit_tracer(data)


def test_heads_need_their_inputs() -> None:
    def node(name: str, at: int) -> dict[str, Any]:
        return {
            "node_id": name,
            "feature": 0,
            "layer": "0",
            "ctx_idx": at,
            "feature_type": "x",
            "circuitfind": {"name": name},
        }

    data = {
        "metadata": {"slug": "s", "scan": "m", "prompt": "", "prompt_tokens": []},
        "nodes": [node("input", 0), node("a0.h1", 0)],
        "links": [{"source": "input", "target": "a0.h1", "weight": 1.0}],
    }
    with pytest.raises(UsageError, match="into which of its inputs"):
        from_circuit_tracer(data)
    data["links"][0]["slots"] = {"q": 0.25, "v": None}  # type: ignore[index]
    found = from_circuit_tracer(data)
    assert found.edge_weights["input->a0.h1<q>"] == 0.25
    assert math.isnan(found.edge_weights["input->a0.h1<v>"])
