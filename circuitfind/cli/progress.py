"""Progress on stderr: on a terminal the stages that run and wait, passes done and left, time and memory; elsewhere a line for
each stage.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitfind.cli.common import Screen, duration, number, size
from circuitfind.config import DEFAULT_CONTROLS, Controls

if TYPE_CHECKING:
    from rich.console import RenderableType

    from circuitfind.plan import StagePlan
    from circuitfind.session import Session

BAR = 20
"""Characters of a bar."""

ROOM = 70
"""Columns from which there is a bar."""

PER_SECOND = 4
"""How often the display is drawn anew."""


class Progress:
    """Hears of stages and passes, and shows them. What it costs does not depend on how often it is called."""

    def __init__(self, screen: Screen, controls: Controls = DEFAULT_CONTROLS) -> None:
        self._screen, self._controls = screen, controls
        self._live: Any = None
        self._start = self._begun = time.monotonic()
        self._rows = 0
        """Patched prompts done, in all and in the stage that runs."""
        self._rows_here = 0
        self._name = self._detail = ""
        self._waiting: list[str] = []
        self._session: Session | None = None
        self._expected: Mapping[str, StagePlan] = {}
        self._took: dict[str, float] = {}
        self._spinner: Any = None

    def __enter__(self) -> Progress:
        console = self._screen.err
        if not (self._screen.quiet or self._screen.as_json) and console.folds and console.is_interactive:
            from rich.live import Live

            self._live = Live(
                console=console, refresh_per_second=PER_SECOND, transient=True, get_renderable=self._drawn
            )
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # What is heard.

    def stage(self, name: str, state: str, detail: str = "") -> None:
        if state == "running":
            if name != self._name:
                self._begun, self._rows_here = time.monotonic(), 0
            self._name, self._detail = name, detail
            self._waiting = [one for one in self._waiting if one != name]
            self._look_ahead()
            if detail and self._screen.verbose and not self._screen.quiet:
                self._screen.err.print(f"  {name}: {detail}", markup=False)
            return
        if state == "finished" and name == self._name:
            self._took[name] = time.monotonic() - self._begun
        self._name = self._detail = ""
        self._waiting = [one for one in self._waiting if one != name]
        if not self._screen.quiet:
            mark = "=" if state == "reused" else "+"
            told = f"{mark} {name:<9} {state}{', ' + detail if detail else ''}"
            self._screen.err.print(told, markup=False)

    def progress(self, rows: int) -> None:
        self._rows += rows
        self._rows_here += rows
        if self._live is not None and not self._expected:
            self._look_ahead()

    def note(self, text: str) -> None:
        self._screen.note(text)

    def foresee(self, session: Session, stages: Sequence[str]) -> None:
        """Which stages there will be; how much each is, as soon as the model is there."""
        self._session, self._waiting = session, list(stages)

    def _look_ahead(self) -> None:
        session = self._session
        if self._live is None or self._expected or session is None or not session.kept:
            return
        if "model" in vars(session):  # a run whose stages are all finished loads none
            from circuitfind.plan import foreseen

            self._expected = foreseen(session, self._controls)

    # What is shown.

    def left(self) -> float | None:
        """Seconds that are left, about, from how long the passes so far took; None where that is not known."""
        done = {name: self._expected[name].seconds for name in self._took if name in self._expected}
        cost, seconds = sum(done.values()), sum(self._took[name] for name in done)
        here = self._expected.get(self._name)
        share = self._share()
        if here is not None and share:
            cost, seconds = cost + share * here.seconds, seconds + time.monotonic() - self._begun
        if not cost or not self._expected:
            return None
        rest = (1 - min(share or 0.0, 1.0)) * here.seconds if here is not None else 0.0
        rest += sum(self._expected[name].seconds for name in self._waiting if name in self._expected)
        return seconds / cost * rest

    def _passes(self) -> float:
        """Passes over all prompts in the stage that runs; a patched pass of one patch counts as one."""
        session = self._session
        return self._rows_here / len(session.kept) if session is not None and session.kept else 0.0

    def _share(self) -> float | None:
        """How much of the stage that runs is done, about; more than 1 where it is more than was expected."""
        here = self._expected.get(self._name)
        return self._passes() / here.forward if here is not None and here.forward else None

    def _drawn(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        width, share = self._screen.err.width, self._share()
        rows = Table.grid(padding=(0, 1), pad_edge=False, expand=True)
        bar = width >= ROOM and share is not None
        names = max(map(len, (self._name, *self._waiting)), default=0)
        for wide in (1, min(names, width // 3), *([BAR] if bar else []), None):  # what is told has the rest
            rows.add_column(no_wrap=True, overflow="ellipsis", width=wide, ratio=None if wide else 1)
        if self._name:
            told = Text(", ".join(self._told()), no_wrap=True, overflow="ellipsis")
            drawn = (
                [
                    ProgressBar(
                        1.0,
                        min(share or 0.0, 1.0),
                        width=BAR,
                        pulse=(share or 0.0) > 1,
                        complete_style="cyan",
                    )
                ]
                if bar
                else []
            )
            self._spinner = self._spinner or Spinner("dots")
            rows.add_row(self._spinner, Text(self._name, "bold"), *drawn, told)
        for name in self._waiting:
            plan = self._expected.get(name)
            told = Text(f"about {plan.forward} passes" if plan and plan.forward > 1 else "", "dim")
            rows.add_row(Text(" "), Text(name, "dim"), *([""] if bar else []), told)
        foot = Text("  " + ", ".join(self._foot()), "dim", no_wrap=True, overflow="ellipsis")
        return Group(rows, foot)

    def _told(self) -> Iterator[str]:
        here, done = self._expected.get(self._name), self._passes()
        if here is not None and here.forward > 1:
            few = done <= here.forward
            yield (
                f"{done:.0f} of about {here.forward} passes"
                if few
                else f"{done:.0f} passes, more than expected"
            )
        elif self._rows_here:
            yield f"{number(self._rows_here, 'patched prompt')}"
        if self._detail:
            yield self._detail

    def _foot(self) -> Iterator[str]:
        yield duration(time.monotonic() - self._start)
        left = self.left()
        if left is not None:
            yield f"about {duration(left)} left"
        memory = memory_in_use()
        if memory is not None:
            yield f"{size(memory)} of memory"
        device = _on_device()
        if device:
            yield f"{size(device)} on the device"


def memory_in_use() -> int | None:
    """Bytes of memory that this process holds, or where the system does not say, the most that it has held."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _on_device() -> int:
    """Bytes of tensors on a GPU; asked of what is loaded, so that nothing is loaded for it."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return int(cuda.memory_allocated()) if cuda is not None and cuda.is_initialized() else 0
