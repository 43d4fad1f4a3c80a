"""The planted circuits are what they say, by brute force; and the slow reference is a transformer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuitfind.zoo.planted import NAMES, Planted, build
from tests.reference import (
    Measured,
    circuit_faithfulness,
    eap,
    edges,
    faithfulness,
    forward,
    logit_diff,
    measure_planted,
    tensors,
    without_each,
    writers,
)

N_PAIRS = 8
ABLATIONS = ("resample", "zero")
SEEDS = [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 20))]

every_model = pytest.mark.parametrize("name", NAMES)
every_seed = pytest.mark.parametrize("seed", SEEDS)
every_ablation = pytest.mark.parametrize("ablation", ABLATIONS)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are so small that a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def planted(name: str, seed: int) -> Planted:
    return build(name, seed)


@cache
def measured(name: str, seed: int, ablation: str) -> Measured:
    model = planted(name, seed)
    return measure_planted(model, model.pairs(N_PAIRS), ablation)


def all_edges(model: Planted) -> set[str]:
    return {f"{writer}->{reader}" for writer, reader in edges(model.config)}


def arms(model: Planted, ablation: str) -> dict[str, set[str]]:
    """The edges of each arm of a gate, with the gate's edge to the logits."""
    found = {}
    for arm in ("arm-a", "arm-b"):
        head = next(name for name, role in model.roles.items() if role == arm)
        found[arm] = {edge for edge in model.edges[ablation] if head in edge or edge.endswith("->logits")}
    return found


# --- what a planted model is --------------------------------------------------------------------------------


def test_listing_needs_no_torch() -> None:
    code = "import sys, circuitfind.zoo.planted as p; assert p.NAMES; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'induction'"):
        build("inducton")


@every_model
def test_same_seed_same_model(name: str) -> None:
    one, two = build(name, 3), build(name, 3)
    assert (one.config, one.edges, one.roles) == (two.config, two.edges, two.roles)
    assert one.state.keys() == two.state.keys()
    assert all(torch.equal(one.state[key], two.state[key]) for key in one.state)
    assert one.pairs(5) == two.pairs(5)
    assert one.pairs(9)[:5] == one.pairs(5)
    assert one.pairs(5, seed=1) != one.pairs(5)


@every_model
def test_seeds_differ(name: str) -> None:
    models = [planted(name, seed) for seed in range(6)]
    assert len({json.dumps(model.config, sort_keys=True) for model in models}) > 3
    assert len({model.edges["zero"] for model in models}) > 3


@every_model
@every_seed
def test_shapes(name: str, seed: int) -> None:
    model = planted(name, seed)
    config, state = model.config, model.state
    assert config["n_ctx"] <= 16
    assert config["d_vocab"] <= 40
    assert config["d_model"] <= 96
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())
    assert set(model.roles) == set(writers(config)) - {"input"}
    assert {"idle", "noise"} <= set(model.roles.values())
    assert model.edges["resample"] < model.edges["zero"] <= all_edges(model)
    pairs = model.pairs(N_PAIRS)
    assert len({pair.clean for pair in pairs}) == N_PAIRS
    for pair in pairs:
        assert len(pair.clean) == len(pair.corrupted) == config["n_ctx"]
        assert max(*pair.clean, *pair.corrupted, pair.answer, pair.wrong) < config["d_vocab"]
        assert pair.positions["END"] == config["n_ctx"] - 1


@every_model
@every_seed
def test_answers(name: str, seed: int) -> None:
    model = planted(name, seed)
    clean, corrupted, answer, wrong = tensors(model.pairs(32))
    logits, _ = forward(model.config, model.state, clean)
    assert torch.equal(logits[:, -1].argmax(dim=-1), answer)
    good = logit_diff(logits, answer, wrong)
    bad = logit_diff(forward(model.config, model.state, corrupted)[0], answer, wrong)
    assert (bad < 0).all()
    effect = good - bad
    assert effect.min() > 3.0
    assert effect.max() - effect.min() < 0.1 * effect.mean()


# --- the true edges -----------------------------------------------------------------------------------------


@every_model
@every_seed
@every_ablation
def test_true_edges_carry_everything(name: str, seed: int, ablation: str) -> None:
    m = measured(name, seed, ablation)
    model = planted(name, seed)
    assert circuit_faithfulness(m, set()) == 0.0
    assert circuit_faithfulness(m, all_edges(model)) == 1.0
    # All the false edges together change nothing, neither beside the true ones nor alone.
    assert abs(circuit_faithfulness(m, model.edges[ablation]) - 1) < 0.02
    assert abs(circuit_faithfulness(m, all_edges(model) - model.edges[ablation])) < 0.02


@pytest.mark.parametrize("name", [name for name in NAMES if name != "or-gate"])
@every_seed
@every_ablation
def test_each_true_edge_is_necessary(name: str, seed: int, ablation: str) -> None:
    m = measured(name, seed, ablation)
    model = planted(name, seed)
    true = model.edges[ablation]
    assert max(without_each(m, true, true).values()) < 0.3
    # In the whole model too: so every set that reaches 0.9 holds all of them, and theirs is the only smallest
    # one.
    assert max(without_each(m, all_edges(model), true).values()) < 0.3


@every_model
@pytest.mark.parametrize(
    "seed", [*SEEDS[:2], *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))]
)
@every_ablation
def test_no_false_edge_matters(name: str, seed: int, ablation: str) -> None:
    m = measured(name, seed, ablation)
    model = planted(name, seed)
    false = all_edges(model) - model.edges[ablation]
    changes = {edge: abs(f - 1) for edge, f in without_each(m, all_edges(model), false).items()}
    assert max(changes.values()) < 0.02
    assert max(changes.values()) > 0  # tiny, but there


@every_seed
@every_ablation
def test_or_gate_needs_one_arm(seed: int, ablation: str) -> None:
    m = measured("or-gate", seed, ablation)
    model = planted("or-gate", seed)
    for arm in arms(model, ablation).values():
        assert abs(circuit_faithfulness(m, arm) - 1) < 0.03
        assert max(without_each(m, arm, arm).values()) < 0.5
        # Without this arm the other stands in.
        onward = {edge for edge in arm if not edge.endswith("->logits")}
        assert abs(circuit_faithfulness(m, all_edges(model) - onward) - 1) < 0.02
    neither = {edge for edge in model.edges[ablation] if not edge.endswith("->logits")}
    assert circuit_faithfulness(m, all_edges(model) - neither) < 0.1


@every_seed
@every_ablation
def test_and_gate_needs_both_arms(seed: int, ablation: str) -> None:
    m = measured("and-gate", seed, ablation)
    for arm in arms(planted("and-gate", seed), ablation).values():
        assert abs(circuit_faithfulness(m, arm)) < 0.02


# --- attribution scores -------------------------------------------------------------------------------------


@every_model
@every_seed
def test_attribution_tells_true_from_false(name: str, seed: int) -> None:
    model = planted(name, seed)
    scores = eap(model, model.pairs(N_PAIRS), model.direction)
    true = model.edges["resample"]
    smallest = min(abs(scores[edge]) for edge in true)
    largest = max(abs(score) for edge, score in scores.items() if edge not in true)
    assert smallest > 10 * largest
    sign = -1 if model.direction == "noising" else 1
    assert all(sign * scores[edge] > 0 for edge in true)


@every_seed
def test_the_other_direction_does_not_see_the_arms(seed: int) -> None:
    for name, blind in (("and-gate", "denoising"), ("or-gate", "noising")):
        model = planted(name, seed)
        pairs = model.pairs(N_PAIRS)
        seen, unseen = eap(model, pairs, model.direction), eap(model, pairs, blind)
        gate = next(name for name, role in model.roles.items() if role == "gate")
        for edge in model.edges["resample"] - {f"{gate}->logits"}:
            assert abs(unseen[edge]) < 0.01 * abs(seen[edge])


# --- the reference ------------------------------------------------------------------------------------------


def bridge_logits(config: dict[str, Any], state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The logits of TransformerLens for the same weights. [batch, pos, d_vocab_out]"""
    from circuitfind.model.tl_format import boot_native

    model = boot_native(config, state, "test", torch.device("cpu"), "", source="test")
    with torch.no_grad():
        logits: Tensor = model.bridge(tokens, return_type="logits")
    return logits


def random_state(config: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Random weights, norms and biases included. A gated MLP of TransformerLens 4 has no biases."""
    d_model, d_mlp, d_head, n_heads = (config[key] for key in ("d_model", "d_mlp", "d_head", "n_heads"))
    sizes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (config["d_vocab"], d_model),
        "pos_embed.W_pos": (config["n_ctx"], d_model),
        "unembed.W_U": (d_model, config["d_vocab_out"]),
        "unembed.b_U": (config["d_vocab_out"],),
    }
    norms = ["ln_final"]
    for layer in range(config["n_layers"]):
        block = f"blocks.{layer}"
        norms += [f"{block}.ln1", f"{block}.ln2"]
        for letter in "QKV":
            sizes[f"{block}.attn.W_{letter}"] = (n_heads, d_model, d_head)
            sizes[f"{block}.attn.b_{letter}"] = (n_heads, d_head)
        sizes[f"{block}.attn.W_O"] = (n_heads, d_head, d_model)
        sizes[f"{block}.attn.b_O"] = (d_model,)
        sizes[f"{block}.mlp.W_in"] = (d_model, d_mlp)
        sizes[f"{block}.mlp.W_out"] = (d_mlp, d_model)
        if config["gated_mlp"]:
            sizes[f"{block}.mlp.W_gate"] = (d_model, d_mlp)
        else:
            sizes[f"{block}.mlp.b_in"] = (d_mlp,)
            sizes[f"{block}.mlp.b_out"] = (d_model,)
    for norm in norms:
        if config["normalization_type"]:
            sizes[f"{norm}.w"] = (d_model,)
        if config["normalization_type"] == "LN":
            sizes[f"{norm}.b"] = (d_model,)
    return {name: 0.25 * torch.randn(*size, generator=generator) for name, size in sizes.items()}


@pytest.mark.parametrize(
    ("norm", "act_fn", "gated", "direction"),
    [
        (None, "relu", False, "causal"),
        ("LN", "gelu_new", False, "causal"),
        ("LN", "gelu", False, "bidirectional"),
        ("RMS", "silu", True, "causal"),
        (None, "silu", True, "bidirectional"),
    ],
)
def test_reference_is_a_transformer(norm: str | None, act_fn: str, gated: bool, direction: str) -> None:
    pytest.importorskip("transformer_lens")
    config: dict[str, Any] = {
        "n_layers": 2,
        "n_heads": 3,
        "d_head": 5,
        "d_model": 16,
        "d_mlp": 24,
        "n_ctx": 7,
        "d_vocab": 11,
        "d_vocab_out": 9,
        "act_fn": act_fn,
        "normalization_type": norm,
        "gated_mlp": gated,
        "attn_only": False,
        "attention_dir": direction,
        "positional_embedding_type": "standard",
        "eps": 1e-5,
    }
    generator = torch.Generator().manual_seed(0)
    state = random_state(config, generator)
    tokens = torch.randint(0, 11, (4, 7), generator=generator)
    ours, _ = forward(config, state, tokens)
    torch.testing.assert_close(ours, bridge_logits(config, state, tokens), atol=1e-4, rtol=1e-4)


@every_model
def test_reference_agrees_on_planted_models(name: str) -> None:
    pytest.importorskip("transformer_lens")
    model = planted(name, 0)
    tokens = tensors(model.pairs(N_PAIRS))[0]
    ours, _ = forward(model.config, model.state, tokens)
    torch.testing.assert_close(ours, bridge_logits(model.config, model.state, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("folder", ["indhead-1h", "letter-sort", "palindrome", "modadd-113"])
def test_reference_agrees_on_trained_models(folder: str) -> None:
    root = os.environ.get("CIRCUITFIND_MODELS")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip("CIRCUITFIND_MODELS does not lead to this model")
    pytest.importorskip("transformer_lens")
    safetensors = pytest.importorskip("safetensors.torch")
    path = Path(root) / folder
    config = json.loads((path / "config.json").read_text())["config"]
    state = safetensors.load_file(path / "model.safetensors")
    prompts = [json.loads(line)["clean"] for line in (path / "prompts.jsonl").read_text().splitlines()]
    tokens = torch.tensor([prompt for prompt in prompts if len(prompt) == len(prompts[0])][:16])
    ours, _ = forward(config, state, tokens)
    torch.testing.assert_close(ours, bridge_logits(config, state, tokens), atol=1e-3, rtol=1e-4)


def test_reference_edges() -> None:
    model = planted("induction", 0)
    pairs = model.pairs(4)
    clean, corrupted, answer, wrong = tensors(pairs)
    state = {name: value.double() for name, value in model.state.items()}
    logits, written = forward(model.config, state, clean)
    # Every edge carrying the writer's own output is no change at all.
    same, _ = forward(model.config, state, clean, {edge: written[edge[0]] for edge in edges(model.config)})
    torch.testing.assert_close(same, logits, atol=1e-12, rtol=0)
    # Every edge carrying the corrupted output is the corrupted run.
    other_logits, other = forward(model.config, state, corrupted)
    moved, _ = forward(model.config, state, clean, {edge: other[edge[0]] for edge in edges(model.config)})
    torch.testing.assert_close(moved, other_logits, atol=1e-12, rtol=0)
    # A small step of one writer along all its edges changes the metric by the sum of their attribution
    # scores.
    scores = eap(model, pairs, "noising")
    base = logit_diff(logits, answer, wrong).mean()
    for writer in writers(model.config):
        outgoing = [edge for edge in edges(model.config) if edge[0] == writer]
        step = 1e-5 * (other[writer] - written[writer])
        nudged, _ = forward(model.config, state, clean, dict.fromkeys(outgoing, written[writer] + step))
        slope = (logit_diff(nudged, answer, wrong).mean() - base).item() / 1e-5
        assert sum(scores[f"{w}->{r}"] for w, r in outgoing) == pytest.approx(slope, abs=1e-3)


def test_reference_refuses_unknown_edges() -> None:
    model = planted("induction", 0)
    with pytest.raises(ValueError, match="has no"):
        faithfulness(model, model.pairs(2), {"a0.h0->a0.h1<k>"}, "zero")
    tokens = tensors(model.pairs(2))[0]
    with pytest.raises(ValueError, match="has no"):
        forward(model.config, model.state, tokens, {("a9.h9", "logits"): torch.zeros(1)})
