"""ACDC: the circuit of the plain loop, whatever is guessed, on random and on planted models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.graph import connected
from circuitfind.circuit.prune import prune, rank
from circuitfind.circuit.rule import Rule
from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.methods import get_method
from circuitfind.methods.acdc import ACDC, visiting_order
from circuitfind.model.load import load_model, planted
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs
from tests import families
from tests.methods.slow import paths, search
from tests.methods.slow.problem import ablated, problem

FAMILIES = ("ln", "attn-only", "kv-groups", "gpt2", "neox", "qwen3", "gemma2", "bidirectional")
CLOSE = 1e-5
"""Damage this near to the threshold could go either way in single precision; no case here has any."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@cache
def pairs_of(family: str) -> PromptPairs:
    return families.pairs_for(families.model(family), count=3, last=False)


@cache
def runs_of(family: str, metric: str = "logit-diff") -> Runs:
    return Runs(families.model(family), pairs_of(family), get_metric(metric))


def found(runs: Runs, ablation: Ablation = "resample", **options: Any) -> Scores:
    scores = ACDC(**options).run(runs, ablation=ablation, direction="noising")
    damage = scores.extra["damage"][np.isfinite(scores.extra["damage"])]
    assert np.abs(damage - scores.facts["threshold"]).min() > CLOSE
    return scores


@cache
def reference(family: str, ablation: str, tau: float) -> tuple[Tensor, int]:
    """The kept edges and the number of evaluations, of the plain loop in double precision."""
    case = problem(family, pairs_of(family))
    values = ablated(case, ablation)
    return search.acdc(case.plain, lambda mask: paths.circuit(case, mask, values).mean().item(), tau)


@pytest.mark.parametrize(
    ("family", "ablation"),
    [
        *((family, "resample") for family in FAMILIES),
        *families.thinned(("gemma2", "attn-only"), ("mean", "zero"), 2),
    ],
)
def test_same_circuit_as_the_plain_loop(family: str, ablation: Ablation) -> None:
    wanted, evaluations = reference(family, ablation, 0.05)
    scores = found(runs_of(family), ablation, threshold=0.05)
    assert np.array_equal(scores.extra["kept"], wanted.numpy())
    assert scores.facts["kept"] == int(wanted.sum())
    assert scores.facts["visited"] == evaluations - 1  # the whole model, which needs no pass here


@pytest.mark.parametrize(("speculate", "tau"), families.thinned([1, 7, 500, 2], [0.004, 0.05, 0.8]))
def test_guesses_change_nothing(tau: float, speculate: int) -> None:
    wanted, _ = reference("kv-groups", "resample", tau)
    scores = found(runs_of("kv-groups"), threshold=tau, speculate=speculate)
    assert np.array_equal(scores.extra["kept"], wanted.numpy())
    if speculate == 1:
        assert scores.facts["evaluations"] == scores.facts["visited"]


@pytest.mark.parametrize("metric", ["kl", "accuracy"])
def test_any_metric(metric: str) -> None:
    """These have no gradient to guess from."""
    runs, tau = runs_of("gpt2", metric), 0.01
    scores = found(runs, threshold=tau)
    evaluator, anatomy = Evaluator(runs, "resample"), runs.model.anatomy
    kept, current = anatomy.edge_mask.copy(), runs.clean.mean()
    for edge in visiting_order(anatomy):
        trial = kept.copy()
        trial[edge] = False
        left = evaluator.values([trial]).mean()
        if current - left < tau:
            kept, current = trial, left
    assert np.array_equal(scores.extra["kept"], kept)


def test_order_is_that_of_the_reference() -> None:
    for family in ("kv-groups", "neox", "attn-only"):
        anatomy = families.model(family).anatomy
        order = [(anatomy.writer_names[w], anatomy.reader_names[r]) for w, r in visiting_order(anatomy)]
        assert order == search.default_order(problem(family, pairs_of(family)).plain)


@pytest.mark.parametrize("family", ["gpt2", "kv-groups"])
def test_kept_edges_rank_first_and_the_threshold_gives_the_circuit(family: str) -> None:
    runs, tau = runs_of(family), 0.05
    scores = found(runs, threshold=tau)
    anatomy, kept, damage = runs.model.anatomy, scores.extra["kept"], scores.extra["damage"]
    assert np.nanmin(damage) < -tau  # a removal helped more than many an edge counts
    first = rank(scores)[: scores.facts["kept"]]
    assert sorted(first) == [(int(w), int(r)) for w, r in np.argwhere(kept)]
    pruned = prune(scores, Rule(threshold=tau), Evaluator(runs, "resample"))
    assert np.array_equal(pruned.mask, connected(anatomy, kept))
    assert np.array_equal(np.isfinite(scores.values), anatomy.edge_mask)
    untried = anatomy.edge_mask & np.isnan(damage)
    assert scores.facts["visited"] == anatomy.n_edges - untried.sum()
    assert not kept[untried].any()
    assert not scores.values[untried].any()


def test_untried_edges_lead_nowhere() -> None:
    """Without the rule of dropping out the same edges stay: nodes that reach the logits over no kept edge carry nothing."""
    scores = found(runs_of("ln"), threshold=0.3)
    anatomy, kept = runs_of("ln").model.anatomy, scores.extra["kept"]
    untried = anatomy.edge_mask & np.isnan(scores.extra["damage"])
    assert untried.any()
    for reader in np.flatnonzero(untried.any(0)):
        rows = [anatomy.row_of(node) for node in anatomy.served_by(anatomy.readers[reader][0])]
        live = connected(anatomy, kept | untried)[rows].any()
        assert not (live and kept[rows].any())


def planted_runs(name: str) -> Runs:
    pairs = tuple(
        PromptPair(p.clean, p.corrupted, (p.answer,), (p.wrong,), len(p.clean) - 1, {}, "", "", "x", "g")
        for p in planted(name).pairs(16, 0)
    )
    return Runs(load_model(name, device="cpu"), PromptPairs(pairs, "planted"), get_metric("logit-diff"))


@pytest.mark.parametrize("kind", ["induction", "and-gate"])
def test_finds_what_was_planted(kind: str) -> None:
    name = f"planted/{kind}:0"
    runs = planted_runs(name)
    anatomy = runs.model.anatomy
    threshold = 0.05 * float(runs.clean.mean() - runs.corrupted.mean())
    results = [found(runs, threshold=threshold, speculate=size) for size in (1, 8, 64)]
    for scores in results:
        mask = connected(anatomy, scores.extra["kept"])
        assert {str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(mask)} == planted(name).edges[
            "resample"
        ]
    one, *blocks = (scores.facts["evaluations"] for scores in results)
    assert all(one <= count < 1.5 * one for count in blocks)


def test_target() -> None:
    """The highest threshold that was seen to reach the target; what was run once is not run again."""
    runs = planted_runs("planted/induction:0")
    scores = ACDC(target=0.9).run(runs, ablation="resample", direction="noising")
    again = ACDC(threshold=scores.facts["threshold"]).run(runs, ablation="resample", direction="noising")
    assert np.array_equal(scores.extra["kept"], again.extra["kept"])
    evaluator = Evaluator(runs, "resample")
    assert evaluator.faithfulness([scores.extra["kept"]])[0] == pytest.approx(
        scores.facts["faithfulness"], abs=CLOSE
    )
    assert scores.facts["faithfulness"] >= 0.9
    higher = ACDC(threshold=2 * scores.facts["threshold"]).run(runs, ablation="resample", direction="noising")
    assert (
        higher.facts["kept"] < scores.facts["kept"] or evaluator.faithfulness([higher.extra["kept"]])[0] < 0.9
    )
    assert scores.facts["evaluations"] < scores.facts["visited"]


def test_removed_edges_are_not_computed() -> None:
    """A trial computes what lies above the edge that it removes, and of that only what still leads to the logits."""
    runs = runs_of("ln")
    found(runs, threshold=0.05)
    passes = runs.model.passes
    before = passes["work"]
    scores = found(runs, threshold=0.05, speculate=1)
    anatomy = runs.model.anatomy
    rows = sum(len(batch.index) * (batch.clean.shape[1] - batch.start) for batch in runs.batches)
    whole = scores.facts["evaluations"] * rows * anatomy.n_layers
    assert passes["work"] - before < 0.6 * whole


def test_what_it_refuses() -> None:
    runs = runs_of("ln")
    for options in ({"threshold": 0.0}, {"target": 1.5}, {"speculate": 0}):
        with pytest.raises(UsageError, match=next(iter(options))):
            get_method("acdc", options).run(runs, ablation="resample", direction="noising")
    with pytest.raises(UnsupportedError, match="noising"):
        ACDC().run(runs, ablation="resample", direction="denoising")
    with pytest.raises(UnsupportedError, match="position"):
        ACDC().run(runs, ablation="resample", direction="noising", positions="all")


def test_the_reference_takes_our_mask() -> None:
    """What is left of the metric, told by both."""
    case, scores = problem("ln", pairs_of("ln")), found(runs_of("ln"), threshold=0.05)
    wanted = paths.circuit(case, torch.from_numpy(np.array(scores.extra["kept"]))).numpy()
    np.testing.assert_allclose(
        Evaluator(runs_of("ln"), "resample").values([scores.extra["kept"]])[0], wanted, atol=CLOSE
    )
