"""Why a case is not as expected, in words, the likeliest cause first. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal[
    "model",
    "task",
    "prompts",
    "settings",
    "metric",
    "refused",
    "scores",
    "edges",
    "faithfulness",
    "backups",
    "evidence",
    "files",
]
ORDER: tuple[Kind, ...] = get_args(Kind)
"""From causes to consequences: other weights or prompts change the metric, that the scores, and those the edges."""

Source = Literal["expectation", "baseline", "refusal"]


@dataclass(frozen=True)
class Reason:
    """One thing that is not as it should be.

    Attributes:
        kind: What it is about.
        source: What it is held against: the task's expectations, the stored baseline, or nothing, since the run itself
            was refused.
        text: One sentence, with the value now and before.
        lines: What belongs to it, such as each lost edge.
    """

    kind: Kind
    source: Source
    text: str
    lines: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "source": self.source, "text": self.text, "lines": list(self.lines)}


def in_order(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """The likeliest cause first; of consequences, what has changed before what is expected."""

    def place(reason: Reason) -> tuple[int, bool, int]:
        at, since = ORDER.index(reason.kind), ORDER.index("scores")
        return min(at, since), reason.source != "baseline", at

    return tuple(sorted(reasons, key=place))


def some(names: Iterable[str], most: int = 6) -> str:
    """Names in a row, the first few of many."""
    listed = list(names)
    left = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {left} more" if left > 0 else "")


def brief(value: float | None) -> str:
    """A number with as many digits as matter."""
    return "none" if value is None else f"{value:.4g}"
