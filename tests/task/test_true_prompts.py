"""Prompts that are written out, not filled in, say what is true: sums, brackets, initials, what followed what."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from circuitfind.task.spec import TaskSpec, load_task

FOLDER = Path(__file__).parents[2] / "tasks"


def task_of(name: str) -> TaskSpec:
    return load_task(name, [FOLDER])


def ids(prompt: str | tuple[int, ...]) -> tuple[int, ...]:
    assert not isinstance(prompt, str)
    return prompt


def rows(task: str) -> Iterator[dict[str, str]]:
    rule = task_of(task).prompts.row_rule
    assert rule is not None
    yield from rule.values


@pytest.mark.parametrize(
    ("task", "operation"),
    [
        ("arithmetic-addition", operator.add),
        ("arithmetic-subtraction", operator.sub),
        ("arithmetic-division", operator.truediv),
    ],
)
def test_arithmetic_is_right(task: str, operation: Callable[[int, int], float]) -> None:
    for row in rows(task):
        a, b, r, c, d, w = (int(row[key]) for key in "ABRCDW")
        assert operation(a, b) == r
        assert operation(a, c) == operation(d, b) == w != r


def test_acronyms_are_spelt_right() -> None:
    for row in rows("acronyms"):
        initials = [row[key][0] for key in "ABCX"]
        assert initials == [row[key] for key in "FSTY"]
        assert row["T"] != row["Y"]


def test_sums_modulo_113() -> None:
    for pair in task_of("modular-addition").prompts.pairs or ():
        a, b, end = ids(pair.clean)
        assert (a + b) % 113 == pair.answer
        assert end == 113
        for prompt in pair.counterfactuals.values():
            one, other, _ = ids(prompt)
            assert (one + other) % 113 == pair.wrong
            assert (one == a) != (other == b)


def test_what_followed_a_letter() -> None:
    for pair in task_of("induction-one-head").prompts.pairs or ():
        for prompt, answer in (
            (pair.clean, pair.answer),
            *((p, pair.wrong) for p in pair.counterfactuals.values()),
        ):
            *before, last = ids(prompt)
            assert before.count(last) == 1
            assert before[before.index(last) + 1] == answer


def test_brackets() -> None:
    def elevations(text: str | tuple[int, ...]) -> list[int]:
        assert isinstance(text, str)
        start, *brackets, end = text.split()
        assert (start, end) == ("[start]", "[end]")
        steps = [1 if bracket == "(" else -1 for bracket in brackets]
        return [sum(steps[: i + 1]) for i in range(len(steps))]

    for pair in task_of("bracket-classifier").prompts.pairs or ():
        clean, count, order = (
            elevations(text) for text in (pair.clean, *(pair.counterfactuals[k] for k in ("count", "order")))
        )
        assert min(clean) >= 0
        assert clean[-1] == 0
        assert min(count) >= 0
        assert count[-1] == 2
        assert min(order) < 0
        assert order[-1] == 0
