"""What the interactive circuit is drawn from: the strongest edges in their order, the model's parts, what is known of each.

The page prunes as ``circuit/curve.circuits`` does: the first n edges of the ranking, and of these what lies on a way from the
input to the logits. For that it needs the order of the writers, what each of them reads, and the ranked edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitfind.backups.report import MEANING, BackupReport
from circuitfind.circuit.curve import edge_order, edge_strengths
from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.scores import Scores
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import Kind, Node, parse_node, parse_reader
from circuitfind.output.dot_units import HEADS, shown_name, step
from circuitfind.output.words import Words

MOST = 4000
"""Edges that a page carries."""
MOST_BY_POSITION = 60_000
"""Scores of single positions that it carries."""
EFFECTS = ("noising", "denoising", "direct")

Data = dict[str, Any]


def circuit_graph(
    circuit: Circuit,
    scores: Scores,
    words: Words,
    *,
    views: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    backups: BackupReport | None = None,
    most: int = MOST,
) -> Data:
    """Of a run that ends in a circuit.

    Args:
        circuit: As it was pruned, with its backups.
        scores: Of all edges, or of all nodes.
        words: Labels and hints.
        views: As in ``views.json``.
        evaluation: As in ``evaluation.json``.
        backups: All that the search for them found.
        most: Edges to carry at the most.

    Returns:
        ``writers`` in the order of the forward pass, each with the readers that it ``reads``; ``edges`` as columns ``w``, ``r``
        (indices of these) and ``s`` (scores), the strongest first; ``own``, the circuit's own edges in the same columns;
        ``nodes`` by name; ``curve``, where sizes were measured; ``positions`` and the scores of each.
    """
    anatomy = circuit.anatomy
    ranked, values, scored = _ranking(anatomy, scores, most)
    own = [anatomy.index_of(edge) for edge in circuit.edges]
    rows = sorted({w for w, _ in (*ranked, *own)} | {anatomy.row_of(n) for n in _beside(circuit)})
    kept_rows = {w: i for i, w in enumerate(rows)}
    columns = sorted({r for _, r in (*ranked, *own)})
    kept_columns = {r: i for i, r in enumerate(columns)}

    def as_columns(edges: Sequence[tuple[int, int]], given: Iterable[float]) -> Data:
        return {
            "w": [kept_rows[w] for w, _ in edges],
            "r": [kept_columns[r] for _, r in edges],
            "s": [_short(value) for value in given],
        }

    writers = [anatomy.writers[w] for w in rows]
    readers = [anatomy.reader_names[r] for r in columns]
    place = {name: i for i, name in enumerate(readers)}
    own_scores = [circuit.edge_scores.get(str(edge), math.nan) for edge in circuit.edges]
    if scores.level == "node" and scored:
        own_scores = [float(values[at]) for at in own]
    names = [*map(str, writers), *(str(parse_reader(name)[0]) for name in readers)]
    told = _Told(circuit, scores, words, views, evaluation, backups)
    return {
        "kind": "circuit",
        "level": scores.level,
        "metric": circuit.conditions.metric,
        "writers": [str(node) for node in writers],
        "readers": readers,
        "reads": [[place[name] for name in anatomy.readers_of(node) if name in place] for node in writers],
        "sources": [kept_rows[row] for row in anatomy.source_rows if row in kept_rows],
        "edges": as_columns(ranked, (float(values[at]) for at in ranked)),
        "own": as_columns(own, own_scores),
        "serves": _serves(anatomy, names),
        "scored": scored,
        "total": anatomy.n_edges,
        "total_nodes": len(anatomy.writers) + 1,
        "layers": anatomy.n_layers,
        "nodes": told.nodes(dict.fromkeys(names)),
        "backups": [
            {**row, "stands_in": backup.stands_in}
            for row, backup in zip(circuit.as_dict()["backups"], circuit.backups, strict=True)
        ],
        "minimality": _minimality(evaluation, "edges"),
        "curve": _curve(views),
        **_by_position(scores, ranked, rows),
    }


def feature_graph(graph: FeatureGraph, words: Words) -> Data:
    """Of a run that ends in a feature graph: its own nodes and edges, nothing to prune anew."""
    labels = {**words.texts, **graph.labels}
    nodes = [*graph.nodes, *dict.fromkeys(e.receiver for e in graph.edges if e.receiver.kind is Kind.LOGITS)]
    writers = [str(node) for node in nodes if node.kind is not Kind.LOGITS]
    readers = list(dict.fromkeys(edge.reader for edge in graph.edges))
    rows, columns = ({name: i for i, name in enumerate(found)} for found in (writers, readers))
    own = {
        "w": [rows[str(edge.sender)] for edge in graph.edges],
        "r": [columns[edge.reader] for edge in graph.edges],
        "s": [_short(graph.weight(edge)) for edge in graph.edges],
    }
    return {
        "kind": "features",
        "level": "edge",
        "metric": graph.conditions.metric,
        "writers": writers,
        "readers": readers,
        "reads": [[columns[name]] if name in columns else [] for name in writers],
        "sources": [],
        "edges": {"w": [], "r": [], "s": []},
        "own": own,
        "serves": [],
        "scored": 0,
        "total": None,
        "total_nodes": graph.n_active,
        "layers": max((node.layer for node in nodes), default=0) + 1,
        "nodes": {
            str(node): {
                **_place(node, parallel=False),
                "score": _short(graph.score(node)),
                "label": labels.get(str(node), labels.get(str(node.bare))),
            }
            for node in nodes
        },
        "backups": [],
        "minimality": {},
        "curve": None,
        "positions": None,
    }


def _ranking(
    anatomy: Anatomy, scores: Scores, most: int
) -> tuple[list[tuple[int, int]], Float[np.ndarray, "writer reader"], int]:
    """The strongest edges, the score or strength of every edge, and how many have one.

    None where the circuit is made of other parts than were scored: then there is nothing to prune it anew by.
    """
    if scores.anatomy != anatomy:
        return [], np.full(anatomy.edge_mask.shape, np.nan), 0
    strengths = edge_strengths(scores)
    scored = int((~np.isnan(strengths)).sum())
    ranked = edge_order(anatomy, strengths)[: min(scored, most)]
    return ranked, np.asarray(scores.values) if scores.level == "edge" else strengths, scored


class _Told:
    """What is known of single nodes."""

    def __init__(
        self,
        circuit: Circuit,
        scores: Scores,
        words: Words,
        views: Mapping[str, Any] | None,
        evaluation: Mapping[str, Any] | None,
        backups: BackupReport | None,
    ) -> None:
        self.circuit, self.words, self.anatomy = circuit, words, circuit.anatomy
        self.scores = {
            str(n): v for n, v in zip(scores.anatomy.writers, scores.node_values.tolist(), strict=True)
        }
        self.minimality = _minimality(evaluation, "nodes")
        self.effects = _effects(views)
        self.findings: dict[str, list[Data]] = {}
        for one in backups.findings if backups is not None else ():
            row = {
                "kind": one.kind,
                "meaning": MEANING[one.kind],
                "covers": list(one.covers),
                "reader": one.reader,
                "share": _short(one.share),
                "reasons": list(one.reasons),
            }
            self.findings.setdefault(one.name, []).append(row)

    def nodes(self, names: Iterable[str]) -> dict[str, Data]:
        """By name; what is not known is left out."""
        return {name: self._node(name) for name in names}

    def _node(self, name: str) -> Data:
        node = parse_node(name)
        bare = str(node.bare)
        score = self.scores.get(bare, math.nan)
        found = {
            **_place(node, parallel=self.anatomy.parallel),
            "score": _short(score),
            "role": self.circuit.roles.get(bare),
            "label": self.words.labels.get(bare),
            "hint": self.words.hints.get(bare),
            "effects": self.effects.get(bare),
            "minimality": self.minimality.get(bare),
            "findings": self.findings.get(bare),
        }
        return {key: value for key, value in found.items() if value is not None}


def _place(node: Node, *, parallel: bool) -> Data:
    """Where a node stands, as in pictures: keys and values below their heads, the MLP above unless it runs beside them."""
    if node.kind is Kind.INPUT:
        rank = (-1, 0)
    elif node.kind is Kind.LOGITS:
        rank = (1 << 20, 0)
    elif node.kind is Kind.KV:
        rank = (node.layer, 0)
    else:
        rank = (node.layer, HEADS if node.kind is Kind.HEAD else step(node, parallel=parallel))
    found: Data = {"kind": node.kind.name.lower(), "rank": list(rank), "short": shown_name(node)}
    if node.kind not in (Kind.INPUT, Kind.LOGITS):
        found |= {"layer": node.layer}
    if node.position:
        found["position"] = node.position
    return found


def _beside(circuit: Circuit) -> set[Node]:
    """Backups and what they cover: drawn beside the circuit, whether the strongest edges touch them or not."""
    return {node.bare for backup in circuit.backups for node in (backup.node, *backup.covers)}


def _serves(anatomy: Anatomy, names: Sequence[str]) -> list[list[str]]:
    """Pairs of a key/value head and a head that it serves, of those that are there."""
    there = set(names)
    kv = (node for node in map(parse_node, dict.fromkeys(names)) if node.kind is Kind.KV)
    return [[str(node), str(head)] for node in kv for head in anatomy.served_by(node) if str(head) in there]


def _effects(views: Mapping[str, Any] | None) -> dict[str, Data]:
    """By node and kind of effect: value and the ends of its interval."""
    found = None if views is None else views.get("effects")
    if not found:
        return {}
    made: dict[str, Data] = {}
    for kind in EFFECTS:
        one = found.get(kind)
        if one is None:
            continue
        for name, value, low, high in zip(found["nodes"], one["value"], one["low"], one["high"], strict=True):
            if value is not None:
                made.setdefault(name, {})[kind] = [_short(value), _short(low), _short(high)]
    return made


def _minimality(evaluation: Mapping[str, Any] | None, level: str) -> dict[str, Data]:
    """What each part adds to faithfulness, where ``evaluate`` measured it."""
    found = ((evaluation or {}).get("minimality") or {}).get(level)
    return (
        {}
        if found is None
        else {
            row["part"]: {**row["contribution"], "superfluous": row["superfluous"]} for row in found["parts"]
        }
    )


def _curve(views: Mapping[str, Any] | None) -> Data | None:
    """Sizes at which circuits of the strongest edges were measured."""
    found = None if views is None else views.get("curve")
    keys = ("ablation", "n_prompts", "edges", "connected", "faithfulness")
    return {key: found[key] for key in keys} if found else None


def _by_position(scores: Scores, ranked: Sequence[tuple[int, int]], rows: Sequence[int]) -> Data:
    """Scores of single positions: of the first edges of the ranking, or of the nodes."""
    table, names = scores.by_position, scores.position_names
    if table is None or names is None or not ranked:
        return {"positions": None}
    if scores.level == "node":
        return {
            "positions": list(names),
            "nodes_at": [[_short(float(x)) for x in row[list(rows)]] for row in table],
        }
    count = min(len(ranked), MOST_BY_POSITION // max(len(names), 1))
    index = tuple(np.array(ranked[:count], dtype=int).reshape(-1, 2).T)
    return {
        "positions": list(names),
        "edges_at": [[_short(float(x)) for x in row[index]] for row in table],
        "nodes_at": [[_short(float(x)) for x in np.nansum(row, axis=1)[list(rows)]] for row in table],
    }


def _short(value: float | None) -> float | None:
    """Six figures: as many as a page shows, with room to spare."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
