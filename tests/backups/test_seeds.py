"""What is removed: heads with a sure effect, sets of them, and random sets beside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from circuitfind.backups.seeds import SeedSet, clusters, find_seeds, null_sets, seed_sets
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import Kind

ANATOMY = Anatomy(
    n_layers=3, n_heads=4, n_kv_heads=4
)  # rows: input, 4 heads, MLP, 4 heads, MLP, 4 heads, MLP
PROMPTS = 60
HEADS = [row for row, node in enumerate(ANATOMY.writers) if node.kind is Kind.HEAD]


def effects(means: dict[str, float], noise: float = 0.3, seed: int = 0) -> np.ndarray:
    """Noise around these means, and around zero for all other writers."""
    rng = np.random.default_rng(seed)
    values = noise * rng.normal(size=(len(ANATOMY.writers), PROMPTS))
    values -= values.mean(1, keepdims=True)  # so that nothing hangs on luck
    for name, mean in means.items():
        values[ANATOMY.row_of(name)] += mean
    return values


def names(rows: Sequence[int]) -> list[str]:
    return [str(ANATOMY.writers[row]) for row in rows]


def members(sets: Sequence[SeedSet]) -> list[tuple[int, ...]]:
    return [s.rows for s in sets]


# --- seeds ------------------------------------------------------------------------------------------------------


def test_seeds_are_heads_with_effects_above_zero_the_largest_first() -> None:
    direct = effects({"a1.h2": 1.0, "a0.h1": 3.0, "a2.h3": 0.5, "a2.h0": -4.0, "m1": 9.0, "input": 9.0})
    found = find_seeds(ANATOMY, direct, rate=0.05, seed=0)
    assert names(found) == ["a0.h1", "a1.h2", "a2.h3"]
    with_mlps = find_seeds(ANATOMY, direct, rate=0.05, seed=0, mlps=True)
    assert names(with_mlps) == ["m1", "a0.h1", "a1.h2", "a2.h3"]


def test_noise_is_no_seed() -> None:
    rng = np.random.default_rng(1)
    found = [find_seeds(ANATOMY, rng.normal(size=(16, PROMPTS)), rate=0.05, seed=0) for _ in range(40)]
    assert sum(bool(seeds) for seeds in found) <= 5, "about one in twenty"
    assert find_seeds(ANATOMY, np.zeros((16, PROMPTS)), rate=0.05, seed=0) == []


def test_a_large_mean_of_few_prompts_is_no_seed() -> None:
    direct = effects({"a0.h0": 1.0})
    direct[ANATOMY.row_of("a1.h1")] = 0
    direct[ANATOMY.row_of("a1.h1"), 0] = 300
    assert names(find_seeds(ANATOMY, direct, rate=0.05, seed=0)) == ["a0.h0"]


def test_small_ones_are_left_out() -> None:
    """Below two hundredths of all sure effects, however sure."""
    means = {"a0.h0": 9.0, "a1.h1": 0.99, "a2.h1": 0.15, "a2.h2": 0.25}
    assert names(find_seeds(ANATOMY, effects(means, 0.01), rate=0.05, seed=0)) == ["a0.h0", "a1.h1", "a2.h2"]


def test_one_prompt_has_no_seeds() -> None:
    assert find_seeds(ANATOMY, np.ones((16, 1)), rate=0.05, seed=0) == []


# --- sets -------------------------------------------------------------------------------------------------------


def test_sets_are_the_strongest_alone_and_growing_groups() -> None:
    found = seed_sets([9, 4, 7], None)
    assert members(found) == [(9,), (4,), (7,), (9, 4), (9, 4, 7)]
    assert [s.name for s in found[:2]] == ["strongest 1 alone", "strongest 2 alone"]
    assert members(seed_sets([9], None)) == [(9,)]
    assert seed_sets([], None) == []


@pytest.mark.parametrize("count", [5, 9, 10, 30, 144])
def test_many_seeds_are_thinned(count: int) -> None:
    rows = list(np.random.default_rng(count).permutation(count))
    found = seed_sets([int(r) for r in rows], None)
    sizes = [len(s.rows) for s in found]
    assert sizes.count(1) == 4
    assert sizes == sorted(sizes)
    groups = sizes[4:]
    assert len(set(groups)) == len(groups) <= 8
    assert {2, count} <= set(groups)
    assert all(set(s.rows) == {int(r) for r in rows[: len(s.rows)]} for s in found[4:])
    if count <= 9:
        assert groups == list(range(2, count + 1))


def test_heads_that_look_alike_go_together() -> None:
    looks = np.zeros((16, 5))
    looks[1], looks[2], looks[3] = (1, 0.1, 0, 0, 0), (0, 1, 0, 0, 0), (0.9, 0, 0, 0.1, 0)
    looks[4], looks[6] = (0, 0, 1, 0, 0), (0, 1, 0.2, 0, 0)
    assert clusters([1, 2, 3, 4, 6], looks) == [(1, 3), (2, 6)]
    found = seed_sets([1, 2, 3, 4, 6], looks)
    assert {"alike 1": (1, 3), "alike 2": (2, 6)}.items() <= {s.name: s.rows for s in found}.items()
    assert clusters([1, 7], looks) == [], "a head that looks nowhere is like nobody"


def test_seeds_of_the_circuit_go_together() -> None:
    found = {s.name: s.rows for s in seed_sets([9, 4, 7], None, circuit={7, 9, 12})}
    assert found["circuit"] == (9, 7), "12 does not write to the reader"
    assert "circuit" not in {s.name for s in seed_sets([9, 4, 7], None, circuit={12})}


def test_no_set_twice() -> None:
    looks = np.ones((16, 2))
    found = seed_sets([9, 4, 7], looks, circuit=[4, 9])
    assert [frozenset(s.rows) for s in found] == [{9}, {4}, {7}, {9, 4}, {9, 4, 7}]


# --- random sets --------------------------------------------------------------------------------------------------


def layers(rows: Sequence[int]) -> list[int]:
    return sorted(ANATOMY.writers[row].layer for row in rows)


def test_random_sets_are_heads_of_the_same_layers() -> None:
    like = [ANATOMY.row_of(name) for name in ("a0.h1", "a2.h0", "a2.h3")]
    assert len(null_sets(ANATOMY, like, like, 5, seed=0)) == 3, (
        "one pair of heads is left, and three single ones"
    )
    found = null_sets(ANATOMY, like, like[:2], 5, seed=0)
    assert len(found) == 5
    assert len({frozenset(s.rows) for s in found}) == 5
    for each in found:
        assert len(set(each.rows)) == 3
        assert layers(each.rows) == [0, 2, 2]
        assert not set(each.rows) & set(like[:2])
        assert set(each.rows) <= set(HEADS)


def test_random_sets_are_the_same_by_seed() -> None:
    like = HEADS[:3]
    one, two, other = (members(null_sets(ANATOMY, like, like, 6, seed=s)) for s in (3, 3, 4))
    assert one == two != other


def test_where_a_layer_is_used_up_the_nearest_stands_in() -> None:
    like, avoid = [ANATOMY.row_of("a0.h0")] * 2, [row for row in HEADS if layers([row]) == [0]]
    for each in null_sets(ANATOMY, like, avoid, 4, seed=0):
        assert layers(each.rows) == [1, 1]


def test_fewer_sets_where_there_are_not_so_many() -> None:
    like, left = [ANATOMY.row_of("a1.h0")], [ANATOMY.row_of("a1.h1"), ANATOMY.row_of("a1.h2")]
    avoid = set(HEADS) - set(left)
    assert {s.rows for s in null_sets(ANATOMY, like, avoid, 8, seed=0)} == {(left[0],), (left[1],)}
    assert members(null_sets(ANATOMY, HEADS[:3], avoid, 8, seed=0)) == [tuple(left)], "as many as there are"
    assert null_sets(ANATOMY, like, HEADS, 8, seed=0) == []
    assert null_sets(ANATOMY, like, [], 0, seed=0) == []


def test_mlps_have_random_heads_for_company() -> None:
    for each in null_sets(ANATOMY, [ANATOMY.mlp_row(1)], [], 4, seed=0):
        assert layers(each.rows) == [1]
        assert set(each.rows) <= set(HEADS)
