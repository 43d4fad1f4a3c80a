"""Which engine the user's words stand for, and what a sweep does with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuitfind.engine.base import Failed, Job
from circuitfind.engine.chosen import checked, engine, make_engine, working_with
from circuitfind.engine.hands import EngineHands
from circuitfind.engine.local import LocalEngine
from circuitfind.errors import RunError, UsageError
from circuitfind.model.pieces import Own
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.sweep import run
from circuitfind.sweep.cells import Cell, Sweep
from circuitfind.sweep.outcome import FILE, Outcome
from circuitfind.task.spec import load_task


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ((None, None, None), "local"),
        (("local", 1, None), "local"),
        ((None, 2, None), "processes"),
        ((None, 1, None), "processes"),
        ((None, 3, "auto"), "ray"),
        (("ray", None, None), "ray"),
    ],
)
def test_what_options_stand_for(given: Any, name: str) -> None:
    assert checked(*given) == name


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("proceses", None, None), "did you mean 'processes'"),
        (("Rai", None, None), "did you mean 'ray'"),
        (("processes", 0, None), "--workers 1 to"),
        (("ray", 10**6, None), "--workers 1 to"),
        (("local", 4, None), "--engine processes"),
        (("processes", 2, "auto"), "--engine ray"),
    ],
)
def test_what_does_not_go_together(given: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_engine(*given)
    assert says in str(caught.value)


def test_sessions_work_with_the_engine_of_the_block() -> None:
    spec = load_task("ioi")

    def hands() -> Any:
        return Session(spec, resolve(spec)).hands.inner

    assert isinstance(hands(), Own)
    with working_with("processes", 2) as chosen:
        assert engine() is chosen
        found = hands()
        assert isinstance(found, EngineHands)
        assert found.engine is chosen
    assert engine() is None
    assert isinstance(hands(), Own)


# Sweeps.


class Heard:
    """What a listener heard."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.told: list[tuple[int, str]] = []

    def started(self, index: int, cell: Cell) -> None:
        self.began.append(index)

    def ended(self, index: int, outcome: Outcome) -> None:
        self.told.append((index, outcome.state))


def a_sweep() -> Sweep:
    spec = load_task("ioi")
    cells = [
        Cell(spec, {"model": model}, "none", False, {"task": "ioi", "model": model, "method": method}, label)
        for label, model, method in (("a", "x", "eap"), ("b", "y", "eap"), ("c", "x", "eap-ig"))
    ]
    return Sweep("test", "test.yaml", tuple(cells), ("model", "method"), key="key")


@pytest.fixture
def cells_at_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells that are done at once; the labels in the order in which they are."""
    order: list[str] = []

    def done(cell: Cell, *given: Any) -> Outcome:
        order.append(cell.label)
        return Outcome(cell.label, dict(cell.told), "finished", run=cell.label)

    monkeypatch.setattr(run, "_run", done)
    return order


def states(results: Any) -> dict[str, str]:
    return {one.label: one.state for one in results.outcomes}


def test_cells_are_jobs(cells_at_once: list[str], tmp_path: Path) -> None:
    found, place, heard = a_sweep(), run.Place(tmp_path, "cpu"), Heard()
    results, finished = run.run_sweep(found, found.cells, "again", place, heard, LocalEngine())
    alone, _ = run.run_sweep(found, found.cells, "again", replace(place, outputs=tmp_path / "2"), Heard())
    assert finished
    assert results.as_dict() == alone.as_dict()
    assert cells_at_once == ["a", "c", "b"] * 2, "those of one model after each other"
    assert heard.began == [0, 2, 1]
    assert heard.told == [(0, "finished"), (2, "finished"), (1, "finished")]


class Broken(LocalEngine):
    """Loses its second job, and is interrupted in the third, if there is to be an interruption."""

    def __init__(self, interrupted: bool) -> None:
        super().__init__()
        self.interrupted = interrupted

    def each(
        self, jobs: Iterable[Job], begun: Callable[[int], None] | None = None
    ) -> Generator[tuple[int, Any], None, None]:
        for number, found in super().each(jobs, begun):
            if number == 1:
                yield number, Failed(RunError("died", hint="try again"), "was killed")
            elif number == 2 and self.interrupted:
                raise KeyboardInterrupt
            else:
                yield number, found


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_cell_that_is_lost_or_interrupted(
    cells_at_once: list[str], tmp_path: Path, interrupted: bool
) -> None:
    found, place = a_sweep(), run.Place(tmp_path, "cpu")
    results, finished = run.run_sweep(found, found.cells, "again", place, Heard(), Broken(interrupted))
    assert finished is not interrupted
    third = "interrupted" if interrupted else "finished"
    assert states(results) == {"a": "finished", "b": third, "c": "failed"}
    lost = results.outcomes[2]
    assert (lost.problem, lost.hint) == ("died", "try again")
    written = json.loads((place.folder(found) / FILE).read_text(encoding="utf-8"))
    assert [one["state"] for one in written["cells"]] == ["finished", third, "failed"]


def test_a_single_cell_is_run_here(cells_at_once: list[str], tmp_path: Path) -> None:
    found = a_sweep()
    engine = Broken(interrupted=True)
    results, finished = run.run_sweep(
        found, found.cells[1:2], "again", run.Place(tmp_path, "cpu"), Heard(), engine
    )
    assert finished
    assert states(results) == {"a": "not run", "b": "finished", "c": "not run"}
