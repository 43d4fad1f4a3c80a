"""What is told of prompt pairs: advice with the lines that it is of, and where two prompts differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from circuitfind.task.pairs import PromptPair, PromptPairs

Level = Literal["warning", "note"]
Show = Callable[[int], str]
"""The text of a token."""


@dataclass(frozen=True)
class Advice:
    """Something to look at.

    Attributes:
        level: ``warning`` or ``note``.
        code: Short name, the same in every version.
        what: What was found.
        hint: What to do.
        where: File and line; of several pairs, the first ones.
        pairs: The pairs, counted from 0; empty for all together.
    """

    level: Level
    code: str
    what: str
    hint: str
    where: tuple[str, ...] = ()
    pairs: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**vars(self), "where": list(self.where), "pairs": list(self.pairs)}


@dataclass(frozen=True)
class Difference:
    """Where two prompts differ.

    Attributes:
        spans: First and last token of each stretch of tokens that differ.
        old, new: The tokens of each.
    """

    spans: tuple[tuple[int, int], ...]
    old: tuple[tuple[int, ...], ...]
    new: tuple[tuple[int, ...], ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """Every token that differs."""
        return tuple(at for first, last in self.spans for at in range(first, last + 1))

    @property
    def one_word(self) -> bool:
        """Whether every stretch has the same replacement: one word, wherever it stands."""
        return len(set(zip(self.old, self.new, strict=True))) == 1


def difference(pair: PromptPair) -> Difference:
    """Where a pair differs."""
    differs = [a != b for a, b in zip(pair.clean, pair.corrupted, strict=True)]
    spans: list[tuple[int, int]] = []
    for at, is_other in enumerate(differs):
        if is_other and spans and spans[-1][1] == at - 1:
            spans[-1] = (spans[-1][0], at)
        elif is_other:
            spans.append((at, at))
    cut = [tuple(side[a : b + 1] for a, b in spans) for side in (pair.clean, pair.corrupted)]
    return Difference(tuple(spans), *cut)


def about(level: Level, code: str, what: str, hint: str, pairs: PromptPairs, which: Sequence[int]) -> Advice:
    """Advice on some pairs, with the lines of the first ones."""
    where = tuple(dict.fromkeys(pairs[i].where for i in which[:5]))
    return Advice(level, code, what, hint, where, tuple(which))


def of_pairs(which: Sequence[int], pairs: PromptPairs) -> str:
    """``3 of 64 pairs``."""
    return f"{len(which)} of {len(pairs)} pairs"


def counts(advice: Iterable[Advice]) -> Mapping[str, int]:
    """How many warnings and notes there are."""
    found = Counter(one.level for one in advice)
    return {"warnings": found["warning"], "notes": found["note"]}
