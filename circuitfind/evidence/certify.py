"""The verdict on a circuit: certified at a faithfulness under some ablations, or refused, with every reason. No torch here.

A circuit is certified when

1. the model does the task on prompts that the circuit was not pruned on: enough of them answered rightly, more than half
   at 95 % confidence, and the metric above what is left with every edge ablated;
2. under each ablation the 95 % interval of its faithfulness there lies between f and 2 - f: a circuit that does much
   better than the model does not do what the model does either;
3. it does better than every control that could be made, and random circuits of its size could be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuitfind.circuit.graph import Evaluation, Interval
from circuitfind.evidence.report import Evidence
from circuitfind.shown import Shown

MARGIN = 0.1
"""How far below the target that a circuit was pruned to it is certified when nothing else is asked for."""

ENOUGH = 16
"""Prompts below which nothing is certified."""

NEEDED = "random circuits"
"""The control that a certificate cannot be without."""


@dataclass(frozen=True)
class Verdict(Shown):
    """What can be said of a circuit.

    Attributes:
        certified: Whether everything that was asked for holds.
        faithfulness: What it had to reach.
        ablations: Under which.
        holds_under: Under which of these it does, all else aside.
        refuted: Whether the model does not do the task, or a control does as well as the circuit on enough prompts: worse
            than a number that is too low.
        reasons: Why it is refused; empty if it is certified.
        cautions: What a reader of a certificate should know.
    """

    certified: bool
    faithfulness: float
    ablations: tuple[str, ...]
    holds_under: tuple[str, ...]
    refuted: bool
    reasons: tuple[str, ...]
    cautions: tuple[str, ...]

    def __str__(self) -> str:
        under = f"at faithfulness >= {self.faithfulness:g} with 95 % confidence under {listed(self.ablations)} ablation"
        if self.certified:
            return f"certified {under}"
        return f"not certified {under}: {'; '.join(self.reasons)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with the whole verdict in words as ``verdict``."""
        listed = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**listed, "verdict": str(self)}


def default_faithfulness(rule: str) -> float:
    """What a circuit of a rule is held to: a little less than it was pruned to."""
    words = rule.split(",", maxsplit=1)[0].split()
    target = float(words[1]) if len(words) == 2 and words[0] == "faithfulness" else 0.9
    return round(max(0.0, target - MARGIN), 6)


def certify(
    evidence: Evidence,
    *,
    faithfulness: float | None = None,
    ablations: Sequence[str] = (),
    min_accuracy: float = 0.0,
) -> Verdict:
    """Weigh the evidence.

    Args:
        evidence: On one circuit.
        faithfulness: What must be reached; a little less than what the circuit was pruned to if None.
        ablations: Under which; all that were measured if empty.
        min_accuracy: Share of prompts that the model must answer rightly.
    """
    wanted = faithfulness if faithfulness is not None else default_faithfulness(evidence.conditions["rule"])
    asked = tuple(ablations) or tuple(one.ablation for one in evidence.measured)
    behaviour, controls = _behaviour(evidence, min_accuracy), _controls(evidence)
    holds, missed = [], []
    for name in asked:
        found = evidence.under(name)
        problem = f"not measured under {name} ablation" if found is None else _misses(found, wanted)
        if problem is None:
            holds.append(name)
        else:
            missed.append(problem)
    reasons = (*_too_little(evidence), *behaviour, *controls, *missed)
    return Verdict(
        certified=not reasons,
        faithfulness=wanted,
        ablations=asked,
        holds_under=tuple(holds),
        refuted=bool(behaviour) or (bool(controls) and evidence.prompts.right >= ENOUGH),
        reasons=reasons,
        cautions=_cautions(evidence, asked),
    )


def _too_little(evidence: Evidence) -> list[str]:
    found, right = [], evidence.prompts.right
    if right < ENOUGH:
        prompts = f"{right} prompt{'' if right == 1 else 's'}"
        found.append(f"only {prompts} that the model answers rightly; {ENOUGH} are needed")
    if not any(one.name == NEEDED and one.beaten is not None for one in evidence.controls):
        found.append(f"not held against {NEEDED}")
    return found


def _behaviour(evidence: Evidence, min_accuracy: float) -> list[str]:
    prompts, found = evidence.prompts, []
    if prompts.aligned < ENOUGH:
        return []
    if prompts.accuracy.value < min_accuracy:
        found.append(
            f"the model answers {prompts.accuracy.value:.0%} of the prompts rightly, not {min_accuracy:.0%}"
        )
    elif not prompts.accuracy.low > 0.5:
        found.append(
            f"the model may answer no more than half of the prompts rightly ({_interval(prompts.accuracy)})"
        )
    if not prompts.gap.low > 0:
        found.append(f"there may be no behaviour: the metric's gap is {_interval(prompts.gap)}")
    return found


def _controls(evidence: Evidence) -> list[str]:
    return [f"no better than {one.name}: {one.what}" for one in evidence.controls if one.beaten is False]


def _misses(found: Evaluation, wanted: float) -> str | None:
    """Why an evaluation does not bear out a faithfulness."""
    share = found.faithfulness
    if not share.low >= wanted:
        return f"faithfulness {_interval(share)} under {found.ablation} ablation is not surely {wanted:g}"
    if not share.high <= 2 - wanted:
        return f"faithfulness {_interval(share)} under {found.ablation} ablation is more than the model's own"
    return None


def _cautions(evidence: Evidence, asked: Sequence[str]) -> tuple[str, ...]:
    found = []
    if evidence.prompts.held_out is None:
        found.append("which prompts it was found on is not known: some may be among these")
    elif not evidence.prompts.held_out:
        found.append("measured on the prompts that it was pruned on: the task has too few others")
    found += [f"not held against {one.name}: {one.what}" for one in evidence.controls if one.beaten is None]
    few = next(
        (one for one in evidence.controls if one.name == NEEDED and one.beaten and one.p_value > 0.05), None
    )
    if few is not None:
        found.append(f"the model has only about {len(few.values)} other circuits of {evidence.edges} edges")
    if len(asked) == 1:
        found.append(f"under {asked[0]} ablation alone")
    return tuple(found)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: ``a``, ``a and b``, ``a, b and c``."""
    *first, last = names or ("no",)
    return f"{', '.join(first)} and {last}" if first else last


def _interval(found: Interval) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
