"""Gives jobs to workers, whatever kind they are: those that have a model at hand first, no more than fit beside each other,
and once more to another worker where one dies. No torch here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from circuitfind.engine.base import RETRIES, EngineName, Failed, Job, Needs, raising
from circuitfind.engine.room import Room
from circuitfind.engine.work import Answer
from circuitfind.errors import RunError

Worker = TypeVar("Worker")

AHEAD = 2
"""Jobs that are made before anybody is free for them."""
PASSED_OVER = 8
"""Times that a job lets others go first, for whose model a worker is warm."""


class Gone(Exception):
    """A worker has ended; says how."""


class Transport(Protocol[Worker]):
    """Starts workers and talks to them. Each does one job at a time."""

    def start(self, index: int, needs: Needs) -> Worker:
        """Begin a worker. ``index`` counts from 0 up to the number of workers; it says which GPU is its own.

        Raises:
            Gone: It could not begin.
        """
        ...

    def send(self, worker: Worker, job: Job) -> None:
        """Give a job to a worker that has none.

        Raises:
            Gone: It has ended.
        """
        ...

    def wait(self, workers: Collection[Worker], seconds: float | None) -> Sequence[Worker]:
        """Those that have answered or ended, as soon as one has, or after so many seconds."""
        ...

    def receive(self, worker: Worker) -> Answer:
        """What one that ``wait`` gave has to say.

        Raises:
            Gone: It has ended.
        """
        ...

    def end(self, workers: Sequence[Worker]) -> None:
        """End workers that have no job."""
        ...

    def kill(self, workers: Sequence[Worker]) -> None:
        """End workers in the middle of a job; some may have ended already."""
        ...


@dataclass
class _Task:
    """A job on its way."""

    number: int
    job: Job
    deaths: list[str] = field(default_factory=list)
    passed: int = 0


class Scheduler(Generic[Worker]):
    """An ``Engine`` over a transport.

    Args:
        name: Of the engine.
        workers: At the most.
        transport: Starts them.
        note: Hears what the user should know.
        retries: How often a job whose worker died is given to another one.
        room: What they may take.
    """

    def __init__(
        self,
        name: EngineName,
        workers: int,
        transport: Transport[Worker],
        *,
        note: Callable[[str], None] | None = None,
        retries: int = RETRIES,
        room: Room | None = None,
    ) -> None:
        self.name, self.workers, self.retries = name, workers, retries
        self.note = note or (lambda text: None)
        self.busy = False
        self._transport = transport
        self._room = room or Room()
        self._alive: dict[int, Worker] = {}
        self._used = 0
        self._deaths = 0
        self._told: set[str] = set()

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {"name": self.name, "workers": self._used, "deaths": self._deaths}

    def __enter__(self) -> Scheduler[Worker]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        workers = list(self._alive.values())
        for index in self._alive:
            self._room.leave(index)
        self._alive.clear()
        self._transport.end(workers)

    def map(self, jobs: Iterable[Job]) -> Generator[tuple[int, Any], None, None]:
        """See ``Engine.map``."""
        return raising(self.each(jobs))

    def each(
        self, jobs: Iterable[Job], begun: Callable[[int], None] | None = None
    ) -> Generator[tuple[int, Any], None, None]:
        """See ``Engine.each``."""
        if self.busy:
            raise RuntimeError("an engine does one thing at a time")
        self.busy = True
        running: dict[int, _Task] = {}
        try:
            yield from self._each(jobs, begun or (lambda number: None), running)
        finally:
            for index in running:
                self._room.leave(index)
            self.busy = False
            self._transport.kill([self._alive.pop(index) for index in running])

    def _each(
        self, jobs: Iterable[Job], begun: Callable[[int], None], running: dict[int, _Task]
    ) -> Generator[tuple[int, Any], None, None]:
        waiting: deque[_Task] = deque()
        source, more = enumerate(jobs), True
        most = max(1, len(jobs)) if isinstance(jobs, Sequence) else AHEAD
        while True:
            if more and len(waiting) < most:
                try:
                    waiting.append(_Task(*next(source)))
                except StopIteration:
                    more = False
            for task in self._give(waiting, running):
                if task.number in (one.number for one in running.values()):
                    begun(task.number)
                else:
                    yield task.number, _lost(task)
            if not running and not waiting and not more:
                return
            if not running:
                continue
            at_once = more and len(waiting) < most
            places = {id(self._alive[index]): index for index in running}
            ready = self._transport.wait([self._alive[i] for i in running], 0 if at_once else None)
            for index in [places[id(worker)] for worker in ready]:
                task = running.pop(index)
                try:
                    answer = self._transport.receive(self._alive[index])
                except Gone as death:
                    if self._died(index, task, str(death)):
                        waiting.appendleft(task)
                    else:
                        yield task.number, _lost(task)
                    continue
                self._room.put_down(index)
                for text in answer.notes:
                    self._say(text)
                yield task.number, answer.result()

    def _give(self, waiting: deque[_Task], running: dict[int, _Task]) -> list[_Task]:
        """Give what waits to workers that are free, as far as it fits. Returns what was given, or lost for good."""
        given = []
        while waiting and len(running) < self.workers:
            found = self._match(waiting, running)
            if found is None:
                break
            index, task = found
            waiting.remove(task)
            for other in waiting:
                other.passed += other.number < task.number
            given.append(task)
            try:
                self._hand(index, task)
            except Gone as death:
                if self._died(index, task, str(death)):
                    waiting.appendleft(task)
                    given.pop()
                continue
            running[index] = task
        return given

    def _hand(self, index: int, task: _Task) -> None:
        self._room.take(index, task.job.needs)
        if index not in self._alive:
            self._alive[index] = self._transport.start(index, task.job.needs)
            self._used = max(self._used, len(self._alive))
        self._transport.send(self._alive[index], task.job)

    def _match(self, waiting: Sequence[_Task], running: Collection[int]) -> tuple[int, _Task] | None:
        """A free worker and what it does next; None where nothing fits beside what is done now."""
        free = [index for index in range(self.workers) if index not in running]
        free.sort(key=lambda index: index not in self._alive)
        first = waiting[0]
        if first.passed < PASSED_OVER:
            for index in free:
                warm = self._room.warm(index)
                for task in waiting:
                    if warm and task.job.needs.warm == warm and self._room.fits(index, task.job.needs):
                        return index, task
        # What nobody is warm for, so that two workers do not load the same model.
        held = {self._room.warm(index) for index in self._alive}
        cold = next((task for task in waiting if task.job.needs.warm not in held), first)
        task = first if first.passed >= PASSED_OVER else cold
        for index in free:
            if self._room.fits(index, task.job.needs):
                return index, task
        if not running:  # alone it is as good as anywhere
            return free[0], task
        self._say(f"{len(running)} of {self.workers} workers work: {self._room.told(task.job.needs)}")
        return None

    def _died(self, index: int, task: _Task, how: str) -> bool:
        """A worker has ended. Whether its job is to be given to another one."""
        self._deaths += 1
        self._room.leave(index)
        worker = self._alive.pop(index, None)
        if worker is not None:
            self._transport.kill([worker])
        task.deaths.append(how)
        if len(task.deaths) > self.retries:
            return False
        self._say(f"a worker {how}: another one goes on with what it did")
        return True

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.note(text)


def _lost(task: _Task) -> Failed:
    """A job whose workers died."""
    times = len(task.deaths)
    often = "its worker" if times == 1 else f"its worker, {times} times over,"
    return Failed(
        RunError(
            f"{task.job.label} came to no end: {often} {task.deaths[-1]}",
            hint="give --memory or fewer --workers if memory ran out; --engine local does everything in one process",
            details=[] if times == 1 else [f"{n}. {how}" for n, how in enumerate(task.deaths, 1)],
        ),
        death=task.deaths[-1],
    )
