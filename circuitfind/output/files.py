"""Files that are written whole or not at all, and hashes that are the same everywhere."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from circuitfind.errors import CircuitfindError, RunError, UsageError
from circuitfind.output.owner import temporary_name

OUTPUTS_VARIABLE = "CIRCUITFIND_OUTPUTS"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def check_new(path: Path, *, force: bool) -> None:
    """Refuse to write over a file that is there.

    Raises:
        UsageError: It is, without ``force``.
    """
    if path.exists() and not force:
        raise UsageError(
            f"'{path}' is there already", hint="choose another name, or --force to write over it"
        )


def write_atomic(path: Path, data: bytes | str) -> Path:
    """Write a file through a temporary one in the same folder, so that a reader sees the old content or the
    new.

    Raises:
        UsageError: The folder cannot be written to.
        RunError: The disk is full or the file cannot be replaced. Nothing is left behind.
    """
    content = data.encode("utf-8", "replace") if isinstance(data, str) else data
    make_folder(path.parent)
    temporary = temporary_name(path)
    try:
        # Not tempfile: its files are readable by their owner only, and os.replace would keep that.
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_folder(path.parent)
    return path


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        UsageError: It cannot be made there.
        RunError: The disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(error, path, folder=path) from error


def explained(error: OSError, path: Path, *, folder: Path | None = None) -> CircuitfindError:
    """The error that the user sees in place of an OSError."""
    parent = folder or path.parent
    if error.errno in _FULL:
        return RunError(
            f"no space left to write {path.name} ({_space_left(parent)})",
            where=str(path),
            hint="make room and give the same command again: finished stages are kept and reused",
        )
    if folder is not None or (error.errno in _DENIED and not os.access(parent, os.W_OK)):
        return UsageError(
            f"the output folder cannot be written to: {error.strerror or error}",
            where=str(parent),
            hint=f"choose another one with --outputs or ${OUTPUTS_VARIABLE}, or change its permissions",
        )
    return RunError(
        f"cannot write {path.name}: {error.strerror or error} ({_space_left(parent)})",
        where=str(path),
        hint="check the permissions of the file and its folder, then give the same command again",
    )


def _space_left(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB free on this disk"
    except OSError:
        return "free space unknown"


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# Hashes.


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def stage_key(*parts: Any) -> str:
    """A hash of everything that a stage depends on; equal for equal values on every machine and in every
    process.

    Raises:
        TypeError: A part has no stable form (an object that is not plain data).
    """
    text = json.dumps(plain(list(parts)), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode("utf-8"))


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: paths as text, tuples as lists, NumPy scalars as numbers, NaN as a
    tagged object.

    Raises:
        TypeError: It cannot be represented without loss.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise TypeError(f"the key {wrong!r} is no string")
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    raise TypeError(f"{type(value).__name__} has no stable form; give plain data instead")
