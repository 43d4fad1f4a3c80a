"""Prompts of a model whose tokenizer is not here: words for tokens, or as many tokens as the user says."""

from __future__ import annotations

import re
from dataclasses import replace

from circuitfind.errors import PromptError, UsageError
from circuitfind.model.shapes import Shape
from circuitfind.task.pairs import PromptPair, PromptPairs

WITH_BOS = ("gemma", "gemma2", "llama", "mistral")
"""Families whose tokenizers put a token in front of every text."""

_WORD = re.compile(r" ?\d{1,2}| ?[^\W\d_]+| ?[^\w\s]| ?_+|\s")


class WordTokenizer:
    """Takes each word, sign and pair of digits for one token; numbers them as they come."""

    n_vocab = 1 << 62

    def __init__(self, *, bos: bool) -> None:
        self._words = ["<bos>"]
        self._ids: dict[str, int] = {}
        self._bos = bos

    def encode(self, text: str) -> list[tuple[int, int, int]]:
        """See `Tokenizer.encode`."""
        found = []
        for match in _WORD.finditer(text):
            word = match[0]
            if word not in self._ids:
                self._ids[word] = len(self._words)
                self._words.append(word)
            found.append((self._ids[word], match.start(), match.end()))
        return found

    def piece(self, token: int) -> str:
        """The word of a token."""
        return self._words[token]

    @property
    def bos_id(self) -> int:
        """The token that a task may ask to be put in front."""
        return 0

    @property
    def bos(self) -> int | None:
        """The token in front of every text, where the model's family has one."""
        return 0 if self._bos else None


def word_tokenizer(shape: Shape) -> WordTokenizer:
    """Words for the tokens of a model."""
    return WordTokenizer(bos=shape.family in WITH_BOS)


def of_length(pairs: PromptPairs, length: int) -> PromptPairs:
    """As many pairs whose prompts all have so many tokens."""
    one = PromptPair((1,) * length, (0, *(1,) * (length - 1)), (0,), (1,), length - 1, {}, "", "", "", "")
    return replace(pairs, pairs=(one,) * len(pairs))


def check_lengths(pairs: PromptPairs, shape: Shape, name: str) -> None:
    """Refuse prompts that the model could not read.

    Raises:
        PromptError: One is too long.
    """
    longest = max(len(pair.clean) for pair in pairs)
    if longest > shape.n_ctx:
        raise PromptError(
            f"a prompt has {longest} tokens, but {name} reads at most {shape.n_ctx}",
            hint="shorten the prompts",
        )


def check_prompt_tokens(number: int | None) -> None:
    """Refuse a length that no pair of prompts has.

    Raises:
        UsageError: It is below 1.
    """
    if number is not None and number < 1:
        raise UsageError(f"--prompt-tokens {number} is no length of a prompt", hint="give at least 1")
