"""EAP-IG (activations) against the slow reference, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from circuitfind.config import Ablation, Direction
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.methods import get_method
from circuitfind.methods.eap_ig_activations import EAPIGActivations
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from tests import families
from tests.families import COSTLY, pairs_for
from tests.methods.slow import edges
from tests.methods.slow.problem import ablated, problem

every_family = pytest.mark.parametrize("family", COSTLY)
FEW = ("gpt2", "neox", "gemma2", "bidirectional", "kv-groups", "attn-only")
POINTS = {"midpoint": edges.middle, "left": edges.left, "right": edges.right}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def runs_of(family: str, metric: str = "logit-diff", **options: object) -> Runs:
    model = families.model(family)
    return Runs(model, pairs_for(model, **options), get_metric(metric))  # type: ignore[arg-type]


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference as a share of the largest score; both must be missing at the same places."""
    return float(np.nanmax(np.abs(found - np.where(np.isnan(found), 0, wanted))) / np.abs(wanted).max())


def reference(family: str, runs: Runs, shares: list[Fraction], ablation: Ablation = "resample") -> np.ndarray:
    case = problem(family, runs.pairs)
    return edges.eap_ig_activations(case, shares, ablated=ablated(case, ablation)).numpy()


# --- the reference ------------------------------------------------------------------------------------------------


@every_family
def test_against_the_slow_reference(family: str) -> None:
    runs = runs_of(family, count=4, last=False)
    found = EAPIGActivations(steps=3).run(runs, ablation="resample", direction="noising")
    assert off(found.values, reference(family, runs, edges.middle(3))) < 1e-5
    np.testing.assert_array_equal(np.isnan(found.values), ~runs.model.anatomy.edge_mask)
    assert found.facts["identity_gap"] < 1e-4


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_other_ablations(family: str, ablation: Ablation) -> None:
    runs = runs_of(family, count=4, last=False)
    found = EAPIGActivations(steps=2).run(runs, ablation=ablation, direction="noising")
    assert off(found.values, reference(family, runs, edges.middle(2), ablation)) < 1e-5


@pytest.mark.parametrize("points", POINTS)
def test_points(points: str) -> None:
    runs = runs_of("gemma2", count=3)
    found = EAPIGActivations(steps=2, points=points).run(runs, ablation="resample", direction="noising")
    assert off(found.values, reference("gemma2", runs, POINTS[points](2))) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "attn-only"])
def test_shared_beginnings_and_several_lengths(family: str) -> None:
    """Clean and corrupted start with the same two tokens: what is before the first difference is not run."""
    runs = runs_of(family, count=6, lengths=(7, 9), same=2)
    assert runs.batches[0].start >= 2
    found = EAPIGActivations(steps=2).run(runs, ablation="resample", direction="noising")
    assert off(found.values, reference(family, runs, edges.middle(2))) < 1e-5


def test_direction_makes_no_difference() -> None:
    ways: tuple[Direction, ...] = ("noising", "denoising")
    one, other = (
        EAPIGActivations(steps=2).run(runs_of("gpt2"), ablation="resample", direction=way) for way in ways
    )
    np.testing.assert_array_equal(one.values, other.values)
    assert (one.direction, other.direction) == ways


# --- positions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_positions_add_up(ablation: Ablation) -> None:
    runs = runs_of("gpt2", count=4, same=1)
    method = EAPIGActivations(steps=2)
    whole = method.run(runs, ablation=ablation, direction="noising")
    apart = method.run(runs, ablation=ablation, direction="noising", positions="all")
    assert apart.by_position is not None
    scale = np.nanmax(np.abs(whole.values))
    np.testing.assert_allclose(apart.by_position.sum(0), whole.values, atol=1e-5 * scale)
    np.testing.assert_allclose(apart.values, np.abs(apart.by_position).sum(0))


# --- cost and refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layers", "parts"), [("gpt2", 2, 5), ("ln", 3, 7), ("neox", 2, 5), ("attn-only", 3, 4)]
)
def test_passes(family: str, layers: int, parts: int) -> None:
    steps = 2
    runs = runs_of(family, count=4)
    model, method = runs.model, EAPIGActivations(steps=steps)
    before = dict(model.passes)
    method.run(runs, ablation="resample", direction="noising")
    used = {kind: model.passes[kind] - before[kind] for kind in before}
    assert used["forward"] == 2 + steps * parts
    assert used["backward"] == steps * parts
    tokens = sum(batch.clean.numel() for batch in runs.batches)
    cost = method.cost(model.anatomy)
    assert cost.backward == steps * parts
    assert used["work"] == tokens * layers * (cost.forward + cost.backward)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="no rule for the integral"):
        EAPIGActivations(points="middle").run(runs_of("gpt2"), ablation="resample", direction="noising")
    with pytest.raises(UnsupportedError, match="zero, so it says nothing"):
        EAPIGActivations(points="right").run(runs_of("gpt2", "kl"), ablation="resample", direction="noising")
    with pytest.raises(UnsupportedError, match="no gradient"):
        EAPIGActivations().run(runs_of("gpt2", "accuracy"), ablation="resample", direction="noising")


def test_the_registry_gives_it() -> None:
    found = get_method("eap-ig-activations", {"steps": "7", "points": "right"})
    assert found == EAPIGActivations(7, "right")
