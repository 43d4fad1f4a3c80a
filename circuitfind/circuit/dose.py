"""What a dose-response curve says: where it is flat, where it jumps, how far it is from a line, and what a gradient sees of it.

m(alpha) is the mean of the metric over prompts when parts carry (1 - alpha) of their own value and alpha of the ablated one
(model/dose.py). The share of the full effect is a ratio of means over prompts,

    f(alpha) = (m(alpha) - m(0)) / (m(1) - m(0)),

so that f(0) = 0 and f(1) = 1. Of a model that is linear in what is patched f is the chord, f(alpha) = alpha. What is read off:

    half         the first alpha with f = 1/2, by linear interpolation
    departure    the integral of |f - alpha| over [0, 1]: 0 for a line, 1/2 for a step at either end
    bend         the integral of f - alpha: positive where small doses do most of it, negative where the last ones do
    plateau      the longest ranges over which f moves at less than a quarter of the chord's slope, a fifth of the way or more
    threshold    where f goes from 1/4 to 3/4 in less than half of the way that the chord takes

Intervals are bootstrapped over prompts, all doses of a prompt together. A range is read off the mean curve and has no
interval: prompts that jump at different doses make a mean that rises smoothly, so the spread of ``half`` over single prompts
is told beside it.

A gradient knows the slope at one end. f'(0) is what AtP (and EAP of edges) predicts, as a share of the full effect: 1 for a
line, 0 on a plateau.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.graph import Interval
from circuitfind.circuit.intervals import intervals, plain
from circuitfind.circuit.json_form import finite

FLAT = 0.25
"""A plateau moves at less than this share of the chord's slope,"""
WIDE = 0.2
"""and is at least so wide."""
STEEP = 0.25
"""A threshold is crossed, from a quarter to three quarters of the effect, in less than this; the chord takes 1/2."""
STRAIGHT = 0.02
"""A curve is a line when its departure, the upper end of its interval, is below this: f off by 0.02 on average."""
FAR = 0.1
"""Of the full effect, beyond which a curve leaves the way between its ends, and a prediction is off."""


@dataclass(frozen=True)
class DoseCurve:
    """What was measured when some parts were patched together by doses.

    Attributes:
        label: Their names.
        nodes, edges: Names of each.
        alphas: The doses, rising; 0 and 1 are among them.
        values: The metric.
        right: Whether the answer is likelier than the wrong one.
        slopes: The derivative of the metric in alpha, or None.
        eap_ig: What EAP-IG says that a full patch changes, the mean over prompts; None where it was not asked.
    """

    label: str
    nodes: tuple[str, ...]
    edges: tuple[str, ...]
    alphas: Float[np.ndarray, " alpha"]
    values: Float[np.ndarray, "alpha prompt"]
    right: Bool[np.ndarray, "alpha prompt"]
    slopes: Float[np.ndarray, "alpha prompt"] | None = None
    eap_ig: float | None = None

    def at(self, alpha: float) -> int:
        """The place of a dose that is there."""
        return int(np.abs(self.alphas - alpha).argmin())


@dataclass(frozen=True)
class Plateau:
    """A flat range of doses: its ends, and the share of the full effect that is reached on it."""

    start: float
    stop: float
    level: float


@dataclass(frozen=True)
class Shape:
    """What a curve between 0 and 1 looks like. Shares are of the full effect.

    Attributes:
        share: f at each dose, those beyond 0 and 1 too.
        half, departure, bend: See the module.
        plateaus: From left to right.
        threshold: The doses at which a quarter and three quarters are reached, where that is a jump.
        outside: The share that is farthest outside of 0 and 1 on the way, where it is far.
        reversal: How far the curve falls back below what it had reached before, where that is far.
        halves: Of the single prompts whose own effect has the sign of the mean: quartiles of the dose of half effect.
        counted: How many prompts those are.
        first, last: The slopes at 0 and at 1: 1 for a line. None without slopes.
        path: The slopes integrated over the doses; 1 but for the coarseness of the doses.
    """

    share: tuple[Interval, ...]
    half: Interval
    departure: Interval
    bend: Interval
    plateaus: tuple[Plateau, ...]
    threshold: tuple[float, float] | None
    outside: float | None
    reversal: float | None
    halves: tuple[float, float, float] | None
    counted: int
    first: Interval | None
    last: Interval | None
    path: Interval | None

    @property
    def straight(self) -> bool:
        """Whether it is a line as far as anybody can tell."""
        return self.departure.high < STRAIGHT


@dataclass(frozen=True)
class Reading:
    """A curve with its intervals.

    Attributes:
        metric, accuracy: At each dose.
        effect: m(1) - m(0).
        shape: None where the prompts cannot tell the effect from zero, so that shares of it mean nothing.
    """

    curve: DoseCurve
    metric: tuple[Interval, ...]
    accuracy: tuple[Interval, ...]
    effect: Interval
    shape: Shape | None

    @property
    def eap_ig(self) -> float | None:
        """What EAP-IG predicts, as a share of the full effect."""
        value = self.curve.eap_ig
        return None if value is None or self.shape is None else value / self.effect.value

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ends that are unbounded are null."""
        c, s = self.curve, self.shape
        doses = [
            {
                "alpha": float(alpha),
                "metric": plain(self.metric[i]),
                "accuracy": plain(self.accuracy[i]),
                "share": None if s is None else plain(s.share[i]),
                "slope": None if c.slopes is None else finite(float(c.slopes[i].mean())),
                "values": [float(x) for x in c.values[i]],
            }
            for i, alpha in enumerate(c.alphas)
        ]
        found = {"label": c.label, "nodes": list(c.nodes), "edges": list(c.edges), "doses": doses}
        return {**found, "effect": plain(self.effect), "shape": None if s is None else self._shape(s)}

    def _shape(self, s: Shape) -> dict[str, Any]:
        ends = {"slope_at_0": s.first, "slope_at_1": s.last, "along_the_path": s.path}
        return {
            "half": plain(s.half),
            "departure": plain(s.departure),
            "bend": plain(s.bend),
            "straight": s.straight,
            "plateaus": [vars(one) for one in s.plateaus],
            "threshold": s.threshold,
            "outside": s.outside,
            "reversal": s.reversal,
            "half_by_prompt": {"quartiles": s.halves, "prompts": s.counted},
            "predicted": {
                **{name: None if one is None else plain(one) for name, one in ends.items()},
                "eap_ig": self.eap_ig,
            },
        }


def read_curve(curve: DoseCurve, *, seed: int = 0) -> Reading:
    """Intervals of a curve, and its shape.

    Raises:
        ValueError: Doses 0 and 1 are not among its alphas, or they do not rise.
    """
    low, high = curve.at(0.0), curve.at(1.0)
    if curve.alphas[low] != 0 or curve.alphas[high] != 1 or (np.diff(curve.alphas) <= 0).any():
        raise ValueError("a curve needs the doses 0 and 1, and rising ones")

    def means(x: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, "draw column"]:
        return x

    metric = intervals(curve.values.T, means, seed=seed)
    accuracy = intervals(curve.right.T.astype(float), means, seed=seed)
    (effect,) = intervals((curve.values[high] - curve.values[low])[:, None], means, seed=seed)
    told = effect.low > 0 or effect.high < 0
    shape = _shape(curve, low, high, seed) if told else None
    return Reading(curve, tuple(metric), tuple(accuracy), effect, shape)


def _shape(curve: DoseCurve, low: int, high: int, seed: int) -> Shape:
    alphas, n = curve.alphas, len(curve.alphas)
    inner, slopes = slice(low, high + 1), curve.slopes
    between = alphas[inner]
    whole = float((curve.values[high] - curve.values[low]).mean())
    columns = [curve.values.T]
    if slopes is not None:
        path = area(slopes[inner].T, between)
        columns.append(np.stack([slopes[low], slopes[high], path], axis=1))

    def quantities(means: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, "draw quantity"]:
        total = means[:, [high]] - means[:, [low]]
        total = np.where(total * whole > 0, total, np.nan)
        f = (means[:, :n] - means[:, [low]]) / total
        off = f[:, inner] - between
        shape = (
            crossing(between, f[:, inner], 0.5),
            area(np.abs(off), between),
            area(off, between),
        )
        return np.column_stack([f, *shape, means[:, n:] / total])

    found = intervals(np.column_stack(columns), quantities, seed=seed)
    f = np.array([one.value for one in found[:n]])[inner]
    halves, counted = _halves(curve.values[inner], between, whole)
    half, departure, bend = found[n : n + 3]
    first, last, path_share = found[n + 3 :] if slopes is not None else (None, None, None)
    return Shape(
        share=tuple(found[:n]),
        half=half,
        departure=departure,
        bend=bend,
        plateaus=find_plateaus(between, f),
        threshold=find_threshold(between, f),
        outside=_outside(f),
        reversal=_reversal(f),
        halves=halves,
        counted=counted,
        first=first,
        last=last,
        path=path_share,
    )


def area(
    heights: Float[np.ndarray, "draw alpha"], alphas: Float[np.ndarray, " alpha"]
) -> Float[np.ndarray, " draw"]:
    """The area under each curve, by trapezoids."""
    return np.asarray(((heights[:, 1:] + heights[:, :-1]) / 2) @ np.diff(alphas))


def crossing(
    alphas: Float[np.ndarray, " alpha"], shares: Float[np.ndarray, "draw alpha"], level: float
) -> Float[np.ndarray, " draw"]:
    """The first dose at which each curve reaches a level, by linear interpolation; NaN where none does."""
    reached = shares >= level
    at = np.maximum(reached.argmax(1), 1)
    rows = np.arange(len(shares))
    below, above = shares[rows, at - 1], shares[rows, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (level - below) / (above - below)
    found = alphas[at - 1] + part * (alphas[at] - alphas[at - 1])
    return np.asarray(np.where(reached.any(1), found, np.nan))


def find_plateaus(
    alphas: Float[np.ndarray, " alpha"], shares: Float[np.ndarray, " alpha"]
) -> tuple[Plateau, ...]:
    """The ranges over which a curve is flat; see the module."""
    flat = np.abs(np.diff(shares) / np.diff(alphas)) < FLAT
    found = []
    for is_flat, steps in groupby(range(len(flat)), key=flat.__getitem__):
        some = list(steps)
        start, stop = some[0], some[-1] + 1
        if is_flat and alphas[stop] - alphas[start] > WIDE - 1e-9:
            level = float(shares[start : stop + 1].mean())
            found.append(Plateau(float(alphas[start]), float(alphas[stop]), level))
    return tuple(found)


def find_threshold(
    alphas: Float[np.ndarray, " alpha"], shares: Float[np.ndarray, " alpha"]
) -> tuple[float, float] | None:
    """The doses between which the middle half of the effect comes, where they are close."""
    low, high = (float(crossing(alphas, shares[None], level)[0]) for level in (0.25, 0.75))
    return (low, high) if high - low < STEEP else None


def _outside(shares: Float[np.ndarray, " alpha"]) -> float | None:
    high, low = float(shares.max()), float(shares.min())
    far = high if high - 1 >= -low else low
    return far if far > 1 + FAR or far < -FAR else None


def _reversal(shares: Float[np.ndarray, " alpha"]) -> float | None:
    back = float((np.maximum.accumulate(shares) - shares).max())
    return back if back > FAR else None


def _halves(
    values: Float[np.ndarray, "alpha prompt"], alphas: Float[np.ndarray, " alpha"], whole: float
) -> tuple[tuple[float, float, float] | None, int]:
    """Quartiles of the dose of half effect over prompts that have at least a tenth of the mean effect."""
    change = values - values[:1]
    own = change[-1] * math.copysign(1, whole) > abs(whole) / 10
    if not own.any():
        return None, 0
    each = crossing(alphas, (change[:, own] / change[-1, own]).T, 0.5)
    low, middle, high = np.quantile(each, [0.25, 0.5, 0.75])
    return (float(low), float(middle), float(high)), int(own.sum())


def table_of(reading: Reading) -> list[Mapping[str, float | str | None]]:
    """Rows for CSV: one for each dose."""
    shape = reading.shape
    rows: list[Mapping[str, float | str | None]] = []
    for i, alpha in enumerate(reading.curve.alphas):
        row: dict[str, float | str | None] = {"patched": reading.curve.label, "alpha": float(alpha)}
        for name, one in (("metric", reading.metric[i]), ("accuracy", reading.accuracy[i])):
            row |= {name: one.value, f"{name}_low": finite(one.low), f"{name}_high": finite(one.high)}
        share = None if shape is None else shape.share[i]
        row["share"] = None if share is None else share.value
        row["slope"] = None if reading.curve.slopes is None else float(reading.curve.slopes[i].mean())
        rows.append(row)
    return rows
