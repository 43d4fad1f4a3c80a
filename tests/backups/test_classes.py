"""Every class and every doubt, from made-up evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from circuitfind.backups.classes import RESCALED, judge, judge_standing
from circuitfind.backups.report import CLASSES, MEANING, Estimate, Evidence

ASLEEP = Estimate(0.01, -0.02, 0.04)
AGAINST = Estimate(-2.0, -2.2, -1.8)
SURE, UNSURE, NEGATIVE = Estimate(1.0, 0.8, 1.2), Estimate(0.3, -0.1, 0.7), Estimate(-1.0, -1.2, -0.8)
GOOD = Evidence(
    ablation="resample",
    direct_after=1.5,
    compensation=Estimate(1.5, 1.2, 1.8),
    p=1e-9,
    share=0.6,
    floor=0.1,
    sure=True,
    freeze=SURE,
    interaction=SURE,
    prevented=0.5,
    single=0.0,
)
OTHER = replace(GOOD, ablation="mean")


def said(
    direct: Estimate, evidence: Sequence[Evidence], *, second: bool = False
) -> tuple[str, tuple[str, ...]]:
    found = judge(direct, evidence, share=0.02, second=second)
    assert found is not None
    return found


def test_every_class_has_a_meaning() -> None:
    assert set(MEANING) == set(CLASSES)
    assert len(set(CLASSES)) == len(CLASSES)


@pytest.mark.parametrize(("second", "kind"), [(False, "backup"), (True, "second-order backup")])
def test_a_backup(second: bool, kind: str) -> None:
    found, reasons = said(ASLEEP, [GOOD, OTHER], second=second)
    assert found == kind
    assert len(reasons) == 2
    assert reasons[0].startswith("resample: takes over 60%")
    assert reasons[1].startswith("mean: ")


def test_a_head_that_writes_already_may_be_a_backup_too() -> None:
    assert said(SURE, [GOOD, OTHER])[0] == "backup"


DOUBTS: dict[str, tuple[dict[str, object], str]] = {
    "no sure rise": ({"sure": False}, "does not surely"),
    "freeze unsure": ({"freeze": UNSURE}, "not needed"),
    "freeze negative": ({"freeze": NEGATIVE}, "not needed"),
    "a ripple": ({"prevented": 0.019}, "ripple"),
    "interaction unsure": ({"interaction": UNSURE}, "costs no more"),
    "interaction negative": ({"interaction": NEGATIVE}, "costs no more"),
}
every_doubt = pytest.mark.parametrize(("change", "reason"), list(DOUBTS.values()), ids=list(DOUBTS))


@pytest.mark.parametrize("where", [0, 1])
@every_doubt
def test_one_ablation_of_two_that_disagrees_is_a_doubt(change: Any, reason: str, where: int) -> None:
    evidence = [GOOD, OTHER]
    evidence[where] = replace(evidence[where], **change)
    for direct in (ASLEEP, AGAINST):
        for second in (False, True):
            found, reasons = said(direct, evidence, second=second)
            assert found == "uncertain"
            (doubt,) = [r for r in reasons if reason in r]
            assert doubt.startswith(evidence[where].ablation)


@every_doubt
def test_what_no_ablation_bears_out_is_nothing(change: Any, reason: str) -> None:
    evidence = [replace(e, **change) for e in (GOOD, OTHER)]
    assert judge(ASLEEP, evidence, share=0.02, second=False) is None


@every_doubt
def test_two_ablations_of_three_are_enough(change: Any, reason: str) -> None:
    third = replace(GOOD, ablation="zero", **change)
    found, reasons = said(ASLEEP, [GOOD, OTHER, third])
    assert found == "backup"
    assert any(r.startswith("zero") and reason in r for r in reasons)
    assert said(ASLEEP, [GOOD, replace(third, ablation="mean"), third])[0] == "uncertain"


def test_all_doubts_are_told() -> None:
    bad = replace(OTHER, sure=False, freeze=UNSURE, interaction=UNSURE)
    found, reasons = said(ASLEEP, [GOOD, bad])
    assert found == "uncertain"
    assert len(reasons) == 1 + 3


@pytest.mark.parametrize("after", [-1.5, -0.1, 0.2])
@pytest.mark.parametrize("second", [False, True])
def test_relief(after: float, second: bool) -> None:
    """Surely against the answer in the clean run, and not stronger for it afterwards under every ablation."""
    evidence = [replace(e, direct_after=after) for e in (GOOD, OTHER)]
    found, reasons = said(AGAINST, evidence, second=second)
    assert found == "relief"
    assert "against the answer" in reasons[-1]


def test_a_head_that_turns_round_is_a_backup() -> None:
    evidence = [replace(e, direct_after=2.5) for e in (GOOD, OTHER)]
    assert said(AGAINST, evidence)[0] == "backup"
    mixed = [evidence[0], replace(OTHER, direct_after=-1.0)]
    assert said(AGAINST, mixed)[0] == "relief", "resampling may turn it round alone"


def test_a_head_that_is_perhaps_against_is_no_relief() -> None:
    direct = Estimate(-0.1, -0.3, 0.1)
    after = [replace(e, direct_after=-0.05) for e in (GOOD, OTHER)]
    found, reasons = said(direct, after)
    assert found == "uncertain"
    assert "does not write the answer" in reasons[-1]


def test_what_never_writes_the_answer_is_no_backup() -> None:
    found, reasons = said(ASLEEP, [GOOD, replace(OTHER, direct_after=0.0)])
    assert found == "uncertain"
    assert "does not write the answer" in reasons[-1]


@pytest.mark.parametrize(
    ("rescaled", "kind"),
    [
        (Estimate(RESCALED * 2, 0.1, 0.3), "LN rescale"),
        (Estimate(RESCALED * 1.01, 0.05, 0.15), "LN rescale"),
        (Estimate(RESCALED * 0.99, 0.05, 0.15), "co-worker"),
        (Estimate(RESCALED * 2, -0.01, 0.5), "co-worker"),
        (Estimate(0.0, 0.0, 0.0), "co-worker"),
        (Estimate(-0.5, -0.6, -0.4), "co-worker"),
    ],
)
@pytest.mark.parametrize("size", [1.0, 7.0])
def test_what_stands_is_rescaled_or_works_along(rescaled: Estimate, kind: str, size: float) -> None:
    direct = Estimate(size, 0.9 * size, 1.1 * size)
    gain = Estimate(size * rescaled.value, size * rescaled.low, size * rescaled.high)
    found, (reason,) = judge_standing(direct, gain)
    assert found == kind
    if kind == "LN rescale":
        assert f"{rescaled.value:.0%}" in reason
