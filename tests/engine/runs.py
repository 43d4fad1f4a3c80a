"""Prompt pairs for the tests of engines."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from circuitfind.task.pairs import PromptPair, PromptPairs

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model


def random_pairs(model: Model, count: int, tokens: int = 12) -> PromptPairs:
    """Pairs of random tokens that share the first; always the same ones."""
    draw = random.Random(0)

    def pair() -> PromptPair:
        clean = [draw.randrange(model.n_vocab) for _ in range(tokens)]
        corrupted = [clean[0], *(draw.randrange(model.n_vocab) for _ in clean[1:])]
        return PromptPair(tuple(clean), tuple(corrupted), (1,), (2,), tokens - 1, {}, "", "", "", "")

    return PromptPairs(tuple(pair() for _ in range(count)), "random")
