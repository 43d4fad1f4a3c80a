"""What is checked: one case for each task, model and set of expectations. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitfind.errors import CircuitfindError, UsageError, did_you_mean
from circuitfind.output.store import slug
from circuitfind.settings import Settings, resolve
from circuitfind.task.findings import Expect
from circuitfind.task.spec import TaskSpec, find_tasks, load_task

BASELINES = "baselines"
"""Folder of stored baselines, beside the task files."""


@dataclass(frozen=True)
class Case:
    """A task on one model, with what is expected of it."""

    spec: TaskSpec
    model: str
    expect: Expect

    @property
    def label(self) -> str:
        """What it is called on the screen: the task, and what is not as by default."""
        own = () if self.model == self.spec.model else (f"on {self.model}",)
        named = () if self.expect.name is None else (f"({self.expect.name})",)
        return " ".join((self.spec.name, *own, *named))

    @property
    def tier(self) -> int:
        return self.expect.tier

    def settings(self) -> Settings:
        """How its circuit is found.

        Raises:
            UsageError: An unknown name or a value out of range.
        """
        given = self.expect.settings.model_dump(exclude_none=True)
        named: dict[str, Any] = {key: value for key, value in given.items() if value != {}}
        return resolve(self.spec, model=self.model, **named)

    def baseline(self, folder: Path | None = None) -> Path:
        """Where its baseline is, or will be: ``baselines/<task>.<model>[.<case>].json``.

        Args:
            folder: Of baselines; the one beside the task file if None.
        """
        if folder is None:
            beside = self.spec.path.parent if self.spec.path is not None else Path()
            folder = beside / BASELINES
        parts = [self.spec.name, slug(self.model), *([self.expect.name] if self.expect.name else [])]
        return folder / f"{'.'.join(parts)}.json"


@dataclass(frozen=True)
class Damaged:
    """A file in a folder of tasks that cannot be read."""

    name: str
    error: CircuitfindError


def cases_of(spec: TaskSpec) -> Iterator[Case]:
    """Every case of a task, in the order of the file."""
    for model in spec.expect:
        for expect in spec.expect_of(model):
            yield Case(spec, model, expect)


def find_cases(
    tasks: Sequence[str] = (), *, tier: int | None = None, model: str | None = None, name: str | None = None
) -> tuple[list[Case], list[Damaged]]:
    """The cases that are asked for, and files that cannot be read.

    Args:
        tasks: Names or paths; every task of the task folders if empty.
        tier: Of this tier alone; if None, all of named tasks, and tier 1 where none is named.
        model: On this model alone.
        name: Of this name alone.

    Raises:
        TaskError: A named task does not exist or cannot be read.
        UsageError: A named task expects nothing, or nothing of this tier, model and name is there.
    """
    if tasks:
        specs = [load_task(name) for name in dict.fromkeys(tasks)]
        damaged: list[Damaged] = []
        for spec in specs:
            _check_expects(spec, tier, model)
    else:
        tier = 1 if tier is None else tier
        specs, damaged = _every_task()
    every = [case for spec in specs for case in cases_of(spec)]
    models = {case.model for case in every}
    names = {case.expect.name for case in every if case.expect.name is not None}
    if name is not None:
        every = [case for case in every if case.expect.name == name]
    found = [case for case in every if tier in (None, case.tier) and model in (None, case.model)]
    if not found and not damaged:
        asked = [f"of tier {tier}"] if tier else []
        asked += [f"on {model}"] if model else []
        asked += [f"named {name}"] if name else []
        hint = "a task is checked when its file has `expect:`; see docs/check.md"
        if name is not None:
            hint = did_you_mean(name, names) if names else "no case has a name: leave out --case"
        elif model is not None:
            hint = did_you_mean(model, models)
        raise UsageError(" ".join(["there is no case", *asked]), hint=hint)
    return found, damaged


def _check_expects(spec: TaskSpec, tier: int | None, model: str | None) -> None:
    if not spec.expect:
        raise UsageError(
            f"task {spec.name} expects nothing, so there is nothing to check",
            where=str(spec.path) if spec.path is not None else None,
            hint=f"add to the file:  expect: {{{spec.model}: {{faithfulness: {{min: 0.85}}}}}}",
        )
    if model is not None and model not in spec.expect:
        raise UsageError(
            f"task {spec.name} expects nothing of {model}",
            where=spec.where("expect"),
            hint=did_you_mean(model, spec.expect),
        )
    tiers = sorted({case.tier for case in cases_of(spec) if model in (None, case.model)})
    if tier is not None and tier not in tiers:
        raise UsageError(
            f"task {spec.name} has no case of tier {tier}",
            where=spec.where("expect"),
            hint=f"leave out --tier; its cases are of tier {', '.join(map(str, tiers))}",
        )


def _every_task() -> tuple[list[TaskSpec], list[Damaged]]:
    specs, damaged = [], []
    for name, path in find_tasks().items():
        try:
            specs.append(load_task(path))
        except CircuitfindError as error:
            damaged.append(Damaged(name, error))
    return specs, damaged
