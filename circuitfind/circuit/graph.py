"""Circuit: an immutable graph of writers and readers, with what is known about it.

Inside it is a keyed ``networkx.MultiDiGraph``: one head can reach another through its ``<q>``, ``<k>`` and
``<v>`` at once, so the key of an edge is its slot. Outside it is the JSON described in docs/circuit-json.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Bool

from circuitfind.circuit.json_form import check_form, filled, finite, number, read_object, reading
from circuitfind.config import SCHEMA_VERSION
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import LOGITS, UNITS, Edge, Kind, Node, parse_edge, parse_node
from circuitfind.shown import Shown

FORMAT = "circuitfind.circuit"


@dataclass(frozen=True)
class Conditions:
    """What a circuit holds under. Never "the" circuit: another ablation or counterfactual gives another
    one.
    """

    task: str
    model: str
    method: str
    metric: str
    ablation: str
    direction: str
    counterfactual: str
    rule: str
    """How it was pruned, such as ``faithfulness 0.9``."""
    nodes: str = "heads,mlps"
    """What it is made of."""
    dictionaries: str = ""
    """Where the dictionaries are whose features are nodes; empty for those that come with the model, and for none."""
    errors: str = ""
    """Whether what they miss is ``frozen`` or ``recomputed`` in patched passes."""
    model_b: str = ""
    """The model whose values cut edges carry, where two models are compared."""


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Evaluation(Shown):
    """How much of the behaviour a circuit carries under one ablation.

    ``faithfulness = (m(C) - m(empty)) / (m(full) - m(empty))``, a ratio of means over prompts.
    """

    ablation: str
    metric: str
    faithfulness: Interval
    circuit: float
    full: float
    empty: float
    n_prompts: int

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "faithfulness": vars(self.faithfulness).copy()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """Read what ``as_dict`` wrote.

        Raises:
            KeyError, TypeError: It is incomplete.
        """
        return filled(cls, {**data, "faithfulness": filled(Interval, data["faithfulness"])})


@dataclass(frozen=True)
class Backup:
    """A component that acts when others are removed. It is no part of the circuit: faithfulness does not count it.

    Attributes:
        kind: ``backup``, ``second-order backup`` or ``relief`` (docs/backups-json.md).
        covers: What must be removed for it to act.
        reader: What it writes to: ``logits``, ``m5``, ``a9.h6<q>``.
        share: How much of the direct effect that was lost it makes up for, as two ablations bear out.
    """

    node: Node
    kind: str
    covers: tuple[Node, ...]
    reader: str
    share: float

    @property
    def stands_in(self) -> bool:
        """Whether it writes the answer, rather than working less against it."""
        return self.kind != "relief"


@dataclass(frozen=True)
class Circuit(Shown):
    """A sparse subgraph of a model.

    Attributes:
        anatomy: The model's parts.
        edges: Sorted from the input to the logits.
        edge_scores: By edge name; NaN where the method gave none.
        node_scores: By writer name.
        conditions: Task, model, method, metric, ablation, counterfactual, rule.
        evaluations: One for each ablation under which it was measured.
        roles: By node name, where a known circuit of the task names them.
        backups: What stands in for others, the strongest claims first; beside the circuit, not in it.
    """

    anatomy: Anatomy
    edges: tuple[Edge, ...]
    conditions: Conditions
    edge_scores: Mapping[str, float] = field(default_factory=dict)
    node_scores: Mapping[str, float] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    backups: tuple[Backup, ...] = ()

    def __post_init__(self) -> None:
        # A key of a query head is one of its key/value head: one edge, one name, one score.
        named = {edge: _canonical(self.anatomy, edge) for edge in self.edges}
        names = {str(given): str(edge) for given, edge in named.items()}
        scores = {names.get(name, name): score for name, score in self.edge_scores.items()}
        object.__setattr__(self, "edges", tuple(sorted(set(named.values()), key=lambda e: e.order)))
        object.__setattr__(self, "edge_scores", scores)
        for name in ("node_scores", "roles"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        for edge in self.edges:
            self.anatomy.index_of(edge)
        for backup in self.backups:
            for node in (backup.node, *backup.covers):
                self.anatomy.row_of(node)

    @cached_property
    def graph(self) -> nx.MultiDiGraph[str]:
        """Nodes by name (kind, layer, index, score), edges keyed by slot (``""`` for MLPs and logits),
        frozen.

        A key/value head is joined to the heads that it serves by an edge with the key ``serves``, so that
        paths run through it; it is no edge of the circuit.
        """
        graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        for node in self.nodes:
            score = self.node_scores.get(str(node.bare), math.nan)
            graph.add_node(
                str(node), kind=node.kind.name.lower(), layer=node.layer, index=node.index, score=score
            )
        for edge in self.edges:
            score = self.edge_scores.get(str(edge), math.nan)
            graph.add_edge(str(edge.sender), str(edge.receiver), key=edge.slot or "", score=score)
        for node in self.nodes:
            if node.kind is Kind.KV:
                served = self.anatomy.served_by(node)
                for head in self.heads:
                    if head.bare in served:
                        graph.add_edge(str(node), str(head), key="serves", score=math.nan)
        frozen: nx.MultiDiGraph[str] = nx.freeze(graph)
        return frozen

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node that an edge touches, from the input to the logits."""
        found = {n for e in self.edges for n in (e.sender, e.receiver)}
        return tuple(sorted(found, key=lambda n: n.order))

    @property
    def heads(self) -> tuple[Node, ...]:
        return tuple(n for n in self.nodes if n.kind is Kind.HEAD)

    @property
    def mlps(self) -> tuple[Node, ...]:
        return tuple(n for n in self.nodes if n.kind is Kind.MLP)

    @property
    def units(self) -> tuple[Node, ...]:
        """Neurons and features; some that act together are one."""
        return tuple(n for n in self.nodes if n.kind in UNITS)

    @property
    def errors(self) -> tuple[Node, ...]:
        """What dictionaries miss."""
        return tuple(n for n in self.nodes if n.kind is Kind.ERROR)

    @property
    def share_of_edges(self) -> float:
        return len(self.edges) / self.anatomy.n_edges

    @cached_property
    def mask(self) -> Bool[np.ndarray, "writer reader"]:
        """True for the edges of the circuit."""
        mask = np.zeros(self.anatomy.edge_mask.shape, dtype=bool)
        for edge in self.edges:
            mask[self.anatomy.index_of(edge)] = True
        mask.flags.writeable = False
        return mask

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, version 1 (docs/circuit-json.md). NaN and infinity are written as null."""
        return {
            "format": FORMAT,
            "version": SCHEMA_VERSION,
            "conditions": vars(self.conditions).copy(),
            "anatomy": self.anatomy.as_dict(),
            "counts": {
                "nodes": len(self.nodes),
                "heads": len(self.heads),
                "mlps": len(self.mlps),
                "units": len(self.units),
                "errors": len(self.errors),
                "edges": len(self.edges),
                "edges_in_model": self.anatomy.n_edges,
            },
            "nodes": [
                {
                    "name": str(n),
                    "kind": n.kind.name.lower(),
                    "layer": None if n.kind in (Kind.INPUT, Kind.LOGITS) else n.layer,
                    "index": n.index if n.kind in (Kind.HEAD, Kind.KV, *UNITS) else None,
                    "position": n.position,
                    "score": finite(self.node_scores.get(str(n.bare))),
                    "role": self.roles.get(str(n.bare)),
                    **({"units": list(n.units)} if n.units else {}),
                }
                for n in self.nodes
            ],
            "edges": [
                {
                    "name": str(e),
                    "sender": str(e.sender),
                    "receiver": str(e.receiver),
                    "slot": e.slot,
                    "score": finite(self.edge_scores.get(str(e))),
                }
                for e in self.edges
            ],
            "evaluations": [e.as_dict() for e in self.evaluations],
            "backups": [
                {
                    "name": str(b.node),
                    "kind": b.kind,
                    "covers": [str(n) for n in b.covers],
                    "reader": b.reader,
                    "share": finite(b.share),
                    "role": self.roles.get(str(b.node)),
                }
                for b in self.backups
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str | None = None) -> Circuit:
        """Read the JSON form.

        Raises:
            UsageError: It is another format or version, or it names parts that its model does not have.
        """
        again = "give a circuit.json that this program wrote, or run discover again"
        check_form(data, "circuit", FORMAT, SCHEMA_VERSION, where=where, hint=again)
        with reading("circuit", where=where, hint="run discover again, or compare docs/circuit-json.md"):
            edges = tuple(parse_edge(e["name"]) for e in data["edges"])
            nodes = [(str(parse_node(n["name"]).bare), n) for n in data["nodes"]]
            backups = [(_backup(b), b.get("role")) for b in data.get("backups", ())]  # none in older files
            roles = {str(b.node): str(role) for b, role in backups if role}
            return cls(
                anatomy=Anatomy.from_dict(data["anatomy"]),
                edges=edges,
                conditions=filled(Conditions, data["conditions"]),
                edge_scores={
                    str(edge): number(e["score"]) for edge, e in zip(edges, data["edges"], strict=True)
                },
                node_scores={name: number(n["score"]) for name, n in nodes},
                evaluations=tuple(map(Evaluation.from_dict, data["evaluations"])),
                roles=roles | {name: str(n["role"]) for name, n in nodes if n.get("role")},
                backups=tuple(b for b, _ in backups),
            )

    @classmethod
    def load(cls, path: Path) -> Circuit:
        """Read a ``circuit.json``."""
        data = read_object(path, "circuit", file="circuit.json", otherwise=" or a run folder")
        return cls.from_dict(data, where=str(path))


def from_mask(
    anatomy: Anatomy,
    mask: Bool[np.ndarray, "writer reader"],
    conditions: Conditions,
    *,
    edge_values: np.ndarray | None = None,
    node_values: np.ndarray | None = None,
    evaluations: Iterable[Evaluation] = (),
    roles: Mapping[str, str] | None = None,
) -> Circuit:
    """The circuit of the edges that ``mask`` marks, with the scores of its edges and of all writers in it."""
    chosen = [(int(w), int(r)) for w, r in np.argwhere(mask)]
    edges = tuple(anatomy.edge_at(w, r) for w, r in chosen)
    scores = (
        {}
        if edge_values is None
        else {str(e): float(edge_values[i]) for e, i in zip(edges, chosen, strict=True)}
    )
    used = {e.sender for e in edges} | {e.receiver for e in edges} & set(anatomy.writers)
    nodes = {} if node_values is None else {str(n): float(node_values[anatomy.row_of(n)]) for n in used}
    return Circuit(
        anatomy=anatomy,
        edges=edges,
        conditions=conditions,
        edge_scores=scores,
        node_scores=nodes,
        evaluations=tuple(evaluations),
        roles={k: v for k, v in (roles or {}).items() if parse_node(k) in used},
    )


def connected(anatomy: Anatomy, mask: Bool[np.ndarray, "writer reader"]) -> Bool[np.ndarray, "writer reader"]:
    """The edges that lie on some way from the input, or from an error that reads nothing, to the logits.

    A head is reached when any of its inputs is: a head that only its query depends on still carries what it
    attends to.
    """
    from_input = {anatomy.writer_names[row] for row in anatomy.source_rows}
    for node in anatomy.writers[1:]:
        columns = [anatomy.reader_index[name] for name in anatomy.readers_of(node)]
        if any(str(anatomy.writers[w]) in from_input for w in np.flatnonzero(mask[:, columns].any(axis=1))):
            from_input.add(str(node))
    alive = np.array([name in from_input for name in anatomy.writer_names])
    kept = mask & alive[:, None]
    useful_readers = {str(LOGITS)}
    to_logits = np.zeros(len(anatomy.writers), dtype=bool)
    for row in range(len(anatomy.writers) - 1, -1, -1):
        reads = [anatomy.reader_names[r] for r in np.flatnonzero(kept[row])]
        if any(name in useful_readers for name in reads):
            to_logits[row] = True
            useful_readers.update(anatomy.readers_of(anatomy.writers[row]))
    readable = np.array([name in useful_readers for name in anatomy.reader_names])
    return np.asarray(kept & readable[None, :] & to_logits[:, None])


def _canonical(anatomy: Anatomy, edge: Edge) -> Edge:
    """``a0.h0->a1.h3<k>`` is ``a0.h0->a1.kv1<k>`` where key/value heads are shared."""
    receiver = edge.receiver
    if not anatomy.grouped or receiver.kind is not Kind.HEAD or edge.slot not in ("k", "v"):
        return edge
    shared = replace(receiver, kind=Kind.KV, index=anatomy.kv_of(receiver.index))
    return replace(edge, receiver=shared)


def _backup(data: Mapping[str, Any]) -> Backup:
    covers = tuple(parse_node(name) for name in data["covers"])
    return Backup(
        parse_node(data["name"]), str(data["kind"]), covers, str(data["reader"]), number(data["share"])
    )
