"""Held-out accuracy of a model on the corpus behaviours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedTokenizerBase

from circuitfind.zoo.mini import corpus
from circuitfind.zoo.mini.examples import Example
from circuitfind.zoo.mini.tokenizer import end_id
from circuitfind.zoo.mini.words import YEARS

EVALUATION_BATCH = 100


@dataclass(frozen=True)
class Score:
    """Shares of prompts: the answer beats every wrong word, and the answer is the top token.

    For greater-than: the years above have more probability than the rest of the years, and
    the top token is a year above.
    """

    prompts: int
    beats_wrong: float
    top1: float

    def as_dict(self) -> dict[str, float]:
        """The figures under their names."""
        return asdict(self)


def evaluate(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    behaviours: Iterable[str] = corpus.BEHAVIOURS,
    *,
    count: int = 500,
    seed: int = 0,
    bos: bool = False,
) -> dict[str, Score]:
    """Score `count` held-out prompts of each behaviour, with or without the token that opens a text."""
    return {
        behaviour: score(model, tokenizer, corpus.held_out_examples(behaviour, count, seed), bos=bos)
        for behaviour in behaviours
    }


def score(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    *,
    bos: bool = False,
) -> Score:
    """Score one behaviour's examples."""
    # Sorted by length, a batch holds little padding.
    examples = sorted(examples, key=lambda example: len(example.prompt))
    words = {word for example in examples for word in (example.answer, *example.wrong)}
    ids = {word: _id(tokenizer, word) for word in sorted(words.union(YEARS))}
    beaten = top = 0
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for begin in range(0, len(examples), EVALUATION_BATCH):
            part = examples[begin : begin + EVALUATION_BATCH]
            logits = last_logits(model, tokenizer, [example.prompt for example in part], bos=bos)
            for row, example in zip(logits, part, strict=True):
                wins, first = _judge(row, ids, example)
                beaten += wins
                top += first
    model.train(was_training)
    return Score(len(examples), beaten / len(examples), top / len(examples))


def last_logits(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[str], *, bos: bool = False
) -> torch.Tensor:
    """The logits after each prompt; padding is on the right, so positions start at zero."""
    opening = [end_id(tokenizer)] if bos else []
    rows = [opening + ids for ids in tokenizer(prompts)["input_ids"]]
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    device = next(model.parameters()).device
    last = torch.tensor([len(row) - 1 for row in rows])
    output = model(tokens.to(device), attention_mask=mask.to(device))
    logits: torch.Tensor = output.logits[torch.arange(len(rows)), last]
    return logits.float().cpu()


def _judge(logits: torch.Tensor, ids: dict[str, int], example: Example) -> tuple[bool, bool]:
    """Whether the answer beats every wrong word, and whether the top token is right."""
    wrong = [ids[word] for word in example.wrong]
    top = int(logits.argmax())
    if example.behaviour == "greater-than":
        above = [ids[year] for year in YEARS if year not in example.wrong]
        mass = logits.softmax(-1)
        return bool(mass[above].sum() > mass[wrong].sum()), top in above
    answer = ids[example.answer]
    return bool(logits[answer] > logits[wrong].max()), top == answer


def _id(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    ids = tokenizer(word)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"{word!r} is {len(ids)} tokens, not one")
    return int(ids[0])
