"""Pairs dealt anew: each keeps its prompts and gets the answers of another one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from circuitfind.errors import PromptError
from circuitfind.task.pairs import PromptPairs


def shuffle_pairs(pairs: PromptPairs, seed: int) -> PromptPairs:
    """Every pair gets the right and the wrong answers of another one.

    What the model does on the prompts stays; what it is asked for has nothing to do with them any more.

    Raises:
        PromptError: There are no two different answers to deal.
    """
    if len({(pair.answer, pair.wrong) for pair in pairs}) < 2:
        raise PromptError(
            "every pair has the same answers, so dealing them anew changes nothing",
            hint="use prompts with different answers",
        )
    order = np.random.default_rng(seed).permutation(len(pairs))
    dealt = {int(one): pairs[int(other)] for one, other in zip(order, np.roll(order, -1), strict=True)}
    return replace(
        pairs,
        pairs=tuple(
            replace(pair, answer=dealt[i].answer, wrong=dealt[i].wrong, where=f"{pair.where}, dealt anew")
            for i, pair in enumerate(pairs)
        ),
    )
