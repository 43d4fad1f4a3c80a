"""What to remove, found without labels.

Candidates for primaries are heads whose direct effect on a reader is above zero: what a head writes there is what others
could stand in for. Total effects would mislead, since a head whose removal is repaired has none. The sets to remove are
the strongest heads one by one, as growing groups (a backup may wake only when several are gone), as groups that look at
the same places, and as the heads of the circuit just found that write to the reader.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitfind.backups.statistics import discovered, interval, p_above_zero
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import Kind

LEAST = 0.02
"""A head with less than this share of all positive direct effects, those of MLPs among them, is no seed."""
ALONE = 4
"""Heads that are removed one by one."""
GROUPS = 8
"""Growing groups: the strongest 2, 3, ... seeds, and all; where there are more seeds, sizes are spread out."""
ALIKE = 0.8
"""Heads look at the same places when the cosine of their attention, over all prompts, is at least this."""


@dataclass(frozen=True)
class SeedSet:
    """Rows of writers that are removed together."""

    name: str
    rows: tuple[int, ...]


def find_seeds(
    anatomy: Anatomy,
    direct: Float[np.ndarray, "writer prompt"],
    *,
    rate: float,
    seed: int,
    mlps: bool = False,
) -> list[int]:
    """Heads (and MLPs, if asked) with a direct effect above zero, the largest first: significant, with an interval above
    zero, and material.
    """
    kinds = (Kind.HEAD, Kind.MLP) if mlps else (Kind.HEAD,)
    mean, (low, _) = direct.mean(1), interval(direct, seed=seed)
    chosen = np.array([node.kind in kinds for node in anatomy.writers])
    p = np.where(chosen, p_above_zero(direct), np.nan)
    # Of everything that is written, so that heads beside MLPs that do all the work are no seeds.
    least = LEAST * written(direct)
    sure = discovered(p, rate) & (low > 0) & (mean >= least)
    return [int(row) for row in np.argsort(-mean, kind="stable") if sure[row]]


def written(direct: Float[np.ndarray, "writer prompt"]) -> float:
    """All positive mean direct effects of heads and MLPs; row 0 is the input."""
    return float(np.clip(direct[1:].mean(1), 0, None).sum())


def seed_sets(
    seeds: Sequence[int],
    looks: Float[np.ndarray, "writer look"] | None,
    circuit: Collection[int] = (),
) -> list[SeedSet]:
    """The sets to remove, smaller ones first, no set twice.

    Args:
        seeds: Rows of heads, the strongest first.
        looks: Where each writer attends to, prompts side by side; None for no clusters.
        circuit: Rows of heads of a circuit that write to the reader.
    """
    found: list[SeedSet] = [
        SeedSet(f"strongest {i + 1} alone", (row,)) for i, row in enumerate(seeds[:ALONE])
    ]
    sizes: Sequence[int] = range(2, len(seeds) + 1)
    if len(sizes) > GROUPS:
        sizes = sorted({round(x) for x in np.geomspace(2, len(seeds), GROUPS)})
    found += [SeedSet(f"strongest {size}", tuple(seeds[:size])) for size in sizes]
    if looks is not None:
        found += [SeedSet(f"alike {i + 1}", rows) for i, rows in enumerate(clusters(seeds, looks))]
    members = tuple(row for row in seeds if row in set(circuit))
    if members:
        found.append(SeedSet("circuit", members))
    unique: dict[frozenset[int], SeedSet] = {}
    for each in found:
        unique.setdefault(frozenset(each.rows), each)
    return sorted(unique.values(), key=lambda s: len(s.rows))


def clusters(seeds: Sequence[int], looks: Float[np.ndarray, "writer look"]) -> list[tuple[int, ...]]:
    """Groups of two or more seeds that look at the same places: each joins the first group whose first member it is like."""
    groups: list[list[int]] = []
    for row in seeds:
        home = next((g for g in groups if _cosine(looks[g[0]], looks[row]) >= ALIKE), None)
        if home is None:
            groups.append([row])
        else:
            home.append(row)
    return [tuple(g) for g in groups if len(g) > 1]


def null_sets(
    anatomy: Anatomy, like: Sequence[int], avoid: Collection[int], count: int, *, seed: int
) -> list[SeedSet]:
    """Random sets of heads of the same layers and the same number in each, without those to avoid.

    Where a layer has too few others left, heads come from the nearest layers. Fewer sets where there are not so many.
    """
    rng = np.random.default_rng(seed)
    heads = [row for row in anatomy.head_rows if row not in set(avoid)]
    found: dict[frozenset[int], SeedSet] = {}
    for _ in range(8 * count):
        free, chosen = list(heads), []
        for row in like:
            if not free:
                break
            layer = anatomy.writers[row].layer
            nearest = min(abs(anatomy.writers[h].layer - layer) for h in free)
            near = [h for h in free if abs(anatomy.writers[h].layer - layer) == nearest]
            pick = near[int(rng.integers(len(near)))]
            free.remove(pick)
            chosen.append(pick)
        if chosen:
            found.setdefault(frozenset(chosen), SeedSet(f"random {len(found) + 1}", tuple(sorted(chosen))))
        if len(found) == count:
            break
    return list(found.values())


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0
