"""What a worker does with a job, on whatever machine it is: the job's result, or its error in a form that travels.

No torch here.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitfind.allowed import Allowed, allowed, restored
from circuitfind.engine.base import Failed, Job
from circuitfind.engine.bench import WorkBench
from circuitfind.errors import CircuitfindError, RunError
from circuitfind.offload import Offload, current, restoring

LONGEST_TRACE = 20_000
"""Characters of a traceback that travel."""


class Elsewhere(Exception):
    """The traceback of an error in another process; the cause of what is raised here."""

    def __str__(self) -> str:
        return f"in the worker:\n{self.args[0]}"


@dataclass(frozen=True)
class Answer:
    """What came of a job.

    Attributes:
        value: Its result.
        error: What it raised instead.
        trace: Where.
        notes: What the user should hear of.
    """

    value: Any = None
    error: Exception | None = None
    trace: str = ""
    notes: tuple[str, ...] = ()

    def result(self) -> Any:
        """The value, or ``Failed``."""
        if self.error is None:
            return self.value
        self.error.__cause__ = Elsewhere(self.trace)
        return Failed(self.error)


def answer(job: Job, bench: WorkBench) -> Answer:
    """Do a job; never raises but for an interruption."""
    try:
        value, error, trace = job.run(bench), None, ""
    except Exception as raised:  # noqa: BLE001  whoever gave the job hears of it
        value, error = None, told(raised, job)
        trace = traceback.format_exc()[-LONGEST_TRACE:]
    return Answer(value, error, trace, bench.told())


def told(error: Exception, job: Job) -> Exception:
    """An error of a job as it goes back: errors of the user whole, memory that ran out as ``MemoryError``."""
    if isinstance(error, CircuitfindError):
        return error
    text = str(error).splitlines()[0] if str(error) else "no message"
    if isinstance(error, MemoryError) or ("torch" in sys.modules and _out_of_memory(error)):
        return MemoryError(text)
    return RunError(
        f"{job.label} broke: {type(error).__name__}: {text}",
        hint="this is a bug: please report it, with what the same command says with --debug",
    )


def _out_of_memory(error: Exception) -> bool:
    from circuitfind.model.memory import out_of_memory

    return out_of_memory(error)


@dataclass(frozen=True)
class Surroundings:
    """What a worker takes over from the process that asks for it: what the user allowed, and where files are looked for."""

    allowed: Allowed
    offload: Offload
    folder: str
    path: tuple[str, ...]

    @classmethod
    def here(cls) -> Surroundings:
        """Those of this process, now."""
        return cls(allowed(), current(), str(Path.cwd()), tuple(sys.path))

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Work in them. The folder is left as it is where there is none of that name."""
        sys.path.extend(part for part in self.path if part not in sys.path)
        with ExitStack() as stack:
            if Path(self.folder).is_dir():
                os.chdir(self.folder)
            stack.enter_context(restored(self.allowed))
            stack.enter_context(restoring(self.offload))
            yield
