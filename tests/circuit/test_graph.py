"""Circuits: their graph, their JSON, and what it means to be connected."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from circuitfind.circuit.graph import Circuit, Conditions, Evaluation, Interval, connected, from_mask
from circuitfind.errors import UsageError
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import Edge, parse_edge, reader_name

SMALL = Anatomy(n_layers=2, n_heads=2, n_kv_heads=2)
GROUPED = Anatomy(n_layers=2, n_heads=4, n_kv_heads=2)
ANATOMIES = {
    "gpt2": Anatomy(3, 3, 3),
    "parallel": Anatomy(3, 2, 2, parallel=True),
    "grouped": Anatomy(3, 4, 2),
    "one kv head": Anatomy(2, 3, 1),
    "grouped parallel": Anatomy(2, 4, 2, parallel=True),
    "attention only": Anatomy(3, 3, 3, has_mlp=False),
}

CONDITIONS = Conditions(
    task="ioi",
    model="gpt2",
    method="eap",
    metric="logit_diff",
    ablation="resample",
    direction="noising",
    counterfactual="abc",
    rule="faithfulness 0.9",
)
EVALUATION = Evaluation("mean", "logit_diff", Interval(0.91, 0.88, 0.94), 3.1, 3.4, 0.2, 64)


def make(*names: str, anatomy: Anatomy = SMALL, **more: Any) -> Circuit:
    return Circuit(anatomy, tuple(parse_edge(name) for name in names), CONDITIONS, **more)


INDUCTION = (
    "input->a0.h0<k>",
    "input->a1.h0<v>",
    "a0.h0->a1.h0<q>",
    "a0.h0->a1.h0<k>",
    "a0.h0->m0",
    "a1.h0->logits",
)


def full(**more: Any) -> Circuit:
    scores = {name: 0.1 * (i + 1) for i, name in enumerate(INDUCTION)}
    scores["a0.h0->m0"] = math.nan
    return make(
        *INDUCTION,
        edge_scores=scores,
        node_scores={"a0.h0": -0.5, "m0": math.nan},
        evaluations=(EVALUATION,),
        roles={"a1.h0": "induction"},
        **more,
    )


# What a circuit is.


def test_edges_are_sorted_and_each_is_there_once() -> None:
    circuit = make(*reversed(INDUCTION), INDUCTION[0])
    assert len(circuit.edges) == len(INDUCTION)
    assert [edge.order for edge in circuit.edges] == sorted(edge.order for edge in circuit.edges)
    assert circuit.edges == make(*INDUCTION).edges
    assert [str(node) for node in circuit.nodes] == ["input", "a0.h0", "m0", "a1.h0", "logits"]
    assert [str(node) for node in circuit.heads] == ["a0.h0", "a1.h0"]
    assert [str(node) for node in circuit.mlps] == ["m0"]
    assert circuit.share_of_edges == len(INDUCTION) / SMALL.n_edges


@pytest.mark.parametrize("name", ["a5.h0->logits", "a0.h7->logits", "input->m9", "a0.h0->a1.h2<q>"])
def test_edges_that_the_model_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        make(name)


def test_an_edge_inside_a_parallel_block_is_refused() -> None:
    make("a0.h0->m0")
    with pytest.raises(UsageError):
        make("a0.h0->m0", anatomy=ANATOMIES["parallel"])


def test_nothing_in_a_circuit_can_be_changed() -> None:
    scores = {"a1.h0->logits": 1.0}
    circuit = make(*INDUCTION, edge_scores=scores)
    with pytest.raises(dataclasses.FrozenInstanceError):
        circuit.edges = ()  # type: ignore[misc]
    scores["a1.h0->logits"] = 2.0
    assert circuit.edge_scores["a1.h0->logits"] == 1.0, "the caller's dictionary is the caller's"
    with pytest.raises(nx.NetworkXError):
        circuit.graph.add_edge("input", "logits")
    with pytest.raises(ValueError, match="read-only"):
        circuit.mask[0, 0] = True
    circuit.as_dict()["edges"].clear()
    assert circuit.as_dict()["edges"]


def test_a_circuit_can_be_sent_to_another_process() -> None:
    circuit = full()
    assert circuit.mask.any()
    again = pickle.loads(pickle.dumps(circuit))
    assert again.as_dict() == circuit.as_dict()


def test_the_graph_keeps_the_inputs_of_a_head_apart() -> None:
    graph = full().graph
    assert set(graph["a0.h0"]["a1.h0"]) == {"q", "k"}
    assert set(graph["a1.h0"]["logits"]) == {""}
    assert graph.number_of_edges() == len(INDUCTION)
    assert graph["a0.h0"]["a1.h0"]["k"]["score"] == pytest.approx(0.4)
    assert math.isnan(graph["a0.h0"]["m0"][""]["score"])
    assert graph.nodes["a0.h0"] == {"kind": "head", "layer": 0, "index": 0, "score": -0.5}
    assert math.isnan(graph.nodes["m0"]["score"])
    assert nx.is_directed_acyclic_graph(graph)


def test_a_key_value_head_serves_its_group() -> None:
    names = ("input->a0.kv0<k>", "input->a0.h1<q>", "a0.h0->logits", "a0.h1->logits", "a0.h2->logits")
    circuit = make(*names, anatomy=GROUPED)
    served = {target for _, target, key in circuit.graph.out_edges("a0.kv0", keys=True) if key == "serves"}
    assert served == {"a0.h0", "a0.h1"}
    assert len(circuit.edges) == len(names), "serving is no edge of the circuit"
    assert nx.has_path(circuit.graph, "input", "a0.h0")
    assert nx.is_directed_acyclic_graph(circuit.graph)


def test_a_key_value_head_serves_across_positions() -> None:
    circuit = make("input@S1->a0.kv0<k>@S1", "a0.h1@END->logits@END", anatomy=GROUPED)
    assert circuit.graph.has_edge("a0.kv0@S1", "a0.h1@END", key="serves")


def test_keys_named_for_a_query_head_are_those_of_its_key_value_head() -> None:
    circuit = make(
        "input->a0.h1<k>",
        "input->a0.kv0<k>",
        "a0.h1->logits",
        anatomy=GROUPED,
        edge_scores={"input->a0.h1<k>": 0.5},
    )
    assert [str(edge) for edge in circuit.edges] == ["input->a0.kv0<k>", "a0.h1->logits"]
    assert circuit.edge_scores == {"input->a0.kv0<k>": 0.5}
    assert len(circuit.edges) == circuit.mask.sum()


def test_the_name_of_a_reader_can_be_read_back() -> None:
    edge = parse_edge("a0.h0@S1->a1.h0<k>@END")
    assert edge.reader == reader_name(edge.receiver, edge.slot) == "a1.h0<k>@END"
    assert parse_edge(f"{edge.sender}->{edge.reader}") == edge


# Masks.


@pytest.mark.parametrize("anatomy", ANATOMIES.values(), ids=ANATOMIES)
def test_mask_and_circuit_are_the_same_thing(anatomy: Anatomy) -> None:
    rng = np.random.default_rng(0)
    mask = anatomy.edge_mask & (rng.random(anatomy.edge_mask.shape) < 0.2)
    values = rng.normal(size=mask.shape)
    nodes = rng.normal(size=len(anatomy.writers))
    circuit = from_mask(
        anatomy,
        mask,
        CONDITIONS,
        edge_values=values,
        node_values=nodes,
        evaluations=[EVALUATION],
        roles={"m99": "none"},
    )
    assert (circuit.mask == mask).all()
    assert len(circuit.edges) == mask.sum()
    for edge in circuit.edges:
        assert circuit.edge_scores[str(edge)] == values[anatomy.index_of(edge)]
    for name, score in circuit.node_scores.items():
        assert score == nodes[anatomy.row_of(name)]
    assert set(circuit.node_scores) == {str(n) for n in circuit.nodes} & set(anatomy.writer_names)
    assert circuit.roles == {}
    assert Circuit.from_dict(json.loads(json.dumps(circuit.as_dict()))).edges == circuit.edges


def test_a_mask_without_scores_gives_a_circuit_without_scores() -> None:
    circuit = from_mask(SMALL, SMALL.edge_mask, CONDITIONS, roles={"9.9": "absent", "0.1": "there"})
    assert circuit.share_of_edges == 1
    assert circuit.edge_scores == circuit.node_scores == {}
    assert set(circuit.roles.values()) == {"there"}


# JSON.


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_and_back(tmp_path: Path) -> None:
    circuit = full()
    text = json.dumps(circuit.as_dict())
    path = tmp_path / "circuit.json"
    path.write_text(text, encoding="utf-8")
    again = Circuit.load(path)
    assert again.as_dict() == strict(text)
    assert again.edges == circuit.edges
    assert again.conditions == circuit.conditions
    assert again.evaluations == circuit.evaluations
    assert again.roles == circuit.roles
    assert math.isnan(again.edge_scores["a0.h0->m0"])
    assert again.edge_scores["input->a0.h0<k>"] == circuit.edge_scores["input->a0.h0<k>"]


def test_json_has_no_nan_and_no_infinity() -> None:
    circuit = make("input->logits", edge_scores={"input->logits": math.inf}, node_scores={"input": math.nan})
    found = strict(json.dumps(circuit.as_dict()))
    assert found["edges"][0]["score"] is None
    assert found["nodes"][0]["score"] is None


def test_json_keeps_scores_and_roles_of_nodes_with_positions() -> None:
    circuit = make("input@S1->m0@S1", "m0@S1->logits@END", node_scores={"m0": 0.5}, roles={"m0": "copier"})
    found = circuit.as_dict()
    assert found["nodes"][1]["position"] == "S1"
    assert (found["nodes"][1]["score"], found["nodes"][1]["role"]) == (0.5, "copier")
    assert Circuit.from_dict(found).as_dict() == found


def test_other_spellings_in_a_file_keep_their_scores() -> None:
    data = full().as_dict()
    for edge in data["edges"]:
        edge["name"] = edge["name"].replace("a0.h0", "0.0").replace("a1.h0", "L1H0")
    again = Circuit.from_dict(data)
    assert again.as_dict() == full().as_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 99},
        {"edges": None},
        {"edges": [{"name": "input->m0"}]},
        {"edges": [{"name": "nothing", "score": 1}]},
        {"edges": [{"name": "input->m0", "score": "high"}]},
        {"edges": [{"name": "input->m77", "score": 1}]},
        {"edges": ["input->m0"]},
        {"nodes": [{"name": 5, "score": 1}]},
        {"anatomy": {"n_layers": 1}},
        {"anatomy": {"n_layers": 2, "n_heads": 2, "n_kv_heads": 0}},
        {"anatomy": []},
        {"conditions": {}},
        {"evaluations": [{"faithfulness": 1}]},
    ],
)
def test_files_that_are_no_circuit_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps({**full().as_dict(), **change}))
    with pytest.raises(UsageError) as caught:
        Circuit.load(path)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "3"])
def test_files_that_hold_something_else_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "circuit.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="circuit"):
        Circuit.load(path)
    with pytest.raises(UsageError, match="cannot read"):
        Circuit.load(tmp_path / "missing.json")


# Connected: against paths found by networkx.


def on_a_path(anatomy: Anatomy, edges: list[Edge]) -> set[str]:
    """Edges on some way from the input to the logits, by the definition: reachable behind, reachable ahead."""
    graph = nx.DiGraph()
    graph.add_nodes_from(["input", "logits"])
    for edge in edges:
        reader = f"reader {edge.receiver}<{edge.slot}>" if edge.slot else str(edge.receiver)
        graph.add_edge(str(edge.sender), reader)
        if edge.slot:
            graph.add_edges_from((reader, str(head)) for head in anatomy.served_by(edge.receiver))
    behind = nx.descendants(graph, "input") | {"input"}
    ahead = nx.ancestors(graph, "logits") | {"logits"}
    found = set()
    for edge in edges:
        reader = f"reader {edge.receiver}<{edge.slot}>" if edge.slot else str(edge.receiver)
        if str(edge.sender) in behind and reader in ahead:
            found.add(str(edge))
    return found


@pytest.mark.parametrize("anatomy", ANATOMIES.values(), ids=ANATOMIES)
def test_connected_keeps_what_lies_on_a_path(anatomy: Anatomy) -> None:
    rng = np.random.default_rng(len(anatomy.writers))
    sizes = set()
    for share in np.tile([0.02, 0.05, 0.1, 0.2, 0.4], 10):
        mask = anatomy.edge_mask & (rng.random(anatomy.edge_mask.shape) < share)
        kept = connected(anatomy, mask)
        edges = list(from_mask(anatomy, mask, CONDITIONS).edges)
        assert {str(e) for e in from_mask(anatomy, kept, CONDITIONS).edges} == on_a_path(anatomy, edges)
        assert (connected(anatomy, kept) == kept).all(), "once is enough"
        assert not (kept & ~mask).any()
        sizes.add(int(kept.sum()))
    assert len(sizes) > 10, "the masks try something"


@pytest.mark.parametrize("anatomy", ANATOMIES.values(), ids=ANATOMIES)
def test_the_full_model_is_connected_and_the_empty_one_has_no_edge(anatomy: Anatomy) -> None:
    assert (connected(anatomy, anatomy.edge_mask) == anatomy.edge_mask).all()
    assert not connected(anatomy, np.zeros_like(anatomy.edge_mask)).any()


def test_connected_circuits_have_paths_through_every_node() -> None:
    anatomy = ANATOMIES["grouped"]
    rng = np.random.default_rng(1)
    mask = connected(anatomy, anatomy.edge_mask & (rng.random(anatomy.edge_mask.shape) < 0.15))
    graph = from_mask(anatomy, mask, CONDITIONS).graph
    for node in graph:
        assert nx.has_path(graph, "input", node)
        assert nx.has_path(graph, node, "logits")


def test_the_example_in_the_documentation_is_a_circuit() -> None:
    page = (Path(__file__).parents[2] / "docs" / "circuit-json.md").read_text(encoding="utf-8")
    data = strict(page.split("```json")[1].split("```")[0])
    assert Circuit.from_dict(data).as_dict() == data
