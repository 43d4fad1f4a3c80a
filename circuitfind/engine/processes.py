"""Workers that are processes of this machine, each at the end of a pipe of its own. Torch is imported there, with a model.

They are started anew (a fork would share the threads of torch and of the device) and never run the program that started
them again, so nothing has to be guarded by ``if __name__ == "__main__"``. Ctrl-C is for the one that started them; when
it is gone they end too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from circuitfind.engine.base import RETRIES, Job, Needs, Recipe
from circuitfind.engine.bench import WorkBench
from circuitfind.engine.room import Room
from circuitfind.engine.scheduler import Gone, Scheduler
from circuitfind.engine.work import Answer, Surroundings, answer, told
from circuitfind.machine import cores

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that say how many threads a process computes with."""
SAFELY = "PYTHONSAFEPATH"
"""Keeps Python from importing from the working directory."""
PATIENCE = 2.0
"""Seconds that a worker has to end by itself."""
RECIPES = 16
"""Recipes that a worker remembers, so that they are sent once."""


def processes(
    workers: int,
    *,
    note: Callable[[str], None] | None = None,
    retries: int = RETRIES,
    room: Room | None = None,
) -> Scheduler[WorkerProcess]:
    """An engine of processes on this machine. Arguments are those of ``Scheduler``."""
    return Scheduler("processes", workers, Processes(workers), note=note, retries=retries, room=room)


@dataclass(eq=False)
class WorkerProcess:
    """One of them, as its parent sees it."""

    process: BaseProcess
    connection: Connection
    recipes: Recipes


class Processes:
    """Starts them and talks to them: a ``Transport``.

    Args:
        count: How many there may be, for sharing out the cores.
    """

    def __init__(self, count: int) -> None:
        self._threads = max(1, cores() // count)

    def start(self, index: int, needs: Needs) -> WorkerProcess:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, index, Surroundings.here()), daemon=True)
        with _as_worker(self._threads):
            process.start()
        theirs.close()
        return WorkerProcess(process, ours, Recipes())

    def send(self, worker: WorkerProcess, job: Job) -> None:
        try:
            worker.connection.send(worker.recipes.lightened(job))
        except OSError:
            raise Gone(_how(worker.process)) from None

    def wait(self, workers: Collection[WorkerProcess], seconds: float | None) -> Sequence[WorkerProcess]:
        ready = wait([worker.connection for worker in workers], seconds)
        return [worker for worker in workers if worker.connection in ready]

    def receive(self, worker: WorkerProcess) -> Answer:
        try:
            found: Answer = worker.connection.recv()
        except (EOFError, OSError):
            raise Gone(_how(worker.process)) from None
        return found

    def end(self, workers: Sequence[WorkerProcess]) -> None:
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
        _join(workers)
        self.kill(workers)

    def kill(self, workers: Sequence[WorkerProcess]) -> None:
        for worker in workers:
            worker.process.terminate()  # politely: it may have files to clear away
        _join(workers)
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()


def _join(workers: Sequence[WorkerProcess]) -> None:
    """Wait for their ends, for as long as there is patience with all of them."""
    end = time.monotonic() + PATIENCE
    for worker in workers:
        worker.process.join(max(0.0, end - time.monotonic()))


def _how(process: BaseProcess) -> str:
    """How a process ended."""
    process.join(PATIENCE)
    code = process.exitcode
    if code is None:
        return "closed its pipe"
    if code >= 0:
        return f"ended with exit code {code}"
    if code == -getattr(signal, "SIGKILL", 9):
        return f"was killed by signal {-code} (memory ran out?)"
    with contextlib.suppress(ValueError):
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"was killed by signal {-code}"


@contextlib.contextmanager
def _as_worker(threads: int) -> Iterator[None]:
    """What is started here computes with so many threads, never hears of Ctrl-C, and knows nothing of this program.

    Nor does it import from the folder that this one works in, where anybody's files may lie: Python would, before all others,
    until the worker has the paths of its parent.
    """
    before = {name: os.environ.get(name) for name in (*THREADS, SAFELY)}
    main, here = sys.modules["__main__"], Path.cwd()
    usual = before["OMP_NUM_THREADS"] or str(threads)  # who sets it means the others too
    os.environ.update({name: before[name] or usual for name in THREADS} | {SAFELY: "1"})
    sys.modules["__main__"] = types.ModuleType("__main__")
    if sys.version_info < (3, 11):  # it does not know the variable
        os.chdir(here.anchor)
    try:
        with _uninterrupted():
            yield
    finally:
        if sys.version_info < (3, 11):
            os.chdir(here)
        sys.modules["__main__"] = main
        for name, value in before.items():
            if value is None:
                del os.environ[name]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# The worker's side.


def serve(connection: Connection, index: int, surroundings: Surroundings) -> None:
    """Do the jobs that come until none comes, or until the parent is gone."""
    import warnings

    warnings.simplefilter("ignore")
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    bench, recipes = WorkBench(index), Recipes()
    with surroundings.entered(), contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while (sent := connection.recv()) is not None:
            job = recipes.restored(*sent)
            found = answer(job, bench)
            try:
                connection.send(found)
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001  what it gave does not travel
                connection.send(Answer(error=told(error, job), notes=found.notes))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


# Jobs on the way.


class Recipes:
    """The recipes that a worker was sent last. Its parent keeps the same list, and sends what is not on it."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, Recipe] = OrderedDict()

    def lightened(self, job: Job) -> tuple[Job, Recipe | None]:
        """A job whose recipe is its key alone, and the recipe if the worker has it not."""
        recipe = getattr(job, "recipe", None)
        if recipe is None:
            return job, None
        light = Recipe(
            recipe.model, recipe.device, recipe.fingerprint, None, "", "", None, "", key=recipe.key
        )
        there = recipe.key in self._held
        self._put(light)
        return replace(job, recipe=light), None if there else recipe  # type: ignore[type-var]  # with a recipe

    def restored(self, job: Job, recipe: Recipe | None) -> Job:
        """The job as it was."""
        light = getattr(job, "recipe", None)
        if light is None:
            return job
        self._put(recipe or self._held[light.key])
        return replace(job, recipe=self._held[light.key])  # type: ignore[type-var]  # the same

    def _put(self, recipe: Recipe) -> None:
        self._held[recipe.key] = recipe
        self._held.move_to_end(recipe.key)
        if len(self._held) > RECIPES:
            self._held.popitem(last=False)
