"""Candidates one by one: is the change needed, and does it matter more when the others are gone?

For a set P and a component u, with F the mean metric:

    freeze       F(P) - F(P, u keeps its clean value): what the change of u repairs, however it gets to the answer
    interaction  (F(P) - F(P + u)) - (F(empty) - F(u)): how much more u's removal costs without P than with it

Both zero for a component that does what it always did; the first isolates the change from the standing contribution, the
second is that of Wang et al. 2022 (arXiv 2211.00593) for backup name movers. All rows share batched passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitfind.backups.screen import Where, node_mask
from circuitfind.config import Ablation
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs

Prompts = Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class Candidate:
    """A component that writes more when some rows are removed."""

    row: int
    removed: tuple[int, ...]


@dataclass(frozen=True)
class Verified:
    """What each prompt's metric says of a candidate; units of the metric.

    Attributes:
        freeze, interaction: As above.
        single: What its removal alone costs.
    """

    freeze: Prompts
    interaction: Prompts
    single: Prompts


def verify(
    runs: Runs,
    candidates: Sequence[Candidate],
    without: Sequence[Prompts],
    ablation: Ablation,
    where: Where,
) -> list[Verified]:
    """Freezing and interaction of every candidate: two rows each, and one for each component alone.

    Args:
        runs: Prompts and metric.
        candidates: What is verified.
        without: For each candidate the metric when its set is removed, which the screen has measured.
        ablation: What removed components carry.
        where: At which tokens they are removed; None for all.
    """
    anatomy = runs.model.anatomy
    patches: dict[tuple[tuple[int, ...], int | None], Patch] = {}

    def row(removed: Sequence[int], held: int | None = None) -> tuple[tuple[int, ...], int | None]:
        key = tuple(sorted(removed)), held
        if key not in patches:
            mask = None if held is None else node_mask(anatomy, [held])
            patches[key] = Patch(nodes=node_mask(anatomy, removed), where=where, held=mask)
        return key

    wanted = [(row(c.removed, c.row), row([*c.removed, c.row]), row([c.row])) for c in candidates]
    values = dict(zip(patches, runs.patched(list(patches.values()), ablation=ablation), strict=True))
    found = []
    for left, (frozen, both, alone) in zip(without, wanted, strict=True):
        single = runs.clean - values[alone]
        found.append(Verified(left - values[frozen], left - values[both] - single, single))
    return found


def removed_values(
    runs: Runs,
    sets: Sequence[Sequence[int]],
    ablation: Ablation,
    where: Where,
    held: Sequence[Sequence[int]] = (),
) -> Float[np.ndarray, "set prompt"]:
    """The metric when each set is removed, with other components held at their clean values where those are given."""
    anatomy = runs.model.anatomy
    patches = [
        Patch(
            nodes=node_mask(anatomy, rows),
            where=where,
            held=node_mask(anatomy, held[i]) if held and len(held[i]) else None,
        )
        for i, rows in enumerate(sets)
    ]
    return runs.patched(patches, ablation=ablation)
