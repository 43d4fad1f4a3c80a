"""Texts with columns of a row in braces: ``{metadata.subject}``, ``{choices.label[answerKey]}``.

A dot goes into a mapping, brackets into a list: by a number from 0, or by another column that holds one. ``{{`` and ``}}``
stand for plain braces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from circuitfind.errors import nearest

_NAME = r"[A-Za-z_][\w-]*"
_PATH = rf"{_NAME}(?:\.{_NAME})*"
_STEP = re.compile(rf"(?:^|\.)(?P<key>{_NAME})|\[(?P<index>\d+|{_PATH})\]")
_COLUMN = rf"{_PATH}(?:\[(?:\d+|{_PATH})\](?:\.{_PATH})?)*"
_PIECE = re.compile(rf"\{{\{{|\}}\}}|\{{(?P<column>{_COLUMN})\}}|(?P<stray>[{{}}][^{{}}]*\}}?)")


class ColumnProblem(Exception):
    """Why a row has no such value: the column, and what is wrong with it."""

    def __init__(self, column: str, what: str, hint: str) -> None:
        super().__init__(f"column '{column}' {what}")
        self.column, self.what, self.hint = column, what, hint


@dataclass(frozen=True)
class Columns:
    """A parsed text: ``literals[0] columns[0] literals[1] ... literals[-1]``."""

    literals: tuple[str, ...]
    columns: tuple[str, ...]

    def fill(self, row: Mapping[str, Any]) -> str:
        """The text of a row.

        Raises:
            ColumnProblem: A column is missing, is null, or holds no text and no number.
        """
        text = self.literals[0]
        for column, literal in zip(self.columns, self.literals[1:], strict=True):
            text += _as_text(column, value_of(row, column)) + literal
        return text


@lru_cache(maxsize=256)
def parse_columns(text: str) -> Columns:
    """Parse a text.

    Raises:
        ValueError: A brace stands alone, or what is in braces names no column.
    """
    literals, columns, at = [""], [], 0
    for match in _PIECE.finditer(text):
        literals[-1] += text[at : match.start()]
        at = match.end()
        if match["stray"]:
            raise ValueError(f"'{match['stray']}' names no column")
        if match["column"]:
            columns.append(match["column"])
            literals.append("")
        else:
            literals[-1] += match[0][0]
    literals[-1] += text[at:]
    return Columns(tuple(literals), tuple(columns))


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """What a row has in a column; None where it, or anything above it, is null.

    Raises:
        ColumnProblem: There is no such column.
    """
    value: Any = row
    for step in _STEP.finditer(column):
        if value is None:
            return None
        above = column[: step.start()] or "the row"
        if step["key"] is not None:
            value = _inside(value, step["key"], column, above)
            continue
        given = step["index"]
        index = int(given) if given.isdecimal() else value_of(row, given)
        if not isinstance(index, int) or isinstance(index, bool):
            raise ColumnProblem(
                column, f"needs a whole number in '{given}', which holds {_short(index)}", _INDEX
            )
        if not isinstance(value, list):
            raise ColumnProblem(column, f"is {_short(value)} in '{above}', not a list", _INDEX)
        if not 0 <= index < len(value):
            raise ColumnProblem(column, f"has {len(value)} values, and '{given}' is {index}", _INDEX)
        value = value[index]
    return value


_INDEX = "brackets take an element of a list by its number from 0: {choices.label[answerKey]}"


def _inside(value: Any, key: str, column: str, above: str) -> Any:
    if not isinstance(value, Mapping):
        raise ColumnProblem(column, f"is not there: '{above}' is {_short(value)}", "name a column that is")
    if key not in value:
        near = nearest(key, value)
        hint = f"did you mean '{near}'?" if near else f"there are: {', '.join(map(str, value))}"
        raise ColumnProblem(column, f"is missing ('{key}')" if key != column else "is missing", hint)
    return value[key]


def _as_text(column: str, value: Any) -> str:
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return str(value)
    what = "is null" if value is None else f"is {_short(value)}, not a text or a number"
    hint = "leave such rows out with `filled`" if value is None else "name what is in it: {a.b}, {a[0]}"
    raise ColumnProblem(column, what, hint)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(str, value))}"[:80]
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:60]
