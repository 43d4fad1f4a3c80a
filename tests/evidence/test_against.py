"""A circuit against a known one: sets, rankings against brute force, IOI's classes on the GPT-2 shape, what is refused."""

from __future__ import annotations

import json
import math
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.graph import Circuit, Conditions, from_mask
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UsageError
from circuitfind.evidence.against import Comparison, against
from circuitfind.evidence.listed import heads_circuit, known_circuit
from circuitfind.evidence.match import average_precision, match, places, recall_at_size
from circuitfind.model.anatomy import Anatomy
from circuitfind.task.findings import Known
from circuitfind.task.spec import load_task

GPT2 = Anatomy(12, 12, 12)
SMALL = Anatomy(2, 3, 3)
ATTENTION = Anatomy(2, 2, 2, has_mlp=False)
GROUPED = Anatomy(2, 4, 2)


def conditions(ablation: str = "resample") -> Conditions:
    return Conditions("ioi", "gpt2", "eap", "logit-diff", ablation, "noising", "abc", "faithfulness 0.9")


def circuit_of(anatomy: Anatomy, *edges: str, ablation: str = "resample") -> Circuit:
    mask = np.zeros_like(anatomy.edge_mask)
    for edge in edges:
        mask[anatomy.index_of(edge)] = True
    return from_mask(anatomy, mask, conditions(ablation))


def node_scores(anatomy: Anatomy, values: dict[str, float], fill: float = 0.0) -> Scores:
    array = np.full(len(anatomy.writers), fill)
    for name, value in values.items():
        array[anatomy.row_of(name)] = value
    return Scores(anatomy, "node", array, "atp", "noising", "logit-diff", "resample")


def edge_scores(anatomy: Anatomy, values: np.ndarray, nodes: np.ndarray | None = None) -> Scores:
    array = np.where(anatomy.edge_mask, values, np.nan)
    return Scores(anatomy, "edge", array, "eap", "noising", "logit-diff", "resample", nodes=nodes)


def ioi() -> Known:
    return load_task("ioi").known_of("gpt2")[0]


# --- rankings -------------------------------------------------------------------------------------------------


def auc_by_hand(strengths: np.ndarray, truth: np.ndarray) -> float:
    key = np.where(np.isnan(strengths), -np.inf, strengths)
    wins = [(a > b) + (a == b) / 2 for a in key[truth] for b in key[~truth]]
    return float(np.mean(wins))


def curve_by_hand(strengths: np.ndarray, truth: np.ndarray) -> float:
    """Average precision: cut at every different strength, from the top."""
    key = np.where(np.isnan(strengths), -np.inf, strengths)
    total, before = 0.0, 0.0
    for cut in sorted(set(key.tolist()), reverse=True):
        kept = key >= cut
        recall = truth[kept].sum() / truth.sum()
        total += (recall - before) * truth[kept].mean()
        before = recall
    return float(total)


def top_by_hand(strengths: np.ndarray, truth: np.ndarray) -> float:
    """Recall at size, the mean over all ways to order what is equally strong."""
    key = np.where(np.isnan(strengths), -np.inf, strengths)
    size = int(truth.sum())
    found = [
        truth[list(order[:size])].sum() / size
        for order in permutations(range(len(key)))
        if all(key[a] >= key[b] for a, b in pairwise(order))
    ]
    return float(np.mean(found))


@pytest.mark.parametrize("seed", range(12))
def test_rankings_against_brute_force(seed: int) -> None:
    """Small whole numbers, so that many are tied; some not scored at all."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 3, 7).astype(float)
    values[rng.random(7) < 0.2] = np.nan
    truth = np.zeros(7, dtype=bool)
    truth[rng.choice(7, rng.integers(1, 6), replace=False)] = True
    every = [f"e{i}" for i in range(7)]
    found = match("edges", every, [f"e{i}" for i in np.flatnonzero(truth)], {"e0"}, values)
    strengths = np.abs(values)
    assert found.roc_auc == pytest.approx(auc_by_hand(strengths, truth))
    assert found.average_precision == pytest.approx(curve_by_hand(strengths, truth))
    assert found.recall_at_size == pytest.approx(top_by_hand(strengths, truth))
    assert average_precision(strengths, truth) == found.average_precision
    assert recall_at_size(strengths, truth) == found.recall_at_size


def test_places_share_ties() -> None:
    found = places(np.array([0.5, 2.0, 0.5, np.nan, 1.0]))
    np.testing.assert_array_equal(found, [3.5, 1, 3.5, np.nan, 2])


def test_a_perfect_and_a_useless_ranking() -> None:
    every, truth = list("abcdef"), ["a", "b"]
    good = match("heads", every, truth, truth, np.array([3.0, -4, 1, 1, 0, 0]))
    assert (good.roc_auc, good.average_precision, good.recall_at_size) == (1, 1, 1)
    flat = match("heads", every, truth, truth, np.ones(6))
    assert flat.roc_auc == 0.5
    assert flat.average_precision == pytest.approx(1 / 3)
    assert flat.recall_at_size == pytest.approx(1 / 3)


def test_nothing_found_everything_found_everything_known() -> None:
    every, values = list("abcd"), np.array([4.0, 3, 2, 1])
    none = match("heads", every, ["a", "b"], [], values)
    assert math.isnan(none.precision)
    assert (none.recall, none.f1, none.jaccard) == (0, 0, 0)
    assert [one.name for one in none.missing] == ["a", "b"]
    assert "none found" in str(none)
    full = match("heads", every, ["a", "b"], every, values)
    assert (full.precision, full.recall, full.missing, full.extra) == (0.5, 1, (), ("c", "d"))
    known = match("heads", every, every, every, values)
    assert math.isnan(known.roc_auc), "no other part to be stronger than"
    assert (known.f1, known.jaccard) == (1, 1)
    bare = match("heads", every, ["a"], ["a", "c"], None)
    assert math.isnan(bare.roc_auc)
    assert (bare.precision, bare.recall) == (0.5, 1)
    unscored = match("heads", every, ["a"], ["a"], np.full(4, np.nan))
    assert math.isnan(unscored.roc_auc)
    assert "ROC" not in str(unscored)


# --- IOI on the shape of GPT-2 --------------------------------------------------------------------------------


def test_the_classes_of_ioi() -> None:
    """Made-up scores: name movers strong, negative ones negative but for one, two S-inhibition heads weak."""
    known = ioi()
    roles = known.roles
    made = dict.fromkeys(known.heads, 0.5)
    made |= dict.fromkeys(roles["name-mover"], 2.0)
    made |= {"a10.h7": -1.5, "a11.h10": 1.0}
    made |= {"a8.h6": 0.01, "a8.h10": -0.01}
    made |= {"a1.h1": 0.7, "a1.h2": 0.7}  # heads of no class
    nodes = np.full(len(GPT2.writers), 0.05)
    for name, value in made.items():
        nodes[GPT2.row_of(name)] = value
    chosen = [
        name for name, value in made.items() if abs(value) >= 0.5 and name not in roles["previous-token"]
    ]
    mask = heads_circuit(GPT2, chosen, ())
    found = against(
        edge_scores(GPT2, np.random.default_rng(0).random(GPT2.edge_mask.shape), nodes),
        from_mask(GPT2, mask, conditions()),
        known,
    )
    heads = found.of("heads")
    assert heads is not None
    lost = {"a2.h2", "a4.h11", "a8.h6", "a8.h10"}
    assert (heads.known, heads.found, heads.shared) == (26, 24, 22)
    assert {one.name for one in heads.missing} == lost
    assert heads.extra == ("a1.h1", "a1.h2")
    assert heads.precision == pytest.approx(22 / 24)
    assert heads.recall == pytest.approx(22 / 26)
    assert heads.f1 == pytest.approx(2 * 22 / (24 + 26))
    assert heads.jaccard == pytest.approx(22 / 28)
    # 24 known heads are above the 116 plain ones and the two of 0.01 below all; two others stand above those of 0.5.
    above = 5 * 118 + 19 * 116
    assert heads.roc_auc == pytest.approx(above / (26 * 118))
    assert heads.recall_at_size == pytest.approx(24 / 26)
    ranks = {one.name: one.rank for one in heads.missing}
    assert ranks["a2.h2"] == ranks["a4.h11"] == pytest.approx(np.mean(range(8, 27)))
    assert ranks["a8.h6"] == ranks["a8.h10"] == 143.5
    by_name = {role.name: role for role in found.roles}
    assert list(by_name) == list(roles)
    movers = by_name["name-mover"]
    assert (movers.nodes, movers.found, movers.recall, movers.roc_auc) == (3, 3, 1, 1)
    assert movers.mean_rank == 2
    assert (movers.positive, movers.negative, movers.mean_score, movers.expected) == (3, 0, 2.0, None)
    negative = by_name["negative-name-mover"]
    assert (negative.positive, negative.negative, negative.expected) == (1, 1, "negative")
    assert negative.wrong_sign == 1
    assert "1 of them with a positive score" in str(negative)
    inhibition = by_name["s-inhibition"]
    assert (inhibition.nodes, inhibition.found, inhibition.recall) == (4, 2, 0.5)
    # Against the 118 heads of no class: two beat the 116, two beat none.
    assert inhibition.roc_auc == pytest.approx(2 * 116 / (4 * 118))
    assert [one.name for one in inhibition.missing] == ["a8.h6", "a8.h10"]
    assert by_name["previous-token"].recall == 0
    assert movers.wrong_sign == 0
    assert Comparison.from_dict(json.loads(json.dumps(found.as_dict()))).as_dict() == found.as_dict()
    assert "Wang et al. 2022" in found.text.splitlines()[0]


def test_the_edges_of_ioi_with_and_without_mlps() -> None:
    known = ioi()
    listed = [str(GPT2.edge_at(*GPT2.index_of(e))) for e in known.edges]
    values = np.random.default_rng(1).random(GPT2.edge_mask.shape)
    for edge in listed:
        values[GPT2.index_of(edge)] += 0.5
    found = against(
        edge_scores(GPT2, values),
        circuit_of(GPT2, *listed[:100], "input->m0", "m0->logits", "input->logits"),
        known,
    )
    every, between = found.of("edges"), found.of("edges between heads")
    assert every is not None
    assert between is not None
    assert (every.known, every.shared, every.found) == (len(set(listed)), 100, 103)
    assert set(every.extra) == {"input->m0", "m0->logits", "input->logits"}
    assert (between.known, between.shared, between.found) == (len(set(listed)), 100, 101)
    truth = np.zeros_like(GPT2.edge_mask)
    for edge in listed:
        truth[GPT2.index_of(edge)] = True
    others = values[GPT2.edge_mask & ~truth]
    wins = np.mean([(value > others).mean() for value in values[truth]])
    assert every.roc_auc == pytest.approx(wins)
    mlp = [name.startswith("m") for name in GPT2.reader_names]
    beside = GPT2.edge_mask & ~np.array(mlp)[None]
    beside &= ~np.array([name.startswith("m") for name in GPT2.writer_names])[:, None]
    others = values[beside & ~truth]
    assert between.roc_auc == pytest.approx(np.mean([(value > others).mean() for value in values[truth]]))


def test_node_scores_rank_edges_by_the_weaker_end() -> None:
    scores = node_scores(SMALL, {"input": 5, "a0.h1": 3, "a1.h2": 2})
    known = Known(edges=("a0.h1->a1.h2<q>",))
    found = against(scores, circuit_of(SMALL, "a0.h1->a1.h2<q>"), known).of("edges")
    assert found is not None
    # Stronger: input->a0.h1 (three slots), input->logits and a0.h1->logits. As strong: input->a1.h2 (three), its own
    # other two, and a1.h2->logits.
    n = SMALL.n_edges
    assert found.roc_auc == pytest.approx((n - 12 + 6 / 2) / (n - 1))


# --- conventions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "ran", "warned"),
    [
        ("resample", "resample", None),
        ("mean of other names, per template", "mean", None),
        ("resample", "mean", "another ablation (resample) than this circuit (mean)"),
        ("per-template mean (ABC)", "resample", "another ablation"),
        (None, "zero", "does not say under which ablation"),
    ],
)
def test_the_ablation_of_the_truth_stands_beside_that_of_the_run(
    stated: str | None, ran: str, warned: str | None
) -> None:
    known = Known(heads=("a0.h1",), ablation=stated)
    found = against(None, circuit_of(SMALL, "input->a0.h1<v>", "a0.h1->logits", ablation=ran), known)
    assert (found.known_ablation, found.ablation) == (stated, ran)
    assert len(found.warnings) == (warned is not None)
    assert warned is None or warned in found.warnings[0]


def test_a_list_that_does_not_replicate_is_told() -> None:
    known = load_task("gendered-pronoun").known_of("gpt2")[0]
    found = against(None, circuit_of(GPT2, "input->a0.h10<v>", "a0.h10->logits"), known)
    assert not found.replicates
    assert "others could not find this circuit again, so nothing may be certified by it" in found.text
    assert "do not carry the behaviour" in found.text


def test_mlps_where_the_list_has_any() -> None:
    known = load_task("greater-than").known_of("gpt2")[0]
    circuit = from_mask(GPT2, heads_circuit(GPT2, known.heads, ("m8", "m9", "m0")), conditions())
    found = against(node_scores(GPT2, {"m8": 3, "m9": -2, "m0": 1, "m10": 0.5}), circuit, known)
    mlps, heads = found.of("mlps"), found.of("heads")
    assert mlps is not None
    assert heads is not None
    assert (mlps.known, mlps.shared, mlps.extra) == (4, 2, ("m0",))
    assert [(one.name, one.rank) for one in mlps.missing] == [("m10", 4), ("m11", 8.5)]
    assert heads.recall == 1
    assert found.of("edges") is None


def test_empty_classes_and_classes_of_mlps() -> None:
    known = Known(heads=("a0.h1",), mlps=("m1",), roles={"nobody": (), "gate": ("m1",), "mover": ("a0.h1",)})
    found = against(node_scores(SMALL, {"m1": 2}), circuit_of(SMALL, "input->m1", "m1->logits"), known)
    nobody, gate, mover = found.roles
    assert (nobody.nodes, nobody.found) == (0, 0)
    assert math.isnan(nobody.recall)
    assert math.isnan(nobody.roc_auc)
    assert (gate.found, gate.roc_auc, gate.mean_rank) == (1, 1, 1)
    assert (mover.found, mover.roc_auc) == (0, 0.5)
    assert Comparison.from_dict(json.loads(json.dumps(found.as_dict()))).as_dict() == found.as_dict()


def test_keys_of_grouped_heads_are_those_of_the_shared_head() -> None:
    known = Known(edges=("a0.h0->a1.h3<k>", "a0.h0->a1.h2<k>", "a0.h0->a1.h2<q>"))
    circuit = circuit_of(GROUPED, "a0.h0->a1.kv1<k>")
    found = against(None, circuit, known).of("edges")
    assert found is not None
    assert (found.known, found.shared, found.recall) == (2, 1, 0.5)
    assert [one.name for one in found.missing] == ["a0.h0->a1.h2<q>"]


# --- what does not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("anatomy", "given", "says", "hints"),
    [
        (SMALL, {"heads": ("a0.h1", "a5.h9")}, "has no 'a5.h9'", "nearest name"),
        (SMALL, {"roles": {"mover": ("a7.h0",)}}, "has no 'a7.h0'", "nearest name"),
        (SMALL, {"edges": ("a0.h1->a1.h9<q>",)}, "has no 'a1.h9<q>'", "nearest name"),
        (ATTENTION, {"mlps": ("m1",)}, "no MLPs) has no 'm1'", "made for this model"),
        (SMALL, {"heads": ("a8.h1", "a9.h1", "a9.h2")}, "and 2 more like it", "made for this model"),
    ],
)
def test_names_that_the_model_does_not_have(
    anatomy: Anatomy, given: dict[str, Any], says: str, hints: str
) -> None:
    known = Known(name="wrong-model", **given)
    circuit = circuit_of(anatomy, "input->logits")
    with pytest.raises(UsageError, match="wrong-model does not fit") as error:
        against(None, circuit, known)
    assert says in str(error.value)
    assert hints in error.value.hint


def test_scores_of_another_model() -> None:
    with pytest.raises(UsageError, match="different shapes"):
        against(node_scores(GPT2, {}), circuit_of(SMALL, "input->logits"), Known(heads=("a0.h1",)))


def test_units_in_place_of_an_mlp() -> None:
    """An MLP that is split counts by its parts; a unit that is no node here is missing, not wrong."""
    split = Anatomy(1, 2, 2, parts=(("m0.n3", "m0.rest"),))
    known = Known(mlps=("m0",), edges=("input->m0.n3", "input->m0.n4+7", "input->m0"))
    found = against(None, circuit_of(split, "input->m0.n3", "m0.n3->logits"), known)
    mlps, edges = found.of("mlps"), found.of("edges")
    assert mlps is not None
    assert edges is not None
    assert mlps.recall == 1
    assert (edges.known, edges.shared) == (3, 1)
    assert [one.name for one in edges.missing] == ["input->m0.n4+7", "input->m0"]
    with pytest.raises(UsageError, match="has no 'm4'"):
        against(None, circuit_of(split, "input->m0.n3"), Known(mlps=("m4",)))


def test_a_list_run_as_a_circuit_finds_itself() -> None:
    """What ``known_circuit`` makes of a list has all of it."""
    for task in ("ioi", "successor"):
        known = load_task(task).known_of("gpt2")[0]
        listed = known_circuit(GPT2, known)
        found = against(None, from_mask(GPT2, listed.mask, conditions()), known)
        assert all(one.recall == 1 for one in found.matches)
        heads = found.of("heads")
        assert heads is not None
        assert heads.precision == 1
