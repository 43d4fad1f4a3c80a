"""Scores of nodes against finite differences and really replaced sites, in double precision."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitfind.config import Ablation
from circuitfind.errors import UnsupportedError
from circuitfind.model.bridge import Model
from circuitfind.sparse.baseline import Baseline
from circuitfind.sparse.passes import run_points
from circuitfind.sparse.scores import path_points, score_nodes
from circuitfind.sparse.sites import Site, read_sites
from tests import families
from tests.families import FAMILIES
from tests.sparse import cases

ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")
CASES = [(family, ABLATIONS[i % 3]) for i, family in enumerate(FAMILIES)]
# The gradients themselves are checked in every family below. A path to zero passes where a norm bends so sharply that random
# weights take hundreds of steps; two families do not.
MILD: list[tuple[str, Ablation]] = [
    ("gpt2", "zero"),
    ("no-norm", "zero"),
    ("neox", "mean"),
    ("qwen3", "mean"),
    ("attn-only", "mean"),
    ("gemma2", "resample"),
    ("kv-groups", "resample"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def baseline(model: Model, ablation: Ablation, **options: int) -> Baseline:
    return Baseline(cases.runs_of(model, **options), read_sites(model, cases.everywhere(model)), ablation)


def replaced(base: Baseline, number: int, site: Site, value: Tensor) -> float:
    """The sum of the metric over a batch of clean prompts, with one site given."""
    model, batch = base.model, base.runs.batches[number]
    with torch.no_grad():
        stream = model.embed(batch.clean)
        final = run_points(model, batch.place(0), stream, lambda p, x: value if p == site.point else x)
        return float(base.metric(number, final).sum())


@pytest.mark.parametrize(("family", "ablation"), MILD)
def test_a_site_adds_up_to_what_replacing_it_does(family: str, ablation: Ablation) -> None:
    """Integrated gradients: exact for many steps, and the gap falls as steps are added."""
    model = cases.in_double(family)
    base = baseline(model, ablation, count=4)
    gaps: list[float] = []
    for steps in (4, 32):
        scores = score_nodes(base, steps)
        gap = []
        for at, site in enumerate(base.sites):
            effect = 0.0
            for number in range(len(base.runs.batches)):
                held = base.batch(number)
                effect += replaced(base, number, site, held.clean[site.point])
                effect -= replaced(base, number, site, held.cut[site.point])
            total = float(scores[base.nodes.span(at)].sum())
            gap.append(abs(total - effect / len(base.runs)))
        gaps.append(max(gap))
    assert gaps[-1] < 2e-2
    assert gaps[-1] < 0.2 * gaps[0] + 1e-9


@pytest.mark.parametrize(("family", "ablation"), CASES)
def test_the_plain_gradient_is_a_finite_difference(family: str, ablation: Ablation) -> None:
    """One node of a site at a time is moved a little from its clean towards its ablated value."""
    model = cases.in_double(family)
    base = baseline(model, ablation, count=4)
    scores = score_nodes(base, 1)
    epsilon = 1e-5
    names = [str(node) for node in base.nodes]
    rng = np.random.default_rng(0)
    for at, site in enumerate(base.sites):
        span = base.nodes.span(at)
        held = base.nodes.held[at]
        for own in {span.stop - 1 - span.start, *rng.integers(0, len(held), 3).tolist()}:
            slope = 0.0
            for number in range(len(base.runs.batches)):
                batch = base.batch(number)
                x, cut = batch.clean[site.point], batch.cut[site.point]
                if own == len(held):
                    change = base.errors_of(site, x) - batch.errors[site.point]
                else:
                    index = torch.from_numpy(held[[own]])
                    feature = site.encode(x)[..., index] - base.cut_features(number, site, index)
                    change = feature @ site.decoder[index]
                assert cut.shape == change.shape
                ends = [replaced(base, number, site, x + way * epsilon * change) for way in (1, -1)]
                slope += (ends[0] - ends[1]) / (2 * epsilon)
            slope /= len(base.runs)
            near = 1e-6 if family != "gemma2" else 1e-3  # its attention patterns are in single precision
            assert scores[span.start + own] == pytest.approx(slope, abs=near, rel=near), names[
                span.start + own
            ]
    assert np.abs(scores).max() > 1e-3


def test_points_on_the_path() -> None:
    assert path_points(1) == [1.0]
    assert path_points(2) == [0.25, 0.75]
    assert np.mean(path_points(10)) == pytest.approx(0.5)


def test_the_sign_is_positive_where_the_clean_value_helps() -> None:
    """An SAE whose decoder holds the direction that the logits read: what helps the answer scores above zero."""
    model = cases.in_double("no-norm")
    runs = cases.runs_of(model, lengths=(6,))
    (site,) = read_sites(model, [cases.random_sae(model, len(model.layers) - 1, "resid_post")])
    base = Baseline(runs, [site], "zero")
    scores = score_nodes(base, 1)
    # Without a final norm the metric is linear in what stands there: the score is exact, feature by feature.
    wanted = np.zeros(len(base.nodes))
    for number, batch in enumerate(base.runs.batches):
        x = base.batch(number).place.at_answer(base.batch(number).clean[site.point])[:, 0]
        for row, at in enumerate(batch.index):
            pair = runs.pairs[int(at)]
            read = model.w_u[:, pair.answer[0]] - model.w_u[:, pair.wrong[0]]
            features = site.encode(x[row])
            index = torch.from_numpy(base.nodes.held[0])
            wanted[:-1] += (features * (site.decoder @ read))[index].numpy() / len(runs)
            wanted[-1] += float(site.error(x[row], features) @ read) / len(runs)
    np.testing.assert_allclose(scores, wanted, atol=1e-10)


def test_work_is_counted_and_told() -> None:
    model = families.model("gpt2")
    base = baseline(model, "resample", lengths=(6,))
    told: list[int] = []
    before = dict(model.passes)
    score_nodes(base, 5, progress=told.append)
    assert model.passes["backward"] - before["backward"] == 5 * len(base.sites)
    assert sum(told) == 5 * len(base.sites) * len(base.runs)
    before = dict(model.passes)
    score_nodes(base, 1)
    assert model.passes["backward"] - before["backward"] == 1, (
        "attribution patching is one pass for all sites"
    )


@pytest.mark.parametrize("metric", ["kl", "accuracy"])
def test_metrics_without_a_gradient(metric: str) -> None:
    model = families.model("gpt2")
    runs = families.runs_of(model, families.pairs_for(model), metric)
    base = Baseline(runs, read_sites(model, [cases.random_sae(model, 0, "resid_post")]), "resample")
    with pytest.raises(UnsupportedError, match="gradient"):
        score_nodes(base)
