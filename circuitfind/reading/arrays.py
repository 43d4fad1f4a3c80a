"""Arrays of NumPy's archives, which declare what they unpack to."""

from __future__ import annotations

import errno
import math
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from circuitfind.reading.limits import (
    FREE_UNPACKED,
    MAX_ARRAYS,
    MAX_RATIO,
    MAX_UNPACKED,
    MAX_WHOLE,
    Unreadable,
    one_line,
)

if TYPE_CHECKING:
    import numpy as np


def read_arrays(
    path: Path,
    *,
    accept: Callable[[str, np.dtype[Any]], str | None] | None = None,
    free: int = FREE_UNPACKED,
) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``, once what it declares has been held against what it has. Pickled objects are refused.

    Args:
        path: The file.
        accept: Says of a name and a type of numbers why it is not wanted; None where it is.
        free: Bytes to which the file may unpack however small it is.

    Raises:
        OSError: There is none, or it may not be read.
        Unreadable: It is no such archive, or declares more than it holds.
    """
    import numpy as np

    size, kind = path.stat().st_size, path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(kind):  # its end is looked for first, and some have none
        _refuse("it is no plain file")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            total = sum(info.file_size for info in entries)
            if total > min(MAX_UNPACKED, max(free, MAX_RATIO * max(size, 4096))):
                _refuse(f"it unpacks from {size:,} to {total:,} bytes; refused")
            if len(entries) > MAX_ARRAYS or len({info.filename for info in entries}) < len(entries):
                _refuse(f"its {len(entries):,} arrays are too many, or two have one name")
            for info in entries:
                with archive.open(info) as array:
                    _check_array(array, info, accept)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return {name: _plain(data[name], name) for name in data.files}
    except (Unreadable, OSError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise anything on bytes that make no sense
        raise Unreadable(f"it is damaged: {one_line(error)}") from error


def _refuse(why: str) -> NoReturn:
    raise Unreadable(why)


def _plain(array: Any, name: str) -> np.ndarray:
    """NumPy gives bytes for what is no array."""
    import numpy as np

    if not isinstance(array, np.ndarray):
        _refuse(f"'{name[:80]}' is no array")
    return array


def _check_array(
    file: BinaryIO | Any, info: zipfile.ZipInfo, accept: Callable[[str, np.dtype[Any]], str | None] | None
) -> None:
    import numpy as np

    name = info.filename[:80]
    version = np.lib.format.read_magic(file)
    reader = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if reader is None:
        _refuse(f"'{name}' has an unknown version {version}")
    shape, _, dtype = reader(file)
    if dtype.hasobject:
        _refuse(
            f"'{name}' holds {str(dtype)[:40]}: pickled objects are refused, since they can run code when they are read"
        )
    why = None if accept is None else accept(info.filename, dtype)
    if why is not None:
        _refuse(f"'{name}' {why}")
    if len(shape) > 32 or any(side < 0 for side in shape):
        _refuse(f"'{name}' has the shape {str(list(shape))[:80]}")
    needed = math.prod(shape) * dtype.itemsize + file.tell()
    if needed != info.file_size or (dtype.itemsize == 0 and math.prod(shape) > info.file_size):
        _refuse(
            f"'{name}' declares {str(list(shape))[:80]} {str(dtype)[:40]}, {_told(needed)} bytes, and has {info.file_size:,}"
        )


def _told(number: int) -> str:
    return f"{number:,}" if number < MAX_WHOLE else "more than 2^63"
