"""Shapley values of sets whose effects are known, who of a set contributes, and which neurons are looked at together."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from circuitfind.units.alike import Moves
from circuitfind.units.groups import MOST, PART, TURNS, _sure, contributors, sampled_shapley


def by_all_orders(values: dict[bytes, float], size: int) -> np.ndarray:
    found = np.zeros(size)
    orders = list(permutations(range(size)))
    for order in orders:
        some = np.zeros(size, dtype=bool)
        for member in order:
            before = values[some.tobytes()]
            some[member] = True
            found[member] += (values[some.tobytes()] - before) / len(orders)
    return found


def subsets(size: int) -> list[np.ndarray]:
    return [np.array([bool(number >> i & 1) for i in range(size)]) for number in range(2**size)]


@pytest.mark.parametrize("seed", range(6))
def test_sampled_values_are_those_over_all_orders(seed: int) -> None:
    """A random game: errors are what they are said to be, and the values sum to the effect of all."""
    rng = np.random.default_rng(seed)
    values = {some.tobytes(): float(rng.normal() + some.sum()) for some in subsets(6)}
    values[bytes(6)] = 0.0
    together = values[np.ones(6, dtype=bool).tobytes()]
    asked: list[bytes] = []

    def effects(removed: list[np.ndarray]) -> np.ndarray:
        asked.extend(some.tobytes() for some in removed)
        return np.array([values[some.tobytes()] for some in removed])

    found = sampled_shapley(effects, 6, together, np.random.default_rng(seed))
    assert found.values.sum() == pytest.approx(together)
    assert len(asked) == len(set(asked)) <= 2**6 - 2
    assert found.orders <= MOST * TURNS
    away = np.abs(found.values - by_all_orders(values, 6))
    assert (away < 5 * found.errors + 1e-9).all()


@pytest.mark.parametrize("size", [2, 3, 9, 20])
def test_an_additive_set_is_known_at_once(size: int) -> None:
    parts = np.arange(1.0, size + 1)
    found = sampled_shapley(
        lambda removed: np.array([parts[some].sum() for some in removed]),
        size,
        float(parts.sum()),
        np.random.default_rng(0),
    )
    assert found.values == pytest.approx(parts)
    assert found.errors.max() < 1e-9
    assert found.orders <= 3 * TURNS


@pytest.mark.parametrize("idle", [0, 5, 20])
@pytest.mark.parametrize("size", [5, 8, 12])
def test_members_of_a_saturated_set_are_told_from_idle_ones(size: int, idle: int) -> None:
    """All that is done is lost between a third and two thirds of the members: equal parts, and none for the idle."""

    def effects(removed: list[np.ndarray]) -> np.ndarray:
        gone = np.array([some[:size].mean() for some in removed])
        return np.clip((gone - 0.35) / 0.3, 0, 1)

    for seed in range(5):
        found = sampled_shapley(effects, size + idle, 1.0, np.random.default_rng(seed))
        assert found.values[size:] == pytest.approx(0)
        assert contributors(found.values) == list(range(size))


def test_idle_ones_do_not_lower_the_bar() -> None:
    shares = np.array([1.0, 0.0, PART - 0.2, 0.9, -0.4, 0.01] + [0.0] * 50)
    assert contributors(shares) == [0, 3]
    assert contributors(-shares) == [0, 3]
    assert contributors(np.array([1.0, PART + 0.3, 1.0])) == [0, 1, 2]
    assert contributors(np.array([5.0, 0.1])) == [0]


def test_an_effect_that_prompts_disagree_on_is_not_sure() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=64)
    assert not _sure(noise)
    assert _sure(noise + 1.0)
    assert _sure(-noise - 1.0)
    assert _sure(np.array([0.3]))
    assert not _sure(np.zeros(5))


# --- neurons that move alike --------------------------------------------------------------------------------


def moves(changes: list[list[float]], writes: list[list[float]]) -> Moves:
    """From how neurons differ and what they write, at rows 10, 11, ...; those first that do most."""
    change, write = np.array(changes), np.array(writes)
    size = np.linalg.norm(change, axis=1) * np.linalg.norm(write, axis=1)
    order = np.argsort(-size, kind="stable")

    def cosines(x: np.ndarray) -> np.ndarray:
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return unit @ unit.T

    drives = cosines(change[order])
    return Moves(10 + order, size[order], drives, drives * cosines(write[order]))


ALL = np.ones(40, dtype=bool)


def test_sets_are_of_neurons_that_move_alike_whatever_they_write() -> None:
    found = moves(
        [[2, 0, 0], [1.5, 0.2, 0], [-1, 0.1, 0], [0, 1, 0], [0, 0.9, 0.1], [0, 0, 0.5]],
        [[1, 0], [0, 1], [1, 1], [1, 0], [0, 1], [1, 0]],
    )
    assert found.sets(ALL) == [[10, 11, 12], [13, 14]]
    allowed = ALL.copy()
    allowed[11] = False
    assert found.sets(allowed) == [[10, 12], [13, 14]]
    allowed[[10, 13]] = False
    assert found.sets(allowed) == []


def test_two_that_undo_each_other_are_in_no_set() -> None:
    found = moves(
        [[1, 0], [0.5, 0], [-2, 0], [1, 0], [1, 0]],
        [[1, 0], [-1.9, 0], [0, 1], [0.1, 1], [1, 1]],
    )
    assert found.undone[np.argsort(found.rows)].tolist() == [True, True, False, False, False]
    assert found.sets(ALL) == [[12, 13, 14]]
    assert found.sets(ALL & (np.arange(40) != 10)) == [[12, 13, 14]]  # also by one that may not be a member
    assert found.opposed(ALL) == [(12, 13)]


def test_each_undoes_one_at_the_most() -> None:
    found = moves([[1, 0], [1, 0], [1, 0]], [[1, 0], [-1, 0], [-0.9, 0]])
    assert found.undone[np.argsort(found.rows)].tolist() == [True, True, False]


def test_opposed_neurons_leave_something() -> None:
    found = moves([[2, 0], [1, 0.1], [0, 1]], [[1, 0], [-1, 0.1], [1, 1]])
    assert not found.undone.any()
    assert found.opposed(ALL) == [(10, 11)]
    assert found.opposed(ALL & (np.arange(40) != 11)) == []


def test_a_layer_in_which_nothing_moves_has_no_sets() -> None:
    empty = np.zeros((0, 0))
    found = Moves(np.zeros(0, dtype=int), np.zeros(0), empty, empty)
    assert found.sets(ALL) == []
    assert found.opposed(ALL) == []
