"""clean-corrupted: edge attribution with the mean of the gradients at the clean and at the corrupted run.

The trapezoid rule with one interval: two forward passes and two backward passes (Hanna et al. 2024, arXiv 2403.17806,
in the code that comes with it). Less blind to a saturated metric than EAP, for one backward pass more. With ``mean`` or
``zero`` ablation the second run starts from ablated embeddings, as in ``eap-ig``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Level, Positions
from circuitfind.methods.base import Cost
from circuitfind.methods.contraction import ReaderGradients
from circuitfind.methods.eap_ig import run_between
from circuitfind.methods.gradient_edges import Passes, add_gradient, edge_scores
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.contrast import Contrast
from circuitfind.model.runs import Runs


@dataclass(frozen=True)
class CleanCorrupted:
    """See the module."""

    name: ClassVar[str] = "clean-corrupted"
    level: ClassVar[Level] = "edge"

    def cost(self, anatomy: Anatomy) -> Cost:
        return Cost(forward=2, backward=2)

    def passes(self, runs: Runs, *, ablation: Ablation, direction: Direction) -> Passes:
        """A backward pass at either end.

        Raises:
            UnsupportedError: A metric without a gradient at the clean run.
        """
        runs.check_gradient("clean")
        real = ablation == "resample"

        def collect(runs: Runs, number: int, contrast: Contrast, into: ReaderGradients) -> None:
            add_gradient(runs, number, contrast.base, into, 0.5)
            other = runs.trace(number, "corrupted", keep=True) if real else run_between(runs, contrast, 0.0)
            add_gradient(runs, number, other, into, 0.5)

        return Passes((collect,), at_corrupted=real)

    def run(
        self, runs: Runs, *, ablation: Ablation, direction: Direction, positions: Positions = "none"
    ) -> Scores:
        """Scores of every edge; the same for both directions, since both ends are taken.

        Raises:
            UnsupportedError: As for ``passes``.
        """
        return edge_scores(runs, self, ablation=ablation, direction=direction, positions=positions)
