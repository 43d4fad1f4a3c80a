"""Controls: what a circuit is held against, on models whose circuit is known and by brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.graph import connected
from circuitfind.circuit.scores import Scores
from circuitfind.errors import PromptError
from circuitfind.evidence.controls import other_ranking, random_circuits, shuffled_pairs, strongest
from circuitfind.evidence.shuffled import shuffle_pairs
from circuitfind.methods import get_method
from circuitfind.model.load import load_model
from circuitfind.names import parse_edge
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.spec import load_task


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    spec = load_task("ioi-planted")
    session = Session(spec, resolve(spec, count=24))
    return Evaluator(session.runs_of(session.all_pairs), "resample")


@pytest.fixture(scope="module")
def scores(evaluator: Evaluator) -> Scores:
    return get_method("eap", {}).run(evaluator.runs, ablation="resample", direction="noising")


@pytest.fixture(scope="module")
def true(scores: Scores) -> np.ndarray:
    return strongest(scores, 12)


def test_a_true_circuit_beats_random_ones_and_a_random_one_does_not(
    evaluator: Evaluator, true: np.ndarray
) -> None:
    found = random_circuits(evaluator, true, draws=19, seed=3)
    assert found.beaten is True
    assert found.p_value == pytest.approx(1 / 20)
    assert len(found.values) == 19
    assert found.own > 0.9
    refused = 0
    for seed in range(10):
        drawn = np.random.default_rng(seed + 100)
        from circuitfind.circuit.random import random_circuit

        chance = random_circuit(evaluator.runs.model.anatomy, int(true.sum()), drawn)
        refused += random_circuits(evaluator, chance, draws=19, seed=seed).beaten is False
    assert refused >= 9, "at 5 % one of ten may be lucky"


def test_p_values_are_those_of_a_rank_test(evaluator: Evaluator, true: np.ndarray) -> None:
    half = true.copy()
    rows, columns = np.nonzero(half)
    half[rows[0], columns[0]] = False
    found = random_circuits(evaluator, half, draws=30, seed=1)
    as_good = sum(abs(1 - f) <= abs(1 - found.own) for f in found.values)
    assert found.p_value == pytest.approx((1 + as_good) / 31)
    assert found.beaten is bool(found.p_value <= 0.05)


def test_the_circuit_itself_is_no_control(evaluator: Evaluator) -> None:
    every = evaluator.runs.model.anatomy.edge_mask
    found = random_circuits(evaluator, np.array(every), draws=19)
    assert found.beaten is None
    assert found.values == ()


def test_where_there_are_few_circuits_of_a_size_all_of_them_count() -> None:
    spec = load_task("tracr-reverse")
    session = Session(spec, resolve(spec, count=16))
    small = Evaluator(session.runs_of(session.all_pairs), "resample")
    anatomy = small.runs.model.anatomy
    true = np.zeros_like(anatomy.edge_mask)
    for name in ("input->a3.h0<v>", "a3.h0->logits"):
        true[anatomy.index_of(parse_edge(name))] = True
    # By brute force: of two edges, a head or MLP that reads the input and writes to the logits.
    ways = sum(len(anatomy.readers_of(node)) for node in anatomy.writers[1:])
    found = random_circuits(small, true, draws=99)
    assert len(found.values) == ways - 1 < 99
    assert found.beaten is True
    assert "of all" in found.what
    other = np.zeros_like(true)
    for name in ("input->a3.h0<q>", "a3.h0->logits"):
        other[anatomy.index_of(parse_edge(name))] = True
    assert random_circuits(small, other, draws=99).beaten is False


def test_another_ranking_of_the_same_size(evaluator: Evaluator, scores: Scores, true: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    noise = replace(
        scores, values=np.where(np.isnan(scores.values), np.nan, rng.normal(size=scores.values.shape))
    )
    found = other_ranking(evaluator, true, [noise, noise], "shuffled weights", "noise")
    assert found.beaten is True
    assert len(found.values) == 2
    assert found.difference is not None
    assert found.difference.low > 0
    f = evaluator.faithfulness([strongest(noise, int(true.sum()))])[0]
    assert found.values[0] == pytest.approx(f)
    assert found.difference.value == pytest.approx(abs(1 - f) - abs(1 - found.own), abs=1e-6)
    same = other_ranking(evaluator, true, [scores], "cross-task", "its own scores")
    assert same.beaten is False, "a circuit does no better than itself"
    better = other_ranking(evaluator, strongest(noise, int(true.sum())), [scores], "x", "the true scores")
    assert better.beaten is False


def test_the_hardest_of_several_rankings_counts(
    evaluator: Evaluator, scores: Scores, true: np.ndarray
) -> None:
    values = np.array(scores.values)
    order = np.argsort(-np.abs(np.nan_to_num(values)).ravel())
    values.ravel()[order[0]] *= 0  # nearly the same circuit
    close = replace(scores, values=values)
    rng = np.random.default_rng(0)
    noise = replace(scores, values=np.where(np.isnan(values), np.nan, rng.normal(size=values.shape)))
    alone = other_ranking(evaluator, true, [noise], "x", "noise")
    both = other_ranking(evaluator, true, [noise, close], "x", "noise and nearly the same")
    assert alone.difference is not None
    assert both.difference is not None
    assert both.difference.low <= alone.difference.low


def test_prefixes_are_the_shortest_that_connect_enough(scores: Scores) -> None:
    anatomy, order = scores.anatomy, scores.ranked_edges()
    for size in (1, 5, 30):
        sizes = []
        for n in range(len(order) + 1):
            mask = np.zeros_like(anatomy.edge_mask)
            for w, r in order[:n]:
                mask[w, r] = True
            sizes.append(int(connected(anatomy, mask).sum()))
            if sizes[-1] >= size:
                break
        assert int(strongest(scores, size).sum()) == sizes[-1]


def test_what_is_carried_with_the_answers_of_others(evaluator: Evaluator, true: np.ndarray) -> None:
    own = evaluator.values([true])[0] - evaluator.empty
    carried = []
    for seed in range(4):
        session_pairs = shuffle_pairs(evaluator.runs.pairs, seed)
        from circuitfind.evidence.search import runs_over

        again = Evaluator(runs_over(evaluator.runs, session_pairs), "resample")
        carried.append(again.values([true])[0] - again.empty)
    found = shuffled_pairs(own, carried)
    assert found.beaten is True
    assert found.values == pytest.approx([one.mean() for one in carried])
    assert abs(np.mean(found.values)) < 0.5 * found.own
    assert shuffled_pairs(own, [own]).beaten is False


def test_pairs_are_dealt_so_that_each_gets_what_another_had() -> None:
    spec = load_task("ioi")
    session = Session(spec, resolve(spec, count=30))
    pairs = session.all_pairs
    dealt = shuffle_pairs(pairs, 0)
    assert len(dealt) == len(pairs)
    assert [(p.clean, p.corrupted) for p in dealt] == [(p.clean, p.corrupted) for p in pairs]
    assert sorted((p.answer, p.wrong) for p in dealt) == sorted((p.answer, p.wrong) for p in pairs)
    assert sum(a.answer == b.answer for a, b in zip(dealt, pairs, strict=True)) < 5
    assert shuffle_pairs(pairs, 0) == dealt
    assert shuffle_pairs(pairs, 1) != dealt
    alike = pairs.subset([0, 0, 0])
    with pytest.raises(PromptError, match="same answers"):
        shuffle_pairs(alike, 0)


def test_a_method_ranks_otherwise_when_weights_are_shuffled() -> None:
    from circuitfind.model.shuffle import shuffled

    model = load_model("mini")
    other = shuffled(model, 0)
    for before, after in zip(model.bridge.parameters(), other.bridge.parameters(), strict=True):
        assert before.flatten().sort().values.equal(after.flatten().sort().values)
    assert other.anatomy == model.anatomy
    assert other.fingerprint != model.fingerprint
    again = shuffled(model, 0)
    pairs = list(zip(other.bridge.parameters(), again.bridge.parameters(), strict=True))
    assert all(a.equal(b) for a, b in pairs), "the same seed gives the same order"
    assert not all(
        a.equal(b) for a, b in zip(model.bridge.parameters(), other.bridge.parameters(), strict=True)
    )
