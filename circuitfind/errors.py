"""Every error that a user can meet, and the exit code that it ends the program with.

    CircuitfindError          3   the run failed
    +- CheckDiffers           1   a check found a difference
    +- UsageError             2   a wrong flag, name, file or value
    |  +- TaskError           2   a task file or its prompts
    |  +- PromptError         2   prompt pairs that do not line up
    |  +- ModelError          2   a model that cannot be found or read
    |  +- UnsupportedError    2   a combination that would give wrong numbers
    +- RunError               3   a run that started and could not finish
    +- Interrupted          130   stopped by Ctrl-C

Each carries ``what`` happened, ``where`` (file, line, key) and a ``hint``: what to do next.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

OK, DIFFERS, USAGE, FAILURE, INTERRUPTED = 0, 1, 2, 3, 130

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(text: str) -> str:
    """A text for a terminal: control characters, which could move the cursor or colour what follows, are spelt out."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class CircuitfindError(Exception):
    """An error with a remedy; shown to the user without a traceback.

    Args:
        what: One sentence that says what is wrong.
        hint: What to do next. Required: an error without a way out is only half an error.
        where: File, line or key, such as ``tasks/ioi.yaml:12 (prompts.count)``.
        details: Lines shown below, such as tokens side by side.
    """

    exit_code = FAILURE

    def __init__(
        self, what: str, *, hint: str, where: str | None = None, details: Iterable[str] = ()
    ) -> None:
        self.what = what
        self.hint = hint
        self.where = where
        self.details = tuple(details)
        super().__init__(what)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return shown("\n".join([head, *(f"  {line}" for line in self.details), f"hint: {self.hint}"]))

    def as_dict(self) -> dict[str, object]:
        """The same content for ``--json``."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "details": list(self.details),
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class CheckDiffers(CircuitfindError):
    """A check ran well and found a difference."""

    exit_code = DIFFERS


class UsageError(CircuitfindError):
    """A wrong flag, name, file or value."""

    exit_code = USAGE


class TaskError(UsageError):
    """A task file that cannot be read or does not fit the schema."""


class PromptError(UsageError):
    """Prompt pairs that do not line up, or that the model does not answer."""


class ModelError(UsageError):
    """A model that cannot be found, read or trusted."""


class UnsupportedError(UsageError):
    """A combination of model, method, metric or ablation that would give wrong numbers."""


class RunError(CircuitfindError):
    """A run that started and could not finish."""


class Interrupted(CircuitfindError):
    """Stopped by the user; only ever told, never raised."""

    exit_code = INTERRUPTED


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is spelt most like ``word``, if any comes near."""
    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), list(names), n=1, cutoff=0.5)
    return names[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint sentence: the nearest known word, or all of them when none comes near."""
    names = sorted(known)
    near = nearest(word, names)
    if near is not None:
        return f"did you mean '{near}'?"
    return "known: " + ", ".join(names) if names else "none is known"
