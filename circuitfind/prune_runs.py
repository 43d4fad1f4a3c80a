"""Pruning a finished run again from its stored scores, or from the curve that was measured on it. No model is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from circuitfind.circuit.curve import edge_order, edge_strengths
from circuitfind.circuit.graph import Circuit, Evaluation, Interval, connected, from_mask
from circuitfind.circuit.prefix import prefix_circuit, prefix_mask
from circuitfind.circuit.rule import Rule
from circuitfind.circuit.scores import Scores
from circuitfind.errors import RunError, UnsupportedError, UsageError
from circuitfind.given import Given
from circuitfind.output.exports import stem
from circuitfind.views.report import FILE, Curve, Views

Mask = Bool[np.ndarray, "writer reader"]


@dataclass(frozen=True)
class Smaller:
    """The next smaller circuit of a measured curve."""

    edges: int
    faithfulness: float


@dataclass(frozen=True)
class Pruned:
    """A circuit of the strongest edges.

    Attributes:
        circuit: With the faithfulness that was measured of exactly these edges, if it was.
        prefix: How many of the strongest edges were taken; those on no way from the input to the logits went.
        name: What tells it from others of the run: ``edges-30``, ``threshold-0.05``, ``target-0.9``.
        smaller: Of a target, the next smaller circuit that was measured: between the two nothing is known.
    """

    circuit: Circuit
    prefix: int
    name: str
    smaller: Smaller | None = None

    @property
    def measured(self) -> Evaluation | None:
        return next(iter(self.circuit.evaluations), None)


def prune_again(found: Given, rule: Rule) -> Pruned:
    """Prune by a number of edges, a threshold, or a target faithfulness.

    A number and a threshold are as in ``discover --edges`` and ``--threshold``. A target takes the smallest circuit of the
    measured curve that reaches it; ``discover --faithfulness`` tries circuits with the model and finds smaller ones.

    Args:
        found: A run, or a circuit with scores.
        rule: How far.

    Raises:
        UsageError: It has no scores, or a target is asked for and no curve was measured.
        RunError: No way from the input to the logits is left, or the curve is of other scores.
        UnsupportedError: It is a feature graph.
    """
    circuit, scores = _parts(found)
    smaller = None
    if rule.faithfulness is None:
        size, mask = prefix_circuit(scores, rule)
        told = f"edges-{rule.edges}" if rule.edges is not None else f"threshold-{rule.threshold:g}"
        text, evaluations = str(rule), _known(found, circuit, scores, mask)
    else:
        curve = _curve(found, circuit)
        place = _reaches(curve, rule.faithfulness)
        size = curve.edges[place]
        order = edge_order(scores.anatomy, edge_strengths(scores))
        mask = connected(scores.anatomy, prefix_mask(scores.anatomy, order, size))
        _check(found, int(mask.sum()), curve.connected[place])
        told, text = f"target-{rule.faithfulness:g}", f"{rule} of the measured curve"
        evaluations, smaller = _of_curve(circuit, curve, place), _below(curve, place)
    return Pruned(_made(circuit, scores, mask, text, evaluations), size, told, smaller)


def _parts(found: Given) -> tuple[Circuit, Scores]:
    """The circuit and the scores that it is pruned from."""
    if not isinstance(found.what, Circuit):
        raise UnsupportedError(
            "a feature graph is pruned by its nodes, with the model at hand",
            where=str(found.file),
            hint="find it again with another --faithfulness; `circuitfind attribute FOLDER --node-threshold` prunes "
            "attribution graphs without one",
        )
    circuit = found.what
    if any(node.position for node in circuit.nodes):
        raise UnsupportedError(
            "edges of this circuit are kept at one position alone, and scores of files have none",
            where=str(found.file),
            hint="leave the positions out of its names",
        )
    scores = found.scores or _own_scores(circuit)
    if scores is None:
        raise UsageError(
            "the circuit's edges have no scores",
            where=str(found.file),
            hint="give the run that it comes from",
        )
    return circuit, scores


def _own_scores(circuit: Circuit) -> Scores | None:
    """The scores that a circuit holds of its own edges; all others stay out of what is made of them."""
    values = np.full(circuit.anatomy.edge_mask.shape, math.nan)
    for edge in circuit.edges:
        values[circuit.anatomy.index_of(edge)] = circuit.edge_scores.get(str(edge), math.nan)
    if np.isnan(values).all():
        return None
    nodes = np.array([circuit.node_scores.get(name, math.nan) for name in circuit.anatomy.writer_names])
    told = circuit.conditions
    return Scores(
        circuit.anatomy, "edge", values, told.method, told.direction, told.metric, told.ablation, nodes=nodes
    )


def _made(
    circuit: Circuit, scores: Scores, mask: Mask, rule: str, evaluations: Iterable[Evaluation]
) -> Circuit:
    made = from_mask(
        scores.anatomy,
        mask,
        replace(circuit.conditions, rule=rule),
        edge_values=scores.values if scores.level == "edge" else None,
        node_values=scores.node_values,
        evaluations=evaluations,
        roles=circuit.roles,
    )
    inside = {str(node.bare) for node in made.nodes}
    # What stands in for a node says something of a circuit that has that node.
    backups = tuple(b for b in circuit.backups if {str(n.bare) for n in b.covers} <= inside)
    return replace(made, backups=backups, roles=circuit.roles if backups else made.roles)


# What was measured.


def _curve(found: Given, circuit: Circuit) -> Curve:
    """The measured curve of the run."""
    path = None if found.run is None else found.run.path / FILE
    if found.run is None or path is None or found.scores is None:
        raise UsageError(
            "a target needs the curve that `discover` measures, and a file has none",
            where=str(found.file),
            hint="give the run, or prune by --edges or --threshold",
        )
    again = (
        f"measure it: give the discover command of {found.run.name} again, or prune by --edges or --threshold"
    )
    if not path.is_file():
        raise UsageError("the run has no measured curve", where=str(path), hint=again)
    views = Views.load(path)
    if views.curve is None:
        why = views.missing.get("curve", "it was left out")
        raise UsageError(
            f"the run has no measured curve: {why}", where=str(path), hint="prune by --edges or --threshold"
        )
    if views.conditions.get("task") != circuit.conditions.task:
        raise RunError("the curve is of another task than the circuit", where=str(path), hint=again)
    return views.curve


def _reaches(curve: Curve, target: float) -> int:
    """The place of the smallest measured circuit that reaches the target.

    Raises:
        UsageError: None does.
    """
    for place in np.argsort(curve.connected, kind="stable"):
        if curve.connected[place] and curve.faithfulness[place].value >= target:
            return int(place)
    best = max(one.value for one in curve.faithfulness)
    raise UsageError(
        f"no measured circuit reaches a faithfulness of {target:g}: the best has {best:.3f}",
        hint="ask for less, or let discover search: circuitfind discover ... --faithfulness",
    )


def _below(curve: Curve, place: int) -> Smaller | None:
    own = curve.connected[place]
    found = [
        (size, one.value)
        for size, one in zip(curve.connected, curve.faithfulness, strict=True)
        if 0 < size < own
    ]
    return Smaller(*max(found)) if found else None


def _check(found: Given, size: int, measured: int) -> None:
    if size != measured:
        assert found.run is not None
        raise RunError(
            f"the curve was measured on {measured} edges, and the scores give {size}: they are of different runs",
            where=str(found.run.path / FILE),
            hint=f"give the discover command of {found.run.name} again",
        )


def _of_curve(circuit: Circuit, curve: Curve, place: int) -> list[Evaluation]:
    """What the curve says of one of its circuits, in full where the run tells the ends of the scale.

    Faithfulness is (circuit - empty) / (full - empty), so the circuit's metric follows from it.
    """
    same = next((one for one in circuit.evaluations if one.ablation == curve.ablation), None)
    if same is None:
        return []
    at = curve.faithfulness[place]
    low, high = (math.inf * sign if end is None else end for end, sign in ((at.low, -1), (at.high, 1)))
    value = same.empty + at.value * (same.full - same.empty)
    return [replace(same, faithfulness=Interval(at.value, low, high), circuit=value)]


def _known(found: Given, circuit: Circuit, scores: Scores, mask: Mask) -> list[Evaluation]:
    """What was measured of exactly these edges: the run's own circuit, or one of its curve."""
    if np.array_equal(mask, circuit.mask):
        return list(circuit.evaluations)
    path = None if found.run is None or found.scores is None else found.run.path / FILE
    if path is None or not path.is_file():
        return []
    try:
        curve = Views.load(path).curve
    except UsageError:  # of another version: nothing that is known here
        return []
    if curve is None or int(mask.sum()) not in curve.connected:
        return []
    order = edge_order(scores.anatomy, edge_strengths(scores))
    place = curve.connected.index(int(mask.sum()))
    same = connected(scores.anatomy, prefix_mask(scores.anatomy, order, curve.edges[place]))
    return _of_curve(circuit, curve, place) if np.array_equal(same, mask) else []


def place_of(found: Given, made: Pruned) -> Path:
    """Where the circuit is written unless the user says so: beside what it comes from, under a name of its own."""
    return found.file.with_name(f"{stem(found.file.name)}-{made.name}.json")
