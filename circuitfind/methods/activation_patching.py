"""Activation patching: the exact effect of every node, by running the model with it replaced.

``noising`` puts a node's ablated value into the clean run: what is necessary. ``denoising`` puts its clean value into the
corrupted run: what is sufficient. Two heads of which either suffices show no effect under noising and the full effect
under denoising; two that are needed together show the reverse (Heimersheim and Nanda 2024, arXiv 2404.15255, section 4).
One patched forward pass for each node, rows of several nodes to a batch.
"""

from __future__ import annotations

import numpy as np

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Level
from circuitfind.errors import UnsupportedError
from circuitfind.methods.base import Cost
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.patched import Patch
from circuitfind.model.runs import Runs


class ActivationPatching:
    """See the module."""

    name = "activation-patching"
    level: Level = "node"

    def cost(self, anatomy: Anatomy) -> Cost:
        return Cost(forward=2 + len(anatomy.writers), backward=0)

    def run(self, runs: Runs, *, ablation: Ablation, direction: Direction) -> Scores:
        """Scores of every writer, prompt by prompt; positive where the clean value helps the metric.

        Raises:
            UnsupportedError: Denoising without a corrupted run to put clean values into.
        """
        if direction == "denoising" and ablation != "resample":
            raise UnsupportedError(
                f"denoising puts clean values into a corrupted prompt, which {ablation} ablation does not have",
                hint="use --ablation resample, or --direction noising",
            )
        patches = [Patch(nodes=row) for row in np.eye(len(runs.model.anatomy.writers), dtype=bool)]
        if direction == "noising":
            effects = runs.clean - runs.patched(patches, ablation=ablation)
        else:
            effects = runs.patched(patches, base="corrupted", ablation="clean") - runs.corrupted
        return Scores(
            anatomy=runs.model.anatomy,
            level="node",
            values=effects.mean(1),
            per_prompt=effects.T.copy(),
            method=self.name,
            direction=direction,
            metric=runs.metric.name,
            ablation=ablation,
        )
