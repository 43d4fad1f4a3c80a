"""Published configurations of well-known models, for plans where the hub cannot be reached. Data; nothing is computed here.

Each is the content of ``config.json`` as far as sizes go, from ``https://huggingface.co/NAME/blob/main/config.json`` of the
name that stands first in its line. Fine-tuned models and later versions of the same sizes are found under the same entry.
"""

from __future__ import annotations

import re
from typing import Any

_GPT2 = ("n_embd", "n_layer", "n_head")
_NEOX = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_LLAMA = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
_GEMMA = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def _gpt2(*sizes: int) -> dict[str, Any]:
    same = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "tie_word_embeddings": True}
    return {**same, **dict(zip(_GPT2, sizes, strict=True))}


def _neox(*sizes: int) -> dict[str, Any]:
    named = dict(zip(_NEOX, sizes, strict=True))
    same = {"model_type": "gpt_neox", "max_position_embeddings": 2048, "use_parallel_residual": True}
    return {
        **same,
        "tie_word_embeddings": False,
        **named,
        "intermediate_size": 4 * named["hidden_size"],
    }


def _llama(*sizes: int, tied: bool = False, kind: str = "llama", **more: int) -> dict[str, Any]:
    return {"model_type": kind, "tie_word_embeddings": tied, **dict(zip(_LLAMA, sizes, strict=True)), **more}


def _gemma(kind: str, *sizes: int) -> dict[str, Any]:
    same = {"model_type": kind, "vocab_size": 256000, "max_position_embeddings": 8192}
    return {**same, "tie_word_embeddings": True, **dict(zip(_GEMMA, sizes, strict=True))}


PUBLISHED: dict[str, dict[str, Any]] = {
    "distilgpt2": _gpt2(768, 6, 12),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "EleutherAI/pythia-14m": _neox(128, 6, 4, 50304),
    "EleutherAI/pythia-31m": _neox(256, 6, 8, 50304),
    "EleutherAI/pythia-70m": _neox(512, 6, 8, 50304),
    "EleutherAI/pythia-160m": _neox(768, 12, 12, 50304),
    "EleutherAI/pythia-410m": _neox(1024, 24, 16, 50304),
    "EleutherAI/pythia-1b": _neox(2048, 16, 8, 50304),
    "EleutherAI/pythia-1.4b": _neox(2048, 24, 16, 50304),
    "EleutherAI/pythia-2.8b": _neox(2560, 32, 32, 50304),
    "EleutherAI/pythia-6.9b": _neox(4096, 32, 32, 50432),
    "EleutherAI/pythia-12b": _neox(5120, 36, 40, 50688),
    "EleutherAI/gpt-neox-20b": _neox(6144, 44, 64, 50432),
    "TinyLlama/TinyLlama-1.1B": _llama(2048, 5632, 22, 32, 4, 32000, 2048),
    "meta-llama/Llama-2-7b-hf": _llama(4096, 11008, 32, 32, 32, 32000, 4096),
    "meta-llama/Llama-2-13b-hf": _llama(5120, 13824, 40, 40, 40, 32000, 4096),
    "meta-llama/Llama-2-70b-hf": _llama(8192, 28672, 80, 64, 8, 32000, 4096),
    "meta-llama/Meta-Llama-3-8B": _llama(4096, 14336, 32, 32, 8, 128256, 8192),
    "meta-llama/Meta-Llama-3-70B": _llama(8192, 28672, 80, 64, 8, 128256, 8192),
    "meta-llama/Llama-3.1-8B": _llama(4096, 14336, 32, 32, 8, 128256, 131072),
    "meta-llama/Llama-3.1-70B": _llama(8192, 28672, 80, 64, 8, 128256, 131072),
    "meta-llama/Llama-3.1-405B": _llama(16384, 53248, 126, 128, 8, 128256, 131072),
    "meta-llama/Llama-3.2-1B": _llama(2048, 8192, 16, 32, 8, 128256, 131072, tied=True),
    "meta-llama/Llama-3.2-3B": _llama(3072, 8192, 28, 24, 8, 128256, 131072, tied=True),
    "meta-llama/Llama-3.3-70B": _llama(8192, 28672, 80, 64, 8, 128256, 131072),
    "mistralai/Mistral-7B-v0.1": _llama(4096, 14336, 32, 32, 8, 32000, 32768, kind="mistral"),
    "Qwen/Qwen2-0.5B": _llama(896, 4864, 24, 14, 2, 151936, 131072, tied=True, kind="qwen2"),
    "Qwen/Qwen2-1.5B": _llama(1536, 8960, 28, 12, 2, 151936, 131072, tied=True, kind="qwen2"),
    "Qwen/Qwen2-7B": _llama(3584, 18944, 28, 28, 4, 152064, 131072, kind="qwen2"),
    "Qwen/Qwen2.5-0.5B": _llama(896, 4864, 24, 14, 2, 151936, 32768, tied=True, kind="qwen2"),
    "Qwen/Qwen2.5-1.5B": _llama(1536, 8960, 28, 12, 2, 151936, 131072, tied=True, kind="qwen2"),
    "Qwen/Qwen2.5-3B": _llama(2048, 11008, 36, 16, 2, 151936, 32768, tied=True, kind="qwen2"),
    "Qwen/Qwen2.5-7B": _llama(3584, 18944, 28, 28, 4, 152064, 131072, kind="qwen2"),
    "Qwen/Qwen2.5-14B": _llama(5120, 13824, 48, 40, 8, 152064, 131072, kind="qwen2"),
    "Qwen/Qwen2.5-32B": _llama(5120, 27648, 64, 40, 8, 152064, 131072, kind="qwen2"),
    "Qwen/Qwen2.5-72B": _llama(8192, 29568, 80, 64, 8, 152064, 131072, kind="qwen2"),
    "Qwen/Qwen3-0.6B": _llama(1024, 3072, 28, 16, 8, 151936, 40960, tied=True, kind="qwen3", head_dim=128),
    "Qwen/Qwen3-1.7B": _llama(2048, 6144, 28, 16, 8, 151936, 40960, tied=True, kind="qwen3", head_dim=128),
    "Qwen/Qwen3-4B": _llama(2560, 9728, 36, 32, 8, 151936, 40960, tied=True, kind="qwen3", head_dim=128),
    "Qwen/Qwen3-8B": _llama(4096, 12288, 36, 32, 8, 151936, 40960, kind="qwen3", head_dim=128),
    "Qwen/Qwen3-14B": _llama(5120, 17408, 40, 40, 8, 151936, 40960, kind="qwen3", head_dim=128),
    "Qwen/Qwen3-32B": _llama(5120, 25600, 64, 64, 8, 151936, 40960, kind="qwen3", head_dim=128),
    "google/gemma-2b": _gemma("gemma", 2048, 16384, 18, 8, 1, 256),
    "google/gemma-7b": _gemma("gemma", 3072, 24576, 28, 16, 16, 256),
    "google/gemma-2-2b": _gemma("gemma2", 2304, 9216, 26, 8, 4, 256),
    "google/gemma-2-9b": _gemma("gemma2", 3584, 14336, 42, 16, 8, 256),
    "google/gemma-2-27b": _gemma("gemma2", 4608, 36864, 46, 32, 16, 128),
}

_TRAILING = re.compile(r"-(hf|chat|instruct|it|base|deduped|v\d[\d.]*)$")


def plain(name: str) -> str:
    """A name without its owner, its letters' case, and what tells versions of the same sizes apart.

    ``meta-llama/Llama-2-7b-chat-hf`` is ``llama-2-7b``.
    """
    found = name.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
    while (shorter := _TRAILING.sub("", found)) != found:
        found = shorter
    return found


def published(name: str) -> str | None:
    """The entry of the table that a hub name, or a short form of one, stands for; None if there is none."""
    if name in PUBLISHED:
        return name
    wanted = plain(name)
    return next((known for known in PUBLISHED if plain(known) == wanted), None)
