"""Discovery recovers the circuits that were written: EAP, then pruning, edge for edge."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.prune import Pruned, overlap, prune
from circuitfind.circuit.rule import Rule
from circuitfind.config import Ablation
from circuitfind.methods.eap import EAP
from circuitfind.model.load import load_model, planted
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs
from circuitfind.zoo.planted import NAMES
from tests import families

SEEDS = [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 20))]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def planted_runs(name: str, count: int = 32) -> Runs:
    truth = planted(name)
    pairs = tuple(
        PromptPair(
            p.clean, p.corrupted, (p.answer,), (p.wrong,), len(p.clean) - 1, p.positions, "", "", "x", "g"
        )
        for p in truth.pairs(count, 0)
    )
    return Runs(load_model(name, device="cpu"), PromptPairs(pairs, "planted"), get_metric("logit-diff"))


def discover(runs: Runs, ablation: Ablation, direction: str) -> Pruned:
    scores = EAP().run(runs, ablation=ablation, direction=direction)  # type: ignore[arg-type]
    rule = Rule(faithfulness=0.9)
    return prune(scores, rule, Evaluator(runs, ablation), direction=direction)  # type: ignore[arg-type]


def names_of(runs: Runs, mask: np.ndarray) -> set[str]:
    return {str(runs.model.anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(mask)}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", NAMES)
def test_recovery_under_resample(kind: str, seed: int) -> None:
    name = f"planted/{kind}:{seed}"
    truth, runs = planted(name), planted_runs(name)
    assert truth.direction == ("denoising" if kind == "or-gate" else "noising")
    found = discover(runs, "resample", truth.direction)
    assert names_of(runs, found.mask) == truth.edges["resample"]
    wanted = np.zeros_like(found.mask)
    for edge in truth.edges["resample"]:
        wanted[runs.model.anatomy.index_of(edge)] = True
    assert overlap(found.mask, wanted) == (1.0, 1.0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [k for k in NAMES if k != "or-gate"])
def test_recovery_under_zero(kind: str, seed: int) -> None:
    name = f"planted/{kind}:{seed}"
    truth, runs = planted(name), planted_runs(name)
    assert names_of(runs, discover(runs, "zero", "noising").mask) == truth.edges["zero"]


@pytest.mark.parametrize("seed", range(3))
def test_noising_finds_one_arm_of_an_or(seed: int) -> None:
    """Why the direction matters: one arm is enough, so the smallest faithful circuit has one."""
    name = f"planted/or-gate:{seed}"
    truth, runs = planted(name), planted_runs(name)
    arms = {head for head, role in truth.roles.items() if role in ("arm-a", "arm-b")}
    assert len(arms) == 2

    def arms_in(found: Pruned) -> set[str]:
        return {str(runs.model.anatomy.writers[int(w)]) for w, _ in np.argwhere(found.mask)} & arms

    assert arms_in(discover(runs, "resample", "denoising")) == arms
    assert len(arms_in(discover(runs, "resample", "noising"))) == 1


def test_overlap() -> None:
    truth = np.array([[True, True], [False, False]])
    found = np.array([[True, False], [True, True]])
    assert overlap(found, truth) == (pytest.approx(1 / 3), 0.5)
    assert overlap(np.zeros_like(truth), truth) == (0, 0)
