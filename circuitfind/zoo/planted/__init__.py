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
    from jaxtyping import Float
    from torch import Tensor

__all__ = [
    "COMPILED",
    "DESCRIPTIONS",
    "INNER",
    "NAMES",
    "NEURONS",
    "REDUNDANT",
    "Planted",
    "PlantedDictionary",
    "PlantedPair",
    "PlantedUnits",
    "build",
]

DESCRIPTIONS: dict[str, str] = {
    "induction": "A previous-token head and an induction head that reads it through its keys.",
    "ioi-planted": "A duplicate-token head, an S-inhibition head and a name-mover head, in a chain.",
    "and-gate": "Two heads that an MLP needs together: it fires only when both do.",
    "or-gate": "Two heads of which an MLP needs either: it saturates when one fires.",
}
NAMES: tuple[str, ...] = tuple(DESCRIPTIONS)
"""Models whose edges are known."""

DESCRIPTIONS |= {
    "gated-backup": "A head that answers, and one that answers only where the first one did not.",
    "ln-repair": "Two heads that answer; each weighs more without the other, through the final LayerNorm alone.",
    "relief": "A head that answers, and a later one that takes part of its answer back.",
    "co-workers": "Two heads that answer, each whatever the other does.",
    "three-way": "Two heads that answer, and one that answers only when neither of them does.",
    "single-blind": "Backups that do nothing at all as long as nothing is removed, beside decoys that do a little.",
    "second-order": "A head that answers, its backup, and a backup for when both are gone.",
    "ioi-redundant": "Name movers, backup name movers and negative ones, under LayerNorm.",
}
REDUNDANT: tuple[str, ...] = tuple(name for name in DESCRIPTIONS if name not in NAMES)
"""Models of which it is known what stands in for what; their edges are not listed."""

DESCRIPTIONS["inner-backup"] = "A head that feeds the one that answers, and a backup that feeds it instead."
INNER: tuple[str, ...] = ("inner-backup",)
"""The same, where it is not the logits that are written to but the input of a head (``Planted.reader``)."""

LOOKUPS: dict[str, str] = {
    "neuron-lookup": "Three facts, each of one MLP unit: a neuron, another, and a group that shares its work.",
    "gated-lookup": "The same in a gated MLP, whose neurons multiply two readings.",
    "saturated-lookup": "The same, but any member of the group can go: two neurons behind it round the sum.",
}
DESCRIPTIONS |= LOOKUPS
NEURONS: tuple[str, ...] = tuple(LOOKUPS)
"""Models of which every neuron is known, with dictionaries whose features are known (``Planted.units``)."""

PROGRAMS: dict[str, str] = {
    "tracr-reverse": "A sequence backwards, as Tracr would compile it: 2 true edges by resampling, 10 by zeroing.",
    "tracr-xproportion": "The share of x so far, as Tracr would compile it: 3 true edges by resampling, 5 by zeroing.",
}
DESCRIPTIONS |= PROGRAMS
COMPILED: tuple[str, ...] = tuple(PROGRAMS)
"""Models without any noise, whose true edges hang on the ablation."""

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
class PlantedDictionary:
    """A transcoder of one layer: what its MLP reads, normalised, to what the MLP adds to the stream, ``b_out`` included.

    ``features = act(x @ w_enc + b_enc)``, ``output = features @ w_dec + b_dec``. With ``threshold`` (JumpReLU) a feature is
    its pre-activation where that is above its threshold and 0 elsewhere; without, the activation is ReLU.
    """

    layer: int
    w_enc: Float[Tensor, "d_model feature"] = field(repr=False)
    b_enc: Float[Tensor, " feature"] = field(repr=False)
    w_dec: Float[Tensor, "feature d_model"] = field(repr=False)
    b_dec: Float[Tensor, " d_model"] = field(repr=False)
    threshold: Float[Tensor, " feature"] | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class PlantedUnits:
    """What is true of the neurons of a model, and dictionaries for its MLPs.

    Attributes:
        names: The units that do the work: ``m1.n3``, or ``m1.n4+9+12`` for neurons that do it together. Units in order of
            their layers.
        roles: Role by neuron, of each neuron that was written; the others are small noise.
        shares: How much of the behaviour, as a share, goes when this unit alone is ablated with corrupted activations,
            in the mean over prompts that are balanced (``pairs(6 n)``); a final norm moves it by a few hundredths.
        member_share: The same for one neuron of ``group``, which is a unit; at most so much.
        edges: As ``Planted.edges``, with the units in place of MLPs.
        features: The one feature that is what a unit is, by unit.
        feature_roles: Role by feature, of every one; that of a unit is the role of its neurons.
        dictionaries: One for each layer. Some of the weak neurons are in none, so that they miss a little.
    """

    names: tuple[str, ...]
    roles: dict[str, str]
    shares: dict[str, float]
    group: str
    member_share: float
    edges: dict[str, frozenset[str]]
    features: dict[str, str]
    feature_roles: dict[str, str] = field(repr=False)
    dictionaries: tuple[PlantedDictionary, ...] = field(repr=False)

    def with_role(self, role: str) -> tuple[str, ...]:
        """The neurons that have a role, in order."""
        return tuple(name for name, found in self.roles.items() if found == role)

    @property
    def feature_edges(self) -> dict[str, frozenset[str]]:
        """``edges`` with the features in place of the units."""
        return {
            ablation: frozenset(
                "->".join(self.features.get(end, end) for end in edge.split("->")) for edge in found
            )
            for ablation, found in self.edges.items()
        }


@dataclass(frozen=True, eq=False)
class Planted:
    """A model whose circuit is known because its weights were written.

    ``edges[ablation]`` are the true edges under that ablation, ``direction`` the direction of patching under
    which each of them shows, and ``note`` says why. A model of ``REDUNDANT`` lists no edges but what its heads
    are to each other, all of it for ablations at the answer position alone: ``primaries`` do the work in the
    clean run, ``classes`` says what others are to them (backup, second-order backup, relief, LN rescale,
    co-worker), and ``covers`` which heads must all be gone to wake a backup. ``reader`` is what they all write to.
    ``units`` goes below MLPs, in a model of ``NEURONS``.
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
    classes: dict[str, str] = field(default_factory=dict)
    covers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    primaries: tuple[str, ...] = ()
    reader: str = "logits"
    units: PlantedUnits | None = None

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
    if name not in DESCRIPTIONS:
        near = difflib.get_close_matches(name, DESCRIPTIONS, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no planted model {name!r} (there are {', '.join(DESCRIPTIONS)}){hint}")
    # Imported late: these need torch.
    from circuitfind.zoo.planted import gates, induction, ioi, ioi_redundant, neurons, redundant, tracr

    builders: dict[str, Callable[[int], Planted]] = {
        "induction": induction.build,
        "ioi-planted": ioi.build,
        "and-gate": gates.build_and,
        "or-gate": gates.build_or,
        **redundant.BUILDERS,
        "ioi-redundant": ioi_redundant.build,
        **neurons.BUILDERS,
        **tracr.BUILDERS,
    }
    return builders[name](seed)
