"""Prompt templates: text with slots in braces, such as ``When {A} and {B} met, {B} spoke to``.

``{{`` and ``}}`` stand for plain braces. A slot of a table may ask for a further row: ``{COUNTRY.2}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

_PART = re.compile(r"\{\{|\}\}|\{(?P<slot>[A-Za-z][A-Za-z0-9_]*(?:\.[1-9][0-9]*)?)\}|(?P<stray>[{}])")

# Both match the empty text as well, so each finds exactly one or more.
_LAST_WORD = re.compile(r"\s?\S*\Z")
_FIRST_WORD = re.compile(r"\A\S*")


@dataclass(frozen=True)
class Span:
    """Where a slot's value stands in a filled template, in characters; ``end`` is exclusive."""

    slot: str
    start: int
    end: int


@dataclass(frozen=True)
class Filled:
    """A filled template: its text and where each slot landed, in order."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Template:
    """A parsed template: ``literals[0] slots[0] literals[1] slots[1] ... literals[-1]``."""

    literals: tuple[str, ...]
    slots: tuple[str, ...]

    def fill(self, values: Mapping[str, str]) -> Filled:
        """Put ``values`` into the slots. Raises KeyError for a slot without a value."""
        text = self.literals[0]
        spans = []
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            start = len(text)
            text += values[slot]
            spans.append(Span(slot, start, len(text)))
            text += literal
        return Filled(text, tuple(spans))

    def chunks(self) -> tuple[Template, ...]:
        """The template cut at blanks: each slot with whatever touches it, and the blank before.

        Whether a value is one token depends on its chunk only, so checking chunks checks every prompt.
        Slots that touch each other (``{CENTURY}{YEAR}``) share a chunk.
        """
        cuts = [i for i, literal in enumerate(self.literals[1:-1], 1) if re.search(r"\s", literal)]
        found = []
        for first, last in pairwise([0, *cuts, len(self.slots)]):
            if first == last:
                continue
            before = _LAST_WORD.findall(self.literals[first])[0]
            after = _FIRST_WORD.findall(self.literals[last])[0]
            found.append(Template((before, *self.literals[first + 1 : last], after), self.slots[first:last]))
        return tuple(found)


@lru_cache(maxsize=4096)
def parse_template(text: str) -> Template:
    """Read a template.

    Raises:
        ValueError: a brace that opens or closes nothing; the message says where.
    """
    literals, slots, literal, at = [], [], "", 0
    for match in _PART.finditer(text):
        literal += text[at : match.start()]
        at = match.end()
        if match["stray"]:
            around = text[max(0, match.start() - 10) : match.start() + 15]
            raise ValueError(f"a '{match['stray']}' in '{around}' belongs to no slot")
        if match["slot"]:
            literals.append(literal)
            slots.append(match["slot"])
            literal = ""
        else:
            literal += match[0][0]
    literals.append(literal + text[at:])
    return Template(tuple(literals), tuple(slots))


def split_row(slot: str) -> tuple[str, int]:
    """``COUNTRY.2`` is key COUNTRY of the second row: ("COUNTRY", 2); without a suffix it is the first."""
    key, _, number = slot.partition(".")
    return key, int(number) if number else 1
