"""Models whose weights are written by hand, so that their circuit is known exactly.

Importing this package costs nothing; torch is imported when a model is built.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DESCRIPTIONS", "NAMES", "Planted", "PlantedPair", "build"]

DESCRIPTIONS: dict[str, str] = {
    "induction": "A previous-token head and an induction head that reads it through its keys.",
    "ioi-planted": "A duplicate-token head, an S-inhibition head and a name-mover head, in a chain.",
    "and-gate": "Two heads that an MLP needs together: it fires only when both do.",
    "or-gate": "Two heads of which an MLP needs either: it saturates when one fires.",
}
NAMES: tuple[str, ...] = tuple(DESCRIPTIONS)

# How often a pair is drawn again when it repeats an earlier one; the smallest model has far more pairs than a
# batch.
_TRIES = 50


@dataclass(frozen=True)
class PlantedPair:
    """Two prompts of one length that differ in one thing, the answer to the clean one, a wrong answer."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: int
    wrong: int
    positions: dict[str, int]


@dataclass(frozen=True, eq=False)
class Planted:
    """A model whose circuit is known because its weights were written.

    ``edges[ablation]`` are the true edges under that ablation, ``direction`` the direction of patching under
    which each of them shows, and ``note`` says why.
    """

    name: str
    seed: int
    description: str
    config: dict[str, Any] = field(repr=False)
    state: dict[str, Tensor] = field(repr=False)
    edges: dict[str, frozenset[str]]
    roles: dict[str, str]
    direction: str
    note: str
    draw: Callable[[int, random.Random], PlantedPair] = field(repr=False)

    def pairs(self, count: int, seed: int = 0) -> tuple[PlantedPair, ...]:
        """``count`` different pairs; a larger count begins with the pairs of a smaller one."""
        found: list[PlantedPair] = []
        seen: set[tuple[int, ...]] = set()
        for index in range(count):
            rng = random.Random(f"{self.name}/{self.seed}/{seed}/{index}")
            pair = self.draw(index, rng)
            for _ in range(_TRIES):
                if pair.clean not in seen:
                    break
                pair = self.draw(index, rng)
            seen.add(pair.clean)
            found.append(pair)
        return tuple(found)


def build(name: str, seed: int = 0) -> Planted:
    """Write the weights of a planted model; the seed draws its sizes, its places, its basis and its noise."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no planted model {name!r} (there are {', '.join(NAMES)}){hint}")
    # Imported late: these need torch.
    from circuitfind.zoo.planted import gates, induction, ioi

    builders: dict[str, Callable[[int], Planted]] = {
        "induction": induction.build,
        "ioi-planted": ioi.build,
        "and-gate": gates.build_and,
        "or-gate": gates.build_or,
    }
    return builders[name](seed)
