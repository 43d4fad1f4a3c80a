"""Runs that are killed at any moment go on from there, and end as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.finished import plainly
from tests.resilience.killing import MEASURE, PIECE, Events, contents, in_child, litter

TASK = """\
name: small
model: planted/and-gate
prompts:
  zoo: {count: 8}
"""
QUICK = ("--method", "hybrid", "--no-backups", "--controls", "none", "--no-views")
SEED = int(os.environ.get("CIRCUITFIND_KILL_SEED", random.SystemRandom().randrange(10**6)))
"""Printed by each test that fails; give it again in the environment for the same points."""
POINTS = 50


@dataclass
class Runner:
    """Runs one command in forked processes, each time in a folder of outputs of its own."""

    folder: Path
    options: tuple[str, ...]

    def __call__(self, name: str, *, kill_at: int = -1, after: float | None = None) -> tuple[int, str]:
        """Run the command; its exit code, and the marks of what it did."""
        log = self.folder / "events.log"
        log.unlink(missing_ok=True)

        def work() -> int:
            from circuitfind.cli import run

            place = self.folder / name
            place.mkdir(exist_ok=True)
            os.chdir(place)
            sys.stdout = sys.stderr = (self.folder / "said.txt").open("a", buffering=1)
            Events(kill_at, log).install(pytest.MonkeyPatch())
            return run(["discover", "../small.yaml", "--outputs", "outputs", *self.options])

        code = in_child(work, kill_after=after)
        return code, log.read_text() if log.exists() else ""

    def outputs(self, name: str) -> Path:
        return self.folder / name / "outputs"

    def run_folder(self, name: str) -> Path:
        """The only run there."""
        (found,) = self.outputs(name).iterdir()
        return found

    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def forget(self, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "said.txt").unlink(missing_ok=True)


@dataclass
class Undisturbed:
    """A run that nobody disturbed."""

    runner: Runner
    events: str
    files: dict[str, bytes]
    passes: int

    @property
    def moments(self) -> int:
        """Before and after each event."""
        return 2 * len(self.events)

    def check(self, *attempts: str) -> None:
        """What was killed, and went on, is what it would have been: nothing else is there, and little was done twice."""
        runner = self.runner
        assert litter(runner.outputs("killed")) == []
        found = contents(runner.run_folder("killed"))
        assert found.keys() == self.files.keys()
        assert [name for name in found if found[name] != self.files[name]] == []
        again = sum(one.count(PIECE) for one in attempts) - self.events.count(PIECE)
        assert 0 <= again <= len(attempts) - 1, "each kill costs one piece at the most"
        measures = sum(one.count(MEASURE) for one in attempts)
        assert measures <= len(attempts) * self.events.count(MEASURE)
        extra = passes_of(runner.run_folder("killed")) - self.passes
        # Finished runs of the model are not kept, so some are run again: both sides, of each set of prompts.
        assert -1 <= extra <= 4 * (measures + 1)


def passes_of(folder: Path) -> int:
    stages = json.loads((folder / "manifest.json").read_text())["stages"].values()
    return sum(stage["facts"]["forward_passes"] for stage in stages)


def undisturbed(folder: Path, *options: str) -> Undisturbed:
    (folder / "small.yaml").write_text(TASK, encoding="utf-8")
    with plainly(folder):  # so that every child has all modules
        from circuitfind.cli import run

        assert run(["discover", "small.yaml", "--outputs", "warm", "-q", *options]) == 0
    runner = Runner(folder, options)
    code, events = runner("whole")
    assert code == 0, runner.said()
    assert "interrupted" not in runner.said()
    return Undisturbed(
        runner, events, contents(runner.run_folder("whole")), passes_of(runner.run_folder("whole"))
    )


def killed_at(whole: Undisturbed, point: int) -> None:
    """Kill a run at one moment, let it go on, and compare."""
    runner = whole.runner
    runner.forget("killed")
    code, first = runner("killed", kill_at=point)
    assert code == -9
    code, second = runner("killed")
    assert code == 0, f"seed {SEED}, point {point}: {runner.said()}"
    try:
        whole.check(first, second)
    except AssertionError as error:
        raise AssertionError(f"CIRCUITFIND_KILL_SEED={SEED}, killed at {point}: {error}") from error


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Scores and a circuit of a tiny model."""
    return undisturbed(tmp_path_factory.mktemp("quick"), *QUICK)


def test_killed_within_a_stage_it_goes_on_with_the_next_piece(quick: Undisturbed) -> None:
    runner = quick.runner
    done = [place for place, mark in enumerate(quick.events) if mark == PIECE]
    killed_at(quick, 2 * done[-1])
    assert "kept from the run that was interrupted" in runner.said()
    stages = json.loads((runner.run_folder("killed") / "manifest.json").read_text())["stages"].values()
    kept = sum(stage["facts"].get("resumed_pieces", 0) for stage in stages)
    assert 0 < kept <= len(done)


def test_killed_at_some_moments(quick: Undisturbed) -> None:
    for point in random.Random(SEED).sample(range(quick.moments), 2):
        killed_at(quick, point)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_fifty_moments(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path)
    for point in random.Random(SEED).sample(range(whole.moments), POINTS):
        killed_at(whole, point)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_by_the_clock_and_again(tmp_path: Path) -> None:
    """At moments that have nothing to do with files, three times in one run."""
    whole, rng = undisturbed(tmp_path), random.Random(SEED)
    start = time.monotonic()
    assert whole.runner("timed")[0] == 0
    took = time.monotonic() - start
    for _ in range(8):
        whole.runner.forget("killed")
        attempts = [
            whole.runner("killed", after=after) for after in sorted(rng.uniform(0, took) for _ in range(3))
        ]
        attempts.append(whole.runner("killed"))
        assert attempts[-1][0] == 0, whole.runner.said()
        whole.check(*(events for _, events in attempts))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_every_moment_of_the_end(quick: Undisturbed) -> None:
    """Between the last file of the last stage and the report, where the least is left to do."""
    for point in range(max(0, quick.moments - 40), quick.moments):
        killed_at(quick, point)


def test_a_damaged_journal_costs_what_was_damaged(quick: Undisturbed) -> None:
    runner = quick.runner
    done = [place for place, mark in enumerate(quick.events) if mark == PIECE]
    runner.forget("killed")
    first = runner("killed", kill_at=2 * done[-1])[1]
    (journal,) = (path for path in runner.outputs("killed").rglob("*.bin") if path.stem != "plans")
    whole = journal.read_bytes()
    half = len(whole) // 2
    journal.write_bytes(bytes([*whole[:half], whole[half] ^ 1, *whole[half + 1 :]]))
    code, second = runner("killed")
    assert code == 0
    assert "damaged" in runner.said()
    assert contents(runner.run_folder("killed")) == quick.files
    assert litter(runner.outputs("killed")) == []
    assert len(first) + len(second) > 0


@pytest.mark.slow
def test_force_begins_anew(quick: Undisturbed) -> None:
    runner = quick.runner
    done = [place for place, mark in enumerate(quick.events) if mark == PIECE]
    runner.forget("killed")
    assert runner("killed", kill_at=2 * done[-1])[0] == -9
    forced = Runner(runner.folder, (*runner.options, "--force"))
    code, events = forced("killed")
    assert code == 0
    assert events.count(PIECE) == quick.events.count(PIECE)
    assert contents(runner.run_folder("killed")) == quick.files
    with contextlib.suppress(FileNotFoundError):
        runner.forget("killed")
