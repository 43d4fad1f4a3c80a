"""Cases one after another in this process, or side by side in several. No torch here: processes of our own import it.

Every process runs whole cases and sends back outcomes, which are put in order; one that dies fails the case that it ran.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from circuitfind.check.cases import Case
from circuitfind.check.outcome import Outcome, of_case
from circuitfind.check.run import Shelf, Where, run_case
from circuitfind.session import Reporter

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that say how many threads a process computes with."""


class Listener(Protocol):
    """Hears which cases run."""

    def started(self, case: Case) -> Reporter | None:
        """A case begins; what hears of its stages, if it runs in this process."""

    def ended(self, outcome: Outcome) -> None: ...


def run_cases(
    cases: Sequence[Case], where: Where, listener: Listener, *, jobs: int = 1
) -> tuple[list[Outcome], bool]:
    """Run cases, models one after another.

    Returns:
        The outcomes in the order of ``cases``, and whether all were run: an interruption (Ctrl-C) ends it early.
    """
    order = sorted(range(len(cases)), key=lambda i: cases[i].model)
    found: dict[int, Outcome] = {}
    work = _here if min(jobs, len(cases)) <= 1 else _apart
    finished = True
    # Closed at once, so that no process outlives an interruption.
    with contextlib.closing(work(cases, order, where, listener, jobs)) as outcomes:
        try:
            for number, outcome in outcomes:
                found[number] = outcome
                listener.ended(outcome)
        except KeyboardInterrupt:
            finished = False
    return [found[number] for number in sorted(found)], finished


def _here(
    cases: Sequence[Case], order: Sequence[int], where: Where, listener: Listener, jobs: int
) -> Generator[tuple[int, Outcome], None, None]:
    shelf = Shelf(where.device)
    for number in order:
        yield number, run_case(cases[number], where, shelf, listener.started(cases[number]))


def _apart(
    cases: Sequence[Case], order: Sequence[int], where: Where, listener: Listener, jobs: int
) -> Generator[tuple[int, Outcome], None, None]:
    left = list(order)
    workers: dict[Connection, tuple[BaseProcess, int]] = {}
    jobs = min(jobs, len(cases))
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def give(connection: Connection, process: BaseProcess) -> None:
        if not left:
            with contextlib.suppress(OSError):
                connection.send(None)
            process.join()
            connection.close()
            return
        number = left.pop(0)
        workers[connection] = (process, number)
        listener.started(cases[number])
        with contextlib.suppress(OSError):  # it died: that is heard as the end of its answers
            connection.send(cases[number])

    try:
        for _ in range(jobs):
            give(*_worker(where, threads))
        while workers:
            for ready in wait(list(workers)):
                assert isinstance(ready, Connection)
                process, number = workers.pop(ready)
                try:
                    outcome: Outcome = ready.recv()
                except EOFError:
                    process.join()
                    problem = f"its process ended with exit code {process.exitcode}"
                    yield number, of_case(cases[number], "error", problem=problem)
                    if left:
                        give(*_worker(where, threads))
                    continue
                yield number, outcome
                give(ready, process)
    finally:
        for process, _ in workers.values():
            process.terminate()
        for process, _ in workers.values():
            process.join()


def _worker(where: Where, threads: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context(
        "spawn"
    )  # a fork would share the threads of torch and of the device
    ours, theirs = context.Pipe()
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update({name: value or str(threads) for name, value in before.items()})
    try:
        process = context.Process(target=_serve, args=(theirs, where), daemon=True)
        with _uninterrupted():
            process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
    theirs.close()
    return ours, process


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that are begun here never hear of Ctrl-C: it is for the one that began them, which ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, where: Where) -> None:
    """Run the cases that come until none comes."""
    import warnings

    warnings.simplefilter("ignore")
    shelf = Shelf(where.device)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while (case := connection.recv()) is not None:
            connection.send(run_case(case, where, shelf))
