"""The fewest of some things that keep faithfulness at a target, decided by running the model with them alone.

The smallest prefix of a ranking that reaches the target is found, then things are dropped from it, least harmful first, as
long as the target holds. Faithfulness is not monotone in the size, so this is the smallest set seen, not a proof that none
is smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Set = Bool[np.ndarray, "..."]
Index = tuple[int, ...]
Evaluate = Callable[[list[Set]], Float[np.ndarray, " set"]]
"""Faithfulness of some sets, each a run of the model."""

GRID = 24
"""Prefix sizes tried at once in the first search."""


@dataclass(frozen=True)
class Found:
    """A set and how it was found.

    Attributes:
        kept: True for what is in it.
        prefix: How much of the ranking was needed to reach the target, before anything was dropped.
        minimal: Whether everything in it was tried for dropping alone, in vain.
        evaluations: Sets run.
    """

    kept: Set
    prefix: int
    minimal: bool
    evaluations: int


class Subsets:
    """Sets of ranked things.

    Args:
        full: All of them.
        order: The strongest first.
        evaluate: Runs sets.
        target: Faithfulness to keep.
        close: Leaves out of a set what is of no use without the rest of it.
    """

    def __init__(
        self,
        full: Set,
        order: Sequence[Index],
        evaluate: Evaluate,
        target: float,
        close: Callable[[Set], Set] = lambda kept: kept,
    ) -> None:
        self._full, self._order, self._target = full, list(order), target
        self._evaluate, self._close = evaluate, close
        self.evaluations = 0

    def _run(self, sets: list[Set]) -> Float[np.ndarray, " set"]:
        self.evaluations += len(sets)
        return self._evaluate(sets)

    def prefix(self, size: int) -> Set:
        """The strongest so many."""
        kept = np.zeros_like(self._full)
        for index in self._order[:size]:
            kept[index] = True
        return self._close(kept)

    def smallest_prefix(self) -> tuple[int, Set]:
        """The smallest prefix seen that reaches the target, else all: a geometric grid first, then finer grids below its hit."""
        low, high = 0, len(self._order)
        best = self._full.copy()
        sizes = sorted({round(s) for s in np.geomspace(1, max(high, 1), GRID)})
        while sizes and high:
            sets = [self.prefix(size) for size in sizes]
            found = self._run(sets)
            hit = next((i for i, f in enumerate(found) if f >= self._target), None)
            if hit is None:
                low = sizes[-1]
            else:
                high, best = sizes[hit], sets[hit]
                low = sizes[hit - 1] if hit else low
            inside = np.linspace(low, high, 10)[1:-1]
            sizes = sorted({round(s) for s in inside if low < round(s) < high})
        return high, best

    def without(self, kept: Set, some: Sequence[Index]) -> Set:
        """A set less some."""
        rest = kept.copy()
        for index in some:
            rest[index] = False
        return self._close(rest)

    def drop(
        self,
        kept: Set,
        fixed: Set | None = None,
        *,
        budget: int,
        report: Callable[[int, int], None] = lambda left, tried: None,
    ) -> tuple[Set, bool]:
        """Drop from a set while the target holds; each round tries everything alone, then the most harmless together.

        Args:
            kept: The set.
            fixed: What stays whatever happens.
            budget: Sets to run at the most.
            report: Hears how many are left and how many sets were run.

        Returns the set and whether the last round tried everything in it in vain.
        """
        start = self.evaluations
        while True:
            candidates = [
                i for i in reversed(self._order) if kept[i] and not (fixed is not None and fixed[i])
            ]
            affordable = candidates[: max(0, budget - (self.evaluations - start))]
            if not candidates:
                return kept, True
            if not affordable:
                return kept, False
            found = self._run([self.without(kept, [index]) for index in affordable])
            # Most harmless first; a stable sort keeps the weakest first among equals.
            ranked = [
                affordable[int(i)] for i in np.argsort(-found, kind="stable") if found[i] >= self._target
            ]
            if not ranked:
                return kept, len(affordable) == len(candidates)
            kept = self._drop_most(kept, ranked)
            report(int(kept.sum()), self.evaluations - start)

    def _drop_most(self, kept: Set, ranked: Sequence[Index]) -> Set:
        """Drop as long a prefix of ``ranked`` as still reaches the target; the first one alone is known to."""
        low, high = 1, len(ranked) + 1
        best = self.without(kept, ranked[:1])
        sizes = sorted({round(s) for s in np.geomspace(1, len(ranked), 12)} - {1})
        while sizes:
            sets = [self.without(kept, ranked[:size]) for size in sizes]
            for size, trial, value in zip(sizes, sets, self._run(sets), strict=True):
                if value < self._target:
                    high = size
                    break
                low, best = size, trial
            sizes = sorted({round(s) for s in np.linspace(low, high, 8)[1:-1] if low < round(s) < high})
        return best


def fewest(
    full: Set,
    order: Sequence[Index],
    evaluate: Evaluate,
    target: float,
    *,
    budget: int,
    report: Callable[[int, int], None] = lambda left, tried: None,
) -> Found:
    """The fewest found of some things that need nothing of each other."""
    search = Subsets(full, order, evaluate, target)
    size, kept = search.smallest_prefix()
    kept, minimal = search.drop(kept, budget=max(0, budget - search.evaluations), report=report)
    return Found(kept, size, minimal, search.evaluations)
