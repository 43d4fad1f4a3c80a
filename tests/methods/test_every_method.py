"""Every registered method on every family: it scores what exists, says NaN of what it did not score, or refuses by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from circuitfind.errors import UnsupportedError
from circuitfind.methods import METHODS, get_method, options_of
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from tests import families
from tests.families import pairs_for

# Small versions of the methods that search or learn: what is tested here is that they run at all.
OPTIONS: dict[str, dict[str, Any]] = {
    "acdc": {"threshold": 0.05},
    "edge-patching": {"of": "eap", "top": 5},
    "edge-pruning": {"steps": 3},
    "ensemble": {"of": "eap,relp"},
    "hybrid": {"propose": "eap", "verify": 4},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def runs_of(family: str, metric: str = "logit-diff") -> Runs:
    model = families.model(family)
    return Runs(model, pairs_for(model, count=4, lengths=(5, 7), same=1), get_metric(metric))


@pytest.mark.parametrize("family", families.COSTLY)
@pytest.mark.parametrize("name", METHODS)
def test_it_scores_what_exists(name: str, family: str) -> None:
    runs = runs_of(family)
    anatomy = runs.model.anatomy
    method = get_method(name, OPTIONS.get(name))
    scores = method.run(runs, ablation="resample", direction="noising")
    assert (scores.method, scores.level) == (name, method.level)
    if scores.level == "edge":
        assert np.isnan(scores.values[~anatomy.edge_mask]).all(), "an edge that does not exist has a score"
        scored = scores.values[anatomy.edge_mask]
    else:
        scored = scores.values
    scored = scored[~np.isnan(scored)]
    assert np.isfinite(scored).all()
    assert len(scored) >= 5
    assert np.abs(scored).max() > 0


@pytest.mark.parametrize("name", METHODS)
def test_it_gives_the_same_twice(name: str) -> None:
    runs = [runs_of("gpt2"), runs_of("gpt2")]
    method = get_method(name, OPTIONS.get(name))
    first, second = (method.run(r, ablation="resample", direction="noising").values for r in runs)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", METHODS)
def test_costs_and_options_are_told(name: str) -> None:
    cost = get_method(name).cost(families.model("gpt2").anatomy)
    assert cost.forward >= 1
    assert cost.backward >= 0
    assert all(value is not None for value in options_of(name).values())


@pytest.mark.parametrize("name", METHODS)
def test_kl_has_no_gradient_at_the_clean_run(name: str) -> None:
    """Methods that would take it refuse; those that run the model, or take it elsewhere, do not."""
    method = get_method(name, OPTIONS.get(name))
    takes_it = name in (
        "eap",
        "clean-corrupted",
        "relp",
        "gim",
        "atp",
        "atp-star",
        "ensemble",
        "edge-patching",
    )
    takes_it |= name in ("hybrid", "edge-pruning")  # eap proposes, and gives the masks their start
    if takes_it:
        with pytest.raises(UnsupportedError, match=r"gradient .* zero"):
            method.run(runs_of("gpt2", "kl"), ablation="resample", direction="noising")
    else:
        scores = method.run(runs_of("gpt2", "kl"), ablation="resample", direction="noising")
        assert np.nanmax(np.abs(scores.values)) > 0
