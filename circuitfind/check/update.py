"""Writing baselines. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from circuitfind.check.cases import BASELINES
from circuitfind.check.outcome import Outcome
from circuitfind.output.files import write_atomic
from circuitfind.output.links import below


@dataclass
class Update:
    """What became of the baselines.

    Attributes:
        rewritten, new: Files that were written.
        left: Labels of cases whose baseline was not, since their expectations do not hold or they did not come to an end.
        settled: Labels of cases that differed from nothing but a baseline that was rewritten.
    """

    rewritten: list[Path] = field(default_factory=list)
    new: list[Path] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)


def update(outcomes: Sequence[Outcome], *, force: bool = False) -> Update:
    """Write the baseline of each case that has none or differs from it; each file whole or not at all.

    Args:
        outcomes: What was run.
        force: Write those too whose expectations do not hold; and all others, changed or not.

    Raises:
        UsageError, RunError: A file cannot be written, or the folder beside the task is a link that leads out.
    """
    made = Update()
    for one in outcomes:
        if one.verdict == "skipped":
            continue
        if one.now is None or not one.now.complete or one.baseline is None:
            made.left.append(one.label)
            continue
        if one.verdict == "error" or not (one.meets_expectations or force):
            made.left.append(one.label)
            continue
        if one.has_baseline and not one.reasons and not force:
            continue
        folder = one.baseline.parent
        if folder.name == BASELINES:  # beside a task that may have come with links
            below(folder.parent, f"{BASELINES}/{one.baseline.name}")
        write_atomic(one.baseline, one.now.text())
        (made.rewritten if one.has_baseline else made.new).append(one.baseline)
        if one.meets_expectations:
            made.settled.add(one.label)
    return made
