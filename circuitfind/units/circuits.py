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

    def losses(self, removed: Sequence[Nodes]) -> Float[np.ndarray, "set prompt"]:
        """What the metric of each prompt loses when sets of nodes are replaced."""
        self.evaluations += len(removed)
        found = self.runs.patched([Patch(nodes=nodes) for nodes in removed], ablation=self.ablation)
        return np.asarray(self.runs.clean - found)

    def effects(self, removed: Sequence[Nodes]) -> Float[np.ndarray, " set"]:
        """The same in the mean over prompts."""
        return np.asarray(self.losses(removed).mean(1))

    @cached_property
    def _every(self) -> Float[np.ndarray, " prompt"]:
        """What each prompt loses when all are."""
        return np.asarray(self.losses([np.ones(len(self.runs.model.anatomy.writers), dtype=bool)])[0])

    @cached_property
    def gap(self) -> float:
        """What it loses when all are.

        Raises:
            RunError: Nothing.
        """
        gap = float(self._every.mean())
        if not gap > 1e-4 * max(float(np.abs(self.runs.clean).mean()), 1e-6):
            raise RunError(
                f"the metric loses {gap:.4g} when every node is replaced ({self.ablation}): there is no behaviour to explain",
                hint="check that the corrupted prompts change the answer, or choose another counterfactual, metric or ablation",
            )
        return gap

    def faithfulness(self, kept: Sequence[Nodes]) -> Float[np.ndarray, " set"]:
        """1 less the share of the gap that is lost without all others."""
        return self.measured(kept)[0]

    def measured(self, kept: Sequence[Nodes]) -> tuple[Float[np.ndarray, " set"], Float[np.ndarray, " set"]]:
        """Faithfulness, and the share of the squared gaps of single prompts that is explained.

        The mean over prompts lets a prompt that comes out too strong pay for one that comes out too weak; the second
        number, ``1 - sum_p lost_p^2 / sum_p gap_p^2``, counts both as missed. Both are 1 for all nodes and 0 for none.
        """
        lost = self.losses([~nodes for nodes in kept])
        explained = 1 - (lost**2).sum(1) / (self._every**2).sum()
        return np.asarray(1 - lost.mean(1) / self.gap), np.asarray(explained)
