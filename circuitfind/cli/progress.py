"""Progress on stderr."""

from __future__ import annotations

import time
from typing import Any

from circuitfind.cli.common import Screen, duration


class Progress:
    """Stages and a running line on stderr; one line for each stage where stderr is no terminal."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._rows = 0
        self._start = time.monotonic()
        self._text = ""
        self._status: Any = None

    def __enter__(self) -> Progress:
        if not self._screen.quiet and self._screen.err.is_terminal:
            self._status = self._screen.err.status("")
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._status.stop()

    def stage(self, name: str, state: str, detail: str = "") -> None:
        if self._screen.quiet:
            return
        text = f"{name}: {detail}" if detail else name
        if state == "running":
            self._text = text
            self._update()
            if detail and self._screen.verbose:
                self._screen.err.print(f"  {text}", markup=False)
        else:
            self._screen.err.print(
                f"{'=' if state == 'reused' else '+'} {name:<9} {state}{', ' + detail if detail else ''}",
                markup=False,
            )

    def progress(self, rows: int) -> None:
        self._rows += rows
        self._update()

    def note(self, text: str) -> None:
        self._screen.note(text)

    def _update(self) -> None:
        if self._status is not None:
            self._status.update(
                f"{self._text}  ({self._rows} patched prompts, {duration(time.monotonic() - self._start)})"
            )
