"""Intervals of what is measured over prompts: the bootstrap, by percentiles or bias-corrected and accelerated (BCa).

A quantity here is a function of means over prompts, such as a ratio of two means. The prompts are drawn again with
replacement, all of its means together, so that what is measured on the same prompts stays paired. BCa (Efron 1987, "Better
bootstrap confidence intervals", equations 2.3 and 6.6) takes other quantiles than the percentile interval does: with z0 the
normal quantile of the share of draws below the value, ties counting half, and a the skewness of the jackknife,

    a = sum(d^3) / (6 sum(d^2)^1.5),   d_i = mean of the values without one prompt - value without prompt i
    quantile at Phi(z0 + (z0 + z) / (1 - a (z0 + z))),   z = Phi^-1((1 -+ level) / 2)

A draw in which the denominator has lost its sign has no value; it counts as below the lower and above the upper end, so that
an interval that rests on such draws is unbounded, not narrow. One prompt says nothing of the spread: its interval is
unbounded too. Unbounded ends are infinite here and null in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.graph import Interval
from circuitfind.circuit.json_form import finite

BOOTSTRAP = 2000
"""Resamples of the prompts behind an interval."""
LEVEL = 0.95

Kind = Literal["percentile", "bca"]
Statistic = Callable[[Float[np.ndarray, "draw column"]], Float[np.ndarray, "draw quantity"]]
"""Quantities from means; NaN where they have no value."""

_NORMAL = NormalDist()
_AT_ONCE = 256


def bootstrap_ratio(
    top: Float[np.ndarray, " prompt"],
    bottom: Float[np.ndarray, " prompt"],
    *,
    seed: int,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Percentile interval of mean(top) / mean(bottom) when the prompts are drawn again with replacement."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(top), size=(BOOTSTRAP, len(top)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = top[draws].mean(1) / bottom[draws].mean(1)
    low, high = np.nanquantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratio_interval(
    top: Float[np.ndarray, " prompt"],
    bottom: Float[np.ndarray, " prompt"],
    *,
    seed: int = 0,
    level: float = LEVEL,
    kind: Kind = "bca",
) -> Interval:
    """mean(top) / mean(bottom) and its interval.

    Raises:
        ValueError: There is no prompt, a value is not finite, or mean(bottom) is zero.
    """
    return ratio_intervals(top[None], bottom, seed=seed, level=level, kind=kind)[0]


def difference_interval(
    one: Float[np.ndarray, " prompt"],
    other: Float[np.ndarray, " prompt"],
    bottom: Float[np.ndarray, " prompt"],
    *,
    seed: int = 0,
    level: float = LEVEL,
    kind: Kind = "bca",
) -> Interval:
    """mean(one) / mean(bottom) - mean(other) / mean(bottom), paired: of the faithfulness of two circuits, how much they differ.

    Raises:
        ValueError: As in ``ratio_interval``.
    """
    return ratio_interval(one - other, bottom, seed=seed, level=level, kind=kind)


def ratio_intervals(
    tops: Float[np.ndarray, "ratio prompt"],
    bottom: Float[np.ndarray, " prompt"],
    *,
    seed: int = 0,
    level: float = LEVEL,
    kind: Kind = "bca",
) -> list[Interval]:
    """Several ratios with one denominator, drawn with the same prompts.

    Raises:
        ValueError: As in ``ratio_interval``.
    """
    whole = float(bottom.mean()) if len(bottom) else 0.0
    if whole == 0:
        raise ValueError("the mean of the denominator is zero, or there is no prompt")

    def ratios(means: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, "draw ratio"]:
        below = np.where(means[:, -1:] * whole > 0, means[:, -1:], np.nan)
        return np.asarray(means[:, :-1] / below)

    columns = np.column_stack([tops.T, bottom])
    return intervals(columns, ratios, seed=seed, level=level, kind=kind)


def intervals(
    columns: Float[np.ndarray, "prompt column"],
    statistic: Statistic,
    *,
    seed: int = 0,
    level: float = LEVEL,
    kind: Kind = "bca",
) -> list[Interval]:
    """Quantities that are functions of the means of some columns, with their intervals.

    Args:
        columns: What was measured on each prompt.
        statistic: From means, a row for each draw, to the quantities.
        seed: Of the draws.
        level: How often the interval should hold the truth.
        kind: Which interval.

    Raises:
        ValueError: There is no prompt, a value is not finite, or a quantity has no value for all prompts together.
    """
    columns = np.asarray(columns, dtype=float)
    if not len(columns) or not np.isfinite(columns).all():
        raise ValueError("intervals need at least one prompt, and finite values")
    values = statistic(columns.mean(0, keepdims=True))[0]
    if not np.isfinite(values).all():
        raise ValueError("a quantity has no finite value")
    if len(columns) == 1:
        return [Interval(float(value), -math.inf, math.inf) for value in values]
    drawn = np.concatenate([statistic(means) for means in _resampled(columns, seed)])
    if kind == "bca":
        left_out = (columns.sum(0) - columns) / (len(columns) - 1)
        skew = _acceleration(statistic(left_out))
        return [
            Interval(float(v), *_bca(d, float(v), float(a), level))
            for v, d, a in zip(values, drawn.T, skew, strict=True)
        ]
    ends = ((1 - level) / 2, (1 + level) / 2)
    return [Interval(float(v), *_quantiles(d, *ends)) for v, d in zip(values, drawn.T, strict=True)]


def plain(interval: Interval) -> dict[str, float | None]:
    """An interval for JSON."""
    return {name: finite(value) for name, value in vars(interval).items()}


def _resampled(
    columns: Float[np.ndarray, "prompt column"], seed: int
) -> Iterator[Float[np.ndarray, "draw column"]]:
    """The means of each draw, some draws at a time."""
    n = len(columns)
    draws = np.random.default_rng(seed).integers(0, n, size=(BOOTSTRAP, n))
    for start in range(0, BOOTSTRAP, _AT_ONCE):
        some = draws[start : start + _AT_ONCE]
        slots = some + n * np.arange(len(some))[:, None]
        counts = np.bincount(slots.ravel(), minlength=n * len(some)).reshape(len(some), n)
        yield counts @ columns / n


def _acceleration(
    left_out: Float[np.ndarray, "prompt quantity"],
) -> Float[np.ndarray, " quantity"]:
    """The skewness of the jackknife over six; zero where a prompt cannot be left out, or nothing varies."""
    gaps = left_out.mean(0) - left_out
    gaps = np.where(np.isfinite(gaps).all(0), gaps, 0.0)
    size = np.sqrt((gaps**2).sum(0))
    scaled = gaps / np.where(size > 0, size, 1.0)
    return np.asarray((scaled**3).sum(0) / 6)


def _bca(drawn: Float[np.ndarray, " draw"], value: float, skew: float, level: float) -> tuple[float, float]:
    known = drawn[~np.isnan(drawn)]
    if not known.size:
        return -math.inf, math.inf
    below = float((known < value).sum() + (known == value).sum() / 2)
    # Half a draw from either end: a value outside of all draws has no infinite correction.
    below = min(max(below, 0.5), known.size - 0.5)
    shift = _NORMAL.inv_cdf(below / known.size)
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        moved = shift + _NORMAL.inv_cdf(tail)
        under = 1 - skew * moved
        ends.append(_NORMAL.cdf(shift + moved / under) if under > 0 else float(moved > 0))
    return _quantiles(drawn, ends[0], ends[1])


def _quantiles(drawn: Float[np.ndarray, " draw"], lower: float, upper: float) -> tuple[float, float]:
    """Ends at two quantiles; draws without a value are below the lower and above the upper one."""
    low = np.sort(np.where(np.isnan(drawn), -math.inf, drawn))
    high = np.sort(np.where(np.isnan(drawn), math.inf, drawn))
    return _at(low, lower, math.floor), _at(high, upper, math.ceil)


def _at(ordered: Float[np.ndarray, " draw"], share: float, outward: Callable[[float], int]) -> float:
    """The quantile by linear interpolation; next to infinity, whatever lies outward."""
    place = share * (len(ordered) - 1)
    one, other = float(ordered[math.floor(place)]), float(ordered[math.ceil(place)])
    if not (math.isfinite(one) and math.isfinite(other)):
        return float(ordered[outward(place)])
    return one + (place - math.floor(place)) * (other - one)
