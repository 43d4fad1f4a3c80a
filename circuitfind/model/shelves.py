"""Where weights lie that are not where they are read: packed, on a device or in a file, and the one way from there."""

from __future__ import annotations

import mmap
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.errors import RunError

Weights = dict[str, Tensor]
"""Matrices of a block by name: ``w_qkv``, ``w_o_raw``, ``w_o``, ``w_in``, ``w_gate``, ``w_out``."""

WIDE = 4
"""Bytes of a number where the passes run."""
MAPPED = 1 << 18
"""Bytes from which on a weight has memory of its own from the system."""
TURNED = ".T"
"""Ends the name of a matrix that is stored as its transpose, which is how it lay in memory."""

_free: dict[int, list[mmap.mmap]] = {}
"""CPU memory that weights lay in, by bytes: never more than was held at once."""


def packed(weights: Weights) -> Weights:
    """Matrices as they are stored: laid out without gaps, in 16 bits where that loses nothing."""
    found: Weights = {}
    for name, tensor in weights.items():
        turned = tensor.ndim == 2 and not tensor.is_contiguous() and tensor.T.is_contiguous()
        found[name + TURNED * turned] = narrowed(tensor.T if turned else tensor.contiguous())
    return found


def narrowed(tensor: Tensor) -> Tensor:
    """The same numbers in 16 bits, where they are exactly the same: checkpoints in 16 bits are read into 32."""
    for dtype in (torch.bfloat16, torch.float16):
        if tensor.dtype == torch.float32 and torch.equal((low := tensor.to(dtype)).float(), tensor):
            return low
    return tensor


def n_bytes(weights: Mapping[str, Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in weights.values())


@dataclass(frozen=True)
class Shelf:
    """Where the packed matrices of one block lie.

    Attributes:
        where: ``cuda:1``, ``cpu`` or ``disk``.
        held: The matrices, where they are in memory.
        path: Their file, where they are on disk.
        size: Bytes that they take where the passes run.
        fold: The weight of a post-norm, which ``w_o`` holds multiplied in.
    """

    where: str
    held: Weights | None
    path: Path | None
    size: int
    fold: Float[Tensor, " d_model"] | None

    def read(self) -> Weights:
        """The packed matrices; of a file as memory that is mapped, read when it is looked at."""
        if self.held is not None:
            return self.held
        from safetensors import SafetensorError, safe_open

        assert self.path is not None
        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"weights that were offloaded to disk cannot be read again: {error}",
                where=str(self.path),
                hint="leave the offload folder alone while a run lasts, and run again",
            ) from error


def moved_to(stored: Tensor, device: torch.device) -> Tensor:
    """The one way of a weight to the device that computes: there it is in 32 bits, and memory of its own."""
    if device.type == "cpu":
        return _room(stored).copy_(stored)
    here = stored.to(device, non_blocking=True)  # widened there: on the way it would be copied twice
    if here.dtype != torch.float32:
        return here.float()
    return here.clone() if here is stored else here


def _room(like: Tensor) -> Tensor:
    """CPU memory for a weight, taken up again by another one when nothing holds it any more.

    From malloc it would be some more each time, in pieces that activations lie between; new from the system each time, a
    page fault for every few numbers.
    """
    size = like.numel() * WIDE
    if size < MAPPED:
        return torch.empty_like(like, dtype=torch.float32)
    strides = torch.empty_like(like, device="meta").stride()
    free = _free.setdefault(size, [])
    memory = free.pop() if free else mmap.mmap(-1, size)
    array = np.frombuffer(memory, dtype=np.float32)
    weakref.finalize(array, free.append, memory).atexit = False  # the last view of the tensor holds the array
    return torch.from_numpy(array).as_strided(like.shape, strides)


def forget_memory() -> None:
    """Give back what no weight lies in."""
    _free.clear()


def distinct(weights: Weights) -> Weights:
    """The same, each tensor once."""
    return dict({id(t): (name, t) for name, t in weights.items()}.values())


@dataclass(frozen=True)
class End:
    """The unembedding, wherever it lies.

    Attributes:
        stored: ``[d_model, vocab]`` where it lies.
        device: Where the passes run.
        here: Whether passes read it as it is stored.
    """

    stored: Float[Tensor, "d_model vocab"]
    device: torch.device
    here: bool

    def whole(self) -> Float[Tensor, "d_model vocab"]:
        """All of it where the passes run."""
        return self.stored if self.here else moved_to(self.stored, self.device)

    def some(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "d_model token"]:
        """Of some tokens, which are picked where it lies."""
        rows = self.stored.T[tokens.to(self.stored.device)]
        return (rows if self.here else moved_to(rows, self.device)).T


def whole_of(weights: Weights) -> Weights:
    """Packed matrices in 32 bits."""
    return {name: tensor.float() for name, tensor in weights.items()}


def written(weights: Weights, path: Path) -> Weights:
    """Tensors in a file, mapped: no more of it is in memory than what is looked at.

    Raises:
        RunError: The disk is full, or cannot be written.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, SafetensorError) as error:
        left = shutil.disk_usage(path.parent).free
        raise RunError(
            f"weights cannot be written to the offload folder: {error}",
            where=str(path.parent),
            hint=f"{left / 1e9:.3g} GB are free there; name a folder with room by --offload-folder",
        ) from error
