"""JSON values, and the limits of values of other files."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from circuitfind.reading.limits import MAX_DEPTH, MAX_TEXT, MAX_WHOLE, Unreadable
from circuitfind.reading.texts import read_text

# What is looked for before numbers are read one by one: each is built to pass over ten megabytes in a tenth of a second.
_BIG = re.compile(r"[\[\s,:-][0-9]{19}")
_STEEP = re.compile(r"[0-9][eE]\+?0*[1-9][0-9][0-9]")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, most: int = MAX_TEXT, *, words: bool = False) -> Any:
    """What a JSON file holds; see ``parse_json``.

    Raises:
        OSError: There is none, or it may not be read.
        Unreadable: It is no such file.
    """
    return parse_json(read_text(path, most), words=words)


def parse_json(text: str, *, words: bool = False) -> Any:
    """A JSON value whose numbers, texts and depth the rest of the program can work with.

    Args:
        text: The JSON.
        words: Whether NaN and Infinity, which Python and some tools write, stand for numbers.

    Raises:
        Unreadable: It is broken, nested too deeply, or holds infinity, a number beyond 64 bits or half a character.
    """
    big = text[:1].isdigit() or _BIG.search(text)
    whole = _whole if big else None
    real = _float if big or _STEEP.search(text) else None
    try:
        found = json.loads(
            text, parse_int=whole, parse_float=real, parse_constant=None if words else _no_number
        )
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise Unreadable(f"broken JSON: {error.msg} at {at}") from None
    except RecursionError:
        raise Unreadable(f"it is nested more than {MAX_DEPTH} levels deep") from None
    _check_depth(found)
    if _HALF.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise Unreadable(f"it holds half a character ({half} without its other half)") from None
    return found


def _no_number(word: str) -> NoReturn:
    raise Unreadable(f"it holds {word}, which is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -MAX_WHOLE <= (value := int(digits)) < MAX_WHOLE:
        raise Unreadable(f"it holds a whole number of {len(digits.lstrip('-'))} digits, beyond 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Unreadable(f"it holds {text[:20]}, beyond the largest number that a computer keeps")
    return value


def check_values(found: Any) -> None:
    """Refuse what no value of a file may be: a whole number beyond 64 bits, too many levels.

    Raises:
        Unreadable: It is there.
    """
    _check_depth(found)
    left = [found]
    while left:
        one = left.pop()
        if isinstance(one, dict | list):
            left += one.values() if isinstance(one, dict) else one
        elif isinstance(one, int) and not -MAX_WHOLE <= one < MAX_WHOLE:
            raise Unreadable("it holds a whole number beyond 64 bits")


def _check_depth(found: Any) -> None:
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if type(inner) in (dict, list)  # a union would take three times as long
        ]
    raise Unreadable(f"it is nested more than {MAX_DEPTH} levels deep")
