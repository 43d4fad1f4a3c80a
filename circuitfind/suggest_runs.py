"""Replacements for a word of a prompt, with what a model makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from circuitfind.errors import UsageError
from circuitfind.prompt_runs import cannot_run
from circuitfind.suggestions import Prompt, Suggested, Suggestion
from circuitfind.task.suggest import (
    Candidate,
    Spot,
    alike,
    first_token,
    fitting,
    words_of_file,
    words_of_lists,
    words_of_text,
)

if TYPE_CHECKING:
    from torch import Tensor

    from circuitfind.model.bridge import Model
    from circuitfind.task.pairs import Tokenizer

SOURCES = ("text", "task", "lists", "model")
ENOUGH = 5
"""Fewer words than this, and the model is asked for more where nobody said from where they should come."""
ASKED = 400
"""Likeliest tokens of the model that are looked at,"""
BEAMS = 60
"""and likeliest beginnings of words that are several tokens."""


@dataclass
class Suggester:
    """Finds replacements for one model.

    Attributes:
        name: The model.
        run: Whether it is run; None where there is one.
        sources: Where words come from; empty for all that need no model, and the model where they are few.
        words: A file of words.
        device: Where the model runs.
    """

    name: str
    run: bool | None = None
    sources: Sequence[str] = ()
    words: Path | None = None
    device: str = "auto"
    why_not: str | None = field(default=None, init=False)
    _model: Model | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.why_not = None if self.run is False else cannot_run(self.name)
        if self.why_not is not None and self.run:
            raise UsageError(
                f"the model cannot be run: {self.why_not}", hint="give another --model, or --no-run"
            )
        self.tokenizer = self._load()
        if "model" in self.sources and self._model is None:
            raise UsageError(
                "words from the model need the model", hint="leave out --no-run, or take them --from lists"
            )

    @property
    def ran(self) -> bool:
        """Whether the model is loaded."""
        return self._model is not None

    def _load(self) -> Tokenizer:
        from circuitfind.model.load import load_model, load_tokenizer

        tokenizer: Tokenizer | None
        if self.run is False or self.why_not is not None:
            tokenizer = load_tokenizer(self.name)
        else:
            self._model = load_model(self.name, device=self.device)
            tokenizer = self._model.tokenizer
        if tokenizer is None:
            raise UsageError(
                f"{self.name} reads token ids, not words", hint="give a --model with a tokenizer"
            )
        return tokenizer

    def suggest(self, prompt: Prompt) -> Suggested:
        """Words for a prompt, the best first: those that turn the answer round, then those that are as likely there."""
        spot = prompt.spot
        found, refused = fitting(spot, self._words(prompt), self.tokenizer)
        if len(found) < ENOUGH and not self.sources and self._model is not None:
            found, refused = fitting(spot, [*self._words(prompt), *self._likely(spot)], self.tokenizer)
        encoded = self.tokenizer.encode(spot.text)
        at = first_token(spot, self.tokenizer)
        size = sum(any(a < end and b > start for start, end in spot.places[:1]) for _, a, b in encoded)
        old = Candidate(
            spot.word,
            "",
            spot.text,
            tuple(t for t, _, _ in encoded),
            tuple(t for t, _, _ in encoded[at : at + size]),
        )
        if self._model is None:
            plain = [Suggestion(one, wrong=prompt.wrong) for one in found]
            return Suggested(prompt, size, None, prompt.answer, tuple(plain), refused)
        chances = self._chances([old, *found], at)
        told, answer = self._tried(prompt, old, found, chances[1:])
        base = chances[0]
        return Suggested(
            prompt, size, base, answer, tuple(sorted(told, key=lambda one: _rank(one, base))), refused
        )

    def _words(self, prompt: Prompt) -> Iterator[tuple[str, str]]:
        asked = self.sources or ("text", "task", "lists")
        if "text" in asked:
            yield from words_of_text(prompt.spot)
        if self.words is not None:
            yield from words_of_file(self.words)
        if "task" in asked:
            yield from ((word, "the slot") for word in prompt.values)
        if "lists" in asked:
            yield from words_of_lists(prompt.spot)
        if "model" in self.sources:
            yield from self._likely(prompt.spot)

    # What the model makes of them.

    def _front(self) -> tuple[int, ...]:
        return () if self.tokenizer.bos is None else (self.tokenizer.bos,)

    def _logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        from circuitfind.model.next_token import next_logits

        assert self._model is not None
        return next_logits(self._model, [(*self._front(), *prompt) for prompt in prompts])

    def _likely(self, spot: Spot) -> Iterator[tuple[str, str]]:
        """Words of as many tokens that the model finds likely there, written as the word is; by a search in beams."""
        at = first_token(spot, self.tokenizer)
        encoded = [token for token, _, _ in self.tokenizer.encode(spot.text)]
        before = encoded[:at]
        if not before and not self._front():
            return
        start, end = spot.places[0]
        size = sum(a < end and b > start for _, a, b in self.tokenizer.encode(spot.text))
        blank, test = start > 0 and spot.text[start - 1] == " ", alike(spot.word)
        beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        for step in range(size):
            rows = self._logits([(*before, *tokens) for _, tokens in beams]).log_softmax(-1)
            many = ASKED if size == 1 else BEAMS
            longer: list[tuple[float, tuple[int, ...]]] = []
            for (chance, tokens), row in zip(beams, rows, strict=True):
                top = row.topk(min(many, len(row)))
                for value, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                    text = plain_piece(self.tokenizer, token)
                    # A blank opens a word, and none stands inside.
                    if text.startswith(" ") == (blank and not step) and text.strip():
                        longer.append((chance + value, (*tokens, token)))
            beams = sorted(longer, reverse=True)[:many]
        for _, tokens in beams:
            word = "".join(plain_piece(self.tokenizer, token) for token in tokens).strip()
            if test(word):
                yield word, "the model"

    def _chances(self, candidates: Sequence[Candidate], at: int) -> list[float | None]:
        """Log-probability of each word in its first place."""
        if at == 0 and not self._front():
            return [None] * len(candidates)
        prefixes = [(one.tokens[: at + i], one.own[i]) for one in candidates for i in range(len(one.own))]
        distinct = list(dict.fromkeys(prefix for prefix, _ in prefixes))
        places = {prefix: i for i, prefix in enumerate(distinct)}
        logprobs = self._logits(distinct).log_softmax(-1)
        each = iter([float(logprobs[places[prefix], token]) for prefix, token in prefixes])
        return [sum(next(each) for _ in one.own) for one in candidates]

    def _tried(
        self, prompt: Prompt, old: Candidate, found: Sequence[Candidate], chances: Sequence[float | None]
    ) -> tuple[list[Suggestion], str]:
        logits = self._logits([old.tokens, *(one.tokens for one in found)])
        best = int(logits[0].argmax())
        right = best if prompt.answer is None else self._token(prompt.answer, "answer")
        told = []
        for one, chance, row in zip(found, chances, logits[1:], strict=True):
            says = int(row.argmax())
            other = says if prompt.wrong is None else self._token(prompt.wrong, "wrong answer")
            if other == right:  # it says the same: hold the next best against it
                other = next(int(i) for i in row.topk(2).indices if int(i) != right)
            told.append(
                Suggestion(
                    one,
                    chance,
                    plain_piece(self.tokenizer, says),
                    plain_piece(self.tokenizer, other),
                    float(logits[0, right] - logits[0, other]),
                    float(row[right] - row[other]),
                )
            )
        return told, plain_piece(self.tokenizer, right)

    def _token(self, text: str, role: str) -> int:
        encoded = self.tokenizer.encode(text)
        if len(encoded) != 1:
            other = text.lstrip() if text != text.lstrip() else f" {text}"
            near = (
                f"did you mean '{other}'?" if len(self.tokenizer.encode(other)) == 1 else "give a shorter one"
            )
            raise UsageError(f"the {role} '{text}' is {len(encoded)} tokens", hint=near)
        return encoded[0][0]


def plain_piece(tokenizer: Tokenizer, token: int) -> str:
    """A token as text, with blanks and line ends as they are."""
    return tokenizer.piece(token).replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")


def _rank(one: Suggestion, base: float | None) -> tuple[bool, bool, float]:
    gap = 0.0 if one.log_prob is None or base is None else abs(one.log_prob - base)
    return (not one.turns, one.candidate.source != "the prompt", gap)
