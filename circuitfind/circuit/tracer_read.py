"""Attribution graphs in the JSON of circuit-tracer and Neuronpedia, read as feature graphs. No torch here.

A node is known by its ``feature_type``, ``layer`` and ``ctx_idx``; its number is what ``feature`` pairs with the layer (Cantor's
pairing), or else stands in the middle of ``node_id``. ``influence`` is cumulative, the most influential node first, so a
node's own share is the step from the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Conditions
from circuitfind.circuit.json_form import filled, read_object, reading
from circuitfind.errors import UnsupportedError
from circuitfind.names import LOGITS, SLOTS, Edge, Kind, Node, parse_node

_TOP = ("metadata", "nodes", "links")
OWN = "circuitfind"
"""Key of a node that holds its name here, in files that this program wrote."""
LONGEST = 80
"""Characters of a prompt that stands for its graph."""
_HINT = "give a graph JSON of circuit-tracer or Neuronpedia, with metadata, nodes and links"


def is_circuit_tracer(data: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the keys of such a graph."""
    kinds = (dict, list, list)
    return all(isinstance(data.get(key), kind) for key, kind in zip(_TOP, kinds, strict=True))


def load_circuit_tracer(path: Path) -> FeatureGraph:
    """Read a file.

    Raises:
        UsageError: It is no such graph, or incomplete.
        UnsupportedError: It has nodes of a type that is not known here.
    """
    return from_circuit_tracer(
        read_object(path, "attribution graph", file="graph of circuit-tracer"), where=str(path)
    )


def from_circuit_tracer(data: Mapping[str, Any], *, where: str | None = None) -> FeatureGraph:
    """Read a graph.

    Tokens are ``input@POSITION``, features ``t5.f88@POSITION``, errors ``t5.err@POSITION``, logits ``logits@POSITION-TOKEN``.
    Weights of edges stay as they are; the score of a node is its share of the influence.

    Raises:
        UsageError: It is no such graph, or incomplete.
        UnsupportedError: It has nodes of a type that is not known here.
    """
    with reading("attribution graph", where=where, hint=_HINT):
        tokens = [str(token) for token in data["metadata"]["prompt_tokens"]]
        read = [_Read.of(row, tokens, where) for row in data["nodes"]]
        by_id = {one.id: one for one in read}
        if len(by_id) != len(read):
            twice = next(one.id for i, one in enumerate(read) if one.id in {r.id for r in read[:i]})
            raise ValueError(f"two nodes have the id {twice!r}")
        weights: dict[str, float] = {}
        edges: list[Edge] = []
        for link in data["links"]:
            ends = [by_id.get(link[end]) for end in ("source", "target")]
            if ends[0] is None or ends[1] is None:
                gone = link["source"] if ends[0] is None else link["target"]
                raise ValueError(f"a link names {gone!r}, which no node has")
            for slot, weight in _slots(link, ends[1].node):
                edge = Edge(ends[0].node, ends[1].node, slot)
                edges.append(edge)
                weights[str(edge)] = weight
        own = data["metadata"].get(OWN)
        return FeatureGraph(
            nodes=tuple(one.node for one in read),
            edges=tuple(edges),
            conditions=_conditions(data["metadata"], own if isinstance(own, dict) else {}),
            node_scores=_scores(read),
            edge_weights=weights,
            labels={str(one.node): one.label for one in read if one.label},
        )


@dataclass(frozen=True)
class _Read:
    """A node as the file has it.

    Attributes:
        influence: Cumulative; NaN where there is none.
        score: Written by this program; NaN elsewhere.
    """

    id: str
    node: Node
    label: str
    influence: float
    score: float

    @classmethod
    def of(cls, row: Mapping[str, Any], tokens: Sequence[str], where: str | None) -> _Read:
        influence = row.get("influence")
        own = row.get(OWN)
        own = own if isinstance(own, dict) else {}
        score = own.get("score")
        node = node_of(row, where=where)
        label = str((own if own else row).get("label" if own else "clerp") or "")
        if node.kind is Kind.INPUT and not own:  # the frontend writes these itself
            at = int(row["ctx_idx"])
            label = f'"{tokens[at]}"' if 0 <= at < len(tokens) else ""
        return cls(
            id=str(row["node_id"]),
            node=node,
            label=label,
            influence=math.nan if influence is None else float(influence),
            score=math.nan if score is None else float(score),
        )


def node_of(row: Mapping[str, Any], *, where: str | None = None) -> Node:
    """The node that a row of ``nodes`` stands for.

    Raises:
        UnsupportedError: Its type is not known here.
        KeyError, TypeError, ValueError: It is incomplete.
    """
    own = row.get(OWN)
    if isinstance(own, dict) and "name" in own:
        return parse_node(own["name"])
    kind, at = str(row["feature_type"]), str(int(row["ctx_idx"]))
    if kind == "embedding":
        return Node(Kind.INPUT, position=at)
    if kind == "logit":
        return Node(
            LOGITS.kind, position=f"{at}-{_middle(row) if row['feature'] is None else int(row['feature'])}"
        )
    layer = int(row["layer"])
    if kind == "mlp reconstruction error":
        return Node(Kind.ERROR, layer, position=at, family="t")
    if "transcoder" in kind:
        return Node(Kind.FEATURE, layer, _number(row, layer), position=at, family="t")
    raise UnsupportedError(
        f"a node of the type '{kind}' ({row['node_id']}) has no place in a feature graph",
        where=where,
        hint="known: cross layer transcoder, mlp reconstruction error, embedding, logit",
    )


def _number(row: Mapping[str, Any], layer: int) -> int:
    """A feature's number in its layer."""
    paired = row["feature"]
    if paired is not None and paired >= 0:
        total = (math.isqrt(8 * int(paired) + 1) - 1) // 2
        number = int(paired) - total * (total + 1) // 2
        if total - number == layer and str(number) in str(row["node_id"]).split("_"):
            return number
    middle = _middle(row)
    return int(paired) if middle is None else middle


def _middle(row: Mapping[str, Any]) -> int | None:
    parts = str(row["node_id"]).split("_")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else None


def _slots(link: Mapping[str, Any], receiver: Node) -> list[tuple[str | None, float]]:
    """A link as edges: one for each input of a head where the file keeps them apart."""
    if receiver.kind not in (Kind.HEAD, Kind.KV):
        return [(None, float(link["weight"]))]
    apart = link.get("slots") or {}
    found = [
        (slot, math.nan if apart[slot] is None else float(apart[slot])) for slot in SLOTS if slot in apart
    ]
    if not found:
        raise ValueError(f"the link into {receiver} does not say into which of its inputs")
    return list(found)


def _scores(read: list[_Read]) -> dict[str, float]:
    """Shares of the influence, which cannot grow from one node to the next less influential one."""
    scores = {str(one.node): one.score for one in read if not math.isnan(one.score)}
    if scores:
        return scores
    before, step = 0.0, math.inf
    for one in sorted((r for r in read if not math.isnan(r.influence)), key=lambda r: r.influence):
        step = min(step, one.influence - before)
        before = one.influence
        scores[str(one.node)] = step
    return scores


def _conditions(metadata: Mapping[str, Any], own: Mapping[str, Any]) -> Conditions:
    if own:
        return filled(Conditions, own)
    pruning = metadata.get("pruning_settings") or {}
    generator = (metadata.get("info") or {}).get("generator") or {}
    settings = metadata.get("generation_settings") or {}
    told = ", ".join(
        f"{name.replace('_', ' ')} {value:g}" for name, value in pruning.items() if _is_number(value)
    )
    return Conditions(
        task=_named(metadata),
        model=str(metadata["scan"]),
        method=str(generator.get("name") or "attribution graph"),
        metric="influence",
        ablation="",
        direction="",
        counterfactual="",
        rule=told,
        nodes="features",
        dictionaries=str(settings.get("dictionaries") or ""),
        errors="frozen",
    )


def _named(metadata: Mapping[str, Any]) -> str:
    """The prompt where it is short, else the name of the graph."""
    prompt = str(metadata.get("prompt") or "").strip()
    return prompt if 0 < len(prompt) <= LONGEST else str(metadata["slug"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
