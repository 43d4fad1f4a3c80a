"""Between the host and a device: pinned, without waiting where nothing need wait, and several tensors at a time.

A copy from ordinary memory makes the host wait until the device has done all that it was given before, and so does every
value that is read back. Passes therefore take their masks and indices through ``upload`` and ``index_of``, which queue, and
give what they found through ``to_host``, which waits once for everything. On a CPU all of them are plain conversions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

INDICES, SHORT = 4096, 256
"""Lists of indices that stay on their device, and how long one of them is at the most."""


def upload(
    values: np.ndarray | Sequence[int], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Values of the host on a device.

    Args:
        values: An array, or whole numbers.
        device: Where to.
        dtype: Their type there; they travel in their own, and are converted on arrival.
    """
    array = np.ascontiguousarray(
        np.asarray(values, dtype=None if isinstance(values, np.ndarray) else np.int64)
    )
    found = torch.from_numpy(array)
    if device.type == "cuda":
        found = found.pin_memory()
    found = found.to(device, non_blocking=True)
    return found if dtype is None else found.to(dtype)


def index_of(rows: Iterable[int] | np.ndarray, device: torch.device) -> Int[Tensor, " row"]:
    """Whole numbers to index a tensor of a device with; the same few are sent once. Not to be written to."""
    found = tuple(map(int, rows))
    return _index_of(found, device) if len(found) <= SHORT else upload(found, device)


@lru_cache(maxsize=INDICES)
def _index_of(rows: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return upload(rows, device)


def to_host(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Tensors as arrays, in the order given; the host waits for the device once, whatever their number."""
    ready = [tensor.detach() for tensor in tensors]
    devices = {tensor.device for tensor in ready if tensor.device.type == "cuda"}
    found = [tensor.to("cpu", non_blocking=True) if tensor.is_cuda else tensor.cpu() for tensor in ready]
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return tuple(tensor.numpy() for tensor in found)
