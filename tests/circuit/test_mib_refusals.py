"""What the JSON of EAP-IG cannot hold, and files in it that cannot be believed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.mib import from_eap_ig, read_circuit, to_eap_ig
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import parse_edge
from tests.circuit.test_mib import CONDITIONS, SMALL, made

# What cannot be written.


def test_neurons_and_positions_are_not_written() -> None:
    parts = replace(SMALL, parts=(("m0.n1", "m0.rest"), ()))
    with pytest.raises(UnsupportedError, match="whole MLPs"):
        to_eap_ig(Circuit(parts, (), CONDITIONS), None, 8)
    with pytest.raises(UnsupportedError, match="no positions"):
        to_eap_ig(Circuit(SMALL, (parse_edge("a0.h0->m1@END"),), CONDITIONS), None, 8)


def test_scores_of_another_model_and_infinite_ones_are_not_written() -> None:
    circuit, scores = made(SMALL)
    with pytest.raises(UnsupportedError, match="another model"):
        to_eap_ig(circuit, replace(scores, anatomy=Anatomy(2, 2, 2, parallel=True)), 8)
    values = scores.values.copy()
    values[SMALL.index_of("input->m0")] = np.inf
    with pytest.raises(UnsupportedError, match="infinite"):
        to_eap_ig(circuit, replace(scores, values=values), 8)


# What cannot be read.


def drop(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


def put(value: Any, *keys: str) -> Callable[[dict[str, Any]], object]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


BAD: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (drop("cfg", "n_heads"), "cfg lacks 'n_heads'"),
    (drop("cfg", "parallel_attn_mlp"), "cfg lacks 'parallel_attn_mlp'"),
    (put(0, "cfg", "n_layers"), "n_layers is 0, not a whole number above 0"),
    (put(True, "cfg", "n_layers"), "n_layers is True, not a whole number"),
    (put(2.0, "cfg", "n_heads"), "n_heads is 2.0, not a whole number"),
    (put("no", "cfg", "parallel_attn_mlp"), "parallel_attn_mlp is 'no', not true or false"),
    (put(-1, "cfg", "d_model"), "d_model is -1"),
    (put(10**9, "cfg", "n_layers"), "too many edges to list"),
    (put(3, "cfg", "n_key_value_heads"), "2 heads cannot share 3 key/value heads"),
    (put(3, "cfg", "n_layers"), "it lists 46 of the 100 edges of a model of 3 layers of 2 heads"),
    (put(1, "cfg", "n_layers"), "none of a model of 1 layers of 2 heads"),
    (drop("edges", "a0.h1->m0"), "it lists 45 of the 46 edges"),
    (drop("nodes", "m1"), "it lists 6 of the 7 nodes"),
    (put({"score": 0, "in_graph": False}, "edges", "m0->a1.h9<q>"), "such as 'm0->a1.h9<q>'"),
    (put({"score": 0, "in_graph": False}, "edges", "m1->m0"), "such as 'm1->m0'"),
    (put({"in_graph": True}, "nodes", "a7.h0"), "such as 'a7.h0'"),
    (put("0.5", "edges", "input->m0", "score"), "'input->m0': score is '0.5', not a number"),
    (put(None, "edges", "input->m0", "score"), "'input->m0': score is None, not a number"),
    (put(True, "edges", "input->m0", "score"), "score is True, not a number"),
    (put(2, "edges", "input->m0", "in_graph"), "in_graph is 2, not true or false"),
    (drop("edges", "input->m0", "in_graph"), "'input->m0' has no in_graph"),
    (put(0.5, "edges", "input->m0"), "'input->m0' has no in_graph"),
    (put("yes", "nodes", "m0"), "'m0': in_graph is 'yes', not true or false"),
    (put([True] * 9, "nodes", "input", "neurons"), "'input': neurons is 9 values, and d_model of cfg is 8"),
    (put([0.1] * 9, "nodes", "m0", "neurons_scores"), "neurons_scores is 9 values"),
    (put(["x"] * 8, "nodes", "m0", "neurons_scores"), "neurons_scores is 'x', not a number"),
    (put({"odd": 1}, "circuitfind", "conditions"), "circuitfind.conditions"),
    (put("x", "circuitfind", "node_scores", "m0"), "circuitfind.node_scores: 'm0' is 'x'"),
]


@pytest.mark.parametrize(("change", "says"), BAD, ids=[says[:40] for _, says in BAD])
def test_what_does_not_fit_is_named(change: Callable[[dict[str, Any]], object], says: str) -> None:
    circuit, scores = made(SMALL)
    data = copy.deepcopy(to_eap_ig(circuit, scores, 8))
    data["nodes"]["input"]["in_graph"] = True
    change(data)
    with pytest.raises(UsageError) as caught:
        from_eap_ig(data, where="x.json")
    assert says in caught.value.what
    assert caught.value.where == "x.json"
    assert caught.value.hint


def test_missing_edges_are_listed() -> None:
    data = to_eap_ig(*made(SMALL), 8)
    del data["edges"]["a0.h1->m0"]
    with pytest.raises(UsageError) as caught:
        from_eap_ig(data)
    assert caught.value.details == ("missing: a0.h1->m0",)


# Files.


def test_a_circuit_json_is_read_as_well(tmp_path: Path) -> None:
    circuit, _ = made(SMALL)
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(circuit.as_dict()), encoding="utf-8")
    again, scores = read_circuit(path)
    assert scores is None
    assert again.edges == circuit.edges


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("importances.pt", "x", "a pickle"),
        ("edges.pkl", "x", "a pickle"),
        ("a.json", "[1, 2]", "no JSON object"),
        ("a.json", "{", "cannot read"),
        ("a.json", '{"format": "circuitfind.feature-graph"}', "its format is circuitfind.feature-graph"),
        ("a.json", '{"nodes": [], "links": []}', "its keys are nodes, links"),
        ("a.json", '{"cfg": {}, "nodes": {}, "edges": []}', "neither a circuit.json nor a graph of EAP-IG"),
        ("a.json", '{"format": "circuitfind.circuit", "version": 9}', "version 9"),
    ],
)
def test_files_that_are_neither(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_circuit(path)
    assert says in caught.value.what
    assert caught.value.hint
