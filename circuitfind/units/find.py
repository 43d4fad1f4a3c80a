"""From all units of a model to the few nodes that carry a behaviour.

1. Every head and every unit is scored by attribution, in the passes that heads alone would need.
2. The strongest are verified: each is really replaced, alone.
3. Neurons that do little alone are looked at together (units/groups.py); a group is one node from here on.
4. The fewest nodes are found that keep the target when all others are replaced together: of the mean over prompts, and of
   the squared effects of single prompts, so that one which comes out too strong does not pay for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.scores import Scores
from circuitfind.circuit.subsets import fewest
from circuitfind.config import Ablation
from circuitfind.errors import RunError
from circuitfind.methods.node_gradients import node_scores
from circuitfind.model.bridge import Model
from circuitfind.model.features import Features
from circuitfind.model.runs import Runs
from circuitfind.model.split import split_features, split_neurons
from circuitfind.names import UNITS, Kind, Node, unit
from circuitfind.units.circuits import NodeCircuits
from circuitfind.units.groups import Group, find_groups


class Split(Protocol):
    """A model with its MLPs split into units: all of them if no groups are named, else these by layer."""

    def __call__(self, chosen: Mapping[int, list[tuple[int, ...]]] | None) -> Model: ...


@dataclass(frozen=True)
class Neurons:
    """Of an MLP."""

    model: Model

    def __call__(self, chosen: Mapping[int, list[tuple[int, ...]]] | None) -> Model:
        every = range(self.model.anatomy.n_layers)
        return split_neurons(self.model, None if chosen is None else {i: chosen.get(i, []) for i in every})


@dataclass(frozen=True)
class DictionaryFeatures:
    """Of dictionaries that stand for MLPs."""

    model: Model
    features: Mapping[int, Features]
    live_errors: bool = False

    def __call__(self, chosen: Mapping[int, list[tuple[int, ...]]] | None) -> Model:
        return split_features(self.model, self.features, chosen, live_errors=self.live_errors)


@dataclass(frozen=True)
class UnitOptions:
    """How thoroughly units are looked for.

    Attributes:
        verify: Nodes that are replaced one by one, the strongest by attribution.
        groups: Whether neurons that do little alone are looked at together.
        evaluations: Sets of nodes that are run to find the fewest.
        seed: Of what is drawn.
    """

    verify: int = 128
    groups: bool = True
    evaluations: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """The nodes that carry a behaviour.

    Attributes:
        scores: Attribution of every head and unit, by the anatomy of the model with all of them.
        exact: What the metric really loses without each node that was verified, by name.
        groups: By the name of the node.
        kept: From the input to the logits, without these.
        faithfulness: Of the kept nodes with all connections among them.
        model: The model in which the kept units are nodes, and all others a rest.
        facts: For the record.
    """

    scores: Scores
    exact: Mapping[str, float]
    groups: Mapping[str, Group]
    kept: tuple[Node, ...]
    faithfulness: float
    model: Model
    facts: Mapping[str, object] = field(default_factory=dict)


def find(
    split: Split,
    runs_of: Callable[[Model], Runs],
    *,
    ablation: Ablation,
    target: float,
    options: UnitOptions = UnitOptions(),
    report: Callable[[str], None] = lambda text: None,
) -> Found:
    """Find them.

    Args:
        split: Makes the model with its units as nodes.
        runs_of: The prompts in a model, for passes over nodes.
        ablation: What replaced nodes carry.
        target: Faithfulness that the kept nodes must have.
        options: How thoroughly.
        report: Hears how far it is.

    Raises:
        RunError: There is no behaviour to explain.
        UnsupportedError: The metric has no gradient, or units have no ablated value.
    """
    runs = runs_of(split(None))
    anatomy = runs.model.anatomy
    scores = node_scores(runs, "atp", ablation=ablation, direction="noising", positions="none")
    circuits = NodeCircuits(runs, ablation)
    n_units = sum(node.kind in UNITS for node in anatomy.writers)
    report(f"{n_units:,} units scored; replacing the strongest")
    exact = verified(circuits, scores.values, options.verify)
    groups: list[Group] = []
    if options.groups and any(node.kind is Kind.NEURON for node in anatomy.writers):
        groups = find_groups(circuits, np.array(scores.values), exact, seed=options.seed)
        report(f"{len(groups)} groups of neurons")
    evaluations = 0
    strength = np.array(scores.values)
    for row, effect in exact.items():
        strength[row] = effect
    named = {str(_joined(anatomy.writers, group)): group for group in groups}
    if groups:
        merged = _merged(anatomy.writers, groups)
        grouped = runs_of(split(merged))
        strength = _with_groups(runs.model, grouped.model, strength, named)
        evaluations, circuits = circuits.evaluations, NodeCircuits(grouped, ablation)
    kept, search = _fewest(circuits, strength, target, options, report)
    nodes = tuple(node for row, node in enumerate(circuits.runs.model.anatomy.writers) if kept[row])
    final, explained = (float(found[0]) for found in circuits.measured([kept]))
    chosen: dict[int, list[tuple[int, ...]]] = {}
    for node in nodes:
        if node.kind in UNITS:
            chosen.setdefault(node.layer, []).append(node.units)
    exact_names = {anatomy.writer_names[row]: effect for row, effect in exact.items()}
    facts = {
        "units": n_units,
        "verified": len(exact),
        "kept_units": sum(node.kind in UNITS for node in nodes),
        "kept_heads": sum(node.kind is Kind.HEAD for node in nodes),
        "kept_errors": sum(node.kind is Kind.ERROR for node in nodes),
        **search,
        "explained": explained,
        **_agreement(circuits, kept, scores, exact_names, named),
        **_through_errors(circuits),
    }
    facts["node_evaluations"] = evaluations + circuits.evaluations
    return Found(scores, exact_names, named, nodes, final, split(chosen), facts)


def verified(circuits: NodeCircuits, values: Float[np.ndarray, " writer"], count: int) -> dict[int, float]:
    """What the metric loses without each of the strongest nodes, by row."""
    writers = circuits.runs.model.anatomy.writers
    order = np.argsort(-np.abs(values), kind="stable")
    rows = [
        int(row) for row in order if values[row] != 0 and writers[row].kind not in (Kind.INPUT, Kind.REST)
    ]
    rows = rows[:count]
    eye = np.zeros((len(rows), len(writers)), dtype=bool)
    eye[np.arange(len(rows)), rows] = True
    return dict(zip(rows, circuits.effects(list(eye)).tolist(), strict=True)) if rows else {}


def _joined(writers: tuple[Node, ...], group: Group) -> Node:
    first = writers[group.rows[0]]
    return unit(first.kind, first.family, first.layer, [writers[row].index for row in group.rows])


def _merged(writers: tuple[Node, ...], groups: list[Group]) -> dict[int, list[tuple[int, ...]]]:
    taken = {row for group in groups for row in group.rows}
    found: dict[int, list[tuple[int, ...]]] = {}
    for row, node in enumerate(writers):
        if node.kind in UNITS and row not in taken:
            found.setdefault(node.layer, []).append(node.units)
    for group in groups:
        node = _joined(writers, group)
        found.setdefault(node.layer, []).append(node.units)
    return found


def _with_groups(
    single: Model, grouped: Model, strength: Float[np.ndarray, " writer"], named: Mapping[str, Group]
) -> Float[np.ndarray, " node"]:
    """Strengths of the nodes of a model in which groups are one."""
    by_name = dict(zip(single.anatomy.writer_names, strength.tolist(), strict=True))
    return np.array(
        [named[name].effect if name in named else by_name[name] for name in grouped.anatomy.writer_names]
    )


def _fewest(
    circuits: NodeCircuits,
    strength: Float[np.ndarray, " writer"],
    target: float,
    options: UnitOptions,
    report: Callable[[str], None],
) -> tuple[np.ndarray, dict[str, object]]:
    writers = circuits.runs.model.anatomy.writers
    fixed = np.array([node.kind is Kind.INPUT for node in writers])
    if not np.abs(strength[~fixed]).max(initial=0.0) > 0:
        raise RunError(
            "every score is exactly zero: no head and no unit differs between clean and corrupted prompts",
            hint="check that the corrupted prompts differ before the answer position; try another counterfactual",
        )
    order = [(int(row),) for row in np.argsort(-np.abs(strength), kind="stable")]
    order = [(row,) for (row,) in order if not fixed[row] and strength[row] != 0]
    found = fewest(
        ~fixed,
        order,
        lambda sets: np.minimum(*circuits.measured([kept | fixed for kept in sets])),
        target,
        budget=options.evaluations,
        report=lambda left, tried: report(f"{left} nodes, {tried} sets tried"),
    )
    facts: dict[str, object] = {"node_prefix": found.prefix, "node_minimal": found.minimal}
    return np.asarray(found.kept | fixed), facts


def _agreement(
    circuits: NodeCircuits,
    kept: np.ndarray,
    scores: Scores,
    exact: Mapping[str, float],
    named: Mapping[str, Group],
) -> dict[str, object]:
    """Of all kept units, how many have the sign that attribution gives them; those not verified yet are now.

    The attribution of a group is the sum over its members.
    """
    writers = circuits.runs.model.anatomy.writers
    rows = [row for row in np.flatnonzero(kept) if writers[row].kind in UNITS]
    effects = {name: group.effect for name, group in named.items()} | dict(exact)
    left = [row for row in rows if str(writers[row]) not in effects]
    if left:
        eye = np.zeros((len(left), len(writers)), dtype=bool)
        eye[np.arange(len(left)), left] = True
        measured = circuits.effects(list(eye)).tolist()
        effects |= {str(writers[row]): effect for row, effect in zip(left, measured, strict=True)}
    proposed = dict(zip(scores.anatomy.writer_names, scores.values.tolist(), strict=True))
    same = 0
    for row in rows:
        node = writers[row]
        members = [str(unit(node.kind, node.family, node.layer, [one])) for one in node.units]
        same += sum(proposed[one] for one in members) * effects[str(node)] > 0
    return {"signs_compared": len(rows), "signs_agree": int(same)}


def _through_errors(circuits: NodeCircuits) -> dict[str, object]:
    """What share of the effect is lost when the errors of all dictionaries are replaced and nothing else is."""
    writers = circuits.runs.model.anatomy.writers
    errors = np.array([node.kind is Kind.ERROR for node in writers])
    if not errors.any():
        return {}
    return {"share_through_errors": float(circuits.effects([errors])[0] / circuits.gap)}
