"""The JSON of EAP-IG: names, counts, both ways, against a reader written from its description, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from circuitfind.circuit.curve import circuits, edge_order, edge_strengths
from circuitfind.circuit.graph import Circuit, Conditions, connected, from_mask
from circuitfind.circuit.mib import from_eap_ig, read_circuit, to_eap_ig
from circuitfind.circuit.mib_read import COORDINATES
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UnsupportedError
from circuitfind.model.anatomy import Anatomy

GPT2 = Anatomy(12, 12, 12)
SMALL = Anatomy(2, 2, 2)
CONDITIONS = Conditions(
    "ioi", "gpt2", "eap", "logit-diff", "resample", "noising", "s2-flip", "faithfulness 0.9"
)

SCHEMA = {
    "type": "object",
    "required": ["cfg", "nodes", "edges"],
    "properties": {
        "cfg": {
            "type": "object",
            "required": ["n_layers", "n_heads", "parallel_attn_mlp", "d_model"],
            "properties": {
                "n_layers": {"type": "integer", "minimum": 1},
                "n_heads": {"type": "integer", "minimum": 1},
                "d_model": {"type": "integer", "minimum": 1},
                "parallel_attn_mlp": {"type": "boolean"},
            },
        },
        "nodes": {
            "type": "object",
            "required": ["input", "logits"],
            "propertyNames": {"pattern": r"^(input|logits|m\d+|a\d+\.h\d+)$"},
            "additionalProperties": {
                "type": "object",
                "required": ["in_graph"],
                "properties": {
                    "in_graph": {"type": "boolean"},
                    "score": {"type": "number"},
                    "neurons": {"type": "array", "items": {"type": "boolean"}},
                    "neurons_scores": {"type": "array", "items": {"type": "number"}},
                },
            },
        },
        "edges": {
            "type": "object",
            "propertyNames": {
                "pattern": r"^(input|m\d+|a\d+\.h\d+)->(m\d+|logits|a\d+\.h\d+<[qkv]>)$",
            },
            "additionalProperties": {
                "type": "object",
                "required": ["score", "in_graph"],
                "properties": {"score": {"type": "number"}, "in_graph": {"type": "boolean"}},
            },
        },
    },
}
"""What EAP-IG's reader takes."""


def every_edge(layers: int, heads: int, *, parallel: bool = False) -> list[str]:
    """The names of a model's edges, walked up its residual stream; nothing of ours is used."""
    stream, found = ["input"], []
    for layer in range(layers):
        own = [f"a{layer}.h{head}" for head in range(heads)]
        found += [f"{one}->{head}<{slot}>" for one in stream for head in own for slot in "qkv"]
        below = stream if parallel else stream + own
        found += [f"{one}->m{layer}" for one in below]
        stream = [*stream, *own, f"m{layer}"]
    return found + [f"{one}->logits" for one in stream]


@dataclass
class Reader:
    """A graph read in the way that EAP-IG reads one: everything is made from cfg, then filled by name."""

    scores: dict[str, float] = field(default_factory=dict)
    in_graph: dict[str, bool] = field(default_factory=dict)
    nodes: dict[str, bool] = field(default_factory=dict)
    nodes_scores: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Reader:
        data = json.loads(text)
        cfg = data["cfg"]
        names = every_edge(cfg["n_layers"], cfg["n_heads"], parallel=cfg["parallel_attn_mlp"])
        writers = dict.fromkeys(name.partition("->")[0] for name in names)
        made = cls(dict.fromkeys(names, 0.0), dict.fromkeys(names, False), dict.fromkeys(writers, False))
        for name, one in data["nodes"].items():
            if name == "logits":
                continue
            assert name in made.nodes
            made.nodes[name] = one["in_graph"]
            if "score" in one:
                made.nodes_scores[name] = one["score"]
        for name, one in data["edges"].items():
            assert name in made.scores
            made.scores[name], made.in_graph[name] = one["score"], one["in_graph"]
        return made

    def top(self, count: int, *, absolute: bool) -> set[str]:
        """The strongest edges, and of those what is left when nodes without a way in or out go, until none does."""
        size = (lambda name: abs(self.scores[name])) if absolute else (lambda name: self.scores[name])
        kept = set(sorted(self.scores, key=size, reverse=True)[:count])
        while True:
            starts = {name.partition("->")[0] for name in kept}
            ends = {name.partition("->")[2].partition("<")[0] for name in kept}
            nodes = (starts & ends) | {"input"} & starts
            left = {
                name
                for name in kept
                if name.partition("->")[0] in nodes
                and (end := name.partition("->")[2].partition("<")[0]) in nodes | {"logits"}
                and end != "input"
            }
            if left == kept:
                return kept
            kept = left


def made(anatomy: Anatomy, *, seed: int = 0, unscored: int = 0, share: float = 0.3) -> tuple[Circuit, Scores]:
    """A random circuit and the scores that it comes from, some of them missing."""
    rng = np.random.default_rng(seed)
    values = np.where(anatomy.edge_mask, rng.normal(size=anatomy.edge_mask.shape), np.nan)
    for row, column in np.argwhere(anatomy.edge_mask)[:unscored]:
        values[row, column] = np.nan
    mask = connected(anatomy, anatomy.edge_mask & (rng.random(anatomy.edge_mask.shape) < share))
    nodes = rng.normal(size=len(anatomy.writers))
    scores = Scores(anatomy, "edge", values, "eap", "noising", "logit-diff", "resample", nodes=nodes)
    circuit = from_mask(anatomy, mask, CONDITIONS, edge_values=values, node_values=nodes)
    return circuit, scores


def text_of(circuit: Circuit, scores: Scores | None, d_model: int = 8) -> str:
    return json.dumps(to_eap_ig(circuit, scores, d_model), allow_nan=False)


def back(text: str) -> tuple[Circuit, Scores | None]:
    return from_eap_ig(json.loads(text), where="x.json")


def alike(one: Circuit, other: Circuit) -> bool:
    return (
        one.anatomy == other.anatomy
        and one.edges == other.edges
        and one.conditions == other.conditions
        and str(one.edge_scores) == str(other.edge_scores)  # NaN is NaN
        and dict(one.node_scores) == dict(other.node_scores)
    )


def test_gpt2_small_has_its_32491_edges_and_reads_back_equal(tmp_path: Path) -> None:
    circuit, scores = made(GPT2, unscored=7, share=0.02)
    data = to_eap_ig(circuit, scores, 768)
    assert len(data["edges"]) == 32_491
    assert list(data["edges"]) == every_edge(12, 12)
    assert len(data["nodes"]) == 1 + 12 * 13 + 1
    assert data["cfg"] == {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": False, "d_model": 768}
    assert list(data["edges"])[:3] == ["input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>"]
    jsonschema.validate(data, SCHEMA)

    path = tmp_path / "importances.json"
    path.write_text(json.dumps(data, allow_nan=False), encoding="utf-8")
    again, read = read_circuit(path)
    assert alike(again, circuit)
    assert read is not None
    assert read.level == "edge"
    np.testing.assert_array_equal(read.values, scores.values)
    assert [read.method, read.direction, read.metric] == ["eap", "noising", "logit-diff"]
    assert to_eap_ig(again, read, 768) == data

    theirs = Reader.read(path.read_text(encoding="utf-8"))
    assert len(theirs.scores) == 32_491
    assert {name for name, kept in theirs.in_graph.items() if kept} == {str(edge) for edge in circuit.edges}
    assert {name for name, kept in theirs.nodes.items() if kept} == {
        str(node) for node in circuit.nodes if str(node) != "logits"
    }
    for row, column in np.argwhere(GPT2.edge_mask):
        value = scores.values[row, column]
        name = str(GPT2.edge_at(int(row), int(column)))
        assert theirs.scores[name] == (0.0 if np.isnan(value) else value)


@pytest.mark.parametrize("parallel", [False, True])
def test_counts_of_other_shapes(parallel: bool) -> None:
    circuit, scores = made(Anatomy(3, 2, 2, parallel=parallel))
    data = to_eap_ig(circuit, scores, 8)
    assert list(data["edges"]) == every_edge(3, 2, parallel=parallel)
    jsonschema.validate(data, SCHEMA)
    again, read = back(json.dumps(data))
    assert alike(again, circuit)
    assert read is not None
    np.testing.assert_array_equal(read.values, scores.values)


def test_models_without_mlps_come_back_but_are_marked() -> None:
    circuit, scores = made(Anatomy(2, 2, 2, has_mlp=False))
    data = to_eap_ig(circuit, scores, 8)
    assert data["cfg"]["attn_only"] is True
    assert not [name for name in data["edges"] if "m" in name]
    Reader.read(json.dumps(data))
    assert alike(back(json.dumps(data))[0], circuit)


@pytest.mark.parametrize("absolute", [True, False])
def test_the_circuits_that_the_benchmark_runs_are_ours(absolute: bool) -> None:
    """Its choice of the strongest edges and its pruning, on the file, against ours, on the scores."""
    anatomy = Anatomy(3, 3, 3)
    for seed in range(3):
        circuit, scores = made(anatomy, seed=seed)
        theirs = Reader.read(text_of(circuit, scores))
        order = edge_order(anatomy, edge_strengths(scores, signed=not absolute))
        shares = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
        for share, mask in zip(shares, circuits(anatomy, order, shares), strict=True):
            ours = {str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(mask)}
            assert ours == theirs.top(int(share * anatomy.n_edges), absolute=absolute)


# Scores that are not there, and scores of nodes.


def test_edges_without_a_score_are_0_and_marked() -> None:
    circuit, scores = made(SMALL, unscored=4)
    data = to_eap_ig(circuit, scores, 8)
    marked = [name for name, one in data["edges"].items() if one.get("scored") is False]
    first = [str(SMALL.edge_at(int(w), int(r))) for w, r in np.argwhere(SMALL.edge_mask)[:4]]
    assert set(marked) == set(first)
    assert all(data["edges"][name]["score"] == 0.0 for name in marked)
    _, read = back(json.dumps(data))
    assert read is not None
    np.testing.assert_array_equal(read.values, scores.values)


def test_a_circuit_alone_has_the_scores_of_its_own_edges() -> None:
    circuit, scores = made(SMALL)
    again, read = back(text_of(circuit, None))
    assert alike(again, circuit)
    assert read is not None
    expected = np.where(circuit.mask, scores.values, np.nan)
    np.testing.assert_array_equal(read.values, expected)


def test_membership_alone_gives_no_scores() -> None:
    circuit, _ = made(SMALL)
    data = json.loads(text_of(circuit, None))
    del data["circuitfind"]
    for one in data["edges"].values():
        del one["score"]
    again, read = from_eap_ig(data)
    assert read is None
    assert again.edges == circuit.edges
    assert again.conditions == Conditions("", "", "unknown", "", "", "", "", "in_graph of an EAP-IG file")
    for one in data["edges"].values():
        one |= {"score": 0.0, "in_graph": int(one["in_graph"])}
    assert from_eap_ig(data)[1] is None


def test_scores_that_are_nan_in_the_file_were_not_scored() -> None:
    """Python's JSON writes NaN as a word, and so does EAP-IG."""
    circuit, scores = made(SMALL)
    data = to_eap_ig(circuit, scores, 8)
    del data["circuitfind"]
    data["edges"]["input->m0"]["score"] = float("nan")
    _, read = back(json.dumps(data))
    assert read is not None
    assert np.isnan(read.values[SMALL.index_of("input->m0")])
    assert int(np.isnan(read.values[SMALL.edge_mask]).sum()) == 1


def node_level(missing: int = 0) -> tuple[Circuit, Scores]:
    circuit, scores = made(SMALL)
    assert scores.nodes is not None
    values = scores.nodes.copy()
    values[:missing] = np.nan
    by_node = Scores(SMALL, "node", values, "atp", "noising", "logit-diff", "resample")
    return from_mask(SMALL, circuit.mask, CONDITIONS, node_values=values), by_node


def test_node_level() -> None:
    circuit, scores = node_level(missing=1)
    data = to_eap_ig(circuit, scores, 8)
    jsonschema.validate(data, SCHEMA)
    assert {one["score"] for one in data["edges"].values()} == {0.0}
    theirs = Reader.read(json.dumps(data))
    assert theirs.nodes_scores == dict(zip(SMALL.writer_names[1:], scores.values[1:].tolist(), strict=True))
    again, read = back(json.dumps(data))
    assert read is not None
    assert read.level == "node"
    np.testing.assert_array_equal(read.values, scores.values)
    assert again.edges == circuit.edges
    del data["circuitfind"]
    again, read = back(json.dumps(data))
    assert read is not None
    assert read.level == "node"
    assert again.edges == circuit.edges


def test_nodes_without_edges_stand_for_all_edges_between_them() -> None:
    circuit, scores = node_level()
    data = to_eap_ig(circuit, scores, 8)
    kept = ["input", "a0.h1", "m1"]
    for name, one in data["nodes"].items():
        one["in_graph"] = name in (*kept, "logits")
    for one in data["edges"].values():
        one["in_graph"] = False
    again, _ = back(json.dumps(data))
    expected = [
        name
        for name in every_edge(2, 2)
        if name.partition("->")[0] in kept and name.partition("->")[2].partition("<")[0] in (*kept, "logits")
    ]
    assert {str(edge) for edge in again.edges} == set(expected)
    assert len(expected) == 3 + 1 + 1 + 3


def neuron_level(kept: Callable[[str], bool] = lambda name: True) -> tuple[dict[str, Any], np.ndarray]:
    circuit, _ = made(SMALL)
    data = to_eap_ig(circuit, None, 5)
    del data["circuitfind"]
    table = np.random.default_rng(1).normal(size=(len(SMALL.writers), 5))
    for one in data["edges"].values():
        one["score"] = 0.0
    for row, name in enumerate(SMALL.writer_names):
        data["nodes"][name] |= {"neurons": [True] * 4 + [kept(name)], "neurons_scores": table[row].tolist()}
    return data, table


def test_neuron_level_scores_sum_to_those_of_nodes() -> None:
    """EAP-IG's neurons are the dimensions of what a node writes: a gradient times a difference, summed, is the node's."""
    data, table = neuron_level()
    jsonschema.validate(data, SCHEMA)
    circuit, scores = back(json.dumps(data))
    assert scores is not None
    assert scores.level == "node"
    np.testing.assert_allclose(scores.values, table.sum(1), rtol=1e-15)
    np.testing.assert_array_equal(scores.extra[COORDINATES], table)
    written = to_eap_ig(circuit, scores, 5)
    for name in SMALL.writer_names:
        assert written["nodes"][name]["neurons_scores"] == data["nodes"][name]["neurons_scores"]
    _, again = back(json.dumps(written))
    assert again is not None
    np.testing.assert_array_equal(again.extra[COORDINATES], table)


def test_part_of_what_a_node_writes_is_refused_where_the_circuit_has_the_node() -> None:
    data, _ = neuron_level(lambda name: name != "a0.h0")
    data["nodes"]["a0.h0"]["in_graph"] = True
    with pytest.raises(UnsupportedError, match=r"keeps 4 of the 5 dimensions of what 'a0\.h0' writes"):
        back(json.dumps(data))
    data["nodes"]["a0.h0"]["in_graph"] = False
    for name, one in data["edges"].items():
        one["in_graph"] &= not name.startswith("a0.h0->")
    back(json.dumps(data))


def test_older_files() -> None:
    """Nodes were truth values, and neurons stood beside them."""
    circuit, scores = made(SMALL)
    data = to_eap_ig(circuit, scores, 3)
    del data["circuitfind"]
    data["nodes"] = {name: one["in_graph"] for name, one in data["nodes"].items()}
    data["neurons"] = {"a0.h0": [True] * 3}
    again, _ = back(json.dumps(data))
    assert again.edges == circuit.edges
    data["nodes"]["a0.h0"], data["neurons"]["a0.h0"] = True, [True, False, True]
    with pytest.raises(UnsupportedError, match="keeps 2 of the 3 dimensions"):
        back(json.dumps(data))
