"""The search at one reader: seeds, screen, verification, classes, a second round, groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.backups.classes import DORMANT, SAME, judge, judge_standing
from circuitfind.backups.cost import Cost
from circuitfind.backups.report import (
    Class,
    Estimate,
    Evidence,
    Finding,
    Group,
    RemovedSet,
    agreeing,
)
from circuitfind.backups.screen import Screen, Where, account, at_answers, screen
from circuitfind.backups.seeds import SeedSet, find_seeds, null_sets, seed_sets, written
from circuitfind.backups.statistics import interval
from circuitfind.backups.verify import Candidate, Verified, removed_values, verify
from circuitfind.config import DEFAULT_MIN_SHARE, DEFAULT_RATE, Ablation
from circuitfind.model.effects import DirectEffects
from circuitfind.names import Kind, Node, reader_name

REDUNDANT = 1.5
"""A group is redundant when losing all of it costs at least so many times what losing the primaries costs."""


@dataclass(frozen=True)
class Search:
    """Options of a search.

    Attributes:
        rate: False-discovery rate over components and sets.
        min_share: A component counts when it surely takes over at least this share of what was lost.
        nulls: Random sets, and shufflings of the answers, that a rise must exceed.
        inner: Inputs of heads that are searched beside the logits, chosen by what heads write to them.
        rounds: 2 looks for backups of backups, 1 does not.
        seed: Of bootstrap, random sets and shuffling.
    """

    rate: float = DEFAULT_RATE
    min_share: float = DEFAULT_MIN_SHARE
    nulls: int = 8
    inner: int = 1
    rounds: int = 2
    seed: int = 0


class Reading:
    """The search at one reader."""

    def __init__(
        self,
        effects: DirectEffects,
        number: int,
        ablations: Sequence[Ablation],
        options: Search,
        cost: Cost,
        looks: Float[np.ndarray, "writer prompt pos"] | None,
        circuit: Collection[Node],
        primaries: Sequence[Node],
    ) -> None:
        self._effects, self._number, self._ablations = effects, number, ablations
        self._options, self._cost, self._looks = options, cost, looks
        self._runs, self._anatomy = effects.runs, effects.runs.model.anatomy
        node, slot = effects.readers[number]
        self.name = reader_name(node, slot)
        self._at_end = node.kind is Kind.LOGITS
        self._given = [self._anatomy.row_of(p) for p in primaries]
        self._circuit = [self._anatomy.row_of(n) for n in circuit if n.kind is Kind.HEAD]
        self._shuffled = (
            range(len(effects.readers), len(effects.readers) + effects.n_shuffled)
            if self._at_end
            else range(0)
        )
        self.notes: list[str] = []
        self.removed: list[RemovedSet] = []
        self.findings: list[Finding] = []
        self.groups: list[Group] = []
        self.scores: dict[str, float] = {}

    @property
    def direct(self) -> Float[np.ndarray, "writer prompt"]:
        """Direct effects in the clean run."""
        return np.asarray(self._effects.clean[self._number])

    @cached_property
    def seeds(self) -> list[int]:
        return find_seeds(self._anatomy, self.direct, rate=self._options.rate, seed=self._options.seed)

    @cached_property
    def where(self) -> Where:
        """At the logits, what is removed is what a component writes at the answer position; else all that it writes."""
        return at_answers(self._runs.pairs) if self._at_end else None

    def run(self) -> None:
        """Everything, in order."""
        sets = self._sets()
        if not sets:
            self.notes.append(self._no_seeds())
            return
        screens = self._screens(sets)
        self._rank(screens)
        firsts = self._second_hand(screens, self._round(screens, {}, second=False))
        self._groups_and_second_round(screens, firsts)
        self._standing(screens)

    def _no_seeds(self) -> str:
        anatomy, mean = self._anatomy, self.direct.mean(1)
        best, total = max(anatomy.head_rows, key=lambda row: mean[row]), written(self.direct)
        return (
            f"{self.name}: no head writes a sure and material part of what is written there, so there is nothing to remove "
            f"(the most is {mean[best]:.2g} of {total:.2g}, by {anatomy.writers[best]}); name primaries, MLPs too, to try some"
        )

    def _sets(self) -> list[SeedSet]:
        if self._given:
            rows = tuple(self._given)
            found = [SeedSet("given", rows)]
            return found + [
                SeedSet(f"given {i + 1} alone", (row,)) for i, row in enumerate(rows) if len(rows) > 1
            ]
        if self._looks is None:
            return seed_sets(self.seeds, None, self._circuit)
        return seed_sets(self.seeds, self._looks.reshape(len(self._looks), -1), self._circuit)

    def _screens(self, sets: Sequence[SeedSet]) -> list[Screen]:
        """The sets, and random ones of the size of the largest, under every ablation."""
        options = self._options
        largest = max(sets, key=lambda s: len(s.rows)).rows
        nulls = null_sets(self._anatomy, largest, {*largest, *self.seeds}, options.nulls, seed=options.seed)
        if not nulls:
            self.notes.append(f"{self.name}: no other heads are left for random sets")
        found = [self._screen(sets, nulls, ablation, self._shuffled) for ablation in self._ablations]
        at = self._at_end
        self.removed = [
            RemovedSet(
                s.name,
                self._names(s.rows),
                self.name,
                tuple(account(f, i, self._anatomy, self._runs.clean, at_end=at) for f in found),
            )
            for i, s in enumerate(sets)
        ]
        return found

    def _screen(
        self, sets: Sequence[SeedSet], nulls: Sequence[SeedSet], ablation: Ablation, shuffled: Sequence[int]
    ) -> Screen:
        self._cost.counts["sets"] += len(sets) + len(nulls)
        with self._cost.of("screen"):
            return screen(
                self._effects,
                self._number,
                sets,
                nulls,
                ablation,
                self.where,
                shuffled=shuffled,
                seed=self._options.seed,
            )

    def _rank(self, screens: Sequence[Screen]) -> None:
        """How much of the positive direct effect each component takes over at the most, whatever is sure."""
        clean = self.direct.mean(1)
        total = float(np.clip(clean[self.seeds], 0, None).sum()) if self.seeds else 1.0
        rise = _second(
            np.array([np.clip(clean + s.mean, 0, None) - np.clip(clean, 0, None) for s in screens])
        )
        rise = np.where(np.isnan(screens[0].p), -np.inf, rise)
        for row, node in enumerate(self._anatomy.writers):
            best = float(rise[:, row].max())
            if np.isfinite(best):
                self.scores[str(node)] = best / total if total > 0 else 0.0

    # Candidates.

    def _round(
        self, screens: Sequence[Screen], before: Mapping[int, Class], *, second: bool
    ) -> dict[int, tuple[int, Class]]:
        """Candidates of some screens, verified and classed; returns set and class by row."""
        options = self._options
        each = [s.passes(rate=options.rate, share=options.min_share) for s in screens]
        agree = np.sum(each, axis=0)
        sure, some = agree >= agreeing(len(screens)), agree > 0
        chosen: dict[int, int] = {}
        for row in range(len(self._anatomy.writers)):
            if row in before:
                continue
            passing = sure if sure[:, row].any() else some
            if passing[:, row].any():
                chosen[row] = self._smallest(screens, passing[:, row], row)
        candidates = [Candidate(row, screens[0].sets[i].rows) for row, i in chosen.items()]
        with self._cost.of("verify"):
            checked = [
                verify(self._runs, candidates, [s.values[i] for i in chosen.values()], s.ablation, self.where)
                for s in screens
            ]
        self._cost.counts["candidates"] += len(candidates) * len(screens)
        found: dict[int, tuple[int, Class]] = {}
        for at, (row, i) in enumerate(chosen.items()):
            evidence = tuple(
                self._verified(self._evidence(s, i, row), s, i, v[at], sure=bool(ok[i, row]))
                for s, v, ok in zip(screens, checked, each, strict=True)
            )
            direct = self._estimate(self.direct[row])
            judged = judge(direct, evidence, share=options.min_share, second=second)
            if judged is None:
                continue
            kind, reasons = judged
            quiet = [
                abs(v[at].single.mean()) < DORMANT * s.lost_direct[i]
                for s, v in zip(screens, checked, strict=True)
            ]
            dormant = bool(sum(quiet) >= agreeing(len(screens)))
            covers = screens[0].sets[i].rows
            self._find(row, kind, covers, direct, evidence, reasons, dormant=dormant)
            found[row] = i, kind
        return found

    def _second_hand(
        self, screens: Sequence[Screen], firsts: Mapping[int, tuple[int, Class]]
    ) -> dict[int, tuple[int, Class]]:
        """A backup that needed another backup to be gone is a second-order one: seeds may hold half-awake backups."""
        backups = {row for row, (_, kind) in firsts.items() if kind == "backup"}
        later = {row for row in backups if backups & set(screens[0].sets[firsts[row][0]].rows)}
        names = {str(self._anatomy.writers[row]) for row in later}
        self.findings = [
            replace(f, kind="second-order backup") if f.name in names else f for f in self.findings
        ]
        return {
            row: (i, "second-order backup" if row in later else kind) for row, (i, kind) in firsts.items()
        }

    def _smallest(self, screens: Sequence[Screen], passing: Bool[np.ndarray, " set"], row: int) -> int:
        """The smallest set that wakes a component by at least half of the most that any does."""
        rise = _second(np.array([s.mean[:, row] for s in screens]))
        if rise[passing].max() <= 0:  # under one ablation alone
            rise = np.max([s.mean[:, row] for s in screens], axis=0)
        enough = np.flatnonzero(passing & (rise >= 0.5 * rise[passing].max()))
        return int(min(enough, key=lambda i: (len(screens[0].sets[i].rows), -rise[i])))

    def _evidence(self, found: Screen, i: int, row: int) -> Evidence:
        """What a screen says of a component when a set is removed."""
        rise, lost = found.change[i, row], float(found.lost_direct[i])
        return Evidence(
            ablation=found.ablation,
            direct_after=float(found.after(i, row, self.direct).mean()),
            compensation=self._estimate(rise),
            p=float(found.p[i, row]),
            share=float(rise.mean()) / lost if lost > 0 else 0.0,
            floor=float(found.floor[row]),
            sure=False,
            rescaled=float(found.rescaled(i, row, self.direct).mean()),
        )

    def _verified(self, seen: Evidence, found: Screen, i: int, checked: Verified, *, sure: bool) -> Evidence:
        """The same with what freezing and removing the component say."""
        freeze = float(checked.freeze.mean())
        # Others may repair more than was lost.
        lost = max(0.0, float((self._runs.clean - found.values[i]).mean()))
        return replace(
            seen,
            sure=sure,
            prevented=freeze / (lost + freeze) if freeze > 0 else 0.0,
            freeze=self._estimate(checked.freeze),
            interaction=self._estimate(checked.interaction),
            single=float(checked.single.mean()),
        )

    def _find(
        self,
        row: int,
        kind: Class,
        covers: Sequence[int],
        direct: Estimate,
        evidence: tuple[Evidence, ...],
        reasons: tuple[str, ...],
        *,
        dormant: bool = False,
    ) -> None:
        name = str(self._anatomy.writers[row])
        found = Finding(name, kind, self._names(covers), self.name, direct, evidence, dormant, reasons)
        self.findings.append(found)

    def _estimate(self, values: Float[np.ndarray, " prompt"]) -> Estimate:
        low, high = interval(values, seed=self._options.seed)
        return Estimate(float(values.mean()), float(low), float(high))

    # With the backups gone, too.

    def _groups_and_second_round(
        self, screens: Sequence[Screen], firsts: Mapping[int, tuple[int, Class]]
    ) -> None:
        by_set: dict[int, list[int]] = {}
        for row, (i, kind) in firsts.items():
            if kind == "backup":
                by_set.setdefault(i, []).append(row)
        if not by_set:
            return
        # Removed with their backups: what the group costs, and what wakes only then.
        sets = [
            SeedSet(f"{screens[0].sets[i].name} and backups", (*screens[0].sets[i].rows, *rows))
            for i, rows in by_set.items()
        ]
        larger = [self._screen(sets, [], s.ablation, ()) for s in screens]
        freed = self._freed(screens, by_set)
        for at, (i, rows) in enumerate(by_set.items()):
            self.removed[i] = replace(self.removed[i], found=self._names(rows), freed=freed[at])
            costs = [
                (s.ablation, s.values[i], both.values[at]) for s, both in zip(screens, larger, strict=True)
            ]
            self.groups.append(self._group(screens[0].sets[i].rows, rows, costs))
        if self._options.rounds > 1:
            seconds = [
                both.beyond(s, list(by_set), seed=self._options.seed)
                for s, both in zip(screens, larger, strict=True)
            ]
            self._round(seconds, {row: kind for row, (_, kind) in firsts.items()}, second=True)

    def _freed(
        self, screens: Sequence[Screen], by_set: Mapping[int, Sequence[int]]
    ) -> list[dict[str, float]]:
        """What the metric loses when the backups of each set keep their clean values, by ablation."""
        removed = [screens[0].sets[i].rows for i in by_set]
        found: list[dict[str, float]] = [{} for _ in by_set]
        for s in screens:
            with self._cost.of("verify"):
                frozen = removed_values(
                    self._runs, removed, s.ablation, self.where, held=list(by_set.values())
                )
            for of, i, values in zip(found, by_set, frozen, strict=True):
                of[str(s.ablation)] = float((s.values[i] - values).mean())
        return found

    def _group(
        self,
        primaries: Sequence[int],
        backups: Sequence[int],
        costs: Sequence[tuple[str, np.ndarray, np.ndarray]],
    ) -> Group:
        """What primaries cost alone and with their backups; the metric without them by ablation is given."""
        full = self._runs.clean
        lost = []
        for ablation, one, both in costs:
            alone, together = ((full - x).mean() / full.mean() for x in (one, both))
            lost.append((float(together - alone), float(alone), float(together), ablation))
        enough = [b > 0 and b >= REDUNDANT * a for _, a, b, _ in lost]
        redundant = sum(enough) >= agreeing(len(lost))
        _, alone, together, ablation = sorted(lost, reverse=True)[agreeing(len(lost)) - 1]
        names = self._names(primaries), self._names(backups)
        return Group(*names, self.name, alone, together, redundant, ablation)

    # What goes on as before.

    def _standing(self, screens: Sequence[Screen]) -> None:
        """Seeds that write the same when others are removed: co-workers, or rescaled by the final norm."""
        named = {f.name for f in self.findings}
        for row in self.seeds:
            name = str(self._anatomy.writers[row])
            sets = [i for i, s in enumerate(screens[0].sets) if row not in s.rows]
            if name in named or not sets:
                continue
            i = max(sets, key=lambda i: float(screens[0].lost_direct[i]))
            same = [abs(s.mean[i, row]) <= SAME * self.direct[row].mean() for s in screens]
            if sum(same) < agreeing(len(screens)):
                continue  # it goes with what was removed
            rescaled = [self._estimate(s.rescaled(i, row, self.direct)) for s in screens]
            direct = self._estimate(self.direct[row])
            kind, reasons = judge_standing(direct, min(rescaled, key=lambda e: e.value))
            evidence = tuple(self._evidence(s, i, row) for s in screens)
            self._find(row, kind, screens[0].sets[i].rows, direct, evidence, reasons)

    def _names(self, rows: Sequence[int]) -> tuple[str, ...]:
        return tuple(str(self._anatomy.writers[row]) for row in sorted(rows))


def _second(values: Float[np.ndarray, "ablation ..."]) -> Float[np.ndarray, ...]:
    """The second largest over ablations, so that two bear it out; the only one where there is one."""
    return np.asarray(np.sort(values, axis=0)[-agreeing(len(values))])
