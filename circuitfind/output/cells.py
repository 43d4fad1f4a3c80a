"""Cells of tables that spreadsheets open."""

from __future__ import annotations

from typing import Any

FORMULAS = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")
"""What a cell begins with that a spreadsheet runs; the last four are the same in full width."""


def cell(value: Any) -> Any:
    """A value as a cell: a text that a spreadsheet would take for a formula has an apostrophe in front, which shows it as text.

    Numbers stay numbers, and so do texts that are numbers, such as ``-0.5``. Returns become newlines, which writers of CSV
    quote: a bare one would end the row, and what follows would begin a cell.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.lstrip(" ").startswith(FORMULAS) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.strip() == text
