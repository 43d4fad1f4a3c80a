"""Shapes of dose-response curves that are known: lines, plateaus, steps, curves that turn back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.dose import (
    DoseCurve,
    Reading,
    crossing,
    find_plateaus,
    read_curve,
    table_of,
)
from circuitfind.output.dose_text import chart, sentences

ALPHAS = np.linspace(0, 1, 21)


def reading(shape: Any, *, prompts: int = 40, noise: float = 0.1, slope: Any = None, **keys: Any) -> Reading:
    """A curve that goes from 8 to -2 in the way of a function of the dose, prompts scattered about it."""
    rng = np.random.default_rng(0)
    alphas = keys.pop("alphas", ALPHAS)
    level, size = rng.normal(8, 1, prompts), rng.normal(-10, noise, prompts)
    values = level + np.array([shape(a) for a in alphas])[:, None] * size
    slopes = None if slope is None else np.array([slope(a) for a in alphas])[:, None] * size
    return read_curve(DoseCurve("a0.h0", ("a0.h0",), (), alphas, values, values > 0, slopes, **keys))


def step(a: float) -> float:
    return min(1.0, max(0.0, (a - 0.45) / 0.1))


def text_of(found: Reading) -> str:
    return "\n".join(f"{title}: {text}" for title, text in sentences(found))


def test_a_line_is_a_line() -> None:
    found = reading(lambda a: a, slope=lambda a: 1.0, eap_ig=-10.0)
    s = found.shape
    assert s is not None
    assert s.straight
    assert s.departure.value == pytest.approx(0, abs=1e-9)
    assert s.half.value == pytest.approx(0.5)
    assert (s.plateaus, s.threshold, s.outside, s.reversal) == ((), None, None, None)
    for share in (s.first, s.last, s.path):
        assert share is not None
        assert share.value == pytest.approx(1)
    assert found.eap_ig == pytest.approx(1, abs=0.02)
    assert found.effect.value == pytest.approx(-10, abs=0.1)
    assert "a straight line" in text_of(found)
    assert text_of(found).count("right") == 3


def test_a_step_has_two_plateaus_and_a_threshold() -> None:
    found = reading(step, slope=lambda a: 0.0)
    s = found.shape
    assert s is not None
    assert not s.straight
    assert [(p.start, p.stop) for p in s.plateaus] == [(0.0, pytest.approx(0.45)), (pytest.approx(0.55), 1.0)]
    assert [p.level for p in s.plateaus] == pytest.approx([0, 1])
    assert s.threshold == pytest.approx((0.475, 0.525))
    assert s.departure.value == pytest.approx(0.225, abs=0.002)
    assert s.bend.value == pytest.approx(0, abs=1e-6)
    assert s.halves is not None
    assert s.halves[0] == pytest.approx(s.halves[2])
    text = text_of(found)
    assert "flat from alpha 0 to 0.45, at 0 % of the effect: small doses do nothing" in text
    assert "under-estimates" in text
    assert "AtP, the slope at alpha 0, predicts 0 % [0, 0] of the effect: blind to it" in text


def test_early_and_late_curves_lean() -> None:
    early, late = reading(lambda a: math.sqrt(a)).shape, reading(lambda a: a**3).shape
    assert early is not None
    assert late is not None
    assert early.bend.low > 0.1
    assert late.bend.high < -0.1
    assert early.departure.value == pytest.approx(2 / 3 - 1 / 2, abs=0.01)
    assert late.departure.value == pytest.approx(1 / 2 - 1 / 4, abs=0.01)
    assert late.half.value == pytest.approx(0.5 ** (1 / 3), abs=0.01)


def test_curves_that_overshoot_or_turn_back() -> None:
    over = reading(lambda a: a + math.sin(math.pi * a)).shape
    assert over is not None
    assert over.outside == pytest.approx(1.551, abs=0.01)
    back = reading(lambda a: a + 0.3 * math.sin(2 * math.pi * a)).shape
    assert back is not None
    assert back.outside is None
    assert back.reversal == pytest.approx(0.6 * math.sin(0.7 * math.pi) - 0.3)


def test_prompts_that_jump_at_different_doses_make_a_smooth_mean() -> None:
    at = np.linspace(0.1, 0.9, 40)
    values = np.where(ALPHAS[:, None] > at[None], -1.0, 1.0)
    found = read_curve(DoseCurve("x", (), (), ALPHAS, values, values > 0)).shape
    assert found is not None
    assert found.threshold is None
    assert found.halves is not None
    assert found.halves[2] - found.halves[0] > 0.3
    assert found.counted == 40


def test_a_line_through_few_doses_is_no_line_if_the_slopes_say_otherwise() -> None:
    few = np.array([0, 0.5, 1.0])
    told = text_of(reading(lambda a: a, slope=lambda a: 0.3 if not a else 1.0, alphas=few))
    assert "not those of a line" in told
    assert "says it all" not in told
    assert "says it all" in text_of(reading(lambda a: a, slope=lambda a: 1.0, alphas=few))


def test_no_effect_has_no_shape() -> None:
    rng = np.random.default_rng(1)
    values = 5 + rng.normal(0, 1, (21, 30))
    found = read_curve(DoseCurve("x", (), (), ALPHAS, values, values > 0))
    assert found.shape is None
    assert "cannot tell it from zero" in text_of(found)
    assert found.as_dict()["shape"] is None
    assert table_of(found)[0]["share"] is None


def test_one_prompt_has_unbounded_intervals() -> None:
    found = reading(lambda a: a, prompts=1)
    assert found.shape is None
    assert found.as_dict()["effect"]["low"] is None


def test_doses_beyond_the_ends_leave_the_shape_alone() -> None:
    alphas = np.array([-0.5, 0, 0.25, 0.5, 0.75, 1, 1.5])
    found = reading(lambda a: a, alphas=alphas)
    assert found.shape is not None
    assert found.shape.departure.value == pytest.approx(0, abs=1e-9)
    assert found.shape.share[0].value == pytest.approx(-0.5)
    assert len(found.as_dict()["doses"]) == 7


@pytest.mark.parametrize("alphas", [[0, 0.5], [0.5, 1], [0, 1, 0.5]])
def test_a_curve_needs_its_ends(alphas: list[float]) -> None:
    values = np.zeros((len(alphas), 3))
    with pytest.raises(ValueError, match="needs the doses"):
        read_curve(DoseCurve("x", (), (), np.array(alphas, dtype=float), values, values > 0))


def test_crossings_are_interpolated() -> None:
    alphas = np.array([0.0, 0.5, 1.0])
    found = crossing(alphas, np.array([[0, 0.25, 1], [0, 1, 1], [0, 0.1, 0.2]]), 0.5)
    np.testing.assert_allclose(found, [0.5 + 0.5 / 3, 0.25, np.nan])
    flat = find_plateaus(np.array([0, 0.1, 0.2, 0.5, 1.0]), np.array([0, 0.5, 0.51, 0.5, 1.0]))
    assert [(one.start, one.stop) for one in flat] == [(0.1, 0.5)]
    assert flat[0].level == pytest.approx((0.5 + 0.51 + 0.5) / 3)


@pytest.mark.parametrize("blocks", [True, False])
def test_the_chart_fits_and_shows_the_curve(blocks: bool) -> None:
    lines = chart(reading(step), width=72, blocks=blocks)
    assert max(map(len, lines)) <= 72
    assert len(lines) == 14
    mark = "●" if blocks else "o"
    body = "\n".join(lines)
    assert body.count(mark) == 21
    assert body.isascii() is not blocks
    assert lines[0].count(mark) + lines[1].count(mark) + lines[2].count(mark) >= 8, "the plateau above"
