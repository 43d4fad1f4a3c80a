"""Bootstrap intervals against slow plain references, by coverage, and where there is little or nothing to resample."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
import pytest

from circuitfind.circuit.intervals import (
    BOOTSTRAP,
    Kind,
    bootstrap_ratio,
    difference_interval,
    intervals,
    plain,
    ratio_interval,
    ratio_intervals,
)

KINDS: tuple[Kind, ...] = ("percentile", "bca")


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def skewed(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    bottom = rng.lognormal(1.0, 0.6, n)
    return 0.7 * bottom + rng.exponential(0.8, n) - 0.8, bottom


def slow_bca(top: list[float], bottom: list[float], seed: int, level: float) -> tuple[float, float]:
    """Efron's interval in plain Python, one draw and one prompt at a time."""
    n, normal = len(top), NormalDist()
    value = sum(top) / sum(bottom)
    draws = np.random.default_rng(seed).integers(0, n, size=(BOOTSTRAP, n))
    drawn = sorted(sum(top[i] for i in row) / sum(bottom[i] for i in row) for row in draws)
    z0 = normal.inv_cdf(sum((d < value) + (d == value) / 2 for d in drawn) / len(drawn))
    without = [
        sum(x for j, x in enumerate(top) if j != i) / sum(x for j, x in enumerate(bottom) if j != i)
        for i in range(n)
    ]
    centre = sum(without) / n
    cubes, squares = sum((centre - w) ** 3 for w in without), sum((centre - w) ** 2 for w in without)
    a = cubes / (6 * squares**1.5)
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        moved = z0 + normal.inv_cdf(tail)
        place = normal.cdf(z0 + moved / (1 - a * moved)) * (len(drawn) - 1)
        low = math.floor(place)
        ends.append(drawn[low] + (place - low) * (drawn[min(low + 1, len(drawn) - 1)] - drawn[low]))
    return ends[0], ends[1]


@pytest.mark.parametrize(("n", "level", "seed"), [(12, 0.95, 0), (30, 0.95, 1), (30, 0.8, 2)])
def test_bca_is_that_of_a_slow_reference(n: int, level: float, seed: int) -> None:
    top, bottom = skewed(n, seed)
    found = ratio_interval(top, bottom, seed=seed, level=level)
    low, high = slow_bca(list(top), list(bottom), seed, level)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert found.value == pytest.approx(top.sum() / bottom.sum(), abs=1e-12)
    percentile = ratio_interval(top, bottom, seed=seed, level=level, kind="percentile")
    assert (found.low, found.high) != (percentile.low, percentile.high), "nothing was corrected"


def test_percentiles_are_those_that_circuits_have() -> None:
    top, bottom = skewed(40, 3)
    found = ratio_interval(top, bottom, seed=7, kind="percentile")
    assert (found.low, found.high) == pytest.approx(bootstrap_ratio(top, bottom, seed=7), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_coverage(kind: Kind) -> None:
    """Of 400 data sets about 95 % have the true ratio in their interval."""
    hits = 0
    for trial in range(400):
        rng = np.random.default_rng(1000 + trial)
        bottom = rng.gamma(4.0, 0.75, 40)
        top = 0.8 * bottom + rng.gamma(2.0, 0.5, 40) - 1.0
        found = ratio_interval(top, bottom, seed=trial, kind=kind)
        hits += found.low <= 0.8 <= found.high
    assert 0.90 <= hits / 400 <= 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_coverage_of_a_difference(kind: Kind) -> None:
    """Circuits that share most of their noise: the paired interval holds the truth, and is far narrower than each one's."""
    hits, widths = 0, []
    for trial in range(400):
        rng = np.random.default_rng(5000 + trial)
        bottom = rng.normal(3.0, 0.6, 40)
        shared = 0.8 * bottom + rng.normal(0, 1.5, 40)
        one, other = shared + rng.normal(0, 0.3, 40), shared - 0.3 + rng.normal(0, 0.3, 40)
        found = difference_interval(one, other, bottom, seed=trial, kind=kind)
        hits += found.low <= 0.1 <= found.high
        if trial < 20:
            alone = ratio_interval(one, bottom, seed=trial, kind=kind)
            widths.append((found.high - found.low) / (alone.high - alone.low))
    assert 0.90 <= hits / 400 <= 0.98
    assert max(widths) < 0.6


def test_a_difference_is_one_ratio_less_the_other() -> None:
    top, bottom = skewed(25, 4)
    other = top - 0.3 * bottom
    found = difference_interval(top, other, bottom)
    assert found.value == pytest.approx(top.sum() / bottom.sum() - other.sum() / bottom.sum(), abs=1e-12)
    assert (found.value, found.low, found.high) == (
        pytest.approx(0.3),
        pytest.approx(0.3),
        pytest.approx(0.3),
    )
    same = difference_interval(top, top, bottom)
    assert (same.value, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_many_are_the_same_as_one_at_a_time(kind: Kind) -> None:
    bottom = skewed(20, 5)[1]
    tops = np.stack([skewed(20, seed)[0] for seed in range(6)])
    together = ratio_intervals(tops, bottom, seed=2, kind=kind)
    for top, found in zip(tops, together, strict=True):
        alone = ratio_interval(top, bottom, seed=2, kind=kind)
        assert vars(found) == pytest.approx(vars(alone), abs=1e-12)


def test_seed_and_level() -> None:
    top, bottom = skewed(20, 6)
    assert ratio_interval(top, bottom, seed=1) == ratio_interval(top, bottom, seed=1)
    assert ratio_interval(top, bottom, seed=1) != ratio_interval(top, bottom, seed=2)
    wide, narrow = ratio_interval(top, bottom, level=0.99), ratio_interval(top, bottom, level=0.5)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


# --- little or nothing to resample ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_prompt_says_nothing_of_the_spread(kind: Kind) -> None:
    found = ratio_interval(np.array([1.0]), np.array([2.0]), kind=kind)
    assert (found.value, found.low, found.high) == (0.5, -math.inf, math.inf)
    assert plain(found) == {"value": 0.5, "low": None, "high": None}


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_vary_has_no_width(kind: Kind) -> None:
    bottom = np.array([1.0, 2.0, 4.0, 8.0])
    for top, value in ((bottom, 1.0), (0 * bottom, 0.0), (bottom / 2, 0.5)):
        found = ratio_interval(top, bottom, kind=kind)
        assert (found.value, found.low, found.high) == (value, value, value)
    two = ratio_interval(np.array([1.0, 3.0]), np.array([2.0, 2.0]), kind=kind)
    assert (two.value, two.low, two.high) == (1.0, 0.5, 1.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_denominator_that_may_be_zero_gives_no_narrow_interval(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    bottom = rng.normal(0, 1, 30)
    bottom += 0.2 - bottom.mean()  # a tenth of its spread over zero
    found = ratio_interval(rng.normal(1, 0.1, 30), bottom, kind=kind)
    assert math.isfinite(found.value)
    assert (found.low, found.high) == (-math.inf, math.inf)
    # One prompt carries it all: a third of the draws have nothing to divide by.
    lonely = ratio_interval(np.eye(1, 9)[0], np.eye(1, 9)[0], kind=kind)
    assert (lonely.value, lonely.low, lonely.high) == (1.0, -math.inf, math.inf)


@pytest.mark.parametrize("kind", KINDS)
def test_negative_denominators_are_as_good_as_positive_ones(kind: Kind) -> None:
    top, bottom = skewed(20, 7)
    one, other = (ratio_interval(sign * top, sign * bottom, kind=kind) for sign in (1, -1))
    assert vars(one) == pytest.approx(vars(other), abs=1e-12)


def test_a_value_outside_of_all_draws_has_finite_ends() -> None:
    """A quantity that is largest for all prompts together: every draw is below it."""
    columns = np.column_stack([np.arange(6.0), np.arange(6.0) ** 2])

    def spread(means: np.ndarray) -> np.ndarray:
        return -np.abs(means[:, :1] - 2.5) - 1e-3 * (np.abs(means[:, 1:] - 55 / 6) > 0)

    (found,) = intervals(columns, spread)
    assert found.value == 0
    assert -math.inf < found.low <= found.high <= 0


def test_any_function_of_means() -> None:
    """A difference of absolute values, against drawing again by hand."""
    rng = np.random.default_rng(8)
    columns = rng.normal(0.2, 1, (15, 2))

    def statistic(means: np.ndarray) -> np.ndarray:
        return np.abs(means).sum(1, keepdims=True)

    (found,) = intervals(columns, statistic, seed=3, kind="percentile")
    draws = np.random.default_rng(3).integers(0, 15, size=(BOOTSTRAP, 15))
    slow = [abs(columns[row, 0].mean()) + abs(columns[row, 1].mean()) for row in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=1e-12)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: ratio_interval(np.ones(0), np.ones(0)), "no prompt"),
        (lambda: ratio_interval(np.ones(2), np.array([1.0, -1.0])), "denominator is zero"),
        (lambda: ratio_interval(np.array([1.0, math.nan]), np.ones(2)), "finite values"),
        (lambda: intervals(np.ones((3, 1)), lambda means: means * math.nan), "no finite value"),
    ],
)
def test_what_has_no_value_is_refused(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()
