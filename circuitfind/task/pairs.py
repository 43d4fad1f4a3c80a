"""Prompt pairs as token ids, and what a tokenizer must be able to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, overload, runtime_checkable

import numpy as np
import numpy.typing as npt

from circuitfind.errors import PromptError, did_you_mean
from circuitfind.shown import Shown


@runtime_checkable
class Tokenizer(Protocol):
    """What prompts need of a tokenizer.

    An optional attribute ``bos_id`` is the beginning-of-text token of a tokenizer that does not prepend it by
    itself; a task that says ``prepend-bos: true`` uses it.
    """

    n_vocab: int

    def encode(self, text: str) -> list[tuple[int, int, int]]:
        """(token id, start, end) of each token, in characters of ``text``; no special tokens added."""
        ...

    def piece(self, token: int) -> str:
        """The text of one token, with its leading blank."""
        ...

    @property
    def bos(self) -> int | None:
        """The token that the model's own tokenizer puts in front of every text, if it does."""
        ...


class VocabTokenizer:
    """The tokenizer of a ``vocab`` list: words with blanks between, word i is token i."""

    bos: int | None = None

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._ids = {word: number for number, word in enumerate(self._words)}
        self.n_vocab = len(self._words)

    def encode(self, text: str) -> list[tuple[int, int, int]]:
        """See `Tokenizer.encode`. Raises PromptError for a word that is not in the list."""
        found = []
        at = 0
        for word in text.split():
            if word not in self._ids:
                raise PromptError(f"'{word}' is no word of the vocab", hint=did_you_mean(word, self._words))
            at = text.index(word, at)
            found.append((self._ids[word], at, at + len(word)))
            at += len(word)
        return found

    def piece(self, token: int) -> str:
        """The word of a token."""
        return self._words[token]


@dataclass(frozen=True)
class PromptPair(Shown):
    """A clean and a corrupted prompt of the same length, as token ids.

    ``answer`` and ``wrong`` are disjoint sets of tokens; ``positions`` are indices into both prompts.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: tuple[int, ...]
    wrong: tuple[int, ...]
    answer_position: int
    positions: Mapping[str, int]
    clean_text: str
    corrupted_text: str
    where: str
    group: str


@dataclass(frozen=True)
class Dropped:
    """A pair that cannot be used: where it stands, why, and its tokens side by side."""

    where: str
    reason: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class PromptPairs(Shown):
    """The pairs of a task for one tokenizer and one counterfactual.

    ``dropped`` are pairs that do not line up. ``left_out`` are slot values that the tokenizer splits, by
    slot; ``C+YY`` are combinations of slots that touch (those met while drawing). ``passed`` counts rows of a
    data set that the task does not take, by reason. ``asked`` is how many were wanted.
    """

    pairs: tuple[PromptPair, ...]
    counterfactual: str
    dropped: tuple[Dropped, ...] = ()
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    asked: int | None = None
    passed: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PromptPair]:
        return iter(self.pairs)

    @overload
    def __getitem__(self, index: int) -> PromptPair: ...
    @overload
    def __getitem__(self, index: slice) -> PromptPairs: ...
    def __getitem__(self, index: int | slice) -> PromptPair | PromptPairs:
        return replace(self, pairs=self.pairs[index]) if isinstance(index, slice) else self.pairs[index]

    def subset(self, indices: Iterable[int]) -> PromptPairs:
        """The pairs at ``indices``, in that order; a bootstrap may repeat one."""
        return replace(self, pairs=tuple(self.pairs[index] for index in indices))

    def content_hash(self) -> str:
        """SHA-256 (hex) of what the model gets to see: tokens, answers, positions; in order."""
        content = [
            [p.clean, p.corrupted, p.answer, p.wrong, p.answer_position, sorted(p.positions.items())]
            for p in self
        ]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know: fewer pairs than asked for, words left out, pairs dropped."""
        notes = []
        made = len(self.pairs) + len(self.dropped)
        if self.asked is not None and made < self.asked:
            notes.append(f"{self.asked} pairs asked for, only {made} different ones found")
        for slot, values in self.left_out.items():
            words = ", ".join(values[:5]) + (", ..." if len(values) > 5 else "")
            notes.append(f"{len(values)} values of {slot} left out, not one token here: {words}")
        notes += [f"{number} rows left out: {reason}" for reason, number in self.passed.items()]
        if self.dropped:
            notes.append(
                f"{len(self.dropped)} of {made} pairs dropped: {self.dropped[0].reason} (and the like)"
            )
        return tuple(notes)


class Padded(NamedTuple):
    """Sequences in one array, padded on the right, so that a position is the same number in it as in the prompt."""

    ids: npt.NDArray[np.int64]
    """[n, longest] token ids; ``fill`` where ``mask`` is False."""
    mask: npt.NDArray[np.bool_]
    """[n, longest] True where a token stands. Made here: the padding token may be a word of the text elsewhere."""


def pad(sequences: Sequence[Sequence[int]], fill: int = 0) -> Padded:
    """Pad sequences of token ids on the right to the length of the longest.

    On the right, because there position embeddings need no shift: on the left a model that is not told of the padding
    answers wrongly without a word.

    Raises:
        ValueError: no sequences, or an empty one.
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    if not lengths.size or not lengths.all():
        raise ValueError("nothing to pad: no sequences, or an empty one")
    mask = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    ids = np.full(mask.shape, fill, dtype=np.int64)
    ids[mask] = [token for sequence in sequences for token in sequence]
    return Padded(ids, mask)
