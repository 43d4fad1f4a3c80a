"""One way to look for a circuit, to be gone again on other prompts: a method, and how far its ranking is pruned."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.prune import prune
from circuitfind.circuit.rule import Rule
from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Positions
from circuitfind.methods.base import Method
from circuitfind.model.bridge import Model
from circuitfind.model.runs import Runs
from circuitfind.task.pairs import PromptPairs

Mask = Bool[np.ndarray, "writer reader"]
Pruning = Literal["count", "rule"]
"""To so many connected edges from the top of the ranking, which runs no circuit; or by the rule itself."""


@dataclass(frozen=True)
class Search:
    """How a circuit was found.

    Attributes:
        method: Scores nodes or edges.
        ablation, direction, positions: As for a method.
        rule: How far to prune.
    """

    method: Method
    ablation: Ablation
    direction: Direction
    rule: Rule
    positions: Positions = "none"

    def counted(self, edges: int) -> Search:
        """The same pruned to so many edges."""
        return replace(self, rule=Rule(edges=edges))

    def scores(self, runs: Runs) -> Scores:
        """Run the method."""
        return self.method.run(
            runs, ablation=self.ablation, direction=self.direction, positions=self.positions
        )

    def pruned(self, scores: Scores, runs: Runs) -> Mask:
        """The circuit.

        Raises:
            RunError: Every score is zero, there is nothing to explain, or no way from the input to the logits is left.
        """
        return prune(scores, self.rule, Evaluator(runs, self.ablation), direction=self.direction).mask


def runs_over(runs: Runs, pairs: PromptPairs) -> Runs:
    """Runs of some of the pairs of others, all else as it was: what the ``optimal`` ablation carries, a second model."""
    found = copy(runs)  # whatever kind of runs these are
    found.pairs = pairs
    found._start()
    return found


class Passes:
    """Counts the passes that a model runs from here on."""

    def __init__(self, model: Model) -> None:
        self._model, self._before = model, dict(model.passes)

    def since(self) -> tuple[int, int]:
        """(forward, backward) passes so far."""
        now = self._model.passes
        forward, backward = (now[name] - self._before[name] for name in ("forward", "backward"))
        return forward, backward


Maker = Callable[[PromptPairs], Runs]
"""Makes runs of some pairs."""
