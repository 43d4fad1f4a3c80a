"""What the user has allowed for the length of a command or of a ``with``, and nothing else has: no file, no run, no model.

    with circuitfind.allowing(trust_remote_code=True):
        circuitfind.discover("my-task.yaml", "./a-model-that-brings-its-own-code")

Both are off by default. They hold in the thread that allowed them; ``restored`` hands them to a process of our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Allowed:
    """What is allowed now.

    Attributes:
        trust_remote_code: Run Python code that lies beside a model's weights.
        read_outside: Let task files and sweep files name files outside of their own folder.
    """

    trust_remote_code: bool = False
    read_outside: bool = False


_NOTHING = Allowed()
_now: ContextVar[Allowed] = ContextVar("allowed", default=_NOTHING)


def allowed() -> Allowed:
    """What is allowed here and now."""
    return _now.get()


@contextmanager
def allowing(*, trust_remote_code: bool = False, read_outside: bool = False) -> Iterator[None]:
    """Allow something for the length of a block, beside what is allowed already.

    Args:
        trust_remote_code: Run Python code that lies beside a model's weights: whoever wrote it can do what you can.
        read_outside: Let task files and sweep files name files outside of their own folder.
    """
    before = _now.get()
    with restored(
        Allowed(before.trust_remote_code or trust_remote_code, before.read_outside or read_outside)
    ):
        yield


@contextmanager
def restored(what: Allowed) -> Iterator[None]:
    """Exactly what another process of this user was allowed."""
    token = _now.set(what)
    try:
        yield
    finally:
        _now.reset(token)
