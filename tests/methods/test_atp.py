"""AtP against autograd in double precision, finite differences, EAP's nodes and exact patching; what it refuses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitfind.config import Ablation, Direction
from circuitfind.errors import UnsupportedError
from circuitfind.methods import get_method, options_of
from tests import families
from tests.families import COSTLY, pairs_for
from tests.methods.node_cases import (
    FEW,
    TOLERANCE,
    assert_near,
    mixed_pairs,
    named,
    runs_of,
    score,
    slots,
    turned,
    writers,
)
from tests.methods.slow import nodes
from tests.methods.slow.problem import Problem, gradients, problem, put
from tests.model.oracle import slope


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def zeros(given: Problem, tokens: Tensor) -> dict[str, Tensor]:
    """Stands in for ``nodes.values``: zero ablation, every node of the other run silent."""
    with torch.no_grad():
        found = given.plain.run(tokens)[1]
    return {k: torch.zeros_like(v) for k, v in found.items()} if tokens is given.corrupted else found


def neurons(given: Problem, ablation: Ablation = "resample") -> Tensor:
    """(clean - ablated) . gradient at what W_out reads. [b, p, layer, d_mlp]"""
    names = [f"post m{layer}" for layer in range(len(given.plain.blocks))]
    clean, other = nodes.values(given, given.clean), nodes.values(given, given.corrupted)
    found = gradients(given, given.clean, names)
    gone = 0 if ablation == "zero" else 1
    return torch.stack([(clean[n] - gone * other[n]) * found[n] for n in names], 2)


# --- the references -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", COSTLY)
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_every_node_of_every_family(family: str, direction: Direction) -> None:
    model = families.model(family)
    pairs = mixed_pairs(model)
    given, sign = turned(problem(family, pairs), direction)
    found = score(runs_of(model, pairs), "atp", direction=direction)
    by_prompt = {name: sign * effect.sum(1) for name, effect in nodes.atp(given).items()}
    assert found.per_prompt is not None
    assert_near(found.per_prompt, writers(model.anatomy, by_prompt))
    assert_near(found.values, writers(model.anatomy, by_prompt).mean(0))
    assert_near(found.extra["readers"], slots(model.anatomy, by_prompt).mean(0))
    assert found.level == "node"
    assert found.by_position is None
    assert set(found.extra) == {"readers"}


@pytest.mark.parametrize("family", COSTLY)
def test_zero_ablation(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model(family)
    pairs = mixed_pairs(model)
    monkeypatch.setattr(nodes, "values", zeros)
    wanted = {name: effect.sum(1).mean() for name, effect in nodes.atp(problem(family, pairs)).items()}
    found = score(runs_of(model, pairs), "atp", "zero")
    assert_near(found.values, writers(model.anatomy, wanted))
    assert_near(found.extra["readers"], slots(model.anatomy, wanted))


@pytest.mark.parametrize("family", COSTLY)
@pytest.mark.parametrize("way", ["noising", "denoising", "zero"])
def test_neurons(family: str, way: str) -> None:
    model = families.model(family)
    pairs = mixed_pairs(model)
    ablation: Ablation = "zero" if way == "zero" else "resample"
    direction: Direction = "denoising" if way == "denoising" else "noising"
    if not model.has_mlp:
        with pytest.raises(UnsupportedError, match="no MLPs"):
            score(runs_of(model, pairs), "atp", ablation, direction, neurons=True)
        return
    given, sign = turned(problem(family, pairs), direction)
    wanted = sign * neurons(given, ablation).numpy()
    found = score(runs_of(model, pairs), "atp", ablation, direction, neurons=True)
    assert_near(found.extra["neurons"], wanted.sum(1).mean(0))
    kept = score(runs_of(model, pairs, tokens=14), "atp", ablation, direction, "all", neurons=True)
    assert_near(kept.extra["neurons_by_position"], wanted.mean(0))
    assert_near(kept.extra["neurons"], np.abs(wanted.mean(0)).sum(0))


@pytest.mark.parametrize("family", ["gpt2", "llama", "ln"])
def test_neurons_make_up_their_mlp(family: str) -> None:
    """Where no norm stands behind W_out, the MLP is the sum of its neurons."""
    model = families.model(family)
    found = score(runs_of(model, mixed_pairs(model)), "atp", neurons=True)
    rows = [model.anatomy.mlp_row(layer) for layer in range(len(model.layers))]
    assert_near(found.extra["neurons"].sum(-1), found.values[rows])


@pytest.mark.parametrize("family", FEW)
def test_scores_are_slopes(family: str) -> None:
    """Minus the slope of the metric as a node goes from its clean to its corrupted value."""
    model = families.model(family)
    pairs = mixed_pairs(model, count=3)
    given, found = problem(family, pairs), score(runs_of(model, pairs), "atp")
    clean, corrupted = nodes.values(given, given.clean), nodes.values(given, given.corrupted)
    by_name = dict(zip(model.anatomy.writer_names, found.values, strict=True))
    readers = zip(model.anatomy.reader_names, found.extra["readers"], strict=True)
    by_name |= {name: value for name, value in readers if "<" in name}
    for node, value in by_name.items():
        place = nodes.place(given, node)

        def at(t: float, place: str = place) -> float:
            moved = clean[place] + t * (corrupted[place] - clean[place])
            return float(given.measure(given.clean, put({place: moved})).mean())

        assert value == pytest.approx(-slope(at), rel=1e-4, abs=1e-5 * np.abs(found.values).max()), node


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_writers_are_the_nodes_of_eap(ablation: Ablation) -> None:
    for family in FEW:
        model = families.model(family)
        pairs = pairs_for(model, count=6, last=False)
        edges = score(runs_of(model, pairs), "eap", ablation)
        assert edges.nodes is not None
        found = score(runs_of(model, pairs), "atp", ablation)
        assert_near(found.values, edges.nodes)
        if ablation == "mean":
            assert np.isnan(found.extra["readers"]).all()


def test_small_differences_are_exact() -> None:
    """Without a norm a writer of the last block acts linearly: its score is what patching finds."""
    model = families.model("attn-only-no-norm")
    pairs = mixed_pairs(model)
    exact = score(runs_of(model, pairs), "activation-patching")
    found = score(runs_of(model, pairs), "atp")
    last = model.anatomy.head_slice(len(model.layers) - 1)
    assert_near(found.values[last], exact.values[last])


# --- positions and batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FEW)
def test_positions(family: str) -> None:
    model = families.model(family)
    pairs = named(mixed_pairs(model))
    reference = nodes.atp(problem(family, pairs))
    wanted, inputs = writers(model.anatomy, reference), slots(model.anatomy, reference)  # [b, p, node]
    for tokens in (None, 14):
        runs = runs_of(model, pairs, tokens=tokens)
        found = score(runs, "atp", positions="all")
        assert found.by_position is not None
        assert found.per_prompt is None
        assert_near(found.by_position, wanted.mean(0))
        assert_near(found.values, np.abs(wanted.mean(0)).sum(0))
        assert_near(found.extra["readers_by_position"], inputs.mean(0))
        assert_near(found.extra["readers"], np.abs(inputs.mean(0)).sum(0))
        found = score(runs, "atp", positions="named")
        assert found.position_names is not None
        assert set(found.position_names) == {"first", "end", "other"}
        groups = np.zeros((3, wanted.shape[-1]))
        for row, pair in enumerate(pairs):
            at = {where: found.position_names.index(name) for name, where in pair.positions.items()}
            for where in range(wanted.shape[1]):
                groups[at.get(where, found.position_names.index("other"))] += wanted[row, where] / len(pairs)
        assert found.by_position is not None
        assert_near(found.by_position, groups)
        assert_near(found.values, np.abs(groups).sum(0))


@pytest.mark.parametrize("method", ["atp", "atp-star"])
@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_batches_do_not_matter(method: str, ablation: Ablation) -> None:
    for family in ("gpt2", "gemma2", "bidirectional"):
        model = families.model(family)
        lengths = (6, 6, 9, 9, 4, 4) if model.causal else (6,)
        pairs = pairs_for(model, count=6, lengths=lengths, last=ablation == "mean")
        whole, single = runs_of(model, pairs), runs_of(model, pairs, tokens=1)
        assert len(single.batches) == 6 > len(whole.batches)
        wanted, found = score(whole, method, ablation), score(single, method, ablation)
        assert_near(found.values, wanted.values)
        if ablation != "mean":
            assert_near(found.extra["readers"], wanted.extra["readers"])


def test_passes() -> None:
    """Two forward passes and one backward pass a batch, whatever is scored; behind the shared beginning only."""
    model = families.model("ln")
    for options in ({}, {"neurons": True}):
        runs = runs_of(model, pairs_for(model, count=4, same=2))
        before = dict(model.passes)
        score(runs, "atp", **options)
        after = {name: model.passes[name] - before[name] for name in before}
        assert after == {"forward": 2, "backward": 1, "work": 4 * 3 * (6 + 4 + 4)}
    assert get_method("atp").cost(model.anatomy).backward == 1


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["atp", "atp-star"])
def test_what_is_refused(method: str) -> None:
    model = families.model("gpt2")
    pairs = pairs_for(model, count=4)
    with pytest.raises(UnsupportedError, match="gradient of 'kl' at the clean run is zero"):
        score(runs_of(model, pairs, "kl"), method)
    assert np.abs(score(runs_of(model, pairs, "kl"), method, direction="denoising").values).max() > 0
    for ablation in ("zero", "mean"):
        with pytest.raises(UnsupportedError, match="does not have"):
            score(runs_of(model, pairs), method, ablation, "denoising")
    with pytest.raises(UnsupportedError, match="name no positions"):
        score(runs_of(model, pairs), method, positions="named")


def test_neurons_need_a_value() -> None:
    model = families.model("gpt2")
    with pytest.raises(UnsupportedError, match="mean ablation replaces what an MLP writes"):
        score(runs_of(model, pairs_for(model, count=4)), "atp", "mean", neurons=True)


def test_options() -> None:
    assert options_of("atp") == {"neurons": False}
    assert options_of("atp-star") == {"q_fix": True, "k_fix": True, "grad_drop": True}
    assert TOLERANCE <= 1e-5
