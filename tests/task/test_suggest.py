"""Words that take another one's place: what fits, what does not, and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitfind.errors import UsageError
from circuitfind.task.suggest import (
    alike,
    find_spot,
    first_token,
    fit,
    fitting,
    words_of_file,
    words_of_lists,
    words_of_text,
)

TEXT = "When Mary and John went to the store, John gave a drink to"


def test_the_word_is_found_in_each_of_its_places() -> None:
    last = find_spot(TEXT, "John")
    assert TEXT[slice(*last.places[0])] == "John"
    assert last.with_word("Mary") == TEXT.replace(", John", ", Mary")
    assert last.total == 2
    assert find_spot(TEXT, "John", 1).with_word("Tom") == TEXT.replace("and John", "and Tom")
    assert find_spot(TEXT, "John", "all").with_word("Christopher") == TEXT.replace("John", "Christopher")
    marked = find_spot("The {cat} saw a cat", None)
    assert (marked.text, marked.word, marked.places) == ("The cat saw a cat", "cat", ((4, 7),))
    assert find_spot("to the store", "to").places == ((0, 2),), "a word, not a part of one"


@pytest.mark.parametrize(
    ("text", "change", "occurrence", "says"),
    [
        (TEXT, None, "last", "nothing says which"),
        (TEXT, "Jon", "last", "no word of the prompt"),
        (TEXT, "John", 3, "2 times"),
        ("The {cat} and {dog}", None, "last", "several words"),
    ],
)
def test_what_is_not_there_is_told(text: str, change: str | None, occurrence: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        find_spot(text, change, occurrence)


def test_only_words_that_change_nothing_else_fit(fake: Any) -> None:
    spot = find_spot(TEXT, "John")
    tokenizer = fake(split=(" Larry",))
    good = fit(spot, "Tom", "here", tokenizer)
    assert good is not None
    old = [token for token, _, _ in tokenizer.encode(TEXT)]
    assert [i for i, (a, b) in enumerate(zip(old, good.tokens, strict=True)) if a != b] == [9]
    assert good.own == (good.tokens[9],)
    assert first_token(spot, tokenizer) == 9
    assert fit(spot, "Larry", "here", tokenizer) is None, "two tokens"
    assert fit(spot, "Al Bo", "here", tokenizer) is None
    # The tokenizer joins the new word with the one behind it: as many tokens, but not the same ones.
    joined = fake(split=(" Tim",), merge=(" Tim gave",))
    assert fit(spot, "Tim", "here", joined) is None
    found, refused = fitting(spot, [("Tom", "a"), ("Tom", "b"), ("Larry", "a"), ("John", "a")], tokenizer)
    assert [one.word for one in found] == ["Tom"]
    assert refused == 1


def test_words_of_several_tokens_are_replaced_by_as_many(fake: Any) -> None:
    tokenizer = fake(split=(" John", " Larry"))
    spot = find_spot(TEXT, "John")
    good = fit(spot, "Larry", "here", tokenizer)
    assert good is not None
    assert len(good.own) == 2
    assert fit(spot, "Tom", "here", tokenizer) is None


def test_where_words_come_from(write: Callable[..., Path]) -> None:
    spot = find_spot(TEXT, "John")
    assert [word for word, _ in words_of_text(spot)] == ["Mary", "John"]
    lists = dict(words_of_lists(spot))
    assert lists["Mary"] == "names"
    assert lists["Tom"] == "names of men" or lists["Tom"] == "names"
    assert "store" not in lists
    path = write("# people\nTom\n\n Sue \n", "people.txt")
    assert list(words_of_file(path)) == [("Tom", "people.txt"), ("Sue", "people.txt")]
    with pytest.raises(UsageError, match="no words"):
        list(words_of_file(write("# none\n", "none.txt")))
    with pytest.raises(UsageError, match="no word list"):
        list(words_of_file(path.with_name("nowhere.txt")))


def test_words_are_written_alike() -> None:
    assert [word for word in ("Tom", "tom", "TOM", "T1", "12", "John") if alike("John")(word)] == ["Tom"]
    assert [word for word in ("12", "ab") if alike("07")(word)] == ["12"]
