"""``circuitfind check``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.common import Screen, common_options, duration, number, table
from circuitfind.cli.engine_options import engine_options, engined
from circuitfind.cli.options import complete_tasks, device_option, memory_option, model_option
from circuitfind.cli.placing import placed, placing_options
from circuitfind.cli.progress import Progress
from circuitfind.errors import INTERRUPTED, OK, UsageError

if TYPE_CHECKING:
    from circuitfind.check.cases import Case
    from circuitfind.check.outcome import Outcome
    from circuitfind.check.update import Update
    from circuitfind.engine.base import Engine
    from circuitfind.session import Reporter

STYLES = {"as expected": "green", "differs": "red", "skipped": "yellow", "error": "red"}


@click.command()
@click.argument("tasks", metavar="[TASK]...", nargs=-1, shell_complete=complete_tasks)
@click.option(
    "--tier",
    type=click.IntRange(1, 3),
    help="Cases of this tier: 1 needs no download, 2 small hub models, 3 a GPU.  [default: 1; of a named task, all]",
)
@model_option("all that a task expects something of")
@click.option("--case", "name", metavar="NAME", help="Only cases of this name, where a model has several.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML, as CI servers read it.")
@click.option("--update", "rewrite", is_flag=True, help="Show what differs, then rewrite the baselines.")
@click.option(
    "--force", is_flag=True, help="With --update, also where expectations fail or nothing has changed."
)
@click.option("--strict", is_flag=True, help="Fail too where a case was skipped or has no baseline.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Cases side by side, each in a process.  [default: cores; 1 with models outside the zoo]",
)
@engine_options
@click.option(
    "--baselines", metavar="FOLDER", help="Stored baselines.  [default: baselines/ beside the task file]"
)
@memory_option
@device_option
@placing_options
@click.option(
    "--outputs",
    metavar="FOLDER",
    help="Folder of run folders.  [default: check/ in $CIRCUITFIND_OUTPUTS or outputs]",
)
@common_options
@placed
@engined
def check(
    screen: Screen,
    tasks: tuple[str, ...],
    tier: int | None,
    model: str | None,
    name: str | None,
    junit: str | None,
    rewrite: bool,
    force: bool,
    strict: bool,
    jobs: int | None,
    baselines: str | None,
    memory: str | None,
    device: str,
    outputs: str | None,
) -> None:
    """Run tasks, and compare with what they expect and with what they gave before.

    TASK is a name or a YAML file with `expect:`; without one, every task of the tier is run. Nothing that was computed
    before is reused. Exit code 1 says that something differs, 3 that something broke.

    \b
    circuitfind check
    circuitfind check ioi --update
    circuitfind check --tier 2 --junit results.xml
    circuitfind check my-task.yaml --model ./my-model --json
    """
    from circuitfind.check.cases import find_cases
    from circuitfind.check.outcome import exit_code, of_damaged
    from circuitfind.check.pool import run_cases
    from circuitfind.check.run import Where
    from circuitfind.check.update import update
    from circuitfind.output.files import make_folder, write_atomic
    from circuitfind.output.store import Store
    from circuitfind.settings import memory_bytes

    if force and not rewrite:
        raise UsageError("--force says what --update rewrites", hint="add --update, or leave it out")
    if junit is not None and Path(junit).is_dir():
        raise UsageError(
            f"--junit {junit} is a folder", hint=f"name a file, such as {Path(junit) / 'check.xml'}"
        )
    budget = memory_bytes(memory)
    cases, damaged = find_cases(tasks, tier=tier, model=model, name=name)
    folder = Path(outputs) if outputs else Store().root / "check"
    make_folder(folder)
    where = Where(folder, device, budget, Path(baselines) if baselines else None)
    begun, started = datetime.now(timezone.utc), time.monotonic()
    engine, count = _workers(cases, device, jobs)
    with Progress(screen) as progress:
        listener = _Shown(screen, progress, cases, alone=min(count, len(cases)) <= 1)
        outcomes, finished = run_cases(cases, where, listener, jobs=count, engine=engine)
    outcomes += [of_damaged(one, tier or 1) for one in damaged]
    seconds = time.monotonic() - started
    if junit is not None:
        from circuitfind.check.junit import junit_xml

        write_atomic(Path(junit), junit_xml(outcomes, begun))
    unsettled, made = outcomes, None

    def show() -> None:
        _show(screen, outcomes, seconds)
        if not rewrite and finished:
            _next(screen, outcomes, tasks)

    if not screen.as_json:  # what differs is shown before it is taken for right
        show()
    if rewrite and finished:
        made = update(outcomes, force=force)
        unsettled = [one for one in outcomes if one.label not in made.settled]
        if not screen.as_json:
            _show_update(screen, made)
    if screen.as_json:
        screen.result(_document(outcomes, seconds, finished, made), show)
    if not finished:
        total = number(len(cases), "case")
        screen.err.print(f"interrupted: {len(outcomes) - len(damaged)} of {total} were run", markup=False)
    code = exit_code(unsettled, strict=strict) if finished else INTERRUPTED
    if code != OK:
        raise click.exceptions.Exit(code)


def _workers(cases: Sequence[Case], device: str, jobs: int | None) -> tuple[Engine | None, int]:
    """The engine that was asked for, if any, and how many cases run side by side."""
    from circuitfind.engine.chosen import engine

    chosen = engine()
    if jobs is None:
        here = 1 if click.get_current_context().params.get("engine") == "local" else _jobs(cases, device)
        return chosen, here if chosen is None else chosen.workers
    if chosen is not None:
        raise UsageError(
            "--jobs and --engine both say who does the work", hint="give --engine and --workers alone"
        )
    return None, jobs


def _jobs(cases: Sequence[Case], device: str) -> int:
    """One process for each core, where models are small and the device can be shared."""
    from circuitfind.machine import cores
    from circuitfind.zoo import is_zoo

    if device not in ("auto", "cpu") or not all(is_zoo(case.model) for case in cases):
        return 1
    return cores()


# On the screen.


class _Shown:
    """Cases on stderr: what runs, and a line for each that has ended."""

    def __init__(self, screen: Screen, progress: Progress, cases: Sequence[Case], *, alone: bool) -> None:
        self.screen, self.output, self.alone = screen, progress, alone
        self.width = max((len(case.label) for case in cases), default=0)
        self.running: list[str] = []

    def started(self, case: Case) -> Reporter | None:
        self.running.append(case.label)
        self.output.stage(", ".join(self.running), "running")
        return _Stages(self, case.label) if self.alone else None

    def ended(self, outcome: Outcome) -> None:
        if outcome.label in self.running:
            self.running.remove(outcome.label)
        why = f": {outcome.first_reason}" if outcome.first_reason else ""
        self.output.stage(
            f"{outcome.label:<{self.width}}", outcome.verdict, f"{duration(outcome.seconds)}{why}"
        )
        self.output.stage(", ".join(self.running), "running")


class _Stages:
    """The stages of a case that runs in this process."""

    def __init__(self, shown: _Shown, label: str) -> None:
        self.shown, self.label = shown, label

    def stage(self, name: str, state: str, detail: str = "") -> None:
        if state == "running":
            self.shown.output.stage(f"{self.label}, {name}", state, detail)

    def progress(self, rows: int) -> None:
        self.shown.output.progress(rows)

    def note(self, text: str) -> None:
        if self.shown.screen.verbose:
            self.shown.output.note(f"{self.label}: {text}")


def _show(screen: Screen, outcomes: Sequence[Outcome], seconds: float) -> None:
    from rich.text import Text

    from circuitfind.check.junit import told
    from circuitfind.check.outcome import counts

    rows = table("case", "verdict", "faithfulness", "edges", "time", right=("faithfulness", "edges", "time"))
    for one in outcomes:
        verdict = Text(one.verdict, style=STYLES[one.verdict])
        faithfulness = "" if one.faithfulness is None else f"{one.faithfulness:.3f}"
        edges = "" if one.edges is None else str(one.edges)
        rows.add_row(Text(one.label), verdict, faithfulness, edges, duration(one.seconds))
    if outcomes:
        screen.out.print(rows)
    for one in outcomes:
        if one.verdict == "as expected":
            continue
        screen.out.print()
        screen.out.print(Text.assemble((one.label, "bold"), f"  {one.verdict}"))
        lines = told(one) if one.reasons else [one.problem or ""]
        for line in lines:
            screen.out.print(f"  {line}", markup=False)
        if one.trace and screen.verbose:
            screen.out.print(one.trace, markup=False)
    found = counts(outcomes)
    named = {"as expected": "as expected", "differs": "differs" if found["differs"] == 1 else "differ"}
    named |= {"skipped": "skipped"} | ({"error": "broke"} if found["error"] else {})
    parts = ", ".join(f"{found[key]} {word}" for key, word in named.items())
    screen.out.print()
    screen.out.print(f"{number(len(outcomes), 'case')}: {parts} ({duration(seconds)})", style="bold")


def _next(screen: Screen, outcomes: Sequence[Outcome], tasks: Sequence[str]) -> None:
    """What to do now."""
    first = next((one for one in outcomes if one.verdict == "differs"), None)
    if first is not None:
        if first.folder is not None:
            screen.out.print(f"see what it found:    circuitfind show {first.folder}", markup=False)
        if any(one.verdict == "differs" and one.meets_expectations for one in outcomes):
            named = " ".join(
                dict.fromkeys(o.task for o in outcomes if o.verdict == "differs" and o.meets_expectations)
            )
            screen.out.print(f"if that is intended:  circuitfind check {named} --update", markup=False)
    elif any(one.verdict == "error" for one in outcomes):
        screen.out.print("see where it broke:   the same command with -v", markup=False)
    without = [one for one in outcomes if not one.has_baseline and one.verdict == "as expected"]
    if without:
        have = "has" if len(without) == 1 else "have"
        words = " ".join(["circuitfind check", *tasks, "--update"])
        screen.out.print(f"{number(len(without), 'case')} {have} no baseline yet: {words}", markup=False)


def _show_update(screen: Screen, made: Update) -> None:
    for what, paths in (("rewritten", made.rewritten), ("new", made.new)):
        for path in paths:
            screen.out.print(f"baseline {what}: {path}", markup=False)
    if made.left:
        text = f"not written, since they do not hold: {', '.join(made.left)} (--force writes what came to its end)"
        screen.out.print(text, markup=False)
    if not (made.rewritten or made.new or made.left):
        screen.out.print("every baseline stays as it is")


def _document(
    outcomes: Sequence[Outcome], seconds: float, finished: bool, made: Update | None
) -> dict[str, Any]:
    from circuitfind.check.outcome import counts

    document: dict[str, Any] = {
        "version": 1,
        "cases": [one.as_dict() for one in outcomes],
        "counts": counts(outcomes),
        "seconds": round(seconds, 3),
        "finished": finished,
    }
    if made is not None:
        document["baselines"] = {
            "rewritten": [str(path) for path in made.rewritten],
            "new": [str(path) for path in made.new],
            "left": made.left,
        }
    return document
