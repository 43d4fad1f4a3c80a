"""What is known of a task's circuit on a model, and a circuit beside it."""

from __future__ import annotations

from typing import Any

from circuitfind.circuit.graph import Circuit
from circuitfind.settings import Settings
from circuitfind.task.findings import Known
from circuitfind.task.spec import TaskSpec


def known_roles(spec: TaskSpec, model: str) -> dict[str, str]:
    """Role by node, from the circuit that is known for this task and model."""
    from circuitfind.zoo import is_planted

    if is_planted(model):
        from circuitfind.model.load import planted

        return dict(planted(model).roles)
    return {
        node: role
        for known in reversed(_trusted(spec, model))
        for role, nodes in known.roles.items()
        for node in nodes
    }


def _trusted(spec: TaskSpec, model: str) -> tuple[Known, ...]:
    """What the task lists for a model, without lists that others could not find again."""
    return tuple(one for one in spec.known_of(model) if one.replicates)


def known_edges(spec: TaskSpec, settings: Settings) -> frozenset[str]:
    """The true edges of a planted model, those that the task lists for this model, or those in its folder; empty where none
    is known.

    Raises:
        ModelError: The folder's list of true edges cannot be read, or names what the model does not have.
    """
    from circuitfind.zoo import is_planted

    if is_planted(settings.model):
        from circuitfind.model.load import planted

        truth = planted(settings.model)
        if not settings.units:
            return truth.edges.get(settings.ablation, frozenset())
        if truth.units is None:
            return frozenset()
        features = "features" in settings.nodes
        edges = truth.units.feature_edges if features else truth.units.edges
        return edges.get(settings.ablation, frozenset())
    listed = next((frozenset(one.edges) for one in _trusted(spec, settings.model) if one.edges), None)
    if listed is None and not settings.units:
        from circuitfind.evidence.truth import truth_of_folder
        from circuitfind.model.identity import model_folder

        own = truth_of_folder(model_folder(settings.model), settings.ablation)
        listed = None if own is None else frozenset(own.edges)
    return listed or frozenset()


def compare_with_known(spec: TaskSpec, settings: Settings, circuit: Circuit) -> dict[str, Any] | None:
    """Precision and recall of the edges, or of the heads where only heads are known; None where nothing is."""
    edges = known_edges(spec, settings)
    if edges:
        return _compare("edges", {str(e) for e in circuit.edges}, set(edges))
    for known in _trusted(spec, settings.model):
        if known.heads:
            return _compare("heads", {str(n) for n in circuit.heads}, set(known.heads))
    return None


def _compare(level: str, found: set[str], truth: set[str]) -> dict[str, Any]:
    hits = len(found & truth)
    return {
        "level": level,
        "precision": hits / max(1, len(found)),
        "recall": hits / len(truth),
        "missing": sorted(truth - found),
        "extra": sorted(found - truth),
    }
