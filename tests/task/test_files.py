"""Prompt files: CSV and JSONL, good and bad."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitfind.errors import TaskError
from circuitfind.task.prompts import PromptPairs, make_pairs
from circuitfind.task.spec import load_task

Write = Callable[..., Path]


@pytest.fixture
def read(write: Write, fake: Any) -> Callable[..., PromptPairs]:
    """Makes the pairs of a task whose prompts are in a file with the given text."""

    def read_file(text: str, name: str = "prompts.csv", **options: Any) -> PromptPairs:
        write(text, name)
        return make_pairs(load_task(write(f"name: x\nprompts:\n  file: {name}\n")), fake(), **options)

    return read_file


Read = Callable[..., PromptPairs]

CSV = """\
clean,corrupted,answer,wrong,corrupted:none,source
"A girl, came.","A boy, came.", She, He,"A dog, came.",me
A boy came.,A girl came., He| It, She,A dog came.,you
"""


def test_csv(read: Read) -> None:
    pairs = read(CSV)
    assert [pair.where.rpartition("/")[2] for pair in pairs] == ["prompts.csv:2", "prompts.csv:3"]
    assert [len(pair.answer) for pair in pairs] == [1, 2]
    assert pairs[0].corrupted_text == "A boy, came."
    assert read(CSV, counterfactual="none")[0].corrupted_text == "A dog, came."
    assert len(read(CSV, count=1)) == 1


def test_csv_with_a_mark_and_windows_line_ends(read: Read) -> None:
    assert len(read("\ufeff" + CSV.replace("\n", "\r\n"))) == 2


def test_csv_of_token_ids(read: Read) -> None:
    pair = read('clean,corrupted,answer,wrong\n"[1, 2]","[1, 3]",2|4,3\n')[0]
    assert (pair.clean, pair.corrupted, pair.answer, pair.wrong) == ((1, 2), (1, 3), (2, 4), (3,))


def test_line_breaks_inside_quotes_keep_line_numbers_right(read: Read) -> None:
    text = 'clean,corrupted,answer,wrong\n"A\ngirl","A\nboy", She, He\nA girl,,a,b\n'
    with pytest.raises(TaskError) as caught:
        read(text)
    assert "prompts.csv:5" in str(caught.value.where), "the row of two broken texts takes three lines"


JSONL = (
    '{"clean": "A girl.", "corrupted": {"boy": "A boy.", "dog": "A dog."}, "answer": " She", "wrong": '
    '[" He", " It"]}\n'
    "\n"
    '{"clean": [1, 2], "corrupted": [1, 3], "corrupted:dog": [1, 4], "answer": 2, "wrong": 3, "extra": 1}\n'
)


def test_jsonl(read: Read) -> None:
    with pytest.raises(TaskError, match="no counterfactual 'boy'") as caught:
        read(JSONL, "p.jsonl")
    assert "p.jsonl:3" in str(caught.value.where)
    pairs = read(JSONL, "p.jsonl", counterfactual="dog")
    assert pairs.counterfactual == "dog"
    assert [pair.where.rpartition(":")[2] for pair in pairs] == ["1", "3"]
    assert pairs[1].corrupted == (1, 4)
    assert len(pairs[0].wrong) == 2


BAD = {
    "missing column": (
        "clean,corrupted,answr,wrong\na,b,c,d\n",
        "p.csv",
        ":1",
        "'answer' is missing",
        "by 'answr'",
    ),
    "too many columns": (
        "clean,corrupted,answer,wrong\na,b,c,d\nHi, you,b,c,d\n",
        "p.csv",
        ":3",
        "has 5 columns, the header has 4",
        "quotes",
    ),
    "empty cell": (
        "clean,corrupted,answer,wrong\na,b,,d\n",
        "p.csv",
        ":2 (answer)",
        "column 'answer' is empty",
        "fill",
    ),
    "column twice": ("clean,clean,corrupted,answer,wrong\n", "p.csv", ":1 (clean)", "twice", "one name"),
    "open quote": ('clean,corrupted,answer,wrong\na,b,c,d\n"a,b,c,d\n', "p.csv", ":3", "broken CSV", "quote"),
    "header only": ("clean,corrupted,answer,wrong\n", "p.csv", "p.csv", "has no prompts", "one pair a line"),
    "empty file": ("", "p.jsonl", "p.jsonl", "has no prompts", "one pair a line"),
    "broken JSON": ('{"clean": "a"\n', "p.jsonl", ":1", "broken JSON", "JSON object"),
    "no object": ("[1, 2]\n", "p.jsonl", ":1", "is a list, not an object", "JSON object"),
    "missing key": (
        '{"clean": "a", "corrupted": "b", "answer": "c"}\n',
        "p.jsonl",
        ":1",
        "'wrong' is missing",
        "each",
    ),
    "empty prompt": (
        '{"clean": "", "corrupted": "b", "answer": "c", "wrong": "d"}\n',
        "p.jsonl",
        ":1 (clean)",
        "column 'clean' is empty",
        "text or as a list",
    ),
    "float ids": (
        '{"clean": [1.5], "corrupted": [1], "answer": 1, "wrong": 2}\n',
        "p.jsonl",
        ":1 (clean)",
        "column 'clean' is [1.5]",
        "token ids",
    ),
    "answer is a mapping": (
        '{"clean": [1], "corrupted": [2], "answer": {"a": 1}, "wrong": 2}\n',
        "p.jsonl",
        ":1 (answer)",
        "column 'answer' is {",
        "token id",
    ),
    "no counterfactual": (
        '{"clean": [1], "corrupted": {}, "answer": 1, "wrong": 2}\n',
        "p.jsonl",
        ":1 (corrupted)",
        "column 'corrupted' is empty",
        "at least one",
    ),
    "other format": ("x", "p.txt", "task.yaml:3 (prompts.file)", "neither .csv nor .jsonl", "format"),
}


@pytest.mark.parametrize(("text", "name", "where", "what", "hint"), BAD.values(), ids=list(BAD))
def test_bad_file(read: Read, text: str, name: str, where: str, what: str, hint: str) -> None:
    with pytest.raises(TaskError) as caught:
        read(text, name)
    assert what in caught.value.what
    assert where in str(caught.value.where)
    assert hint in caught.value.hint


def test_missing_file(write: Write, fake: Any) -> None:
    write(CSV, "prompts.csv")
    spec = load_task(write("name: x\nprompts:\n  file: promts.csv\n"))
    with pytest.raises(TaskError, match=r"no prompt file at .*promts\.csv") as caught:
        make_pairs(spec, fake())
    assert "prompts.csv" in caught.value.hint
    assert "task.yaml:3 (prompts.file)" in str(caught.value.where)
