"""Finished runs that there is no more room for on the device: kept in CPU memory or in files, and brought back as they were.

Whatever shares memory in a run shares it when it is brought back, with the same strides: what is computed from it is the
same to the last bit as if it had never left.
"""

from __future__ import annotations

import shutil
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from circuitfind.model.forward import Place, Trace
from circuitfind.model.memory import free_bytes
from circuitfind.offload import current, make_folder, remove_folder

SHARE = 0.5
"""Share of the free CPU memory or disk that may be taken."""
ALIGNED = 64
"""Bytes that each piece of memory begins at a multiple of, in a file."""


@dataclass(frozen=True)
class _View:
    """A tensor as part of a piece of memory."""

    piece: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Kept:
    """A run that has left: itself with tensors that have no memory, which parts of which memory they were, and the memory."""

    skeleton: Trace
    views: list[_View]
    pieces: list[Tensor] | None
    path: Path | None
    spans: list[tuple[int, int]]
    size: int
    keep: bool


class Spill:
    """Runs by key; the oldest are forgotten when there is no room.

    Args:
        where: ``cpu`` or ``disk``.
        device: Where runs come from and go back to.
        room: Bytes that may be taken; half of what is free if None.
        note: Called with what a user should hear of.
    """

    def __init__(
        self,
        where: Literal["cpu", "disk"],
        device: torch.device,
        *,
        room: int | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.where, self.device, self._note = where, device, note or (lambda text: None)
        self.put_bytes = self.brought_bytes = 0
        self._kept: OrderedDict[tuple[int, str], _Kept] = OrderedDict()
        self._folder: Path | None = None
        self._files = 0
        if where == "disk":
            self._folder = make_folder(current())
            weakref.finalize(self, remove_folder, self._folder)
        if room is None:
            free = shutil.disk_usage(self._folder).free if self._folder else free_bytes(torch.device("cpu"))
            room = int(SHARE * free)
        self.room = room

    def put(self, key: tuple[int, str], trace: Trace, *, keep: bool) -> None:
        """Keep a run; ``keep`` says whether it has what a backward pass needs."""
        there = self._kept.get(key)
        if there is not None and (there.keep or not keep):
            self._kept.move_to_end(key)
            return
        self._forget(key)
        storages: list[torch.UntypedStorage] = []
        numbers: dict[int, int] = {}
        views: list[_View] = []

        def hollow(tensor: Tensor) -> Tensor:
            views.append(_view_of(tensor, storages, numbers))
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

        skeleton = walked(trace, hollow)
        size = sum(one.nbytes() for one in storages)
        if size > self.room:
            return
        while self._kept and sum(one.size for one in self._kept.values()) + size > self.room:
            self._forget(next(iter(self._kept)))
        raw = [torch.empty(0, dtype=torch.uint8, device=one.device).set_(one) for one in storages]
        if self.where == "cpu":
            pieces = [
                _copied(one, torch.empty(one.numel(), dtype=torch.uint8, pin_memory=one.is_cuda))
                for one in raw
            ]
            self._kept[key] = _Kept(skeleton, views, pieces, None, [], size, keep)
        else:
            written = self._write(raw)
            if written is None:
                return
            self._kept[key] = _Kept(skeleton, views, None, *written, size, keep)
        self.put_bytes += size

    def get(self, key: tuple[int, str], *, keep: bool) -> tuple[Trace, bool] | None:
        """A run on the device again, and whether it has what a backward pass needs; None if it is not here."""
        found = self._kept.get(key)
        if found is None or (keep and not found.keep):
            return None
        self._kept.move_to_end(key)
        pieces = found.pieces
        if found.path is not None:
            whole = torch.from_file(
                str(found.path), shared=False, size=found.path.stat().st_size, dtype=torch.uint8
            )
            pieces = [whole[start : start + size] for start, size in found.spans]
        assert pieces is not None
        here = [self._brought(piece) for piece in pieces]
        self.brought_bytes += found.size
        views = iter(found.views)
        trace: Trace = walked(found.skeleton, lambda tensor: _tensor_of(next(views), here))
        return trace, found.keep

    def clear(self) -> None:
        """Forget all."""
        for key in list(self._kept):
            self._forget(key)

    def _brought(self, piece: Tensor) -> Tensor:
        """A piece of memory on the device; memory of its own, but for a file, whose map is its own."""
        if self.device.type != "cpu":
            return piece.to(self.device, non_blocking=True)
        return piece if self.where == "disk" else piece.clone()

    def _forget(self, key: tuple[int, str]) -> None:
        gone = self._kept.pop(key, None)
        if gone is not None and gone.path is not None:
            gone.path.unlink(missing_ok=True)  # what is mapped of it stays until it is let go

    def _write(self, raw: list[Tensor]) -> tuple[Path, list[tuple[int, int]]] | None:
        assert self._folder is not None
        path, spans, at = self._folder / f"run-{self._files}", [], 0
        self._files += 1
        try:
            with path.open("wb") as file:
                for one in raw:
                    gap = -at % ALIGNED
                    file.write(b"\0" * gap)
                    at += gap
                    spans.append((at, one.numel()))
                    file.write(one.cpu().numpy().data)
                    at += one.numel()
                if not at:
                    file.write(b"\0")
        except OSError as error:
            path.unlink(missing_ok=True)
            self._note(
                f"finished runs are computed again: they cannot be written to disk ({error.strerror or error})"
            )
            self.room = 0
            return None
        return path, spans


def _copied(source: Tensor, into: Tensor) -> Tensor:
    return into.copy_(source, non_blocking=True)


def _view_of(tensor: Tensor, storages: list[torch.UntypedStorage], numbers: dict[int, int]) -> _View:
    storage = tensor.untyped_storage()
    if storage.data_ptr() not in numbers or not storage.nbytes():
        numbers[storage.data_ptr()] = len(storages)
        storages.append(storage)
    return _View(
        numbers[storage.data_ptr()],
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
        int(tensor.storage_offset()),
    )


def _tensor_of(view: _View, pieces: list[Tensor]) -> Tensor:
    piece = pieces[view.piece]
    offset = piece.storage_offset() // view.dtype.itemsize + view.offset
    empty = torch.empty(0, dtype=view.dtype, device=piece.device)
    return empty.set_(piece.untyped_storage(), offset, view.shape, view.stride)


def walked(thing: Any, turn: Callable[[Tensor], Tensor]) -> Any:
    """The same with another tensor for every one in it, always in the same order; where rows stand is left as it is."""
    if isinstance(thing, Tensor):
        return turn(thing)
    if isinstance(thing, Place):
        return thing
    if isinstance(thing, (list, tuple)):
        return type(thing)(walked(part, turn) for part in thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(
            thing, **{f.name: walked(getattr(thing, f.name), turn) for f in fields(thing) if f.init}
        )
    return thing


def make_spill(where: str, device: torch.device, note: Callable[[str], None] | None = None) -> Spill | None:
    """What ``MemoryPlan.spill`` asks for."""
    return Spill(where, device, note=note) if where in ("cpu", "disk") else None  # type: ignore[arg-type]  # one of them
