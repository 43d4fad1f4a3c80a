"""How many workers fit: what they take against what was free before the first one. No torch here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from circuitfind.engine.base import Needs
from circuitfind.machine import free_memory, gpus

PROCESS = 600 << 20
"""Bytes of a process that has loaded torch and transformers, and of one that has begun to use a GPU."""


WHOLE_RUN = 512 << 20
"""Bytes that a whole run of a small model takes beside its process, where nothing is known of it."""


def whole_run(model: str, device: str, memory: int | None) -> Needs:
    """What a run from its beginning to its end asks for, of a model that is not loaded here."""
    on_gpu = device != "cpu" and gpus() > 0
    return Needs(memory=memory or WHOLE_RUN, gpus=float(on_gpu), warm=model)


def free_on(place: str) -> int:
    """Bytes that are free now: ``cpu``, or a GPU such as ``cuda:1``."""
    if place == "cpu":
        return free_memory()
    import torch

    return int(torch.cuda.mem_get_info(torch.device(place))[0])


def place_of(index: int, needs: Needs) -> str:
    """Where a worker does a job: GPUs are taken in turn."""
    if not needs.gpus:
        return "cpu"
    # Who makes a job for a GPU has asked torch for it; what has no torch leaves it to the worker.
    torch = sys.modules.get("torch")
    return f"cuda:{index % max(1, torch.cuda.device_count())}" if torch is not None else "cuda:0"


@dataclass
class _Taken:
    """What one worker takes."""

    place: str
    warm: str = ""
    weights: int = 0
    memory: int = 0


@dataclass
class Room:
    """Memory of a machine and its GPUs, as workers take it.

    Attributes:
        free: What is free on a place.
    """

    free: Callable[[str], int] = free_on
    _at_first: dict[str, int] = field(default_factory=dict)
    _taken: dict[int, _Taken] = field(default_factory=dict)

    def fits(self, index: int, needs: Needs) -> bool:
        """Whether a worker, begun or not, can take a job beside what the others do."""
        place = place_of(index, needs)
        if place not in self._at_first:
            self._at_first[place] = self.free(place)
        others = sum(
            PROCESS + one.weights + one.memory
            for number, one in self._taken.items()
            if number != index and one.place == place
        )
        return others + needed(needs) <= self._at_first[place]

    def take(self, index: int, needs: Needs) -> None:
        """A worker begins a job."""
        self._taken[index] = _Taken(place_of(index, needs), needs.warm, needs.weights, needs.memory)

    def put_down(self, index: int) -> None:
        """Its job has ended; what is warm stays."""
        if index in self._taken:
            self._taken[index].memory = 0

    def leave(self, index: int) -> None:
        """The worker has ended."""
        self._taken.pop(index, None)

    def warm(self, index: int) -> str:
        """What a worker has at hand."""
        return self._taken[index].warm if index in self._taken else ""

    def told(self, needs: Needs) -> str:
        """What a job takes, and what there was."""
        place = place_of(0, needs)
        there = self._at_first.get(place, 0)
        return f"each takes about {needed(needs) / 1e9:.1f} GB, and {there / 1e9:.1f} GB of {place} memory are free"


def needed(needs: Needs) -> int:
    """Bytes of a worker that does a job."""
    return PROCESS + needs.weights + needs.memory
