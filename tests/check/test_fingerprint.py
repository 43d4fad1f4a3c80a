"""The few numbers that a model and its prompts are told by: each change moves those that it should, and no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from circuitfind.check.baseline import Prompts
from circuitfind.check.compare import SAME_WEIGHTS
from circuitfind.check.fingerprint import metric_of, prompts_of, weights_of
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model
from circuitfind.model.runs import Runs
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs
from circuitfind.task.spec import load_task


@pytest.fixture
def model() -> Model:
    return load_model("planted/induction")


def moved(model: Model, change: Callable[[Model], None]) -> set[str]:
    """Parts whose numbers a change moves by more than rounding."""
    before = weights_of(model)
    change(model)
    after = weights_of(model)
    return {
        name
        for name, (norm, projection) in before.items()
        if abs(after[name][0] - norm) + abs(after[name][1] - projection) > SAME_WEIGHTS * max(norm, 1e-9)
    }


def test_norms_are_norms(model: Model) -> None:
    layer = model.layers[0]
    parts = [layer.w_q[0], layer.w_k[0], layer.w_v[0], layer.w_o_raw[0]]
    parts += [bias[0] for slot in "qkv" if (bias := layer.bias(slot)) is not None]
    flat = torch.cat([part.reshape(-1) for part in parts]).double()
    assert weights_of(model)["a0.h0"][0] == pytest.approx(float(flat.norm()), rel=1e-6)
    names = {str(node) for node in model.anatomy.writers} | {"logits"}
    assert set(weights_of(model)) <= names
    assert set(weights_of(model)) >= {str(n) for n in model.anatomy.writers if str(n).startswith("a")}


def swap_q_and_k(model: Model) -> None:
    weights = model.layers[1]
    q, k = weights.w_q[1].clone(), weights.w_k[1].clone()
    weights.w_q[1], weights.w_k[1] = k, q


CHANGES: dict[str, tuple[Callable[[Model], Any], set[str]]] = {
    "zeroed": (lambda m: m.layers[0].w_o_raw[0].zero_(), {"a0.h0"}),
    "sign": (lambda m: m.layers[1].w_v[1].mul_(-1), {"a1.h1"}),
    "order": (lambda m: m.layers[1].w_q[1].copy_(m.layers[1].w_q[1].flip(0).clone()), {"a1.h1"}),
    "q and k": (swap_q_and_k, {"a1.h1"}),
    "unembedding": (lambda m: m.w_u.mul_(1.01), {"logits"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_moves(model: Model, name: str) -> None:
    change, parts = CHANGES[name]
    assert moved(model, change) == parts


def test_rounding_moves_nothing(model: Model) -> None:
    def shake(model: Model) -> None:
        for layer in model.layers:
            layer.w_o_raw.mul_(1 + 1e-6)
            layer.w_qkv.mul_(1 - 1e-6)

    assert moved(model, shake) == set()


def test_the_embedding_is_looked_at(model: Model) -> None:
    def change(model: Model) -> None:
        next(p for p in model.bridge.parameters() if p.shape[0] == model.n_vocab).mul_(1.1)

    assert "input" in moved(model, change)


@pytest.fixture(scope="module")
def session() -> Session:
    spec = load_task("planted-induction")
    return Session(spec, resolve(spec, count=12), "cpu")


def seen(session: Session, pairs: PromptPairs) -> Prompts:
    return prompts_of(pairs, Runs(session.model, pairs, get_metric("logit-diff")))


def each(change: Callable[[PromptPair], PromptPair]) -> Callable[[PromptPairs], PromptPairs]:
    return lambda pairs: replace(pairs, pairs=tuple(map(change, pairs)))


PROMPTS: dict[str, tuple[Callable[[PromptPairs], PromptPairs], set[str]]] = {
    "answer position": (
        each(lambda p: replace(p, answer_position=p.answer_position - 1)),
        {"answer_positions"},
    ),
    "answers": (each(lambda p: replace(p, answer=p.wrong, wrong=p.answer)), {"answers", "clean_prompts"}),
    "names": (each(lambda p: replace(p, positions={})), {"positions"}),
    "order": (
        lambda pairs: pairs.subset(range(len(pairs))[::-1]),
        {"texts", "tokens", "answers", "positions"},
    ),
    "sides": (
        each(lambda p: replace(p, clean=p.corrupted, corrupted=p.clean)),
        {"tokens", "pairs", "clean_prompts", "corrupted_prompts"},
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_what_of_prompts_moves(session: Session, name: str) -> None:
    change, parts = PROMPTS[name]
    before, after = (seen(session, pairs) for pairs in (session.all_pairs, change(session.all_pairs)))
    named = ("texts", "tokens", "answers", "answer_positions", "positions", "pairs")
    changed = {
        part
        for part in (*named, "clean_prompts", "corrupted_prompts")
        if getattr(before, part) != getattr(after, part)
    }
    assert changed <= parts
    assert changed >= parts - {"positions"}, "all prompts may have the same named positions"
    assert before.content != after.content


def test_the_metric_is_a_mean(session: Session) -> None:
    runs = session.runs_of(session.all_pairs)
    found = metric_of(runs)
    assert found.name == "logit-diff"
    assert found.clean == pytest.approx(sum(runs.clean.tolist()) / 12)
    assert found.corrupted == pytest.approx(sum(runs.corrupted.tolist()) / 12)
    assert prompts_of(session.all_pairs, runs).accuracy == 1
