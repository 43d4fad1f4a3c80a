"""Models and circuits to measure: planted ones with their true circuit, ``mini`` on its tasks, models with random weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.config import Ablation
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model, planted
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs
from circuitfind.task.prompts import make_pairs
from circuitfind.task.spec import load_task

METRIC = get_metric("logit-diff")


@cache
def _runs(name: str, count: int) -> Runs:
    pairs = tuple(
        PromptPair(
            p.clean, p.corrupted, (p.answer,), (p.wrong,), len(p.clean) - 1, p.positions, "", "", "x", "g"
        )
        for p in planted(name).pairs(count, 0)
    )
    return Runs(load_model(name, device="cpu"), PromptPairs(pairs, "planted"), METRIC)


def planted_case(
    name: str, *, count: int = 24, ablation: Ablation = "resample"
) -> tuple[Evaluator, np.ndarray]:
    """An evaluator of a planted model, and its true edges."""
    evaluator = Evaluator(_runs(name, count), ablation)
    anatomy = evaluator.runs.model.anatomy
    mask = np.zeros_like(anatomy.edge_mask)
    for edge in planted(name).edges["resample"]:
        mask[anatomy.index_of(edge)] = True
    return evaluator, mask


@cache
def _mini() -> Model:
    return load_model("mini", device="cpu")


def mini_case(task: str, *, count: int = 32, ablation: Ablation = "resample") -> Evaluator:
    """An evaluator of ``mini`` on a task."""
    model = _mini()
    pairs = make_pairs(load_task(task), model.tokenizer, count=count, seed=0, n_vocab=model.n_vocab)
    return Evaluator(Runs(model, pairs, METRIC), ablation)


def turned_case(model: Model, pairs: PromptPairs, ablation: Ablation = "resample") -> Evaluator:
    """An evaluator of a model with random weights, with the answers turned so that there is something to explain."""
    runs = Runs(model, pairs, METRIC)
    gain = runs.clean - Evaluator(runs, ablation).empty
    found = tuple(
        p if g > 0 else replace(p, answer=p.wrong, wrong=p.answer) for p, g in zip(pairs, gain, strict=True)
    )
    return Evaluator(Runs(model, PromptPairs(found, pairs.counterfactual), METRIC), ablation)
