"""What a run found, as plain data: beside a known circuit, in numbers, from disk. Loads no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.scores import Scores
from circuitfind.errors import RunError
from circuitfind.output.store import Run, Stage
from circuitfind.settings import Settings
from circuitfind.task.spec import TaskSpec


def known_roles(spec: TaskSpec, model: str) -> dict[str, str]:
    """Role by node, from the circuit that is known for this task and model."""
    from circuitfind.zoo import is_zoo

    if is_zoo(model) and model != "mini":
        from circuitfind.model.load import planted

        return dict(planted(model).roles)
    known = spec.known.get(model)
    return {} if known is None else {node: role for role, nodes in known.roles.items() for node in nodes}


def known_edges(spec: TaskSpec, settings: Settings) -> frozenset[str]:
    """The true edges of a planted model, or those that the task lists for this model; empty where none is known."""
    from circuitfind.zoo import is_zoo

    if is_zoo(settings.model) and settings.model != "mini":
        from circuitfind.model.load import planted

        return planted(settings.model).edges.get(settings.ablation, frozenset())
    known = spec.known.get(settings.model)
    return frozenset() if known is None else frozenset(known.edges)


def compare_with_known(spec: TaskSpec, settings: Settings, circuit: Circuit) -> dict[str, Any] | None:
    """Precision and recall of the edges, or of the heads where only heads are known; None where nothing is."""
    edges = known_edges(spec, settings)
    if edges:
        return _compare("edges", {str(e) for e in circuit.edges}, set(edges))
    known = spec.known.get(settings.model)
    if known is not None and known.heads:
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


def summarise(
    circuit: Circuit, stages: Mapping[str, Stage], pictures: list[Path], folder: Path
) -> dict[str, Any]:
    """The numbers of a run as plain data, for printing and for ``--json``."""
    data = circuit.as_dict()
    prompts, pruning = stages["prompts"].facts, stages["circuit"].facts
    return {
        "run": folder.name,
        "folder": str(folder),
        "conditions": data["conditions"],
        "prompts": {
            "used": len(prompts["kept"]),
            "accuracy": prompts["accuracy"],
            "answered_wrongly": prompts["answered_wrongly"],
            "dropped_unaligned": prompts["dropped_unaligned"],
            "left_out": {slot: len(values) for slot, values in prompts["left_out"].items()},
        },
        "evaluations": data["evaluations"],
        "counts": {**data["counts"], "share_of_edges": circuit.share_of_edges},
        "minimal": pruning["minimal"],
        "circuits_tried": pruning["evaluations"],
        "known": pruning["known"],
        "seconds": round(sum(s.facts["seconds"] for s in stages.values()), 2),
        "forward_passes": sum(s.facts["forward_passes"] for s in stages.values()),
        "backward_passes": sum(s.facts["backward_passes"] for s in stages.values()),
        "pictures": [str(path) for path in pictures],
    }


@dataclass(frozen=True)
class Discovery:
    """What ``discover`` returns.

    Attributes:
        circuit: With its evaluations.
        folder: The run folder; every file is in it.
        summary: The numbers that the command prints, as plain data.
    """

    circuit: Circuit
    folder: Path
    summary: Mapping[str, Any]

    @cached_property
    def scores(self) -> Scores:
        """The scores of every node or edge."""
        return Scores.load(self.folder / "scores.npz")


@dataclass(frozen=True)
class Found(Discovery):
    """The same as it lies on disk, for commands that load no model.

    Attributes:
        status: How the run ended.
    """

    status: str


def stored(run: Run) -> Found:
    """What a run found.

    Raises:
        RunError: It found nothing yet, or its files were changed.
    """
    stages = {}
    for name, record in run.manifest["stages"].items():
        stage = run.stage(name, record["key"])
        if stage is not None:
            stages[name] = stage
    needed = ("prompts", "scores", "circuit")
    missing = [name for name in needed if name not in stages]
    if missing:
        raise RunError(
            f"the run has no finished stage '{missing[0]}' (it is {run.status})",
            where=str(run.path),
            hint="give the same discover command again: finished stages are reused",
        )
    circuit = Circuit.load(stages["circuit"].files["circuit.json"])
    pictures = (
        [path for path in stages["pictures"].files.values() if path.suffix != ".dot"]
        if "pictures" in stages
        else []
    )
    counted = {name: stages[name] for name in needed}  # as `discover` counts: drawing is no part of the cost
    return Found(circuit, run.path, summarise(circuit, counted, pictures, run.path), run.status)
