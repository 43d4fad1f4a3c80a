"""What must be true whatever is read: it works, or an error tells a user what to do; in time, and without eating the memory."""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from circuitfind.errors import CircuitfindError

SECONDS = 10
"""Of computing, that a case may take."""
WAITING = 60
"""Seconds after which one that only waits is broken off; a busy machine is slow."""
ROOM = 1_500_000_000
"""Bytes that a case may take beyond what the process has."""
LONGEST = 2_800
"""Characters of an error with all of its parts."""


class TooSlow(BaseException):
    """No ``except Exception`` holds it up."""


@contextlib.contextmanager
def limits(seconds: float = WAITING, room: int = ROOM) -> Iterator[None]:
    """A case that takes longer is broken off, and one that takes more memory gets a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, before[1]))
    alarm = threading.current_thread() is threading.main_thread()
    if alarm:
        handler = signal.signal(signal.SIGALRM, _slow)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _slow(number: int, frame: object) -> None:
    raise TooSlow(f"still at it after {WAITING} seconds")


def check_error(error: CircuitfindError, named: str | None = None) -> None:
    """An error that a user can work with: it names the file, has a hint, can be printed and is no wall of text."""
    text = str(error)
    assert error.what, repr(error)
    assert error.what.strip(), repr(error)
    assert error.hint, text
    assert error.exit_code in (2, 3), text
    if named is not None:
        assert named in text, f"the file is not named: {text[:500]}"
    check_text(text)
    assert len(text) <= LONGEST, f"{len(text)} characters: {text[:200]} ..."
    assert "should not happen" not in text, text[:500]
    check_text("".join(str(part) for part in error.as_dict().values()))


def check_text(text: str) -> None:
    """It can be written to a terminal, and does nothing there but stand."""
    text.encode("utf-8")
    wild = {c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"}
    wild |= set(text) & set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")
    assert not wild, f"{sorted(wild)!r} in {text[:300]!r}"


def judge(call: Callable[[], object], named: str | None = None) -> CircuitfindError | None:
    """Run a reader: None where it works, else its error, which is one that a user can work with."""
    started = time.thread_time()
    try:
        with limits():
            call()
    except CircuitfindError as error:
        check_error(error, named)
        found: CircuitfindError | None = error
    else:
        found = None
    assert time.thread_time() - started < SECONDS
    return found
