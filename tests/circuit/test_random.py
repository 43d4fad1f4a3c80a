"""Random circuits: connected, of the size asked for, over every edge of the model, the same again with the same seed."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from circuitfind.circuit.graph import connected
from circuitfind.circuit.random import RandomCircuits, random_circuit
from circuitfind.errors import UsageError
from circuitfind.model.anatomy import Anatomy

PARTS = (("m0.n1", "m0.n2+7", "m0.rest"), (), ("t2.f3", "t2.f9", "t2.err", "t2.rest"))
ANATOMIES = {
    "whole": Anatomy(3, 3, 3),
    "attention only": Anatomy(3, 2, 2, has_mlp=False),
    "grouped": Anatomy(3, 4, 2),
    "one key head": Anatomy(2, 4, 1, has_mlp=False),
    "parallel": Anatomy(3, 2, 2, parallel=True),
    "split": Anatomy(3, 2, 2, parts=PARTS),
    "split, live errors": Anatomy(3, 4, 2, parts=PARTS, live_errors=True),
    "one layer, one head": Anatomy(1, 1, 1),
}


@pytest.fixture(params=ANATOMIES, ids=lambda name: name.replace(" ", "-"))
def anatomy(request: pytest.FixtureRequest) -> Anatomy:
    return ANATOMIES[request.param]


def test_sizes_are_met_exactly_and_connected(anatomy: Anatomy) -> None:
    draws = RandomCircuits(anatomy)
    rng = np.random.default_rng(0)
    last = anatomy.n_edges
    for size in sorted({*range(min(12, last)), *range(12, last, 5), *range(max(0, last - 4), last + 1)}):
        mask = draws.draw(size, rng)
        assert mask.sum() == size
        assert not (mask & ~anatomy.edge_mask).any()
        np.testing.assert_array_equal(connected(anatomy, mask), mask)


def test_every_edge_can_be_drawn(anatomy: Anatomy) -> None:
    """With five edges each edge has a fair chance: none is drawn less than a sixteenth as often as their mean."""
    draws, rng = RandomCircuits(anatomy), np.random.default_rng(1)
    size = min(5, anatomy.n_edges - 1)
    counts = sum(draws.draw(size, rng).astype(int) for _ in range(2000))[anatomy.edge_mask]
    assert counts.sum() == 2000 * size
    assert counts.min() > counts.mean() / 16


def test_the_smallest_circuits_are_all_there_is(anatomy: Anatomy) -> None:
    """One edge runs from a source to the logits; two are a way through one node, or two such edges."""
    draws, rng = RandomCircuits(anatomy), np.random.default_rng(2)
    out = len(anatomy.readers) - 1
    sources = {(s, out) for s in anatomy.source_rows}
    ways = {frozenset(pair) for pair in combinations(sources, 2)}
    for row, node in enumerate(anatomy.writers):
        columns = [anatomy.reader_index[name] for name in anatomy.readers_of(node)]
        entries = [(s, c) for s in anatomy.source_rows for c in columns if anatomy.edge_mask[s, c]]
        ways |= {frozenset({entry, (row, out)}) for entry in entries}
    assert {edges_of(draws.draw(1, rng)) for _ in range(100)} == {frozenset({edge}) for edge in sources}
    assert {edges_of(draws.draw(2, rng)) for _ in range(4000)} == ways


def edges_of(mask: np.ndarray) -> frozenset[tuple[int, int]]:
    return frozenset((int(w), int(r)) for w, r in np.argwhere(mask))


def test_the_same_seed_gives_the_same_circuit_and_another_seed_another(anatomy: Anatomy) -> None:
    size = anatomy.n_edges // 2
    one, same = (random_circuit(anatomy, size, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    if anatomy.n_layers > 1:
        others = [random_circuit(anatomy, size, np.random.default_rng(seed)) for seed in range(4, 9)]
        assert any((one != other).any() for other in others)


def test_inflated_circuits_have_one_way_more(anatomy: Anatomy) -> None:
    draws, rng = RandomCircuits(anatomy), np.random.default_rng(6)
    for _ in range(50):
        mask = draws.draw(int(rng.integers(1, max(2, anatomy.n_edges // 3))), rng)
        more = draws.inflate(mask, rng)
        assert (more & mask).sum() == mask.sum()
        added = more & ~mask
        assert added.any()
        np.testing.assert_array_equal(connected(anatomy, more), more)
        # One way: no two of the new edges leave the same node, or meet in one.
        assert added.sum(1).max() == added.sum(0).max() == 1
    with pytest.raises(UsageError, match="lacks no edge"):
        draws.inflate(anatomy.edge_mask, rng)


@pytest.mark.parametrize("size", [-1, 10**6])
def test_sizes_that_no_circuit_has(size: int) -> None:
    with pytest.raises(UsageError, match="no circuit of"):
        random_circuit(ANATOMIES["whole"], size, np.random.default_rng(0))


def test_a_model_of_the_size_of_gpt2() -> None:
    """Ways go through all depths: more than half of the edges neither leave the input nor end at the logits."""
    anatomy = Anatomy(12, 12, 12)
    assert anatomy.n_edges == 32491
    draws, rng = RandomCircuits(anatomy), np.random.default_rng(0)
    for size in (1, 40, 400, 16245, 32490):
        mask = draws.draw(size, rng)
        assert mask.sum() == size
        np.testing.assert_array_equal(connected(anatomy, mask), mask)
        if size >= 40:
            assert mask[1:, :-1].sum() > size / 2
