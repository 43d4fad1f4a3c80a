"""Cases one after another in this process, or side by side as jobs of an engine. No torch here: workers import it.

Every worker runs whole cases and sends back outcomes, which are put in order; a case whose workers die fails alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from circuitfind.check.cases import Case
from circuitfind.check.outcome import Outcome, of_case
from circuitfind.check.run import Shelf, Where, run_case
from circuitfind.engine.base import Bench, Engine, Failed, Needs
from circuitfind.engine.processes import processes
from circuitfind.engine.room import whole_run
from circuitfind.session import Reporter


class Listener(Protocol):
    """Hears which cases run."""

    def started(self, case: Case) -> Reporter | None:
        """A case begins; what hears of its stages, if it runs in this process."""

    def ended(self, outcome: Outcome) -> None: ...


@dataclass(frozen=True)
class CaseJob:
    """A case from the beginning to its outcome."""

    case: Case
    where: Where

    @property
    def needs(self) -> Needs:
        return whole_run(self.case.model, self.where.device, self.where.memory)

    @property
    def label(self) -> str:
        return f"the case {self.case.label}"

    def run(self, bench: Bench) -> Outcome:
        return run_case(self.case, self.where, Shelf(self.where.device, bench))


def run_cases(
    cases: Sequence[Case], where: Where, listener: Listener, *, jobs: int = 1, engine: Engine | None = None
) -> tuple[list[Outcome], bool]:
    """Run cases, models one after another.

    Args:
        cases: What is run.
        where: Where, and where to.
        listener: Hears which run.
        jobs: Processes side by side, where no engine is given.
        engine: Runs several cases; a single one is run here.

    Returns:
        The outcomes in the order of ``cases``, and whether all were run: an interruption (Ctrl-C) ends it early.
    """
    order = sorted(range(len(cases)), key=lambda i: cases[i].model)
    found: dict[int, Outcome] = {}
    finished = True
    with ExitStack() as stack:
        if engine is None and min(jobs, len(cases)) > 1:
            engine = stack.enter_context(processes(min(jobs, len(cases))))
        if engine is None or len(cases) < 2:
            work = _here(cases, order, where, listener)
        else:
            work = _apart(cases, order, where, listener, engine)
        # Closed at once, so that no process outlives an interruption.
        with contextlib.closing(work) as outcomes:
            try:
                for number, outcome in outcomes:
                    found[number] = outcome
                    listener.ended(outcome)
            except KeyboardInterrupt:
                finished = False
    return [found[number] for number in sorted(found)], finished


def _here(
    cases: Sequence[Case], order: Sequence[int], where: Where, listener: Listener
) -> Generator[tuple[int, Outcome], None, None]:
    shelf = Shelf(where.device)
    for number in order:
        yield number, run_case(cases[number], where, shelf, listener.started(cases[number]))


def _apart(
    cases: Sequence[Case], order: Sequence[int], where: Where, listener: Listener, engine: Engine
) -> Generator[tuple[int, Outcome], None, None]:
    jobs = [CaseJob(cases[number], where) for number in order]

    def begun(place: int) -> None:
        listener.started(jobs[place].case)

    with contextlib.closing(engine.each(jobs, begun)) as results:
        for place, found in results:
            yield order[place], _lost(jobs[place].case, found) if isinstance(found, Failed) else found


def _lost(case: Case, found: Failed) -> Outcome:
    problem = str(found.error) if found.death is None else f"its process {found.death}"
    return of_case(case, "error", problem=problem)
