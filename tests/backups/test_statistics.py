"""P-values against tails of t that are integrated, intervals against their promise, discoveries against the textbook."""

from __future__ import annotations

from math import pi, sqrt

import numpy as np
import pytest

from circuitfind.backups.statistics import discovered, interval, p_above_zero


def tail(t: float, df: int) -> float:
    """P(T > t): with T = sqrt(df) tan(a) the density of the angle a is that of cos(a)^(df - 1), up to a constant."""

    def area(start: float) -> float:
        angles = np.linspace(start, pi / 2, 400_001)
        heights = np.cos(angles).clip(0) ** (df - 1)
        step = angles[1] - angles[0]
        return float(step * (heights.sum() - (heights[0] + heights[-1]) / 2))

    return area(np.arctan(t / sqrt(df))) / area(-pi / 2)


def sample(t: float, n: int) -> np.ndarray:
    """Numbers whose t statistic is t."""
    x = np.random.default_rng(n).exponential(size=n)
    x = (x - x.mean()) / x.std(ddof=1)
    return np.asarray(x + t / sqrt(n))


def test_the_integral_is_right_where_there_is_a_formula() -> None:
    for t in (-2.0, 0.0, 0.5, 3.0, 30.0):
        assert tail(t, 1) == pytest.approx(0.5 - np.arctan(t) / pi, rel=1e-6)
        assert tail(t, 2) == pytest.approx(0.5 - t / 2 / sqrt(2 + t * t), rel=1e-5)


@pytest.mark.parametrize(
    ("n", "error"), [(4, 0.15), (6, 0.12), (8, 0.09), (20, 0.04), (64, 0.01), (1000, 0.01)]
)
@pytest.mark.parametrize("t", [-3.0, -1.0, -0.1, 0.0, 0.3, 1.0, 2.0, 3.0, 5.0, 7.0])
def test_p_is_the_tail_of_t(n: int, error: float, t: float) -> None:
    """For few prompts it is a little too large far out, never much too small."""
    found, wanted = float(p_above_zero(sample(t, n))), tail(t, n - 1)
    assert found == pytest.approx(wanted, rel=error)
    assert found > 0.99 * wanted


def test_p_is_taken_along_the_last_axis() -> None:
    x = np.random.default_rng(0).normal(0.2, 1, (3, 4, 20))
    found = p_above_zero(x)
    assert found.shape == (3, 4)
    assert found[1, 2] == p_above_zero(x[1, 2])
    assert ((found > 0) & (found < 1)).all()


def test_p_falls_as_the_mean_rises_and_does_not_hang_on_units() -> None:
    ts = np.linspace(-5, 60, 200)
    found = [float(p_above_zero(sample(t, 12))) for t in ts]
    assert (np.diff(found) < 0).all()
    assert float(p_above_zero(1e-9 * sample(2, 12))) == pytest.approx(
        float(p_above_zero(sample(2, 12))), rel=1e-6
    )


@pytest.mark.parametrize(("value", "p"), [(2.0, 0.0), (0.0, 0.5), (-2.0, 1.0)])
def test_p_of_constants(value: float, p: float) -> None:
    assert float(p_above_zero(np.full(9, value))) == p


def test_p_of_one_prompt_is_never_significant() -> None:
    assert p_above_zero(np.array([[3.0], [-3.0], [0.0]])).tolist() == [0.5, 1.0, 1.0]


# --- intervals --------------------------------------------------------------------------------------------------


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    x = np.random.default_rng(3).normal(1.5, 2.0, (500, 64))
    for level, least, most in ((0.95, 0.92, 0.975), (0.5, 0.44, 0.56)):
        low, high = interval(x, seed=0, level=level)
        assert least <= float(((low <= 1.5) & (high >= 1.5)).mean()) <= most
        assert ((low < x.mean(-1)) & (x.mean(-1) < high)).all()


def test_intervals_are_as_wide_as_the_error_of_the_mean() -> None:
    x = np.random.default_rng(4).normal(size=(50, 200))
    low, high = interval(x, seed=1)
    width = 2 * 1.96 * x.std(-1) / sqrt(200)
    np.testing.assert_allclose(high - low, width, rtol=0.1)


def test_intervals_are_the_same_by_seed() -> None:
    x = np.random.default_rng(5).normal(size=(2, 3, 40))
    one, two, other = interval(x, seed=7), interval(x, seed=7), interval(x, seed=8)
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    assert one[0].shape == (2, 3)
    np.testing.assert_allclose(one[0][1, 2], interval(x[1, 2], seed=7)[0])


def test_the_interval_of_a_constant_is_that_number() -> None:
    low, high = interval(np.full((2, 30), 0.25), seed=0)
    np.testing.assert_allclose([low, high], 0.25)


# --- discoveries --------------------------------------------------------------------------------------------------


def textbook(p: np.ndarray, rate: float) -> np.ndarray:
    """The largest k with at least k hypotheses at or below k / m * rate; these are rejected. NaN is none."""
    known = [x for x in p.ravel().tolist() if x == x]
    bounds = [k / len(known) * rate for k in range(1, len(known) + 1)]
    good = [b for k, b in enumerate(bounds, 1) if sum(x <= b for x in known) >= k]
    return np.asarray(p <= max(good)) if good else np.zeros(p.shape, dtype=bool)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("seed", range(8))
def test_discoveries_are_those_of_the_textbook(seed: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random((7, 9)) ** rng.integers(1, 6)
    if seed % 2:
        p = np.round(p, 2)  # ties
    p[rng.random(p.shape) < 0.2] = np.nan
    found = discovered(p, rate)
    np.testing.assert_array_equal(found, textbook(p, rate))
    assert found.shape == p.shape


def test_discoveries_step_up() -> None:
    """The second alone would not do; the third takes all three along."""
    p = np.array([0.9, 0.030, 0.034, 0.036, 0.8])
    assert not discovered(p[:3], 0.05).any()
    np.testing.assert_array_equal(discovered(p, 0.06), [False, True, True, True, False])


@pytest.mark.parametrize(("p", "any_found"), [(0.0, True), (0.05, True), (0.0501, False), (1.0, False)])
def test_all_equal_are_all_found_or_none(p: float, any_found: bool) -> None:
    found = discovered(np.full((2, 5), p), 0.05)
    assert bool(found.all()) == any_found == bool(found.any())


def test_nothing_is_found_among_nothing() -> None:
    assert not discovered(np.full(4, np.nan), 0.5).any()
    assert discovered(np.zeros((0, 3)), 0.5).shape == (0, 3)
    np.testing.assert_array_equal(discovered(np.array([np.nan, 0.04]), 0.05), [False, True])


@pytest.mark.slow
def test_false_discoveries_are_as_rare_as_they_should_be() -> None:
    """30 real effects among 300, 100 times: the share of false ones among those found."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(100):
        x = rng.normal(size=(300, 40))
        x[:30] += 0.7
        found = discovered(p_above_zero(x), 0.1)
        shares.append(found[30:].sum() / max(1, found.sum()))
        assert found[:30].sum() > 10
    assert np.mean(shares) < 0.11
