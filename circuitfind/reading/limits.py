"""How much of what a user gives is read, and the error that says what is wrong with it."""

from __future__ import annotations

MAX_TEXT = 1 << 30
"""Bytes of prompts, rows, texts and JSON: far more than prompts take, and what a machine can still hold as text."""
MAX_STREAM = 64_000_000
"""Bytes of a pipe or a device, which does not say beforehand how much it holds."""
MAX_SETTINGS = 4_000_000
"""Bytes of a configuration: those of real models and dictionaries have some thousand."""
MAX_TOML = 1_000_000
"""Bytes of a circuitfind.toml, which has a line for an option."""
MAX_YAML = 32_000_000
"""Bytes of a task, a sweep or labels, whose prompts may be of megabytes; more prompts stand in a file of their own."""
MAX_NODES = 200_000
"""Values in a YAML file, those behind aliases counted each time: a small file can stand for a huge one."""
MAX_YAML_DEPTH = 50
"""Levels of a YAML file: tasks have six."""
MAX_DEPTH = 200
"""Levels of a JSON file; what walks through it goes a few calls deep for each, and Python stops at 1,000."""
MAX_WHOLE = 2**63
"""No whole number of a file lies beyond: no array can hold it, and printing millions of digits takes minutes."""
MAX_UNPACKED = 1 << 34
"""Bytes to which an archive may unpack: the scores of all edges of the largest models, by position, are below that."""
MAX_RATIO = 200
"""How many times larger than its file; real numbers hardly shrink."""
FREE_UNPACKED = 1 << 28
"""Bytes that a file may unpack to however well they are packed: scores that are mostly NaN shrink a thousandfold."""
MAX_ARRAYS = 10_000
"""Arrays in one archive."""


class Unreadable(ValueError):
    """Why a file cannot be read, in a sentence without its name."""


def one_line(error: BaseException, most: int = 300) -> str:
    """The first line of an error of a library, or its name where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:most] if lines else type(error).__name__
