"""The constants of the optimal ablation: never worse than means, at the optimum where it is known, and of use to all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.methods.activation_patching import ActivationPatching
from circuitfind.methods.eap import EAP
from circuitfind.model.bridge import Model
from circuitfind.model.node_pass import Patch
from circuitfind.model.optimal import learn_constants, losses, moments
from circuitfind.model.runs import Runs
from circuitfind.model.writes import Writes
from circuitfind.task.metrics import get_metric
from tests import families
from tests.circuit.test_planted import planted_runs
from tests.families import pairs_for


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def runs_of(model: Model, metric: str = "logit-diff", **options: Any) -> Runs:
    pairs = pairs_for(model, count=12, lengths=(7, 9), last=False)
    return Runs(model, pairs, get_metric(metric), **options)


def tensors(writes: Writes) -> list[torch.Tensor]:
    return [writes.input, *writes.z, *(writes.mlp or [])]


FAST, SLOW = ("gpt2", "gemma2", "bidirectional"), ("neox", "kv-groups", "attn-only")


@pytest.mark.parametrize(
    "family", [*FAST, *(pytest.param(family, marks=pytest.mark.slow) for family in SLOW)]
)
def test_no_writer_loses_more_than_with_its_mean(family: str) -> None:
    runs = runs_of(families.model(family)).smaller(6)
    mean, _ = moments(runs)
    found = losses(runs, learn_constants(runs))
    of_mean = losses(runs, mean)
    assert (found <= of_mean + 1e-7).all()
    assert (found >= 0).all()
    assert found.sum() < 0.9 * of_mean.sum()


def test_no_writer_of_a_planted_model_loses_more_than_with_its_mean() -> None:
    runs = planted_runs("planted/ioi-planted:0").smaller(8)
    mean, _ = moments(runs)
    found = losses(runs, learn_constants(runs))
    assert (found <= losses(runs, mean) + 1e-7).all()


@pytest.mark.parametrize("family", ["gpt2", "attn-only", "bidirectional"])
def test_means_are_over_prompts_and_positions(family: str) -> None:
    """Of the last block, the answer position alone."""
    model = families.model(family)
    runs = runs_of(model)
    mean, spread = moments(runs)
    every: list[list[np.ndarray]] = [[] for _ in model.anatomy.writers]
    end = model.anatomy.head_slice(model.anatomy.n_layers - 1).start
    for number, batch in enumerate(runs.batches):
        written = runs.trace(number, "clean").writes
        for w in range(len(every)):
            x = written.of_writer(model, w).numpy()
            for row, length in enumerate(batch.lengths):
                at = int(batch.answer_positions[row])
                seen = int(length) if not model.causal else at + 1
                every[w] += [x[row, at]] if w >= end else list(x[row, :seen])
    flat = mean.map(lambda x: x[None])
    for w, rows in enumerate(every):
        np.testing.assert_allclose(flat.of_writer(model, w)[0, 0].numpy(), np.mean(rows, 0), atol=2e-5)
    first = np.stack(every[0])
    assert float(spread.input[0, 0]) == pytest.approx(np.sqrt(first.var(0).mean()), rel=1e-4)


@pytest.mark.slow
def test_the_optimum_of_a_writer_that_logits_are_linear_in() -> None:
    """The last MLP of a model without norms: the divergence is convex in its constant, and at the least one the mean
    distribution seen through the unembedding is that of the untouched model.
    """
    model = families.model("no-norm")
    runs = runs_of(model).smaller(12)
    row = model.anatomy.mlp_row(model.anatomy.n_layers - 1)
    full, rest = [], []
    for number in range(len(runs.batches)):
        trace = runs.trace(number, "clean")
        full.append(model.head(trace.final))
        written = trace.blocks[-1].mlp
        assert written is not None
        rest.append(model.head(trace.final - written[:, 0]))
    p, other, w_u = torch.cat(full).double().softmax(-1), torch.cat(rest).double(), model.w_u.double()
    a = torch.zeros(model.d_model, dtype=torch.double)
    for _ in range(50):  # Newton
        q = (other + a @ w_u).softmax(-1)
        slope = w_u @ (q - p).mean(0)
        bend = w_u @ (torch.diag(q.mean(0)) - q.T @ q / len(q)) @ w_u.T
        a = a - 0.7 * torch.linalg.solve(bend + 1e-9 * torch.eye(len(a)), slope)
    assert float((w_u @ ((other + a @ w_u).softmax(-1) - p).mean(0)).abs().max()) < 1e-6

    def divergence(constant: torch.Tensor) -> float:
        q = (other + constant.double() @ w_u).log_softmax(-1)
        return float((p * (p.log() - q)).sum(-1).mean())

    mean, _ = moments(runs)
    found = learn_constants(runs, steps=200)
    assert mean.mlp is not None
    assert found.mlp is not None
    assert losses(runs, found)[row] == pytest.approx(divergence(found.mlp[-1]), rel=1e-3)
    best, of_mean = divergence(a), divergence(mean.mlp[-1])
    assert best < 0.95 * of_mean
    assert divergence(found.mlp[-1]) - best < 0.02 * (of_mean - best)


def test_the_ablation_is_learned_once_and_alike() -> None:
    model = families.model("gpt2")
    notes: list[str] = []
    runs = runs_of(model, "kl", note=notes.append)
    nodes = [Patch(nodes=row) for row in np.eye(len(model.anatomy.writers), dtype=bool)]
    first = runs.patched(nodes, ablation="optimal")
    assert runs.constants is not None
    assert [len(x.shape) for x in tensors(runs.constants)] == [2, 3, 3, 2, 2]
    np.testing.assert_allclose(-first.mean(1), losses(runs, runs.constants), atol=1e-5)
    backward = model.passes["backward"]
    runs.patched(nodes, ablation="optimal")
    assert model.passes["backward"] == backward
    assert len(notes) == 1
    again = runs_of(model)
    again.ablated(0, "optimal")
    assert again.constants is not None
    for a, b in zip(tensors(runs.constants), tensors(again.constants), strict=True):
        assert torch.equal(a, b)


def test_every_prompt_and_position_gets_the_same() -> None:
    runs = runs_of(families.model("neox"))
    ablated = [runs.ablated(number, "optimal") for number in range(len(runs.batches))]
    for found in ablated:
        for x, first in zip(tensors(found), tensors(ablated[0]), strict=True):
            assert torch.equal(x, first[0, 0].expand_as(x))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bidirectional"])
def test_methods_and_evaluation_take_it(family: str) -> None:
    runs = runs_of(families.model(family))
    every = runs.model.anatomy.edge_mask
    edges = EAP().run(runs, ablation="optimal", direction="noising")
    nodes = ActivationPatching().run(runs, ablation="optimal", direction="noising")
    assert edges.ablation == nodes.ablation == "optimal"
    assert edges.facts["identity_gap"] < 1e-4
    evaluator = Evaluator(runs, "optimal")
    full, empty = evaluator.values([every, np.zeros_like(every)])
    np.testing.assert_allclose(full, runs.clean, atol=1e-4)
    assert np.ptp(empty) > 0  # answers differ, the logits do not
    gap = float(runs.clean.mean() - empty.mean())
    assert ((full - empty).mean() / gap, (empty - evaluator.empty).mean()) == pytest.approx(
        (1.0, 0.0), abs=1e-4
    )
