"""Who gets which job, without a process: workers that are lists."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from circuitfind.engine.base import Failed, Job, Needs
from circuitfind.engine.bench import WorkBench
from circuitfind.engine.room import PROCESS, Room
from circuitfind.engine.scheduler import AHEAD, Gone, Scheduler
from circuitfind.engine.work import Answer, answer
from circuitfind.errors import RunError, TaskError
from tests.engine.jobs import Square, Wrong

GB = 10**9


@dataclass(eq=False)
class Fake:
    """A worker that answers when it is asked."""

    index: int
    bench: WorkBench = field(default_factory=WorkBench)
    jobs: list[Any] = field(default_factory=list)
    ended: str = ""


class Fakes:
    """Workers that do their job when they are waited for, the one that has waited longest first.

    ``deadly`` says how often a worker dies of the job of each number.
    """

    def __init__(self, deadly: dict[int, int] | None = None) -> None:
        self.workers: list[Fake] = []
        self.deadly = dict(deadly or {})
        self.order: list[tuple[int, int]] = []
        self.most = 0
        self.waiting: list[Fake] = []

    def start(self, index: int, needs: Needs) -> Fake:
        self.workers.append(Fake(index))
        return self.workers[-1]

    def send(self, worker: Fake, job: Job) -> None:
        assert not worker.ended
        assert worker not in self.waiting
        worker.jobs.append(job)
        self.order.append((worker.index, job.number))  # type: ignore[attr-defined]  # a Square
        self.waiting.append(worker)
        self.most = max(self.most, len(self.waiting))

    def wait(self, workers: Collection[Fake], seconds: float | None) -> Sequence[Fake]:
        assert set(workers) == set(self.waiting)
        return [] if seconds == 0 else self.waiting[:1]

    def receive(self, worker: Fake) -> Answer:
        self.waiting.remove(worker)
        job = worker.jobs[-1]
        if self.deadly.get(job.number, 0):
            self.deadly[job.number] -= 1
            raise Gone("fell asleep")
        return answer(job, worker.bench)

    def end(self, workers: Sequence[Fake]) -> None:
        for worker in workers:
            worker.ended = "ended"

    def kill(self, workers: Sequence[Fake]) -> None:
        for worker in workers:
            worker.ended = "killed"
            self.waiting = [one for one in self.waiting if one is not worker]


def engine(fakes: Fakes, workers: int = 2, *, free: int = 10**15, **named: Any) -> Scheduler[Fake]:
    return Scheduler("processes", workers, fakes, room=Room(lambda place: free), **named)


def squares(count: int, **named: Any) -> list[Square]:
    return [Square(number, **named) for number in range(count)]


def test_every_job_is_done_once() -> None:
    for workers in (1, 2, 3, 20):
        fakes = Fakes()
        with engine(fakes, workers) as one:
            assert sorted(one.map(squares(10))) == [(n, n * n) for n in range(10)]
            assert sorted(one.map(squares(3))) == [(n, n * n) for n in range(3)], "workers stay"
        assert sorted(number for _, number in fakes.order[:10]) == list(range(10))
        assert len(fakes.workers) == fakes.most == min(workers, 10)
        assert {worker.ended for worker in fakes.workers} == {"ended"}
        assert one.facts == {"name": "processes", "workers": min(workers, 10), "deaths": 0}


def test_no_jobs() -> None:
    fakes = Fakes()
    with engine(fakes) as one:
        assert list(one.map([])) == []
    assert not fakes.workers


def test_jobs_are_made_a_few_ahead() -> None:
    fakes, made = Fakes(), [0]

    def jobs() -> Iterator[Square]:
        for number in range(30):
            made[0] += 1
            yield Square(number)

    with engine(fakes, 3) as one:
        for done, _ in enumerate(one.map(jobs()), 1):
            assert made[0] <= done + 3 + AHEAD
    assert made[0] == 30


def test_who_is_warm_comes_first() -> None:
    fakes = Fakes()
    jobs = [Square(number, needs=Needs(warm="ab"[number % 2])) for number in range(12)]
    with engine(fakes) as one:
        list(one.map(jobs))
    of = {index: {number % 2 for worker, number in fakes.order if worker == index} for index in (0, 1)}
    assert of == {0: {0}, 1: {1}}


def test_nobody_waits_for_ever_to_be_warm() -> None:
    fakes = Fakes()
    jobs = [Square(0, needs=Needs(warm="a")), Square(1, needs=Needs(warm="b"))]
    jobs += [Square(2 + number, needs=Needs(warm="a")) for number in range(40)]
    with engine(fakes, 1) as one:
        list(one.map(jobs))
    order = [number for _, number in fakes.order]
    assert 2 < order.index(1) < 15


def test_no_more_than_fit() -> None:
    said: list[str] = []
    each = Needs(memory=2 * GB, weights=GB, warm="m")
    for room, most in ((1, 1), (2, 2), (2.9, 2), (4, 4), (0.3, 1)):
        fakes = Fakes()
        free = int(room * (3 * GB + PROCESS))
        with engine(fakes, 4, free=free, note=said.append) as one:
            assert len(list(one.map(squares(9, needs=each)))) == 9
        assert fakes.most == len(fakes.workers) == most
    assert any("2 of 4 workers" in text and "3.6 GB" in text for text in said), said


def test_small_jobs_run_beside_a_large_one() -> None:
    fakes = Fakes()
    jobs = [Square(0, needs=Needs(memory=6 * GB)), *(Square(n, needs=Needs(memory=GB)) for n in (1, 2))]
    with engine(fakes, 4, free=8 * GB + 2 * PROCESS) as one:
        list(one.map(jobs))
    assert fakes.most == 2


def test_a_death_costs_nothing() -> None:
    fakes, said = Fakes({3: 2, 5: 1}), list[str]()
    with engine(fakes, note=said.append) as one:
        assert sorted(one.map(squares(8))) == [(n, n * n) for n in range(8)]
    assert one.facts["deaths"] == 3
    assert said == ["a worker fell asleep: another one goes on with what it did"]
    assert [worker.ended for worker in fakes.workers].count("killed") == 3


def test_a_job_that_kills_all() -> None:
    fakes = Fakes({3: 99})
    with engine(fakes) as one:
        found = dict(one.each(squares(8)))
    lost = found.pop(3)
    assert found == {n: n * n for n in range(8) if n != 3}, "the others are done"
    assert isinstance(lost, Failed)
    assert lost.death == "fell asleep"
    assert isinstance(lost.error, RunError)
    assert lost.error.what == "the square of 3 came to no end: its worker, 3 times over, fell asleep"
    assert sum(number == 3 for _, number in fakes.order) == 3
    with engine(Fakes({3: 99})) as one, pytest.raises(RunError, match="the square of 3"):
        list(one.map(squares(8)))


def test_no_retries_where_none_are_wanted() -> None:
    fakes = Fakes({1: 1})
    with engine(fakes, retries=0) as one:
        found = dict(one.each(squares(3)))
    assert isinstance(found[1], Failed)
    assert "its worker fell asleep" in str(found[1].error)


def test_a_job_that_fails() -> None:
    fakes, said, begun = Fakes(), list[str](), list[int]()
    jobs = [Square(0), Wrong(1), Square(2), Wrong(3, what="memory")]
    with engine(fakes, note=said.append) as one:
        found = dict(one.each(jobs, begun.append))
    assert sorted(begun) == [0, 1, 2, 3]
    assert (found[0], found[2]) == (0, 4)
    assert isinstance(found[1].error, TaskError)
    assert isinstance(found[3].error, MemoryError)
    assert said == ["about to go wrong: user", "about to go wrong: memory"]


def test_what_is_left_is_cancelled() -> None:
    fakes = Fakes()
    with engine(fakes, 3) as one:
        results = one.map(squares(9))
        next(results)
        with pytest.raises(RuntimeError, match="one thing at a time"):
            next(one.map(squares(1)))
        results.close()
        assert sorted(worker.ended for worker in fakes.workers) == ["", "killed", "killed"]
        assert sorted(one.map(squares(4))) == [(n, n * n) for n in range(4)], "and it goes on"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, TaskError("no", hint="no")])
def test_jobs_that_cannot_be_made(stop: BaseException) -> None:
    fakes = Fakes()

    def jobs() -> Iterator[Square]:
        yield Square(0)
        yield Square(1)
        raise stop

    with engine(fakes) as one, pytest.raises(type(stop) if isinstance(stop, Exception) else stop):
        list(one.map(jobs()))
    assert all(worker.ended for worker in fakes.workers)
