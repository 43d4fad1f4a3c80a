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

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_WORD = 200
"""Characters beyond which a word is no name that somebody misspelt."""
_LONGEST = {"where": 250, "what": 700, "hint": 450, "details": 1_200, "detail": 300}
"""Characters of the parts of an error. What a file says is quoted in them, and a file can say megabytes."""


def shown(text: str) -> str:
    """A text for a terminal: what could move the cursor, colour or turn round what follows, or cannot be printed (control and
    direction characters, halves of characters), is spelt out.
    """
    return _CONTROL.sub(_spelt, text)


def _spelt(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters: its beginning and its end, and how many are left out."""
    if len(text) <= most:
        return text
    told = f" ... ({len(text) - most:,} more characters) ... "
    tail = min(most // 4, 60)
    return text[: most - len(told) - tail] + told + text[-tail:]


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
        self.what = shortened(what, _LONGEST["what"])
        self.hint = shortened(hint, _LONGEST["hint"])
        self.where = None if where is None else shortened(where, _LONGEST["where"])
        self.details = _few(details)
        super().__init__(self.what)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return shown("\n".join([head, *(f"  {line}" for line in self.details), f"hint: {self.hint}"]))

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), self.__dict__)

    def as_dict(self) -> dict[str, object]:
        """The same content for ``--json``."""
        return {
            "error": type(self).__name__,
            "what": shown(self.what),
            "where": None if self.where is None else shown(self.where),
            "details": [shown(line) for line in self.details],
            "hint": shown(self.hint),
            "exit_code": self.exit_code,
        }


def _again(kind: type[CircuitfindError], content: dict[str, object]) -> CircuitfindError:
    """An error that came from another process."""
    found = kind.__new__(kind, content["what"])
    found.__dict__.update(content)
    return found


def _few(details: Iterable[str]) -> tuple[str, ...]:
    """The first lines, as many as one looks through."""
    found, length, left = [], 0, 0
    for line in (shortened(one, _LONGEST["detail"]) for one in details):
        length += len(line)
        if length > _LONGEST["details"]:
            left += 1
        else:
            found.append(line)
    return (*found, f"... and {left:,} more") if left else tuple(found)


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
    if len(word) > LONGEST_WORD:  # comparing takes the square of the length
        return None
    names = {name.lower(): name for name in known if len(name) <= LONGEST_WORD}
    found = difflib.get_close_matches(word.lower(), list(names), n=1, cutoff=0.5)
    return names[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint sentence: the nearest known word, or all of them when none comes near."""
    names = sorted(known)
    near = nearest(word, names)
    if near is not None:
        return f"did you mean '{near}'?"
    return "known: " + ", ".join(names) if names else "none is known"
