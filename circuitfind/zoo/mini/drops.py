"""Attention layers left out at random while a model is trained, so that other heads learn to stand in for theirs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from circuitfind.zoo.mini.batches import Batch


def step_keeps(
    batches: list[Batch], *, layers: int, share: float, seed: int, step: int
) -> list[torch.Tensor | None]:
    """For each batch of a step a matrix [layers, rows]: 0 where a document goes without a layer's attention, else 1.

    Every layer and document is drawn for itself. Each step has its own seed, so a stopped training resumes
    with the same draws. With a share of 0 nothing is drawn, and None says that nothing is left out.
    """
    if share == 0.0:
        return [None] * len(batches)
    rng = random.Random(f"mini/drops/{seed}/{step}")
    return [
        torch.tensor([[float(rng.random() >= share) for _ in batch.tokens] for _ in range(layers)])
        for batch in batches
    ]


@contextmanager
def attention_kept(model: GPT2LMHeadModel, keep: torch.Tensor | None) -> Iterator[None]:
    """Within it, what each attention layer writes into the stream is multiplied by its row of `keep`.

    What stays is not scaled up by 1/(1-p), as dropout would: a document with all layers sees the model as it is
    used later, and one without a layer sees it as if that layer were ablated to zero.
    """
    if keep is None:
        yield
        return

    def hook_of(factors: torch.Tensor) -> Any:
        def hook(_module: torch.nn.Module, _inputs: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
            return (output[0] * factors[:, None, None].to(output[0].device), *output[1:])

        return hook

    handles = [
        block.attn.register_forward_hook(hook_of(factors))
        for block, factors in zip(model.transformer.h, keep, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
