"""Two circuits side by side, against what can be counted by hand and a slow reference for ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.changes import overlap, spearman
from circuitfind.circuit.compare import Comparison, Side, compare
from circuitfind.circuit.graph import Backup, Circuit, Conditions, Evaluation, Interval
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UsageError
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import parse_edge, parse_node

SMALL = Anatomy(2, 2, 2)
CONDITIONS = Conditions(
    "task", "model", "eap", "logit-diff", "resample", "noising", "random", "faithfulness 0.9"
)
FIRST = {"input->a0.h0<v>": 2.0, "a0.h0->m1": 1.0, "m1->logits": -0.5}
SECOND = {"input->a0.h0<v>": 6.0, "a0.h0->m1": 3.0, "a0.h0->logits": 1.5}


def circuit(
    edges: dict[str, float], *, anatomy: Anatomy = SMALL, gap: float | None = 2.0, **changes: Any
) -> Circuit:
    """A circuit with edge scores; m(full) - m(empty) is ``gap``."""
    senders = {name.partition("->")[0] for name in edges}
    whole = (
        ()
        if gap is None
        else (Evaluation("resample", "logit-diff", Interval(0.9, 0.8, 1.0), gap, gap, 0.0, 8),)
    )
    return Circuit(
        anatomy=anatomy,
        edges=tuple(map(parse_edge, edges)),
        conditions=replace(CONDITIONS, **changes),
        edge_scores=edges,
        node_scores={name: sum(s for e, s in edges.items() if e.startswith(name)) for name in senders},
        evaluations=whole,
    )


def scores(values: dict[str, float], level: str = "edge") -> Scores:
    """Scores of the whole model: zero where nothing is given."""
    array = np.where(SMALL.edge_mask, 0.0, np.nan)
    for name, value in values.items():
        array[SMALL.index_of(name)] = value
    if level == "node":
        array = np.nansum(array, 1)
    return Scores(SMALL, level, array, "eap", "noising", "logit-diff", "resample")  # type: ignore[arg-type]


def both(**changes: Any) -> Comparison:
    return compare(
        Side("one", circuit(FIRST), scores(FIRST), {"prompts": "8"}),
        Side("two", circuit(SECOND, gap=6.0, **changes), scores(SECOND), {"prompts": "9"}),
    )


def test_gained_lost_and_kept() -> None:
    found = both()
    fates = {change.name: change.fate for change in found.edges.every}
    assert fates == {
        "input->a0.h0<v>": "kept",
        "a0.h0->m1": "kept",
        "m1->logits": "lost",
        "a0.h0->logits": "gained",
    }
    assert found.edges.jaccard == 2 / 4
    assert {c.name for c in found.nodes.of("lost")} == set()  # m1 is still read from, as the end of an edge
    assert found.nodes.jaccard == 1.0
    assert not found.identical


def test_a_score_is_a_share_of_what_there_is_to_explain() -> None:
    """Every score of a behaviour three times as strong is three times as large, and nothing has shifted."""
    found = both()
    shifts = {change.name: change.shift for change in found.edges.every}
    assert found.of_gap
    assert found.wholes == (2.0, 6.0)
    assert shifts == pytest.approx(
        {"input->a0.h0<v>": 0.0, "a0.h0->m1": 0.0, "m1->logits": 0.25, "a0.h0->logits": 0.25}
    )
    assert {c.name for c in found.edges.every[:2]} == {"m1->logits", "a0.h0->logits"}


def test_scores_in_other_units_are_shares_of_the_largest() -> None:
    found = both(method="ifr")
    assert not found.of_gap
    assert found.wholes == (2.0, 6.0)  # of the largest edge
    unmeasured = compare(Side("one", circuit(FIRST, gap=None)), Side("two", circuit(SECOND)))
    assert not unmeasured.of_gap
    assert any("different methods" in note for note in found.notes)


def test_scores_of_edges_that_were_dropped_are_known_from_the_run() -> None:
    found = both()
    (lost,) = found.edges.of("lost")
    assert (lost.before, lost.after) == (-0.5, 0.0)
    alone = compare(Side("one", circuit(FIRST)), Side("two", circuit(SECOND)))
    (lost,) = alone.edges.of("lost")
    assert lost.before == -0.5
    assert math.isnan(lost.after)
    assert lost.as_dict()["after"] is None
    assert alone.edge_scores is None
    assert sum("a circuit alone" in note for note in alone.notes) == 2


def test_what_differs_in_the_conditions() -> None:
    found = both(model="tuned", ablation="resample")
    assert found.differs == (("model", "model", "tuned"), ("prompts", "8", "9"))
    assert ("task", "task") in found.alike
    assert "dictionaries" not in dict(found.alike)  # empty in both


def test_evaluations_are_paired_by_ablation() -> None:
    first = circuit(FIRST)
    mean = replace(first.evaluations[0], ablation="mean")
    found = compare(
        Side("one", replace(first, evaluations=(*first.evaluations, mean))), Side("two", circuit(SECOND))
    )
    assert [(a and a.ablation, b and b.ablation) for a, b in found.evaluations] == [
        ("resample", "resample"),
        ("mean", None),
    ]


def test_backups() -> None:
    def with_backup(node: str, share: float) -> Circuit:
        one = Backup(parse_node(node), "backup", (parse_node("a0.h0"),), "logits", share)
        return replace(circuit(FIRST), backups=(one,))

    found = compare(Side("one", with_backup("a1.h0", 0.5)), Side("two", with_backup("a1.h1", 0.25)))
    assert [(c.name, c.fate) for c in found.backups.every] == [
        ("a1.h0 (backup, to logits)", "lost"),
        ("a1.h1 (backup, to logits)", "gained"),
    ]
    assert found.identical


def test_a_circuit_and_itself() -> None:
    side = Side("one", circuit(FIRST), scores(FIRST))
    found = compare(side, side)
    assert found.identical
    assert found.edges.jaccard == found.nodes.jaccard == 1.0
    assert not found.differs
    assert found.edge_scores is not None
    assert found.edge_scores.common == SMALL.n_edges
    assert found.edge_scores.spearman == pytest.approx(1.0)
    assert all(share == 1.0 for share in found.edge_scores.overlap.values())
    assert not any(change.size for change in (*found.edges.every, *found.edge_scores.moved))


def test_node_scores_beside_edge_scores() -> None:
    found = compare(
        Side("one", circuit(FIRST), scores(FIRST)), Side("two", circuit(SECOND), scores(SECOND, "node"))
    )
    assert found.edge_scores is None
    assert found.node_scores is not None
    assert found.node_scores.common == len(SMALL.writers)
    assert any("only scores of nodes" in note for note in found.notes)


def test_models_of_different_shape_are_compared_by_name() -> None:
    large = Anatomy(3, 2, 2)
    edges = {"input->a0.h0<v>": 1.0, "a0.h0->a2.h1<q>": 1.0, "a2.h1->logits": 1.0}
    found = compare(Side("one", circuit(FIRST)), Side("two", circuit(edges, anatomy=large)))
    assert found.set_aside == ("a0.h0->a2.h1<q>", "a2.h1->logits")
    assert [c.name for c in found.edges.of("kept")] == ["input->a0.h0<v>"]
    assert "a2.h1" not in {c.name for c in found.nodes.every}
    assert any("2 layers of 2 heads" in note and "3 layers" in note for note in found.notes)
    assert not found.identical


def test_an_edge_that_one_order_of_parts_forbids() -> None:
    """In parallel blocks the MLP does not read the heads of its layer."""
    edges = {"input->a0.h0<v>": 1.0, "a0.h0->m0": 1.0, "m0->logits": 1.0}
    other = {"input->a0.h0<v>": 1.0, "a0.h0->logits": 1.0}
    beside = circuit(other, anatomy=Anatomy(2, 2, 2, parallel=True))
    assert compare(Side("one", circuit(edges)), Side("two", beside)).set_aside == ("a0.h0->m0",)


def test_nothing_in_common() -> None:
    anatomy = Anatomy(2, 2, 2, parts=(("m0.n3", "m0.rest"), ("m1.n4", "m1.rest")))
    units = circuit({"input->m0.n3": 1.0, "m0.n3->logits": 1.0}, anatomy=anatomy, nodes="heads,neurons")
    with pytest.raises(UsageError, match="the model of one has no edge of the circuit of two"):
        compare(Side("one", circuit(FIRST)), Side("two", units))


def test_plain_data_has_no_nan() -> None:
    import json

    found = compare(Side("one", circuit(FIRST, gap=None)), Side("two", circuit(SECOND)))
    json.dumps(found.as_dict(), allow_nan=False)


# --- ranks ----------------------------------------------------------------------------------------------------


def slow_ranks(x: Sequence[float]) -> list[float]:
    """One more than how many are smaller, and half of how many others are equal."""
    return [1 + sum(b < a for b in x) + (sum(b == a for b in x) - 1) / 2 for a in x]


def slow_spearman(a: Sequence[float], b: Sequence[float]) -> float:
    ranks = [slow_ranks(x) for x in (a, b)]
    middle = (len(a) + 1) / 2
    top = sum((x - middle) * (y - middle) for x, y in zip(*ranks, strict=True))
    sizes = [math.sqrt(sum((x - middle) ** 2 for x in one)) for one in ranks]
    return float(top / (sizes[0] * sizes[1]))


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_the_correlation_of_ranks_with_ties_averaged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, 20).astype(float), rng.normal(size=20)
    b[rng.integers(0, 20, 5)] = 0.0
    assert spearman(a, b) == pytest.approx(slow_spearman(a.tolist(), b.tolist()), abs=1e-12)


def test_spearman_of_what_has_no_order() -> None:
    assert spearman(np.ones(5), np.arange(5.0)) is None
    assert spearman(np.arange(2.0), np.arange(2.0)) is None


def test_overlap_counts_what_both_have_among_their_strongest() -> None:
    a, b = np.array([5.0, -4, 3, 0, 1]), np.array([0.0, -4, 3, 5, 1])
    for k in range(1, 6):
        tops = [set(sorted(range(5), key=lambda i, x=x: -abs(x[i]))[:k]) for x in (a, b)]  # type: ignore[misc]
        assert overlap(a, b, k) == len(tops[0] & tops[1]) / k


def test_the_order_of_changes_does_not_hang_on_that_of_the_edges() -> None:
    for some in combinations(FIRST, 2):
        turned = {name: FIRST[name] for name in reversed(some)}
        straight = {name: FIRST[name] for name in some}
        found = [compare(Side("one", circuit(e)), Side("two", circuit(SECOND))) for e in (turned, straight)]
        assert found[0].as_dict() == found[1].as_dict()
