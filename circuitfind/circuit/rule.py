"""How far a circuit is pruned. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from circuitfind.errors import UsageError


@dataclass(frozen=True)
class Rule:
    """How far to prune: exactly one of the three.

    Attributes:
        faithfulness: Smallest circuit that reaches this share of the behaviour.
        edges: This many of the strongest edges.
        threshold: Every edge whose |score| is at least this, in units of the metric.
        evaluations: At most this many circuits are run; pruning by faithfulness stops early when they are used up.
    """

    faithfulness: float | None = None
    edges: int | None = None
    threshold: float | None = None
    evaluations: int = 2000

    def __post_init__(self) -> None:
        given = [v for v in (self.faithfulness, self.edges, self.threshold) if v is not None]
        if len(given) != 1:
            raise UsageError(
                "give exactly one of a target faithfulness, a number of edges and a threshold",
                hint="such as --faithfulness 0.9, --edges 40 or --threshold 0.05",
            )
        if self.faithfulness is not None and not 0 < self.faithfulness <= 1:
            raise UsageError(
                f"a target faithfulness of {self.faithfulness} cannot be reached for certain",
                hint="give a number above 0 and up to 1",
            )
        if self.edges is not None and self.edges < 1:
            raise UsageError(f"{self.edges} edges make no circuit", hint="give at least 1")
        if self.threshold is not None and not self.threshold >= 0:
            raise UsageError(f"a threshold of {self.threshold} keeps no order", hint="give 0 or more")
        if self.evaluations < 1:
            raise UsageError(f"{self.evaluations} evaluations prune nothing", hint="give at least 1")

    def __str__(self) -> str:
        if self.faithfulness is not None:
            return f"faithfulness {self.faithfulness:g}"
        return f"edges {self.edges}" if self.edges is not None else f"threshold {self.threshold:g}"
