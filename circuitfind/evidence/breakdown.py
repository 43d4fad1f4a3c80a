"""Faithfulness taken apart: by template, and prompt by prompt. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.graph import Interval
from circuitfind.circuit.intervals import plain, ratio_interval

Values = Float[np.ndarray, " prompt"]

FAR = 3.5
"""Modified z-score from which a prompt is called an outlier (Iglewicz and Hoaglin 1993)."""


def by_template(
    values: Values, full: Values, empty: Values, groups: Sequence[str], *, seed: int = 0
) -> list[dict[str, Any]]:
    """Faithfulness of the prompts of each template, a ratio of means over them.

    Args:
        values: The metric of each prompt in the circuit.
        full: In the model.
        empty: With everything ablated.
        groups: The template of each prompt.
        seed: Of the bootstrap.
    """
    names = np.array(groups)
    found = []
    for name in dict.fromkeys(groups):
        some = names == name
        top, bottom = (values - empty)[some], (full - empty)[some]
        share = ratio_interval(top, bottom, seed=seed) if bottom.mean() else Interval(*[float("nan")] * 3)
        found.append(
            {
                "template": name,
                "n_prompts": int(some.sum()),
                "faithfulness": plain(share),
                "circuit": float(values[some].mean()),
                "full": float(full[some].mean()),
                "empty": float(empty[some].mean()),
            }
        )
    return found


@dataclass(frozen=True)
class Far:
    """A prompt on which the circuit misses the model by far more, or less, than on the others.

    Attributes:
        index: Which.
        miss: m(circuit) - m(full), in units of the mean gap m(full) - m(empty).
        z: Its distance from the median, in units of 1.4826 times the median absolute deviation.
    """

    index: int
    miss: float
    z: float


def far_ones(values: Values, full: Values, empty: Values) -> list[Far]:
    """Such prompts, the worst first.

    Args:
        values: The metric of each prompt in the circuit.
        full: In the model.
        empty: With everything ablated.
    """
    gap = float((full - empty).mean())
    misses = (values - full) / gap
    spread = 1.4826 * float(np.median(np.abs(misses - np.median(misses))))
    if not spread > 0:
        return []
    z = (misses - np.median(misses)) / spread
    return [Far(int(i), float(misses[i]), float(z[i])) for i in np.argsort(-np.abs(z)) if abs(z[i]) > FAR]


def outliers(
    values: Values, full: Values, empty: Values, texts: Sequence[str], where: Sequence[str]
) -> list[dict[str, Any]]:
    """The same as plain data.

    Args:
        values: The metric of each prompt in the circuit.
        full: In the model.
        empty: With everything ablated.
        texts: The prompts.
        where: Where each is from.
    """
    return [
        {
            "prompt": texts[far.index],
            "where": where[far.index],
            "miss": far.miss,
            "z": far.z,
            "circuit": float(values[far.index]),
            "full": float(full[far.index]),
            "empty": float(empty[far.index]),
        }
        for far in far_ones(values, full, empty)
    ]
