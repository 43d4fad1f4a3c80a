"""Workers that are killed, and a run with workers that is: the same results, and what was done stays done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.engine.base import Engine
from circuitfind.engine.hands import EngineHands
from circuitfind.engine.processes import processes
from circuitfind.engine.room import Room
from circuitfind.model import runs as runs_module
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs
from circuitfind.output.journal import Journal
from circuitfind.output.kept import Keeping
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.spec import load_task

COUNT = 24


def by_processes() -> Engine:
    return processes(2, room=Room(lambda place: 10**15))


def by_ray() -> Engine:
    pytest.importorskip("ray")
    from circuitfind.engine.ray import ray_engine

    return ray_engine(2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As workers have: with another number of threads the last bits differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A tiny model, and a pass to a piece."""
    monkeypatch.setattr(runs_module, "CPU_PIECE", 1.0)
    path = tmp_path / "small.yaml"
    path.write_text("{name: small, model: planted/and-gate, prompts: {zoo: {count: 6}}}", encoding="utf-8")
    spec = load_task(str(path))
    # So little memory that a pass holds one patch.
    return Session(spec, resolve(spec), device="cpu", memory=200_000)


def patches(runs: Runs) -> list[Patch]:
    mask = runs.model.anatomy.edge_mask
    rng = np.random.default_rng(0)
    return [Patch(edges=mask & (rng.random(mask.shape) < 0.5)) for _ in range(COUNT)]


@dataclass(frozen=True)
class Deadly:
    """The metric of the circuit without one edge; the one that is ``deadly`` kills its worker before, once."""

    edge: int
    deadly: str = ""
    parent: int = 0

    rows = 0
    portable = True

    def run(self, runs: Runs) -> Mapping[str, np.ndarray]:
        if self.deadly and os.getpid() != self.parent and not Path(self.deadly).exists():
            Path(self.deadly).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        mask = runs.model.anatomy.edge_mask
        cut = np.zeros(mask.shape, dtype=bool)
        cut[tuple(np.argwhere(mask)[self.edge])] = True
        return {"values": runs.patched_batch(0, [Patch(edges=cut)], "clean", "resample")}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("begin", [by_processes, by_ray])
def test_a_worker_that_is_killed_costs_nothing(
    session: Session, tmp_path: Path, begin: Callable[[], Engine]
) -> None:
    died = tmp_path / "died"
    plain = session.runs_of(session.all_pairs)
    want = [Deadly(edge).run(plain)["values"] for edge in range(COUNT)]
    pieces = [Deadly(edge, str(died) if edge == 7 else "", os.getpid()) for edge in range(COUNT)]
    with closing(begin()) as engine:
        hands = EngineHands(engine, "cpu", to_start=0.0, to_send=0.0)
        keeping = Keeping(hands)
        with keeping.stage(Journal(tmp_path / "a.bin", "k")):
            found = dict(keeping.do(session.runs_of(session.all_pairs), iter(pieces)))
    assert died.exists()
    assert hands.sent >= COUNT - 1, "workers did the pieces"
    assert sorted(found) == list(range(COUNT)), "each once"
    for edge in range(COUNT):
        assert found[edge].arrays["values"].tobytes() == want[edge].tobytes()
    # All of it is in the journal: another run does nothing.
    with keeping.stage(Journal(tmp_path / "a.bin", "k")):
        list(keeping.do(session.runs_of(session.all_pairs), iter(pieces)))
        assert keeping.resumed == COUNT


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("begin", [by_processes, by_ray])
def test_a_run_with_workers_goes_on_without_them(
    session: Session, tmp_path: Path, begin: Callable[[], Engine]
) -> None:
    """What workers had done when the run was broken off is taken up by another process, in whatever order it came."""
    plain = session.runs_of(session.all_pairs)
    want = plain.patched(patches(plain))
    with closing(begin()) as engine:
        keeping = Keeping(_Stopping(EngineHands(engine, "cpu", to_start=0.0, to_send=0.0), after=9))
        runs = session.runs_of(session.all_pairs)
        runs.hands = keeping
        with pytest.raises(KeyboardInterrupt), keeping.stage(Journal(tmp_path / "a.bin", "k")):
            runs.patched(patches(runs))
    keeping = Keeping()
    with keeping.stage(Journal(tmp_path / "a.bin", "k")):
        runs = session.runs_of(session.all_pairs)
        runs.hands = keeping
        found = runs.patched(patches(runs))
    assert keeping.resumed >= 9
    assert found.tobytes() == want.tobytes()


class _Stopping:
    """Is broken off when some pieces are done."""

    def __init__(self, inner: EngineHands, after: int) -> None:
        self._inner, self._left = inner, after

    def do(self, runs: Runs, pieces: Any) -> Iterator[Any]:
        with closing(self._inner.do(runs, pieces)) as results:  # type: ignore[type-var]
            for found in results:
                if self._left == 0:
                    raise KeyboardInterrupt
                self._left -= 1
                yield found
