"""Pruning keeps its promises: the target, connection, minimality, the size asked for, the same result again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.graph import connected
from circuitfind.circuit.prune import prefix_mask, prune, rank
from circuitfind.circuit.rule import Rule
from circuitfind.circuit.scores import Scores
from circuitfind.errors import RunError, UsageError
from circuitfind.methods import get_method
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.load import load_model, planted
from circuitfind.model.runs import Runs
from circuitfind.names import Kind
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs
from tests import families
from tests.reference import circuit_faithfulness, measure_planted

COUNT = 16


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@cache
def planted_runs(name: str) -> Runs:
    pairs = tuple(
        PromptPair(p.clean, p.corrupted, (p.answer,), (p.wrong,), len(p.clean) - 1, {}, "", "", "x", "g")
        for p in planted(name).pairs(COUNT, 0)
    )
    return Runs(load_model(name, device="cpu"), PromptPairs(pairs, "planted"), get_metric("logit-diff"))


@cache
def random_runs(family: str) -> Runs:
    """A random model whose answers are turned so that the clean prompts are the better ones."""
    model = families.model(family)
    pairs = families.pairs_for(model, count=6)
    runs = Runs(model, pairs, get_metric("logit-diff"))
    turned = tuple(
        p if gain > 0 else replace(p, answer=p.wrong, wrong=p.answer)
        for p, gain in zip(pairs, runs.clean - runs.corrupted, strict=True)
    )
    return Runs(model, PromptPairs(turned, "random"), get_metric("logit-diff"))


@cache
def scores_of(runs: Runs, method: str = "eap") -> Scores:
    return get_method(method).run(runs, ablation="resample", direction="noising")


def is_connected(anatomy: Anatomy, mask: np.ndarray) -> bool:
    """Every writer in it is reached from the input and every reader leads to the logits, told by walking."""
    edges = [(anatomy.writers[w], anatomy.readers[r][0]) for w, r in np.argwhere(mask)]
    step: dict[str, set[str]] = {}
    for sender, receiver in edges:
        for node in anatomy.served_by(receiver):
            step.setdefault(str(sender), set()).add(str(node))

    def walk(start: str, ways: dict[str, set[str]]) -> set[str]:
        seen, todo = {start}, [start]
        while todo:
            for there in ways.get(todo.pop(), ()):
                if there not in seen:
                    seen.add(there)
                    todo.append(there)
        return seen

    back: dict[str, set[str]] = {}
    for here, theres in step.items():
        for there in theres:
            back.setdefault(there, set()).add(here)
    reached, useful = walk("input", step), walk("logits", back)
    return all(str(s) in reached and any(str(n) in useful for n in anatomy.served_by(r)) for s, r in edges)


# --- rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"faithfulness": 0.9, "edges": 3},
        {"edges": 3, "threshold": 0.1},
        {"faithfulness": 0.0},
        {"faithfulness": -1.0},
        {"faithfulness": 1.01},
        {"faithfulness": float("nan")},
        {"faithfulness": float("inf")},
        {"edges": 0},
        {"edges": -3},
        {"threshold": -0.1},
        {"threshold": float("nan")},
        {"faithfulness": 0.9, "evaluations": 0},
    ],
)
def test_rules_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Rule(**options)
    assert caught.value.hint


def test_rules_that_do() -> None:
    assert str(Rule(faithfulness=0.9)) == "faithfulness 0.9"
    assert str(Rule(faithfulness=1)) == "faithfulness 1"
    assert str(Rule(edges=1)) == "edges 1"
    assert str(Rule(threshold=0.0)) == "threshold 0"


# --- by faithfulness ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["eap", "activation-patching"])
@pytest.mark.parametrize("target", [0.3, 0.8, 0.99])
@pytest.mark.parametrize("family", ["ln-pre", "kv-groups", "attn-only-no-norm"])
def test_the_target_is_reached_by_a_connected_circuit(family: str, target: float, method: str) -> None:
    runs = random_runs(family)
    evaluator = Evaluator(runs, "resample")
    found = prune(scores_of(runs, method), Rule(faithfulness=target, evaluations=300), evaluator)
    anatomy = runs.model.anatomy
    assert Evaluator(runs, "resample").faithfulness([found.mask])[0] >= target - 1e-6
    assert 0 < found.mask.sum() <= anatomy.n_edges
    assert not (found.mask & ~anatomy.edge_mask).any()
    assert is_connected(anatomy, found.mask)
    np.testing.assert_array_equal(connected(anatomy, found.mask), found.mask)
    assert found.evaluations == evaluator.n_evaluations
    assert type(found.prefix) is int


@pytest.mark.parametrize(
    "name", ["planted/induction:1", "planted/ioi-planted:2", "planted/and-gate:3", "planted/or-gate:4"]
)
def test_no_edge_can_be_dropped_says_the_reference(name: str) -> None:
    runs, target = planted_runs(name), 0.9
    found = prune(scores_of(runs), Rule(faithfulness=target), Evaluator(runs, "resample"))
    assert found.minimal
    truth = planted(name)
    measured = measure_planted(truth, truth.pairs(COUNT, 0), "resample")
    anatomy = runs.model.anatomy

    def names_of(mask: np.ndarray) -> set[str]:
        return {str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(mask)}

    assert circuit_faithfulness(measured, names_of(found.mask)) >= target - 1e-5
    for w, r in np.argwhere(found.mask):
        rest = found.mask.copy()
        rest[w, r] = False
        assert circuit_faithfulness(measured, names_of(connected(anatomy, rest))) < target


@pytest.mark.parametrize("target", [0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_minimality_on_a_random_model(target: float) -> None:
    runs = random_runs("attn-only-no-norm")
    evaluator = Evaluator(runs, "resample")
    found = prune(scores_of(runs), Rule(faithfulness=target, evaluations=100_000), evaluator)
    assert found.minimal
    assert 0 < found.mask.sum() < runs.model.anatomy.n_edges
    trials = []
    for w, r in np.argwhere(found.mask):
        rest = found.mask.copy()
        rest[w, r] = False
        trials.append(connected(runs.model.anatomy, rest))
    assert (evaluator.faithfulness(trials) < target).all()


class CountsEdges(Evaluator):
    """A model in which every edge carries the same share."""

    def faithfulness(self, masks: Any) -> np.ndarray:
        self.n_evaluations += len(masks)
        return np.array([mask.sum() / self.runs.model.anatomy.n_edges for mask in masks])


@pytest.mark.parametrize("target", np.linspace(0.1, 0.95, 12).tolist())
def test_not_one_edge_too_many_where_every_edge_counts_alike(target: float) -> None:
    runs = random_runs("attn-only-no-norm")
    anatomy, evaluator = runs.model.anatomy, CountsEdges(runs, "resample")
    found = prune(random_scores(anatomy), Rule(faithfulness=target, evaluations=100_000), evaluator)
    assert found.minimal
    assert found.mask.sum() >= target * anatomy.n_edges
    for w, r in np.argwhere(found.mask):
        rest = found.mask.copy()
        rest[w, r] = False
        assert connected(anatomy, rest).sum() < target * anatomy.n_edges


def test_a_budget_that_runs_out_still_reaches_the_target_and_says_so() -> None:
    runs = random_runs("ln-pre")
    free = prune(scores_of(runs), Rule(faithfulness=0.8), Evaluator(runs, "resample"))
    for budget in (1, 60):
        found = prune(
            scores_of(runs), Rule(faithfulness=0.8, evaluations=budget), Evaluator(runs, "resample")
        )
        assert not found.minimal
        assert Evaluator(runs, "resample").faithfulness([found.mask])[0] >= 0.8
        assert found.evaluations < free.evaluations


def test_the_same_again() -> None:
    for runs, direction in (
        (random_runs("ln-pre"), "noising"),
        (planted_runs("planted/or-gate:0"), "denoising"),
    ):
        results = [
            prune(
                scores_of(runs),
                Rule(faithfulness=0.9, evaluations=300),
                Evaluator(runs, "resample"),
                direction=direction,  # type: ignore[arg-type]
            )
            for _ in range(2)
        ]
        np.testing.assert_array_equal(results[0].mask, results[1].mask)
        assert [(r.prefix, r.minimal, r.evaluations) for r in results[:1]] == [
            (r.prefix, r.minimal, r.evaluations) for r in results[1:]
        ]


def test_denoising_keeps_both_arms_of_an_or() -> None:
    name = "planted/or-gate:1"
    runs, truth = planted_runs(name), planted(name)
    scores = get_method("eap").run(runs, ablation="resample", direction="denoising")
    arms = [n for n, role in truth.roles.items() if role in ("arm-a", "arm-b")]
    found = {
        direction: prune(scores, Rule(faithfulness=0.9), Evaluator(runs, "resample"), direction=direction)  # type: ignore[arg-type]
        for direction in ("noising", "denoising")
    }
    rows = [runs.model.anatomy.row_of(arm) for arm in arms]
    assert all(found["denoising"].mask[row].any() for row in rows)
    assert sum(bool(found["noising"].mask[row].any()) for row in rows) == 1


def test_the_report_is_told_of_progress() -> None:
    said: list[str] = []
    runs = planted_runs("planted/induction:1")
    prune(scores_of(runs), Rule(faithfulness=0.9), Evaluator(runs, "resample"), report=said.append)
    assert "edges reach 0.9" in said[0]


# --- by size and by threshold ---------------------------------------------------------------------------------


def random_scores(anatomy: Anatomy, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    values = np.where(anatomy.edge_mask, rng.normal(size=anatomy.edge_mask.shape), np.nan)
    return Scores(anatomy, "edge", values, "eap", "noising", "logit-diff", "resample")


@pytest.mark.parametrize("family", ["ln-pre", "kv-groups"])
def test_a_number_of_edges_is_kept_to_and_used_up(family: str) -> None:
    runs = random_runs(family)
    anatomy, evaluator = runs.model.anatomy, Evaluator(runs, "resample")
    scores = random_scores(anatomy)
    order = rank(scores)
    sizes = [int(connected(anatomy, prefix_mask(anatomy, order, n)).sum()) for n in range(len(order) + 1)]
    for wanted in (1, 5, 12, 30, anatomy.n_edges, 10_000):
        best = max(n for n in range(len(order) + 1) if sizes[n] <= wanted)
        if not sizes[best]:
            with pytest.raises(RunError, match="no way from the input to the logits"):
                prune(scores, Rule(edges=wanted), evaluator)
            continue
        found = prune(scores, Rule(edges=wanted), evaluator)
        np.testing.assert_array_equal(found.mask, connected(anatomy, prefix_mask(anatomy, order, best)))
        assert found.mask.sum() <= wanted
        assert is_connected(anatomy, found.mask)
        assert not found.minimal
    assert evaluator.n_evaluations == 0  # nothing is run for it


def test_a_threshold_keeps_what_reaches_it() -> None:
    runs = random_runs("ln-pre")
    anatomy, evaluator = runs.model.anatomy, Evaluator(runs, "resample")
    scores = random_scores(anatomy)
    edge = rank(scores)[40]
    for threshold in (0.0, 0.5, float(abs(scores.values[edge]))):
        found = prune(scores, Rule(threshold=threshold), evaluator)
        wanted = connected(anatomy, np.nan_to_num(np.abs(scores.values), nan=-1) >= threshold)
        np.testing.assert_array_equal(found.mask, wanted)
    assert found.prefix == 41  # an edge exactly at the threshold stays
    assert type(found.prefix) is int  # it goes into JSON
    with pytest.raises(RunError, match="no way from the input to the logits"):
        prune(scores, Rule(threshold=99.0), evaluator)


def test_a_threshold_for_node_scores_is_refused() -> None:
    runs = random_runs("ln-pre")
    with pytest.raises(UsageError, match="needs edge scores"):
        prune(scores_of(runs, "activation-patching"), Rule(threshold=0.1), Evaluator(runs, "resample"))


# --- ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["edge", "node"])
@pytest.mark.parametrize(("value", "problem"), [(0.0, "exactly zero"), (np.nan, "scored nothing")])
def test_scores_that_say_nothing_are_an_error(level: Any, value: float, problem: str) -> None:
    runs = random_runs("ln-pre")
    anatomy = runs.model.anatomy
    shape = anatomy.edge_mask.shape if level == "edge" else anatomy.edge_mask.shape[:1]
    values = np.full(shape, value)
    if level == "edge":
        values[~anatomy.edge_mask] = np.nan
    scores = Scores(anatomy, level, values, "eap", "noising", "logit-diff", "resample")
    evaluator = Evaluator(runs, "resample")
    for rule in (Rule(faithfulness=0.9), Rule(edges=5)):
        with pytest.raises(RunError, match=problem):
            prune(scores, rule, evaluator)
    assert evaluator.n_evaluations == 0


@pytest.mark.parametrize("anatomy", [Anatomy(2, 2, 2), Anatomy(2, 4, 2)])
def test_an_edge_is_as_strong_as_the_weaker_of_its_ends(anatomy: Anatomy) -> None:
    values = np.random.default_rng(0).normal(size=len(anatomy.writers))
    scores = Scores(anatomy, "node", values, "activation-patching", "noising", "logit-diff", "resample")
    order = rank(scores)
    assert len(order) == len(set(order)) == anatomy.n_edges
    assert all(anatomy.edge_mask[e] for e in order)

    def strength(edge: tuple[int, int]) -> float:
        sender = abs(values[edge[0]])
        receiver, _ = anatomy.readers[edge[1]]
        if receiver.kind is Kind.LOGITS:
            return float(sender)
        ends = [abs(values[anatomy.row_of(node)]) for node in anatomy.served_by(receiver)]
        return float(min(sender, max(ends)))

    sizes = [strength(e) for e in order]
    assert sizes == sorted(sizes, reverse=True)
