"""Exported graphs are what circuit-tracer's frontend and Neuronpedia read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict, Field

from circuitfind.attribution.export import pairing, slug_of, to_circuit_tracer
from circuitfind.attribution.graph import NodeKind
from circuitfind.attribution.prune import PrunedGraph, prune
from tests.attribution.graphs import random_graph

STRICT = ConfigDict(strict=True, extra="forbid")


class Metadata(BaseModel):
    """Of circuit-tracer's files; Neuronpedia adds what is optional here."""

    model_config = STRICT
    slug: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    scan: str
    transcoder_list: list[str]
    prompt_tokens: list[str]
    prompt: str
    node_threshold: float | None
    schema_version: Literal[1]
    info: dict[str, Any]
    generation_settings: dict[str, Any]
    pruning_settings: dict[str, float]


class QParams(BaseModel):
    model_config = STRICT
    pinnedIds: list[str]  # noqa: N815
    supernodes: list[list[str]]
    linkType: Literal["both"]  # noqa: N815
    clickedId: str  # noqa: N815
    sg_pos: str


class Node(BaseModel):
    model_config = STRICT
    node_id: str
    feature: int
    layer: str
    ctx_idx: Annotated[int, Field(ge=0)]
    feature_type: Literal["cross layer transcoder", "mlp reconstruction error", "embedding", "logit"]
    token_prob: Annotated[float, Field(ge=0, le=1)]
    is_target_logit: bool
    run_idx: int
    reverse_ctx_idx: int
    jsNodeId: str  # noqa: N815
    clerp: str
    influence: Annotated[float, Field(ge=0, le=1.0001)] | None
    activation: float | None


class Link(BaseModel):
    model_config = STRICT
    source: str
    target: str
    weight: float


class File(BaseModel):
    model_config = STRICT
    metadata: Metadata
    qParams: QParams  # noqa: N815
    nodes: list[Node]
    links: list[Link]


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


TEXT, NUMBER, INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
NEURONPEDIA = _object(
    "metadata qParams nodes links",
    metadata=_object(
        "slug scan prompt_tokens prompt",
        slug=TEXT,
        scan=TEXT,
        prompt=TEXT,
        prompt_tokens={"type": "array", "items": TEXT},
        node_threshold=NUMBER,
        info=_object("", generator=_object("", name=TEXT, version=TEXT, url=TEXT)) | {"required": []},
        generation_settings={
            "type": "object",
            "properties": {
                "max_n_logits": INTEGER,
                "desired_logit_prob": NUMBER,
                "batch_size": INTEGER,
                "max_feature_nodes": INTEGER,
            },
        },
        pruning_settings={
            "type": "object",
            "properties": {"node_threshold": NUMBER, "edge_threshold": NUMBER},
        },
    ),
    qParams={
        "type": "object",
        "properties": {
            "pinnedIds": {"type": "array", "items": TEXT},
            "supernodes": {"type": "array"},
            "linkType": TEXT,
            "clickedId": TEXT,
            "sg_pos": TEXT,
        },
    },
    nodes={
        "type": "array",
        "items": _object(
            "node_id feature layer ctx_idx feature_type jsNodeId clerp",
            node_id=TEXT,
            feature={"type": ["integer", "null"]},
            layer={"type": ["string", "integer"]},
            ctx_idx=INTEGER,
            feature_type=TEXT,
            jsNodeId=TEXT,
            clerp=TEXT,
            influence={"type": ["number", "null"]},
            activation={"type": ["number", "null"]},
        ),
    },
    links={
        "type": "array",
        "items": _object("source target weight", source=TEXT, target=TEXT, weight=NUMBER),
    },
)
"""What Neuronpedia asks of an uploaded graph: its keys and their types."""
NEURONPEDIA["properties"]["metadata"]["properties"]["info"]["properties"]["generator"]["required"] = []


def check_export(data: dict[str, Any]) -> File:
    """Valid for both readers, and whole in itself."""
    jsonschema.validate(data, NEURONPEDIA)
    found = File.model_validate_json(json.dumps(data, allow_nan=False))
    ids = [node.node_id for node in found.nodes]
    assert len(set(ids)) == len(ids)
    assert len({node.jsNodeId + f"@{node.ctx_idx}" for node in found.nodes}) == len(ids)
    assert {end for link in found.links for end in (link.source, link.target)} <= set(ids)
    assert len({(link.source, link.target) for link in found.links}) == len(found.links)
    assert sum(node.is_target_logit for node in found.nodes) == 1
    for node in found.nodes:
        layer, index, position = node.node_id.rsplit("_", 2)
        assert (layer, int(position)) == (node.layer, node.ctx_idx)
        if node.feature_type == "cross layer transcoder":
            assert node.feature == pairing(int(layer), int(index))
            assert node.jsNodeId == f"{layer}_{index}-0"
            assert node.activation is not None
        elif node.feature_type == "mlp reconstruction error":
            assert (node.feature, index) == (-1, "-1")
        elif node.feature_type == "embedding":
            assert (layer, node.feature) == ("E", node.ctx_idx)
        else:
            assert node.feature == int(index)
            assert node.clerp.startswith('Output "')
    return found


@pytest.fixture(scope="module")
def pruned() -> PrunedGraph:
    return prune(random_graph(2), 0.8, 0.9)


def test_an_export_is_valid_and_says_what_the_graph_says(pruned: PrunedGraph) -> None:
    found = check_export(to_circuit_tracer(pruned))
    graph, nodes = pruned.graph, pruned.graph.nodes
    assert len(found.nodes) == len(pruned.nodes)
    assert len(found.links) == len(pruned.weights) > 10
    by_id = {node.node_id: node for node in found.nodes}
    names = {}
    for i in pruned.nodes:
        layer = {NodeKind.TOKEN: "E", NodeKind.LOGIT: str(graph.n_layers + 1)}.get(
            NodeKind(int(nodes.kind[i])), str(nodes.layer[i])
        )
        names[int(i)] = f"{layer}_{nodes.index[i]}_{nodes.position[i]}"
        node = by_id[names[int(i)]]
        if node.feature_type == "logit":
            assert node.influence is None
            assert node.token_prob == graph.probability[i - graph.n_sources]
        else:
            assert node.influence == pytest.approx(pruned.cumulative[i])
    wanted = {
        (names[int(s)], names[int(t)]): w
        for s, t, w in zip(pruned.sources, pruned.targets, pruned.weights, strict=True)
    }
    assert {(link.source, link.target): link.weight for link in found.links} == wanted
    assert found.metadata.prompt == graph.prompt
    assert found.metadata.prompt_tokens == list(graph.pieces)
    assert (found.metadata.slug, found.metadata.scan) == ("a-b-c-d", "model")
    assert found.metadata.node_threshold == 0.8


def test_names_can_be_chosen(pruned: PrunedGraph) -> None:
    found = check_export(to_circuit_tracer(pruned, slug="my-graph", scan="gpt2-small"))
    assert (found.metadata.slug, found.metadata.scan) == ("my-graph", "gpt2-small")


def test_labels_are_clerps(pruned: PrunedGraph) -> None:
    nodes = pruned.graph.nodes
    named = next(int(i) for i in pruned.nodes if nodes.kind[i] == NodeKind.FEATURE)
    bare = nodes.name(named).partition("@")[0]
    found = check_export(to_circuit_tracer(pruned, labels={bare: "months", "t9.f9": "nowhere"}))
    told = {node.clerp for node in found.nodes if node.feature_type != "logit"}
    assert told == {"", "months"}


def test_line_ends_are_shown(pruned: PrunedGraph) -> None:
    graph = replace(pruned.graph, pieces=("a", "\n", "\t", " b"), logit_pieces=("\r\n", "w"))
    found = check_export(to_circuit_tracer(replace(pruned, graph=graph)))
    assert found.metadata.prompt_tokens == ["a", "⏎", "→", " b"]
    assert any(node.clerp.startswith('Output "↵⏎"') for node in found.nodes)


def test_pairing_is_one_to_one() -> None:
    assert pairing(0, 116505) == 6786882270  # as circuit-tracer numbers the feature 0_116505
    assert pairing(15, 24829) == 308649419
    assert len({pairing(x, y) for x in range(40) for y in range(40)}) == 1600


@pytest.mark.parametrize(
    ("text", "slug"), [("The cat, in — the Hat!", "the-cat-in-the-hat"), ("…", "graph"), ("x" * 99, "x" * 60)]
)
def test_slugs(text: str, slug: str) -> None:
    assert slug_of(text) == slug
