"""Which components write more when a set is removed: one ablated run for each set shows all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.backups.report import Account
from circuitfind.backups.seeds import SeedSet, written
from circuitfind.backups.statistics import discovered, interval, p_above_zero
from circuitfind.config import Ablation
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.effects import DirectEffects
from circuitfind.model.node_pass import Patch
from circuitfind.names import Kind, reader_name
from circuitfind.task.pairs import PromptPairs

MATERIAL = 0.05
"""A set is searched when its direct effect is at least this share of all positive ones."""

Where = Bool[np.ndarray, "prompt pos"] | None


@dataclass(frozen=True)
class Screen:
    """Seed sets and null sets under one ablation, as one reader sees them.

    Attributes:
        sets: What was removed.
        values: The metric when it is.
        change: Rise of every writer's direct effect.
        read: How the reading changes; ``bent`` is the real norm's part of it.
        lost_direct: Mean direct effect that the removed components lost.
        floor: By component, the largest mean rise under null sets and shuffled answers.
        p: One-sided p-value of each rise; NaN for removed components and those that cannot write to the reader.
        low: Lower end of the interval of each rise.
        scale: What the final norm multiplies by, as a ratio to the clean run.
        written: All positive mean direct effects on the reader in the clean run, MLPs' among them.
        before: A rise that is not counted here, since a smaller set had brought it about; None for none.
    """

    ablation: Ablation
    sets: tuple[SeedSet, ...]
    values: Float[np.ndarray, "set prompt"]
    change: Float[np.ndarray, "set writer prompt"]
    read: Float[np.ndarray, "set prompt"]
    bent: Float[np.ndarray, "set prompt"]
    lost_direct: Float[np.ndarray, " set"]
    floor: Float[np.ndarray, " writer"]
    p: Float[np.ndarray, "set writer"]
    low: Float[np.ndarray, "set writer"]
    scale: Float[np.ndarray, "set prompt"]
    written: float
    before: Float[np.ndarray, "set writer prompt"] | None = None

    def after(
        self, i: int, row: int, direct: Float[np.ndarray, "writer prompt"]
    ) -> Float[np.ndarray, " prompt"]:
        """The direct effect of a component when a set is removed, with the norm frozen."""
        after = direct[row] + self.change[i, row]
        return np.asarray(after if self.before is None else after + self.before[i, row])

    def rescaled(
        self, i: int, row: int, direct: Float[np.ndarray, "writer prompt"]
    ) -> Float[np.ndarray, " prompt"]:
        """What the real norm adds to that."""
        return np.asarray(self.after(i, row, direct) * (self.scale[i] - 1))

    def beyond(self, first: Screen, sets: Sequence[int], *, seed: int) -> Screen:
        """The same seen from smaller sets of another screen: what rises beyond what had risen there."""
        before = first.change[list(sets)]
        change = self.change - before
        p = np.where(np.isnan(self.p), np.nan, p_above_zero(change))
        low, _ = interval(change, seed=seed)
        return replace(self, change=change, before=before, p=p, low=low, floor=first.floor)

    @property
    def mean(self) -> Float[np.ndarray, "set writer"]:
        """Mean rise of each component."""
        return np.asarray(self.change.mean(-1))

    def passes(self, *, rate: float, share: float) -> Bool[np.ndarray, "set writer"]:
        """Where a rise is real and material.

        Args:
            rate: False-discovery rate over all components and sets.
            share: The least share of the lost direct effect that counts.
        """
        # A set that wrote next to nothing has nothing to be repaired.
        worth = (self.lost_direct > 0) & (self.lost_direct >= MATERIAL * self.written)
        least = np.where(worth, share * self.lost_direct, np.inf)[:, None]
        # The lower end, not the mean, so that what is near the cut is not found in one draw of prompts and lost in the next.
        found = discovered(self.p, rate) & (self.low >= least) & (self.mean > self.floor)
        return np.asarray(found)


def node_mask(anatomy: Anatomy, rows: Sequence[int]) -> Bool[np.ndarray, " writer"]:
    """True for the writers of these rows."""
    mask = np.zeros(len(anatomy.writers), dtype=bool)
    mask[list(rows)] = True
    return mask


def at_answers(pairs: PromptPairs) -> Bool[np.ndarray, "prompt pos"]:
    """True at each prompt's answer position."""
    out = np.zeros((len(pairs), max(len(p.clean) for p in pairs)), dtype=bool)
    out[np.arange(len(pairs)), [p.answer_position for p in pairs]] = True
    return out


def screen(
    effects: DirectEffects,
    number: int,
    sets: Sequence[SeedSet],
    nulls: Sequence[SeedSet],
    ablation: Ablation,
    where: Where,
    *,
    shuffled: Sequence[int] = (),
    seed: int = 0,
) -> Screen:
    """Remove each set and see what every component writes then.

    Args:
        effects: Readers.
        number: The one in question.
        sets: What to remove.
        nulls: Random sets to compare with.
        ablation: What removed components carry.
        where: At which tokens they are removed; None for all.
        shuffled: Readings whose answers belong to other prompts.
        seed: Of the bootstrap.
    """
    anatomy = effects.runs.model.anatomy
    every = [*sets, *nulls]
    seen = effects.observe([Patch(nodes=node_mask(anatomy, s.rows), where=where) for s in every], ablation)
    change, count = seen.change[number], len(sets)
    removed = np.stack([node_mask(anatomy, s.rows) for s in every])
    others = ~removed & _can_write(anatomy, effects, number)[None]
    mean = change.mean(-1)
    floor = np.zeros(len(anatomy.writers))
    if nulls:
        floor = np.maximum(floor, np.where(others[count:], mean[count:], 0.0).max(0))
    for other in shuffled:
        floor = np.maximum(floor, np.where(others[:count], seen.change[other][:count].mean(-1), 0.0).max(0))
    p = np.where(others, p_above_zero(change), np.nan)[:count]
    low, _ = interval(change[:count], seed=seed)
    lost = -np.where(removed, mean, 0.0).sum(1)[:count]
    read, bent, scale = (x[number][:count] for x in (seen.read, seen.bent, seen.scale))
    return Screen(
        ablation,
        tuple(sets),
        seen.values[:count],
        change[:count],
        read,
        bent,
        lost,
        floor,
        p,
        low,
        scale,
        written(effects.clean[number]),
    )


def _can_write(anatomy: Anatomy, effects: DirectEffects, number: int) -> Bool[np.ndarray, " writer"]:
    """Heads and MLPs below a reader."""
    node, slot = effects.readers[number]
    column = anatomy.reader_index[reader_name(node, slot)]
    return np.asarray(anatomy.edge_mask[:, column] & (np.arange(len(anatomy.writers)) > 0))


def account(
    found: Screen, number: int, anatomy: Anatomy, clean: Float[np.ndarray, " prompt"], *, at_end: bool
) -> Account:
    """The accounts of one set: everything that the metric lost, by where it went.

    For an input of a head in place of the logits, what is accounted for is the reading of that input.
    """
    mean = found.mean[number]
    kinds = np.array([w.kind for w in anatomy.writers])
    removed = node_mask(anatomy, found.sets[number].rows)
    heads = float(mean[(kinds == Kind.HEAD) & ~removed].sum())
    # What the embedding writes changes for no one, unless it was removed itself.
    mlps = float(mean[(kinds == Kind.MLP) & ~removed].sum())
    lost_direct, norm = float(found.lost_direct[number]), float(found.bent[number].mean())
    read = -float(found.read[number].mean())
    lost = float((clean - found.values[number]).mean()) if at_end else read
    gap = lost_direct - heads - mlps - norm - read
    return Account(found.ablation, lost_direct, heads, mlps, norm, read - lost, lost, gap)
