"""What is told of prompt pairs: each weakness found where it was put, and not where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitfind.task.advice import advise
from circuitfind.task.differences import Advice, difference
from circuitfind.task.pairs import PromptPairs
from circuitfind.task.prompts import make_pairs
from circuitfind.task.spec import TaskSpec, load_task

Write = Callable[..., Path]
PEOPLE = ["Mary", "John", "Anna", "Tom", "Sue", "Ben", "Eva", "Max"]


def good_pairs(count: int = 8) -> list[dict[str, Any]]:
    """Two people in either order; the change is of one word."""
    found = []
    for i in range(count):
        a, b = PEOPLE[i % 8], PEOPLE[(i + 1 + i // 8) % 8]
        first, second = (a, b) if i % 2 else (b, a)
        text = f"{first} and {second} met {{}} who called"
        found.append(
            {"clean": text.format(b), "corrupted": text.format(a), "answer": f" {a}", "wrong": f" {b}"}
        )
    return found


def told(write: Write, fake: Any, pairs: list[dict[str, Any]], **keys: Any) -> dict[str, Advice]:
    """Advice by code."""
    text = json.dumps({"name": "t", "prompts": {"pairs": pairs}, **keys}, indent=1)
    return by_code(load_task(write(text)), fake)


def by_code(spec: TaskSpec, fake: Any, **keys: Any) -> dict[str, Advice]:
    tokenizer = fake()
    pairs = make_pairs(spec, tokenizer, drop_bad_pairs=True)
    found = advise(spec, pairs, tokenizer.piece, **keys)
    assert len({one.code for one in found}) == len(found)
    return {one.code: one for one in found}


def test_good_pairs_have_no_warning(write: Write, fake: Any) -> None:
    found = told(write, fake, good_pairs(16))
    assert not [one for one in found.values() if one.level == "warning"], found


def test_where_a_pair_differs(write: Write, fake: Any) -> None:
    pair = {"clean": "a b c d e f", "corrupted": "a x c y z f", "answer": " g", "wrong": " h"}
    spec = load_task(write(json.dumps({"name": "t", "prompts": {"pairs": [pair]}})))
    found = difference(make_pairs(spec, fake())[0])
    assert found.spans == ((1, 1), (3, 4))
    assert found.positions == (1, 3, 4)
    assert not found.one_word
    assert [len(x) for x in found.old] == [1, 2]


def test_changes_of_more_than_one_thing(write: Write, fake: Any) -> None:
    pairs = good_pairs()
    pairs[2]["corrupted"] = pairs[2]["corrupted"].replace(" who called", " who phoned")
    pairs[5] = {
        "clean": "So Al saw Al and ran to",
        "corrupted": "So Bo saw Bo and ran to",
        "answer": " a",
        "wrong": " b",
    }
    found = told(write, fake, pairs)
    several = found["several-changes"]
    assert several.level == "warning"
    assert several.pairs == (2,)
    assert "1 of 8 pairs" in several.what
    assert "task.yaml:" in several.where[0]
    assert several.where[0].endswith("pair 3")
    assert found["repeated-change"].pairs == (5,)
    assert found["repeated-change"].level == "note"


def test_changes_that_cannot_reach_the_answer(write: Write, fake: Any) -> None:
    keys: dict[str, Any] = {"positions": {"EARLY": 1, "LATE": 3, "READ": 4}, "answer-position": "READ"}
    pair = {"clean": "a b c d e f", "corrupted": "a b x d e f", "answer": " g", "wrong": " h"}
    found = told(write, fake, [pair], **keys)
    assert "unreachable" not in found
    assert found["positions-before-the-change"].what.startswith("nothing differs yet at EARLY:")
    late = {**pair, "corrupted": "a b c d e x"}
    found = told(write, fake, [pair, late], **keys)
    assert found["unreachable"].pairs == (1,)
    spec = load_task(write(json.dumps({"name": "t", "prompts": {"pairs": [late]}, **keys})))
    assert "unreachable" not in by_code(spec, fake, causal=False)


def test_answers_that_stay(write: Write, fake: Any) -> None:
    pairs = good_pairs()
    again = {**pairs[0], "clean": pairs[0]["corrupted"], "corrupted": pairs[0]["clean"]}
    found = told(write, fake, [*pairs, again])
    assert found["same-answer"].pairs == (0, 8)


def test_pairs_that_cannot_be_used_by_their_reasons(write: Write, fake: Any) -> None:
    pairs = good_pairs()
    pairs[0]["answer"] = " Mary Ann"
    pairs[1]["corrupted"] += " too"
    pairs[2]["corrupted"] = pairs[2]["clean"]
    found = told(write, fake, pairs)
    assert found["answer-tokens"].where[0].endswith("pair 1")
    assert found["lengths"].where[0].endswith("pair 2")
    assert found["unaligned"].where[0].endswith("pair 3")
    assert "1 of 8 pairs" in found["lengths"].what


def test_duplicates_and_frequent_answers(write: Write, fake: Any) -> None:
    pairs = good_pairs(12)
    found = told(write, fake, [*pairs, pairs[3]])
    assert found["duplicates"].pairs == (12,)
    assert "unbalanced-answers" not in found
    many = [{**pair, "answer": " Zoe"} if i < 9 else pair for i, pair in enumerate(pairs)]
    assert "' Zoe'" in told(write, fake, many)["unbalanced-answers"].what
    assert "one-answer" in told(write, fake, [{**pair, "answer": " Zoe"} for pair in pairs])
    assert "few-pairs" in told(write, fake, pairs[:3])


def test_answers_that_the_order_or_the_ending_says(write: Write, fake: Any) -> None:
    first = [
        {
            "clean": f"{a} and {b} met {b} who called",
            "corrupted": f"{a} and {b} met {a} who called",
            "answer": f" {a}",
            "wrong": f" {b}",
        }
        for a, b in zip(PEOPLE, PEOPLE[1:] + PEOPLE[:1], strict=True)
    ]
    found = told(write, fake, first)
    assert "100%" in found["answer-by-order"].what
    assert "answer-by-order" not in told(write, fake, good_pairs(16))
    ends = [
        {"clean": f"in {x} it is {e}", "corrupted": f"in {y} it is {e}", "answer": f" A{e}", "wrong": " B"}
        for x, y in zip(PEOPLE, PEOPLE[1:] + PEOPLE[:1], strict=True)
        for e in ("one", "two")
    ]
    assert "16 of 16" in told(write, fake, ends)["answer-by-last-tokens"].what
    # What changes may say the answer: that is the behaviour.
    own = [
        {**pair, "corrupted": pair["clean"].replace(" one", " xx").replace(" two", " yy")} for pair in ends
    ]
    assert "answer-by-last-tokens" not in told(write, fake, own)


TEMPLATES = """
name: t
prompts:
  templates:
    - {{clean: "{first} {{A}} ran to", corrupted: "{first} {{B}} ran to", answer: " {one}", wrong: " {other}"}}
    - {{clean: "{second} {{A}} ran to", corrupted: "{second} {{B}} {tail} to", answer: " {other}", wrong: " {one}"}}
  slots:
    A: &people [Mary, John, Anna, Tom, Sue, Ben, Eva, Max]
    B: *people
  distinct: [[A, B]]
  count: 16
"""


def test_wordings_that_say_the_answer(write: Write, fake: Any) -> None:
    text = TEMPLATES.format(first="Today", second="Once", one="up", other="down", tail="ran")
    found = by_code(load_task(write(text)), fake)
    assert "16 of 16" in found["answer-by-wording"].what
    alike = TEMPLATES.format(first="Today", second="Today", one="up", other="down", tail="ran")
    found = by_code(load_task(write(alike)), fake)
    assert "answer-by-wording" not in found
    assert "change-outside-slots" not in found


def test_changes_of_fixed_words(write: Write, fake: Any) -> None:
    text = TEMPLATES.format(first="Today", second="Once", one="up", other="down", tail="went")
    found = by_code(load_task(write(text)), fake)["change-outside-slots"]
    assert found.what.endswith("template 2")
    assert found.where[0].endswith("task.yaml:6")


def test_values_that_are_left_out_are_notes(write: Write, fake: Any) -> None:
    spec = load_task(
        write(TEMPLATES.format(first="Today", second="Today", one="up", other="down", tail="ran"))
    )
    tokenizer = fake(split=(" Mary",))
    pairs: PromptPairs = make_pairs(spec, tokenizer)
    codes = [one.code for one in advise(spec, pairs, tokenizer.piece)]
    assert "values-left-out" in codes


@pytest.mark.parametrize("task", ["ioi", "capitals"])
def test_tasks_that_ship_have_no_warning(task: str) -> None:
    from circuitfind.model.load import load_tokenizer

    spec, tokenizer = load_task(task), load_tokenizer("mini")
    assert tokenizer is not None
    found = advise(spec, make_pairs(spec, tokenizer), tokenizer.piece)
    assert [one.code for one in found if one.level == "warning"] == []
