"""Workers that are processes: what they are told, how they die, and that none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuitfind.engine.base import Failed, Recipe
from circuitfind.engine.local import LocalEngine
from circuitfind.engine.processes import RECIPES, Recipes, WorkerProcess, processes
from circuitfind.engine.room import Room
from circuitfind.engine.scheduler import Scheduler
from circuitfind.errors import RunError, TaskError
from tests.engine.jobs import Deadly, Square, Told, Wrong

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def two() -> Iterator[Scheduler[WorkerProcess]]:
    """Two workers that stay."""
    with processes(2, room=Room(lambda place: 10**15)) as engine:
        yield engine


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: set[int], seconds: float = 10) -> bool:
    """Whether processes have ended, after some time at the most."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(map(alive, pids)):
        time.sleep(0.02)
    return not any(map(alive, pids))


def done_by(log: Path) -> list[tuple[int, int]]:
    """(job, process) of each time that one was begun."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


def test_jobs_are_done_elsewhere(two: Scheduler[WorkerProcess], tmp_path: Path) -> None:
    log = tmp_path / "log"
    jobs = [Square(number, 0.02, str(log)) for number in range(8)]
    assert sorted(two.map(jobs)) == sorted(LocalEngine().map([Square(number) for number in range(8)]))
    by = done_by(log)
    assert sorted(number for number, _ in by) == list(range(8))
    assert len({pid for _, pid in by} - {os.getpid()}) == 2


def test_a_worker_knows_where_it_is(
    two: Scheduler[WorkerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CIRCUITFIND_TASKS", "somewhere")
    monkeypatch.chdir(tmp_path)
    with processes(1) as engine:
        ((_, told),) = engine.map([Told(0)])
    assert told["folder"] == str(tmp_path)
    assert told["CIRCUITFIND_TASKS"] == "somewhere"
    assert told["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert gone({told["pid"]})
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_recipe_is_sent_once() -> None:
    ours, theirs = Recipes(), Recipes()
    sent: list[bool] = []
    order = [0, 1, 0, *range(2, RECIPES + 2), 0, 1, RECIPES + 1]
    for number in order:
        recipe = Recipe(
            "m", "cpu", "f", ("pairs", number), "metric", "both", None, "fp32", key=f"key {number}"
        )
        light, whole = ours.lightened(Told(0, recipe=recipe))
        sent.append(whole is not None)
        again = theirs.restored(light, whole)
        assert isinstance(again, Told)
        assert again.recipe == recipe
    assert sent[:3] == [True, True, False]
    assert sent[-3:] == [True, True, False], "the oldest are forgotten at both ends"
    plain = ours.lightened(Square(3))
    assert plain == (Square(3), None)


def test_recipes_arrive(two: Scheduler[WorkerProcess]) -> None:
    recipe = Recipe("m", "cpu", "f", ("pairs",), "metric", "both", None, "fp32", key="key")
    found = [told["pairs"] for _, told in two.map([Told(number, recipe=recipe) for number in range(5)])]
    assert found == [("pairs",)] * 5


def test_errors_come_back_whole(two: Scheduler[WorkerProcess]) -> None:
    jobs = [Wrong(number, what=what) for number, what in enumerate(("user", "memory", "bug", "unsent"))]
    here, there = dict(LocalEngine().each(jobs[:3])), dict(two.each(jobs))
    for number in range(3):
        assert isinstance(there[number], Failed)
        assert type(there[number].error) is type(here[number].error)
        assert str(there[number].error) == str(here[number].error)
    error = there[0].error
    assert isinstance(error, TaskError)
    assert (
        error.as_dict()
        == TaskError("too odd", hint="make it even", where="a.yaml:3", details=["one", "two"]).as_dict()
    )
    assert isinstance(there[1].error, MemoryError)
    assert isinstance(there[2].error, RunError)
    assert "the square of 2 broke: IndexError" in str(there[2].error)
    assert "jobs.py" in str(there[2].error.__cause__), "--debug shows where"
    assert "the square of 3 broke" in str(there[3].error)


def test_a_worker_is_killed_in_the_middle(two: Scheduler[WorkerProcess], tmp_path: Path) -> None:
    log = tmp_path / "log"
    jobs = [Deadly(n, 0.02, str(log), times=2 * (n == 3)) for n in range(6)]
    before = two.facts["deaths"]
    assert sorted(two.map(jobs)) == [(n, n * n) for n in range(6)]
    assert two.facts["deaths"] == before + 2
    assert sorted(number for number, _ in done_by(log)) == list(range(6)), "the others were done once"


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        (signal.SIGKILL, None, "was killed by signal 9 (memory ran out?)"),
        (signal.SIGSEGV, None, "was killed by signal 11 (SIGSEGV)"),
        (0, 7, "ended with exit code 7"),
    ],
)
def test_how_it_died(
    two: Scheduler[WorkerProcess], tmp_path: Path, how: int, code: int | None, says: str
) -> None:
    job = Deadly(3, 0, str(tmp_path / "log"), times=3, how=how, code=code)
    with pytest.raises(RunError, match="the square of 3 came to no end: its worker, 3 times over") as caught:
        list(two.map([job]))
    assert says in caught.value.what
    assert len(caught.value.details) == 3
    assert caught.value.hint


def test_closing_ends_what_is_under_way(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with processes(2, room=Room(lambda place: 10**15)) as engine:
        results = engine.map([Square(0, 0, str(log)), *(Square(n, 60, str(log)) for n in (1, 2, 3))])
        next(results)
        start = time.monotonic()
        results.close()
        assert gone({pid for number, pid in done_by(log) if number})
        assert time.monotonic() - start < 10
        assert list(engine.map([Square(5)])) == [(0, 25)]
    assert gone({pid for _, pid in done_by(log)})


PROGRAM = """
import sys, time
from pathlib import Path
from circuitfind.engine.processes import processes
from tests.engine.jobs import Square
log = sys.argv[1]
with processes(2) as engine:
    try:
        for number, found in engine.map([Square(n, 60 * (n > 0), log) for n in range(4)]):
            pass
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("closed", flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_is_left(tmp_path: Path, signum: int) -> None:
    log, program = tmp_path / "log", tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))  # no guard of __main__: it is not run again
    process = subprocess.Popen(
        [sys.executable, str(program), str(log)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background is deaf to Ctrl-C, and so are its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while len(done_by(log)) < 3 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    pids = {pid for _, pid in done_by(log)}
    assert len(pids) == 2
    if signum == signal.SIGINT:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    else:
        process.kill()
    out, err = process.communicate(timeout=30)
    assert gone(pids)
    if signum == signal.SIGINT:
        assert out.split() == ["interrupted", "closed"], err
        assert not err
