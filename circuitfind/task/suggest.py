"""Symmetric token replacements: words that take another one's place in a prompt and change nothing else.

A replacement is good when the prompt keeps its length in tokens and every other token stays what it was (Zhang and Nanda
2024, "Towards best practices of activation patching in language models", arXiv 2309.16042, section 2: in-distribution
corruption by symmetric token replacement). Where words come from: the prompt itself, the slot of a task, the word lists that
come with circuitfind, a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from circuitfind.errors import PromptError, UsageError, nearest
from circuitfind.task.pairs import Tokenizer
from circuitfind.task.source import read_text
from circuitfind.zoo.mini import words

_MARK = re.compile(r"\{([^{}]+)\}")
Occurrence = int | str
"""A number from 1, ``last``, or ``all``."""


@dataclass(frozen=True)
class Spot:
    """A word in a prompt that is to be changed.

    Attributes:
        text: The prompt.
        word: The word.
        places: First character and the one behind the last, of each of its places that is changed.
        total: How often the word stands there.
    """

    text: str
    word: str
    places: tuple[tuple[int, int], ...]
    total: int = 1

    def with_word(self, word: str) -> str:
        """The prompt with another word there."""
        out, at = "", 0
        for start, end in self.places:
            out += self.text[at:start] + word
            at = end
        return out + self.text[at:]


@dataclass(frozen=True)
class Candidate:
    """A word that fits.

    Attributes:
        word: The word.
        source: Where it is from.
        text: The prompt with it.
        tokens: Of this prompt, without a beginning-of-text token.
        own: Those of them that are the word, at its first place.
    """

    word: str
    source: str
    text: str
    tokens: tuple[int, ...]
    own: tuple[int, ...]


def find_spot(text: str, change: str | None, occurrence: Occurrence = "last") -> Spot:
    """The word that is to be changed: the one in braces, or the one that is named.

    Raises:
        UsageError: It is not there, or nothing says which it is.
    """
    marked = _MARK.search(text)
    if marked is not None and change is None:
        plain = text[: marked.start()] + marked[1] + text[marked.end() :]
        if _MARK.search(plain):
            raise UsageError(
                "several words stand in braces", hint="put braces round one, or name it with --change"
            )
        return Spot(plain, marked[1], ((marked.start(), marked.start() + len(marked[1])),))
    if change is None:
        raise UsageError(
            "nothing says which word to change",
            hint="name it with --change, or put it in braces: 'The {cat} sat'",
        )
    found = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(change)}(?!\w)", text)]
    if not found:
        known = re.findall(r"\w+", text)
        near = nearest(change, known)
        raise UsageError(
            f"'{change}' is no word of the prompt",
            hint=f"did you mean '{near}'?" if near else f"words: {', '.join(known[:20])}",
        )
    return Spot(text, change, chosen_places(found, occurrence, change), len(found))


def chosen_places(
    places: Sequence[tuple[int, int]], occurrence: Occurrence, word: str
) -> tuple[tuple[int, int], ...]:
    """Those of a word's places that are meant.

    Raises:
        UsageError: There are fewer.
    """
    if occurrence == "all":
        return tuple(places)
    if occurrence == "last":
        return (places[-1],)
    number = int(occurrence)
    if not 1 <= number <= len(places):
        raise UsageError(
            f"'{word}' stands in the prompt {len(places)} times",
            hint=f"--occurrence goes from 1 to {len(places)}, or all",
        )
    return (places[number - 1],)


def fit(spot: Spot, word: str, source: str, tokenizer: Tokenizer) -> Candidate | None:
    """The word in its place, if the prompt keeps its length and all tokens but the word's; None otherwise."""
    text = spot.with_word(word)
    try:
        old, new = tokenizer.encode(spot.text), tokenizer.encode(text)
    except PromptError:  # not in the vocab
        return None
    if len(old) != len(new):
        return None
    inside = [any(a < end and b > start for start, end in spot.places) for _, a, b in old]
    same = all(one[0] == other[0] for one, other, mine in zip(old, new, inside, strict=True) if not mine)
    if not same or old == new:
        return None
    first = inside.index(True)
    stop = next((i for i in range(first, len(inside)) if not inside[i]), len(inside))
    tokens = tuple(token for token, _, _ in new)
    return Candidate(word, source, text, tokens, tokens[first:stop])


def first_token(spot: Spot, tokenizer: Tokenizer) -> int:
    """The first token of the word, at its first place."""
    start, end = spot.places[0]
    return next(i for i, (_, a, b) in enumerate(tokenizer.encode(spot.text)) if a < end and b > start)


def fitting(
    spot: Spot, sources: Iterable[tuple[str, str]], tokenizer: Tokenizer
) -> tuple[list[Candidate], int]:
    """Words that fit, each once, as they come from (word, source); and how many did not."""
    found: dict[str, Candidate] = {}
    refused: set[str] = set()
    for word, source in sources:
        if word == spot.word or word in found or word in refused:
            continue
        candidate = fit(spot, word, source, tokenizer)
        if candidate is None:
            refused.add(word)
        else:
            found[word] = candidate
    return list(found.values()), len(refused)


# Where words come from.


def words_of_text(spot: Spot) -> Iterator[tuple[str, str]]:
    """Other words of the prompt that are of a list with the one to be changed: swapping two of them is symmetric."""
    alike = {word for _, listed in lists_with(spot.word) for word in listed}
    for word in dict.fromkeys(re.findall(r"\w+", spot.text)):
        if word in alike:
            yield word, "the prompt"


def words_of_lists(spot: Spot) -> Iterator[tuple[str, str]]:
    """Words of the lists that come with circuitfind and have the one to be changed."""
    for name, listed in lists_with(spot.word):
        yield from ((word, name) for word in listed)


def words_of_file(path: Path) -> Iterator[tuple[str, str]]:
    """Words of a file, one on each line; blank lines and those that begin with # are none.

    Raises:
        UsageError: It cannot be read, or holds no word.
    """
    lines = (line.strip() for line in read_text(path, "word list").splitlines())
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UsageError(f"'{path}' lists no words", hint="write one word on each line")
    yield from ((word, path.name) for word in found)


def lists_with(word: str) -> list[tuple[str, tuple[str, ...]]]:
    """Name and words of each list that has a word; the shortest first, whose words are most alike."""
    found = [(name, listed) for name, listed in word_lists().items() if word in listed]
    return sorted(found, key=lambda one: len(one[1]))


@cache
def word_lists() -> Mapping[str, tuple[str, ...]]:
    """The lists that come with circuitfind, by name."""
    return {
        "names of women": words.FEMALE,
        "names of men": words.MALE,
        "names": words.NAMES,
        "places": words.PLACES,
        "objects": words.OBJECTS,
        "events": words.EVENTS,
        "years": words.YEARS,
        "jobs": words.JOBS,
        "singular nouns": words.SINGULAR,
        "plural nouns": words.PLURAL,
        "prepositions": words.PREPOSITIONS,
        "states": words.STATES,
        "colours": words.COLOURS,
        "things": words.THINGS,
        "surfaces": words.SURFACES,
        "days": words.DAYS,
        "months": words.MONTHS,
        "numbers": words.NUMBERS,
        "countries": tuple(words.CAPITALS),
        "capitals": tuple(words.CAPITALS.values()),
        "arguments": words.ARGUMENTS,
        "descriptions": words.DESCRIPTIONS,
        "common words": words.COMMON,
    }


def alike(word: str) -> Callable[[str], bool]:
    """Whether another word is written as this one is: letters or digits, capitals, and not this one."""

    def test(other: str) -> bool:
        kinds = (str.isalpha, str.isdigit, str.istitle, str.isupper, str.islower)
        return other != word and bool(other) and all(kind(other) == kind(word) for kind in kinds)

    return test
