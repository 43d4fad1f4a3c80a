"""Split models: every pass is the slow one, and every attribution its derivative."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from circuitfind.config import Ablation
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.methods import get_method
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs
from circuitfind.model.split import chosen_of, split_features, split_neurons
from tests import families
from tests.families import FAMILIES, pairs_for, runs_of
from tests.model.slow_parts import SPLITS, SlowPass, in_double, random_features, split_in

WITH_MLP = tuple(family for family in FAMILIES if not family.startswith("attn-only"))
UNLIKE = ("gpt2", "neox", "llama", "gemma2")
"""A norm with bias, parallel blocks, gates and shared keys, post-norms."""
every_family = pytest.mark.parametrize(
    "family",
    [family if family in UNLIKE else pytest.param(family, marks=pytest.mark.slow) for family in WITH_MLP],
)
every_split = pytest.mark.parametrize("how", SPLITS)
every_split_of_every_family = pytest.mark.parametrize(
    ("family", "how"),
    families.thinned(UNLIKE, list(SPLITS), 2)
    + [
        pytest.param(family, how, marks=pytest.mark.slow)
        for family in WITH_MLP
        if family not in UNLIKE
        for how in SPLITS
    ],
)
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def runs_in(model: Model) -> Runs:
    """Prompts that are read at several positions, and equal at the first one."""
    return runs_of(model, pairs_for(model, count=4, last=False, same=1))


def nodes_to_try(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    some = [rng.random(count) < share for share in (0.1, 0.3, 0.8)]
    single = [np.eye(count, dtype=bool)[row] for row in (count - 1, count - 2, count // 2)]
    return [*some, *single, np.ones(count, dtype=bool)]


def edges_to_try(every: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [*(every & (rng.random(every.shape) < share) for share in (0.1, 0.5, 0.9)), every]


@every_split_of_every_family
def test_patched_passes_are_the_slow_ones(family: str, how: str) -> None:
    runs = runs_in(split_in(families.model(family), how))
    anatomy, index = runs.model.anatomy, runs.batches[0].index
    none, no_edges = np.zeros(len(anatomy.writers), dtype=bool), np.zeros_like(anatomy.edge_mask)
    for ablation in ABLATIONS:
        slow = SlowPass(runs, ablation)
        nodes, edges = nodes_to_try(len(none)), edges_to_try(anatomy.edge_mask)
        w, r = (int(i) for i in np.argwhere(anatomy.edge_mask)[-3])
        one = no_edges.copy()
        one[w, r] = True
        patches = [*(Patch(nodes=n) for n in nodes), *(Patch(edges=e) for e in edges), Patch(edge=(w, r))]
        wanted = [*(slow.value(n, no_edges) for n in nodes), *(slow.value(none, e) for e in (*edges, one))]
        found = runs.patched(patches, ablation=ablation)[:, index]
        want = np.stack([value.numpy() for value in wanted])
        np.testing.assert_allclose(found, want, atol=1e-4)
        assert np.ptp(want, axis=0).max() > 0.01  # they do not all do the same


@every_split
def test_clean_values_restore_the_corrupted_run(how: str) -> None:
    runs = runs_in(split_in(families.model("gpt2"), how))
    slow = SlowPass(runs, "resample", base="corrupted")
    no_edges = np.zeros_like(runs.model.anatomy.edge_mask)
    for nodes in nodes_to_try(len(no_edges)):
        found = runs.patched([Patch(nodes=nodes)], base="corrupted", ablation="clean")[0]
        np.testing.assert_allclose(
            found[runs.batches[0].index], slow.value(nodes, no_edges).numpy(), atol=1e-4
        )


@every_split_of_every_family
def test_nothing_replaced_is_the_model_and_everything_is_the_corrupted_run(family: str, how: str) -> None:
    runs = runs_in(split_in(families.model(family), how))
    every = runs.model.anatomy.edge_mask
    full, empty = runs.patched([Patch(edges=np.zeros_like(every)), Patch(edges=every)])
    plain = runs_in(families.model(family))
    np.testing.assert_allclose(full, plain.clean, atol=1e-5)
    np.testing.assert_allclose(empty, plain.corrupted, atol=1e-4)


@every_family
def test_all_parts_together_are_the_mlp(family: str) -> None:
    model = families.model(family)
    plain, fine = runs_in(model), runs_in(split_neurons(model))
    whole, split = plain.model.anatomy, fine.model.anatomy
    for layer in range(len(model.layers)):
        alone, parts = np.zeros(len(whole.writers), dtype=bool), np.zeros(len(split.writers), dtype=bool)
        alone[whole.mlp_row(layer)], parts[split.mlp_slice(layer)] = True, True
        for ablation in ABLATIONS:
            np.testing.assert_allclose(
                fine.patched([Patch(nodes=parts)], ablation=ablation),
                plain.patched([Patch(nodes=alone)], ablation=ablation),
                atol=1e-5,
            )


@every_split_of_every_family
def test_attribution_is_the_derivative(family: str, how: str) -> None:
    """Each edge's score is what the metric loses, for each unit of way, as the edge begins to go over to what it carries
    when replaced; nodes have the sum of their edges.
    """
    model = split_in(in_double(families.model(family)), how)
    runs = runs_in(model)
    anatomy = model.anatomy
    scores = get_method("eap", {}).run(runs, ablation="resample", direction="noising")
    by_node = get_method("atp", {}).run(runs, ablation="resample", direction="noising")
    assert scores.nodes is not None
    np.testing.assert_allclose(by_node.values, scores.nodes, atol=1e-8)
    assert scores.facts["identity_gap"] < 1e-6
    slow = SlowPass(runs, "resample")
    step = 1e-3 if family == "gemma2" else 1e-5  # its rotations are in single precision
    slow.cut = [base + step * (cut - base) for base, cut in zip(slow.base, slow.cut, strict=True)]
    none, no_edges = np.zeros(len(anatomy.writers), dtype=bool), np.zeros_like(anatomy.edge_mask)
    clean = slow.value(none, no_edges)
    rng, edges = np.random.default_rng(2), np.argwhere(anatomy.edge_mask)
    parts = [edge for edge in edges if anatomy.readers[edge[1]][0].family]
    ends = [edge for edge in edges if edge[1] == len(anatomy.readers) - 1]
    largest = np.nanmax(np.abs(scores.values))
    for w, r in [*rng.permutation(parts)[:12], *rng.permutation(ends)[:6]]:
        one = no_edges.copy()
        one[w, r] = True
        slope = float((clean - slow.value(none, one)).mean()) / step
        assert abs(slope - scores.values[w, r]) < (2e-3 if family == "gemma2" else 3e-4) * largest


def test_an_anatomy_says_how_a_model_was_split() -> None:
    model = families.model("gpt2")
    fine = split_in(model, "neurons")
    again = split_neurons(model, chosen_of(fine.anatomy))
    assert again.anatomy == fine.anatomy
    assert [str(n) for n in fine.anatomy.mlp_nodes(0)] == ["m0.n0", "m0.n2+5+7", "m0.n3", "m0.rest"]
    assert fine.anatomy.whole == model.anatomy


def test_what_cannot_be_split() -> None:
    with pytest.raises(UnsupportedError, match="no neurons"):
        split_neurons(families.model("attn-only"))
    with pytest.raises(UnsupportedError, match="mixes"):
        split_neurons(families.model("solu-ln"))
    model = families.model("gpt2")
    with pytest.raises(UsageError, match="no neuron 9999"):
        split_neurons(model, {0: [(9999,)]})
    with pytest.raises(UsageError, match="another node"):
        split_neurons(model, {0: [(1, 2), (2,)]})
    with pytest.raises(UsageError, match="no feature 1"):
        split_features(model, {0: random_features(model, 0, "relu")}, {0: [(1,)]})
    with pytest.raises(UnsupportedError, match="optimal"):
        runs_in(split_in(model, "neurons")).patched(
            [Patch(nodes=np.ones(20, dtype=bool))], ablation="optimal"
        )


def test_a_trained_model_without_neurons_is_refused(models_dir: Path) -> None:
    model = load_model(str(models_dir / "palindrome"), device="cpu")
    with pytest.raises(UnsupportedError, match="palindrome has no MLPs, so it has no neurons") as refused:
        split_neurons(model)
    assert "--nodes heads" in refused.value.hint
    with pytest.raises(UnsupportedError, match="no neurons"):
        split_neurons(model, {0: [(0,)]})


def test_levels_of_topk_keep_its_features() -> None:
    model = families.model("gpt2")
    one = random_features(model, 0, "topk")
    x = torch.randn(50, model.d_model, generator=torch.Generator().manual_seed(0))
    assert one.level_w is not None
    assert one.level_b is not None
    full = x @ one.level_w + one.level_b
    kept = torch.zeros_like(full).scatter(-1, full.topk(5, -1).indices, 1.0) * full.clamp_min(0)
    torch.testing.assert_close(one.act(one.pre(x), one.level(x)), kept[:, : len(one.ids)])
