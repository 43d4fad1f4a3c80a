"""Turning one pair of prompts into tokens, and checking that the two line up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from circuitfind.errors import PromptError
from circuitfind.task.checks import END
from circuitfind.task.pairs import PromptPair, Tokenizer
from circuitfind.task.parts import Position, SlotPosition, TokenPosition
from circuitfind.task.templates import Filled, Span

WIDTH = 100
"""Columns that tokens side by side may take."""

Prompt = Filled | tuple[int, ...]
"""A prompt before tokenisation: text with its slots, or token ids."""

Encoded = list[tuple[int, int, int]]


@dataclass(frozen=True)
class RawPair:
    """A pair as it was written or drawn, before tokenisation."""

    clean: Prompt
    corrupted: Prompt
    answer: tuple[str | int, ...]
    wrong: tuple[str | int, ...]
    where: str
    group: str = ""
    named: Mapping[str, int] = field(default_factory=dict)


class PairProblem(Exception):
    """Why a pair cannot be used."""

    def __init__(self, reason: str, shown: Iterable[str] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.shown = tuple(shown)


@dataclass(frozen=True)
class Aligner:
    """Makes `PromptPair` out of `RawPair`.

    ``tokenizer`` is None for token ids only, which ``n_vocab`` then bounds. ``bos`` goes in front of every
    text unless None, and of token ids (which are taken to be complete) only with ``bos_before_ids``.
    """

    tokenizer: Tokenizer | None
    bos: int | None
    positions: Mapping[str, Position]
    answer_position: str | int
    n_vocab: int | None = None
    bos_before_ids: bool = False
    _answers: dict[str, int] = field(default_factory=dict)

    def align(self, raw: RawPair) -> PromptPair:
        """Tokenise and check one pair.

        Raises:
            PairProblem: the pair cannot be used; the reason is in the words of the task file.
        """
        clean, clean_spans = self._tokens(raw.clean)
        corrupted, corrupted_spans = self._tokens(raw.corrupted)
        if not clean or not corrupted:
            raise PairProblem(f"the {'corrupted' if clean else 'clean'} prompt is empty")
        for token in (*clean, *corrupted):
            self._check_id(token)
        if len(clean) != len(corrupted):
            reason = f"the clean prompt has {len(clean)} tokens, the corrupted one {len(corrupted)}"
            raise PairProblem(reason, self.side_by_side(clean, corrupted))
        moved = _moved(clean_spans, corrupted_spans)
        if moved is not None:
            slot, one, other = moved
            reason = (
                f"slot {slot} is token {_ends(one)} of the clean, but {_ends(other)} of the corrupted prompt"
            )
            raise PairProblem(reason, self.side_by_side(clean, corrupted))
        if clean == corrupted:
            raise PairProblem(
                "the clean and the corrupted prompt are the same", self.side_by_side(clean, corrupted)
            )
        answer = self._answer_tokens(raw.answer, "answer")
        wrong = self._answer_tokens(raw.wrong, "wrong answer")
        both = sorted(set(answer) & set(wrong))
        if both:
            words = ", ".join(self._show(token) for token in both[:5])
            raise PairProblem(f"{words} is both answer and wrong answer")
        positions = {END: len(clean) - 1, **raw.named}
        for name, position in self.positions.items():
            positions[name] = self._position(position, name, clean, clean_spans)
        at = self.answer_position
        if isinstance(at, str) and at not in positions:
            raise PairProblem(f"no position is named '{at}' (there are {', '.join(positions)})")
        read_at = positions[at] if isinstance(at, str) else self._index(at, "answer-position", len(clean))
        as_it_is = isinstance(raw.clean, tuple) and not self.bos_before_ids
        front = () if self.bos is None or as_it_is else (self.bos,)
        return PromptPair(
            clean=front + clean,
            corrupted=front + corrupted,
            answer=answer,
            wrong=wrong,
            answer_position=read_at + len(front),
            positions={name: place + len(front) for name, place in positions.items()},
            clean_text=self._text(raw.clean),
            corrupted_text=self._text(raw.corrupted),
            where=raw.where,
            group=raw.group,
        )

    def _tokens(self, prompt: Prompt) -> tuple[tuple[int, ...], list[tuple[str, int, int]]]:
        """Token ids, and (slot, first token, last token) of each slot."""
        if isinstance(prompt, tuple):
            return prompt, []
        encoded = self.encode(prompt.text)
        spans = [(span.slot, *tokens_of(encoded, span)) for span in prompt.spans if span.end > span.start]
        return tuple(token for token, _, _ in encoded), spans

    def encode(self, text: str) -> Encoded:
        """Tokens of a text with their offsets; a word that is not in the vocab is a problem of the pair."""
        if self.tokenizer is None:
            raise PairProblem(f"the prompt is text ('{text[:40]}'), but there is no tokenizer")
        try:
            return self.tokenizer.encode(text)
        except PromptError as error:
            raise PairProblem(f"{error.what}; {error.hint}") from None

    def _check_id(self, token: int) -> None:
        limit = self.tokenizer.n_vocab if self.tokenizer is not None else self.n_vocab
        if token < 0 or (limit is not None and token >= limit):
            known = "ids start at 0" if limit is None else f"ids go from 0 to {limit - 1}"
            raise PairProblem(f"token id {token} is not in the vocabulary ({known})")

    def _answer_tokens(self, answers: Sequence[str | int], role: str) -> tuple[int, ...]:
        if not answers:
            raise PairProblem(f"there is no {role}")
        found: dict[int, None] = {}
        for answer in answers:
            token = answer if isinstance(answer, int) else self._answer_token(answer, role)
            self._check_id(token)
            found[token] = None
        return tuple(found)

    def _answer_token(self, answer: str, role: str) -> int:
        if answer not in self._answers:
            encoded = self.encode(answer)
            if len(encoded) != 1:
                raise PairProblem(self._not_one(answer, encoded, role))
            self._answers[answer] = encoded[0][0]
        return self._answers[answer]

    def _not_one(self, answer: str, encoded: Encoded, role: str) -> str:
        pieces = ", ".join(self._show(token) for token, _, _ in encoded)
        what = f"{role} {_quote(answer)} is {len(encoded)} tokens: [{pieces}]"
        other = answer.lstrip() if answer != answer.lstrip() else " " + answer
        if other.strip() and len(self.encode(other)) == 1:
            what += f"; did you mean {_quote(other)}?"
        return what

    def _position(
        self, position: Position, name: str, tokens: tuple[int, ...], spans: list[tuple[str, int, int]]
    ) -> int:
        if isinstance(position, int):
            return self._index(position, f"position {name}", len(tokens))
        if isinstance(position, SlotPosition):
            ends = [last for slot, _, last in spans if slot == position.slot]
            if len(ends) < position.occurrence:
                raise PairProblem(
                    f"position {name}: slot {position.slot} stands in the prompt {len(ends)} times"
                )
            return ends[position.occurrence - 1]
        return self._find(position, name, tokens)

    def _find(self, position: TokenPosition, name: str, tokens: tuple[int, ...]) -> int:
        wanted = position.token
        token = wanted if isinstance(wanted, int) else self._answer_token(wanted, f"position {name}:")
        places = [place for place, other in enumerate(tokens) if other == token]
        if len(places) < position.occurrence:
            raise PairProblem(
                f"position {name}: {self._show(token)} stands in the prompt {len(places)} times"
            )
        return places[position.occurrence - 1]

    def _index(self, index: int, name: str, length: int) -> int:
        if not -length <= index < length:
            raise PairProblem(f"{name} is {index}, but the prompt has {length} tokens")
        return index % length

    def _show(self, token: int) -> str:
        if self.tokenizer is None or not 0 <= token < self.tokenizer.n_vocab:
            return str(token)
        return _quote(_plain(self.tokenizer.piece(token)))

    def _text(self, prompt: Prompt) -> str:
        if isinstance(prompt, Filled):
            return prompt.text
        if self.tokenizer is None:
            return " ".join(str(token) for token in prompt)
        return "".join(_plain(self.tokenizer.piece(token)) for token in prompt)

    def side_by_side(self, clean: Sequence[int], corrupted: Sequence[int]) -> list[str]:
        """Both prompts token below token, the first difference marked; wrapped at `WIDTH` columns."""
        rows = [[self._show(token) for token in tokens] for tokens in (clean, corrupted)]
        length = max(len(row) for row in rows)
        rows = [row + [""] * (length - len(row)) for row in rows]
        first = next((i for i in range(length) if rows[0][i] != rows[1][i]), None)
        lines: list[str] = []
        top, bottom, mark = "clean      ", "corrupted  ", -1
        for column in range(length):
            width = max(len(rows[0][column]), len(rows[1][column])) + 1
            if len(top) + width > WIDTH and top.strip():
                lines += _rows(top, bottom, mark)
                top, bottom, mark = " " * 11, " " * 11, -1
            mark = len(top) if column == first else mark
            top += rows[0][column].ljust(width)
            bottom += rows[1][column].ljust(width)
        return lines + _rows(top, bottom, mark)


def _rows(top: str, bottom: str, mark: int) -> list[str]:
    marked = [" " * mark + "^ first difference"] if mark >= 0 else []
    return [top.rstrip(), bottom.rstrip(), *marked]


def tokens_of(encoded: Encoded, span: Span) -> tuple[int, int]:
    """First and last token that overlap a stretch of characters; a PairProblem where none does."""
    inside = [i for i, (_, start, end) in enumerate(encoded) if start < span.end and end > span.start]
    if not inside:
        raise PairProblem(f"the value of slot {span.slot} is no token of its own")
    return inside[0], inside[-1]


def _moved(
    clean: list[tuple[str, int, int]], corrupted: list[tuple[str, int, int]]
) -> tuple[str, tuple[int, int], tuple[int, int]] | None:
    """The first slot that stands elsewhere in the corrupted prompt: its name, and its tokens in either.

    Slots are compared in order where both prompts have as many (a counterfactual may fill another slot into
    the same place); otherwise those are compared that both have in the same order.
    """
    if len(clean) == len(corrupted):
        couples = list(zip(clean, corrupted, strict=True))
    else:
        own, others = ([slot for slot, _, _ in spans] for spans in (clean, corrupted))
        blocks = SequenceMatcher(None, own, others, autojunk=False).get_matching_blocks()
        couples = [(clean[b.a + i], corrupted[b.b + i]) for b in blocks for i in range(b.size)]
    for one, other in couples:
        if one[1:] != other[1:]:
            return one[0], one[1:], other[1:]
    return None


def _ends(tokens: tuple[int, int]) -> str:
    return str(tokens[0]) if tokens[0] == tokens[1] else f"{tokens[0]}-{tokens[1]}"


def _plain(piece: str) -> str:
    """A piece as its tokenizer may store it, with blanks and line ends as they are in text."""
    return piece.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
