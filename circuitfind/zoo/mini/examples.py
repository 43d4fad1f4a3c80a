"""What the corpus is made of: prompts with their answers, training documents, and the held-out split."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Example:
    """A prompt, its answer, and the words that would be wrong in the answer's place.

    For greater-than, `answer` is one right year and `wrong` all years that are not above.
    """

    prompt: str
    answer: str
    wrong: tuple[str, ...]
    behaviour: str
    template: int
    key: str = ""  # the text whose hash decides the split; the prompt if empty
    tail: str = "."  # what a training document adds after the answer
    extra: tuple[int, ...] = ()  # where further predictable words start in the document

    @property
    def held_out(self) -> bool:
        """Whether this prompt is kept from training."""
        return is_held_out(self.key or self.prompt)

    def document(self) -> Document:
        """The training text made from this example."""
        text = self.prompt + self.answer + self.tail
        return Document(text, (len(self.prompt), *self.extra), self.behaviour, self.key or self.prompt)


@dataclass(frozen=True)
class Document:
    """A training text and the offsets at which its predictable words start."""

    text: str
    answers: tuple[int, ...]
    behaviour: str
    key: str


def is_held_out(key: str) -> bool:
    """The split: CRC-32 of the key's UTF-8 bytes, one value in ten is held out."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0
