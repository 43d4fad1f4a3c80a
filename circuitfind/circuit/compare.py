"""Two circuits side by side: what one has and the other has not, and how far their scores agree. No model is needed.

Circuits are compared by the names of their nodes and edges, over what both models have. The scores are those of every node
and edge where a run has them (``Scores``), not only of what is in a circuit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.changes import TOPS, Agreement, Change, Changes, Fate, overlap, spearman
from circuitfind.circuit.graph import Circuit, Evaluation
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UsageError
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import parse_edge

EFFECTS = (
    "hybrid",
    "eap",
    "eap-ig",
    "eap-ig-activations",
    "clean-corrupted",
    "relp",
    "gim",
    "atp",
    "atp-star",
    "activation-patching",
    "edge-patching",
    "path-patching",
)
"""Methods whose scores are effects in units of the metric."""


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        name: Of its run or file.
        circuit: The circuit.
        scores: Of every node or edge; None where only the circuit is there.
        facts: What else it was found under, such as its prompts, in words by title.
    """

    name: str
    circuit: Circuit
    scores: Scores | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two circuits side by side.

    Attributes:
        before, after: Their names.
        differs: What they were found under and differ in: (title, before, after).
        alike: What they were found under alike: (title, value).
        nodes, edges: What became of them.
        node_scores, edge_scores: How far all scores agree; None where one of the two has none.
        evaluations: By ablation, what was measured of each; None where it was not.
        backups: Backups that were gained and lost.
        wholes: What the scores of each are shares of, so that a behaviour that grew is not a change of every score: what
            there is to explain, m(full) - m(empty), or the largest score where scores are in other units or nothing was
            measured (``of_gap`` says which).
        notes: What cannot be compared.
        set_aside: Edges of either circuit that the other model does not have.
    """

    before: str
    after: str
    differs: tuple[tuple[str, str, str], ...]
    alike: tuple[tuple[str, str], ...]
    nodes: Changes
    edges: Changes
    node_scores: Agreement | None
    edge_scores: Agreement | None
    evaluations: tuple[tuple[Evaluation | None, Evaluation | None], ...]
    backups: Changes
    notes: tuple[str, ...]
    set_aside: tuple[str, ...]
    wholes: tuple[float, float]
    of_gap: bool

    @property
    def identical(self) -> bool:
        """Whether the circuits are one: the same edges."""
        return self.edges.jaccard == 1.0 and not self.set_aside

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        pairs = [
            {side: None if one is None else one.as_dict() for side, one in (("before", a), ("after", b))}
            for a, b in self.evaluations
        ]
        return {
            "before": self.before,
            "after": self.after,
            "differs": [{"what": what, "before": a, "after": b} for what, a, b in self.differs],
            "alike": [{"what": what, "value": value} for what, value in self.alike],
            "identical": self.identical,
            "nodes": self.nodes.as_dict(),
            "edges": self.edges.as_dict(),
            "scores": {
                "nodes": None if self.node_scores is None else self.node_scores.as_dict(),
                "edges": None if self.edge_scores is None else self.edge_scores.as_dict(),
            },
            "evaluations": pairs,
            "backups": self.backups.as_dict(),
            "notes": list(self.notes),
            "set_aside": list(self.set_aside),
            "shares_of": {
                "what": "full - empty" if self.of_gap else "the largest score",
                "before": self.wholes[0],
                "after": self.wholes[1],
            },
        }


def compare(before: Side, after: Side, *, top: int = 10) -> Comparison:
    """Compare two circuits.

    Args:
        before: The one that changes are counted from.
        after: The other.
        top: How many changes of score to name, of all nodes and of all edges.

    Raises:
        UsageError: The model of one has no edge of the circuit of the other.
    """
    shared = _Shared(before.circuit.anatomy, after.circuit.anatomy)
    circuits = before.circuit, after.circuit
    edges = [{str(edge) for edge in c.edges} for c in circuits]
    aside = {name for names in edges for name in names if not shared.has_edge(name)}
    for side, other, names in ((before, after, edges[0]), (after, before, edges[1])):
        if names and names <= aside:
            raise UsageError(
                f"nothing can be compared: the model of {other.name} has no edge of the circuit of {side.name}",
                hint="compare circuits over parts of the same names; --nodes decides what they are made of",
            )
    nodes = [{str(node) for node in c.nodes if shared.has_node(str(node.bare))} for c in circuits]
    tables = [_edge_scores(side) for side in (before, after)]
    values = [_node_scores(side) for side in (before, after)]
    differs, alike = _conditions(before, after)
    wholes, of_gap = _wholes(circuits, tables if all(tables) else values)
    return Comparison(
        before=before.name,
        after=after.name,
        differs=differs,
        alike=alike,
        nodes=_changes(nodes, values, wholes),
        edges=_changes([names - aside for names in edges], tables, wholes),
        node_scores=_agreement(before, after, values, nodes, wholes, top),
        edge_scores=_agreement(before, after, tables, edges, wholes, top)
        if _both_of_edges(before, after)
        else None,
        evaluations=_evaluations(*circuits),
        backups=_backups(*circuits),
        notes=tuple(_notes(before, after, shared, aside)),
        set_aside=tuple(sorted(aside, key=lambda name: parse_edge(name).order)),
        wholes=wholes,
        of_gap=of_gap,
    )


class _Shared:
    """What two models have in common, by name."""

    def __init__(self, a: Anatomy, b: Anatomy) -> None:
        self.same = a == b
        self._sides = a, b
        self.writers = set(a.writer_names) & set(b.writer_names)
        self.readers = set(a.reader_names) & set(b.reader_names)
        self._nodes = (
            {str(node) for node, _ in (*a.readers, *b.readers)} if self.same else self._of_readers(a, b)
        )

    @staticmethod
    def _of_readers(a: Anatomy, b: Anatomy) -> set[str]:
        mine, other = ({str(node) for node, _ in one.readers} for one in (a, b))
        return mine & other

    def has_node(self, name: str) -> bool:
        return name in self.writers or name in self._nodes

    def has_edge(self, name: str) -> bool:
        if self.same:
            return True
        edge = parse_edge(name)
        sender, receiver = str(edge.sender.bare), edge.reader.partition("@")[0]
        if sender not in self.writers or receiver not in self.readers:
            return False
        return all(
            bool(one.edge_mask[one.writer_index[sender], one.reader_index[receiver]]) for one in self._sides
        )


def _edge_scores(side: Side) -> dict[str, float]:
    """By name: of every edge that was scored, else of those of the circuit."""
    found = dict(side.circuit.edge_scores)
    scores = side.scores
    if scores is not None and scores.level == "edge":
        anatomy = scores.anatomy
        for w, r in np.argwhere(np.isfinite(scores.values)):
            name = f"{anatomy.writer_names[w]}->{anatomy.reader_names[r]}"
            found.setdefault(name, float(scores.values[w, r]))
    return found


def _node_scores(side: Side) -> dict[str, float]:
    found = dict(side.circuit.node_scores)
    if side.scores is not None:
        values = zip(side.scores.anatomy.writer_names, side.scores.node_values, strict=True)
        found |= {name: float(value) for name, value in values if name not in found}
    return found


def _both_of_edges(before: Side, after: Side) -> bool:
    return all(side.scores is not None and side.scores.level == "edge" for side in (before, after))


def _gap(circuit: Circuit) -> float | None:
    """What there is to explain under the circuit's own ablation; None where its scores are in other units."""
    conditions = circuit.conditions
    if conditions.method.partition(" ")[0] not in EFFECTS:
        return None
    gaps = [one.full - one.empty for one in circuit.evaluations if one.ablation == conditions.ablation]
    return gaps[0] if gaps and gaps[0] > 0 else None


def _wholes(
    circuits: Sequence[Circuit], scores: Sequence[Mapping[str, float]]
) -> tuple[tuple[float, float], bool]:
    """See ``Comparison.wholes``; and whether they are gaps."""
    a, b = (_gap(circuit) for circuit in circuits)
    if a is not None and b is not None:
        return (a, b), True
    sizes = [[abs(x) for x in table.values() if math.isfinite(x)] for table in scores]
    a, b = (max(found, default=0.0) or 1.0 for found in sizes)
    return (a, b), False


def _change(
    name: str, names: Sequence[set[str]], scores: Sequence[Mapping[str, float]], wholes: Sequence[float]
) -> Change:
    before, after = (_score(table, name) for table in scores)
    return Change(name, _fate(name, names), before, after, (before / wholes[0], after / wholes[1]))


def _changes(
    names: Sequence[set[str]], scores: Sequence[Mapping[str, float]], wholes: Sequence[float] = (1.0, 1.0)
) -> Changes:
    """What became of some names; scores are of nodes and edges without their positions."""
    found = [_change(name, names, scores, wholes) for name in names[0] | names[1]]
    return Changes(tuple(sorted(found, key=lambda one: (-one.size, one.name))))


def _fate(name: str, names: Sequence[set[str]]) -> Fate:
    fates: dict[tuple[bool, bool], Fate] = {
        (True, True): "kept",
        (True, False): "lost",
        (False, True): "gained",
        (False, False): "outside",
    }
    return fates[name in names[0], name in names[1]]


def _score(table: Mapping[str, float], name: str) -> float:
    bare = name.partition("@")[0] if "->" not in name else name
    return table.get(name, table.get(bare, math.nan))


def _agreement(
    before: Side,
    after: Side,
    tables: Sequence[Mapping[str, float]],
    circuits: Sequence[set[str]],
    wholes: Sequence[float],
    top: int,
) -> Agreement | None:
    """Over everything that both runs score, in a circuit or not."""
    if before.scores is None or after.scores is None:
        return None
    names, a, b = _common(tables)
    order = np.argsort(-np.abs(b / wholes[1] - a / wholes[0]), kind="stable")[:top]
    moved = tuple(_change(names[i], circuits, tables, wholes) for i in order)
    tops = {k: overlap(a, b, k) for k in TOPS if k < len(a)}
    return Agreement(len(a), spearman(np.abs(a), np.abs(b)), spearman(a, b), tops, moved)


def _common(
    tables: Sequence[Mapping[str, float]],
) -> tuple[list[str], Float[np.ndarray, " common"], Float[np.ndarray, " common"]]:
    """What both score: names, and the scores of each."""
    names = [name for name in tables[0] if name in tables[1]]
    a, b = (np.array([table[name] for name in names], dtype=float) for table in tables)
    good = np.isfinite(a) & np.isfinite(b)
    return [name for name, keep in zip(names, good, strict=True) if keep], a[good], b[good]


def shared_scores(
    before: Side, after: Side
) -> tuple[str, list[str], Float[np.ndarray, " common"], Float[np.ndarray, " common"]]:
    """Everything that both score, in a circuit or not: ``edge`` or ``node``, names, and the scores of each."""
    both = _both_of_edges(before, after)
    scores = _edge_scores if both else _node_scores
    return ("edge" if both else "node", *_common([scores(before), scores(after)]))


TITLES = {"model_b": "model B", "nodes": "made of", "rule": "pruned to"}


def _conditions(
    before: Side, after: Side
) -> tuple[tuple[tuple[str, str, str], ...], tuple[tuple[str, str], ...]]:
    """What the two were found under: where they differ, and where they do not."""
    told: dict[str, tuple[str, str]] = {}
    for key in vars(before.circuit.conditions):
        told[TITLES.get(key, key)] = (
            str(getattr(before.circuit.conditions, key)),
            str(getattr(after.circuit.conditions, key)),
        )
    for key in dict.fromkeys((*before.facts, *after.facts)):
        if key in before.facts and key in after.facts:
            told[key] = before.facts[key], after.facts[key]
    differs = tuple((key, a, b) for key, (a, b) in told.items() if a != b)
    return differs, tuple((key, a) for key, (a, b) in told.items() if a == b and a)


def _evaluations(a: Circuit, b: Circuit) -> tuple[tuple[Evaluation | None, Evaluation | None], ...]:
    found = [{one.ablation: one for one in c.evaluations} for c in (a, b)]
    return tuple((found[0].get(name), found[1].get(name)) for name in dict.fromkeys((*found[0], *found[1])))


def _backups(a: Circuit, b: Circuit) -> Changes:
    """By node, kind and reader; their shares as scores."""
    tables = [{f"{one.node} ({one.kind}, to {one.reader})": one.share for one in c.backups} for c in (a, b)]
    return _changes([set(table) for table in tables], tables)


def _notes(before: Side, after: Side, shared: _Shared, aside: Iterable[str]) -> Iterable[str]:
    if not shared.same:
        sizes = [_size(side.circuit.anatomy) for side in (before, after)]
        yield (
            f"the models have different parts ({sizes[0]}; {sizes[1]}): compared by name over the "
            f"{len(shared.writers)} writers that both have, which need not do the same"
        )
        left = len(set(aside))
        if left:
            yield f"{left} edges of the circuits are not compared, since one of the models does not have them"
    for what, none in (("the file of the first", before.scores), ("the file of the second", after.scores)):
        if none is None:
            yield f"{what} is a circuit alone: scores of what is not in it are not known"
    levels = [side.scores.level for side in (before, after) if side.scores is not None]
    if len(set(levels)) == 2:
        yield "one method scored nodes and the other edges: only scores of nodes are compared"
    one, other = (side.circuit.conditions for side in (before, after))
    if one.metric != other.metric:
        yield f"scores are in units of {one.metric} and of {other.metric}: compare ranks, not sizes"
    elif one.method != other.method:
        yield "scores are by different methods: compare ranks, not sizes"


def _size(anatomy: Anatomy) -> str:
    rest = "" if anatomy.has_mlp else ", no MLPs"
    split = f", {sum(map(len, anatomy.parts))} parts of MLPs" if anatomy.split else ""
    return f"{anatomy.n_layers} layers of {anatomy.n_heads} heads{rest}{split}"
