"""The pass, the splice and ablations against the bridge's own pass, prompt by prompt and feature by feature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitfind.config import Ablation
from circuitfind.errors import RunError, UnsupportedError
from circuitfind.sparse.ablate import NodeEvaluator
from circuitfind.sparse.baseline import Baseline
from circuitfind.sparse.passes import recorded, run_points
from circuitfind.sparse.sites import Point, read_sites
from tests import families
from tests.families import FAMILIES
from tests.sparse import cases

every_family = pytest.mark.parametrize("family", FAMILIES)
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")
CASES = [(family, ABLATIONS[i % 3]) for i, family in enumerate(FAMILIES)]
CASES += [("gpt2", other) for other in ABLATIONS[1:]]
NEAR = 2e-4
"""Of metrics of size 1 to 10, in single precision, through two different passes."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@every_family
def test_points_are_where_the_bridge_has_them(family: str) -> None:
    model = families.model(family)
    runs = cases.runs_of(model, lengths=(6,))
    batch = runs.batches[0]
    last = len(model.layers) - 1
    points: list[Point] = [(0, "in"), (0, "attn"), (0, "post"), (last, "attn"), (last, "post")]
    points += [(0, "mlp"), (last, "mlp")] if model.has_mlp else []
    with torch.no_grad():
        final, ours = recorded(model, batch.place(0), model.embed(batch.clean), points)
    torch.testing.assert_close(final, runs.trace(0, "clean").final, atol=1e-5, rtol=1e-5)
    for row, at in enumerate(batch.index):
        theirs = cases.seen_at(model, runs.pairs[int(at)].clean, points)
        for point in points:
            length = ours[point].shape[1]
            torch.testing.assert_close(ours[point][row], theirs[point][0, :length], atol=1e-4, rtol=1e-4)


@every_family
def test_features_and_errors_are_all_there_is(family: str) -> None:
    """Written out as features times decoder, bias and error at every site, the model's answers are its own."""
    model = families.model(family)
    runs = cases.runs_of(model)
    sites = {site.point: site for site in read_sites(model, cases.everywhere(model))}

    def visit(point: Point, x: Tensor) -> Tensor:
        if point not in sites:
            return x
        site = sites[point]
        found = site.encode(x)
        assert (found > 0).any()
        error = x - site.dictionary(x)
        torch.testing.assert_close(site.error(x, found), error, atol=1e-5, rtol=1e-5)
        return found @ site.decoder + site.bias + error

    for number, batch in enumerate(runs.batches):
        with torch.no_grad():
            final = run_points(model, batch.place(0), model.embed(batch.clean), visit)
            values = runs.metric_of(number, model.head(final))
        np.testing.assert_allclose(values, runs.clean[batch.index], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "ablation"), [families.costly(*case) for case in CASES])
def test_sets_of_nodes_alone(family: str, ablation: Ablation) -> None:
    model = families.model(family)
    runs = cases.runs_of(model)
    # The bridge has no hook that replaces the stream in the middle of a block.
    saes = [one for one in cases.everywhere(model) if one.site_in != "mid"]
    base = Baseline(runs, read_sites(model, saes), ablation)
    evaluator = NodeEvaluator(base)
    rng = np.random.default_rng(0)
    names = [str(node) for node in base.nodes]
    masks = [rng.random(len(names)) < density for density in (0.0, 0.3, 0.8, 1.0)]
    found = evaluator.values(masks)
    for mask, values in zip(masks, found, strict=True):
        kept = {name for name, there in zip(names, mask, strict=True) if there}
        np.testing.assert_allclose(
            values, cases.slow_values(runs, saes, kept, ablation), atol=NEAR, rtol=NEAR
        )
    np.testing.assert_allclose(found[0], evaluator.empty)
    np.testing.assert_allclose(found[3], runs.clean, atol=NEAR)
    assert np.abs(found[1] - runs.clean).max() > 10 * NEAR, "the test would not see an ablation"


def test_the_stream_in_the_middle_of_a_block() -> None:
    """What replaces the stream behind the heads replaces what they write, given what came in."""
    model = families.model("ln")
    batch = cases.runs_of(model).batches[0]
    place, stream = batch.place(0), model.embed(batch.clean)
    new = torch.randn_like(stream)
    with torch.no_grad():
        entry = recorded(model, place, stream, [(1, "in")])[1][1, "in"]
        middle = run_points(model, place, stream, lambda p, x: new if p == (1, "mid") else x)
        heads = run_points(model, place, stream, lambda p, x: new - entry if p == (1, "attn") else x)
    torch.testing.assert_close(middle, heads, atol=1e-5, rtol=1e-5)


def test_faithfulness_is_one_and_zero_at_the_ends() -> None:
    model = families.model("gpt2")
    runs = cases.runs_of(model, seed=3)
    if runs.clean.mean() < runs.corrupted.mean():
        runs = cases.runs_of(model, seed=4)
    base = Baseline(runs, read_sites(model, [cases.random_sae(model, 1, "resid_post")]), "resample")
    evaluator = NodeEvaluator(base)
    every = np.ones(len(base.nodes), dtype=bool)
    if evaluator.full.mean() <= evaluator.empty.mean():
        pytest.fail("draw other pairs")
    full, empty = evaluator.evaluate(every), evaluator.evaluate(~every)
    assert full.faithfulness.value == pytest.approx(1, abs=1e-5)
    assert empty.faithfulness.value == 0
    assert (empty.faithfulness.low, empty.faithfulness.high) == (0, 0)
    # The stream behind the last block is all that the logits read.
    np.testing.assert_allclose(evaluator.empty, runs.corrupted, atol=1e-4)
    assert evaluator.n_evaluations == 3


def test_nothing_to_explain() -> None:
    model = families.model("gpt2")
    pairs = families.pairs_for(model, count=3)
    same = families.runs_of(
        model, type(pairs)(tuple(type(p)(**{**vars(p), "corrupted": p.clean}) for p in pairs), "same")
    )
    base = Baseline(same, read_sites(model, [cases.random_sae(model, 1, "resid_post")]), "resample")
    with pytest.raises(RunError, match="nothing of the behaviour"):
        _ = NodeEvaluator(base).gap


def test_many_small_passes_give_the_same() -> None:
    model = families.model("llama")
    pairs = families.pairs_for(model, count=7, lengths=(6, 5, 8))
    saes = cases.everywhere(model)
    tables = []
    for sizes in ({}, {"batch_tokens": 12, "pass_tokens": 7, "budget": 20_000, "cache_bytes": 1}):
        runs = families.runs_of(model, pairs, sizes=sizes)
        base = Baseline(runs, read_sites(model, saes), "mean")
        rng = np.random.default_rng(1)
        tables.append(NodeEvaluator(base).values([rng.random(len(base.nodes)) < 0.5 for _ in range(6)]))
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-5)


def test_only_features_that_fire_are_nodes() -> None:
    model = families.model("gpt2")
    runs = cases.runs_of(model)
    sae = cases.random_sae(model, 0, "resid_post")
    bias = sae.b_enc.clone()
    bias[3] = -1e4
    (site,) = read_sites(model, [replace(sae, b_enc=bias)])
    base = Baseline(runs, [site], "resample")
    fired = torch.zeros(12, dtype=torch.bool)
    for pair in runs.pairs:
        for tokens in (pair.clean, pair.corrupted):
            x = cases.seen_at(model, tokens[: pair.answer_position + 1], [site.point])[site.point]
            fired |= (site.encode(x) > 0).any(1)[0]
    assert not fired[3]
    assert set(base.nodes.held[0]) == set(fired.nonzero()[:, 0].tolist())
    assert [str(node) for node in base.nodes][-1] == "s0.err"
    assert base.nodes.n_features == int(fired.sum())


def test_ablations_that_features_do_not_have() -> None:
    model = families.model("gpt2")
    sites = read_sites(model, [cases.random_sae(model, 0, "resid_post")])
    with pytest.raises(UnsupportedError, match="no optimal ablation"):
        Baseline(cases.runs_of(model), sites, "optimal")
    with pytest.raises(UnsupportedError, match="two prompts of a template and length"):
        Baseline(cases.runs_of(model, count=2), sites, "mean")
