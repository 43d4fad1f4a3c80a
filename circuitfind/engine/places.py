"""Where the workers of a Ray cluster fit: each has its place reserved before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil
from typing import Any

from circuitfind.engine.base import Needs
from circuitfind.engine.cluster import Cluster
from circuitfind.engine.room import Room, needed
from circuitfind.errors import UsageError

SOON, LATER = 1.0, 5.0
"""Seconds in which a cluster that has a place for a worker gives it, and after which one that had none is asked again."""
LEAST = 1 << 30
"""Bytes that a worker asks for however little it needs."""
QUEUE = 60.0
"""Seconds to wait for the first place of all in a cluster that is busy with other things."""


class Places(Room):
    """Places for workers in a cluster, each reserved (as a placement group) before its worker begins.

    Args:
        cluster: Where.
        threads: Processors that each takes.
        note: Hears when there is a wait.
    """

    def __init__(self, cluster: Cluster, threads: int, note: Callable[[str], None]) -> None:
        super().__init__()
        self._cluster, self._threads, self._note = cluster, threads, note
        self._held: dict[int, tuple[Needs, Any]] = {}
        self._full: dict[tuple[tuple[str, float], ...], float] = {}

    def fits(self, index: int, needs: Needs) -> bool:
        """Whether a worker has a place for a job, or gets one now."""
        if self.covers(index, needs):
            return True
        if index in self._held:  # it is let go of when nothing else is under way
            return False
        self._check(needs)
        return self._reserve(index, needs, SOON)

    def claim(self, index: int, needs: Needs) -> Any:
        """The place of a worker, which it gets now if it has none that will do.

        Raises:
            UsageError: The cluster has none for such a job, or is busy with other things.
        """
        if not self.covers(index, needs):
            self.vacate(index)
            self._check(needs)
            if not self._reserve(index, needs, LATER):
                self._note(f"the Ray cluster is busy: waiting for {self._told(needs)}")
                self._full.clear()
                if not self._reserve(index, needs, QUEUE):
                    raise UsageError(
                        f"the Ray cluster is busy: {self._told(needs)} did not come free in {QUEUE:.0f} seconds",
                        details=[f"free: {_listed(self._cluster.free())}"],
                        hint="try again later, or use another cluster or engine",
                    )
        return self._held[index][1]

    def vacate(self, index: int) -> None:
        """Give a place back; who is in it ends."""
        found = self._held.pop(index, None)
        if found is not None:
            from ray.util import remove_placement_group

            remove_placement_group(found[1])
            self._full.clear()

    def vacate_all(self) -> None:
        """Give all places back."""
        for index in list(self._held):
            self.vacate(index)

    def told(self, needs: Needs) -> str:
        return f"each takes {self._told(needs)}, and the Ray cluster has {_listed(self._cluster.free())} free"

    def _told(self, needs: Needs) -> str:
        return _listed(self.asked(needs))

    def asked(self, needs: Needs) -> dict[str, float]:
        """What a worker asks of a node."""
        memory = float(needed(needs))
        most = max((node.get("memory", 0.0) for node in self._cluster.resources()), default=0.0)
        if memory <= most:
            memory = min(_rounded(memory), most)
        elif self._cluster.own:  # that a machine is too small is seen when it is, as in one process
            memory = most
        found = {"CPU": float(self._threads), "memory": memory}
        return {**found, "GPU": needs.gpus} if needs.gpus else found

    def covers(self, index: int, needs: Needs) -> bool:
        """Whether the place that a worker has is large enough for a job."""
        if index not in self._held:
            return False
        asked, held = self.asked(needs), self.asked(self._held[index][0])
        return all(amount <= held.get(name, 0.0) for name, amount in asked.items())

    def _check(self, needs: Needs) -> None:
        """Refuse what no node has, even when it has nothing else to do."""
        asked = self.asked(needs)
        nodes = self._cluster.resources()
        if any(all(node.get(name, 0.0) >= amount for name, amount in asked.items()) for node in nodes):
            return
        raise UsageError(
            f"no node of the Ray cluster has what a worker needs: {_listed(asked)}",
            details=[f"node {number}: {_listed(node)}" for number, node in enumerate(nodes, 1)],
            hint="give --memory less or --device cpu, start nodes that have it, or use --engine local",
        )

    def _reserve(self, index: int, needs: Needs, seconds: float) -> bool:
        from ray.util import placement_group, remove_placement_group

        asked = self.asked(needs)
        key = tuple(sorted(asked.items()))
        if time.monotonic() - self._full.get(key, -LATER) < LATER:
            return False
        group = placement_group([asked])
        try:
            there = group.wait(seconds)
        except BaseException:
            remove_placement_group(group)
            raise
        if not there:
            remove_placement_group(group)
            self._full[key] = time.monotonic()
            return False
        self._held[index] = needs, group
        return True


def _rounded(memory: float) -> float:
    """Up to a gigabyte, or by a quarter at the most: a job that needs little more than the one before begins no new worker."""
    whole = float(LEAST)
    while 2 * whole < memory:
        whole *= 2
    return whole if memory <= whole else whole * ceil(4 * memory / whole) / 4


def _listed(resources: Any) -> str:
    """Processors, GPUs and memory as words."""
    parts = [f"{resources.get('CPU', 0):g} CPU"]
    if resources.get("GPU"):
        parts.append(f"{resources['GPU']:g} GPU")
    return ", ".join([*parts, f"{resources.get('memory', 0) / 1e9:.1f} GB of memory"])
