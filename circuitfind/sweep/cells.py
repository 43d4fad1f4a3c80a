"""The cells of a sweep: one run of ``discover`` for each combination. No torch here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from circuitfind.config import DEFAULT_CONTROLS, DEFAULT_METHOD, DEFAULT_UNIT_METHOD, Controls
from circuitfind.errors import UsageError, did_you_mean
from circuitfind.output.files import stage_key
from circuitfind.settings import Settings, resolve
from circuitfind.sweep.spec import MethodChoice, SweepSpec, every, matches, method_word, word
from circuitfind.task.checks import Problem
from circuitfind.task.source import shown_path, task_error
from circuitfind.task.spec import TaskSpec

ALWAYS = ("task", "model", "method")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        spec: Its task.
        given: What ``settings.resolve`` is given beside it.
        controls: How thoroughly its circuit is held against controls.
        views: Whether what a report shows beside is computed.
        told: What it is called by: ``task``, ``model``, ``method`` and each setting that the file gives.
        label: Those of them that are not the same in every cell of the sweep.
    """

    spec: TaskSpec
    given: Mapping[str, Any]
    controls: Controls
    views: bool
    told: Mapping[str, str]
    label: str = ""

    @property
    def model(self) -> str:
        return str(self.given["model"])

    def settings(self) -> Settings:
        """How its circuit is found.

        Raises:
            UsageError: Its values do not go together.
        """
        return resolve(self.spec, **self.given)


@dataclass(frozen=True)
class Sweep:
    """All cells of a file, in its order.

    Attributes:
        title: Its name.
        file: Where it was read from.
        cells: What is run.
        varied: Names of what differs between cells, in the order of columns.
        same: What all cells have, by name.
        key: Hash of what the file asks for; names the folder of the results with the title.
    """

    title: str
    file: str
    cells: tuple[Cell, ...]
    varied: tuple[str, ...]
    same: Mapping[str, str] = field(default_factory=dict)
    key: str = ""

    def only(self, wanted: Sequence[str]) -> tuple[Cell, ...]:
        """The cells that ``KEY=VALUE`` names; one key twice stands for either value.

        Raises:
            UsageError: No cell has such a key or value, or all of them.
        """
        by_key: dict[str, list[str]] = {}
        for text in wanted:
            key, sign, value = (part.strip() for part in text.partition("="))
            known = sorted({name for cell in self.cells for name in cell.told})
            if not sign or not value:
                hint = "write KEY=VALUE, such as --only task=ioi"
                raise UsageError(f"--only {text} names nothing", hint=hint)
            if key not in known:
                raise UsageError(f"the sweep has no '{key}' to choose by", hint=did_you_mean(key, known))
            values = sorted({cell.told[key] for cell in self.cells if key in cell.told})
            if value not in values:
                raise UsageError(f"no run of the sweep has {key} {value}", hint=did_you_mean(value, values))
            by_key.setdefault(key, []).append(value)
        chosen = tuple(cell for cell in self.cells if matches(cell.told, by_key))
        if not chosen:
            raise UsageError(
                f"no run of the sweep has all of {', '.join(wanted)}",
                hint="leave one of them out; --dry-run lists the runs",
            )
        return chosen


def cells_of(spec: SweepSpec) -> Sweep:
    """Every combination that is not left out: tasks first, then models, methods and settings as in the file.

    Raises:
        TaskError: Something that is left out is not there, or nothing remains.
    """
    made = list(_combined(spec))
    kept = [cell for cell in made if not any(matches(cell.told, one) for one in spec.leave_out)]
    problems = [
        Problem(("leave-out", i), "matches no run of the sweep", "correct its values, or drop it")
        for i, one in enumerate(spec.leave_out)
        if not any(matches(cell.told, one) for cell in made)
    ]
    if not kept and not problems:
        problems = [Problem(("leave-out",), "leaves nothing to run", "leave out less")]
    if problems:
        raise task_error(spec.source, problems)
    columns = list(dict.fromkeys(name for cell in kept for name in cell.told))
    varied = [name for name in columns if len({cell.told.get(name) for cell in kept}) > 1]
    same = {name: kept[0].told[name] for name in columns if name not in varied}
    named = varied or list(ALWAYS)
    cells = tuple(replace(cell, label=_label(cell, named)) for cell in kept)
    asked = spec.model_dump(by_alias=True, exclude_none=True, mode="json")
    return Sweep(spec.title, shown_path(spec.path), cells, tuple(varied), same, stage_key(asked)[:8])


def _combined(spec: SweepSpec) -> list[Cell]:
    values = spec.settings.values()
    models: tuple[str | None, ...] = (None,) if spec.models is None else every(spec.models)
    found: dict[str, Cell] = {}
    for task, model, method in itertools.product(spec.task_specs, models, spec.method_choices):
        for chosen in itertools.product(*values.values()):
            cell = _cell(spec, task, model, method, dict(zip(values, chosen, strict=True)))
            found.setdefault(
                stage_key([str(task.path), dict(cell.told)]), cell
            )  # a value that is listed twice
    return list(found.values())


def _cell(
    spec: SweepSpec,
    task: TaskSpec,
    model: str | None,
    method: MethodChoice | None,
    chosen: dict[str, Any],
) -> Cell:
    default = DEFAULT_METHOD if chosen.get("nodes", "heads,mlps") == "heads,mlps" else DEFAULT_UNIT_METHOD
    told = {
        "task": task.name,
        "model": model or task.model,
        "method": default if method is None else method_word(method),
        **{name.replace("_", "-"): word(value) for name, value in chosen.items()},
    }
    controls: Controls = chosen.pop("controls", DEFAULT_CONTROLS)
    views = chosen.pop("views", True)
    placed = {
        name: spec.place(value) if name in ("dictionaries", "model_b") else value
        for name, value in chosen.items()
    }
    given = {"model": task.model if model is None else spec.place(model), **placed}
    if method is not None:
        given |= {"method": method.name, "options": dict(method.options)}
    return Cell(task, given, controls, views, told)


def _label(cell: Cell, named: Sequence[str]) -> str:
    """``ioi mini eap seed=1``."""
    words = ((name, cell.told.get(name)) for name in named)
    return " ".join(text if name in ALWAYS else f"{name}={text}" for name, text in words if text)
