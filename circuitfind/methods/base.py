"""What a method is: runs in, scores out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Level
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.runs import Runs


@dataclass(frozen=True)
class Cost:
    """Passes over all prompts that a method takes; a patched pass of one patch counts as one forward pass."""

    forward: int
    backward: int


class Method(Protocol):
    """A way to score nodes or edges."""

    name: str
    level: Level

    def cost(self, anatomy: Anatomy) -> Cost:
        """What a run costs, for the plan."""
        ...

    def run(self, runs: Runs, *, ablation: Ablation, direction: Direction) -> Scores:
        """Score every node or edge.

        Raises:
            UnsupportedError: The method says nothing true for this metric, ablation or direction.
        """
        ...
