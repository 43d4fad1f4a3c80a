"""Edges against finite differences with everything between the two ends held, and against the chain rule."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitfind.config import Ablation
from circuitfind.sparse.baseline import Baseline
from circuitfind.sparse.edges import score_edges
from circuitfind.sparse.passes import run_points
from circuitfind.sparse.scores import score_nodes
from circuitfind.sparse.sites import Point, Site, read_sites
from tests import families
from tests.families import FAMILIES
from tests.sparse import cases

ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")
CASES = [(family, ABLATIONS[(i + 1) % 3]) for i, family in enumerate(FAMILIES)]
EPSILON = 1e-5


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def baseline(model: object, ablation: Ablation) -> Baseline:
    found = cases.runs_of(model, count=4)  # type: ignore[arg-type]
    return Baseline(found, read_sites(found.model, cases.everywhere(found.model)), ablation)


@pytest.mark.parametrize(("family", "ablation"), CASES)
def test_what_leaves_a_node_is_its_score(family: str, ablation: Ablation) -> None:
    """The chain rule: over all nodes above it and the logits, the weights sum to the score by the plain gradient."""
    base = baseline(cases.in_double(family), ablation)
    every = np.ones(len(base.nodes), dtype=bool)
    weights = score_edges(base, every)
    np.testing.assert_allclose(weights.sum(1), score_nodes(base, 1), atol=1e-9)
    assert (np.abs(weights) > 1e-4).sum() > len(base.nodes)


@pytest.mark.parametrize(("family", "ablation"), CASES[::2])
def test_edges_are_what_moves_along_the_direct_way(family: str, ablation: Ablation) -> None:
    """Brute force: the upstream node is moved, all sites between stay clean, the downstream one is read off."""
    base = baseline(cases.in_double(family), ablation)
    kept = np.random.default_rng(0).random(len(base.nodes)) < 0.5
    kept[base.nodes.errors] = True
    weights = score_edges(base, kept)
    chosen = np.flatnonzero(kept)
    strongest = np.argsort(-np.abs(weights), axis=None)[:6]
    rng = np.random.default_rng(1)
    drawn = [*zip(*np.unravel_index(strongest, weights.shape), strict=True)]
    drawn += [(rng.integers(len(chosen)), rng.integers(len(chosen) + 1)) for _ in range(8)]
    for sender, receiver in drawn:
        up = int(chosen[sender])
        down = int(chosen[receiver]) if receiver < len(chosen) else None
        wanted = slow_edge(base, up, down)
        assert weights[sender, receiver] == pytest.approx(wanted, abs=1e-6, rel=1e-3), (up, down)


def site_of(base: Baseline, node: int) -> tuple[int, int]:
    """(site, place in it)."""
    for at in range(len(base.sites)):
        span = base.nodes.span(at)
        if span.start <= node < span.stop:
            return at, node - span.start
    raise IndexError(node)


def part(base: Baseline, site: Site, at: int, own: int, x: Tensor) -> Tensor:
    """What one node is, given what stands at its site: an activation at each position, or an error's vectors."""
    features = site.encode(x)
    if own == len(base.nodes.held[at]):
        return site.error(x, features)
    return features[..., int(base.nodes.held[at][own])][..., None]


def slow_edge(base: Baseline, up: int, down: int | None) -> float:
    total = 0.0
    for number in range(len(base.runs.batches)):
        total += slow_edge_of_batch(base, number, up, down)
    return total / len(base.runs)


@torch.no_grad()
def slow_edge_of_batch(base: Baseline, number: int, up: int, down: int | None) -> float:
    model, batch, held = base.model, base.runs.batches[number], base.batch(number)
    at, own = site_of(base, up)
    site = base.sites[at]
    x = held.clean[site.point]
    index = base.nodes.held[at]
    if own == len(index):
        change = base.errors_of(site, x) - held.errors[site.point]
    else:
        one = torch.from_numpy(index[[own]])
        change = (site.encode(x)[..., one] - base.cut_features(number, site, one)) @ site.decoder[one]
    target = None if down is None else site_of(base, down)
    if target is not None and target[0] <= at:
        return 0.0

    def run(values: dict[Point, Tensor]) -> tuple[Tensor, dict[Point, Tensor]]:
        """Sites not given go on with what comes in; what came in at every site."""
        came: dict[Point, Tensor] = {}

        def visit(point: Point, here: Tensor) -> Tensor:
            came[point] = here
            return values.get(point, here)

        final = run_points(model, batch.place(0), model.embed(batch.clean), visit)
        return base.metric(number, final), came

    def moved(way: float) -> tuple[Tensor, dict[Point, Tensor]]:
        """The upstream node moved; every other site is held at what it is in the clean run."""
        values = {s.point: held.clean[s.point] for s in base.sites}
        values[site.point] = x + way * EPSILON * change
        return run(values)

    (high, came), (low, came_low) = moved(1), moved(-1)
    if target is None:
        return float((high - low).sum()) / (2 * EPSILON)
    other = base.sites[target[0]]
    shift = part(base, other, *target, came[other.point]) - part(base, other, *target, came_low[other.point])
    shift = shift / (2 * EPSILON)
    # The whole effect of the downstream node, moved as far as the upstream one moves it.
    way = shift
    if target[1] < len(base.nodes.held[target[0]]):
        way = shift * other.decoder[int(base.nodes.held[target[0]][target[1]])]
    clean = held.clean[other.point]
    ends = [run({other.point: clean + sign * EPSILON * way})[0].sum() for sign in (1, -1)]
    return float(ends[0] - ends[1]) / (2 * EPSILON)


def test_one_pass_back_for_each_node() -> None:
    model = families.model("gpt2")
    runs = cases.runs_of(model, lengths=(6,))
    base = Baseline(runs, read_sites(model, cases.everywhere(model)), "resample")
    kept = np.zeros(len(base.nodes), dtype=bool)
    kept[[0, 5, base.nodes.span(2).start, base.nodes.span(4).stop - 1]] = True
    before, told = dict(model.passes), []
    weights = score_edges(base, kept, progress=told.append)
    assert weights.shape == (4, 5)
    # Two nodes have others below them; the logits; and the gradient of the metric at every site.
    assert model.passes["backward"] - before["backward"] == 2 + 1 + 1
    assert told == [len(runs)] * 3
    assert not weights[:, :2].any(), "nothing runs into the lowest site"
