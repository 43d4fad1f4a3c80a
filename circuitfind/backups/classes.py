"""From evidence to a class, and the reasons in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from circuitfind.backups.report import Class, Estimate, Evidence, agreeing

DORMANT = 0.05
"""A component whose removal alone costs less than this share of the lost direct effect is dormant."""
SAME = 0.25
"""A component goes on as before when its direct effect changes by less than this share of itself."""
RESCALED = 0.1
"""A standing writer is rescaled when the norm adds at least this share of its direct effect."""


def judge(
    direct: Estimate, evidence: Sequence[Evidence], *, share: float, second: bool
) -> tuple[Class, tuple[str, ...]] | None:
    """The class of a component that writes more when others are removed; None where no ablation bears it out.

    Args:
        direct: Its direct effect in the clean run.
        evidence: Under every ablation, verified.
        share: The least share of a loss that counts.
        second: Whether the removed components include backups.
    """
    doubts = {e.ablation: list(_doubts(direct, e, share)) for e in evidence}
    good = [e for e in evidence if not doubts[e.ablation]]
    if not good:
        return None
    reasons = [
        f"{e.ablation}: takes over {e.share:.0%} of the lost direct effect, prevents {e.prevented:.0%} of the loss"
        for e in good
    ]
    reasons += [f"{ablation}: {text}" for ablation, texts in doubts.items() for text in texts]
    if len(good) < agreeing(len(evidence)):
        return "uncertain", tuple(reasons)
    # Under resample ablation a head that suppresses what was written suppresses the wrong answer, up to the mirror image.
    if direct.high < 0 and any(e.direct_after <= abs(direct.value) for e in good):
        return "relief", (*reasons, "it works against the answer in the clean run")
    if not all(e.direct_after > 0 for e in good):
        return "uncertain", (*reasons, "it does not write the answer even when the others are gone")
    return ("second-order backup" if second else "backup"), tuple(reasons)


def _doubts(direct: Estimate, e: Evidence, share: float) -> Iterator[str]:
    """What speaks against a backup under one ablation."""
    assert e.freeze is not None
    assert e.interaction is not None
    if not e.sure:
        yield "its direct effect does not surely and materially rise"
    elif e.compensation.value < SAME * abs(direct.value):
        change = e.compensation.value / abs(direct.value)
        yield f"its direct effect changes by {change:.0%} of itself: it goes on as before"
    if not e.freeze.low > 0:
        yield "its change is not needed: frozen, nothing sure is lost"
    elif e.prevented < share:
        yield f"its change prevents {e.prevented:.1%} of the loss: a ripple"
    if not e.interaction.low > 0:
        yield "its removal costs no more without the others than with them"


def judge_standing(direct: Estimate, rescaled: Estimate) -> tuple[Class, tuple[str, ...]]:
    """The class of a component that writes towards the answer and goes on as before when others are removed."""
    rise = rescaled.value / direct.value
    if rescaled.low > 0 and rise >= RESCALED:
        return "LN rescale", (f"writes the same; the final norm raises its share by {rise:.0%}",)
    return "co-worker", ("writes the same, whatever is removed",)
