"""Texts with columns of a row in braces."""

from __future__ import annotations

import pytest

from circuitfind.task.columns import ColumnProblem, parse_columns, value_of

NESTED = {"a": {"b": [{"c": 5}, {"c": "x"}], "k": 1}, "k": 0, "n": None, "labels": ["A", "B"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{k}", "0"),
        (" {a.b[0].c}!", " 5!"),
        ("{a.b[a.k].c}", "x"),
        ("{labels[k]}{labels[1]}", "AB"),
        ("{{{k}}}", "{0}"),
    ],
)
def test_columns(text: str, expected: str) -> None:
    assert parse_columns(text).fill(NESTED) == expected


def test_null_goes_all_the_way_down() -> None:
    assert value_of(NESTED, "n.x.y") is None


@pytest.mark.parametrize("text", ["{", "{}", "{a b}", "{a.}", "{a[}", "x}", "{a[-1]}"])
def test_braces_that_name_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="names no column"):
        parse_columns(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{q}", "column 'q' is missing"),
        ("{a.x}", "column 'a.x' is missing ('x')"),
        ("{k.x}", "column 'k.x' is not there: 'k' is 0"),
        ("{labels[2]}", "has 2 values, and '2' is 2"),
        ("{labels[a]}", "needs a whole number in 'a', which holds a mapping of b, k"),
        ("{k[0]}", "is 0 in 'k', not a list"),
        ("{n}", "column 'n' is null"),
        ("{a}", "is a mapping of b, k, not a text or a number"),
        ("{labels}", "is a list of 2, not a text or a number"),
    ],
)
def test_columns_that_are_not_there(text: str, says: str) -> None:
    with pytest.raises(ColumnProblem) as caught:
        parse_columns(text).fill(NESTED)
    assert says in str(caught.value)
    assert caught.value.hint
