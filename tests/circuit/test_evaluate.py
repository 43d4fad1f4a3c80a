"""Faithfulness is a ratio of means, and its interval that of a plain bootstrap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from circuitfind.circuit.evaluate import BOOTSTRAP, Evaluator, bootstrap_ratio
from circuitfind.errors import RunError
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPairs
from tests import families
from tests.families import pairs_for, random_mask


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def evaluator(ablation: str = "resample", count: int = 12) -> Evaluator:
    """A random model, with the answers turned so that there is something to explain."""
    model = families.model("ln")
    pairs = pairs_for(model, count=count)
    runs = Runs(model, pairs, get_metric("logit-diff"))
    gain = runs.clean - runs.corrupted
    turned = tuple(
        p if g > 0 else replace(p, answer=p.wrong, wrong=p.answer) for p, g in zip(pairs, gain, strict=True)
    )
    return Evaluator(Runs(model, PromptPairs(turned, "random"), get_metric("logit-diff")), ablation)  # type: ignore[arg-type]


def test_faithfulness_is_a_ratio_of_means() -> None:
    ev = evaluator()
    runs, every = ev.runs, ev.runs.model.anatomy.edge_mask
    mask = random_mask(every, 0.6, 0)
    circuit = runs.patched([Patch(edges=every & ~mask)])[0]
    wanted = (circuit.mean() - runs.corrupted.mean()) / (runs.clean.mean() - runs.corrupted.mean())
    (found,) = ev.faithfulness([mask])
    assert found == pytest.approx(wanted, abs=1e-5)
    ratios = (circuit - runs.corrupted) / (runs.clean - runs.corrupted)
    assert abs(ratios.mean() - wanted) > 1e-3, "the two do not differ here, so the test says nothing"
    result = ev.evaluate(mask)
    assert result.faithfulness.value == pytest.approx(wanted, abs=1e-5)
    assert (result.circuit, result.full, result.empty) == (
        pytest.approx(circuit.mean(), abs=1e-5),
        pytest.approx(runs.clean.mean()),
        pytest.approx(runs.corrupted.mean(), abs=1e-5),
    )
    assert (result.ablation, result.metric, result.n_prompts) == ("resample", "logit-diff", 12)


def test_the_interval_is_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(5)
    top, bottom = rng.normal(2, 1, 40), rng.normal(3, 0.5, 40)
    low, high = bootstrap_ratio(top, bottom, seed=7)
    again = np.random.default_rng(7)
    draws = again.integers(0, 40, size=(BOOTSTRAP, 40))
    ratios = [sum(top[i] for i in row) / sum(bottom[i] for i in row) for row in draws]
    assert (low, high) == (
        pytest.approx(np.percentile(ratios, 2.5)),
        pytest.approx(np.percentile(ratios, 97.5)),
    )
    assert low < top.mean() / bottom.mean() < high
    assert bootstrap_ratio(top, bottom, seed=7) == (low, high)
    assert bootstrap_ratio(top, bottom, seed=8) != (low, high)
    narrow = bootstrap_ratio(top, bottom, seed=7, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        bottom = rng.normal(3, 1, 60)
        top = 0.8 * bottom + rng.normal(0, 1, 60)
        low, high = bootstrap_ratio(top, bottom, seed=trial)
        hits += low <= 0.8 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_evaluations_are_counted_and_deterministic() -> None:
    ev = evaluator()
    masks = [random_mask(ev.runs.model.anatomy.edge_mask, d, 0) for d in (0.2, 0.5)]
    ev.values(masks)
    assert ev.n_evaluations == 2
    first = ev.evaluate(masks[1])
    assert first == ev.evaluate(masks[1])
    assert first != ev.evaluate(masks[1], seed=1)
    assert first == evaluator().evaluate(masks[1])


def test_each_circuit_is_run_once_however_often_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitfind.circuit.evaluate.AT_ONCE", 3)
    ev = evaluator()
    every = ev.runs.model.anatomy.edge_mask
    masks = [random_mask(every, d, 0) for d in (0.2, 0.3, 0.4, 0.5, 0.6)]
    asked = [*masks, masks[2], every.copy(), np.zeros_like(every), masks[0], every | True]
    found = ev.each_once(mask for mask in asked)
    assert ev.n_evaluations == 1 + 5  # the empty one, and five
    np.testing.assert_allclose(found, evaluator().values([mask & every for mask in asked]), atol=1e-5)
    np.testing.assert_array_equal(found[6], ev.full)
    np.testing.assert_array_equal(found[7], ev.empty)
    np.testing.assert_array_equal(found[5], found[2])
    assert ev.each_once([]).shape == (0, 12)


def test_nothing_to_explain_is_an_error() -> None:
    model = families.model("ln")
    same = tuple(replace(p, corrupted=p.clean) for p in pairs_for(model))
    ev = Evaluator(Runs(model, PromptPairs(same, "none"), get_metric("logit-diff")), "resample")
    with pytest.raises(RunError, match="no behaviour left to explain"):
        ev.faithfulness([model.anatomy.edge_mask.copy()])
    # A corrupted prompt that is better than the clean one explains nothing either.
    worse = evaluator()
    turned = tuple(replace(p, answer=p.wrong, wrong=p.answer) for p in worse.runs.pairs)
    ev = Evaluator(Runs(model, PromptPairs(turned, "worse"), get_metric("logit-diff")), "resample")
    with pytest.raises(RunError, match="no behaviour left to explain"):
        _ = ev.gap
