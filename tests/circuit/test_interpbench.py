"""The ROC area of the MIB benchmark: a worked example, a slow reference, and its ends."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from circuitfind.circuit.curve import SHARES, roc_auc
from circuitfind.circuit.graph import connected
from circuitfind.circuit.interpbench import greedy_circuits, greedy_order, interpbench_auroc, rates
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UsageError
from circuitfind.model.anatomy import Anatomy

ONE = Anatomy(1, 1, 1)
SIX = Anatomy(6, 4, 4)
"""The shape of InterpBench's IOI model."""
EXAMPLE = {
    "a0.h0->logits": 5.0,
    "input->a0.h0<v>": 4.0,
    "m0->logits": -3.0,
    "input->logits": 2.0,
    "input->m0": 1.0,
    "input->a0.h0<q>": 0.5,
    "input->a0.h0<k>": 0.4,
    "a0.h0->m0": 0.3,
}


def scores_of(anatomy: Anatomy, named: dict[str, float]) -> Scores:
    values = np.full(anatomy.edge_mask.shape, np.nan)
    for name, value in named.items():
        values[anatomy.index_of(name)] = value
    return Scores(anatomy, "edge", values, "x", "x", "x", "x")


def drawn(anatomy: Anatomy, seed: int) -> Scores:
    values = np.random.default_rng(seed).normal(size=anatomy.edge_mask.shape)
    return Scores(anatomy, "edge", np.where(anatomy.edge_mask, values, np.nan), "x", "x", "x", "x")


def test_worked_example() -> None:
    """Eight edges, two of them true: input->m0 and m0->logits.

    From the logits down: a0.h0->logits (5) brings the head within reach, input->a0.h0<v> (4), m0->logits (3) brings m0 within
    reach, input->logits (2), and so on. Circuits of 2, 4 and 8 edges:

        2   a0.h0->logits, input->a0.h0<v>       no true edge, 2 of the 6 others
        4   those, m0->logits, input->logits     m0 reads nothing yet, so its edge goes: no true one, 3 of 6
        8   all                                  2 of 2, 6 of 6

    By trapezoids over 1/3, 1/2, 1 of 0, 0, 1: 1/6 * 0 + 1/2 * 1/2 = 1/4. The usual area asks of each true edge how many others
    are weaker: (4 + 3) / 12.
    """
    scores, truth = scores_of(ONE, EXAMPLE), ("input->m0", "m0->logits")
    order = greedy_order(ONE, np.abs(scores.values))
    assert [str(ONE.edge_at(*edge)) for edge in order] == list(EXAMPLE)
    shares = (0.25, 0.5, 1.0)
    mask = np.zeros_like(ONE.edge_mask)
    for name in truth:
        mask[ONE.index_of(name)] = True
    x, y = rates(ONE, greedy_circuits(ONE, order, shares), mask)
    assert x == pytest.approx([1 / 3, 1 / 2, 1])
    assert y == [0, 0, 1]
    assert interpbench_auroc(scores, truth, shares=shares) == pytest.approx(1 / 4)
    usual = roc_auc(np.abs(scores.values)[ONE.edge_mask], mask[ONE.edge_mask])
    assert usual == pytest.approx(7 / 12)


def test_signed_ranking_takes_negative_edges_last() -> None:
    scores = scores_of(ONE, EXAMPLE)
    order = greedy_order(ONE, np.asarray(scores.values))
    assert [str(ONE.edge_at(*edge)) for edge in order][5:] == ["m0->logits", "input->m0", "a0.h0->m0"]


def slow_order(anatomy: Anatomy, strengths: np.ndarray) -> list[str]:
    """Look through all edges each time."""
    reached, order = {"logits"}, []
    left = [str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(anatomy.edge_mask)]
    while left:
        near = [name for name in left if name.partition("->")[2].partition("<")[0] in reached]
        best = max(near, key=lambda name: strengths[anatomy.index_of(name)])
        left.remove(best)
        order.append(best)
        reached.add(best.partition("->")[0])
    return order


@pytest.mark.parametrize("seed", range(3))
def test_order_and_area_against_a_slow_search(seed: int) -> None:
    anatomy = Anatomy(3, 2, 2)
    scores = drawn(anatomy, seed)
    strengths = np.abs(scores.values)
    slow = slow_order(anatomy, strengths)
    assert [str(anatomy.edge_at(*edge)) for edge in greedy_order(anatomy, strengths)] == slow
    truth = set(np.random.default_rng(seed + 10).choice(slow, 9, replace=False).tolist())
    points = []
    for share in SHARES:
        mask = np.zeros_like(anatomy.edge_mask)
        for name in slow[: math.ceil(share * len(slow))]:
            mask[anatomy.index_of(name)] = True
        kept = {str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(connected(anatomy, mask))}
        points.append((len(kept - truth) / (len(slow) - 9), len(kept & truth) / 9))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    assert interpbench_auroc(scores, truth) == pytest.approx(area, abs=1e-12)


def test_shared_keys_are_taken_once() -> None:
    anatomy = Anatomy(2, 4, 2)
    order = greedy_order(anatomy, np.abs(drawn(anatomy, 0).values))
    assert len(order) == len(set(order)) == anatomy.n_edges


def ioi_truth() -> list[str]:
    """All edges among m0 and the three heads of InterpBench's IOI model."""
    nodes = {"input", "m0", "a1.h1", "a2.h1", "a4.h1", "logits"}
    edges = (SIX.edge_at(int(w), int(r)) for w, r in np.argwhere(SIX.edge_mask))
    return [str(e) for e in edges if str(e.sender) in nodes and str(e.receiver) in nodes]


def test_a_perfect_ranking_and_chance() -> None:
    """The true edges first give 1; chance scatters widely around a half (docs/mib.md tells by how much)."""
    truth = ioi_truth()
    assert (SIX.n_edges, len(truth)) == (1108, 33)
    perfect = scores_of(
        SIX,
        {str(SIX.edge_at(int(w), int(r))): 0.0 for w, r in np.argwhere(SIX.edge_mask)}
        | dict.fromkeys(truth, 1.0),
    )
    assert interpbench_auroc(perfect, truth) == pytest.approx(1.0, abs=1e-9)
    chance = [interpbench_auroc(drawn(SIX, seed), truth) for seed in range(8)]
    assert 0.5 < np.mean(chance) < 0.6
    assert 0.03 < np.std(chance) < 0.1


def test_refusals() -> None:
    scores = scores_of(ONE, EXAMPLE)
    by_node = Scores(ONE, "node", np.zeros(3), "atp", "x", "x", "x")
    with pytest.raises(UsageError, match="scores nodes"):
        interpbench_auroc(by_node, ["input->m0"])
    with pytest.raises(UsageError, match="0 of the 8 edges are true"):
        interpbench_auroc(scores, [])
    with pytest.raises(UsageError, match="8 of the 8 edges are true"):
        interpbench_auroc(scores, EXAMPLE)
    with pytest.raises(UsageError, match=r"no 'a3\.h0'"):
        interpbench_auroc(scores, ["a3.h0->logits"])
