"""Whether there is a behaviour at all, on every prompt that lines up: those answered rightly alone would always show one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.evaluate import BOOTSTRAP
from circuitfind.circuit.graph import Interval
from circuitfind.evidence.report import Prompts
from circuitfind.evidence.statistics import at_least, at_most

Values = Float[np.ndarray, " prompt"]


def behaviour(
    full: Values,
    empty: Values,
    right: Bool[np.ndarray, " prompt"],
    *,
    held_out: bool | None,
    content_hash: str,
    seed: int = 0,
) -> Prompts:
    """What the model does on some prompts.

    Args:
        full: The metric of each prompt in the model.
        empty: With every edge ablated.
        right: Whether the model answers it rightly.
        held_out: Whether the circuit was pruned on other prompts; None where that is not known.
        content_hash: Of the prompts.
        seed: Of the bootstrap.
    """
    gaps = full - empty
    draws = np.random.default_rng(seed).integers(0, len(gaps), size=(BOOTSTRAP, len(gaps)))
    low, high = np.quantile(gaps[draws].mean(1), [0.025, 0.975])
    return Prompts(
        held_out=held_out,
        aligned=len(right),
        right=int(right.sum()),
        accuracy=proportion(int(right.sum()), len(right)),
        gap=Interval(float(gaps.mean()), float(low), float(high)),
        content_hash=content_hash,
    )


def proportion(hits: int, total: int, level: float = 0.95) -> Interval:
    """A share and its exact interval (Clopper and Pearson 1934): what is not refuted at (1 - level) / 2 on either side."""
    tail = (1 - level) / 2
    low = 0.0 if not hits else _solve(lambda p: at_least(hits, total, p) - tail)
    high = 1.0 if hits == total else _solve(lambda p: tail - at_most(hits, total, p))
    return Interval(hits / total, low, high)


def _solve(rising: Callable[[float], float]) -> float:
    """Where a rising function of a share crosses 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
