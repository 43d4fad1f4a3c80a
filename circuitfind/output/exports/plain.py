"""A circuit or a feature graph as names and attributes, for programs that read graphs: no None, no NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit
from circuitfind.names import LOGITS, UNITS, Edge, Kind, Node
from circuitfind.output.words import Words

SERVES = "serves"
"""Key of the edge from a key/value head to a head that it serves; no edge of the circuit, but paths run through it."""
_INDEXED = (Kind.HEAD, Kind.KV, *UNITS)

Attributes = dict[str, Any]


@dataclass(frozen=True)
class Plain:
    """A directed graph in which two nodes may have several edges.

    Attributes:
        nodes: Attributes by name, from the input to the logits: ``kind``, and where there are any ``layer``, ``index``,
            ``position``, ``units``, ``score``, ``role``, ``label`` and ``backups``.
        edges: (sender, receiver, key, attributes): ``name``, and where there are any ``slot`` and ``score``. The key is
            the slot, ``serves``, or empty.
        facts: What it holds under, as texts and numbers.
    """

    nodes: Mapping[str, Attributes]
    edges: tuple[tuple[str, str, str, Attributes], ...]
    facts: Mapping[str, str | float]

    @property
    def counts(self) -> dict[str, int]:
        return {"nodes": len(self.nodes), "edges": len(self.edges)}

    @property
    def title(self) -> str:
        return f"{self.facts['task']} on {self.facts['model']}"


def plain(what: Circuit | FeatureGraph, words: Words | None = None) -> Plain:
    """The graph of a circuit, or of features."""
    words = words or Words()
    circuit = isinstance(what, Circuit)
    found = _of_circuit(what, words) if isinstance(what, Circuit) else _of_features(what, words)
    nodes, edges = found
    facts: dict[str, str | float] = {"of": "circuit" if circuit else "feature graph"}
    facts |= {name: value for name, value in vars(what.conditions).items() if value}
    for one in what.evaluations:
        key = f"faithfulness {one.ablation}"
        facts |= {key: one.faithfulness.value} if math.isfinite(one.faithfulness.value) else {}
    return Plain(nodes, tuple(edges), {"task": "", "model": "", **facts})


def _of_circuit(
    circuit: Circuit, words: Words
) -> tuple[dict[str, Attributes], list[tuple[str, str, str, Attributes]]]:
    covered: dict[str, list[str]] = {}
    for backup in circuit.backups:
        for node in backup.covers:
            covered.setdefault(str(node.bare), []).append(str(backup.node))
    nodes = {}
    for node in circuit.nodes:
        bare = str(node.bare)
        nodes[str(node)] = {
            **_basic(node, circuit.node_scores.get(bare, math.nan)),
            **_given("role", circuit.roles.get(str(node)) or circuit.roles.get(bare)),
            **_given("label", words.labels.get(str(node)) or words.labels.get(bare)),
            **_given("backups", covered.get(bare)),
        }
    edges = [_edge(edge, circuit.edge_scores.get(str(edge), math.nan)) for edge in circuit.edges]
    edges += [
        (u, v, SERVES, {"name": f"{u} serves {v}", "slot": SERVES})
        for u, v, key in circuit.graph.edges(keys=True)
        if key == SERVES
    ]
    return nodes, edges


def _of_features(
    graph: FeatureGraph, words: Words
) -> tuple[dict[str, Attributes], list[tuple[str, str, str, Attributes]]]:
    texts = {**words.labels, **graph.labels}
    ends = [e.receiver for e in graph.edges if e.receiver.kind is LOGITS.kind]
    nodes = {}
    for node in dict.fromkeys([*graph.nodes, *ends]):
        label = texts.get(str(node)) or texts.get(str(node.bare))
        nodes[str(node)] = {**_basic(node, graph.score(node)), **_given("label", label)}
    return nodes, [_edge(edge, graph.weight(edge)) for edge in graph.edges]


def _basic(node: Node, score: float) -> Attributes:
    found: Attributes = {"kind": node.kind.name.lower()}
    if node.kind not in (Kind.INPUT, Kind.LOGITS):
        found["layer"] = node.layer
    if node.kind in _INDEXED:
        found["index"] = node.index
    return {
        **found,
        **_given("position", node.position),
        **(_given("units", list(node.units)) if len(node.units) > 1 else {}),
        **_number("score", score),
    }


def _edge(edge: Edge, score: float) -> tuple[str, str, str, Attributes]:
    attributes = {"name": str(edge), **_given("slot", edge.slot), **_number("score", score)}
    return str(edge.sender), str(edge.receiver), edge.slot or "", attributes


def _given(name: str, value: Any) -> Attributes:
    return {name: value} if value else {}


def _number(name: str, value: float) -> Attributes:
    return {name: float(value)} if math.isfinite(value) else {}


def flat(attributes: Mapping[str, Any]) -> Attributes:
    """The same without lists, which XML forms do not hold, and without characters that XML forbids."""
    return {name: _flat(value) for name, value in attributes.items()}


def _flat(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return clean(value) if isinstance(value, str) else value


def clean(text: str) -> str:
    """Text with a sign in the place of each character that XML 1.0 cannot hold."""
    return "".join(_allowed(text))


def _allowed(text: str) -> Iterator[str]:
    for sign in text:
        code = ord(sign)
        fine = code in (9, 10, 13) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000
        yield sign if fine else "\ufffd"
