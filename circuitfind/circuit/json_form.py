"""What the JSON forms of results have in common: how they hold numbers, and how they are read and refused."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from circuitfind.errors import UsageError
from circuitfind.reading import read_json

T = TypeVar("T")


def finite(value: float | None) -> float | None:
    """A number as it is written: null for NaN and infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


def number(value: float | None) -> float:
    """A number as it is read: NaN for null."""
    return math.nan if value is None else float(value)


def read_object(
    path: Path, what: str, *, file: str, otherwise: str = "", words: bool = False
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The file.
        what: What it should hold, such as ``circuit``.
        file: What such a file is called.
        otherwise: What else the user can give.
        words: Whether NaN and Infinity stand for numbers in it; this program writes null.

    Raises:
        UsageError: It cannot be read, or holds something else.
    """
    try:
        data = read_json(path, words=words)
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(
            f"cannot read the {what}: {told}", where=str(path), hint=f"give a {file}{otherwise}"
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
        given = data.get("version")
        found = f"{data.get('format')} version {given}"
        if data.get("format") == form and isinstance(given, int) and given > version:
            hint = "a later version of circuitfind wrote it: update circuitfind"
        raise UsageError(f"no {what} of version {version} (found: {found})", where=where, hint=hint)


@contextmanager
def reading(what: str, *, where: str | None, hint: str) -> Iterator[None]:
    """Around reading the fields: what is missing or of the wrong kind is said so.

    Raises:
        UsageError: Something is.
    """
    try:
        yield
    except UsageError as error:  # of a name in the file
        if error.where is not None:
            raise
        raise type(error)(error.what, where=where, hint=error.hint, details=error.details) from error
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise UsageError(f"the {what} is incomplete: {error}", where=where, hint=hint) from error


def filled(record: type[T], data: Any) -> T:
    """A record whose fields stand in a JSON object.

    Raises:
        TypeError: A field is missing or unknown, or of another kind than it is declared.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{_told(data)} stands where an object belongs")
    kinds = _kinds(typing.cast(Any, record))
    for name, kind in kinds.items():
        if name in data and not _fits(data[name], kind):
            raise TypeError(f"'{name}' is {_told(data[name])}")
    return record(**data)


def all_fit(data: Any, kind: Any, name: str) -> Any:
    """A value that is of a kind, such as ``Mapping[str, float]``.

    Raises:
        TypeError: It is of another.
    """
    if not _fits(data, kind):
        raise TypeError(f"'{name}' is {_told(data)}")
    return data


@cache
def _kinds(record: Any) -> dict[str, Any]:
    """Its fields as they are declared."""
    hints = typing.get_type_hints(record)
    return {name: hints[name] for name in getattr(record, "__dataclass_fields__", ())}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is what an annotation says; what JSON cannot tell apart, such as tuples from lists, is one."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if origin in (tuple, list, Sequence):
        whole = isinstance(value, list | tuple)
        if origin is tuple and inner[-1:] != (...,):
            return whole and len(value) == len(inner) and all(map(_fits, value, inner))
        return whole and all(_fits(one, inner[0]) for one in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items()
        )
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(kind, type) and kind is not Any and kind.__module__ != "jaxtyping":
        return isinstance(value, kind)
    return True


def _told(value: Any) -> str:
    """What a value is, in a few words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return f"the text '{value[:40]}'"
    return "a list" if isinstance(value, list | tuple) else "an object"
