"""Whether there is a behaviour: exact intervals of shares, and the gap on all prompts. And prompts one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from circuitfind.evidence.behaviour import behaviour, proportion
from circuitfind.evidence.breakdown import by_template, outliers


def tail(k: int, n: int, p: float) -> float:
    """P(X >= k), by its definition."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (1, 5), (30, 64), (64, 64), (63, 64), (7, 7)])
def test_exact_intervals_of_a_share(hits: int, total: int) -> None:
    found = proportion(hits, total)
    assert found.value == hits / total
    if hits:
        assert tail(hits, total, found.low) == pytest.approx(0.025, abs=1e-6)
    else:
        assert found.low == 0
    if hits < total:
        assert 1 - tail(hits + 1, total, found.high) == pytest.approx(0.025, abs=1e-6)
    else:
        assert found.high == 1


@pytest.mark.slow
def test_the_interval_of_a_share_covers_it() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        found = proportion(int(rng.binomial(40, 0.8)), 40)
        inside += found.low <= 0.8 <= found.high
    assert inside / 400 >= 0.94, "Clopper and Pearson never cover less than they say, but for luck"


def test_wrong_answers_count_in_the_gap() -> None:
    full, empty = np.array([2.0, -2.0, 2.0, -2.0]), np.zeros(4)
    found = behaviour(full, empty, full > 0, held_out=True, content_hash="h")
    assert (found.aligned, found.right, found.accuracy.value, found.gap.value) == (4, 2, 0.5, 0.0)
    assert found.gap.low < 0 < found.gap.high


def test_templates_are_ratios_of_means() -> None:
    values, full = np.array([1.0, 3.0, 2.0, 2.0]), np.array([2.0, 4.0, 2.0, 2.0])
    first, second = by_template(values, full, np.zeros(4), ["b", "b", "a", "a"])
    assert first["template"] == "b"
    assert first["n_prompts"] == 2
    assert first["faithfulness"]["value"] == pytest.approx(4 / 6)
    assert second["faithfulness"]["value"] == pytest.approx(1.0)
    assert (first["circuit"], first["full"], first["empty"]) == (2.0, 3.0, 0.0)


def test_a_template_without_a_gap_has_no_number() -> None:
    (found,) = by_template(np.ones(3), np.zeros(3), np.zeros(3), ["a"] * 3)
    assert found["faithfulness"] == {"value": None, "low": None, "high": None}


def test_outliers_are_far_from_the_median() -> None:
    rng = np.random.default_rng(1)
    full = 8 + rng.normal(size=50)
    values = full - 0.8 + 0.1 * rng.normal(size=50)
    values[17] = 0.0
    values[4] = full[4] + 5
    found = outliers(values, full, np.zeros(50), [f"p{i}" for i in range(50)], [f"w{i}" for i in range(50)])
    assert [one["prompt"] for one in found] == ["p17", "p4"]
    assert found[0]["z"] < 0 < found[1]["z"]
    assert found[0]["miss"] == pytest.approx(-full[17] / full.mean())
    assert outliers(full, full, np.zeros(50), [""] * 50, [""] * 50) == [], "no spread, no outliers"
