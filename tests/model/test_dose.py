"""Doses of patches: their ends against patched passes, what lies between against hooks, slopes against EAP and AtP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.errors import UnsupportedError
from circuitfind.methods.atp import AtP
from circuitfind.methods.eap import EAP
from circuitfind.model.bridge import Model
from circuitfind.model.dose import Target, measure_doses
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs
from circuitfind.model.split import split_neurons
from circuitfind.task.metrics import get_metric
from tests import families
from tests.families import FAMILIES, pairs_for


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def runs_of(model: Model, metric: str = "logit-diff", **options: Any) -> Runs:
    """Two lengths, answers before the end, and (where attention looks back only) three positions in common."""
    pairs = pairs_for(model, count=6, lengths=(7, 9), last=False, same=3)
    return Runs(model, pairs, get_metric(metric), **options)


def nodes_of(model: Model, *rows: int) -> np.ndarray:
    found = np.zeros(len(model.anatomy.writers), dtype=bool)
    found[list(rows)] = True
    return found


def some_targets(model: Model) -> list[Target]:
    """Many nodes, the last one, edges, and many nodes as edges."""
    rng = np.random.default_rng(0)
    many = rng.random(len(model.anatomy.writers)) < 0.3
    every = model.anatomy.edge_mask
    none = np.zeros_like(many)
    cut = every & (rng.random(every.shape) < 0.3)
    return [
        Target(many),
        Target(nodes_of(model, -1)),
        Target(none, cut),
        Target(none, every & many[:, None]),
    ]


OTHERS = ("gpt2", "neox", "kv-groups", "bidirectional")
ENDS = [(family, "resample", "clean") for family in FAMILIES]
ENDS += [(family, *how) for family in OTHERS for how in (("zero", "clean"), ("clean", "corrupted"))]


@pytest.mark.parametrize(("family", "ablation", "base"), ENDS)
def test_the_ends_are_the_unpatched_run_and_the_full_patch(family: str, ablation: Any, base: Any) -> None:
    model = families.model(family)
    runs, targets = runs_of(model), some_targets(model)
    found = measure_doses(runs, targets, [0, 0.5, 1], ablation=ablation, base=base)
    patches = [Patch(nodes=t.nodes) if t.edges is None else Patch(edges=t.edges) for t in targets]
    wanted = runs.patched(patches, ablation=ablation, base=base)
    unpatched = runs.clean if base == "clean" else runs.corrupted
    size = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found.values[:, 0], np.tile(unpatched, (4, 1)), atol=1e-5 * size)
    np.testing.assert_allclose(found.values[:, 2], wanted, atol=1e-5 * size)
    # Nodes, and the same nodes as all of their edges: two passes that share nothing.
    np.testing.assert_allclose(found.values[0], found.values[3], atol=1e-5 * size)
    assert (found.right[:, 0] == (unpatched > 0)).all()
    assert found.slopes is not None
    assert np.isfinite(found.slopes).all()


@pytest.mark.parametrize("family", ["gpt2", "neox", "gemma2", "attn-only", "kv-groups"])
def test_slopes_at_the_clean_run_are_what_eap_and_atp_say(family: str) -> None:
    model = families.model(family)
    runs, targets = runs_of(model), some_targets(model)
    found = measure_doses(runs, targets, [0.0])
    assert found.slopes is not None
    edges = np.nan_to_num(EAP().run(runs, ablation="resample", direction="noising").values)
    nodes = AtP().run(runs, ablation="resample", direction="noising").values
    for target, slopes in zip(targets, found.slopes[:, 0].mean(1), strict=True):
        wanted = -nodes[target.nodes].sum() if target.edges is None else -edges[target.edges].sum()
        np.testing.assert_allclose(slopes, wanted, atol=1e-5 * max(1.0, np.abs(edges).max()))


@pytest.mark.parametrize("family", ["gpt2", "no-norm"])
def test_slopes_between_the_ends_are_differences(family: str) -> None:
    model = families.model(family)
    runs, targets, step = runs_of(model), some_targets(model), 5e-3
    found = measure_doses(runs, targets, [0.3 - step, 0.3, 0.3 + step])
    assert found.slopes is not None
    wanted = (found.values[:, 2] - found.values[:, 0]) / (2 * step)
    np.testing.assert_allclose(found.slopes[:, 1], wanted, atol=5e-3)


def by_hooks(model: Model, runs: Runs, layers: dict[int, list[int]], alpha: float) -> np.ndarray:
    """The slow way: heads of some layers mixed with those of the corrupted run, by hooks on the bridge's own pass."""
    values = np.empty(len(runs))
    for number, batch in enumerate(runs.batches):
        corrupted: dict[int, torch.Tensor] = {}

        def keep(layer: int, into: dict[int, torch.Tensor]) -> Any:
            def hook(z: torch.Tensor) -> None:
                into[layer] = z.clone()

            return hook

        sites = {layer: model.layers[layer].sites["z"] for layer in layers}
        with model.hooked([(site, keep(layer, corrupted)) for layer, site in sites.items()]):
            model.bridge_logits(batch.corrupted, batch.answer_positions)

        def mix(layer: int, other: dict[int, torch.Tensor]) -> Any:
            def hook(z: torch.Tensor) -> torch.Tensor:
                wide = model.layers[layer].d_head
                out = z.clone()
                for head in layers[layer]:
                    own = slice(head * wide, (head + 1) * wide)
                    out[..., own] = z[..., own] + alpha * (other[layer][..., own] - z[..., own])
                return out

            return hook

        with torch.no_grad(), model.hooked([(site, mix(layer, corrupted)) for layer, site in sites.items()]):
            logits = model.bridge_logits(batch.clean, batch.answer_positions)
        values[batch.index] = runs.metric_of(number, logits).numpy()
    return values


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_lies_between_is_what_hooks_on_the_bridge_do(family: str) -> None:
    model = families.model(family)
    runs, anatomy = runs_of(model), model.anatomy
    last = anatomy.n_layers - 1
    rows = [anatomy.head_slice(0).start, anatomy.head_slice(last).start, anatomy.head_slice(last).stop - 1]
    chosen = {0: [0], last: [0, anatomy.n_heads - 1]}
    found = measure_doses(runs, [Target(nodes_of(model, *rows))], [0.25, 0.7, 1.3], slopes=False)
    for alpha, values in zip((0.25, 0.7, 1.3), found.values[0], strict=True):
        wanted = by_hooks(model, runs, chosen, alpha)
        np.testing.assert_allclose(values, wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()))
    assert found.slopes is None


def test_positions_and_neurons() -> None:
    model = families.model("gpt2")
    runs = runs_of(model)
    where = np.zeros((len(runs), 9), dtype=bool)
    where[:, 4:6] = True
    target = Target(nodes_of(model, 1, model.anatomy.mlp_row(0)))
    found = measure_doses(runs, [target], [0, 1], where=where)
    wanted = runs.patched([Patch(nodes=target.nodes, where=where)])[0]
    np.testing.assert_allclose(found.values[0], [runs.clean, wanted], atol=1e-5)
    split = split_neurons(model, {0: [(0,), (1, 2)]})
    parts = runs_of(split)
    rows = [split.anatomy.row_of(name) for name in ("m0.n0", "m0.n1+2", "m0.rest")]
    targets = [Target(nodes_of(split, *rows[:2])), Target(nodes_of(split, *rows))]
    found = measure_doses(parts, targets, [0, 0.4, 1])
    whole = measure_doses(runs, [Target(nodes_of(model, model.anatomy.mlp_row(0)))], [0, 0.4, 1])
    np.testing.assert_allclose(found.values[1], whole.values[0], atol=1e-5)
    np.testing.assert_allclose(
        found.values[0, 2], parts.patched([Patch(nodes=targets[0].nodes)])[0], atol=1e-5
    )
    assert found.slopes is not None
    assert whole.slopes is not None
    np.testing.assert_allclose(found.slopes[1], whole.slopes[0], atol=1e-5)


def test_doses_are_rows_of_as_few_passes_as_fit() -> None:
    model = families.model("gpt2")
    runs = runs_of(model)
    every = [Target(nodes_of(model, row)) for row in range(len(model.anatomy.writers))]
    measure_doses(runs, every[:1], [0.0])  # the runs themselves are made and kept
    for targets, alphas in ((every[:1], 11), (every, 5)):
        before = dict(model.passes)
        measure_doses(runs, targets, [i / (alphas - 1) for i in range(alphas)])
        assert model.passes["forward"] - before["forward"] == len(runs.batches)
        assert model.passes["backward"] - before["backward"] == len(runs.batches)


def test_small_passes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model("gpt2")
    targets, alphas = some_targets(model), [0, 0.2, 0.9]
    wanted = measure_doses(runs_of(model), targets, alphas)
    small = families.runs_of(
        model, runs_of(model).pairs, sizes={"pass_tokens": 30, "edge_tokens": 30, "batch_tokens": 20}
    )
    before = model.passes["forward"]
    found = measure_doses(small, targets, alphas)
    assert model.passes["forward"] - before > 3 * len(small.batches)
    np.testing.assert_allclose(found.values, wanted.values, atol=1e-5)
    assert found.slopes is not None
    assert wanted.slopes is not None
    np.testing.assert_allclose(found.slopes, wanted.slopes, atol=1e-4)


def test_what_would_be_wrong_is_refused() -> None:
    model = families.model("gpt2")
    runs, cut = runs_of(model), Target(nodes_of(model), model.anatomy.edge_mask)
    with pytest.raises(UnsupportedError, match="all positions"):
        measure_doses(runs, [cut], [0, 1], where=np.ones((len(runs), 9), dtype=bool))
    with pytest.raises(UnsupportedError, match="no gradient"):
        measure_doses(runs_of(model, "accuracy"), [Target(nodes_of(model, 1))], [0, 1])
    found = measure_doses(runs_of(model, "accuracy"), [Target(nodes_of(model, 1))], [0, 1], slopes=False)
    assert (found.values == found.right).all()


@pytest.mark.parametrize("metric", ["prob-diff", "log-prob", "kl"])
def test_other_metrics(metric: str) -> None:
    model = families.model("gpt2")
    runs = runs_of(model, metric)
    target = Target(nodes_of(model, 1, 2))
    found = measure_doses(runs, [target], [0, 1])
    np.testing.assert_allclose(
        found.values[0], [runs.clean, runs.patched([Patch(nodes=target.nodes)])[0]], atol=1e-5
    )
