"""EAP: edge attribution patching (Syed, Rager and Conmy 2023, arXiv 2310.10348).

A first-order estimate of what replacing one edge does to the metric: (z_s^ablated - z_s^clean) . dm/d(input of r).
``noising`` takes the gradient at the clean run and ``denoising`` at the corrupted run; the difference of the writers is
the same. Two forward passes and one backward pass for all edges. Exact for models that are linear between the two runs;
blind where the metric is saturated at the point of the gradient (an OR of two heads looks unimportant under noising).
"""

from __future__ import annotations

import numpy as np

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Level
from circuitfind.errors import RunError, UnsupportedError
from circuitfind.methods.base import Cost
from circuitfind.methods.contraction import attribute
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.runs import Runs

IDENTITY_TOLERANCE = 1e-3
"""Largest gap between a node and the sum of its edges, as a share of the largest node, in single precision."""


class EAP:
    """See the module."""

    name = "eap"
    level: Level = "edge"

    def cost(self, anatomy: Anatomy) -> Cost:
        return Cost(forward=2, backward=1)

    def run(self, runs: Runs, *, ablation: Ablation, direction: Direction) -> Scores:
        """Scores of every edge, the mean over prompts, positive where the clean value helps.

        Raises:
            UnsupportedError: Denoising without a corrupted run to take the gradient at, or a metric without gradient.
            RunError: The edges of a node do not sum to the node (a self-check that holds for every model).
        """
        if direction == "denoising" and ablation != "resample":
            raise UnsupportedError(
                f"denoising takes the gradient at a corrupted prompt, which {ablation} ablation does not have",
                hint="use --ablation resample, or --direction noising",
            )
        shape = runs.model.anatomy.edge_mask.shape
        edges, nodes = np.zeros(shape), np.zeros(shape[0])
        for number in range(len(runs.batches)):
            gradients = runs.gradients(number, "clean" if direction == "noising" else "corrupted")
            current, ablated = runs.writes(number, "clean"), runs.ablated(number, ablation)
            found = attribute(runs.model, gradients, current, ablated)
            edges += found.edges
            nodes += found.nodes
        edges, nodes = edges / len(runs), nodes / len(runs)
        gap = _identity_gap(edges, nodes)
        if runs.model.dtype.itemsize >= 4 and not gap <= IDENTITY_TOLERANCE:
            raise RunError(
                f"the edges of a node do not sum to the node (off by {gap:.1e} of the largest): the scores cannot be trusted",
                hint="please report this model; --method activation-patching takes no gradients",
            )
        return Scores(
            anatomy=runs.model.anatomy,
            level="edge",
            values=edges,
            nodes=nodes,
            method=self.name,
            direction=direction,
            metric=runs.metric.name,
            ablation=ablation,
            facts={"identity_gap": gap},
        )


def _identity_gap(edges: np.ndarray, nodes: np.ndarray) -> float:
    scale = float(np.abs(nodes).max())
    return 0.0 if scale == 0 else float(np.abs(np.nansum(edges, axis=1) - nodes).max()) / scale
