"""Tokens as people read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuitfind.task.pairs import Tokenizer

LOOKED_AT = 2000
"""Tokens of a vocabulary that tell how it is spelt."""
BLANK, WORD_START = "Ġ", "▁"
"""What a blank is in byte-level and in SentencePiece vocabularies."""


def reader(tokenizer: Tokenizer | None, vocab: Sequence[str] | None = None) -> Callable[[int], str]:
    """From a token's id to its text: blanks are blanks, and bytes of one letter that are apart show as a replacement sign.

    Args:
        tokenizer: The model's; None for one that reads token ids.
        vocab: Words of such a model, where its task lists them.
    """
    if tokenizer is None:
        return str if vocab is None else lambda token: vocab[token] if token < len(vocab) else str(token)
    # From the end too: the first tokens of some vocabularies are all single bytes.
    first = range(min(tokenizer.n_vocab, LOOKED_AT))
    last = range(max(0, tokenizer.n_vocab - LOOKED_AT), tokenizer.n_vocab)
    pieces = [tokenizer.piece(token) for part in (first, last) for token in part]
    if any(piece.startswith(BLANK) for piece in pieces):
        table = _bytes()
        return lambda token: _from_bytes(tokenizer.piece(token), table)
    return lambda token: tokenizer.piece(token).replace(WORD_START, " ")


def _bytes() -> dict[str, int]:
    """Which byte a letter of a byte-level vocabulary stands for: printable bytes themselves, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _from_bytes(piece: str, table: dict[str, int]) -> str:
    if any(letter not in table for letter in piece):  # a special token
        return piece
    return bytes(table[letter] for letter in piece).decode("utf-8", errors="replace")
