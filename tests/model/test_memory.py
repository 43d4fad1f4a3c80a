"""Plans of memory: sizes as text, and what fits a budget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from circuitfind.errors import UsageError
from circuitfind.model import memory
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.memory import free_bytes, make_plan, out_of_memory, token_bytes
from circuitfind.sizes import parse_size
from tests import families


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("500 MB", 500 * 10**6),
        ("2GiB", 2 * 2**30),
        ("1.5 gb", 1_500_000_000),
        (".5kb", 500),
        (" 123 ", 123),
        ("7b", 7),
        ("1TB", 10**12),
        ("3KiB", 3072),
        ("64mib", 64 * 2**20),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "8 parsecs", "-8GB", "8GB 4MB", "1e9", "8,5GB", "1.2.3GB", "half", "nan", "inf"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no amount of memory") as caught:
        parse_size(text)
    assert f"'{text}'" in caught.value.what
    assert "8GB" in caught.value.hint


def gpt2_small() -> Any:
    """The shape of GPT-2 small, with nothing in it."""
    layer = SimpleNamespace(
        n_heads=12,
        n_kv_heads=12,
        d_head=64,
        w_qkv=torch.empty(768, 2304, device="meta"),
        mlp=SimpleNamespace(w_gate=None),
        parts=None,
    )
    return SimpleNamespace(
        placement=None,
        dtype=torch.float32,
        device=torch.device("cpu"),
        d_model=768,
        d_mlp=3072,
        d_head=64,
        n_vocab=50257,
        n_vocab_out=50257,
        n_ctx=2048,
        has_mlp=True,
        causal=True,
        layers=[layer] * 12,
        anatomy=Anatomy(12, 12, 12),
    )


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "attn-only", "rms-gated"])
def test_a_larger_budget_never_plans_less(family: str) -> None:
    model = families.model(family)
    plans = [make_plan(model, budget) for budget in (0, 10**3, 10**5, 10**6, 10**7, 10**9, 10**12)]
    for name in ("prompt_tokens", "batch_tokens", "pass_tokens", "edge_tokens", "cache_bytes"):
        sizes = [getattr(plan, name) for plan in plans]
        assert sizes == sorted(sizes), name
        assert sizes[0] < sizes[-1], name
    smallest, largest = plans[0], plans[-1]
    assert (smallest.batch_tokens, smallest.pass_tokens, smallest.edge_tokens) == (1, 1, 1)
    most = memory.CPU_TOKENS
    assert (largest.batch_tokens, largest.pass_tokens, largest.edge_tokens) == (memory.CPU_BATCH, most, most)


def test_prompts_of_2000_tokens_fit_8_gb_on_gpt2_small() -> None:
    """One prompt to a batch and one patch to a pass: what they take, summed, is within the budget."""
    model, budget, length = gpt2_small(), 8 * 10**9, 2000
    plan, cost = make_plan(model, budget), token_bytes(gpt2_small())
    assert plan.prompt_tokens >= length
    tokens = max(plan.batch_tokens, length)
    both_runs = 2 * tokens * (cost["run"] + cost["kept"])
    tables = 2 * tokens * cost["gap"]
    rows = max(max(plan.pass_tokens, length) * cost["node"], max(plan.edge_tokens, length) * cost["edge"])
    assert both_runs + tables <= budget // 2
    assert rows <= budget // 4
    assert plan.cache_bytes <= budget // 4
    assert both_runs + tables + rows + plan.cache_bytes <= budget


def test_what_a_token_of_a_run_takes_is_what_a_run_takes() -> None:
    """The arithmetic against traces: within a third, and never too little by more than a tenth."""
    for family in ("gpt2", "llama", "rms-gated", "ln", "attn-only"):
        model = families.model(family)
        runs = families.runs_of(model, families.pairs_for(model, count=8, lengths=(20,)))
        tokens = runs.batches[0].clean.numel()
        cost = token_bytes(model)
        light, kept = runs.trace(0, "clean").n_bytes, runs.trace(0, "clean", keep=True).n_bytes
        assert light <= 1.1 * tokens * cost["run"], family
        assert kept <= 1.1 * tokens * (cost["run"] + cost["kept"]), family
        assert kept > 0.3 * tokens * (cost["run"] + cost["kept"]), family


def test_half_a_plan() -> None:
    plan = make_plan(gpt2_small(), 10**9)
    half = plan.halved()
    assert (half.budget, half.cache_bytes) == (plan.budget // 2, plan.cache_bytes // 2)
    for _ in range(40):
        half = half.halved()
    assert (half.batch_tokens, half.pass_tokens, half.edge_tokens) == (1, 1, 1)


def test_without_a_budget_most_of_what_is_free_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    assert make_plan(gpt2_small(), None) == make_plan(gpt2_small(), 8 * 10**8)
    assert free_bytes(torch.device("cpu")) > 10**6


def test_errors_that_say_that_memory_ran_out() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    )
    assert out_of_memory(
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . not enough memory: you tried ...")
    )
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("not enough memory"))
