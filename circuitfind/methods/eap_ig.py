"""EAP-IG (inputs): edge attribution with the gradient averaged on the way from the corrupted to the clean prompts
(Hanna, Pezzelle and Belinkov 2024, arXiv 2403.17806).

The path is the straight line between what ``input`` writes: x(t) = x_ablated + t (x_clean - x_ablated). The integral of the
gradient over t from 0 to 1 is taken at ``steps`` points:

    midpoint   t = (k + 1/2) / steps for k = 0 .. steps - 1; the error falls with the square of the steps   (default)
    left       t = k / steps for k = 0 .. steps - 1: the corrupted end, never the clean one; what the authors' code does
    right      t = k / steps for k = 1 .. steps: the clean end, never the corrupted one

The end points are the corrupted prompts' embeddings under ``resample`` ablation, and the mean, zero or learned embedding
under the others. Direction makes no difference: the path has both ends. Two forward passes, and a forward and a backward
pass for each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Level, Positions
from circuitfind.errors import UsageError, did_you_mean
from circuitfind.methods.base import Cost
from circuitfind.methods.contraction import ReaderGradients
from circuitfind.methods.gradient_edges import Passes, add_gradient, edge_scores
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.contrast import Contrast
from circuitfind.model.forward import Trace, run_trace
from circuitfind.model.runs import Runs

POINTS = ("midpoint", "left", "right")


def path_points(steps: int, points: str) -> list[float]:
    """Where between the ablated (0) and the clean end (1) the gradient is taken.

    Raises:
        UsageError: No such rule, or no steps.
    """
    if steps < 1:
        raise UsageError(f"an integral of {steps} steps is none", hint="give steps=1 or more")
    if points not in POINTS:
        raise UsageError(f"no rule for the integral is named '{points}'", hint=did_you_mean(points, POINTS))
    shift = {"midpoint": 0.5, "left": 0.0, "right": 1.0}[points]
    return [(k + shift) / steps for k in range(steps)]


def run_between(runs: Runs, contrast: Contrast, at: float) -> Trace:
    """A run from embeddings between the ablated (0) and the clean ones (1), which keeps what a backward pass needs."""
    end = contrast.cut.input
    with torch.no_grad():
        embedded = end + at * (contrast.written.input - end)
        return run_trace(runs.model, embedded, contrast.base.place, contrast.before, keep=True)


@dataclass(frozen=True)
class EAPIG:
    """See the module.

    Attributes:
        steps: Points at which the gradient is taken.
        points: Where they lie: ``midpoint``, ``left`` or ``right``.
    """

    steps: int = 5
    points: str = "midpoint"

    name: ClassVar[str] = "eap-ig"
    level: ClassVar[Level] = "edge"

    def __post_init__(self) -> None:
        path_points(self.steps, self.points)  # before a model is loaded

    def cost(self, anatomy: Anatomy) -> Cost:
        return Cost(forward=2 + self.steps, backward=self.steps)

    def passes(self, runs: Runs, *, ablation: Ablation, direction: Direction) -> Passes:
        """A backward pass at each point of the path.

        Raises:
            UnsupportedError: A metric without gradient, or one whose gradient is zero at an end point that is taken.
        """
        path = path_points(self.steps, self.points)
        runs.check_gradient("clean" if 1.0 in path else "corrupted")

        def collect(runs: Runs, number: int, contrast: Contrast, into: ReaderGradients) -> None:
            for at in path:
                add_gradient(runs, number, run_between(runs, contrast, at), into, 1 / len(path))

        return Passes((collect,), at_clean=False)

    def run(
        self, runs: Runs, *, ablation: Ablation, direction: Direction, positions: Positions = "none"
    ) -> Scores:
        """Scores of every edge, the mean over prompts, positive where the clean value helps.

        Raises:
            UnsupportedError: As for ``passes``.
        """
        return edge_scores(runs, self, ablation=ablation, direction=direction, positions=positions)
