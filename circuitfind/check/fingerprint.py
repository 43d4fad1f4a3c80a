"""What a model and its prompts are, in a few numbers: enough to say which part of them has changed.

Weights are told by norm and projection and not by a hash, since written weights differ in the last digits from machine to
machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitfind.check.baseline import Metric, Prompts, Weights
from circuitfind.errors import UsageError
from circuitfind.model.bridge import Model
from circuitfind.model.runs import Runs
from circuitfind.task.pairs import PromptPair, PromptPairs

TOKENS = 64
"""Positions at which the embedding is looked at."""

SHORT = 16
"""Hexadecimal digits of a hash."""


def weights_of(model: Model) -> Weights:
    """Norm and projection of the weights of each part: heads, MLPs, embedding (``input``), unembedding and final norm
    (``logits``).

    The projection is the product with a fixed vector of cosines, so that weights of the same norm are told apart.
    """
    return {name: _two_numbers(tensors) for name, tensors in _parts(model)}


def _parts(model: Model) -> Iterator[tuple[str, list[Tensor]]]:
    length = min(TOKENS, model.n_ctx, model.n_vocab)
    tokens = torch.arange(length, device=model.device)[None]
    yield "input", [model.embed(tokens)]
    for index, layer in enumerate(model.layers):
        shared = layer.n_heads // layer.n_kv_heads
        weights = {slot: layer.weight(slot) for slot in "qkv"}
        biases = {slot: layer.bias(slot) for slot in "qkv"}
        for head in range(layer.n_heads):
            rows = {"q": head, "k": head // shared, "v": head // shared}
            tensors = [weights[slot][row] for slot, row in rows.items()] + [layer.w_o_raw[head]]
            tensors += [bias[rows[slot]] for slot, bias in biases.items() if bias is not None]
            yield f"a{index}.h{head}", tensors
        found = [layer.b_o, layer.norm.weight, layer.norm.bias]
        if layer.post_norm is not None:
            found += [layer.post_norm.weight]
        if layer.mlp is not None:
            mlp = layer.mlp
            found += [mlp.w_in, mlp.w_gate, mlp.w_out, mlp.b_in, mlp.b_gate, mlp.b_out]
            found += [layer.mlp_norm.weight, layer.mlp_norm.bias]
        given = [tensor for tensor in found if tensor is not None]
        if given:
            yield f"m{index}", given
    ends = [model.w_u, model.b_u, model.final_norm.weight, model.final_norm.bias]
    yield "logits", [tensor for tensor in ends if tensor is not None]


def _two_numbers(tensors: Iterable[Tensor]) -> tuple[float, float]:
    squares, projection = 0.0, 0.0
    for number, tensor in enumerate(tensors):
        flat = tensor.detach().reshape(-1).float()
        squares += float(flat.square().sum())
        places = torch.arange(flat.numel(), device=flat.device, dtype=torch.float32)
        projection += float(flat @ torch.cos((1.0 + number) * (places % 9973)))
    return float(np.sqrt(squares)), projection


def prompts_of(pairs: PromptPairs, runs: Runs) -> Prompts:
    """Hashes of what the prompts are made of, one for each thing that may change by itself."""
    first = pairs[0]
    return Prompts(
        aligned=len(pairs),
        accuracy=float(runs.answered_rightly.mean()),
        content=pairs.content_hash()[:SHORT],
        texts=_hash([(p.clean_text, p.corrupted_text) for p in pairs]),
        tokens=_hash([(p.clean, p.corrupted) for p in pairs]),
        answers=_hash([(p.answer, p.wrong) for p in pairs]),
        answer_positions=_hash([p.answer_position for p in pairs]),
        positions=_hash([sorted(p.positions.items()) for p in pairs]),
        pairs=_hash(sorted((p.clean, p.corrupted) for p in pairs)),
        clean_prompts=_hash(sorted((p.clean, p.answer) for p in pairs)),
        corrupted_prompts=_hash(sorted(p.corrupted for p in pairs)),
        first=_shown(first),
    )


def _shown(pair: PromptPair) -> dict[str, Any]:
    return {
        "clean": pair.clean_text,
        "corrupted": pair.corrupted_text,
        "tokens": len(pair.clean),
        "answer_position": pair.answer_position,
    }


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()[:SHORT]


def metric_of(runs: Runs) -> Metric:
    """Mean metric of the clean and of the corrupted prompts."""
    clean, corrupted = float(runs.clean.mean()), float(runs.corrupted.mean())
    if not np.isfinite([clean, corrupted]).all():
        raise UsageError("the metric of the prompts is not finite", hint="look at the model's weights")
    return Metric(runs.metric.name, clean, corrupted)
