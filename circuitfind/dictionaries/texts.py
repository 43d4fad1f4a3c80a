"""Texts that activations are taken from: token sequences, by portions that can be asked for again in any order."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from circuitfind import reading
from circuitfind.errors import ModelError, UsageError
from circuitfind.reading import Unreadable, parse_json

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model
    from circuitfind.task.pairs import Tokenizer

Tokens = Sequence[int]


class Texts(Protocol):
    """An endless stream of token sequences, cut into portions. A training that goes on asks for the portion it was in."""

    @property
    def key(self) -> str:
        """Names the content: equal for equal texts."""

    def portion(self, number: int, tokens: int, seed: int) -> list[Tokens]:
        """Sequences of about so many tokens; of the same arguments always the same."""


@dataclass(frozen=True)
class Sequences:
    """A list of token sequences, gone through again and again, each time in another order."""

    items: Sequence[Tokens]
    key: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.n_tokens:
            raise UsageError("there is no text", hint="give texts with at least one token")
        if not self.key:
            digest = hashlib.sha256()
            for item in self.items:
                digest.update(np.asarray(item, dtype=np.int64).tobytes() + b"|")
            object.__setattr__(self, "key", digest.hexdigest())

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.items))

    def portion(self, number: int, tokens: int, seed: int) -> list[Tokens]:
        """Sequences ``number * m`` and on, where m of them have about so many tokens; no more than all."""
        count = len(self.items)
        m = min(count, max(1, round(tokens * count / self.n_tokens)))
        found: list[Tokens] = []
        for at in range(number * m, (number + 1) * m):
            turn, place = divmod(at, count)
            if place == 0 or not found:
                order = np.random.default_rng([seed, turn]).permutation(count)
            found.append(self.items[int(order[place])])
        return found


@dataclass(frozen=True)
class MiniDocuments:
    """The documents that mini was trained on, without end; half of them open with the token that ends a text."""

    tokenizer: Tokenizer
    end: int
    stream: str = "transcoders"

    @property
    def key(self) -> str:
        return f"mini/{self.stream}"

    def _rows(self, rng: random.Random) -> Iterator[Tokens]:
        from circuitfind.zoo.mini import corpus

        for document in corpus.documents(rng):
            ids = [token for token, _, _ in self.tokenizer.encode(document.text)]
            yield [*([self.end] if rng.random() < 0.5 else []), *ids, self.end]

    def portion(self, number: int, tokens: int, seed: int) -> list[Tokens]:
        """Documents of at least so many tokens."""
        found: list[Tokens] = []
        total = 0
        for row in self._rows(random.Random(f"{self.key}/{seed}/{number}")):
            found.append(row)
            total += len(row)
            if total >= tokens:
                break
        return found


def mini_documents(model: Model, stream: str = "transcoders") -> MiniDocuments:
    """The stream of the corpus, for a model with mini's tokenizer."""
    end = getattr(model.tokenizer, "bos_id", None)
    if model.tokenizer is None or end is None:
        raise ModelError(f"{model.name} has no tokenizer", hint="give a model with a tokenizer")
    return MiniDocuments(model.tokenizer, int(end), stream)


def read_text(path: Path) -> list[str]:
    """The texts of a file: separated by empty lines, or in a ``.jsonl`` file the ``text`` of each line.

    Raises:
        UsageError: It cannot be read, or holds no text.
    """
    try:
        content = reading.read_text(path)
    except (OSError, Unreadable) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"the text cannot be read: {reason}", where=str(path), hint="give a file of plain text"
        ) from error
    found = list(_jsonl(path, content)) if path.suffix == ".jsonl" else _paragraphs(content)
    if not found:
        raise UsageError("the file holds no text", where=str(path), hint="give a file with some text in it")
    return found


def _paragraphs(content: str) -> list[str]:
    groups = itertools.groupby(content.splitlines(), key=lambda line: bool(line.strip()))
    return ["\n".join(lines) for filled, lines in groups if filled]


def _jsonl(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            data = parse_json(line)
        except Unreadable:
            data = None
        text = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str):
            raise UsageError(
                "the line is no JSON object with a text",
                where=f"{path}:{number}",
                hint='write {"text": "..."}',
            )
        if text.strip():
            yield text


def tokenize(model: Model, texts: Iterable[str]) -> list[Tokens]:
    """Texts as windows of at most the model's context, each opened by the token that the tokenizer opens a text with.

    Raises:
        ModelError: The model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ModelError(
            f"{model.name} has no tokenizer, so it reads no text",
            hint="give a task whose prompts are written in its vocabulary (--task)",
        )
    bos = model.tokenizer.bos
    opening = [] if bos is None else [bos]
    room = max(1, model.n_ctx - len(opening))
    found: list[Tokens] = []
    for text in texts:
        ids = [token for token, _, _ in model.tokenizer.encode(text)]
        found += [[*opening, *ids[at : at + room]] for at in range(0, len(ids), room)]
    return found
