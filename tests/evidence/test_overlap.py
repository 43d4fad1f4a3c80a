"""What circuits have in common, against enumeration and simulation."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from circuitfind.circuit.graph import Conditions, from_mask
from circuitfind.evidence.overlap import (
    Overlap,
    Specificity,
    beside,
    between,
    edge_names,
    expected_jaccard,
    jaccard,
    node_names,
    specificity,
)
from circuitfind.model.anatomy import Anatomy
from tests.families import random_mask

ANATOMY = Anatomy(2, 3, 3)
GROUPED = Anatomy(2, 4, 2)


def test_the_index() -> None:
    assert jaccard({"a", "b"}, {"b", "c", "d"}) == pytest.approx(1 / 4)
    assert jaccard({"a"}, {"a"}) == 1
    assert jaccard({"a"}, set()) == 0
    assert jaccard(set(), set()) == 0, "two failures agree on nothing"


def test_all_pairs_and_their_spread() -> None:
    sets = [frozenset("ab"), frozenset("abc"), frozenset("cd"), frozenset()]
    values = [jaccard(a, b) for a, b in combinations(sets, 2)]
    found = between(sets)
    assert (found.pairs, found.least) == (6, 0)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    assert beside(sets, "ab").mean == pytest.approx(np.mean([1, 2 / 3, 0, 0]))
    assert Overlap.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_of_no_pair() -> None:
    none = between([frozenset("a")])
    assert none.pairs == 0
    assert np.isnan(none.mean)
    assert none.as_dict()["mean"] is None
    assert np.isnan(Overlap.from_dict(json.loads(json.dumps(none.as_dict()))).mean)


@pytest.mark.parametrize(
    ("first", "second", "among"), [(1, 1, 4), (2, 3, 6), (4, 4, 7), (5, 5, 5), (3, 6, 7)]
)
def test_chance_against_every_pair_of_sets(first: int, second: int, among: int) -> None:
    values = [
        jaccard(list(map(str, a)), list(map(str, b)))
        for a in combinations(range(among), first)
        for b in combinations(range(among), second)
    ]
    assert expected_jaccard(first, second, among) == pytest.approx(np.mean(values), abs=1e-12)


def test_chance_of_large_models() -> None:
    assert expected_jaccard(400, 400, 32491) == pytest.approx(0.0062, abs=2e-4), "about n / (2 N)"
    assert expected_jaccard(0, 0, 10) == 0
    assert expected_jaccard(0, 3, 10) == 0


@pytest.mark.parametrize("anatomy", [ANATOMY, GROUPED])
def test_names_are_those_of_the_circuit(anatomy: Anatomy) -> None:
    mask = random_mask(anatomy.edge_mask, 0.3, 0)
    circuit = from_mask(anatomy, mask, Conditions("t", "m", "e", "l", "r", "n", "c", "f"))
    assert edge_names(anatomy, mask) == {str(e) for e in circuit.edges}
    assert node_names(anatomy, mask) == {str(n) for n in circuit.nodes}


def test_specificity_tells_a_circuit_from_what_it_should_not_be_like() -> None:
    circuit = random_mask(ANATOMY.edge_mask, 0.2, 1)
    other = random_mask(ANATOMY.edge_mask, 0.2, 2)
    found = specificity(ANATOMY, circuit, {"same": circuit, "other": other})
    assert found.others["same"] == found.other_nodes["same"] == 1
    assert found.nearest == ("same", 1.0)
    assert found.others["other"] == jaccard(edge_names(ANATOMY, circuit), edge_names(ANATOMY, other))
    assert found.random_edges.pairs == 20
    assert 0 < found.chance < 0.5
    assert 0 <= found.random_edges.least <= found.random_edges.mean < 1
    assert specificity(ANATOMY, circuit).nearest[0] == "random circuits of its size"
    assert specificity(ANATOMY, circuit) == specificity(ANATOMY, circuit), "the same each time"
    assert Specificity.from_dict(json.loads(json.dumps(found.as_dict()))) == found
