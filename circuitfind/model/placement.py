"""A model whose weights lie elsewhere: on other devices, in CPU memory or on disk, and come to the device that computes.

Passes read weights from layers, one block after another, forwards or backwards. A ``PlacedLayer`` is a layer that asks a
``Pager`` for its block's matrices when one is read; vectors (biases, norms) stay where the passes run. The pager holds one
block, or two where there is room: then the next one in the direction of travel is brought while this one computes. All
activations stay on the device that computes, so passes are the same code, with the same results, wherever weights lie.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from circuitfind.model.attention import Rotary
from circuitfind.model.layer import Layer
from circuitfind.model.mlp import MLP
from circuitfind.model.parts import Parts
from circuitfind.model.shelves import TURNED, Shelf, Weights, distinct, forget_memory, moved_to, n_bytes

ATTENTION, MLPS = ("w_qkv", "w_o_raw"), ("w_in", "w_gate", "w_out")
T = TypeVar("T")


@dataclass(frozen=True)
class _Again:
    """A brought matrix, or a view of it, that can be asked for again."""

    index: int
    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Pager:
    """Brings the matrices of blocks to the device that computes.

    Args:
        device: That device.
        ahead: Whether there is room for the next block beside the one that computes.

    Attributes:
        peak: Most bytes of brought blocks held at once, those on their way included.
        brought: Blocks brought so far.
    """

    def __init__(self, device: torch.device, *, ahead: bool) -> None:
        self.device, self.ahead = device, ahead
        self.peak = self.brought = 0
        self.shelves: dict[int, Shelf] = {}
        self._here: dict[int, Weights] = {}
        self._window: OrderedDict[int, Weights] = OrderedDict()
        self._coming: dict[int, Future[tuple[Weights, Any]]] = {}
        self._last: int | None = None
        self._hand: ThreadPoolExecutor | None = None
        weakref.finalize(self, forget_memory)
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def keep(self, index: int, weights: Weights, where: str, shelf: Shelf) -> None:
        """Take a block in: for good where it lies on the device that computes, and else on its shelf."""
        self.shelves[index] = shelf
        if where == "here":
            self._here[index] = self._arrived(shelf, {name: t.to(self.device) for name, t in weights.items()})

    @property
    def largest(self) -> int:
        """Bytes of the largest block that is brought."""
        return max((s.size for i, s in self.shelves.items() if i not in self._here), default=0)

    def weights(self, index: int) -> Weights:
        """The matrices of a block where the passes run, brought if they are not there."""
        if index in self._here:
            return self._here[index]
        found = self._window.get(index)
        if found is None:
            coming = self._coming.pop(index, None)
            if coming is None:
                self._make_room(keep=0)
                brought, event = self._bring(index)
            else:
                brought, event = coming.result()
                self._make_room(keep=0)
            if event is not None:
                now = torch.cuda.current_stream(self.device)
                now.wait_event(event)
                for tensor in brought.values():
                    tensor.record_stream(now)
            self._window[index] = found = brought
            self._count()
        if index != self._last:
            self._foresee(index)
        return found

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Passes whose graph autograd keeps: in place of a brought matrix it keeps where to ask for it again."""

        def pack(tensor: Tensor) -> Tensor | _Again:
            address = tensor.untyped_storage().data_ptr()
            for index, weights in self._window.items():
                for name, matrix in weights.items():
                    if matrix.untyped_storage().data_ptr() == address:
                        return _Again(
                            index, name, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
                        )
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, self._again):
            yield

    def _again(self, kept: Tensor | _Again) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        return torch.as_strided(self.weights(kept.index)[kept.name], kept.shape, kept.stride, kept.offset)

    def _make_room(self, keep: int) -> None:
        while len(self._window) > keep:
            self._window.popitem(last=False)

    def _count(self) -> None:
        coming = sum(self.shelves[i].size for i in self._coming)
        self.peak = max(self.peak, sum(n_bytes(distinct(w)) for w in self._window.values()) + coming)

    def _foresee(self, index: int) -> None:
        """Begin to bring what comes next: the next block that way, or behind the last one the first."""
        step = -1 if self._last is not None and index < self._last and index + 1 == self._last else 1
        self._last = index
        count = len(self.shelves)
        following = next(
            (j for j in ((index + step * k) % count for k in range(1, count)) if j not in self._here), None
        )
        if not self.ahead or following is None or following in self._window or following in self._coming:
            return
        # One guess at a time: another than before is not waited for any longer.
        for future in self._coming.values():
            future.cancel()
        self._coming = {i: f for i, f in self._coming.items() if not f.cancelled() and not f.done()}
        if self._coming:
            return
        if self._hand is None:
            self._hand = ThreadPoolExecutor(1, thread_name_prefix="weights")
            weakref.finalize(self, self._hand.shutdown, wait=False, cancel_futures=True)
        self._coming[following] = self._hand.submit(self._bring, following)
        self._count()

    def _bring(self, index: int) -> tuple[Weights, Any]:
        """A block on the device that computes, and the event behind its copies."""
        self.brought += 1
        shelf = self.shelves[index]
        if self._stream is None:
            return self._arrived(shelf, {name: self._moved(t) for name, t in shelf.read().items()}), None
        with torch.cuda.stream(self._stream):
            found = self._arrived(shelf, {name: self._moved(t) for name, t in shelf.read().items()})
            event = torch.cuda.Event()
            event.record(self._stream)
        return found, event

    def _moved(self, stored: Tensor) -> Tensor:
        """One stored matrix on the device that computes, in 32 bits: always memory of its own."""
        if self.device.type == "cuda" and stored.device.type == "cpu" and not stored.is_pinned():
            stored = stored.pin_memory()
        return moved_to(stored, self.device)

    @staticmethod
    def _arrived(shelf: Shelf, stored: Weights) -> Weights:
        """Matrices by name and as passes read them."""
        found: Weights = {}
        for name, tensor in stored.items():
            found[name.removesuffix(TURNED)] = tensor.T if name.endswith(TURNED) else tensor
        raw = found["w_o_raw"]
        found["w_o"] = raw if shelf.fold is None else raw * shelf.fold
        return found


class PlacedMLP(MLP):
    """An MLP whose matrices are asked for when they are read; biases and norms are here."""

    def __init__(self, like: MLP, source: Callable[[], Weights], device: torch.device) -> None:
        _take_over(self, like, device, but=MLPS)
        self.__dict__.update(_source=source, _d_mlp=like.d_mlp, _gated=like.w_gate is not None)

    @property
    def w_in(self) -> Tensor:
        return self._weights()["w_in"]

    @property
    def w_out(self) -> Tensor:
        return self._weights()["w_out"]

    @property
    def w_gate(self) -> Tensor | None:
        return self._weights()["w_gate"] if self.__dict__["_gated"] else None

    @property
    def d_mlp(self) -> int:
        return int(self.__dict__["_d_mlp"])

    def _weights(self) -> Weights:
        found: Weights = self.__dict__["_source"]()
        return found


class PlacedLayer(Layer):
    """A block whose matrices are asked for when they are read; biases, norms and rotations are here."""

    def __init__(self, like: Layer, source: Callable[[], Weights], device: torch.device) -> None:
        _take_over(self, like, device, but=(*ATTENTION, "w_o", "mlp", "sites", "parts"))
        sizes = (like.n_heads, like.d_head, like.n_kv_heads)
        mlp = None if like.mlp is None else PlacedMLP(like.mlp, source, device)
        self.__dict__.update(sites=like.sites, parts=like.parts, mlp=mlp, _source=source, _sizes=sizes)

    @property
    def w_qkv(self) -> Tensor:
        return self._weights()["w_qkv"]

    @property
    def w_o(self) -> Tensor:
        return self._weights()["w_o"]

    @property
    def w_o_raw(self) -> Tensor:
        return self._weights()["w_o_raw"]

    @property
    def n_heads(self) -> int:
        return int(self.__dict__["_sizes"][0])

    @property
    def d_head(self) -> int:
        return int(self.__dict__["_sizes"][1])

    @property
    def n_kv_heads(self) -> int:
        return int(self.__dict__["_sizes"][2])

    def with_parts(self, parts: Parts | None) -> Layer:
        found = copy(self)
        found.__dict__["parts"] = parts
        return found

    def _weights(self) -> Weights:
        found: Weights = self.__dict__["_source"]()
        return found


def _take_over(placed: Any, like: Any, device: torch.device, but: Sequence[str]) -> None:
    """Fields of a layer or an MLP, but for some, on a device."""
    for field in fields(like):
        if field.name not in but:
            placed.__dict__[field.name] = carried(getattr(like, field.name), device)


def carried(thing: T, device: torch.device) -> T:
    """The same on a device, inside dataclasses too, in memory of its own; rotations are shared by layers, and there already."""
    if isinstance(thing, Tensor):
        return thing.detach().to(device, copy=True)  # type: ignore[return-value]  # a tensor for a tensor
    if isinstance(thing, Rotary):
        return thing
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: carried(getattr(thing, f.name), device) for f in fields(thing)})
    return thing


def matrices(layer: Layer) -> Weights:
    """The matrices of a plain layer by name; ``w_o`` follows from ``w_o_raw``."""
    found = {name: getattr(layer, name) for name in ATTENTION}
    if layer.mlp is not None:
        found |= {name: getattr(layer.mlp, name) for name in MLPS}
    return {name: tensor for name, tensor in found.items() if tensor is not None}
