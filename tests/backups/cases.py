"""Planted models with redundancy as runs, and what a search says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from circuitfind.backups.report import BackupReport
from circuitfind.backups.search import find_backups
from circuitfind.config import Ablation
from circuitfind.model.bridge import Model
from circuitfind.model.runs import Runs
from circuitfind.model.tl_format import boot_native
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs
from circuitfind.zoo.planted import Planted, build
from circuitfind.zoo.planted.ioi_redundant import build as build_ioi

PROMPTS = 64
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")
BACKUPS = ("backup", "second-order backup")
IOI = "ioi-redundant"
WITH_BACKUPS = ("gated-backup", "three-way", "single-blind", "second-order", IOI)
WITHOUT = ("ln-repair", "relief", "co-workers")


@dataclass(frozen=True)
class Case:
    """A planted model, what is true of it, and its prompts."""

    truth: Planted
    model: Model
    pairs: PromptPairs

    @property
    def runs(self) -> Runs:
        """Fresh ones."""
        return Runs(self.model, self.pairs, get_metric("logit-diff"))

    @property
    def backups(self) -> set[str]:
        return {name for name, kind in self.truth.classes.items() if kind in BACKUPS}

    def answered_by_others(self, seed: int) -> PromptPairs:
        """The prompts with the answers of other ones."""
        order = torch.randperm(len(self.pairs), generator=torch.Generator().manual_seed(seed)).tolist()
        made = [
            replace(pair, answer=self.pairs[other].answer, wrong=self.pairs[other].wrong)
            for pair, other in zip(self.pairs, order, strict=True)
        ]
        return PromptPairs(tuple(made), "shuffled")


@cache
def case(name: str, seed: int, backups: int | None = None) -> Case:
    """A planted model by name; ``backups`` asks for so many of them in ``ioi-redundant``."""
    truth = build(name, seed) if backups is None else build_ioi(seed, backups=backups)
    label = f"planted/{name}:{seed}"
    model = boot_native(truth.config, truth.state, label, torch.device("cpu"), label, source=label)
    made = [
        PromptPair(
            p.clean,
            p.corrupted,
            (p.answer,),
            (p.wrong,),
            len(p.clean) - 1,
            p.positions,
            "",
            "",
            "planted",
            "p",
        )
        for p in truth.pairs(PROMPTS)
    ]
    return Case(truth, model, PromptPairs(tuple(made), "planted"))


@cache
def found(name: str, seed: int, backups: int | None = None) -> BackupReport:
    """What the search says with nothing given."""
    return find_backups(case(name, seed, backups).runs, ABLATIONS)


def classes_of(report: BackupReport, reader: str = "logits") -> dict[str, str]:
    """The class of each component at a reader; of several the strongest claim."""
    classes: dict[str, str] = {}
    for finding in report.findings:
        if finding.reader == reader:
            classes.setdefault(finding.name, finding.kind)
    return classes


def seeds(
    names: Sequence[str], fast: int, every: int, missed: Mapping[tuple[str, int], str] | None = None
) -> pytest.MarkDecorator:
    """(name, seed): a few seeds of each at once, all of them in the slow tests; ``missed`` ones are known to fail."""
    found = []
    for name, seed in ((n, s) for n in names for s in range(every)):
        marks = [] if seed < fast else [pytest.mark.slow]
        if reason := (missed or {}).get((name, seed)):
            marks.append(pytest.mark.xfail(strict=True, reason=reason))
        found.append(pytest.param(name, seed, marks=marks, id=f"{name}-{seed}"))
    return pytest.mark.parametrize(("name", "seed"), found)
