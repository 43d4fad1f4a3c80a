"""A circuit and the scores behind it against a circuit that is known. No torch here.

Two questions are kept apart: is what was found known (precision and recall of the circuit), and does the ranking put what is
known on top (ROC-AUC, average precision, recall at the size of the list), whatever was pruned away. Overlap is not
faithfulness: a circuit of 90 % of the listed nodes can carry none of the behaviour. And what is true depends on the ablation
that it was stated under: compiled models have ten true edges under one and two under another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.curve import edge_strengths, roc_auc
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.json_form import filled, finite, number
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UsageError
from circuitfind.evidence.listed import edges_of, reaches_mlps, rows_of, title
from circuitfind.evidence.match import Match, Ranked, Values, match, ranked
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import Edge, Kind, Node, parse_edge, parse_node
from circuitfind.task.findings import Known


@dataclass(frozen=True)
class Role:
    """One class of nodes, such as name movers.

    Attributes:
        name: The role.
        nodes: How many heads have it (MLPs, where no head has).
        found: How many of them are in the circuit.
        recall: Their share; NaN of an empty class.
        roc_auc: The chance that one of them is stronger than a node of the same kind that is in no class.
        mean_rank: Of their places among all nodes of the kind.
        positive, negative: How many have scores above and below zero.
        mean_score: Of the scores.
        expected: ``negative`` for a role that is named so: its heads work against the answer. Else None.
        missing: Those not found, with rank.
    """

    name: str
    nodes: int
    found: int
    recall: float
    roc_auc: float
    mean_rank: float
    positive: int
    negative: int
    mean_score: float
    expected: str | None
    missing: tuple[Ranked, ...]

    @property
    def wrong_sign(self) -> int:
        """How many of them have scores of the sign that was not expected."""
        return self.positive if self.expected == "negative" else 0

    def __str__(self) -> str:
        told = f"{self.name}: {self.found} of {self.nodes} found"
        told += "" if isnan(self.mean_rank) else f", mean rank {self.mean_rank:.1f}"
        told += "" if isnan(self.roc_auc) else f", ROC-AUC {self.roc_auc:.2f}"
        return told + (f", {self.wrong_sign} of them with a positive score" if self.wrong_sign else "")

    def as_dict(self) -> dict[str, Any]:
        """Plain data; NaN is null."""
        told = {name: finite(x) if isinstance(x, float) else x for name, x in vars(self).items()}
        return {**told, "wrong_sign": self.wrong_sign, "missing": [one.as_dict() for one in self.missing]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Role:
        """Read what ``as_dict`` wrote."""
        numbers = ("recall", "roc_auc", "mean_rank", "mean_score")
        told = {name: value for name, value in data.items() if name != "wrong_sign"}
        return filled(
            cls,
            {
                **told,
                **{name: number(data[name]) for name in numbers},
                "missing": tuple(map(Ranked.from_dict, data["missing"])),
            },
        )


@dataclass(frozen=True)
class Comparison:
    """A circuit against a known one.

    Attributes:
        name: Of the known circuit.
        source, note: Who found it, and what to know of it.
        replicates: False where others could not find it again.
        known_ablation: What the list was stated under; None where it does not say.
        ablation: That of the circuit.
        matches: One for each kind of part that the list names.
        roles: One for each class, in the order of the list.
        warnings: What makes the comparison doubtful.
    """

    name: str
    source: str | None
    note: str | None
    replicates: bool
    known_ablation: str | None
    ablation: str
    matches: tuple[Match, ...]
    roles: tuple[Role, ...]
    warnings: tuple[str, ...]

    def of(self, kind: str) -> Match | None:
        """What was found of one kind of part; None where the list names none."""
        return next((match for match in self.matches if match.kind == kind), None)

    @property
    def text(self) -> str:
        """What to tell of it, line by line."""
        return "\n".join(
            [f"against {self.name}", *map(str, self.matches), *map(str, self.roles), *self.warnings]
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with ``text``."""
        return {
            **vars(self),
            "matches": [match.as_dict() for match in self.matches],
            "roles": [role.as_dict() for role in self.roles],
            "warnings": list(self.warnings),
            "text": self.text,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """Read what ``as_dict`` wrote.

        Raises:
            KeyError, TypeError: It is incomplete.
        """
        return filled(
            cls,
            {
                **{name: value for name, value in data.items() if name != "text"},
                "matches": tuple(map(Match.from_dict, data["matches"])),
                "roles": tuple(map(Role.from_dict, data["roles"])),
                "warnings": tuple(data["warnings"]),
            },
        )


def against(scores: Scores | None, circuit: Circuit, known: Known) -> Comparison:
    """Compare a circuit, and the scores that it was pruned from, with a known circuit.

    Args:
        scores: Of edges or nodes, on the same model; without them only what was found is compared.
        circuit: What was found.
        known: What is known of the model.

    Raises:
        UsageError: The list names what the model cannot have, or the scores are of another model.
    """
    anatomy = circuit.anatomy
    if scores is not None and scores.anatomy != anatomy:
        raise UsageError(
            "the scores and the circuit are of models of different shapes",
            hint="give the scores and the circuit of one run",
        )
    rows = rows_of(anatomy, known, {n: None for group in (known.nodes, *known.roles.values()) for n in group})
    values = None if scores is None else np.asarray(scores.node_values)
    matches = []
    for kind, names in ((Kind.HEAD, known.heads), (Kind.MLP, known.mlps)):
        if names:
            matches.append(_nodes(kind, [str(parse_node(n).bare) for n in names], circuit, values))
    if known.edges:
        matches += _edges(scores, circuit, known)
    classed = {name for members in known.roles.values() for name in map(_bare, members)}
    return Comparison(
        name=title(known),
        source=known.source,
        note=known.note,
        replicates=known.replicates,
        known_ablation=known.ablation,
        ablation=circuit.conditions.ablation,
        matches=tuple(matches),
        roles=tuple(
            _role(name, [_bare(n) for n in members], classed, circuit, values, rows)
            for name, members in known.roles.items()
        ),
        warnings=tuple(_warnings(circuit, known)),
    )


def _of_kind(anatomy: Anatomy, kind: Kind) -> list[int]:
    """Rows of all heads, or of all MLPs that are whole."""
    return [row for row, node in enumerate(anatomy.writers) if node.kind is kind]


def _nodes(kind: Kind, known: Sequence[str], circuit: Circuit, values: Values | None) -> Match:
    anatomy = circuit.anatomy
    rows = _of_kind(anatomy, kind)
    every = [anatomy.writer_names[row] for row in rows]
    own = None if values is None else values[rows]
    return match("heads" if kind is Kind.HEAD else "mlps", every, known, _found(circuit, kind), own)


def _found(circuit: Circuit, kind: Kind) -> set[str]:
    """Heads or MLPs of a circuit by name; of an MLP that is split, any part."""
    if kind is Kind.HEAD:
        return {str(node.bare) for node in circuit.heads}
    inside = (Kind.NEURON, Kind.FEATURE, Kind.REST, Kind.ERROR)
    layers = {n.layer for n in circuit.nodes if n.kind is Kind.MLP or (n.kind in inside and n.family in "mt")}
    return {str(Node(Kind.MLP, layer)) for layer in layers}


def _edges(scores: Scores | None, circuit: Circuit, known: Known) -> list[Match]:
    anatomy = circuit.anatomy
    chosen = np.argwhere(anatomy.edge_mask)
    edges = [anatomy.edge_at(int(w), int(r)) for w, r in chosen]
    here = [str(anatomy.edge_at(*index)) for index in edges_of(anatomy, known)]
    lost = [str(e) for e in map(parse_edge, known.edges) if not _exists(anatomy, e)]
    own = None if scores is None else _signed(scores)[tuple(chosen.T)]
    names = [str(edge) for edge in edges]
    every = match("edges", names, [*here, *lost], {_plain(e) for e in circuit.edges}, own)
    if not anatomy.has_mlp or known.mlps or reaches_mlps(known):
        return [every]
    beside = np.array([_between_heads(edge) for edge in edges], dtype=bool)
    some = match(
        "edges between heads",
        [name for name, kept in zip(names, beside, strict=True) if kept],
        here,
        {_plain(e) for e in circuit.edges if _between_heads(e)},
        None if own is None else own[beside],
    )
    return [every, some]


def _exists(anatomy: Anatomy, edge: Edge) -> bool:
    try:
        anatomy.index_of(edge)
    except UsageError:
        return False
    return True


def _plain(edge: Edge) -> str:
    return str(Edge(edge.sender.bare, edge.receiver.bare, edge.slot))


def _between_heads(edge: Edge) -> bool:
    kinds = (Kind.INPUT, Kind.HEAD, Kind.KV, Kind.LOGITS)
    return edge.sender.kind in kinds and edge.receiver.kind in kinds


def _signed(scores: Scores) -> Float[np.ndarray, "writer reader"]:
    """Scores of edges; of node scores the strengths that pruning goes by."""
    return np.asarray(scores.values) if scores.level == "edge" else edge_strengths(scores)


def _role(
    name: str,
    members: Sequence[str],
    classed: Collection[str],
    circuit: Circuit,
    values: Values | None,
    rows: Mapping[str, int],
) -> Role:
    """One class; its heads against heads in no class, or its MLPs against such MLPs where it has no heads."""
    anatomy = circuit.anatomy
    kinds = [kind for kind in (Kind.HEAD, Kind.MLP) if any(parse_node(n).kind is kind for n in members)]
    kind = kinds[0] if kinds else Kind.HEAD
    own = list(dict.fromkeys(n for n in members if parse_node(n).kind is kind))
    every = _of_kind(anatomy, kind)
    scored = None if values is None else values[every]
    by_name = ranked([anatomy.writer_names[row] for row in every], scored)
    found = _found(circuit, kind)
    each = [by_name.get(n, Ranked(n, nan, nan)) for n in own]
    known = [one for one in each if not isnan(one.score)]
    auc = nan
    if values is not None and known:
        others = [row for row in every if anatomy.writer_names[row] not in classed]
        mine = [rows[one.name] for one in known]
        if others:
            truth = np.arange(len(mine) + len(others)) < len(mine)
            auc = roc_auc(np.abs(values[[*mine, *others]]), truth)
    return Role(
        name=name,
        nodes=len(own),
        found=sum(n in found for n in own),
        recall=sum(n in found for n in own) / len(own) if own else nan,
        roc_auc=auc,
        mean_rank=float(np.mean([one.rank for one in known])) if known else nan,
        positive=sum(one.score > 0 for one in known),
        negative=sum(one.score < 0 for one in known),
        mean_score=float(np.mean([one.score for one in known])) if known else nan,
        expected="negative" if "negative" in name.lower() else None,
        missing=tuple(one for one in each if one.name not in found),
    )


def _bare(name: str) -> str:
    return str(parse_node(name).bare)


def _warnings(circuit: Circuit, known: Known) -> list[str]:
    found = []
    if not known.replicates:
        why = f": {known.note}" if known.note else ""
        found.append(f"others could not find this circuit again, so nothing may be certified by it{why}")
    ran = circuit.conditions.ablation
    if known.ablation is None:
        found.append(f"the list does not say under which ablation it was found; here it is {ran}")
    elif ran not in known.ablation.lower().replace("-", " ").replace(",", " ").split():
        found.append(
            f"the list was found under another ablation ({known.ablation}) than this circuit ({ran}): what is true depends on it"
        )
    return found
