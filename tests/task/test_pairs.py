"""Padding, the vocab tokenizer, templates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from circuitfind.errors import PromptError
from circuitfind.task.pairs import VocabTokenizer, pad
from circuitfind.task.templates import parse_template


def test_padding_is_on_the_right_and_masked() -> None:
    ids, mask = pad([[1, 2, 3], [0], [5, 0]])
    np.testing.assert_array_equal(ids, [[1, 2, 3], [0, 0, 0], [5, 0, 0]])
    np.testing.assert_array_equal(mask, [[True] * 3, [True, False, False], [True, True, False]])
    assert pad([[1], [2, 3]], fill=9).ids[0, 1] == 9


@pytest.mark.parametrize("sequences", [[], [[1], []]])
def test_nothing_to_pad(sequences: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="nothing to pad"):
        pad(sequences)


def test_vocab_tokenizer() -> None:
    tokenizer = VocabTokenizer(["A", "AB", "B"])
    assert tokenizer.encode(" AB  A B") == [(1, 1, 3), (0, 5, 6), (2, 7, 8)]
    assert tokenizer.piece(1) == "AB"
    assert (tokenizer.bos, tokenizer.n_vocab) == (None, 3)
    with pytest.raises(PromptError, match="'AC' is no word of the vocab"):
        tokenizer.encode("A AC")


def test_templates_are_filled() -> None:
    template = parse_template("{{x}} {A}, {B.2}{A}")
    filled = template.fill({"A": "Mary", "B.2": "John"})
    assert filled.text == "{x} Mary, JohnMary"
    assert [(s.slot, filled.text[s.start : s.end]) for s in filled.spans] == [
        ("A", "Mary"),
        ("B.2", "John"),
        ("A", "Mary"),
    ]


def test_templates_are_cut_at_blanks() -> None:
    chunks = parse_template("When {A}, met ({B}) in {C}{YY}-{D}\n{E}").chunks()
    assert [chunk.literals for chunk in chunks] == [(" ", ","), (" (", ")"), (" ", "", "-", ""), ("\n", "")]
    assert [chunk.slots for chunk in chunks] == [("A",), ("B",), ("C", "YY", "D"), ("E",)]
    assert parse_template("no slot").chunks() == ()


@pytest.mark.parametrize("text", ["a { b", "a } b", "{A b}", "{1}", "{A.0}", "{}"])
def test_stray_braces(text: str) -> None:
    with pytest.raises(ValueError, match="belongs to no slot"):
        parse_template(text)


def test_tasks_are_read_without_torch() -> None:
    code = "import sys, circuitfind.task.prompts; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
