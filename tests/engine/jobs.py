"""Jobs for the tests of engines. They need no torch, so that workers begin at once."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuitfind.engine.base import Bench, Needs, Recipe
from circuitfind.errors import TaskError


@dataclass(frozen=True)
class Square:
    """A number times itself, after some seconds, with a line in a file that says who did it."""

    number: int
    seconds: float = 0.0
    log: str = ""
    needs: Needs = field(default_factory=Needs)

    @property
    def label(self) -> str:
        return f"the square of {self.number}"

    def run(self, bench: Bench) -> Any:
        if self.log:
            with Path(self.log).open("a", encoding="utf-8") as file:
                file.write(f"{self.number} {os.getpid()}\n")
        time.sleep(self.seconds)
        return self.number**2


@dataclass(frozen=True)
class Deadly(Square):
    """The same, but it kills its worker so many times before (a file counts them)."""

    times: int = 1
    how: int = signal.SIGKILL
    code: int | None = None

    def run(self, bench: Bench) -> Any:
        so_far = Path(f"{self.log}.{self.number}")
        died = int(so_far.read_text()) if so_far.exists() else 0
        if died < self.times:
            so_far.write_text(str(died + 1))
            if self.code is not None:
                os._exit(self.code)
            os.kill(os.getpid(), self.how)
        return super().run(bench)


@dataclass(frozen=True)
class Wrong(Square):
    """Raises: ``user`` (an error with a remedy), ``memory``, ``bug``; ``unsent`` gives what does not travel."""

    what: str = "user"

    def run(self, bench: Bench) -> Any:
        bench.note(f"about to go wrong: {self.what}")
        if self.what == "user":
            raise TaskError("too odd", hint="make it even", where="a.yaml:3", details=["one", "two"])
        if self.what == "memory":
            raise MemoryError("all gone")
        if self.what == "unsent":
            return lambda: None
        return [][self.number]


@dataclass(frozen=True)
class Told(Square):
    """Gives what the worker knows of where it is: its folder, parent, threads and variables."""

    recipe: Recipe | None = None

    def run(self, bench: Bench) -> Any:
        found = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CIRCUITFIND_TASKS")}
        pairs = None if self.recipe is None else self.recipe.pairs
        return {"pid": os.getpid(), "folder": os.getcwd(), "pairs": pairs, **found}  # noqa: PTH109
