"""Every form is read back by a program that reads it, and says what the circuit says."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import struct
import subprocess
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import jsonschema
import networkx as nx
import pytest

from circuitfind.attribution.export import to_circuit_tracer
from circuitfind.attribution.prune import prune
from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Backup, Circuit
from circuitfind.circuit.tracer_read import from_circuit_tracer
from circuitfind.errors import UnsupportedError
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import parse_node
from circuitfind.output.exports import FORMS, Exported, Source, stem
from circuitfind.output.exports.plain import clean, flat, plain
from circuitfind.output.words import Words
from tests.attribution.graphs import random_graph
from tests.attribution.test_export import NEURONPEDIA
from tests.circuit.test_feature_graph import graph as feature_graph
from tests.output.circuits import GROUPED, SMALL, make, random_circuit

ODD = 'a "<&>" label\x07 – ümlaut'
"""A label with everything that XML and CSV trip over."""

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


def small() -> Circuit:
    return make(
        {
            "input->a0.h0<v>": 0.5,
            "input->a0.h1<q>": math.nan,
            "a0.h0->a1.h1<q>": 1.5,
            "a0.h0->a1.h1<k>": -0.25,
            "a0.h0->a1.h1<v>": 1e-9,
            "a0.h1->m0": 0.125,
            "m0->logits": -2.0,
            "a1.h1->logits": 3.0,
        },
        SMALL,
        roles={"a0.h0": "previous token"},
        node_scores={"input": 1.0, "a0.h0": 0.75, "a1.h1": -1.5},
        backups=(Backup(parse_node("a1.h0"), "backup", (parse_node("a1.h1"),), "logits", 0.4),),
    )


def grouped() -> Circuit:
    return make(
        {
            "input->a0.h1<q>": 1.0,
            "input->a1.kv0<k>": 0.5,
            "input->a1.kv0<v>": 0.75,
            "a0.h1->a1.h0<q>": 2.0,
            "a0.h1->a1.h1<q>": -2.0,
            "a1.h0->logits": 1.0,
            "a1.h1->logits": 1.0,
        },
        GROUPED,
    )


def neurons() -> Circuit:
    anatomy = Anatomy(1, 2, 2, parts=(("m0.n1", "m0.n2+5+7", "m0.rest"),))
    return make(
        {"input->m0.n1": 1.0, "m0.n1->logits": 0.5, "input->m0.n2+5+7": 2.0, "m0.n2+5+7->logits": -1.0},
        anatomy,
    )


CASES: dict[str, Circuit | FeatureGraph] = {
    "small": small(),
    "grouped": grouped(),
    "neurons": neurons(),
    "random": random_circuit(SMALL, 30, 1),
    "features": feature_graph(),
}
WORDS = Words(labels={"a1.h1": ODD, "m0": "=1+1"})


@pytest.fixture(params=CASES, ids=str)
def source(request: pytest.FixtureRequest) -> Source:
    return Source(CASES[request.param], words=WORDS)


def made(form: str, source: Source) -> Exported:
    return FORMS[form].make(source)


def content(form: str, source: Source) -> Any:
    (found,) = made(form, source).files.values()
    return found


def wanted(what: Circuit | FeatureGraph) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Nodes and edges by name, from the JSON form, without what is null: the slow way to the same."""
    data = what.as_dict()
    nodes = {
        row["name"]: {k: v for k, v in row.items() if k != "name" and v is not None} for row in data["nodes"]
    }
    for row in nodes.values():
        if len(row.get("units", ())) < 2:
            row.pop("units", None)
    if isinstance(what, FeatureGraph):
        ends = {row["receiver"] for row in data["edges"]} - nodes.keys()
        nodes |= {name: {"kind": "logits"} for name in ends}
        for name, row in nodes.items():
            node = parse_node(name)
            row |= {"index": node.index} if row["kind"] in ("feature", "head", "neuron") else {}
            row |= {"units": list(node.units)} if len(node.units) > 1 else {}
            if row["kind"] == "input":
                row.pop("layer", None)
    else:
        for backup in what.backups:
            for node in backup.covers:
                nodes[str(node)].setdefault("backups", []).append(str(backup.node))
    for name, label in WORDS.labels.items():
        if name in nodes:
            nodes[name]["label"] = label
    edges = {}
    for row in data["edges"]:
        score = row.get("score", row.get("weight"))
        edges[row["name"]] = {
            "ends": (row["sender"], row["receiver"]),
            **({"slot": row["slot"]} if row["slot"] else {}),
            **({"score": score} if score is not None else {}),
        }
    return nodes, edges


def of_network(graph: Any, *, drop: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of a networkx graph; key/value heads' ``serves`` edges are held against the anatomy elsewhere."""
    assert graph.is_directed()
    assert graph.is_multigraph()
    skip = {*drop, "id", "name", "key", "networkx_key", "source", "target"}
    nodes = {
        name: {k: v for k, v in data.items() if k not in {*drop, "id", "name", "value"}}
        for name, data in graph.nodes(data=True)
    }
    edges = {
        data["name"]: {"ends": (u, v), **{k: x for k, x in data.items() if k not in skip}}
        for u, v, data in graph.edges(data=True)
        if data.get("slot") != "serves"
    }
    return nodes, edges


def texts(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """As XML holds it."""
    return {name: flat(row) for name, row in nodes.items()}


def test_graphml(source: Source) -> None:
    text = content("graphml", source)
    graph = nx.read_graphml(io.BytesIO(text.encode()), force_multigraph=True)
    nodes, edges = wanted(source.what)
    assert of_network(graph) == (texts(nodes), edges)
    ids = [one.get("id") for one in ElementTree.fromstring(text).iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    assert graph.graph["task"] == source.what.conditions.task


def test_gexf(source: Source) -> None:
    text = content("gexf", source)
    graph = nx.read_gexf(io.BytesIO(text.encode()))
    nodes, edges = wanted(source.what)
    graph = nx.MultiDiGraph(graph)
    found_nodes, found_edges = of_network(graph)
    assert {
        name: {**row, "label": row.get("label", name)} for name, row in texts(nodes).items()
    } == found_nodes
    assert {
        name: {k: v for k, v in row.items() if k != "label"} for name, row in found_edges.items()
    } == edges
    assert "lastmodified" not in text
    assert f"task: {source.what.conditions.task}" in text


def test_cytoscape(source: Source) -> None:
    data = json.loads(content("cytoscape", source))
    graph = nx.cytoscape_graph(data)
    nodes, edges = wanted(source.what)
    assert of_network(graph, drop=("label",)) == (
        {name: {k: v for k, v in row.items() if k != "label"} for name, row in nodes.items()},
        edges,
    )
    labels = {row["data"]["id"]: row["data"]["label"] for row in data["elements"]["nodes"]}
    assert labels == {name: row.get("label", name) for name, row in nodes.items()}
    ids = [row["data"]["id"] for part in ("nodes", "edges") for row in data["elements"][part]]
    assert len(ids) == len(set(ids))


def test_node_link(source: Source) -> None:
    data = json.loads(content("node-link", source))
    graph = nx.node_link_graph(data, edges="edges")
    assert of_network(graph) == wanted(source.what)
    assert set(graph.edges(keys=True)) == {(u, v, key) for u, v, key, _ in plain(source.what).edges}
    if isinstance(source.what, Circuit):
        assert set(graph.edges(keys=True)) == set(source.what.graph.edges(keys=True))


def test_csv(source: Source) -> None:
    files = made("csv", source).files
    nodes, edges = wanted(source.what)
    rows = {row.pop("name"): row for row in csv.DictReader(io.StringIO(str(files[".nodes.csv"])))}
    assert rows.keys() == nodes.keys()
    for name, row in texts(nodes).items():
        shown = {k: "'=1+1" if v == "=1+1" else str(v) for k, v in row.items()}  # no formula
        assert {k: v for k, v in rows[name].items() if v} == shown
    found = {row["name"]: row for row in csv.DictReader(io.StringIO(str(files[".edges.csv"])))}
    assert {
        name: (row["sender"], row["receiver"]) for name, row in found.items() if row["slot"] != "serves"
    } == {name: row["ends"] for name, row in edges.items()}
    for name, row in edges.items():
        assert found[name]["slot"] == row.get("slot", "")
        assert found[name]["score"] == (str(row["score"]) if "score" in row else "")


@needs_dot
def test_pictures(source: Source) -> None:
    canon = subprocess.run(
        ["dot", "-Tcanon"], input=content("dot", source).encode(), capture_output=True, check=True
    ).stdout.decode()
    root = ElementTree.fromstring(content("svg", source))
    shown = "".join(root.itertext())
    nodes, _ = wanted(source.what)
    for name in nodes:
        assert name in canon
        assert name.replace("+5+7", " +2") in shown.replace("\xa0", " ") or "+" in name
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    png = content("png", source)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert min(width, height) > 100
    pdf = content("pdf", source)
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")


def test_neuronpedia(source: Source) -> None:
    data = json.loads(content("neuronpedia", source))
    jsonschema.validate(data, NEURONPEDIA)
    ids = [row["node_id"] for row in data["nodes"]]
    assert len(ids) == len(set(ids))
    assert len({(row["layer"], row["feature"], row["ctx_idx"]) for row in data["nodes"]}) == len(ids)
    assert {end for link in data["links"] for end in (link["source"], link["target"])} <= set(ids)
    assert len({(link["source"], link["target"]) for link in data["links"]}) == len(data["links"])
    tokens = data["metadata"]["prompt_tokens"]
    for row in data["nodes"]:
        assert 0 <= row["ctx_idx"] < len(tokens)
        assert row["influence"] is None or 0 <= row["influence"] <= 1
        # The frontend looks for a probability in the text of a logit, and leaves out what is over most of the tokens.
        assert row["feature_type"] != "logit" or row["clerp"] == ""
        assert sum(
            one["feature"] == row["feature"] for one in data["nodes"] if one["layer"] == row["layer"]
        ) <= (2 * len(tokens) / 3)


def test_neuronpedia_is_read_back(source: Source) -> None:
    if source.what is CASES["grouped"]:
        return  # has its own test below
    back = from_circuit_tracer(json.loads(content("neuronpedia", source)))
    nodes, edges = wanted(source.what)
    assert {str(n) for n in back.nodes} | {"logits"} == nodes.keys()
    assert {str(e) for e in back.edges} == edges.keys()
    for name, row in edges.items():
        unscored = (
            0.0 if "<" not in name else math.nan
        )  # a link must have a weight; slots may say that they have none
        assert back.edge_weights[name] == pytest.approx(row.get("score", unscored), nan_ok=True)
    assert {n: s for n, s in back.node_scores.items() if not math.isnan(s)} == {
        name: row["score"] for name, row in nodes.items() if "score" in row
    }
    assert back.conditions == source.what.conditions
    again = json.loads(content("neuronpedia", Source(back)))
    assert {(link["source"], link["target"]) for link in again["links"]} == {
        (link["source"], link["target"]) for link in json.loads(content("neuronpedia", source))["links"]
    }


def test_shared_keys_go_to_the_heads_that_they_serve() -> None:
    data = json.loads(content("neuronpedia", Source(grouped())))
    names = {row["node_id"]: row["circuitfind"]["name"] for row in data["nodes"]}
    assert "a1.kv0" not in names.values()
    links = {(names[one["source"]], names[one["target"]]): one for one in data["links"]}
    for head in ("a1.h0", "a1.h1"):
        assert links["input", head]["slots"] == {"k": 0.25, "v": 0.375}
        assert links["input", head]["weight"] == 0.625
    assert len(links) == 7


def test_serves_edges_are_marked() -> None:
    found = {(u, v) for u, v, key, row in plain(grouped()).edges if key == "serves" and "score" not in row}
    assert found == {("a1.kv0", "a1.h0"), ("a1.kv0", "a1.h1")}


def test_a_graph_of_circuit_tracer_is_written_as_it_was() -> None:
    data = to_circuit_tracer(prune(random_graph(2), 0.8, 0.9))
    source = Source(from_circuit_tracer(data), tracer=data)
    assert json.loads(content("neuronpedia", source)) == data
    feature = next(row for row in data["nodes"] if row["feature_type"] == "cross layer transcoder")
    layer, number, _ = feature["node_id"].split("_")
    labelled = Source(source.what, tracer=data, words=Words(labels={f"t{layer}.f{number}": "months"}))
    rows = {row["node_id"]: row for row in json.loads(content("neuronpedia", labelled))["nodes"]}
    assert rows[feature["node_id"]]["clerp"] == "months"
    assert all(
        row["clerp"] == old["clerp"]
        for row, old in zip(rows.values(), data["nodes"], strict=True)
        if row["clerp"] != "months"
    )


def test_our_own_form_reads_what_others_wrote() -> None:
    data = to_circuit_tracer(prune(random_graph(2), 0.8, 0.9))
    graph = from_circuit_tracer(data)
    again = FeatureGraph.from_dict(json.loads(content("json", Source(graph, tracer=data))))
    assert again.as_dict() == graph.as_dict()
    assert json.loads(content("json", Source(small()))) == small().as_dict()


@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"python", "png", "pdf", "svg"}))
def test_the_same_circuit_gives_the_same_file(form: str) -> None:
    assert made(form, Source(small(), words=WORDS, d_model=8)) == made(
        form, Source(small(), words=WORDS, d_model=8)
    )


@pytest.mark.parametrize("form", ["eap-ig", "python"])
def test_forms_of_circuits_refuse_features(form: str) -> None:
    with pytest.raises(UnsupportedError, match=f"cannot be written as {form}"):
        made(form, Source(feature_graph()))


def test_what_xml_cannot_hold() -> None:
    assert clean("a\x00b\ud800c\tü😀") == "a\ufffdb\ufffdc\tü😀"
    assert flat({"units": [1, 2], "label": "\x07", "score": 1.0}) == {
        "units": "1, 2",
        "label": "\ufffd",
        "score": 1.0,
    }


def test_large_circuits_say_what_a_picture_leaves_out() -> None:
    found = made("dot", Source(random_circuit(Anatomy(6, 8, 8), 600, 0)))
    assert "strongest of 600 edges" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("circuit.json", "circuit"),
        ("circuit.eap-ig.json", "circuit"),
        ("circuit-threshold-0.05.json", "circuit-threshold-0.05"),
        ("graph.neuronpedia.json", "graph"),
        ("graph", "graph"),
    ],
)
def test_stems(name: str, left: str) -> None:
    assert stem(name) == left
