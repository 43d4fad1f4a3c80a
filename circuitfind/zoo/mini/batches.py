"""Token batches for training, made from the corpus stream."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from circuitfind.zoo.mini import corpus
from circuitfind.zoo.mini.examples import Document
from circuitfind.zoo.mini.tokenizer import end_id

# Answers always count in the loss, with weight 1. Of the other tokens only a share counts,
# with a lower weight: most of them are drawn at random and cannot be learnt.
OTHER_SHARE = 0.2
OTHER_WEIGHT = 0.5


@dataclass(frozen=True)
class Batch:
    """Rows of similar length: tokens, and for each token its weight as a prediction target."""

    tokens: torch.Tensor
    weights: torch.Tensor


Row = tuple[list[int], list[float]]


def step_batches(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, step: int, size: int, chunks: int, focus: bool = False
) -> list[Batch]:
    """The `size` documents of one training step, cut by length into `chunks` batches.

    With `focus` the documents have the shares of `corpus.FOCUS_WEIGHTS`.
    Each step has its own seed, so a stopped training resumes anywhere with the same data.
    """
    rng = random.Random(f"mini/{seed}/{step}")
    documents = list(
        itertools.islice(corpus.documents(rng, corpus.FOCUS_WEIGHTS if focus else corpus.WEIGHTS), size)
    )
    rows = sorted(_rows(tokenizer, documents, rng), key=lambda row: len(row[0]))
    stride = -(-size // chunks)
    return [_pad(rows[begin : begin + stride]) for begin in range(0, size, stride)]


def _rows(tokenizer: PreTrainedTokenizerFast, documents: list[Document], rng: random.Random) -> list[Row]:
    """Token ids and weights of each document; half of the documents open with the bos token."""
    end = end_id(tokenizer)
    encodings = tokenizer.backend_tokenizer.encode_batch([document.text for document in documents])
    rows: list[Row] = []
    for document, encoding in zip(documents, encodings, strict=True):
        answers = set(document.answers)
        opening = [end] if rng.random() < 0.5 else []
        ids = [*opening, *encoding.ids, end]
        weights = [OTHER_WEIGHT if rng.random() < OTHER_SHARE else 0.0 for _ in ids]
        for place, (begin, _) in enumerate(encoding.offsets, len(opening)):
            if begin in answers:
                weights[place] = 1.0
        rows.append((ids, weights))
    return rows


def _pad(rows: list[Row]) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    # Padding is on the right and weighs nothing, so under causal attention its token is irrelevant.
    tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    weights = torch.tensor([row + [0.0] * (width - len(row)) for _, row in rows])
    return Batch(tokens, weights)
