"""Whether a model fits a device, and if not, where it would. Weights are taken in single precision, as they are loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from circuitfind.model.shapes import Shape

GPUS = (24, 48, 80, 141)
"""Sizes of GPUs that are common, in 10^9 bytes."""
USABLE = 0.92
"""Share of a GPU's memory that is left for a program."""
BLOCKS = 2
"""Blocks of a placed model that lie where passes run: the one that computes, and the one that comes next."""


@dataclass(frozen=True)
class Room:
    """Where a model fits; sizes in bytes.

    Attributes:
        device: What it would run on here: ``cpu`` or ``cuda``.
        free: What is free there.
        held: The weights, and the copies of them that passes use.
        least: What passes take beside the weights with one prompt to a batch and one patch to a pass.
        fits: Whether the weights and that fit the device.
        placed: What stays on the device that computes where the weights lie elsewhere (``--device-map``).
        maps: Values of ``--device-map`` with which it would run here.
        gpus: By the size of a GPU in 10^9 bytes, how many of them would hold it (more than one by ``--device-map auto``);
            None where passes themselves take too much.
    """

    device: str
    free: int
    held: int
    least: int
    fits: bool
    placed: int
    maps: tuple[str, ...]
    gpus: dict[int, int | None]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "gpus": {str(size): count for size, count in self.gpus.items()}}


def room_of(shape: Shape, size: int, least: int, device: str, free: int, cpu_free: int) -> Room:
    """Where a model fits.

    Args:
        shape: Its sizes.
        size: Bytes of a number.
        least: Bytes that passes take beside the weights at the least.
        device: What it would run on here.
        free: Bytes that are free there.
        cpu_free: Bytes that are free in CPU memory.
    """
    held = size * (shape.weights + shape.copies)
    ends = size * (shape.parameters - shape.n_layers * shape.block_parameters)
    placed = ends + BLOCKS * size * shape.block_parameters + least
    maps = []
    if held + least > free and placed <= free:
        if device != "cpu" and size * shape.parameters <= cpu_free:
            maps.append("cpu")
        maps.append("disk")
    gpus = {one: _count(shape, size, held + least, placed, int(USABLE * one * 1e9)) for one in GPUS}
    return Room(device, free, held, least, held + least <= free, placed, tuple(maps), gpus)


def _count(shape: Shape, size: int, whole: int, placed: int, room: int) -> int | None:
    """GPUs of a size that hold a model: one with all of it, or one that computes and others that keep its blocks."""
    from circuitfind.model.device_map import FREE_SHARE, OTHER_SHARE

    if whole <= room:
        return 1
    if placed > room or size * shape.block_parameters > FREE_SHARE * room:
        return None
    rest = size * shape.parameters - FREE_SHARE * room
    return 1 + max(1, ceil(rest / (OTHER_SHARE * room)))
