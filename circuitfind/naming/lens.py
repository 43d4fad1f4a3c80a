"""The tokens that a unit's write promotes and suppresses at the end of the model.

What is written meets the final normalisation (its scale frozen at 1) and the unembedding; whatever reads it on the way is left
out. The known names are logit lens, and direct logit attribution by weights. A post-norm (Gemma 2) is in the write; a cap on
the logits and all biases are left out, so the values are linear in the write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.model.bridge import Model
from circuitfind.naming.directions import written_through

CHUNK = 64
"""Vectors that meet the unembedding at a time."""


@dataclass(frozen=True)
class Promoted:
    """Tokens with the largest and the smallest values, the strongest first, as (token, value)."""

    promotes: tuple[tuple[int, float], ...]
    suppresses: tuple[tuple[int, float], ...]

    @property
    def reversed(self) -> Promoted:
        """Of the opposite write."""
        turn = [tuple((t, -v) for t, v in side) for side in (self.suppresses, self.promotes)]
        return Promoted(turn[0], turn[1])


def token_values(
    model: Model,
    written: Float[Tensor, "*row d_model"],
    tokens: Int[Tensor, " token"] | None = None,
) -> Float[Tensor, "*row token"]:
    """What written vectors add to the logits of some tokens, or of all, with the final norm's scale at 1."""
    unembedding = model.w_u if tokens is None else model.w_u.T[tokens].T
    return written_through(model.final_norm, written) @ unembedding


@torch.no_grad()
def promoted(model: Model, written: Float[Tensor, "row d_model"], count: int = 5) -> list[Promoted]:
    """The tokens that each written vector promotes and suppresses most.

    Args:
        model: The model.
        written: Vectors on the stream.
        count: Tokens of each side; no more than there are.
    """
    count = min(count, model.n_vocab_out)
    found: list[Promoted] = []
    for part in written.split(CHUNK):
        values = token_values(model, part)
        up, down = values.topk(count, -1), values.topk(count, -1, largest=False)
        found += [
            Promoted(_pairs(up.indices[i], up.values[i], 1), _pairs(down.indices[i], down.values[i], -1))
            for i in range(len(part))
        ]
    return found


def _pairs(tokens: Tensor, values: Tensor, sign: int) -> tuple[tuple[int, float], ...]:
    """Tokens with their values, of one sign: what is promoted is not suppressed."""
    listed: Sequence[int] = tokens.tolist()
    pairs = zip(listed, values.tolist(), strict=True)
    return tuple((int(t), float(v)) for t, v in pairs if sign * v > 0)
