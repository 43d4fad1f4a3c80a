"""FeatureGraph: features, errors and other units as nodes, and what they do to each other. No torch here.

The JSON form is described in docs/feature-graph-json.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from circuitfind.circuit.graph import Conditions, Evaluation, Interval
from circuitfind.circuit.json_form import check_form, filled, finite, number, read_object, reading
from circuitfind.names import Edge, Kind, Node, Order, parse_edge, parse_node
from circuitfind.shown import Shown

FORMAT = "circuitfind.feature-graph"
VERSION = 1


@dataclass(frozen=True)
class Source:
    """A dictionary that nodes are features of.

    Attributes:
        name: What its nodes' names begin with: ``s5``, ``t3``.
        hook: Where it stands, such as ``blocks.5.hook_resid_post``.
        file: The file or folder that it was read from.
        activation: ``relu``, ``jumprelu`` or ``topk``.
        n_features: How many it has.
        n_active: How many of them fire on these prompts.
        features, errors: Sum of the scores of its features, and the score of its error; NaN where none was computed.
        effect: What its nodes do together, measured by ablating all of them; NaN where it was not measured.
    """

    name: str
    hook: str
    file: str
    activation: str
    n_features: int
    n_active: int
    features: float = math.nan
    errors: float = math.nan
    effect: float = math.nan


@dataclass(frozen=True)
class ErrorShare:
    """How much passes through what the dictionaries miss.

    Attributes:
        by_score: The errors' share of the sum of |score| over all nodes.
        without_errors: Faithfulness with every feature kept and every error ablated.
        errors_alone: Faithfulness with every error kept and every feature ablated.
    """

    by_score: float
    without_errors: Interval | None = None
    errors_alone: Interval | None = None


@dataclass(frozen=True)
class FeatureGraph(Shown):
    """Nodes by name, weighted edges, and what both hold under.

    Attributes:
        nodes: Any of names.py, each with a position where it has one; from the input to the logits.
        edges: Among them, and from them to the logits; none where only nodes were scored.
        conditions: Task, model, method, metric, ablation, counterfactual, rule.
        node_scores: By name; NaN where there is none.
        edge_weights: By edge name; in units of the metric.
        evaluations: One for each ablation under which the nodes were run alone.
        sources: The dictionaries.
        errors: How much passes through errors; None where it was not asked.
        n_active: Features that fire at all on these prompts: what the nodes were chosen from.
        labels: What a feature means, by node name, where that is known.
        minimal: Whether no node can be dropped alone.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    conditions: Conditions
    node_scores: Mapping[str, float] = field(default_factory=dict)
    edge_weights: Mapping[str, float] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    sources: tuple[Source, ...] = ()
    errors: ErrorShare | None = None
    n_active: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    minimal: bool = False

    def __post_init__(self) -> None:
        ends = {end for edge in self.edges for end in (edge.sender, edge.receiver)}
        every = sorted({*self.nodes, *(n for n in ends if n.kind is not Kind.LOGITS)}, key=node_order)
        object.__setattr__(self, "nodes", tuple(every))
        object.__setattr__(self, "edges", tuple(sorted(set(self.edges), key=lambda e: e.order)))
        for name in ("node_scores", "edge_weights", "labels"):
            object.__setattr__(self, name, dict(getattr(self, name)))

    @cached_property
    def features(self) -> tuple[Node, ...]:
        """The nodes that are features."""
        return tuple(n for n in self.nodes if n.kind is Kind.FEATURE)

    @cached_property
    def error_nodes(self) -> tuple[Node, ...]:
        """The nodes that are errors."""
        return tuple(n for n in self.nodes if n.kind is Kind.ERROR)

    def score(self, node: Node) -> float:
        return self.node_scores.get(str(node), math.nan)

    def weight(self, edge: Edge) -> float:
        return self.edge_weights.get(str(edge), math.nan)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form. NaN and infinity are written as null."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "conditions": vars(self.conditions).copy(),
            "counts": {
                "nodes": len(self.nodes),
                "features": len(self.features),
                "errors": len(self.error_nodes),
                "edges": len(self.edges),
                "active_features": self.n_active,
            },
            "minimal": self.minimal,
            "nodes": [
                {
                    "name": str(n),
                    "kind": n.kind.name.lower(),
                    "layer": n.layer,
                    "position": n.position,
                    "score": finite(self.score(n)),
                    "label": self.labels.get(str(n), self.labels.get(str(n.bare))),
                }
                for n in self.nodes
            ],
            "edges": [
                {
                    "name": str(e),
                    "sender": str(e.sender),
                    "receiver": str(e.receiver),
                    "slot": e.slot,
                    "weight": finite(self.weight(e)),
                }
                for e in self.edges
            ],
            "evaluations": [e.as_dict() for e in self.evaluations],
            "sources": [_finite_all(vars(s)) for s in self.sources],
            "errors": None if self.errors is None else _errors_dict(self.errors),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str | None = None) -> FeatureGraph:
        """Read the JSON form.

        Raises:
            UsageError: It is another format or version, or incomplete.
        """
        again = "give a graph.json that this program wrote, or make one with `circuitfind saes`"
        check_form(data, "feature graph", FORMAT, VERSION, where=where, hint=again)
        with reading(
            "feature graph", where=where, hint="make it again, or compare docs/feature-graph-json.md"
        ):
            nodes = {str(parse_node(n["name"])): n for n in data["nodes"]}
            edges = [(parse_edge(e["name"]), e["weight"]) for e in data["edges"]]
            return cls(
                nodes=tuple(map(parse_node, nodes)),
                edges=tuple(edge for edge, _ in edges),
                conditions=filled(Conditions, data["conditions"]),
                node_scores={name: number(n["score"]) for name, n in nodes.items()},
                edge_weights={str(edge): number(weight) for edge, weight in edges},
                evaluations=tuple(map(Evaluation.from_dict, data["evaluations"])),
                sources=tuple(_source(s) for s in data["sources"]),
                errors=None if data["errors"] is None else _errors(data["errors"]),
                n_active=int(data["counts"]["active_features"]),
                labels={name: str(n["label"]) for name, n in nodes.items() if n.get("label")},
                minimal=bool(data["minimal"]),
            )

    @classmethod
    def load(cls, path: Path) -> FeatureGraph:
        """Read a ``graph.json``.

        Raises:
            UsageError: It cannot be read, or holds something else.
        """
        return cls.from_dict(read_object(path, "feature graph", file="graph.json"), where=str(path))

    def text(self) -> str:
        """The JSON form as a file holds it."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def node_order(node: Node) -> tuple[int, Order]:
    """Sort key: in the order of the forward pass, then by kind and index."""
    return node.layer_rank, node.order


def _source(data: Mapping[str, Any]) -> Source:
    numbers = {name: number(data[name]) for name in ("features", "errors", "effect")}
    return filled(Source, {**data, **numbers})


def _errors_dict(errors: ErrorShare) -> dict[str, Any]:
    return {
        "by_score": finite(errors.by_score),
        "without_errors": None if errors.without_errors is None else vars(errors.without_errors).copy(),
        "errors_alone": None if errors.errors_alone is None else vars(errors.errors_alone).copy(),
    }


def _errors(data: Mapping[str, Any]) -> ErrorShare:
    without, alone = data["without_errors"], data["errors_alone"]
    return ErrorShare(
        number(data["by_score"]),
        None if without is None else filled(Interval, without),
        None if alone is None else filled(Interval, alone),
    )


def _finite_all(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: finite(value) if isinstance(value, float) else value for key, value in data.items()}
