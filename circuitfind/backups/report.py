"""What a search for backups found, as plain data. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from circuitfind.circuit.json_form import check_form, filled, reading
from circuitfind.config import SCHEMA_VERSION
from circuitfind.shown import Shown

FORMAT = "circuitfind.backups"

AGREEING = 2
"""Ablations that must speak for a backup; all, where there are fewer."""

Class = Literal["backup", "second-order backup", "relief", "uncertain", "LN rescale", "co-worker"]
CLASSES: tuple[Class, ...] = (
    "backup",
    "second-order backup",
    "relief",
    "uncertain",
    "LN rescale",
    "co-worker",
)
"""From the strongest claim to the weakest; a component with several is listed under the first."""

MEANING: dict[Class, str] = {
    "backup": "writes the answer when the removed heads do not: its change is needed, and more than additive",
    "second-order backup": "wakes only when the removed heads and their backups are gone",
    "relief": "works against the answer, and less so when the removed heads are gone",
    "uncertain": "some of the evidence of a backup, not all of it",
    "LN rescale": "writes what it always wrote; the final norm divides by less",
    "co-worker": "adds its part to the answer, whatever the removed heads do",
}


def agreeing(count: int) -> int:
    """How many of so many ablations must agree."""
    return min(AGREEING, count)


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Account:
    """Where a direct effect went when a set was removed, under one ablation; in units of the reading (logit difference).

    ``lost_direct - heads - mlps - norm - metric = lost``, up to ``gap``, which is measured and not set to zero.

    Attributes:
        lost_direct: Direct effect of the removed components, before less after.
        heads, mlps: Rise of the direct effects of all other heads and of all MLPs.
        norm: What the real norm adds beyond the one frozen at the clean scale.
        metric: What is left where the metric is not linear in the logits.
        lost: What the metric lost.
        gap: By how much the two sides differ.
    """

    ablation: str
    lost_direct: float
    heads: float
    mlps: float
    norm: float
    metric: float
    lost: float
    gap: float


@dataclass(frozen=True)
class RemovedSet:
    """Components that were removed together."""

    name: str
    members: tuple[str, ...]
    reader: str
    accounts: tuple[Account, ...]
    found: tuple[str, ...] = ()
    """Backups that were found by removing them."""
    freed: Mapping[str, float] = field(default_factory=dict)
    """By ablation: how much of the metric goes when ``found`` keep their clean values."""


@dataclass(frozen=True)
class Evidence:
    """What was measured of a component under one ablation.

    Attributes:
        direct_after: Its direct effect when ``covers`` are removed.
        compensation: The rise of its direct effect, with the norm frozen at its clean scale.
        p: One-sided p-value of the rise.
        share: The rise as a share of the direct effect that was lost.
        floor: The largest rise under random sets and shuffled answers; the rise must exceed it.
        sure: Whether the rise is sure, material and above the floor.
        freeze: What the metric loses when the component keeps its clean value. None where it was not measured.
        interaction: How much more its removal costs when ``covers`` are gone.
        prevented: ``freeze`` as a share of what would be lost without it: lost + freeze.
        single: What its removal alone costs.
        rescaled: What the norm adds to its direct effect.
    """

    ablation: str
    direct_after: float
    compensation: Estimate
    p: float
    share: float
    floor: float
    sure: bool
    freeze: Estimate | None = None
    interaction: Estimate | None = None
    prevented: float = 0.0
    single: float | None = None
    rescaled: float = 0.0


@dataclass(frozen=True)
class Finding:
    """A component and its class.

    Attributes:
        covers: What must be removed for it to act.
        reader: What it writes to: ``logits``, or an input of a head.
        direct: Its direct effect in the clean run.
        dormant: Whether removing it alone changes next to nothing.
        reasons: What speaks for its class, or is missing.
    """

    name: str
    kind: Class
    covers: tuple[str, ...]
    reader: str
    direct: Estimate
    evidence: tuple[Evidence, ...]
    dormant: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of the lost direct effect that it repairs: the second largest over ablations, so two bear it out."""
        shares = sorted((e.share for e in self.evidence), reverse=True)
        return shares[agreeing(len(shares)) - 1] if shares else 0.0


@dataclass(frozen=True)
class Group:
    """Components of which some can do without the others: the removal of ``primaries`` is repaired by ``backups``.

    Attributes:
        alone: What the metric loses when the primaries are removed, as a share of it, under ``ablation``.
        together: The same when the backups go too.
        ablation: Of all, the one with the second largest difference, so that two bear it out.
        redundant: Whether losing the whole group costs at least half as much again as losing the primaries.
    """

    primaries: tuple[str, ...]
    backups: tuple[str, ...]
    reader: str
    alone: float
    together: float
    redundant: bool
    ablation: str = ""


@dataclass(frozen=True)
class BackupReport(Shown):
    """All that a search found.

    Attributes:
        readers: What direct effects were measured on.
        seeds: By reader, components with a direct effect above zero, the largest first.
        sets: What was removed.
        findings: Of all components that have a class, the strongest claims first.
        groups: Redundant groups and those that turned out not to be.
        scores: By reader and component: how much of the positive direct effect it takes over at the most, a ranking.
        cost: ``screen`` and ``verify``: work in passes over all prompts through all layers; ``sets``, ``candidates``: counts.
        conditions: Task, model, metric, ablations and options.
    """

    readers: tuple[str, ...]
    seeds: Mapping[str, tuple[str, ...]]
    sets: tuple[RemovedSet, ...]
    findings: tuple[Finding, ...]
    groups: tuple[Group, ...]
    scores: Mapping[str, Mapping[str, float]]
    cost: Mapping[str, float]
    conditions: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def of_kind(self, *kinds: Class) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.kind in kinds)

    @property
    def backups(self) -> tuple[Finding, ...]:
        """First- and second-order backups."""
        return self.of_kind("backup", "second-order backup")

    def as_dict(self) -> dict[str, Any]:
        """The JSON form (docs/backups-json.md)."""
        return {"format": FORMAT, "version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: object, *, where: str | None = None) -> BackupReport:
        """Read the JSON form.

        Raises:
            UsageError: It is another format or version, or incomplete.
        """
        known: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
        again = "run `circuitfind backups` again"
        check_form(known, "backup report", FORMAT, SCHEMA_VERSION, where=where, hint=again)
        with reading("backup report", where=where, hint=again):
            fields = {
                "readers": tuple(known["readers"]),
                "seeds": {reader: tuple(names) for reader, names in known["seeds"].items()},
                "sets": tuple(_removed(s) for s in known["sets"]),
                "findings": tuple(_finding(f) for f in known["findings"]),
                "groups": tuple(
                    filled(Group, {**g, "primaries": tuple(g["primaries"]), "backups": tuple(g["backups"])})
                    for g in known["groups"]
                ),
                "scores": known["scores"],
                "cost": known["cost"],
                "conditions": known["conditions"],
                "notes": tuple(known["notes"]),
            }
            return filled(cls, fields)


def _removed(data: Mapping[str, Any]) -> RemovedSet:
    accounts = tuple(filled(Account, a) for a in data["accounts"])
    return filled(
        RemovedSet,
        {**data, "members": tuple(data["members"]), "accounts": accounts, "found": tuple(data["found"])},
    )


def _finding(data: Mapping[str, Any]) -> Finding:
    if data["kind"] not in CLASSES:
        raise ValueError(f"no class is named '{data['kind']}'")
    evidence = []
    for e in data["evidence"]:
        parts = {
            k: None if e[k] is None else filled(Estimate, e[k])
            for k in ("compensation", "freeze", "interaction")
        }
        evidence.append(filled(Evidence, {**e, **parts}))
    return filled(
        Finding,
        {
            **data,
            "covers": tuple(data["covers"]),
            "direct": filled(Estimate, data["direct"]),
            "evidence": tuple(evidence),
            "reasons": tuple(data["reasons"]),
        },
    )
