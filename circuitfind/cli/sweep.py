"""``circuitfind sweep``."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.common import Screen, common_options, duration, number, table
from circuitfind.cli.engine_options import engine_options, engined
from circuitfind.cli.options import picture_option, place_options, rerun_option
from circuitfind.cli.placing import placed, placing_options
from circuitfind.cli.progress import Progress
from circuitfind.errors import DIFFERS, INTERRUPTED, UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from circuitfind.session import Reporter
    from circuitfind.sweep.cells import Cell, Sweep
    from circuitfind.sweep.outcome import Outcome, Results
    from circuitfind.sweep.plan import CellPlan

STYLES = {"finished": "green", "reused": "green", "failed": "red", "interrupted": "yellow", "not run": "dim"}
ALWAYS = ("task", "model", "method")
FEW = 3
"""Runs that are named with one reason."""


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--only",
    metavar="KEY=VALUE",
    multiple=True,
    help="Only these runs, such as task=ioi; may be repeated: one key twice stands for either value.",
)
@click.option("--dry-run", is_flag=True, help="Say which runs there are and what they would take.")
@click.option("--template", is_flag=True, help="Print a commented sweep file to start from.")
@place_options
@placing_options
@engine_options
@picture_option
@rerun_option
@common_options
@placed
@engined
def sweep(
    screen: Screen,
    file: Path | None,
    only: tuple[str, ...],
    dry_run: bool,
    template: bool,
    memory: str | None,
    device: str,
    outputs: str | None,
    formats: tuple[str, ...],
    force: bool,
) -> None:
    """Run several tasks, models, methods and settings from one FILE, and show them side by side.

    Each combination is a run as `discover` makes it; finished ones are reused. One that fails is told, and the others go
    on. The exit code is 1 where some failed.

    \b
    circuitfind sweep --template > sweep.yaml
    circuitfind sweep sweep.yaml --dry-run
    circuitfind sweep sweep.yaml
    circuitfind sweep sweep.yaml --only task=ioi --only method=eap
    """
    if template:
        _print_template(screen)
        return
    if file is None:
        raise UsageError(
            "no sweep file is given",
            hint="write one with `circuitfind sweep --template > sweep.yaml`, then give its name",
        )
    from circuitfind.engine.chosen import engine
    from circuitfind.output.store import Store
    from circuitfind.settings import memory_bytes
    from circuitfind.sweep.cells import cells_of
    from circuitfind.sweep.run import PAGE, Place, run_sweep
    from circuitfind.sweep.spec import load_sweep
    from circuitfind.task.source import shown_path

    found = cells_of(load_sweep(file))
    chosen = found.only(only)
    place = Place(Store(outputs).root, device, memory_bytes(memory), formats, force)
    if dry_run:
        _plan(screen, found, chosen, place)
        return
    started = time.monotonic()
    words = ["circuitfind", "sweep", shown_path(file)] + (["--outputs", outputs] if outputs else [])
    with Progress(screen) as progress:
        listener = _Shown(screen, progress, chosen)
        results, finished = run_sweep(found, chosen, shlex.join(words), place, listener, engine())
    page = place.folder(found) / PAGE
    seconds = time.monotonic() - started
    document = {**results.as_dict(), "seconds": round(seconds, 3), "finished": finished, "page": str(page)}
    screen.result(document, lambda: _show(screen, results, page, outputs, seconds))
    if not finished:
        left = sum(one.state in ("interrupted", "not run") for one in results.outcomes)
        if not screen.quiet:
            text = f"interrupted, {number(left, 'run')} left: the same command goes on from there"
            screen.err.print(text, markup=False)
        raise click.exceptions.Exit(INTERRUPTED)
    labels = {cell.label for cell in chosen}
    if any(one.state == "failed" for one in results.outcomes if one.label in labels):
        raise click.exceptions.Exit(DIFFERS)


def _print_template(screen: Screen) -> None:
    from circuitfind.sweep.template import TEMPLATE

    screen.result({"version": 1, "template": TEMPLATE}, lambda: click.echo(TEMPLATE, nl=False))


class _Shown:
    """Cells on stderr: what runs, and a line for each that has ended."""

    def __init__(self, screen: Screen, progress: Progress, cells: Sequence[Cell]) -> None:
        self.screen, self.output, self.cells = screen, progress, cells
        self.width = max(len(cell.label) for cell in cells)
        self.digits = len(str(len(cells)))
        self.done = 0
        self.running: list[str] = []

    def started(self, index: int, cell: Cell) -> Reporter | None:
        self.running.append(cell.label)
        self.output.stage(self._now(), "running")
        return _Stages(self, cell)

    def ended(self, index: int, outcome: Outcome) -> None:
        self.done += 1
        if outcome.label in self.running:
            self.running.remove(outcome.label)
        label = f"{self.done:>{self.digits}}/{len(self.cells)} {outcome.label:<{self.width}}"
        told = outcome.problem or ""
        if outcome.faithfulness is not None:
            told = f"{_interval(outcome)}, {number(outcome.edges or 0, 'edge')}"
        self.output.stage(label, outcome.state, told)
        if self.running:
            self.output.stage(self._now(), "running")

    def _now(self) -> str:
        """Which run it is, or how many are under way."""
        first = f"{self.done + 1}/{len(self.cells)}"
        more = len(self.running) - 1
        return f"{first} {self.running[0]}" + (f" and {more} more" if more else "")


class _Stages:
    """The stages of the cell that runs."""

    def __init__(self, shown: _Shown, cell: Cell) -> None:
        self.shown, self.cell = shown, cell

    def stage(self, name: str, state: str, detail: str = "") -> None:
        if state == "running":
            self.shown.output.stage(f"{self.shown._now()}, {name}", state, detail)

    def progress(self, rows: int) -> None:
        self.shown.output.progress(rows)

    def note(self, text: str) -> None:
        if self.shown.screen.verbose:
            self.shown.output.note(f"{self.cell.label}: {text}")


# What is printed.


def _heading(screen: Screen, found: Sweep, many: int) -> None:
    """Its name, and what all runs have in common."""
    from rich.text import Text

    screen.out.print(Text.assemble((found.title, "bold"), f": a sweep of {number(many, 'run')}"))
    same = ", ".join(f"{name} {value}" for name, value in found.same.items())
    if same:
        screen.out.print(f"  all with {same}", markup=False)


def _columns(found: Sweep) -> tuple[str, ...]:
    return found.varied or ALWAYS


def _show(screen: Screen, results: Results, page: Path, outputs: str | None, seconds: float) -> None:
    from rich.text import Text

    found = results.sweep
    _heading(screen, found, len(results.outcomes))
    _print_rows(screen, results)
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in results.outcomes:
        if one.state == "failed":
            reasons.setdefault((one.problem or "", one.hint or ""), []).append(one.label)
    for (problem, hint), labels in reasons.items():
        screen.out.print()
        screen.out.print(Text.assemble((_named(labels), "bold"), f": {problem}"))
        if hint:
            screen.out.print(f"  hint: {hint}", markup=False)
    screen.out.print()
    parts = ", ".join(f"{count} {state}" for state, count in results.counts.items() if count)
    screen.out.print(f"{parts} ({duration(seconds)})", markup=False)
    words = ["circuitfind", "view", page.parent.name, *(["--outputs", outputs] if outputs else [])]
    screen.out.print(f"see them side by side:  {shlex.join(words)}", markup=False)
    screen.out.print(f"as a file:              {page}", markup=False)


def _named(labels: Sequence[str]) -> str:
    """A few runs by name, more by their number."""
    return (
        ", ".join(labels) if len(labels) <= FEW else f"{', '.join(labels[:FEW])} and {len(labels) - FEW} more"
    )


def _print_rows(screen: Screen, results: Results) -> None:
    """A row for each run, without columns in which nothing is known."""
    from rich.text import Text

    def certified(one: Outcome) -> str:
        return "" if one.certified is None else "yes" if one.certified else "no"

    makers: dict[str, Callable[[Outcome], str | Text]] = {
        "faithfulness": lambda one: _interval(one) or Text(one.state, style=STYLES[one.state]),
        "edges": lambda one: f"{one.edges:,}" if one.edges is not None else "",
        "certified": certified,
        "backups": lambda one: "" if one.backups is None else str(one.backups),
        "time": lambda one: "" if one.faithfulness is None else duration(one.seconds or 0.0),
    }
    made = {name: [make(one) for one in results.outcomes] for name, make in makers.items()}
    made = {name: cells for name, cells in made.items() if any(map(str, cells))}
    width = sum(max(len(name), *(len(str(cell)) for cell in cells)) + 3 for name, cells in made.items())
    told = [one.told for one in results.outcomes]
    labels = _labels(screen, results.sweep, told, [one.label for one in results.outcomes], width)
    _print_table(screen, labels, made, right=("faithfulness", "edges", "backups", "time"))


def _labels(
    screen: Screen, found: Sweep, told: Sequence[Mapping[str, str]], labels: Sequence[str], taken: int
) -> dict[str, list[Any]]:
    """What tells runs apart, in columns of their own where the width of the screen allows, else as one."""
    apart = {name: [one.get(name, "") for one in told] for name in _columns(found)}
    width = sum(max(len(name), *map(len, cells)) + 3 for name, cells in apart.items())
    return dict(apart) if width + taken <= screen.out.width else {"run": list(labels)}


def _print_table(
    screen: Screen,
    labels: Mapping[str, Sequence[Any]],
    numbers: Mapping[str, Sequence[Any]],
    right: tuple[str, ...],
) -> None:
    """Labels fold where they must; numbers do not."""
    from rich.text import Text

    rows = table(*labels, *numbers, right=right)
    for column in rows.columns[len(labels) :]:
        column.no_wrap = True
    for cells in zip(*labels.values(), *numbers.values(), strict=True):
        rows.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    screen.out.print(rows)


def _interval(one: Outcome) -> str:
    """Faithfulness and its interval; empty where nothing was measured."""
    found = one.faithfulness
    if found is None:
        return ""
    ends = ["inf" if found[key] is None else f"{found[key]:.2f}" for key in ("value", "low", "high")]
    return f"{ends[0]} [{ends[1]}, {ends[2]}]"


def _plan(screen: Screen, found: Sweep, chosen: Sequence[Cell], place: Any) -> None:
    """What there is to run; nothing is written."""
    from circuitfind.sweep.plan import plan_sweep

    with Progress(screen) as progress:
        plans = plan_sweep(chosen, place, lambda label: progress.stage(label, "running"))
    document = {
        "version": 1,
        "name": found.title,
        "folder": str(place.folder(found)),
        "varied": list(found.varied),
        "same": dict(found.same),
        "cells": [one.as_dict() for one in plans],
    }
    screen.result(document, lambda: _show_plan(screen, found, plans))


def _show_plan(screen: Screen, found: Sweep, plans: Sequence[CellPlan]) -> None:
    from rich.text import Text

    _heading(screen, found, len(plans))
    states = [Text(one.state, style="red" if one.problem else "green" if one.cached else "") for one in plans]
    made: dict[str, list[Any]] = {
        "stages": states,
        "forward": ["" if one.cached or one.forward is None else f"{one.forward:,}" for one in plans],
        "backward": ["" if one.cached or one.backward is None else f"{one.backward:,}" for one in plans],
        "time": [duration(one.seconds) if one.seconds else "" for one in plans],
    }
    labels = _labels(screen, found, [one.told for one in plans], [one.label for one in plans], 48)
    _print_table(screen, labels, made, right=("forward", "backward", "time"))
    for problem in dict.fromkeys(one.problem for one in plans if one.problem):
        names = _named([one.label for one in plans if one.problem == problem])
        screen.out.print(Text.assemble((names, "bold"), f": {problem}"))
    total = sum(one.seconds for one in plans)
    cached = sum(one.cached for one in plans)
    screen.out.print(
        f"{number(len(plans), 'run')}, {cached} cached; about {duration(total)}. A pass is one over all prompts of a run; "
        "stages that an earlier run of the sweep makes are not counted again. Nothing was written.",
        markup=False,
    )
