"""Attention of some heads on some prompts, every destination and source up to the answer position.

A pattern is kept as bytes, 255 for 1: a picture of it needs no more, and a report stays small.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from circuitfind.model.forward import Place, run_trace
from circuitfind.names import Node
from circuitfind.views.report import Patterns, Shown, Side

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model
    from circuitfind.task.pairs import PromptPair

MOST_HEADS = 24
MOST_BYTES = 600_000
"""Of all patterns together, so that a report stays small."""

Chosen = tuple[int, Side, str]
"""Which pair, which of its prompts, and why."""


def attention(model: Model, tokens: Sequence[int]) -> Float[np.ndarray, "layer head destination source"]:
    """Attention of every head on one prompt."""
    device = model.device
    place = Place(0, len(tokens), torch.tensor([len(tokens) - 1], device=device), everywhere=True)
    with torch.no_grad():
        trace = run_trace(model, model.embed(torch.tensor([list(tokens)], device=device)), place)
        found = [
            layer.attention.pattern(block.q, block.k, place.visible(layer, False))[0]
            for layer, block in zip(model.layers, trace.blocks, strict=True)
        ]
        return torch.stack(found).float().cpu().numpy()


def packed(pattern: Float[np.ndarray, "destination source"]) -> str:
    """A pattern as text: base64 of bytes, row by row."""
    return base64.b64encode((pattern * 255).round().astype(np.uint8).tobytes()).decode("ascii")


def within(lengths: Sequence[int], heads: int, most: int = MOST_BYTES) -> tuple[int, int]:
    """How many of the first prompts, and of the first heads, fit into so many bytes: as many heads as the first prompt
    leaves room for, then as many prompts as these do.

    Args:
        lengths: Tokens of each prompt.
        heads: How many there are.
        most: Bytes.
    """
    if not lengths:
        return 0, 0
    heads = min(heads, most // lengths[0] ** 2)
    sizes = np.cumsum([n * n for n in lengths]) * heads
    return (int((sizes <= most).sum()), heads) if heads else (0, 0)


def patterns(
    model: Model,
    pairs: Mapping[int, PromptPair],
    chosen: Sequence[Chosen],
    heads: Sequence[Node],
    piece: Callable[[int], str],
) -> tuple[Patterns | None, str]:
    """What heads look at, and why something was left out (empty where nothing was).

    Args:
        model: With its MLPs whole.
        pairs: By number.
        chosen: Prompts, the most wanted first.
        heads: Strongest first.
        piece: The text of a token.
    """
    prompts = [_prompt(model, pairs[pair], side) for pair, side, _ in chosen]
    wanted = min(len(heads), MOST_HEADS)
    n_prompts, n_heads = within([len(tokens) for tokens in prompts], wanted)
    if not n_prompts:
        return (
            None,
            f"prompts of {len(prompts[0]) if prompts else 0} tokens are too long to keep their attention",
        )
    left = []
    if n_heads < len(heads):
        left.append(f"{n_heads} of {len(heads)} heads, the strongest")
    if n_prompts < len(prompts):
        left.append(f"{n_prompts} of {len(prompts)} prompts")
    shown: list[Shown] = []
    found: dict[str, list[str]] = {str(head.bare): [] for head in heads[:n_heads]}
    for tokens, (pair, side, why) in zip(prompts[:n_prompts], chosen, strict=False):
        seen = attention(model, tokens)
        shown.append(Shown(pair, side, tuple(map(piece, tokens)), why))
        for head in heads[:n_heads]:
            found[str(head.bare)].append(packed(seen[head.layer, head.index]))
    note = f"attention patterns are of {' and '.join(left)}" if left else ""
    return Patterns(tuple(shown), {name: tuple(rows) for name, rows in found.items()}), note


def _prompt(model: Model, pair: PromptPair, side: Side) -> tuple[int, ...]:
    """The tokens of a prompt; where nothing looks ahead, those up to the answer position."""
    tokens = pair.clean if side == "clean" else pair.corrupted
    return tokens[: pair.answer_position + 1] if model.causal else tokens
