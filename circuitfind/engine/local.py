"""The local engine: jobs one after another in this process. What the others are held against."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from circuitfind.engine.base import EngineName, Job, raising
from circuitfind.engine.bench import WorkBench
from circuitfind.engine.work import answer


class LocalEngine:
    """Does jobs in this process.

    Args:
        note: Hears what the user should know.
    """

    name: EngineName = "local"
    workers = 1

    def __init__(self, note: Callable[[str], None] | None = None) -> None:
        self.note = note or (lambda text: None)
        self.busy = False
        self._bench = WorkBench()

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {"name": self.name, "workers": 1, "deaths": 0}

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the models."""
        self._bench.clear()

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
        try:
            for number, job in enumerate(jobs):
                if begun is not None:
                    begun(number)
                found = answer(job, self._bench)
                for text in found.notes:
                    self.note(text)
                yield number, found.result()
        finally:
            self.busy = False
