"""What a run found, as plain data: beside a known circuit, in numbers, from disk. Loads no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitfind.backups.report import BackupReport
from circuitfind.circuit.backup import stood_in_for
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.scores import Scores
from circuitfind.errors import RunError, UsageError
from circuitfind.evidence.report import Evidence
from circuitfind.output.store import Run, Stage, Store
from circuitfind.reading import read_json
from circuitfind.shown import Shown
from circuitfind.views.report import FILE

REPORT = "report.html"
"""A run's report, in its folder (output/report/)."""


def strongest(scores: Scores, count: int) -> dict[str, list[dict[str, Any]]]:
    """The strongest of all nodes or edges (``top``), with whatever else the method says of each; and of the inputs of
    heads (``readers``) and the neurons (``neurons``), where it scores those too.
    """
    anatomy = scores.anatomy
    also = {name: array for name, array in scores.extra.items() if array.shape == scores.values.shape}
    width = scores.values.shape[-1]
    found: dict[str, list[dict[str, Any]]] = {"top": []}
    for i in _largest(scores.values, count):
        name = anatomy.edge_at(i // width, i % width) if scores.level == "edge" else anatomy.writers[i]
        row: dict[str, Any] = {"name": str(name), "score": float(scores.values.flat[i])}
        found["top"].append(row | {key: _number(array.flat[i]) for key, array in also.items()})
    readers, neurons = scores.extra.get("readers"), scores.extra.get("neurons")
    if readers is not None:
        names = anatomy.reader_names
        found["readers"] = [{"name": names[i], "score": float(readers[i])} for i in _largest(readers, count)]
    if neurons is not None:
        per_layer = neurons.shape[1]
        found["neurons"] = [
            {"name": f"m{i // per_layer}.n{i % per_layer}", "score": float(neurons.flat[i])}
            for i in _largest(neurons, count)
        ]
    return found


def by_position(scores: Scores, count: int) -> dict[str, Any]:
    """What each of the strongest nodes does at each position: its score, or the sum over the edges out of it.

    Raises:
        UsageError: Positions were not kept apart.
    """
    if scores.by_position is None or scores.position_names is None:
        raise UsageError(
            "this run did not keep positions apart",
            hint="run discover with --positions named (or all)",
        )
    table = scores.by_position if scores.level == "node" else np.nansum(scores.by_position, axis=2)
    rows = _largest(np.abs(table).sum(0), count)
    return {
        "positions": list(scores.position_names),
        "nodes": [
            {"name": str(scores.anatomy.writers[i]), "scores": [float(x) for x in table[:, i]]} for i in rows
        ],
    }


def _largest(values: Float[np.ndarray, ...], count: int) -> list[int]:
    """Where the largest magnitudes are, among the flattened values."""
    size = np.where(np.isnan(values), -1.0, np.abs(values)).ravel()
    return [int(i) for i in np.argsort(-size, kind="stable")[:count] if size[i] >= 0]


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def circuit_file(stages: Mapping[str, Stage]) -> Path:
    """Where a run's circuit is: with its backups, as it was pruned, or as older versions wrote it."""
    backups = stages.get("backups")
    if backups is not None and "circuit.json" in backups.files:
        return backups.files["circuit.json"]
    pruned = stages["circuit"].files
    return pruned.get("pruned.json") or pruned["circuit.json"]


def _backups(circuit: Circuit, stage: Stage) -> dict[str, Any]:
    """What stands in, and what was left out of the circuit because of that."""
    facts = stage.facts
    file = stage.files.get("backups.json")
    return {
        "skipped": facts["skipped"],
        "verdict": facts["verdict"],
        "counts": facts["counts"],
        "found": circuit.as_dict()["backups"],
        "included": facts.get("without_backups") is not None,
        "faithfulness_without": facts.get("without_backups"),
        "file": None if file is None else str(file),
    }


def of_now(stages: Mapping[str, Stage], *names: str) -> list[Stage]:
    """Those of some stages that are of the circuit as it is now."""
    last = stages.get("backups") or stages.get("circuit")
    found = (stages.get(name) for name in names)
    return [s for s in found if s is not None and last is not None and s.facts["of"] == last.key]


def evidence_stages(stages: Mapping[str, Stage]) -> list[Stage]:
    """The evidence on the circuit as it is now: what ``evaluate`` gathered, then what ``discover`` did."""
    return of_now(stages, "evaluation", "evidence")


def _evidence(stages: Mapping[str, Stage]) -> dict[str, Any] | None:
    """The verdict, what it was measured on and what was held against it."""
    stage = next(iter(evidence_stages(stages)), None)
    if stage is None:
        return None
    path = next(iter(stage.files.values()))
    found = Evidence.load(path)
    data = found.as_dict()
    return {
        **stage.facts["verdict"],
        "prompts": data["prompts"],
        "measured": data["measured"],
        "controls": data["controls"],
        "notes": data["notes"],
        "file": str(path),
    }


def views_stage(stages: Mapping[str, Stage]) -> Stage | None:
    """The views of the circuit as it is now."""
    return next(iter(of_now(stages, "views")), None)


def _views(stages: Mapping[str, Stage]) -> dict[str, Any] | None:
    """Where they are, and what they lack."""
    stage = views_stage(stages)
    if stage is None:
        return None
    return {"file": str(stage.files[FILE]), "missing": stage.facts["missing"], "notes": stage.facts["notes"]}


def _redundant(circuit: Circuit) -> list[dict[str, Any]]:
    return [
        {
            "nodes": [str(n) for n in found.nodes],
            "group": [str(n) for n in found.group],
            "backups": [str(n) for n in found.backups],
            "reader": found.reader,
        }
        for found in stood_in_for(circuit)
    ]


def summarise(
    circuit: Circuit, stages: Mapping[str, Stage], pictures: list[Path], folder: Path
) -> dict[str, Any]:
    """The numbers of a run as plain data, for printing and for ``--json``."""
    data = circuit.as_dict()
    prompts, scoring, pruning = (stages[name].facts for name in ("prompts", "scores", "circuit"))
    backups = stages.get("backups")
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
        "verification": scoring.get("verification"),
        "units": scoring.get("units"),
        "model_b": scoring.get("model_b"),
        "precision_check": scoring.get("precision_check"),
        # What joins the circuit afterwards was not tried for dropping.
        "minimal": pruning["minimal"] and not (backups is not None and backups.facts.get("without_backups")),
        "circuits_tried": pruning["evaluations"],
        "known": pruning["known"],
        "backups": None if backups is None else _backups(circuit, backups),
        "completeness": None if backups is None else backups.facts.get("completeness"),
        "redundant": _redundant(circuit),
        "evidence": _evidence(stages),
        "views": _views(stages),
        "seconds": round(sum(s.facts["seconds"] for s in stages.values()), 2),
        "forward_passes": sum(s.facts["forward_passes"] for s in stages.values()),
        "backward_passes": sum(s.facts["backward_passes"] for s in stages.values()),
        "pictures": [str(path) for path in pictures],
        "report": report_file(folder),
    }


def report_file(folder: Path) -> str | None:
    """Where a run's report is, if it has been written."""
    path = folder / REPORT
    return str(path) if path.is_file() else None


@dataclass(frozen=True)
class Discovery(Shown):
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

    @property
    def evidence(self) -> Evidence | None:
        """What was measured of the circuit as it is now, on new prompts and against controls: the most that there is.

        None where the run was made without.
        """
        found = evidence_stages(finished_stages(Store(self.folder.parent).find(self.folder.name)))
        return Evidence.load(next(iter(found[0].files.values()))) if found else None

    @property
    def backups(self) -> BackupReport:
        """What stands in when heads are removed.

        Raises:
            RunError: The run was not searched for it, or the search was refused.
        """
        return searched(Store(self.folder.parent).find(self.folder.name)).report


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
    stages = finished_stages(run)
    needed = ("prompts", "scores", "circuit")
    missing = [name for name in needed if name not in stages]
    if of_features(run):
        raise no_circuit(run)
    if missing and alone(run):
        raise RunError(
            "the run looked for backups alone: it has no circuit",
            where=str(run.path),
            hint=f"see `circuitfind show {run.name} --backups`, or find a circuit with `circuitfind discover`",
        )
    if missing:
        raise unfinished(run, missing[0])
    circuit = Circuit.load(circuit_file(stages))
    pictures = (
        [path for path in stages["pictures"].files.values() if path.suffix != ".dot"]
        if "pictures" in stages
        else []
    )
    counted = {
        name: stages[name]
        for name in (*needed, "backups", "evidence", "views", "evaluation")
        if name in stages
    }  # as `discover` counts: drawing is no part of the cost
    return Found(circuit, run.path, summarise(circuit, counted, pictures, run.path), run.status)


def alone(run: Run) -> bool:
    """Whether a run is a search for backups without a circuit."""
    return "backups" in run.manifest["config"]


def of_features(run: Run) -> bool:
    """Whether a run ends in a feature graph in place of a circuit."""
    return "saes" in run.manifest["config"]


def command_of(run: Run) -> str:
    """The command that makes runs of its kind."""
    if not of_features(run):
        return "circuitfind discover"
    return "circuitfind saes" if run.manifest["config"]["saes"] else "circuitfind discover --nodes features"


def no_circuit(run: Run) -> RunError:
    """That a feature graph is not a circuit."""
    made = command_of(run)
    return RunError(
        f"the run is one of `{made}`: it has a feature graph, and no circuit",
        where=str(run.path),
        hint=f"see `circuitfind show {run.name}`, or find a circuit with `circuitfind discover`",
    )


def unfinished(run: Run, stage: str) -> RunError:
    """That a run has not come so far."""
    made = f"`{command_of(run)}`" if of_features(run) else "discover"
    why = "a file of it is missing or was changed" if run.status == "finished" else f"it is {run.status}"
    return RunError(
        f"the run has no finished stage '{stage}' ({why})",
        where=str(run.path),
        hint=f"give the same {made} command again: finished stages are reused",
    )


def finished_stages(run: Run) -> dict[str, Stage]:
    """The stages of a run whose files are whole, by name."""
    found = ((name, run.stage(name, record["key"])) for name, record in run.manifest["stages"].items())
    return {name: stage for name, stage in found if stage is not None}


@dataclass(frozen=True)
class Searched:
    """What a search for backups found, as it lies on disk.

    Attributes:
        report: All of it.
        folder: The run folder.
        facts: What the stage took and told.
    """

    report: BackupReport
    folder: Path
    facts: Mapping[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / "backups.json"

    def as_dict(self) -> dict[str, Any]:
        """The report, and where it is."""
        return {**self.report.as_dict(), "run": self.folder.name, "file": str(self.file)}


def searched(run: Run, stage: Stage | None = None) -> Searched:
    """The search of a run.

    Raises:
        RunError: It has none, or the search was refused.
    """
    stage = stage or finished_stages(run).get("backups")
    if stage is None or "backups.json" not in stage.files:
        why = f": {stage.facts['skipped']}" if stage is not None else ""
        raise RunError(
            f"the run has not been searched for backups{why}",
            where=str(run.path),
            hint=f"search it with `circuitfind backups {run.name}`",
        )
    path = stage.files["backups.json"]
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(
            f"the report cannot be read: {error}", where=str(path), hint="run `circuitfind backups` again"
        ) from error
    return Searched(BackupReport.from_dict(data, where=str(path)), run.path, stage.facts)
