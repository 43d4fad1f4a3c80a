"""What became of nodes and edges from one circuit to another, and how far two sets of scores agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.json_form import finite

TOPS = (10, 100)
"""How many of the strongest are looked for among the strongest of the other."""

Fate = Literal["gained", "lost", "kept", "outside"]
"""Of a node or edge: in the second circuit alone, in the first alone, in both, in neither."""


@dataclass(frozen=True)
class Change:
    """One node or edge.

    Attributes:
        before, after: Its scores; NaN where there is none.
        shares: The same as shares of ``Comparison.wholes``.
    """

    name: str
    fate: Fate
    before: float
    after: float
    shares: tuple[float, float]

    @property
    def shift(self) -> float:
        """How far its share moved; NaN where a score is missing."""
        return self.shares[1] - self.shares[0]

    @property
    def size(self) -> float:
        """How much the change matters: how far the share moved; for what came or went and has one score, that."""
        if self.fate in ("kept", "outside"):
            return abs(self.shift) if math.isfinite(self.shift) else 0.0
        known = [abs(x) for x in (self.shift, *self.shares) if math.isfinite(x)]
        return known[0] if known else 0.0

    def as_dict(self) -> dict[str, Any]:
        scores = {"before": finite(self.before), "after": finite(self.after), "shift": finite(self.shift)}
        return {"name": self.name, "fate": self.fate, **scores}


@dataclass(frozen=True)
class Changes:
    """What became of the nodes, or of the edges, of two circuits: the largest change first."""

    every: tuple[Change, ...]

    def of(self, fate: Fate) -> tuple[Change, ...]:
        """Those that were gained, lost or kept."""
        return tuple(one for one in self.every if one.fate == fate)

    @property
    def jaccard(self) -> float:
        """What both have, as a share of what either has; 1 where neither has any."""
        return len(self.of("kept")) / len(self.every) if self.every else 1.0

    def as_dict(self) -> dict[str, Any]:
        counts = {fate: len(self.of(fate)) for fate in ("kept", "gained", "lost")}
        return {"jaccard": self.jaccard, **counts, "changes": [one.as_dict() for one in self.every]}


@dataclass(frozen=True)
class Agreement:
    """How far two sets of scores agree, over what both score.

    Attributes:
        common: How many both score.
        spearman: Rank correlation of their sizes, which are what is ranked; None of fewer than three, or where all are equal.
        spearman_signed: The same of the scores with their signs.
        overlap: By k, the share of the k strongest of one that are among the k strongest of the other.
        moved: What changed most, in either circuit or not.
    """

    common: int
    spearman: float | None
    spearman_signed: float | None
    overlap: Mapping[int, float]
    moved: tuple[Change, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "common": self.common,
            "spearman": self.spearman,
            "spearman_signed": self.spearman_signed,
            "overlap": [{"k": k, "share": share} for k, share in self.overlap.items()],
            "moved": [one.as_dict() for one in self.moved],
        }


def overlap(a: Float[np.ndarray, " scored"], b: Float[np.ndarray, " scored"], k: int) -> float:
    """The share of the k strongest of one that are among the k strongest of the other; ties by their order."""
    tops = [set(np.argsort(-np.abs(x), kind="stable")[:k].tolist()) for x in (a, b)]
    return len(tops[0] & tops[1]) / k


def spearman(a: Float[np.ndarray, " scored"], b: Float[np.ndarray, " scored"]) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None of fewer than three or where all are equal."""
    if len(a) < 3:
        return None
    ranks = []
    for x in (a, b):
        ordered = np.sort(x)
        ranks.append(np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right"))
    if any(np.ptp(one) == 0 for one in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
