"""Bytes and texts."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from circuitfind.reading.limits import MAX_STREAM, MAX_TEXT, Unreadable


def expanded(name: str | Path) -> Path:
    """A path with ``~`` replaced by the home folder; as it is where nobody has that name, so that it is told as missing."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 (the method of paths raises RuntimeError then)


def read_bytes(path: Path, most: int = MAX_TEXT) -> bytes:
    """A file's content; it need not be a plain file, and one that nobody writes to is empty.

    Raises:
        OSError: There is none, or it may not be read.
        Unreadable: It is too large, or its name is no name of a file.
    """
    try:
        # A named pipe without a writer would be waited for without end.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        raise Unreadable(f"the name of the file is none: {error}") from error
    found = os.fstat(handle)
    if stat.S_ISDIR(found.st_mode):
        os.close(handle)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with os.fdopen(handle, "rb") as file:
        plain = stat.S_ISREG(found.st_mode)
        if not plain and hasattr(os, "set_blocking"):
            os.set_blocking(handle, True)
        limit = most if plain else min(most, MAX_STREAM)
        if plain and found.st_size > limit:
            raise Unreadable(f"it is {found.st_size:,} bytes, and at most {limit:,} are read")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise Unreadable(f"it holds more than the {limit:,} bytes that are read")
    return content


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """A file's text; a mark of the byte order is left out.

    Raises:
        OSError: There is none, or it may not be read.
        Unreadable: It is too large, or no UTF-8.
    """
    try:
        text = read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is no UTF-8 text (byte {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
