"""A circuit or a feature graph as Neuronpedia and circuit-tracer's frontend read it.

Both show nodes over the tokens of one prompt, and a circuit is one for many prompts. So the columns are ``(all positions)`` and
``(answer)``, where the logits stand, or the named positions where a circuit keeps them apart. Two columns at least: the
frontend leaves out what stands in more than two thirds of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import circuitfind
from circuitfind.attribution.export import SCHEMA_VERSION, pairing, shown, slug_of
from circuitfind.circuit.tracer_read import OWN, node_of
from circuitfind.names import Kind, Node, parse_node
from circuitfind.output.exports.form import Exported, Source
from circuitfind.output.exports.plain import SERVES, Plain, plain

ENDING = ".neuronpedia.json"
ANYWHERE, ANSWER = "(all positions)", "(answer)"
TYPES = {
    Kind.INPUT: "embedding",
    Kind.LOGITS: "logit",
    Kind.FEATURE: "cross layer transcoder",
    Kind.ERROR: "mlp reconstruction error",
    Kind.HEAD: "attention head",
    Kind.MLP: "mlp",
    Kind.NEURON: "neuron",
    Kind.REST: "mlp rest",
}
"""``cross layer transcoder`` is what the frontend calls every feature; the last four are types of our own, shown as circles."""


def neuronpedia(source: Source) -> Exported:
    """The graph as JSON.

    A graph that was read from such a file is written as it was, with people's labels put in. Of a circuit, the edges into
    ``q``, ``k`` and ``v`` of a head become one link, which lists them under ``slots``; an edge into a shared key/value head
    becomes one to each head of the circuit that it serves, its score divided among them.
    """
    if source.tracer is not None:
        return _again(source, source.tracer)
    found = plain(source.what, source.words)
    columns = _columns(found)
    nodes = [
        (name, parse_node(name), attributes)
        for name, attributes in found.nodes.items()
        if parse_node(name).kind is not Kind.KV
    ]
    numbers = _numbers(nodes)
    ids: dict[str, str] = {}
    influence = _influence(nodes)
    rows: list[dict[str, Any]] = []
    for name, node, attributes in nodes:
        column = columns.index(_column(node))
        layer = _layer(node, nodes)
        told = {key: attributes[key] for key in ("score", "label", "role") if key in attributes}
        ids[name] = f"{layer}_{_middle(node, numbers[name])}_{column}"
        rows.append(
            {
                "node_id": ids[name],
                "feature": column if node.kind is Kind.INPUT else numbers[name],
                "layer": layer,
                "ctx_idx": column,
                "feature_type": TYPES[node.kind],
                "token_prob": 0.0,
                "is_target_logit": node.kind is Kind.LOGITS,
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": f"{layer}_{_middle(node, numbers[name])}-{column}",
                "clerp": _clerp(node, attributes),
                "influence": influence.get(name),
                "activation": None,
                OWN: {"name": name, **told},
            }
        )
    links, unscored = _links(source, found, ids)
    data = {
        "metadata": _metadata(source, found, columns),
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": rows,
        "links": links,
    }
    return _exported(data, _notes(found, unscored))


def _again(source: Source, tracer: Mapping[str, Any]) -> Exported:
    """The file as it was, with labels where it has none."""
    texts = source.words.labels
    data = {**tracer, "nodes": [dict(row) for row in tracer["nodes"]]}
    if texts:
        for row in data["nodes"]:
            node = node_of(row)
            label = texts.get(str(node)) or texts.get(str(node.bare))
            row["clerp"] = row.get("clerp") or label or ""
    return _exported(data, [])


def _exported(data: Mapping[str, Any], notes: Sequence[str]) -> Exported:
    text = json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"
    counts = {"nodes": len(data["nodes"]), "edges": len(data["links"])}
    return Exported({ENDING: text}, counts, tuple(notes))


def _column(node: Node) -> str:
    return node.position or (ANSWER if node.kind is Kind.LOGITS else ANYWHERE)


def _columns(found: Plain) -> list[str]:
    """The tokens that nodes stand over; numbered positions in their order."""
    used = dict.fromkeys(_column(parse_node(name)) for name in found.nodes)
    named = [one for one in used if one not in (ANYWHERE, ANSWER)]
    named.sort(key=lambda one: (not one.isdecimal(), int(one) if one.isdecimal() else 0))
    return [*([ANYWHERE] if ANYWHERE in used or not named else []), *named, ANSWER]


def _layer(node: Node, nodes: Sequence[tuple[str, Node, Mapping[str, Any]]]) -> str:
    if node.kind is Kind.INPUT:
        return "E"
    if node.kind is Kind.LOGITS:
        return str(2 + max((n.layer for _, n, _ in nodes if n.kind is not Kind.LOGITS), default=0))
    return str(node.layer)


def _numbers(nodes: Sequence[tuple[str, Node, Mapping[str, Any]]]) -> dict[str, int]:
    """``feature`` of each node: what the frontend tells the nodes of a layer apart by, the same at all positions.

    Transcoders' and SAEs' features have what circuit-tracer gives them, errors -1 and all else a number below.
    """
    found: dict[str, int] = {}
    taken: dict[tuple[int, int], Node] = {}
    free = -2
    for name, node, _ in nodes:
        bare = node.bare
        known = next((number for (_, number), one in taken.items() if one == bare), None)
        if known is None:
            number = {Kind.ERROR: -1, Kind.LOGITS: 0}.get(node.kind)
            if node.kind is Kind.FEATURE and not node.members:
                number = pairing(node.layer, node.index)
            if number is None or (node.layer, number) in taken:
                number, free = free, free - 1
            known = number
            taken[node.layer, number] = bare
        found[name] = known
    return found


def _middle(node: Node, number: int) -> str:
    """The middle of an id: the number of a feature as circuit-tracer writes it, else what the node is called."""
    if node.kind is Kind.FEATURE and number == pairing(node.layer, node.index):
        return str(node.index)
    return str(node.bare) if node.kind not in (Kind.INPUT, Kind.LOGITS) else "0"


def _clerp(node: Node, attributes: Mapping[str, Any]) -> str:
    """What the frontend writes beside a node. It looks for a probability in a logit's text, and breaks without one."""
    if node.kind in (Kind.INPUT, Kind.LOGITS):
        return ""
    said = [attributes[key] for key in ("label", "role") if key in attributes]
    return ": ".join([str(node.bare), *said[:1]]) if node.kind is not Kind.FEATURE or said else ""


def _influence(nodes: Sequence[tuple[str, Node, Mapping[str, Any]]]) -> dict[str, float]:
    """Cumulative share of |score|, the strongest node first, so that the frontend's slider hides the weak ones."""
    sizes = {name: abs(a["score"]) for name, n, a in nodes if "score" in a and n.kind is not Kind.LOGITS}
    total, so_far = sum(sizes.values()), 0.0
    found = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        so_far += sizes[name]
        found[name] = min(1.0, so_far / total) if total else 1.0
    return found


def _links(source: Source, found: Plain, ids: Mapping[str, str]) -> tuple[list[dict[str, Any]], int]:
    """Links, and how many of the edges in them have no score."""
    served: dict[str, list[str]] = {}
    for u, v, key, _ in found.edges:
        if key == SERVES:
            served.setdefault(u, []).append(v)
    slots: dict[tuple[str, str], dict[str, float | None]] = {}
    unscored = 0
    for u, v, key, attributes in found.edges:
        if key == SERVES:
            continue
        receivers = served.get(v, []) if v not in ids else [v]
        unscored += "score" not in attributes
        for receiver in receivers:
            score = attributes["score"] / len(receivers) if "score" in attributes else None
            slots.setdefault((u, receiver), {})[key] = score
    links = []
    for (u, v), scores in slots.items():
        weight = math.fsum(score for score in scores.values() if score is not None)
        link: dict[str, Any] = {"source": ids[u], "target": ids[v], "weight": weight}
        links.append(link if set(scores) == {""} else {**link, "slots": scores})
    return links, unscored


def _metadata(source: Source, found: Plain, columns: Sequence[str]) -> dict[str, Any]:
    conditions = source.what.conditions
    example = next((row["clean"] for row in source.prompts if isinstance(row.get("clean"), str)), None)
    told = f"{found.facts['of']} of {found.title}" + (
        f", found on prompts such as: {example}" if example else ""
    )
    held = "; ".join(f"{name} {value}" for name, value in found.facts.items() if name != "of" and value != "")
    return {
        "slug": slug_of(f"{conditions.task} {conditions.model}"),
        "scan": re.split(r"[/\\]", conditions.model.rstrip("/\\"))[-1] or "unknown",
        "transcoder_list": [],
        "prompt_tokens": [shown(column) for column in columns],
        "prompt": told,
        "node_threshold": 1.0,
        "schema_version": SCHEMA_VERSION,
        "info": {
            "description": held,
            "generator": {"name": "circuitfind", "version": circuitfind.__version__},
        },
        "generation_settings": {"dictionaries": conditions.dictionaries},
        "pruning_settings": {},
        OWN: vars(conditions).copy(),
    }


def _notes(found: Plain, unscored: int) -> list[str]:
    notes = []
    if unscored:
        notes.append(f"{unscored:,} edges have no score; they add 0 to the weight of their link")
    kinds = {attributes["kind"] for attributes in found.nodes.values()}
    own = [
        word for kind, word in (("head", "heads"), ("mlp", "MLPs"), ("neuron", "neurons")) if kind in kinds
    ]
    if own:
        notes.append(
            f"{' and '.join(own)} are no features: Neuronpedia has no dashboards for them (docs/exports.md)"
        )
    return notes
