"""Tiny models of every supported family, written to local folders, and random prompt pairs for them.

All weights are random, biases and norm weights too: a bug that only shows when a bias is not 0 or a scale is
not 1 must show. Folders are made once in a session and removed when it ends.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model
from circuitfind.model.memory import MemoryPlan
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs

VOCAB, CONTEXT = 40, 24

HF_FAMILIES = ("gpt2", "neox", "neox-serial", "llama", "qwen2", "qwen3", "gemma2")
NATIVE_FAMILIES = (
    "ln",
    "ln-pre",
    "rms-gated",
    "no-norm",
    "attn-only",
    "attn-only-no-norm",
    "bidirectional",
    "final-rms",
    "kv-groups",
)
FAMILIES = (*HF_FAMILIES, *NATIVE_FAMILIES)

ALIKE = (
    "neox-serial",
    "llama",
    "qwen2",
    "ln-pre",
    "rms-gated",
    "no-norm",
    "attn-only-no-norm",
    "final-rms",
)
"""Families each of whose traits another one has too."""


def costly(family: str, *others: Any) -> Any:
    """A parameter of a test that takes seconds for each family: what is like another joins in ``make test-all``."""
    return pytest.param(family, *others, marks=[pytest.mark.slow] if family in ALIKE else [])


COSTLY = [costly(family) for family in FAMILIES]


def thinned(some: Sequence[Any], others: Sequence[Any], share: int = 3) -> list[Any]:
    """All pairs of two kinds of cases. ``make test`` runs a third of them, or another share, with every case of both kinds in
    it but families that are like another one.
    """
    rank = {one: i for i, one in enumerate(one for one in some if one not in ALIKE)}
    return [
        pytest.param(
            one, other, marks=[] if one in rank and (rank[one] - j) % share == 0 else [pytest.mark.slow]
        )
        for one in some
        for j, other in enumerate(others)
    ]


@contextmanager
def one_thread() -> Iterator[None]:
    """These tensors are so small that a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def root() -> Path:
    """Where the folders of this session lie."""
    path = Path(tempfile.mkdtemp(prefix="circuitfind-families-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def folder(family: str) -> Path:
    """The folder of a family, written at the first call."""
    path = root() / family
    if family in HF_FAMILIES:
        _write_hf(family, path)
    else:
        write_native(path, NATIVE_CONFIGS[family], native_state(NATIVE_CONFIGS[family]))
    return path


@cache
def model(family: str) -> Model:
    """The family's model as circuitfind loads it. Shared by tests: leave it as it is."""
    return load_model(str(folder(family)), device="cpu")


# --- Hugging Face ---------------------------------------------------------------------------------------------


def _write_hf(family: str, path: Path) -> None:
    import transformers as hf

    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    groups: dict[str, Any] = {**sizes, "num_key_value_heads": 2, "pad_token_id": None}
    builders: dict[str, Callable[[], Any]] = {
        "gpt2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=VOCAB,
                n_embd=16,
                n_layer=2,
                n_head=4,
                n_positions=CONTEXT,
                bos_token_id=0,
                eos_token_id=0,
            )
        ),
        "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes, use_parallel_residual=True)),
        "neox-serial": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes, use_parallel_residual=False)),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**groups)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**groups)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**groups, head_dim=6)),
        # Small caps and a short window, so that both do something at this size.
        "gemma2": lambda: hf.Gemma2ForCausalLM(
            hf.Gemma2Config(
                **groups,
                head_dim=6,
                query_pre_attn_scalar=6,
                sliding_window=4,
                attn_logit_softcapping=3.0,
                final_logit_softcapping=4.0,
            )
        ),
    }
    with one_thread():
        torch.manual_seed(len(family) + HF_FAMILIES.index(family))
        built = builders[family]()
        for parameter in built.parameters():
            perturb(parameter.data)
        built.save_pretrained(path)


def perturb(parameter: Tensor) -> None:
    """Random matrices; vectors (biases, norm weights) moved away from 0 and 1."""
    if parameter.ndim > 1:
        torch.nn.init.normal_(parameter, std=0.35)
    else:
        parameter.add_(0.3 * torch.randn_like(parameter))


# --- TransformerLens format -----------------------------------------------------------------------------------


def native_config(**changes: Any) -> dict[str, Any]:
    """The configuration of a small native model with LayerNorm and MLPs."""
    config: dict[str, Any] = {
        "n_layers": 2,
        "d_model": 14,
        "n_ctx": CONTEXT,
        "d_head": 4,
        "n_heads": 3,
        "d_mlp": 20,
        "act_fn": "gelu_new",
        "d_vocab": VOCAB,
        "d_vocab_out": VOCAB,
        "normalization_type": "LN",
        "attn_only": False,
        "attention_dir": "causal",
        "positional_embedding_type": "standard",
        "attn_scale": 2.0,
        "use_attn_scale": True,
        "eps": 1e-5,
        "gated_mlp": False,
    }
    return {**config, **changes}


NATIVE_CONFIGS: dict[str, dict[str, Any]] = {
    "ln": native_config(n_layers=3),
    "ln-pre": native_config(normalization_type="LNPre", act_fn="relu", d_vocab_out=5),
    "rms-gated": native_config(normalization_type="RMS", act_fn="silu", gated_mlp=True),
    "no-norm": native_config(normalization_type=None, act_fn="gelu"),
    "attn-only": native_config(attn_only=True, n_layers=3),
    "attn-only-no-norm": native_config(attn_only=True, normalization_type=None),
    "bidirectional": native_config(attention_dir="bidirectional", d_vocab_out=2),
    "final-rms": native_config(final_rms=True),
    "kv-groups": native_config(normalization_type="RMS", n_heads=4, n_key_value_heads=2),
    # Not among FAMILIES: its neurons depend on each other, which some methods and references do not know.
    "solu-ln": native_config(act_fn="solu_ln"),
}


def native_state(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under HookedTransformer's names."""
    generator = torch.Generator().manual_seed(seed)
    d_model, d_head, d_mlp, heads = config["d_model"], config["d_head"], config["d_mlp"], config["n_heads"]
    groups = config.get("n_key_value_heads") or heads
    kind = config["normalization_type"]
    sizes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (config["d_vocab"], d_model),
        "pos_embed.W_pos": (config["n_ctx"], d_model),
        "unembed.W_U": (d_model, config["d_vocab_out"]),
        "unembed.b_U": (config["d_vocab_out"],),
    }
    norms = [("ln_final", "RMS" if config.get("final_rms") else kind)]
    for layer in range(config["n_layers"]):
        block = f"blocks.{layer}"
        norms += [(f"{block}.ln1", kind)]
        for letter, count in (("Q", heads), ("K", groups), ("V", groups)):
            sizes[f"{block}.attn.W_{letter}"] = (count, d_model, d_head)
            sizes[f"{block}.attn.b_{letter}"] = (count, d_head)
        sizes[f"{block}.attn.W_O"] = (heads, d_head, d_model)
        sizes[f"{block}.attn.b_O"] = (d_model,)
        if not config["attn_only"]:
            norms += [(f"{block}.ln2", kind)]
            for name in ("W_in", "W_gate") if config["gated_mlp"] else ("W_in",):
                sizes[f"{block}.mlp.{name}"] = (d_model, d_mlp)
            sizes[f"{block}.mlp.W_out"] = (d_mlp, d_model)
            if config["act_fn"] == "solu_ln":
                sizes[f"{block}.mlp.ln.w"] = sizes[f"{block}.mlp.ln.b"] = (d_mlp,)
            if not config["gated_mlp"]:  # the native bridge's gated MLP has no biases
                sizes[f"{block}.mlp.b_in"] = (d_mlp,)
                sizes[f"{block}.mlp.b_out"] = (d_model,)
    # Without a norm nothing keeps the stream from growing.
    wide = 0.5 if kind else 0.3
    state = {
        name: torch.randn(*size, generator=generator) * (wide if len(size) > 1 else 0.3)
        for name, size in sizes.items()
    }
    for name, norm in norms:
        if norm in ("LN", "RMS"):
            state[f"{name}.w"] = 1 + 0.3 * torch.randn(d_model, generator=generator)
        if norm == "LN":
            state[f"{name}.b"] = 0.3 * torch.randn(d_model, generator=generator)
    return state


def write_native(path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Path:
    """A folder in TransformerLens format."""
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": "transformer-lens", "config": dict(config)})
    (path / "config.json").write_text(text, encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path / "model.safetensors"))
    return path


# --- prompt pairs ---------------------------------------------------------------------------------------------


def random_pairs(
    vocab_in: int = VOCAB,
    vocab_out: int | None = None,
    *,
    count: int = 5,
    lengths: Sequence[int] = (6,),
    seed: int = 0,
    last: bool = True,
    group: str = "t",
    same: int = 0,
) -> PromptPairs:
    """Random pairs that differ in the first token (behind ``same`` equal ones) and one more.

    Args:
        lengths: Taken in turn.
        last: Read at the last position; otherwise some are read one or two before it.
    """
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        length = lengths[index % len(lengths)]
        clean = rng.integers(0, vocab_in, length)
        corrupted = clean.copy()
        corrupted[same] = (clean[same] + 1 + rng.integers(0, vocab_in - 1)) % vocab_in
        corrupted[rng.integers(same, max(length - 2, same + 1))] = rng.integers(0, vocab_in)
        if (clean == corrupted).all():
            corrupted[same] = (clean[same] + 1) % vocab_in
        answer, wrong = (int(a) for a in rng.choice(vocab_out or vocab_in, 2, replace=False))
        at = length - 1 - (0 if last else index % 3)
        tokens = tuple(int(t) for t in clean), tuple(int(t) for t in corrupted)
        made.append(PromptPair(*tokens, (answer,), (wrong,), at, {}, "", "", f"pair {index}", group))
    return PromptPairs(tuple(made), "random")


def pairs_for(built: Model, **options: Any) -> PromptPairs:
    """Random pairs in a model's vocabulary."""
    return random_pairs(built.n_vocab, built.n_vocab_out, **options)


PLAN = MemoryPlan(
    budget=1 << 30,
    prompt_tokens=4096,
    batch_tokens=4096,
    pass_tokens=4096,
    edge_tokens=4096,
    cache_bytes=1 << 30,
)
"""Sizes of batches and passes that do not depend on the memory that is free."""


def runs_of(
    built: Model,
    pairs: PromptPairs,
    metric: str = "logit-diff",
    *,
    sizes: Mapping[str, int] | None = None,
    **options: Any,
) -> Runs:
    """Runs with a known plan; ``sizes`` are changes to it."""
    return Runs(built, pairs, get_metric(metric), plan=replace(PLAN, **dict(sizes or {})), **options)


def random_mask(edge_mask: np.ndarray, density: float, seed: int) -> np.ndarray:
    """A random share of the edges that exist."""
    rng = np.random.default_rng(seed)
    return np.asarray(edge_mask & (rng.random(edge_mask.shape) < density))
