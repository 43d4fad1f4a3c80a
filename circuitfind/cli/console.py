"""Where text goes: folded at the width of a terminal below where it began, or in whole lines for pipes and files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from circuitfind.errors import shown

WIDE = 1000
"""Columns where nobody reads on a terminal, so that rows stay whole for `grep` and files."""

NARROWEST = 40
"""A terminal that says it is narrower is not believed."""

GAP = 3
"""Columns between two columns of a table."""

_TITLE = re.compile(r" {0,4}\S(?:.{0,24}?\S)? {2,}(?=\S)")


def terminal_width(stream: Any) -> int | None:
    """Columns of the terminal behind a stream (what COLUMNS says goes before); None if there is no terminal."""
    try:
        if not stream.isatty():
            return None
        told = os.environ.get("COLUMNS", "")
        found = int(told) if told.isdigit() and int(told) else os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        found = 80
    return max(found or 80, NARROWEST)


def margin(line: str) -> int:
    """Where a line goes on when it is folded: below the text behind its title, below its list item, or below its first word."""
    if title := _TITLE.match(line):
        return title.end()
    indent = len(line) - len(line.lstrip())
    return indent + (2 if not indent or line.lstrip().startswith("- ") else 0)


class Paper(Console):
    """A console whose lines of text are folded with a hanging indent, if it is a terminal.

    Args:
        width: Columns of the terminal; None for whole lines.
        keys: For rich's console.
    """

    def __init__(self, width: int | None, **keys: Any) -> None:
        super().__init__(highlight=False, soft_wrap=width is None, width=width or WIDE, **keys)
        self.folds = width is not None

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does it, but for control characters of prompts, labels and files: they are spelt out."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(shown(part.text), part.style)

    def print(self, *objects: Any, **keys: Any) -> None:
        """As rich does it; one text alone is folded."""
        if self.folds and len(objects) == 1 and isinstance(objects[0], str | Text) and "end" not in keys:
            markup = keys.pop("markup", True)
            text = objects[0]
            if isinstance(text, str):
                text = Text.from_markup(text) if markup else Text(text)
            for line in text.split("\n", allow_blank=True):
                self.hanging(line, margin(line.plain), **keys)
            return
        if self.folds and len(objects) == 1 and isinstance(objects[0], Table):
            fit_columns(objects[0], self.width)
        super().print(*objects, **keys)

    def hanging(self, line: Text, start: int, **keys: Any) -> None:
        """Print a line; what does not fit goes on below column ``start``."""
        for one in self._folded(line, start) if self.folds else [line]:
            super().print(one, **keys)

    def _folded(self, line: Text, start: int) -> Iterator[Text]:
        if line.cell_len <= self.width:
            yield line
            return
        start = start if start <= self.width // 2 else 4
        head, body = line.divide([start])
        for i, part in enumerate(body.wrap(self, self.width - start)):
            part.rstrip()
            yield Text.assemble(Text(" " * start) if i else head, part)


class Rows(Table):
    """A table whose cells are measured as they are shown, control characters spelt out."""

    def add_row(self, *cells: RenderableType | None, **keys: Any) -> None:
        """As rich does it."""
        super().add_row(*(shown(cell) if isinstance(cell, str) else cell for cell in cells), **keys)


def fit_columns(table: Table, width: int) -> None:
    """Set the widths of columns so that cells are folded between words: each as wide as its longest word or
    its share, then short columns whole, and the rest to those that want more.
    """

    def texts(column: Column) -> list[str]:
        return [one.plain if isinstance(one, Text) else str(one) for one in (column.header, *column.cells)]

    columns = [texts(column) for column in table.columns]
    whole = [
        max((cell_len(line) for text in some for line in text.split("\n")), default=0) for some in columns
    ]
    room = width - GAP * (len(columns) - 1)
    if not columns or sum(whole) <= room:
        return
    most = max(room // len(columns), 14)  # a long name does not starve the texts beside it
    numbers = [column.justify == "right" for column in table.columns]
    given = [min(_longest(some, numbers=of), most) for some, of in zip(columns, numbers, strict=True)]
    while sum(given) > room and max(given) > 1:  # the longest words give way first
        given[given.index(max(given))] -= 1
    spare, order = room - sum(given), sorted(range(len(columns)), key=lambda i: whole[i] - given[i])
    for place, i in enumerate(order):
        more = min(whole[i] - given[i], spare // (len(order) - place))
        given[i], spare = given[i] + more, spare - more
    for column, chosen in zip(table.columns, given, strict=True):
        column.width = chosen


def _longest(texts: list[str], *, numbers: bool) -> int:
    """Of the words of a column; a cell of numbers is one word, its header is not."""
    header, *cells = texts
    words = [*header.split(), *(cells if numbers else (word for text in cells for word in text.split()))]
    return max(map(cell_len, words), default=1)


def paper(*, stderr: bool = False) -> Paper:
    """The console of stdout, or of stderr."""
    return Paper(terminal_width(sys.stderr if stderr else sys.stdout), stderr=stderr)
