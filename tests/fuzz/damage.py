"""Ways to damage a good file: its bytes, its values, what it declares. Everything is drawn by hypothesis, so that it shrinks."""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

Draw = Callable[..., Any]

RAW = "@@raw:"
"""Begins a text that is written into JSON as it is, without quotes."""


def raw(text: str) -> str:
    return f"{RAW}{text}@@"


NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 10**6, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e-320, 1e308),
    *(raw("1e400"), raw("-1e999999"), raw("NaN"), raw("Infinity"), raw("9" * 5000), raw("-0"), raw("1E5")),
)
TEXTS = (
    *(
        "",
        " ",
        "\n",
        "\0",
        "a",
        "-",
        "@",
        "->",
        "a0.h0",
        "a0.h0->logits",
        "m0",
        "input",
        "logits@3",
        "t1.f5+7",
    ),
    *("a" + "9" * 5000 + ".h0", "a١.h٢", "m" + "0" * 400, "é" * 300, "x" * 100_000, "\u202eevil", "\x1b[2J"),
    *(
        "../../../../etc/passwd",
        "/dev/zero",
        "~root/x",
        "${HOME}",
        "C:\\x",
        "a/" * 3000,
        "{",
        "{x",
        "{x.y[z]}",
    ),
    *("<script>alert(1)</script>", "%s%n{0.__class__}", "yes", "null", "1_000", "1:60:60", "2001-99-99"),
    *(
        raw('"\\ud800"'),
        raw('"\\udfff\\ud800"'),
        raw('"\\u0000"'),
        "\ufeff",
        "\U0010ffff",
        "a\u0301" * 50,
        "👩‍👩‍👧",
    ),
)
SHAPES: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [None], {"": None}, [1, "a"], {"a": {"b": [1, {"c": 2}]}}),
    *(
        raw("[" * 60 + "]" * 60),
        raw("[" * 5000 + "]" * 5000),
        raw("[" * 100_000),
        raw('{"a":' * 900 + "1" + "}" * 900),
    ),
    *(["x"] * 1000, [[0.0] * 50] * 50, {str(i): i for i in range(500)}),
)

nasty = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(SHAPES),
    st.text(max_size=30),
    st.integers(),
    st.floats(),
)
places = st.integers(0, 1 << 16)
OPERATIONS = ("set", "drop", "wrap", "text", "swap", "rename", "add", "again", "empty")
operations = st.lists(st.tuples(st.sampled_from(OPERATIONS), places, places, nasty), min_size=1, max_size=3)


def spots(value: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of every value inside another, those of the outside first, where most is read."""
    found: list[tuple[Any, Any]] = []
    level = [value]
    while level and len(found) < 5000:
        below = []
        for holder in level:
            keys = list(holder) if isinstance(holder, dict) else range(min(len(holder), 20))
            found += [(holder, key) for key in keys]
            below += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
        level = below
    return found


def changed(value: Any, steps: list[tuple[str, int, int, Any]]) -> Any:
    """A value with some of its inside changed."""
    box = [copy.deepcopy(value)]
    for what, first, second, other in steps:
        there = spots(box)
        # Two of three changes hit the outer places.
        near = there[: max(1, min(len(there), 60))] if second % 3 else there
        holder, key = near[first % len(near)]
        _change(what, holder, key, there[second % len(there)], copy.deepcopy(other))
    return box[0]


def _change(what: str, holder: Any, key: Any, spot: tuple[Any, Any], other: Any) -> None:
    if key not in holder if isinstance(holder, dict) else key >= len(holder):
        return
    value = holder[key]
    if what == "set":
        holder[key] = other
    elif what == "drop":
        del holder[key]
        if isinstance(holder, list) and not holder:
            holder.append(other)
    elif what == "wrap":
        holder[key] = [copy.deepcopy(value)]
    elif what == "text":
        holder[key] = str(value)[:200] if not isinstance(value, str) else 3
    elif what == "swap":
        if spot[1] in spot[0] if isinstance(spot[0], dict) else spot[1] < len(spot[0]):
            holder[key] = copy.deepcopy(spot[0][spot[1]])
    elif what == "rename" and isinstance(holder, dict):
        holder[other if isinstance(other, str) else str(other)] = holder.pop(key)
    elif what == "add":
        if isinstance(value, dict):
            value[other if isinstance(other, str) else "x"] = other
        elif isinstance(value, list):
            value.append(other)
    elif what == "again" and isinstance(value, list):
        value += copy.deepcopy(value[:50])
    elif what == "empty" and isinstance(value, dict | list):
        value.clear()


def as_json(value: Any) -> bytes:
    """JSON in which marked texts stand as they are."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    parts = text.split(f'"{RAW}')
    for i, part in enumerate(parts[1:], 1):
        inside, _, rest = part.partition('@@"')
        parts[i] = inside.replace('\\"', '"').replace("\\\\", "\\") + rest
    return "".join(parts).encode("utf-8", "surrogatepass")


# Bytes.

PIECES = (
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xc3",
        b"\n",
        b"\r",
        b"\t",
        b" ",
        b'"',
        b"'",
        b"\\",
    ),
    *(
        b"[" * 2000,
        b"{" * 300,
        b"&a [*a]",
        b"*a",
        b"&a",
        b"!!python/object/apply:os.system ['true']",
        b"!!binary x",
    ),
    *(
        b"- " * 300,
        b"? ",
        b": ",
        b"#",
        b"|\n",
        b">\n",
        b"<<: *a",
        b"1e400",
        b"NaN",
        b"9" * 5000,
        b"0x" + b"f" * 5000,
    ),
    *(
        b"\xe2\x80\xae",
        b"\xe2\x80\xa8",
        b",",
        b";",
        b"|",
        b"]",
        b"}",
        b"%",
        b"@",
        b"`",
        b"2001-02-30",
        b"x" * 100_000,
    ),
)
cuts = st.lists(
    st.tuples(
        st.sampled_from(("cut", "insert", "flip", "drop", "twice", "over")),
        st.integers(0, 1 << 30),
        st.integers(1, 300),
        st.one_of(st.sampled_from(PIECES), st.binary(max_size=20)),
    ),
    min_size=1,
    max_size=3,
)
encodings = st.sampled_from(("utf-8",) * 12 + ("utf-16", "utf-32", "latin-1", "utf-8-sig"))


def torn(data: bytes, steps: list[tuple[str, int, int, bytes]]) -> bytes:
    """Bytes cut off, flipped, doubled, left out or written over."""
    for what, at, length, piece in steps:
        at %= len(data) + 1
        if what == "cut":
            data = data[:at]
        elif what == "insert":
            data = data[:at] + piece + data[at:]
        elif what == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << (length % 8))]) + data[at + 1 :]
        elif what == "drop":
            data = data[:at] + data[at + length :]
        elif what == "twice":
            data = data[: at + length] + data[at:]
        else:
            data = data[:at] + piece + data[at + len(piece) :]
    return data


def recoded(data: bytes, encoding: str) -> bytes:
    if encoding == "utf-8":
        return data
    return data.decode("utf-8", "replace").encode(encoding, "replace")


# Archives of arrays.

DTYPES = (
    "<f8",
    ">f8",
    "<f4",
    "<f2",
    "<i8",
    "|b1",
    "<c16",
    "|O",
    "<U7",
    "|S3",
    "|V0",
    "<M8[s]",
    "|u1",
    "nonsense",
    "<f99",
)
SIZES = (0, 1, 2, 3, 7, -1, 10**3, 2**31, 2**62, 2**63, 10**40)
headers = st.tuples(
    st.sampled_from(DTYPES),
    st.lists(st.sampled_from(SIZES), max_size=4).map(tuple),
    st.booleans(),
    st.binary(max_size=64),
)


def npy(dtype: str, shape: tuple[int, ...], fortran: bool, body: bytes) -> bytes:
    """An array's file, of which nothing need fit together."""
    head = repr({"descr": dtype, "fortran_order": fortran, "shape": shape}).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) & 0xFFFF) + head + body


def npz_members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def as_npz(members: list[tuple[str, bytes]], *, packed: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def loose_arrays() -> st.SearchStrategy[np.ndarray]:
    """Good arrays of the wrong kind or shape."""

    def make(kind: str, shape: list[int], fill: float) -> np.ndarray:
        if kind == "text":
            return np.array("{}" if fill > 0 else "x")
        with np.errstate(all="ignore"):
            return np.full(shape, fill).astype(kind)

    return st.builds(
        make,
        st.sampled_from(("f8", "f4", "i8", "u1", "bool", "c16", "text", "f2")),
        st.lists(st.integers(0, 9), max_size=3),
        st.sampled_from((0.0, 1.0, -1.0, 3.0, 1e30, float("nan"), float("inf"), 255.0)),
    )


def array_bytes(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


# Safetensors.


def tensors_header(data: bytes) -> tuple[Any, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def as_tensors(header: Any, body: bytes, length: int | None = None) -> bytes:
    text = as_json(header)
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def pieces_of(data: bytes) -> Iterator[int]:
    """Ends of a file cut off at each of its bytes, or at every so many."""
    yield from range(0, len(data), max(1, len(data) // 200))
