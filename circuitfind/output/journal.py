"""The journal of a stage that is not finished: what its pieces gave, so that an interruption costs one piece at the most.

One file for each stage, ``journal/<stage>.bin`` in the run folder. It begins with the key of the stage; records are
appended, each in one write, and are gone with the file when the stage is finished. A record is

    mark (4 bytes), key (32), length of the body (8), CRC-32 of these (4), body, SHA-256 of all that (32)

and a body is the length of a JSON head (4), the head (``told``, and each array's name, type and shape), the arrays' bytes.
Nothing is unpickled. What was cut off, by a kill or a full disk, ends the file for the next run; a record whose hash is
wrong is passed over. Either is computed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import time
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = "journal"
HEAD = b"circuitfind.journal 1 %s\n"
LARGEST = 4 << 30
"""Bytes that a journal grows to, and no further than to half of what is free; what comes later is not kept."""
SYNCED_EVERY = 5.0
"""Seconds between two times that the system is asked to put a journal on the disk: what a power cut costs at most."""

_MARK = b"CFj1"
_FRONT = struct.Struct("<4s32sQ")
_CHECK = struct.Struct("<I")
_HASH = 32
_BEFORE = _FRONT.size + _CHECK.size


@dataclass(frozen=True)
class Record:
    """What is kept under a key: plain data, and arrays by name."""

    told: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class Journal:
    """The records of one stage, in a file that is made with the first of them.

    Args:
        path: The file.
        key: What the stage depends on; a file of another key is begun anew.
        fresh: Begin anew in any case.
    """

    def __init__(self, path: Path, key: str, *, fresh: bool = False) -> None:
        self.path = path
        self._head = HEAD % key.encode("utf-8")
        self._left: dict[bytes, deque[tuple[int, int]]] = {}
        self._handle: int | None = None
        self._end = self._most = 0
        self._synced = time.monotonic()
        self.problem: str | None = None
        """Why nothing more is kept, if so."""
        self.damaged = 0
        """Records that were passed over or cut off."""
        if fresh:
            self.remove()
        else:
            self._look()

    def __len__(self) -> int:
        return sum(map(len, self._left.values()))

    # Reading.

    def take(self, key: str) -> Record | None:
        """What an earlier run kept under a key (hexadecimal, 64 digits), each record once, in their order.

        None if nothing is left, or it is damaged. What this run puts there itself is for the next one.
        """
        places = self._left.get(bytes.fromhex(key))
        if not places:
            return None
        start, size = places.popleft()
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                whole = file.read(size)
        except OSError:
            return None
        if len(whole) != size or sha256(whole[:-_HASH]).digest() != whole[-_HASH:]:
            return None
        return _unpacked(whole[_BEFORE:-_HASH])

    def _look(self) -> None:
        """Find the records of the file, and where the good part of it ends."""
        if self.path.is_symlink():  # what it leads to is none of ours
            self.remove()
            return
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if file.readline(len(self._head)) != self._head:
                    self.remove()
                    return
                self._end = file.tell()
                while self._end < size:
                    front = file.read(_BEFORE)
                    length = _length(front)
                    if length is None or self._end + _BEFORE + length + _HASH > size:
                        self.damaged += 1
                        return  # where the next one begins is not known; the next write cuts it off
                    digest = sha256(front)
                    for left in range(length, 0, -(1 << 20)):
                        digest.update(file.read(min(left, 1 << 20)))
                    whole = _BEFORE + length + _HASH
                    if file.read(_HASH) == digest.digest():
                        self._left.setdefault(_FRONT.unpack_from(front)[1], deque()).append(
                            (self._end, whole)
                        )
                    else:
                        self.damaged += 1
                    self._end += whole
        except FileNotFoundError:
            return
        except OSError as error:
            self.problem = error.strerror or str(error)

    # Writing.

    def put(self, key: str, record: Record) -> None:
        """Append a record. What cannot be kept is not: the run goes on, and ``problem`` says why."""
        if self.problem is not None:
            return
        body = _packed(record)
        front = _FRONT.pack(_MARK, bytes.fromhex(key), len(body))
        front += _CHECK.pack(zlib.crc32(front))
        whole = front + body
        whole += sha256(whole).digest()
        try:
            if self._handle is None:
                self._open()
            if self._end + len(whole) > self._most:
                self.problem = f"a journal may take {self._most / 1e6:,.0f} MB here"
                return
            self._write(whole)
        except OSError as error:
            self.problem = error.strerror or str(error)
            return
        self._end += len(whole)
        if time.monotonic() - self._synced > SYNCED_EVERY:
            self._sync()

    def _open(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        self._handle = os.open(self.path, flags, 0o666)
        self._most = min(LARGEST, self._end + shutil.disk_usage(self.path.parent).free // 2)
        os.ftruncate(self._handle, self._end)  # what a kill cut off
        if self._end == 0:
            self._write(self._head)
            self._end = len(self._head)

    def _write(self, data: bytes) -> None:
        """All of it behind what is good, or none of it."""
        assert self._handle is not None
        os.lseek(self._handle, self._end, os.SEEK_SET)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._end)
            raise

    def _sync(self) -> None:
        with contextlib.suppress(OSError):
            if self._handle is not None:
                os.fsync(self._handle)
        self._synced = time.monotonic()

    # The end.

    def close(self, *, sync: bool = True) -> None:
        """Leave the file for the next run; with ``sync``, what is in it is put on the disk."""
        if self._handle is not None:
            if sync:
                self._sync()
            with contextlib.suppress(OSError):
                os.close(self._handle)
            self._handle = None

    def remove(self) -> None:
        """Delete the file, and its folder when that was the last one: the stage is finished, or begins anew."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.close(self._handle)
            self._handle = None
        self._left.clear()
        self._end = 0
        with contextlib.suppress(OSError):
            self.path.unlink()
        _without(self.path.parent)


def drop(path: Path, key: str) -> None:
    """Delete a journal of a stage with this key, if it is one, and the folder if nothing else is in it."""
    head = HEAD % key.encode("utf-8")
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            mine = file.readline(len(head)) == head
        if mine:
            path.unlink()
    _without(path.parent)


def _without(folder: Path) -> None:
    """No folder of journals where there are none."""
    if folder.name == FOLDER:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _length(front: bytes) -> int | None:
    """The length of a record's body; None where these bytes are the beginning of none."""
    if len(front) != _BEFORE or _CHECK.unpack_from(front, _FRONT.size)[0] != zlib.crc32(front[: _FRONT.size]):
        return None
    mark, _, length = _FRONT.unpack_from(front)
    return int(length) if mark == _MARK else None


def _packed(record: Record) -> bytes:
    arrays = {name: np.asarray(array, order="C") for name, array in record.arrays.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"the array {name!r} holds objects")
    shapes = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    head = json.dumps({"told": dict(record.told), "arrays": shapes}, separators=(",", ":")).encode()
    return b"".join([_CHECK.pack(len(head)), head, *(array.tobytes() for array in arrays.values())])


def _unpacked(body: bytes) -> Record | None:
    """A record from its body; None where the body is none, though its hash is right."""
    try:
        at = _CHECK.size + _CHECK.unpack_from(body)[0]
        head = json.loads(body[_CHECK.size : at])
        arrays: dict[str, np.ndarray] = {}
        for name, kind, shape in head["arrays"]:
            dtype = np.dtype(kind)
            count = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(body, dtype, count, at).reshape(shape).copy()
            at += count * dtype.itemsize
        return Record(head["told"], arrays) if at == len(body) else None
    except (ValueError, KeyError, TypeError, struct.error):
        return None
