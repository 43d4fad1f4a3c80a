"""Amounts of memory as text. No torch here."""

from __future__ import annotations

import re

from circuitfind.errors import UsageError

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``8GB``, ``500 MB`` or ``2GiB``.

    Raises:
        UsageError: It is none.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].lower() not in UNITS:
        raise UsageError(
            f"'{text}' is no amount of memory", hint="give a number and a unit, such as 8GB or 500MB"
        )
    return int(float(found[1]) * UNITS[found[2].lower()])


def size_text(count: int) -> str:
    """Bytes as one would give them to a flag: ``1.23GB``."""
    for unit in ("GB", "MB", "kB"):
        if count >= UNITS[unit.lower()]:
            return f"{count / UNITS[unit.lower()]:.3g}{unit}"
    return f"{count}B"
