"""What came of a case, as plain data that crosses processes. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from circuitfind.check.baseline import Baseline
from circuitfind.check.cases import Case, Damaged
from circuitfind.check.reasons import Reason
from circuitfind.errors import DIFFERS, FAILURE, OK

Verdict = Literal["as expected", "differs", "skipped", "error"]


@dataclass(frozen=True)
class Outcome:
    """One case, run.

    Attributes:
        label, task, model, case, tier: Which.
        verdict: ``differs`` too where the run was refused; ``error`` where the program broke.
        reasons: Why it differs, the likeliest cause first.
        problem: Why it was skipped, or what broke.
        trace: Where it broke.
        seconds: Time that it took.
        folder: Its run folder.
        now: What was measured, for a new baseline.
        baseline: Where its baseline is, or will be.
        has_baseline: Whether there is one.
    """

    label: str
    task: str
    model: str
    case: str | None
    tier: int
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    problem: str | None = None
    trace: str | None = None
    seconds: float = 0.0
    folder: Path | None = None
    now: Baseline | None = field(default=None, repr=False)
    baseline: Path | None = None
    has_baseline: bool = False

    @property
    def first_reason(self) -> str | None:
        return self.reasons[0].text if self.reasons else self.problem

    @property
    def meets_expectations(self) -> bool:
        """Whether all that differs is the baseline."""
        return self.verdict in ("as expected", "differs") and all(
            reason.source == "baseline" for reason in self.reasons
        )

    @property
    def faithfulness(self) -> float | None:
        """Under the ablation of the run."""
        found = None if self.now is None else self.now.faithfulness
        return next(iter(found.values())) if found else None

    @property
    def edges(self) -> int | None:
        found = None if self.now is None else self.now.edges
        return None if found is None else len(found)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        now = None if self.now is None else self.now.as_dict()
        measured = None if now is None else {k: v for k, v in now.items() if k not in ("format", "weights")}
        return {
            "task": self.task,
            "model": self.model,
            "case": self.case,
            "tier": self.tier,
            "verdict": self.verdict,
            "faithfulness": self.faithfulness,
            "edges": self.edges,
            "seconds": round(self.seconds, 3),
            "reasons": [reason.as_dict() for reason in self.reasons],
            "problem": self.problem,
            "trace": self.trace,
            "folder": None if self.folder is None else str(self.folder),
            "baseline": str(self.baseline) if self.has_baseline else None,
            "measured": measured,
        }


def of_case(case: Case, verdict: Verdict, **more: Any) -> Outcome:
    """The outcome of a case."""
    return Outcome(
        label=case.label,
        task=case.spec.name,
        model=case.model,
        case=case.expect.name,
        tier=case.tier,
        verdict=verdict,
        **more,
    )


def of_damaged(damaged: Damaged, tier: int) -> Outcome:
    """A task file that cannot be read differs from what it should be."""
    text = f"{damaged.error.where}: {damaged.error.what}" if damaged.error.where else damaged.error.what
    reason = Reason("refused", "refusal", text, damaged.error.details)
    return Outcome(damaged.name, damaged.name, "", None, tier, "differs", (reason,))


def counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many there are of each verdict."""
    verdicts: tuple[Verdict, ...] = ("as expected", "differs", "skipped", "error")
    return {name: sum(one.verdict == name for one in outcomes) for name in verdicts}


def exit_code(outcomes: Sequence[Outcome], *, strict: bool = False) -> int:
    """3 where something broke, 1 where something differs (with ``strict`` also where something was not compared), else 0."""
    found = counts(outcomes)
    if found["error"]:
        return FAILURE
    missing = any(one.verdict == "skipped" or not one.has_baseline for one in outcomes)
    return DIFFERS if found["differs"] or (strict and missing) else OK
