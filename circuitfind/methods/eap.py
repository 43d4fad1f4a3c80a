"""EAP: edge attribution patching (Syed, Rager and Conmy 2023, arXiv 2310.10348).

A first-order estimate of what replacing one edge does to the metric: (z_s^ablated - z_s^clean) . dm/d(input of r).
``noising`` takes the gradient at the clean run and ``denoising`` at the corrupted run; the difference of the writers is
the same. Two forward passes and one backward pass for all edges. Exact for models that are linear between the two runs;
blind where the metric is saturated at the point of the gradient (an OR of two heads looks unimportant under noising).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Level, Positions
from circuitfind.methods.base import Cost
from circuitfind.methods.contraction import ReaderGradients
from circuitfind.methods.gradient_edges import Passes, add_gradient, edge_scores, needs_corrupted_run
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.contrast import Contrast
from circuitfind.model.rules import PLAIN, Rules
from circuitfind.model.runs import Runs


@dataclass(frozen=True)
class EAP:
    """See the module. RelP and GIM are this with rules for the backward pass."""

    name: ClassVar[str] = "eap"
    level: ClassVar[Level] = "edge"

    def cost(self, anatomy: Anatomy) -> Cost:
        return Cost(forward=2, backward=1)

    def rules(self) -> Rules:
        """How the backward pass is changed."""
        return PLAIN

    def passes(self, runs: Runs, *, ablation: Ablation, direction: Direction) -> Passes:
        """One backward pass, at the clean or at the corrupted run.

        Raises:
            UnsupportedError: Denoising without a corrupted run to take the gradient at, or a metric without gradient.
        """
        needs_corrupted_run(direction, ablation)
        side: Literal["clean", "corrupted"] = "clean" if direction == "noising" else "corrupted"
        runs.check_gradient(side)
        rules = self.rules()

        def collect(runs: Runs, number: int, contrast: Contrast, into: ReaderGradients) -> None:
            trace = contrast.base if side == "clean" else runs.trace(number, "corrupted", keep=True)
            add_gradient(runs, number, trace, into, rules=rules)

        return Passes((collect,), rules, at_clean=side == "clean", at_corrupted=side == "corrupted")

    def run(
        self, runs: Runs, *, ablation: Ablation, direction: Direction, positions: Positions = "none"
    ) -> Scores:
        """Scores of every edge, the mean over prompts, positive where the clean value helps.

        Raises:
            UnsupportedError: As for ``passes``.
            RunError: The edges of a node do not sum to the node.
        """
        return edge_scores(runs, self, ablation=ablation, direction=direction, positions=positions)
