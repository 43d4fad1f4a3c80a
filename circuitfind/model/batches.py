"""Prompt pairs as batches of tensors: sorted so that those of a batch have much in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitfind.model.forward import Place
from circuitfind.model.transfer import upload
from circuitfind.task.metrics import AnswerBatch
from circuitfind.task.pairs import PromptPair, PromptPairs, pad

Side = Literal["clean", "corrupted"]


@dataclass(frozen=True)
class Batch:
    """Some prompt pairs as tensors.

    Attributes:
        index: Where each row stands in the list of pairs.
        clean, corrupted: Right-padded token ids; up to the last answer position where nothing looks ahead.
        mask: False at padding, for models that look ahead; else None.
        answer_positions: Where each row is read.
        lengths: Tokens in each row.
        start: The first position at which a clean prompt differs from its corrupted one, 0 where attention looks ahead.
    """

    index: Int[np.ndarray, " batch"]
    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"] | None
    answer_positions: Int[Tensor, " batch"]
    answers: AnswerBatch
    lengths: Int[np.ndarray, " batch"]
    start: int

    def tokens(self, side: Side) -> Int[Tensor, "batch pos"]:
        return self.clean if side == "clean" else self.corrupted

    def place(self, start: int) -> Place:
        """Where its rows stand, from a position on."""
        return Place(start, int(self.clean.shape[1]), self.answer_positions, self.mask)


def first_difference(pair: PromptPair) -> int:
    """The first position at which the prompts of a pair differ, the answer position at the latest."""
    for at, (a, b) in enumerate(zip(pair.clean, pair.corrupted, strict=True)):
        if a != b:
            return min(at, pair.answer_position)
    return pair.answer_position


def make_batches(pairs: PromptPairs, tokens: int, *, causal: bool, device: torch.device) -> list[Batch]:
    """Batches of at most ``tokens`` tokens, or of one prompt; sorted by length, then by the first difference."""
    lengths = np.array(_lengths(pairs) if causal else [len(p.clean) for p in pairs])
    starts = np.array([first_difference(p) if causal else 0 for p in pairs])
    order = np.lexsort((starts, lengths))
    answers = AnswerBatch.of(pairs, device)
    batches, first = [], 0
    while first < len(order):
        stop = first + 1
        while stop < len(order) and (stop + 1 - first) * lengths[order[stop]] <= tokens:
            stop += 1
        index = order[first:stop]
        batches.append(_batch(pairs, index, lengths[index], starts[index], answers, causal, device))
        first = stop
    return batches


def _lengths(pairs: PromptPairs) -> list[int]:
    """Tokens of each prompt up to the last answer position among those of its template and length.

    Nothing reads what is behind it. Prompts over which a mean is taken keep the same length.
    """
    longest: dict[tuple[str, int], int] = {}
    for p in pairs:
        key = p.group, len(p.clean)
        longest[key] = max(longest.get(key, 0), p.answer_position + 1)
    return [longest[p.group, len(p.clean)] for p in pairs]


def _batch(
    pairs: PromptPairs,
    index: np.ndarray,
    lengths: np.ndarray,
    starts: np.ndarray,
    answers: AnswerBatch,
    causal: bool,
    device: torch.device,
) -> Batch:
    chosen = [pairs[int(i)] for i in index]

    def ids(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Bool[np.ndarray, "batch pos"]]:
        padded = pad([p[:n] for p, n in zip(prompts, lengths, strict=True)])
        return upload(padded.ids, device), padded.mask

    clean, mask = ids([p.clean for p in chosen])
    corrupted, _ = ids([p.corrupted for p in chosen])
    return Batch(
        index=index,
        clean=clean,
        corrupted=corrupted,
        mask=None if causal or mask.all() else upload(mask, device),
        answer_positions=upload([p.answer_position for p in chosen], device),
        answers=answers[[int(i) for i in index]],
        lengths=lengths,
        start=int(starts.min()),
    )
