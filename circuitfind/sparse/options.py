"""How a circuit of features is looked for. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from circuitfind.errors import UsageError


@dataclass(frozen=True)
class SparseOptions:
    """How a circuit of features is looked for.

    Attributes:
        steps: Gradients on the path of each site; 1 is attribution patching.
        faithfulness: Target of pruning; None where ``node_threshold`` is given.
        node_threshold: Keep every node whose |score| is at least this instead, in units of the metric.
        edge_threshold: Keep every edge whose |weight| is at least this.
        evaluations: Sets of nodes to run at the most while pruning.
    """

    steps: int = 10
    faithfulness: float | None = 0.9
    node_threshold: float | None = None
    edge_threshold: float = 0.01
    evaluations: int = 300

    def __post_init__(self) -> None:
        if (self.faithfulness is None) == (self.node_threshold is None):
            raise UsageError(
                "give a target faithfulness or a threshold for nodes",
                hint="such as --faithfulness 0.9 or --node-threshold 0.1",
            )
        if self.steps < 1:
            raise UsageError(f"{self.steps} steps take no gradient", hint="give --steps 1 or more")
        if self.faithfulness is not None and not 0 < self.faithfulness <= 1:
            raise UsageError(
                f"a target faithfulness of {self.faithfulness} cannot be reached for certain",
                hint="give a number above 0 and up to 1",
            )
        for name, value in (("node", self.node_threshold), ("edge", self.edge_threshold)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(
                    f"a threshold of {value} for {name}s keeps no order",
                    hint=f"give --{name}-threshold 0 or more",
                )
        if self.evaluations < 1:
            raise UsageError(f"{self.evaluations} evaluations prune nothing", hint="give at least 1")

    @property
    def rule(self) -> str:
        """For people: ``faithfulness 0.9, edge threshold 0.01``."""
        nodes = (
            f"faithfulness {self.faithfulness:g}"
            if self.faithfulness is not None
            else f"node threshold {self.node_threshold:g}"
        )
        return f"{nodes}, edge threshold {self.edge_threshold:g}"

    @property
    def method(self) -> str:
        return "gradient at the clean run" if self.steps == 1 else f"integrated gradients, {self.steps} steps"
