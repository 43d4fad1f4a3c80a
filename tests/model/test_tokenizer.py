"""The token that a task may put in front of its prompts."""

from __future__ import annotations

from typing import Any

import pytest

from circuitfind.model.tokenizer import HFTokenizer


def tokenizer(**special: str) -> HFTokenizer:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words: dict[str, Any] = {"a": 0, "<s>": 1, "</s>": 2}
    return HFTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="a")), **special)
    )


@pytest.mark.parametrize(
    ("special", "expected"),
    [({"bos_token": "<s>", "eos_token": "</s>"}, 1), ({"eos_token": "</s>"}, 2), ({}, None)],
)
def test_beginning_of_text(special: dict[str, str], expected: int | None) -> None:
    """A tokenizer without one (Qwen's) lends its end-of-text token; none puts it in front by itself."""
    found = tokenizer(**special)
    assert found.bos_id == expected
    assert found.bos is None
