"""The verdict: what is certified, and every way to be refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from circuitfind.circuit.graph import Evaluation, Interval
from circuitfind.errors import UsageError
from circuitfind.evidence.certify import certify, default_faithfulness, listed
from circuitfind.evidence.report import Control, Evidence, Prompts


def measured(value: float, low: float, high: float, ablation: str = "resample") -> Evaluation:
    return Evaluation(ablation, "logit-diff", Interval(value, low, high), value * 8, 8.0, 0.0, 64)


GOOD = Evidence(
    conditions={"task": "ioi", "model": "mini", "rule": "faithfulness 0.9"},
    edges=17,
    edges_in_model=1519,
    prompts=Prompts(True, 64, 64, Interval(1.0, 0.94, 1.0), Interval(8.0, 7.5, 8.5), "abc"),
    measured=(measured(0.9, 0.87, 0.93), measured(1.0, 0.95, 1.05, "mean")),
    controls=(
        Control("random circuits", "0 of 19", "faithfulness", 0.9, (0.0, 0.1), True, 0.05),
        Control(
            "shuffled weights", "x", "faithfulness", 0.9, (0.1,), True, difference=Interval(0.8, 0.7, 0.9)
        ),
    ),
)


def test_good_evidence_is_certified() -> None:
    verdict = certify(GOOD)
    assert verdict.certified
    assert not verdict.refuted
    assert not verdict.reasons
    assert verdict.holds_under == ("resample", "mean")
    assert str(verdict) == (
        "certified at faithfulness >= 0.8 with 95 % confidence under resample and mean ablation"
    )
    assert verdict.as_dict()["verdict"] == str(verdict)


@pytest.mark.parametrize(
    ("change", "reason", "refuted"),
    [
        ({"measured": (measured(0.9, 0.79, 0.93),)}, "is not surely 0.8", False),
        ({"measured": (measured(1.1, 1.0, 1.21),)}, "more than the model's own", False),
        ({"measured": ()}, "not measured under resample ablation", False),
        ({"controls": ()}, "not held against random circuits", False),
        (
            {"controls": (replace(GOOD.controls[0], beaten=False),)},
            "no better than random circuits: 0 of 19",
            True,
        ),
        (
            {"controls": (GOOD.controls[0], replace(GOOD.controls[1], beaten=False))},
            "no better than shuffled weights",
            True,
        ),
        ({"prompts": replace(GOOD.prompts, right=15)}, "only 15 prompts", False),
        (
            {"prompts": replace(GOOD.prompts, accuracy=Interval(0.6, 0.49, 0.7))},
            "no more than half of the prompts rightly (0.60 [0.49, 0.70])",
            True,
        ),
        ({"prompts": replace(GOOD.prompts, gap=Interval(0.1, -0.1, 0.3))}, "there may be no behaviour", True),
    ],
)
def test_each_fault_is_a_reason(change: dict[str, Any], reason: str, refuted: bool) -> None:
    verdict = certify(replace(GOOD, **change), ablations=("resample",))
    assert not verdict.certified
    assert verdict.refuted == refuted
    assert any(reason in one for one in verdict.reasons), verdict.reasons
    assert str(verdict).startswith("not certified at faithfulness >= 0.8")


def test_the_accuracy_that_the_task_asks_for_counts() -> None:
    low = replace(GOOD, prompts=replace(GOOD.prompts, accuracy=Interval(0.7, 0.6, 0.8)))
    assert certify(low).certified
    (reason,) = certify(low, min_accuracy=0.75).reasons
    assert reason == "the model answers 70% of the prompts rightly, not 75%"


def test_another_bar_and_other_ablations() -> None:
    assert certify(GOOD, faithfulness=0.87, ablations=("resample",)).certified
    assert not certify(GOOD, faithfulness=0.88, ablations=("resample",)).certified
    verdict = certify(GOOD, ablations=("mean", "zero"))
    assert verdict.holds_under == ("mean",)
    assert verdict.reasons == ("not measured under zero ablation",)
    assert "under resample ablation alone" in certify(GOOD, ablations=("resample",)).cautions


def test_a_control_on_too_few_prompts_refutes_nothing() -> None:
    lost = replace(GOOD, controls=(replace(GOOD.controls[0], beaten=False),))
    assert certify(lost).refuted
    few = certify(replace(lost, prompts=replace(GOOD.prompts, right=1)))
    assert not few.refuted
    assert not few.certified
    assert "only 1 prompt that the model answers rightly; 16 are needed" in few.reasons


def test_names_in_a_sentence() -> None:
    assert [listed(one) for one in ("", "a", "ab", "abc")] == ["no", "a", "a and b", "a, b and c"]


def test_prompts_that_are_not_new_are_a_caution() -> None:
    old = replace(GOOD, prompts=replace(GOOD.prompts, held_out=False))
    verdict = certify(old)
    assert verdict.certified
    assert any("pruned on" in one for one in verdict.cautions)
    unknown = certify(replace(GOOD, prompts=replace(GOOD.prompts, held_out=None)))
    assert unknown.certified
    assert any("is not known" in one for one in unknown.cautions)


@pytest.mark.parametrize(
    ("rule", "bar"),
    [
        ("faithfulness 0.9", 0.8),
        ("faithfulness 0.95, and 2 backups included", 0.85),
        ("edges 40", 0.8),
        ("as listed", 0.8),
        ("faithfulness 0.05", 0.0),
    ],
)
def test_the_bar_follows_from_how_a_circuit_was_pruned(rule: str, bar: float) -> None:
    assert default_faithfulness(rule) == pytest.approx(bar)


def test_evidence_goes_through_json_unchanged() -> None:
    full = GOOD.with_parts(by_template=[{"template": "1"}], completeness={"left": 0.1})
    text = json.dumps(full.as_dict(), allow_nan=False)
    again = Evidence.from_dict(json.loads(text))
    assert again.as_dict() == full.as_dict()
    assert again.controls[0].difference is None
    assert again.controls[1].difference == Interval(0.8, 0.7, 0.9)
    with pytest.raises(ValueError, match="no part"):
        GOOD.with_parts(nonsense=1)
    with pytest.raises(UsageError, match="version"):
        Evidence.from_dict({**json.loads(text), "version": 99})
    with pytest.raises(UsageError, match="incomplete"):
        Evidence.from_dict({**json.loads(text), "prompts": {}})
