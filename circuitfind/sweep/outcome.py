"""What came of a cell of a sweep, and the files that hold all of them. No torch here."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from circuitfind.circuit.json_form import filled
from circuitfind.output.cells import cell
from circuitfind.reading import read_json
from circuitfind.sweep.cells import ALWAYS, Cell, Sweep

FORMAT = "circuitfind.sweep"
VERSION = 1
FILE = "sweep.json"
STAND_INS = ("backup", "second-order backup")

State = Literal["finished", "reused", "failed", "interrupted", "not run"]
"""``reused``: everything was there already. ``failed``: refused or broken, ``problem`` says why."""
DONE: tuple[State, ...] = ("finished", "reused")


@dataclass(frozen=True)
class Outcome:
    """One cell.

    Attributes:
        label: What the cell is called.
        told: Task, model, method and settings, in words by name.
        run: Name of the run folder.
        faithfulness: ``value``, ``low`` and ``high``, under the run's own ablation.
        certified: None where no evidence was gathered.
        backups: How many backups were found; None where none were looked for.
        accuracy: Share of the prompts that the model answers rightly.
        seconds: What the stages of the run took when they were computed.
        forward_passes, backward_passes: What was computed now: 0 where everything was reused.
        problem: Why it failed, and ``hint`` what to do.
        report: Whether the run has a report.
    """

    label: str
    told: Mapping[str, str]
    state: State
    run: str | None = None
    faithfulness: Mapping[str, float | None] | None = None
    ablation: str | None = None
    nodes: int | None = None
    edges: int | None = None
    edges_in_model: int | None = None
    certified: bool | None = None
    backups: int | None = None
    accuracy: float | None = None
    seconds: float | None = None
    forward_passes: int = 0
    backward_passes: int = 0
    problem: str | None = None
    hint: str | None = None
    report: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outcome:
        """Read what ``as_dict`` wrote.

        Raises:
            TypeError, KeyError: It is not that.
        """
        known = {one.name for one in fields(cls)}
        return filled(cls, {key: value for key, value in data.items() if key in known})


def of_summary(cell: Cell, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a table says of a finished run."""
    counts, evaluations = summary["counts"], summary["evaluations"]
    first = evaluations[0] if evaluations else None
    backups, evidence = summary.get("backups"), summary.get("evidence")
    found = None if backups is None or (not backups.get("counts") and backups.get("skipped")) else backups
    return {
        "run": summary["run"],
        "faithfulness": None if first is None else dict(first["faithfulness"]),
        "ablation": None if first is None else first["ablation"],
        "nodes": counts.get("nodes"),
        "edges": counts.get("edges"),
        "edges_in_model": counts.get("edges_in_model"),
        "certified": None if evidence is None else bool(evidence["certified"]),
        "backups": None if found is None else sum(found["counts"].get(kind, 0) for kind in STAND_INS),
        "accuracy": summary["prompts"]["accuracy"],
        "seconds": summary["seconds"],
    }


@dataclass(frozen=True)
class Results:
    """A sweep with what came of its cells so far, in the order of the file."""

    sweep: Sweep
    command: str
    outcomes: tuple[Outcome, ...]

    @property
    def counts(self) -> dict[str, int]:
        states: tuple[State, ...] = ("finished", "reused", "failed", "interrupted", "not run")
        return {state: sum(one.state == state for one in self.outcomes) for state in states}

    @property
    def complete(self) -> bool:
        """Whether every cell has a circuit."""
        return all(one.state in DONE for one in self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        """Plain data: what ``sweep.json`` holds, and ``--json`` prints."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.sweep.title,
            "file": self.sweep.file,
            "command": self.command,
            "key": self.sweep.key,
            "varied": list(self.sweep.varied),
            "same": dict(self.sweep.same),
            "cells": [one.as_dict() for one in self.outcomes],
            "counts": self.counts,
        }

    def text(self) -> str:
        """The same as text."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def csv(self) -> str:
        """One row for each cell: what it is told by, then numbers; empty where there is none."""
        told = list(dict.fromkeys(name for one in self.outcomes for name in one.told))
        heads = [name if name in ALWAYS else f"setting_{name}" for name in told]
        numbers = [
            "nodes", "edges", "edges_in_model", "certified", "backups", "accuracy", "seconds",
            "forward_passes", "backward_passes", "problem",
        ]  # fmt: skip
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        ends = ["faithfulness", "faithfulness_low", "faithfulness_high"]
        writer.writerow([*heads, "state", "run", "ablation", *ends, *numbers])
        for one in self.outcomes:
            found = one.faithfulness or {}
            row: list[Any] = [one.told.get(name, "") for name in told]
            row += [one.state, one.run, one.ablation]
            row += [found.get(key) for key in ("value", "low", "high")]
            row += [getattr(one, name) for name in numbers]
            writer.writerow(["" if x is None else cell(x) for x in row])
        return text.getvalue()


def earlier(folder: Path, cells: Sequence[Cell]) -> dict[str, Outcome]:
    """What an earlier call recorded, by label; nothing where the file is missing or damaged, since runs are the record."""
    try:
        data = read_json(folder / FILE)
        if (data["format"], data["version"]) != (FORMAT, VERSION):
            return {}
        found = [Outcome.from_dict(one) for one in data["cells"]]
        labels = {cell.label for cell in cells}
        return {one.label: one for one in found if one.label in labels}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
