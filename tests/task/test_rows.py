"""Rows of data sets: the columns of the MIB benchmark from made-up rows, which rows are taken, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitfind.config import MODELS_VARIABLE
from circuitfind.errors import PromptError, TaskError
from circuitfind.session import task_hash
from circuitfind.task.pairs import PromptPairs, Tokenizer
from circuitfind.task.prompts import make_pairs
from circuitfind.task.spec import TaskSpec, load_task
from tests.task.conftest import FakeTokenizer
from tests.task.test_tasks import FileTokenizer

TASKS = Path(__file__).parents[2] / "tasks"
NAMES = ("Mary", "John", "Anna", "Paul", "Laura", "Mark")


# Rows with the columns of the benchmark.


def ioi_row(number: int) -> dict[str, Any]:
    first, second, third = (NAMES[(number + step) % len(NAMES)] for step in (0, 1, 3))

    def prompt(a: str, b: str, c: str) -> str:
        return f"Then, {a} and {b} went to the store. {c} gave a ring to"

    def other(text: str) -> dict[str, Any]:
        return {"prompt": text, "choices": [first, second], "answerKey": 1}

    return {
        "template": "Then, ...",
        "metadata": {"indirect_object": first, "subject": second, "random_c": third, "object": "ring"},
        "prompt": prompt(first, second, second),
        "choices": [first, second],
        "answerKey": 0,
        "s2_io_flip_counterfactual": other(prompt(first, second, first)),
        "abc_counterfactual": other(prompt(first, second, third)),
        "random_names_counterfactual": other(prompt(third, "Tom", "Tom")),
    }


def choice_row(number: int, **more: Any) -> dict[str, Any]:
    letters, key = ["A", "B", "C", "D"], number % 4
    moved = ["E", "F", "G", "H"]
    colours = ["red", "blue", "green", "black"]

    def prompt(labels: list[str]) -> str:
        listed = "".join(f"\n{label}. {colour}" for label, colour in zip(labels, colours, strict=True))
        return f"Question: The box is {colours[key]}. What color is the box?{listed}\nAnswer:"

    other = {"choices": {"label": moved, "text": colours}, "answerKey": key, "prompt": prompt(moved)}
    row = {
        "choices": {"label": letters, "text": colours},
        "answerKey": key,
        "prompt": prompt(letters),
        "symbol_counterfactual": other,
        "idx": number,
    }
    return {**row, **more}


def sum_row(number: int, operator: str = "+") -> dict[str, Any]:
    one, other = 10 + number, 21 + 2 * number

    def asked(a: int, b: int) -> dict[str, Any]:
        return {"prompt": f"The sum of {a} and {b} is ", "label": str(a + b if operator == "+" else b - a)}

    return {
        **asked(one, other),
        "operator": operator,
        "operand1": one,
        "operand2": other,
        "random_counterfactual": asked(one + 1, other + 3),
    }


ROWS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "mib-ioi": ("ioi/data/train-00000-of-00001", ioi_row),
    "mib-mcqa": ("copycolors_mcqa/4_answer_choices/train-00000-of-00001", choice_row),
    "mib-arc-easy": ("arc_easy/data/train-00000-of-00001", choice_row),
    "mib-arc-challenge": ("mib-bench/arc_challenge/train", choice_row),
    "mib-arithmetic-addition": ("arithmetic_addition/train", sum_row),
    "mib-arithmetic-subtraction": ("arithmetic_subtraction/default/train/0000", lambda n: sum_row(n, "-")),
}
"""Where the files of each task lie, as the hub lays them out in one way or another, and its rows."""


def write(path: Path, rows: list[Any], ending: str) -> Path:
    """Rows as JSONL or Parquet."""
    path = path.with_name(path.name + ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def gpt2() -> FileTokenizer:
    folder = os.environ.get(MODELS_VARIABLE)
    if not folder:
        pytest.skip(f"{MODELS_VARIABLE} is not set")
    tokenizer = FileTokenizer(Path(folder) / "gpt2-tokenizer" / "tokenizer.json")
    tokenizer.bos_id = 50256  # type: ignore[attr-defined]  # an optional part of the protocol
    return tokenizer


def pieces(tokenizer: Tokenizer, tokens: tuple[int, ...]) -> str:
    return "".join(tokenizer.piece(token) for token in tokens).replace("Ġ", " ").replace("Ċ", "\n")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ROWS)
def test_every_task_of_the_benchmark(name: str, ending: str, rows_at: Path) -> None:
    place, row = ROWS[name]
    write(rows_at / place, [row(number) for number in range(6)], ending)
    spec, tokenizer = load_task(TASKS / f"{name}.yaml"), gpt2()
    pairs = make_pairs(spec, tokenizer)
    assert len(pairs) == 6
    assert pairs.counterfactual == spec.counterfactuals[0]
    for number, pair in enumerate(pairs):
        own = row(number)
        assert pair.clean[0] == pair.corrupted[0] == 50256
        assert pieces(tokenizer, pair.clean[1:]) == own["prompt"] == pair.clean_text
        assert pair.answer_position == len(pair.clean) - 1
        assert pair.where.endswith(f"{ending}:{number + 1}" if ending == ".jsonl" else f", row {number + 1}")
        answer, wrong = pieces(tokenizer, pair.answer), pieces(tokenizer, pair.wrong)
        if name == "mib-ioi":
            assert (answer, wrong) == (
                " " + own["metadata"]["indirect_object"],
                " " + own["metadata"]["subject"],
            )
            assert pair.corrupted_text == own["s2_io_flip_counterfactual"]["prompt"]
        elif "arithmetic" in name:
            assert (answer, wrong) == (own["label"], own["random_counterfactual"]["label"])
            assert pair.corrupted_text == own["random_counterfactual"]["prompt"]
        else:
            assert (answer, wrong) == ("ABCD"[number % 4], "EFGH"[number % 4])
            assert pair.corrupted_text == own["symbol_counterfactual"]["prompt"]


def test_text_and_parquet_give_the_same_pairs(rows_at: Path, tmp_path: Path) -> None:
    spec, found = load_task(TASKS / "mib-mcqa.yaml"), []
    for ending in (".jsonl", ".parquet"):
        path = write(rows_at / ROWS["mib-mcqa"][0], [choice_row(n) for n in range(5)], ending)
        found.append(make_pairs(spec, gpt2()).content_hash())
        path.unlink()
    assert found[0] == found[1]


@pytest.mark.parametrize("counterfactual", ["s2-io-flip", "abc", "random-names"])
def test_counterfactuals_of_ioi(counterfactual: str, rows_at: Path) -> None:
    write(rows_at / "ioi" / "train", [ioi_row(n) for n in range(4)], ".jsonl")
    pairs = make_pairs(load_task(TASKS / "mib-ioi.yaml"), gpt2(), counterfactual=counterfactual)
    column = counterfactual.replace("-", "_") + "_counterfactual"
    assert [pair.corrupted_text for pair in pairs] == [ioi_row(n)[column]["prompt"] for n in range(4)]


# Which rows are taken.


def task(tmp_path: Path, count: int | None = None, **keys: Any) -> TaskSpec:
    """A task on the rows of a folder beside it."""
    dataset = {
        "name": "own/rows",
        "folder": "rows",
        "clean": "{a.prompt}",
        "corrupted": {"flip": "{b.prompt}"},
        "answer": " {a.answer}",
        "wrong": " {b.answer}",
        **keys,
    }
    data: dict[str, Any] = {"name": "own", "prompts": {"dataset": dataset}}
    data["prompts"] |= {} if count is None else {"count": count}
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    return load_task(path)


def row(answer: str, other: str = "left", **more: Any) -> dict[str, Any]:
    return {
        "a": {"prompt": f"go {answer} and", "answer": answer},
        "b": {"prompt": f"go {other} and", "answer": other},
        **more,
    }


def made(
    tmp_path: Path, rows: list[Any], count: int | None = None, *, ending: str = ".jsonl", **keys: Any
) -> PromptPairs:
    write(tmp_path / "rows" / "train", rows, ending)
    return make_pairs(task(tmp_path, count, **keys), FakeTokenizer(split=(" sideways", " backwards")))


def test_the_first_rows_are_taken(tmp_path: Path) -> None:
    """Rows behind the last that is needed are not looked at, as broken as they may be."""
    rows = [row("right"), row("up"), row("down"), {"broken": 1}]
    assert [pair.clean_text for pair in made(tmp_path, rows, 2)] == ["go right and", "go up and"]
    with pytest.raises(TaskError, match=r"'a\.prompt' is missing"):
        made(tmp_path, rows)


def test_answers_of_several_tokens_are_left_out_or_stand_by_their_first(tmp_path: Path) -> None:
    rows = [row("right"), row("sideways", "backwards"), row("up")]
    pairs = made(tmp_path, rows)
    assert [pair.clean_text for pair in pairs] == ["go right and", "go up and"]
    assert pairs.passed == {"an answer is several tokens": 1}
    assert "1 rows left out: an answer is several tokens" in pairs.notes
    pairs = made(tmp_path, rows, **{"answer-tokens": "first"})
    tokenizer = FakeTokenizer(split=(" sideways", " backwards"))
    make_pairs(task(tmp_path, None, **{"answer-tokens": "first"}), tokenizer)
    assert len(pairs) == 3
    assert pairs[1].answer == (tokenizer.encode(" sideways")[0][0],)


def test_rows_are_filtered_by_values_nulls_and_tokens(tmp_path: Path) -> None:
    rows = [row("right", kind="+", n=1), row("up", kind="-", n=1), row("down", kind="+", n=None)]
    rows.append(row("sideways", kind="+", n=2))
    keys: dict[str, Any] = {"where": {"kind": "+"}, "filled": ["n"]}
    pairs = made(tmp_path, rows, **keys, **{"equal-tokens": [" {a.answer}", " {b.answer}"]})
    assert [pair.clean_text for pair in pairs] == ["go right and"]
    assert pairs.passed == {"'n' is null": 1, "what must have equally many tokens (equal-tokens) has not": 1}


def test_fewer_rows_than_asked_for_are_told(tmp_path: Path) -> None:
    assert "9 pairs asked for, only 1 different ones found" in made(tmp_path, [row("up")], 9).notes


def test_groups_and_wrong_answers_by_counterfactual(tmp_path: Path) -> None:
    keys = {"corrupted": {"flip": "{b.prompt}", "c": "{c}"}, "wrong": {"flip": " {b.answer}", "c": " no"}}
    keys = {**keys, "wrong": {"flip": " {b.answer}", "c": " {d}"}, "group": "{g}"}
    write(tmp_path / "rows" / "train", [row("up", c="go home and", d="home", g="x")], ".jsonl")
    spec, tokenizer = task(tmp_path, **keys), FakeTokenizer()
    assert spec.counterfactuals == ("flip", "c")
    (pair,) = make_pairs(spec, tokenizer, counterfactual="c")
    assert (pair.group, pair.corrupted_text) == ("x", "go home and")
    assert pair.wrong == (tokenizer.encode(" home")[0][0],)
    with pytest.raises(TaskError, match="no counterfactual 'd'"):
        make_pairs(spec, tokenizer, counterfactual="d")


def test_pairs_that_do_not_line_up_are_refused_or_dropped(tmp_path: Path) -> None:
    rows = [row("right"), {**row("up"), "b": {"prompt": "go left and then", "answer": "left"}}]
    with pytest.raises(PromptError, match="1 of 2 prompt pairs cannot be used") as caught:
        made(tmp_path, rows)
    assert "train.jsonl:2: the clean prompt has 3 tokens, the corrupted one 4" in caught.value.details[0]
    pairs = make_pairs(task(tmp_path), FakeTokenizer(), drop_bad_pairs=True)
    assert len(pairs) == 1
    assert len(pairs.dropped) == 1


def test_the_hash_of_a_task_is_of_its_rows_too(tmp_path: Path) -> None:
    path = write(tmp_path / "rows" / "train", [row("up")], ".jsonl")
    spec = task(tmp_path)
    before = task_hash(spec)
    assert task_hash(spec) == before
    path.write_text(json.dumps(row("down")) + "\n")
    assert task_hash(spec) != before
