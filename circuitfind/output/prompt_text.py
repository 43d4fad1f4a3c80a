"""Prompt pairs laid out token under token, in blocks that fit a width."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from circuitfind.task.differences import difference
from circuitfind.task.pairs import PromptPair

TITLES = ("", "clean", "corrupted", "")
MOST = 24
"""Columns of a token, beyond which it is cut."""

Line = list[tuple[str, bool]]
"""Pieces of a line, and whether each is of tokens that differ."""


@dataclass(frozen=True)
class Aligned:
    """Two prompts in columns.

    Attributes:
        names: What stands at each token: positions that the task names, and the answer's.
        clean, corrupted: The tokens as they are shown.
        differs: Whether they are not the same.
    """

    names: tuple[str, ...]
    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    differs: tuple[bool, ...]

    def blocks(self, width: int) -> Iterator[list[Line]]:
        """Lines for each block of columns: names, clean, corrupted, marks; those without anything left out."""
        title = max(len(text) for text in TITLES) + 1
        first = 0
        while first < len(self.clean):
            stop, used = first, title
            while stop < len(self.clean) and (stop == first or used + self._width(stop) <= width):
                used += self._width(stop)
                stop += 1
            yield self._block(range(first, stop), title)
            first = stop

    def _width(self, column: int) -> int:
        cells = (self.names[column], self.clean[column], self.corrupted[column])
        return max(map(columns_of, cells)) + 1

    def _block(self, columns: range, title: int) -> list[Line]:
        marks = ["^" * columns_of(self.clean[c]) if self.differs[c] else "" for c in range(len(self.clean))]
        found: list[Line] = []
        for text, row in zip(TITLES, (self.names, self.clean, self.corrupted, marks), strict=True):
            if not text and not any(row[c] for c in columns):
                continue
            line: Line = [(text.ljust(title), False)]
            for c in columns:
                blanks = " " * (self._width(c) - columns_of(row[c]))
                line += [(row[c], self.differs[c]), (blanks, False)]
            found.append(line)
        return found


def align(pair: PromptPair, piece: Callable[[int], str]) -> Aligned:
    """A pair in columns."""
    differs = set(difference(pair).positions)
    names: list[list[str]] = [[] for _ in pair.clean]
    for name, at in pair.positions.items():
        names[at].append(name)
    if pair.answer_position not in pair.positions.values():
        names[pair.answer_position].append("answer")
    return Aligned(
        tuple("/".join(some) for some in names),
        tuple(token_text(piece(token)) for token in pair.clean),
        tuple(token_text(piece(token)) for token in pair.corrupted),
        tuple(at in differs for at in range(len(pair.clean))),
    )


def token_text(piece: str) -> str:
    """A token with its blanks and line ends to be seen: ``·Mary``, ``\\n``."""
    shown = piece.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace(" ", "·")
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
    return shown if len(shown) <= MOST else shown[: MOST - 3] + "..."


def columns_of(text: str) -> int:
    """Columns that a text takes on a terminal: wide letters two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def answers_text(tokens: Sequence[int], piece: Callable[[int], str], most: int = 6) -> str:
    """A set of answers, such as ``·Mary``."""
    shown = "|".join(token_text(piece(token)) for token in tokens[:most])
    return shown + (f"|... ({len(tokens)})" if len(tokens) > most else "")
