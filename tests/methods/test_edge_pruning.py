"""Edge pruning finds circuits that were written; its gates are what their formulas say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.prune import prefix_mask, rank
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.methods import get_method
from circuitfind.methods.atp import AtP
from circuitfind.methods.eap import EAP
from circuitfind.methods.edge_pruning import EdgePruning
from circuitfind.methods.gates import GATES
from circuitfind.model.load import load_model, planted
from circuitfind.model.runs import Runs
from circuitfind.names import parse_edge
from circuitfind.task.metrics import get_metric
from circuitfind.task.prompts import make_pairs
from circuitfind.task.spec import load_task
from tests import families
from tests.circuit.test_planted import planted_runs
from tests.families import pairs_for

KINDS = ("induction", "ioi-planted", "and-gate")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def learned(runs: Runs, ablation: Any = "resample", **options: Any) -> Scores:
    return EdgePruning(**options).run(runs, ablation=ablation, direction="noising")


def found_of(name: str, ablation: Any = "resample", **options: Any) -> tuple[set[str], set[str], Scores]:
    """The strongest edges, as many as there are true ones; the true ones; all scores."""
    truth = set(planted(name).edges[ablation])
    scores = learned(planted_runs(name), ablation, keep=len(truth), steps=150, **options)
    return {str(edge) for edge, _ in scores.top_edges(len(truth))}, truth, scores


# --- gates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GATES)
def test_gates_are_what_their_formulas_say(kind: str) -> None:
    gates = GATES[kind]
    odds = torch.linspace(-3, 3, 7)
    theta = gates.theta_of(odds).requires_grad_()
    noise = ((torch.arange(200_000) + 0.5) / 200_000)[:, None].expand(-1, 7)
    sample = gates.sample(theta, noise)
    assert float(sample.detach().min()) == 0
    assert float(sample.detach().max()) == 1
    share = gates.share(theta)
    torch.testing.assert_close(share, odds.sigmoid())
    size = sample.mean(0) if kind == "ugs" else (sample > 0).float().mean(0)
    torch.testing.assert_close(size.detach(), share.detach(), atol=1e-3, rtol=0)
    if kind == "ugs":
        p = odds.sigmoid()
        between = ((sample > 0) & (sample < 1)).float().mean(0)
        torch.testing.assert_close(between, p * (1 - p), atol=1e-3, rtol=0)
        (slope,) = torch.autograd.grad(sample.sum(0).mean() / len(noise) * 7, theta)
        torch.testing.assert_close(slope, p * (1 - p), atol=1e-3, rtol=0)


# --- circuits that were written -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("kind", KINDS)
def test_recovery(kind: str, seed: int) -> None:
    found, truth, scores = found_of(f"planted/{kind}:{seed}")
    assert found == truth
    assert scores.facts["steps"] == 150
    assert scores.facts["loss"] < 0.5
    assert scores.facts["target"] == len(truth)
    assert abs(scores.facts["expected"] - len(truth)) < 1


@pytest.mark.parametrize(
    "options",
    [
        {"warm": ""},
        {"gates": "ugs"},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in ({"warm": "activation-patching"}, {"warm": "atp"}, {"loss": "metric"})
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["and-gate", pytest.param("ioi-planted", marks=pytest.mark.slow)])
def test_recovery_from_any_start(kind: str, options: dict[str, Any]) -> None:
    found, truth, _ = found_of(f"planted/{kind}:0", **options)
    assert found == truth


@pytest.mark.parametrize("kind", ["and-gate", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[:2])])
def test_recovery_under_zero(kind: str) -> None:
    found, truth, _ = found_of(f"planted/{kind}:1", "zero")
    assert found == truth


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[:2]), KINDS[2]]
)
def test_recovery_of_nodes(kind: str) -> None:
    name = f"planted/{kind}:0"
    truth = {str(parse_edge(edge).sender) for edge in planted(name).edges["resample"]}
    scores = learned(planted_runs(name), units="nodes", keep=len(truth), steps=150)
    assert scores.level == "node"
    assert {str(node) for node, _ in scores.top_nodes(len(truth))} == truth


def test_scores_are_chances_and_the_same_for_a_seed() -> None:
    runs = planted_runs("planted/and-gate:0")
    first, again, other = (learned(runs, steps=20, seed=seed) for seed in (0, 0, 1))
    mask = runs.model.anatomy.edge_mask
    np.testing.assert_array_equal(np.isnan(first.values), ~mask)
    np.testing.assert_array_equal(first.values, again.values)
    assert (first.values[mask] != other.values[mask]).any()
    assert ((first.values[mask] > 0) & (first.values[mask] < 1)).all()
    assert first.facts["target"] == np.ceil(0.05 * mask.sum())


@pytest.mark.parametrize(
    ("family", "ablation"), families.thinned(["gemma2", "bidirectional"], ["mean", "optimal"], 2)
)
def test_every_kind_of_model_is_learned(family: str, ablation: Any) -> None:
    """The loss falls: after learning, half of the edges say more of what the model says than the first half did."""
    model = families.model(family)
    runs = Runs(model, pairs_for(model, count=8, lengths=(7, 9)), get_metric("logit-diff"))
    backward = model.passes["backward"]
    scores = learned(runs, ablation, keep=model.anatomy.n_edges // 2, steps=60, lr=0.3, warm="")
    assert model.passes["backward"] >= backward + 60
    best, worst = (
        prefix_mask(model.anatomy, order, model.anatomy.n_edges // 2)
        for order in (rank(scores), rank(scores)[::-1])
    )
    kl = Runs(model, runs.pairs, get_metric("kl"))
    kl.constants = runs.constants
    good, bad = Evaluator(kl, ablation).values([best, worst]).mean(1)
    assert good > bad


# --- the warm start -------------------------------------------------------------------------------------------


def test_a_start_from_a_file_is_one_from_the_method(tmp_path: Path) -> None:
    runs = planted_runs("planted/and-gate:0")
    path = tmp_path / "scores.npz"
    for method in (EAP(), AtP()):
        scores = method.run(runs, ablation="resample", direction="noising")
        np.savez(path, **scores.arrays())  # type: ignore[arg-type]
        for units in ("edges", "nodes"):
            from_file = learned(runs, units=units, steps=3, warm=str(path))
            np.testing.assert_array_equal(
                from_file.values, learned(runs, units=units, steps=3, warm=method.name).values
            )
    with pytest.raises(UsageError, match="another model"):
        learned(planted_runs("planted/and-gate:2"), warm=str(path))


def test_the_start_keeps_the_order_of_the_scores() -> None:
    runs = planted_runs("planted/ioi-planted:0")
    scores = EAP().run(runs, ablation="resample", direction="noising")
    mask = runs.model.anatomy.edge_mask
    begun = learned(runs, steps=1, lr=1e-9).values[mask]
    size = np.abs(scores.values[mask])
    order = np.argsort(-size, kind="stable")
    assert (np.diff(begun[order]) <= 1e-6).all()
    assert begun[order[0]] > 0.9
    assert begun.min() > 0.1


def test_refusals(tmp_path: Path) -> None:
    runs = planted_runs("planted/and-gate:0")
    for options in (
        {"units": "heads"},
        {"gates": "hard"},
        {"loss": "l2"},
        {"steps": 0},
        {"warm": "edge-pruning"},
    ):
        with pytest.raises(UsageError):
            EdgePruning(**options)
    with pytest.raises(UsageError):
        get_method("edge-pruning", {"keeps": "4"})
    assert get_method("edge-pruning", {"keep": "4", "lr": "0.2"}) == EdgePruning(keep=4, lr=0.2)
    with pytest.raises(UnsupportedError, match="position"):
        EdgePruning().run(runs, ablation="resample", direction="noising", positions="all")
    accuracy = Runs(runs.model, runs.pairs, get_metric("accuracy"))
    with pytest.raises(UnsupportedError, match="no gradient"):
        EdgePruning(loss="metric").run(accuracy, ablation="resample", direction="noising")
    scores = EdgePruning(warm="", steps=2).run(accuracy, ablation="resample", direction="noising")
    assert scores.metric == "accuracy"


@pytest.mark.slow
def test_the_circuit_for_indirect_objects_in_mini() -> None:
    """Twenty of 1519 edges; seen on prompts that were not learned from."""
    spec, model = load_task(ROOT / "tasks" / "ioi.yaml"), load_model("mini", device="cpu")

    def runs(seed: int) -> Runs:
        pairs = make_pairs(
            spec,
            model.tokenizer,
            counterfactual=None,
            count=64,
            seed=seed,
            drop_bad_pairs=False,
            zoo_pairs=None,
            n_vocab=model.n_vocab,
        )
        return Runs(model, pairs, get_metric("logit-diff"))

    scores = learned(runs(0), keep=20)
    mask = prefix_mask(model.anatomy, rank(scores), 20)
    assert Evaluator(runs(7), "resample").faithfulness([mask])[0] > 0.9
