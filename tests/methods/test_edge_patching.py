"""Edge patching against plain runs with one edge replaced, and against passes that keep every edge apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction
from circuitfind.errors import RunError, UnsupportedError, UsageError
from circuitfind.methods import get_method
from circuitfind.methods.edge_patching import EdgePatching
from circuitfind.model.bridge import Model
from circuitfind.model.memory import make_plan
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPairs
from tests import families
from tests.families import COSTLY, FAMILIES, pairs_for
from tests.methods.slow import edges
from tests.methods.slow.problem import ablated, problem

CLOSE = 1e-5
"""Single precision against double precision, in logits of size one."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def runs_of(model: Model, pairs: PromptPairs, **plan: int) -> Runs:
    return Runs(model, pairs, get_metric("logit-diff"), plan=replace(make_plan(model, None), **plan))


def patching(
    runs: Runs, direction: Direction = "noising", ablation: Ablation = "resample", of: str = "", top: int = 0
) -> Scores:
    return EdgePatching(of, top).run(runs, ablation=ablation, direction=direction)


@pytest.mark.parametrize("family", COSTLY)
def test_every_edge(family: str) -> None:
    """Prompts of two lengths in several batches and passes."""
    model = families.model(family)
    pairs = pairs_for(model, count=4, last=False, lengths=(5, 6) if model.causal else (6,), same=1)
    given = problem(family, pairs)
    scores = patching(runs_of(model, pairs, batch_tokens=12, pass_tokens=90))
    exists = model.anatomy.edge_mask
    np.testing.assert_array_equal(np.isnan(scores.values), ~exists)
    np.testing.assert_allclose(scores.values[exists], edges.exact(given).numpy()[exists], atol=CLOSE)
    assert scores.facts["edges"] == model.anatomy.n_edges


@pytest.mark.parametrize("way", [("resample", "denoising"), ("zero", "noising"), ("mean", "noising")])
@pytest.mark.parametrize("family", ["ln", "neox", "gemma2", "kv-groups"])
def test_directions_and_ablations(family: str, way: tuple[Ablation, Direction]) -> None:
    ablation, direction = way
    model = families.model(family)
    pairs = pairs_for(model, count=3)
    given = problem(family, pairs)
    exists = model.anatomy.edge_mask
    found = patching(runs_of(model, pairs), direction, ablation).values[exists]
    if direction == "denoising":
        wanted = -edges.exact(given.swapped()).numpy()[exists]
    else:
        wanted = edges.exact(given, ablated(given, ablation)).numpy()[exists]
    np.testing.assert_allclose(found, wanted, atol=2 * CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_edge_is_as_a_mask_of_one(family: str) -> None:
    """The fast pass and the one that keeps every reader's input apart."""
    model = families.model(family)
    pairs = pairs_for(model, count=3, lengths=(5,), last=False)
    chosen = [(int(w), int(r)) for w, r in np.argwhere(model.anatomy.edge_mask)][::5]
    masks = np.zeros((len(chosen), *model.anatomy.edge_mask.shape), dtype=bool)
    for mask, edge in zip(masks, chosen, strict=True):
        mask[edge] = True
    runs = runs_of(model, pairs)
    np.testing.assert_allclose(
        runs.patched([Patch(edge=edge) for edge in chosen]),
        runs.patched([Patch(edges=mask) for mask in masks]),
        atol=2 * CLOSE,
    )


def test_the_top_of_another_method() -> None:
    """Only what was proposed is computed, the rest is not zero but unknown."""
    model = families.model("gpt2")
    pairs = pairs_for(model, count=4)
    every, some = patching(runs_of(model, pairs)), patching(runs_of(model, pairs), of="eap", top=7)
    proposed = get_method("eap").run(runs_of(model, pairs), ablation="resample", direction="noising")
    chosen = proposed.ranked_edges()[:7]
    assert {(int(w), int(r)) for w, r in np.argwhere(np.isfinite(some.values))} == set(chosen)
    for edge in chosen:
        assert some.values[edge] == pytest.approx(every.values[edge], abs=CLOSE)
    np.testing.assert_array_equal(some.extra["proposed"], proposed.values)
    assert len(some.ranked_edges()) == 7


def test_cost() -> None:
    model = families.model("gpt2")
    anatomy = model.anatomy
    assert EdgePatching().cost(anatomy).forward == 2 + anatomy.n_edges
    cost = EdgePatching("eap", 9).cost(anatomy)
    assert (cost.forward, cost.backward) == (2 + 9, 1)
    for per_pass in (3, 10**6):
        runs = runs_of(model, pairs_for(model, count=2, lengths=(5,)), pass_tokens=10 * per_pass)
        before = dict(model.passes)
        patching(runs)
        spent = {name: model.passes[name] - before[name] for name in before}
        assert spent["forward"] == 2 + -(-anatomy.n_edges // per_pass)
        assert spent["backward"] == 0


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_only_the_reader_and_what_is_above_it_is_computed(family: str) -> None:
    model = families.model(family)
    anatomy, n_tokens, n_pairs, same = model.anatomy, 8, 4, 2
    runs = runs_of(model, pairs_for(model, count=n_pairs, lengths=(n_tokens,), same=same))
    _ = runs.clean, runs.corrupted
    rows = n_pairs * (n_tokens - same)
    for column, (node, slot) in enumerate(anatomy.readers):
        before = dict(model.passes)
        runs.patched([Patch(edge=(0, column))])
        above = 0 if column == len(anatomy.readers) - 1 else anatomy.n_layers - 1 - node.layer
        wanted = above * rows + (rows // anatomy.n_heads if slot else 0)
        assert model.passes["work"] - before["work"] == wanted, anatomy.reader_names[column]


def test_refusals() -> None:
    model = families.model("gpt2")
    runs = runs_of(model, pairs_for(model))
    with pytest.raises(UnsupportedError, match="positions"):
        EdgePatching().run(runs, ablation="resample", direction="noising", positions="all")
    with pytest.raises(UnsupportedError, match="denoising"):
        patching(runs, "denoising", "mean")
    with pytest.raises(UsageError, match="top=3"):
        patching(runs, top=3)
    with pytest.raises(UsageError, match="negative"):
        patching(runs, of="eap", top=-1)
    for of in ("activation-patching", "edge-patching"):
        with pytest.raises(UsageError, match="scores no edges"):
            patching(runs, of=of)
    with pytest.raises(UsageError) as caught:
        patching(runs, of="eapp")
    assert "eap" in (caught.value.hint or "")
    with pytest.raises(ValueError, match="one edge"):
        Patch(edge=(0, 0), edges=model.anatomy.edge_mask)


def test_a_sweep_of_zeros_is_an_error() -> None:
    model = families.model("gpt2")
    pairs = PromptPairs(
        tuple(
            replace(
                pair, corrupted=(*pair.clean[:-1], (pair.clean[-1] + 1) % families.VOCAB), answer_position=3
            )
            for pair in pairs_for(model, count=3)
        ),
        "random",
    )
    with pytest.raises(RunError, match="zero"):
        patching(runs_of(model, pairs))
