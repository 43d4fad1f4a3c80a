"""Progress on stderr: a display on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import sys
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest

from circuitfind.cli import progress as module
from circuitfind.cli.common import Screen
from circuitfind.cli.console import Paper
from circuitfind.cli.progress import Progress, memory_in_use
from circuitfind.pipeline import STAGES, discover_task
from circuitfind.plan import StagePlan, foreseen, make_plan
from circuitfind.session import Foresees, Session, Silent
from circuitfind.settings import resolve
from circuitfind.task.spec import load_task

PAIRS = 8


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> dict[str, StagePlan]:
    """Scores take 10 passes, the circuit 40 of half the cost, pictures none."""
    found = {
        "prompts": StagePlan("prompts", "run", 1, 0, 1.0),
        "scores": StagePlan("scores", "run", 10, 0, 10.0),
        "circuit": StagePlan("circuit", "run", 40, 0, 20.0),
        "pictures": StagePlan("pictures", "run", 0, 0, 0.0),
    }
    monkeypatch.setattr("circuitfind.plan.foreseen", lambda session, controls: found)
    return found


def session(*, loaded: bool = True) -> Any:
    """As much of a session as the display looks at."""
    return SimpleNamespace(kept=list(range(PAIRS)), **({"model": object()} if loaded else {}))


def on_terminal(width: int = 80, **flags: bool) -> tuple[Screen, StringIO]:
    screen, out = Screen(**flags), StringIO()
    screen.__dict__["err"] = Paper(
        width, file=out, force_terminal=True, force_interactive=True, color_system=None
    )
    return screen, out


def drawn(progress: Progress, width: int = 80) -> list[str]:
    """The display as it would be drawn now."""
    out = StringIO()
    Paper(width, file=out).print(progress._drawn())
    return [line.rstrip() for line in out.getvalue().splitlines()]


def begun(screen: Screen) -> Progress:
    """A run of three stages, the first of which runs."""
    progress = Progress(screen).__enter__()
    progress.foresee(session(), ["scores", "circuit", "pictures"])
    progress.stage("scores", "running")
    return progress


@pytest.mark.usefixtures("plans")
def test_what_is_done_what_runs_and_what_waits(clock: Clock) -> None:
    screen, out = on_terminal()
    progress = begun(screen)
    progress.progress(3 * PAIRS)
    clock.now += 6.0
    runs, waits, last, foot = drawn(progress)
    assert re.fullmatch(r"\S scores +━+ +3 of about 10 passes", runs)
    assert re.fullmatch(r" +circuit +about 40 passes", waits)
    assert last.strip() == "pictures"
    # Three passes took 6 s, so that a unit takes 2 s: 7 units are left here, and 20 wait.
    assert foot.startswith("  6.0 s, about 54.0 s left, ")
    assert "of memory" in foot
    clock.now += 14.0
    progress.stage("scores", "finished", "20.0 s")
    progress.stage("circuit", "running", "12 edges")
    assert progress.left() == pytest.approx(40.0), "20 s for 10 units, and 20 are left"
    runs, *waits, _ = drawn(progress)
    assert runs.endswith("0 of about 40 passes, 12 edges")
    assert [line.strip() for line in waits] == ["pictures"]
    progress.progress(50 * PAIRS)
    assert "50 passes, more than expected" in drawn(progress)[0]
    assert progress.left() == pytest.approx(0.0)
    progress.stage("circuit", "finished")
    progress.__exit__()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", text) if line.startswith("+ ")]
    assert [line.strip() for line in lines] == ["+ scores    finished, 20.0 s", "+ circuit   finished"]


@pytest.mark.usefixtures("clock", "plans")
def test_it_fits_the_terminal() -> None:
    for width in (60, 80, 120):
        screen, _ = on_terminal(width)
        progress = begun(screen)
        progress.stage("scores", "running", "a long word on what is done just now, " * 5)
        lines = drawn(progress, width)
        assert max(map(len, lines)) <= width
        assert [line[2:10].strip() for line in lines[:3]] == ["scores", "circuit", "pictures"], (
            "no name gives way"
        )
        progress.__exit__()


@pytest.mark.usefixtures("clock", "plans")
def test_a_call_costs_no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of calls, and it is drawn as often as the clock of the display says."""
    screen, _ = on_terminal()
    progress = begun(screen)
    calls = []
    monkeypatch.setattr(progress, "_drawn", lambda: calls.append(1) or "")
    for _ in range(5000):
        progress.progress(1)
    assert len(calls) <= 5
    progress.__exit__()


def test_a_run_that_loads_no_model_is_not_made_to(clock: Clock, plans: dict[str, StagePlan]) -> None:
    screen, _ = on_terminal()
    progress = Progress(screen).__enter__()
    progress.foresee(session(loaded=False), list(plans))
    for name in plans:
        progress.stage(name, "reused")
    assert progress.left() is None
    progress.__exit__()


@pytest.mark.parametrize("flags", [{"quiet": True}, {"as_json": True}], ids=lambda f: next(iter(f)))
@pytest.mark.usefixtures("clock", "plans")
def test_no_display_where_it_is_not_wanted(flags: dict[str, bool]) -> None:
    screen, out = on_terminal(**flags)
    progress = begun(screen)
    progress.stage("scores", "finished", "1 s")
    progress.__exit__()
    assert out.getvalue() == ("" if "quiet" in flags else "+ scores    finished, 1 s\n")


@pytest.mark.usefixtures("clock", "plans")
def test_lines_where_there_is_no_terminal() -> None:
    screen, out = Screen(), StringIO()
    screen.__dict__["err"] = Paper(None, file=out)
    with Progress(screen) as progress:
        progress.foresee(session(), ["scores"])
        progress.stage("scores", "running", "anything")
        progress.progress(10)
        progress.stage("scores", "finished", "1 s")
        progress.note("a word")
    assert out.getvalue() == "+ scores    finished, 1 s\nnote: a word\n"


def read_all(terminal: int) -> str:
    """What was written to the other side of a terminal, which is closed by now."""
    text = b""
    with contextlib.suppress(OSError):  # how Linux says that there is no more
        while chunk := os.read(terminal, 1 << 16):
            text += chunk
    os.close(terminal)
    return text.decode()


def test_on_a_pseudo_terminal(monkeypatch: pytest.MonkeyPatch, plans: dict[str, StagePlan]) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with os.fdopen(theirs, "w", encoding="utf-8") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        progress = begun(Screen())
        progress.progress(4 * PAIRS)
        progress._live.refresh()
        progress.stage("scores", "finished", "1 s")
        progress.__exit__()
        stderr.flush()
    text = read_all(ours)
    assert "\x1b[?25l" in text, "the cursor is hidden while it is drawn"
    assert "\x1b[?25h" in text, "and shown again"
    assert "4 of about 10 passes" in text
    assert "+ scores    finished, 1 s" in re.sub(r"\x1b\[[0-9;]*m", "", text)


# --- where the numbers come from ----------------------------------------------------------------------------


class Listener(Silent):
    """Hears what is to come, and what comes."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.ran: list[str] = []

    def foresee(self, session: Session, stages: Any) -> None:
        self.told = list(stages)

    def stage(self, name: str, state: str, detail: str = "") -> None:
        if state != "running":
            self.ran.append(name)


@pytest.mark.parametrize(
    ("flags", "without"),
    [({}, ()), ({"controls": "none", "views": False, "formats": ()}, ("evidence", "views", "pictures"))],
    ids=["all", "few"],
)
def test_the_stages_that_are_foreseen_are_those_that_run(
    tmp_path: Any, flags: dict[str, Any], without: tuple[str, ...]
) -> None:
    spec = load_task("and-gate")
    listener = Listener()
    assert isinstance(listener, Foresees)
    assert not isinstance(Silent(), Foresees)
    discover_task(spec, resolve(spec, count=8), outputs=tmp_path, reporter=listener, **flags)
    assert listener.told == listener.ran == [name for name in STAGES if name not in without]


def test_passes_are_those_of_a_dry_run(tmp_path: Any) -> None:
    spec = load_task("and-gate")
    made = Session(spec, resolve(spec, count=8))
    planned = {one.name: one for one in make_plan(made, tmp_path, force=False).stages}
    made.kept = list(range(len(made.all_pairs)))
    for name, one in foreseen(made, "cheap").items():
        assert (one.forward, one.backward) == (planned[name].forward, planned[name].backward)


def test_memory_in_use() -> None:
    found = memory_in_use()
    assert found is not None
    assert 20e6 < found < 64e9, "a Python with torch takes more than 20 MB"
