"""How much of the behaviour some nodes carry, all others replaced."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.config import Ablation
from circuitfind.errors import RunError
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs

Nodes = Bool[np.ndarray, " writer"]


class NodeCircuits:
    """Runs sets of writers under one ablation; whatever is not kept carries its ablated value for every reader.

    Attributes:
        evaluations: Sets run so far.
    """

    def __init__(self, runs: Runs, ablation: Ablation) -> None:
        self.runs = runs
        self.ablation: Ablation = ablation
        self.evaluations = 0

    def effects(self, removed: Sequence[Nodes]) -> Float[np.ndarray, " set"]:
        """What the metric loses, in the mean over prompts, when sets of nodes are replaced."""
        self.evaluations += len(removed)
        found = self.runs.patched([Patch(nodes=nodes) for nodes in removed], ablation=self.ablation)
        return np.asarray((self.runs.clean - found).mean(1))

    @cached_property
    def gap(self) -> float:
        """What it loses when all are.

        Raises:
            RunError: Nothing.
        """
        every = np.ones(len(self.runs.model.anatomy.writers), dtype=bool)
        gap = float(self.effects([every])[0])
        if not gap > 1e-4 * max(float(np.abs(self.runs.clean).mean()), 1e-6):
            raise RunError(
                f"the metric loses {gap:.4g} when every node is replaced ({self.ablation}): there is no behaviour to explain",
                hint="check that the corrupted prompts change the answer, or choose another counterfactual, metric or ablation",
            )
        return gap

    def faithfulness(self, kept: Sequence[Nodes]) -> Float[np.ndarray, " set"]:
        """1 less the share of the gap that is lost without all others."""
        return np.asarray(1 - self.effects([~nodes for nodes in kept]) / self.gap)
