"""What the JSON forms of results have in common: how they hold numbers, and how they are read and refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from circuitfind.errors import UsageError


def finite(value: float | None) -> float | None:
    """A number as it is written: null for NaN and infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


def number(value: float | None) -> float:
    """A number as it is read: NaN for null."""
    return math.nan if value is None else float(value)


def read_object(path: Path, what: str, *, file: str, otherwise: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The file.
        what: What it should hold, such as ``circuit``.
        file: What such a file is called.
        otherwise: What else the user can give.

    Raises:
        UsageError: It cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read the {what}: {error}", where=str(path), hint=f"give a {file}{otherwise}"
        ) from error
    if not isinstance(data, dict):
        raise UsageError(
            f"no {what}: the file holds no JSON object",
            where=str(path),
            hint=f"give the {file} that this program wrote",
        )
    return data


def check_form(
    data: Mapping[str, Any], what: str, form: str, version: int, *, where: str | None, hint: str
) -> None:
    """Refuse another format or version.

    Raises:
        UsageError: It is one.
    """
    if data.get("format") != form or data.get("version") != version:
        found = f"{data.get('format')} version {data.get('version')}"
        raise UsageError(f"no {what} of version {version} (found: {found})", where=where, hint=hint)


@contextmanager
def reading(what: str, *, where: str | None, hint: str) -> Iterator[None]:
    """Around reading the fields: what is missing or of the wrong kind is said so.

    Raises:
        UsageError: Something is.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UsageError(f"the {what} is incomplete: {error}", where=where, hint=hint) from error
