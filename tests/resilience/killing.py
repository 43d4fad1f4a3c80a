"""Runs that are killed: in a process of their own, forked from this one, by a signal that nothing can catch."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TIMED = {
    "created",
    "started",
    "order",
    "ended",
    "finished",
    "seal",
    "seconds",
    "resumed_pieces",
    "command",
    "task_file",
}
"""Keys of a manifest that say when, how long, and by whom."""
COUNTED = {"forward_passes", "backward_passes", "cost"}
"""What it took: passes that had to be run again are counted again."""

PIECE, MEASURE = "p", "c"
"""Marks of a piece that is done. Those that measure untouched prompts are told apart: what a finished stage knew of these
is measured again when a later stage asks."""

LIMIT = 120.0
"""Seconds after which a run hangs."""


def in_child(work: Callable[[], object], *, kill_after: float | None = None) -> int:
    """Do some work in a forked process; what it wrote last says how it ended.

    Args:
        work: What is done there, in one thread.
        kill_after: Seconds until it is killed, unless it has ended.

    Returns:
        Its exit code; minus the number of a signal.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of a fork beside threads: those of the test runner
        child = os.fork()
    if child == 0:
        _be_child(work)
    start = time.monotonic()
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        taken = time.monotonic() - start
        if kill_after is not None and taken >= kill_after:
            kill_after = None
            os.kill(child, signal.SIGKILL)
        elif taken > LIMIT:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"a run hung for {LIMIT:.0f} s")
        time.sleep(0.002)


def _be_child(work: Callable[[], object]) -> None:
    import torch

    code = 70
    try:
        torch.set_num_threads(1)
        found = work()
        code = found if isinstance(found, int) else 0
    except BaseException:  # noqa: BLE001  # it is told, and nothing of the test runner may run on here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def die() -> None:
    """Killed as by ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Events:
    """Counts what a run does to its folder, and pieces, and kills it before or after one of them.

    Attributes:
        kill_at: Number of the event at which the process dies; none if negative.
        log: File to which each event adds a byte.
    """

    kill_at: int
    log: Path

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put itself around the calls by which files are written, and around each piece."""
        self.count = 0
        self._handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        from circuitfind.model import pieces

        for owner, name, mark in (
            (os, "write", "w"),
            (os, "fsync", "s"),
            (os, "link", "l"),
            (Path, "replace", "r"),
            (Path, "unlink", "u"),
            (Path, "mkdir", "m"),
            (pieces, "done", PIECE),
        ):
            patch.setattr(owner, name, self._around(getattr(owner, name), mark))

    def _around(self, call: Callable[..., Any], mark: str) -> Callable[..., Any]:
        write = os.write

        def wrapped(*args: Any, **keys: Any) -> Any:
            self._step()
            found = call(*args, **keys)
            plain = mark == PIECE and type(args[1]).__name__ == "Measure"
            write(self._handle, (MEASURE if plain else mark).encode())
            self._step()
            return found

        return wrapped

    def _step(self) -> None:
        if self.count == self.kill_at:
            die()
        self.count += 1


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run folder without what says when, how long and at what cost: the same in all runs of a command."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".json":
                data = json.dumps(_stripped(json.loads(data)), sort_keys=True).encode()
            elif path.suffix == ".html":
                data = _TIMES.sub(b"", data)
            found[str(path.relative_to(folder))] = data
    return found


_TIMES = re.compile(
    rb',?\s*"(seconds|forward_passes|backward_passes|resumed_pieces|bytes)":\s*[0-9.]+|'
    rb',?\s*"(created|started|order|ended|finished|seal|command|task_file|sha256)":\s*"[^"]*"|,?\s*"cost":\s*{[^}]*}'
)


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _stripped(item) for key, item in value.items() if key not in TIMED | COUNTED}
        if isinstance(kept.get("files"), dict):  # hashes of files that hold counts
            for entry in kept["files"].values():
                if isinstance(entry, dict):
                    entry.pop("sha256", None)
                    entry.pop("bytes", None)
        return kept
    return [_stripped(item) for item in value] if isinstance(value, list) else value


def litter(outputs: Path) -> list[Path]:
    """Temporary files, locks and journals: a finished run leaves none."""
    return [
        path
        for path in outputs.rglob("*")
        if path.name.startswith(".") or path.suffix in (".tmp", ".lock", ".bin") or path.name == "journal"
    ]
