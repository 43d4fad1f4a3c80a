"""Reading what a user gives: texts, JSON, YAML, TOML and arrays that may be damaged, huge or made to do harm.

Every reader of a file goes through these functions. They hold a file against its limits before its content takes up memory, and
nothing in a file is ever executed. What is wrong is raised as ``Unreadable``, a ``ValueError`` whose text is one plain
sentence; readers put the name of the file and a hint around it.
"""

from __future__ import annotations

from circuitfind.reading.arrays import read_arrays
from circuitfind.reading.limits import (
    MAX_SETTINGS,
    MAX_TEXT,
    MAX_TOML,
    MAX_WHOLE,
    MAX_YAML,
    Unreadable,
    one_line,
)
from circuitfind.reading.texts import expanded, read_bytes, read_text
from circuitfind.reading.trees import compose_yaml, construct_yaml
from circuitfind.reading.values import check_values, parse_json, read_json

__all__ = [
    "MAX_SETTINGS",
    "MAX_TEXT",
    "MAX_TOML",
    "MAX_WHOLE",
    "MAX_YAML",
    "Unreadable",
    "check_values",
    "compose_yaml",
    "construct_yaml",
    "expanded",
    "one_line",
    "parse_json",
    "read_arrays",
    "read_bytes",
    "read_json",
    "read_text",
]
