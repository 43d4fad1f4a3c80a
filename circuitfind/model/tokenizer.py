"""Tokenizers of models."""

from __future__ import annotations

from typing import Any


class HFTokenizer:
    """A fast Hugging Face tokenizer behind our protocol (task/prompts.py)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.n_vocab = len(tokenizer)

    def encode(self, text: str) -> list[tuple[int, int, int]]:
        """(token id, start, end) with character offsets, without special tokens."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(i, a, b) for i, (a, b) in zip(found["input_ids"], found["offset_mapping"], strict=True)]

    def piece(self, token: int) -> str:
        """The token as it is stored, such as ``ĠMary``."""
        return str(self._tokenizer.convert_ids_to_tokens(token))

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-text token, whether or not the tokenizer puts it in front of a text; the end-of-text token of
        tokenizers that have none (Qwen's), as in TransformerLens.
        """
        found = self._tokenizer.bos_token_id
        found = self._tokenizer.eos_token_id if found is None else found
        return None if found is None else int(found)

    @property
    def bos(self) -> int | None:
        """The id that the tokenizer itself puts in front of a text, or None."""
        ids = self._tokenizer("a")["input_ids"]
        return self.bos_id if ids and ids[0] == self.bos_id else None
