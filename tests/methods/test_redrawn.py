"""Scores of drawn prompts from one run, against the method run again on the drawn prompts.

Tolerance: 1e-5 of the largest score, the rounding of single precision sums in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from circuitfind.config import Ablation, Direction
from circuitfind.errors import UnsupportedError
from circuitfind.methods import METHODS, get_method, gradient_edges
from circuitfind.methods.base import Method
from circuitfind.methods.gradient_edges import GradientMethod, weighted_scores
from circuitfind.methods.redrawn import is_additive, redrawn_scores
from circuitfind.model.runs import Runs
from tests import families
from tests.families import pairs_for, runs_of

NEAR = 1e-5
OPTIONS: dict[str, dict[str, Any]] = {
    "edge-patching": {"of": "eap", "top": 6},
    "ensemble": {"of": "eap,relp,eap-ig:steps=2"},
    "hybrid": {"propose": "eap", "verify": 5},
    "eap-ig-activations": {"steps": 2},
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, OPTIONS.get(name, {})) for name in METHODS if name not in ("acdc", "edge-pruning", "ifr")),
    ("edge-patching", {}),
    ("hybrid", {"propose": "atp", "verify": 3}),
    ("atp-star", {"grad_drop": False}),
]
DRAWS = np.array([[0, 0, 3, 5, 1, 0], [2, 2, 2, 2, 2, 2], [5, 4, 3, 2, 1, 0]])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def weights_of(draws: np.ndarray, prompts: int) -> np.ndarray:
    return np.stack([np.bincount(draw, minlength=prompts) / len(draw) for draw in draws])


def some_runs(family: str, **options: Any) -> Runs:
    model = families.model(family)
    return runs_of(model, pairs_for(model, count=6, lengths=(5, 7), same=1), **options)


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    scale = float(np.nanmax(np.abs(theirs)))
    assert scale > 1e-4, "nothing is scored, so nothing is tested"
    np.testing.assert_allclose(ours, theirs, atol=NEAR * scale, rtol=0)


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda x: x if isinstance(x, str) else len(x))
def test_they_are_those_of_the_method_run_again(name: str, options: dict[str, Any]) -> None:
    the_same(get_method(name, options), some_runs("gpt2"))


@pytest.mark.parametrize("name", ["eap", "atp", "hybrid"])
@pytest.mark.parametrize("family", ["gemma2", "kv-groups", "bidirectional"])
def test_other_families(family: str, name: str) -> None:
    the_same(get_method(name, OPTIONS.get(name)), some_runs(family))


def the_same(method: Method, runs: Runs) -> None:
    assert is_additive(method, "resample")
    found = redrawn_scores(
        runs, method, weights_of(DRAWS, len(runs)), ablation="resample", direction="noising"
    )
    for draw, scores in zip(DRAWS, found, strict=True):
        again = runs_of(runs.model, runs.pairs.subset(draw.tolist()))
        slow = method.run(again, ablation="resample", direction="noising")
        close(scores.values, slow.values)
        assert (scores.method, scores.level) == (slow.method, slow.level)
        if slow.nodes is not None:
            assert scores.nodes is not None
            close(scores.nodes, slow.nodes)


@pytest.mark.parametrize(
    ("name", "ablation", "direction"),
    [
        ("eap", "zero", "noising"),
        ("eap", "resample", "denoising"),
        ("eap", "optimal", "noising"),
        ("hybrid", "zero", "noising"),
        ("hybrid", "resample", "denoising"),
        ("activation-patching", "resample", "denoising"),
    ],
)
def test_other_ablations_and_directions(name: str, ablation: Ablation, direction: Direction) -> None:
    method, runs = get_method(name, OPTIONS.get(name)), some_runs("gpt2")
    found = redrawn_scores(runs, method, weights_of(DRAWS, len(runs)), ablation=ablation, direction=direction)
    for draw, scores in zip(DRAWS, found, strict=True):
        again = runs_of(runs.model, runs.pairs.subset(draw.tolist()))
        again.constants = runs.constants  # of all prompts, where there are any
        close(scores.values, method.run(again, ablation=ablation, direction=direction).values)


@pytest.mark.parametrize("name", ["eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "relp", "gim"])
def test_single_prompts_sum_to_the_scores(name: str) -> None:
    """[prompt, writer, reader], whatever the batches; their mean is the method's score."""
    runs, method = some_runs("gpt2"), get_method(name)
    assert isinstance(method, GradientMethod)
    edges, nodes = weighted_scores(runs, method, np.eye(len(runs)), ablation="resample", direction="noising")
    assert edges.shape == (6, *runs.model.anatomy.edge_mask.shape)
    scores = method.run(runs, ablation="resample", direction="noising")
    assert scores.nodes is not None
    close(edges.mean(0), scores.values)
    close(nodes.mean(0), scores.nodes)
    close(np.nansum(edges, axis=2), nodes)
    assert len({round(float(np.nansum(one)), 6) for one in edges}) == 6, "each prompt has its own"


def test_prompts_go_through_in_smaller_batches_where_tables_are_large(monkeypatch: Any) -> None:
    runs, method = some_runs("gpt2"), get_method("eap")
    assert isinstance(method, GradientMethod)
    whole, _ = weighted_scores(runs, method, np.eye(6), ablation="resample", direction="noising")
    before = runs.model.passes["backward"]
    monkeypatch.setattr(gradient_edges, "TABLE_BYTES", 1)
    single, _ = weighted_scores(runs, method, np.eye(6), ablation="resample", direction="noising")
    assert runs.model.passes["backward"] - before == 6, "one prompt at a time"
    close(single, whole)


def test_one_run_serves_any_number_of_draws() -> None:
    for name, backward in (("eap", 1), ("eap-ig", 5), ("clean-corrupted", 2)):
        model = families.model("gpt2")
        runs = runs_of(model, pairs_for(model, count=6, lengths=(6,)))
        before = model.passes["backward"]
        redrawn_scores(
            runs, get_method(name), np.full((50, 6), 1 / 6), ablation="resample", direction="noising"
        )
        assert model.passes["backward"] - before == backward


def test_what_is_no_mean_over_prompts() -> None:
    no = [
        get_method("acdc"),
        get_method("edge-pruning"),
        get_method("ifr"),
        get_method("activation-patching", {"both": True}),
        get_method("ensemble", {"of": "eap,ifr"}),
        get_method("edge-patching", {"of": "ifr"}),
    ]
    assert not any(is_additive(method, "resample") for method in no)
    assert not is_additive(get_method("eap"), "mean")
    with pytest.raises(ValueError, match="no mean over prompts"):
        redrawn_scores(some_runs("gpt2"), get_method("eap"), np.eye(6), ablation="mean", direction="noising")


def test_it_refuses_what_the_method_refuses() -> None:
    for name in ("eap", "hybrid", "edge-patching"):
        with pytest.raises(UnsupportedError):
            redrawn_scores(
                some_runs("gpt2"), get_method(name), np.eye(6), ablation="zero", direction="denoising"
            )
    with pytest.raises(UnsupportedError, match="gradient"):
        redrawn_scores(
            some_runs("gpt2", metric="kl"),
            get_method("eap"),
            np.eye(6),
            ablation="resample",
            direction="noising",
        )
