"""One copy of a model's weights for all workers of a machine, however many there are.

Weights that the loader maps from single-precision safetensors the system holds once anyway, in its cache of files. What is
made while a model is loaded (weights of another precision as single, W_QKV side by side, transposes, planted weights) each
worker would hold for itself. The first one puts it into sealed memory without a name on any disk (a memfd), and those after
it, once they have seen that it holds the same bytes as what they loaded, map it and let go of their own. The system frees it
when the last of them has ended, however it ended.

This is for CPUs and for Linux. Elsewhere each worker has weights of its own, as each process has on a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import mmap
import os
import stat
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuitfind.errors import ModelError
from circuitfind.model import load
from circuitfind.model.bridge import Model

LEAST = 64 << 10
"""Bytes of a storage below which it is not worth sharing."""
SEALS = 0x2 | 0x4 | 0x8
"""No shrinking, no growing, no writing, as Linux numbers them: who maps sealed memory can rely on it."""


def load_shared(name: str, *, device: str = "auto") -> Model:
    """Load a model as ``load_model`` does, and share its weights with other processes of this user that do the same.

    They load it one after another, so that at most one of them holds all weights for itself at a time.

    Raises:
        ModelError: As ``load_model``.
        UnsupportedError: The same.
    """
    if sys.platform != "linux" or not Path("/proc/self/maps").exists():
        return load.load_model(name, device=device)
    key = hashlib.sha256(os.path.expandvars(name).encode()).hexdigest()[:16]
    with _turn(key):
        model = load.load_model(name, device=device)
        if model.device.type == "cpu":
            share(model, key)
    return model


def share(model: Model, key: str) -> int:
    """Put a model's weights where others who share by this key find them, or take theirs where they are the same.

    Args:
        model: It computes the same afterwards, to the bit.
        key: A word of letters and digits.

    Returns:
        The bytes that are shared now; 0 where there is nothing to share, or no room for it.
    """
    import fcntl

    owners = _private(model)
    if not owners:
        return 0
    starts = [0]
    for some in owners:
        size = some[0].untyped_storage().nbytes()
        starts.append(starts[-1] + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    name, total = f"circuitfind-{key}", starts[-1]
    held = _find(name, total)
    if held is not None:
        with _opened(held):
            whole = _map(held, total)
        if _same(whole, owners, starts):
            for start, some in zip(starts, owners, strict=False):
                _move(whole, some, start)
            return _moved(owners, total)
        del whole
    held = _make(name, total)
    if held is None:
        return 0
    with _opened(held):
        whole = _map(held, total)
        try:
            for start, some in zip(starts, owners, strict=False):
                _write(held, some[0], start)
                _move(whole, some, start)
            fcntl.fcntl(held, fcntl.F_ADD_SEALS, SEALS)  # from now on others may rely on it
        except OSError:  # no room: what has moved is right, what has not is private
            return 0
    return _moved(owners, total)


def _moved(owners: list[list[Tensor]], total: int) -> int:
    """Let go of what tensors stood in, back to the system where the C library knows how."""
    owners.clear()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return total


@contextmanager
def _opened(held: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(held)


@contextmanager
def _turn(key: str) -> Iterator[None]:
    """Hold a lock on a key for the time of the block; it ends with the process.

    Raises:
        ModelError: Somebody else's file is in the way.
    """
    import fcntl

    path = Path(tempfile.gettempdir()) / f"circuitfind-{os.getuid()}.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ModelError(
            f"workers cannot take turns at loading: {error.strerror or error}",
            where=str(path),
            hint="remove that file, or set TMPDIR to a folder that you may write to",
        ) from error
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX, 1, int(key, 16) % (1 << 62))
        yield
    finally:
        os.close(lock)


# The tensors of a model.


def _private(model: Model) -> list[list[Tensor]]:
    """The tensors of a model by storage, of storages in memory that only this process has; always in the same order."""
    mapped = _mapped_ranges()
    found: dict[int, list[Tensor]] = {}
    for tensor in _tensors(model):
        storage = tensor.untyped_storage()
        if storage.nbytes() >= LEAST and not _within(mapped, storage.data_ptr()):
            found.setdefault(storage.data_ptr(), []).append(tensor)
    return list(found.values())


def _tensors(root: Any) -> Iterator[Tensor]:
    """All plain CPU tensors that are reached from a model through modules, data classes and containers."""
    seen: set[int] = set()
    waiting: list[Any] = [root]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if type(value) in (Tensor, nn.Parameter) and value.device.type == "cpu":
                yield value
            waiting.append(value._base)  # what it is a view of, which it keeps
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif is_dataclass(value) and not isinstance(value, type):
            waiting += [getattr(value, one.name, None) for one in fields(value)]
        elif isinstance(value, nn.Module | Model):
            waiting += vars(value).values()


def _mapped_ranges() -> list[tuple[int, int]]:
    """Addresses (first, end) of this process at which files are mapped, or what others share."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        where, _, _, _, inode = line.split(maxsplit=5)[:5]
        if inode != "0":
            first, _, end = where.partition("-")
            found.append((int(first, 16), int(end, 16)))
    return sorted(found)


def _within(ranges: Sequence[tuple[int, int]], address: int) -> bool:
    place = bisect_right(ranges, (address, 1 << 64)) - 1
    return place >= 0 and ranges[place][0] <= address < ranges[place][1]


# The memory that is shared.


def _find(name: str, size: int) -> int | None:
    """Sealed memory of that name and size that a process of this user holds, opened; None where there is none."""
    own, target = os.getuid(), f"/memfd:{name} (deleted)"
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            entries = list((process / "fd").iterdir()) if process.stat().st_uid == own else []
        except OSError:  # it has ended
            continue
        for entry in entries:
            with suppress(OSError):  # closed since
                if str(entry.readlink()) != target:
                    continue
                held = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
                if _is_sealed(held, size):
                    return held
                os.close(held)
    return None


def _is_sealed(held: int, size: int) -> bool:
    import fcntl

    told = os.fstat(held)
    if not stat.S_ISREG(told.st_mode) or told.st_size != size:
        return False
    try:
        return fcntl.fcntl(held, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:
        return False


def _make(name: str, size: int) -> int | None:
    """New memory; None where the system gives none."""
    try:
        held = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    try:
        os.ftruncate(held, size)
    except OSError:
        os.close(held)
        return None
    return held


def _write(held: int, tensor: Tensor, start: int) -> None:
    left = memoryview(_bytes(tensor).numpy().data)
    while left:
        written = os.pwrite(held, left, start)
        left, start = left[written:], start + written


def _bytes(tensor: Tensor) -> Tensor:
    """The whole storage of a tensor."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))


def _map(held: int, size: int) -> Tensor:
    """Shared memory as bytes, which others find as long as there are tensors on it. What a process writes there becomes its
    own; nothing here does.
    """
    whole = mmap.mmap(held, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(whole, dtype=torch.uint8)


def _same(whole: Tensor, owners: Sequence[Sequence[Tensor]], starts: Sequence[int]) -> bool:
    """Whether shared memory holds, byte for byte, what these tensors have. Nobody can change it: it is sealed."""
    for start, some in zip(starts, owners, strict=False):
        ours = _bytes(some[0])
        if not torch.equal(ours, whole[start : start + len(ours)]):
            return False
    return True


def _move(whole: Tensor, tensors: Sequence[Tensor], start: int) -> None:
    """Let tensors of one storage stand in shared memory instead."""
    storage = whole.untyped_storage()
    for tensor in tensors:
        first = start // tensor.element_size() + tensor.storage_offset()
        view = torch.empty(0, dtype=tensor.dtype)
        view.set_(storage, first, tensor.shape, tensor.stride())
        tensor.data = view
