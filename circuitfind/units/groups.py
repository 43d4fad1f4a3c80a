"""Neurons that act together: what they do is not what single ones do.

In superposition a behaviour is spread over several neurons, which single ablation misses: each does little alone, or, where
something behind them saturates, nothing at all, and no gradient shows them either. They are found by what they have in
common: their activations differ between the two runs in the same way (units/alike.py).

1. Neurons that do little alone and move alike are replaced together, set by set.
2. Of a set that does enough, the members are those that contribute: the mean of what a neuron adds to the effect in random
   orders of the set (its Shapley value, sampled), which is zero for one that only fires beside the others.
3. The members are a group if they do much more together than the largest of them does alone.

The other way round, two that do much alone are a group if one takes away what the other adds: only what is left is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.names import Kind
from circuitfind.units.alike import Moves
from circuitfind.units.circuits import NodeCircuits

WEAK = 0.1
"""Neurons that do at most this share of what there is to explain, alone, may be members."""
JOINT = 0.05
"""A group does at least this share together,"""
MORE = 2.0
"""and so many times what its largest member does alone;"""
SURE = 4.0
"""and over prompts its effect is so many standard errors from zero: some hundred sets are tried in a model."""
TURNS = 6
"""A random order of a set is taken from as many starting points, evenly spaced, the end joined to the beginning: so each
neuron is replaced early, halfway and late. Where only the middle of the way matters, that takes much less noise off than as
many orders drawn apart."""
FEWEST, MOST = 3, 16
"""Orders that are drawn, each turned: enough to tell the standard error, and no more than this."""
NOISE = 0.15
"""More are drawn while the standard error of a Shapley value is above this share of an equal part, so that a member with an
equal part is three of them above the bar."""
PART = 0.5
"""A member contributes at least this share of an equal part: the bar is halfway between it and nothing."""

Effects = Callable[[list[Bool[np.ndarray, " member"]]], Float[np.ndarray, " set"]]
"""What the metric loses without some members of a set, subset by subset."""


@dataclass(frozen=True)
class Group:
    """Neurons of one layer that act together.

    Attributes:
        rows: Their rows in the list of writers.
        effect: What the metric loses when all are replaced.
        largest: The most that it loses by a single one of them; more than ``effect`` where they take away from each other.
        shares: What each contributes, in the order of ``rows``, to the effect of all neurons that move like them.
    """

    rows: tuple[int, ...]
    effect: float
    largest: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Shapley:
    """Shapley values of a set, sampled.

    Attributes:
        values: What each member contributes; they sum to the effect of the set.
        errors: Their standard errors.
        orders: Random orders behind them.
    """

    values: Float[np.ndarray, " member"]
    errors: Float[np.ndarray, " member"]
    orders: int


def find_groups(
    circuits: NodeCircuits,
    attribution: Float[np.ndarray, " writer"],
    exact: Mapping[int, float],
    *,
    seed: int = 0,
) -> list[Group]:
    """Groups in a model of which every neuron is a node, layer by layer.

    Args:
        circuits: Runs sets of them.
        attribution: Of every writer.
        exact: What the metric really loses without a writer, where that is known.
        seed: Of the random orders.
    """
    anatomy, found = circuits.runs.model.anatomy, []
    rng = np.random.default_rng(seed)
    alone = np.abs(attribution)
    for row, effect in exact.items():
        alone[row] = abs(effect)
    weak = alone <= WEAK * circuits.gap
    for layer in range(anatomy.n_layers):
        if any(node.kind is Kind.NEURON for node in anatomy.writers[anatomy.mlp_slice(layer)]):
            moves = Moves.of(circuits.runs, circuits.ablation, layer)
            sets = [_group(circuits, rows, rng) for rows in moves.sets(weak)]
            pairs = [_pair(circuits, *rows) for rows in moves.opposed(~weak)]
            found += [group for group in (*sets, *pairs) if group is not None]
    return found


def _group(circuits: NodeCircuits, rows: Sequence[int], rng: np.random.Generator) -> Group | None:
    """The group among neurons that move alike, if there is one."""
    joint = circuits.losses([_mask(circuits, rows)])[0]
    if abs(joint.mean()) < JOINT * circuits.gap or not _sure(joint):
        return None

    def effects(removed: list[Bool[np.ndarray, " member"]]) -> Float[np.ndarray, " set"]:
        return circuits.effects([_mask(circuits, np.array(rows)[some]) for some in removed])

    shapley = sampled_shapley(effects, len(rows), float(joint.mean()), rng)
    members = contributors(shapley.values)
    if len(members) < 2:
        return None
    chosen = [rows[member] for member in members]
    lost = circuits.losses([_mask(circuits, some) for some in (chosen, *([row] for row in chosen))])
    together, largest = float(lost[0].mean()), float(np.abs(lost[1:].mean(1)).max())
    if abs(together) < max(MORE * largest, JOINT * circuits.gap) or not _sure(lost[0]):
        return None
    return Group(tuple(chosen), together, largest, tuple(float(shapley.values[i]) for i in members))


def _pair(circuits: NodeCircuits, one: int, other: int) -> Group | None:
    """Two neurons that take away from each other as one node, if what they leave is worth one."""
    lost = circuits.losses([_mask(circuits, rows) for rows in ([one, other], [one], [other])])
    together, first, second = lost.mean(1).tolist()
    if first * second >= 0 or abs(together) < JOINT * circuits.gap or not _sure(lost[0]):
        return None
    shares = (together + first - second) / 2, (together + second - first) / 2
    return Group((one, other), together, max(abs(first), abs(second)), shares)


def _sure(lost: Float[np.ndarray, " prompt"]) -> bool:
    """Whether a loss is no accident of the prompts. Of a single prompt it is what it is."""
    if len(lost) < 2:
        return True
    return bool(abs(lost.mean()) > SURE * lost.std(ddof=1) / np.sqrt(len(lost)))


def sampled_shapley(effects: Effects, size: int, together: float, rng: np.random.Generator) -> Shapley:
    """Shapley values (Shapley 1953) over random orders, stratified by place (after Castro et al. 2017) by turning each.

    A subset that comes again is not run again. The turns of an order are one sample of the standard errors.

    Args:
        effects: Of subsets.
        size: Members of the set.
        together: The effect of all.
        rng: Draws the orders.
    """
    known = {np.zeros(size, dtype=bool).tobytes(): 0.0, np.ones(size, dtype=bool).tobytes(): together}
    turns = sorted({round(size * turn / TURNS) % size for turn in range(TURNS)})
    samples: list[Float[np.ndarray, " member"]] = []
    while True:
        drawn = rng.permutation(size)
        ways = [(order, _along(order)) for order in (np.roll(drawn, turn) for turn in turns)]
        new = {some.tobytes(): some for _, along in ways for some in along if some.tobytes() not in known}
        if new:
            known |= zip(new, effects(list(new.values())).tolist(), strict=True)
        sample = np.zeros(size)
        for order, along in ways:
            sample[order] += np.diff([known[some.tobytes()] for some in along]) / len(ways)
        samples.append(sample)
        if len(samples) < FEWEST:
            continue
        values = np.mean(samples, 0)
        errors = np.std(samples, 0, ddof=1) / np.sqrt(len(samples))
        if len(samples) == MOST or errors.max() <= NOISE * abs(together) / len(contributors(values)):
            return Shapley(values, errors, len(samples) * len(turns))


def _along(order: np.ndarray) -> list[Bool[np.ndarray, " member"]]:
    """The subsets from none to all along an order."""
    found = [np.zeros(len(order), dtype=bool)]
    for member in order:
        found.append(found[-1].copy())
        found[-1][member] = True
    return found


def contributors(shares: Float[np.ndarray, " member"]) -> list[int]:
    """Who contributes at least ``PART`` of an equal part, towards what all do.

    Equal parts are among those that are left: idle neurons in the set must not lower the bar.
    """
    towards = shares * (1.0 if shares.sum() > 0 else -1.0)
    kept = sorted(range(len(shares)), key=lambda i: -towards[i])
    while len(kept) > 1 and towards[kept[-1]] < PART * towards[kept].sum() / len(kept):
        kept.pop()
    return sorted(kept)


def _mask(circuits: NodeCircuits, rows: Sequence[int] | np.ndarray) -> Bool[np.ndarray, " writer"]:
    mask = np.zeros(len(circuits.runs.model.anatomy.writers), dtype=bool)
    mask[list(rows)] = True
    return mask
