"""A small tokenizer that behaves like GPT-2's, and a way to write task files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

Encoded = list[tuple[int, int, int]]


class FakeTokenizer:
    """Words with their leading blank are tokens; those in ``split`` fall in two, in ``merge`` are one."""

    n_vocab = 5000

    def __init__(
        self, split: tuple[str, ...] = (), merge: tuple[str, ...] = (), bos: int | None = None
    ) -> None:
        self.bos = bos
        self._split = split
        self._merge = merge
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> Encoded:
        """Digits come in pairs, punctuation alone, everything else by words."""
        found = []
        merged = "".join(re.escape(word) + "|" for word in self._merge)
        for match in re.finditer(rf"{merged} ?[A-Za-z_]+| ?\d\d?|\S|\s", text):
            piece, start = match[0], match.start()
            if piece in self._split:
                middle = len(piece) // 2 + 1
                found += [self._token(piece[:middle], start), self._token(piece[middle:], start + middle)]
            else:
                found.append(self._token(piece, start))
        return found

    def _token(self, piece: str, start: int) -> tuple[int, int, int]:
        return self._ids.setdefault(piece, len(self._ids) + 100), start, start + len(piece)

    def piece(self, token: int) -> str:
        """The text of a token."""
        return {number: piece for piece, number in self._ids.items()}.get(token, f"<{token}>")


@pytest.fixture
def fake() -> type[FakeTokenizer]:
    """The class, so that each test says what its tokenizer splits."""
    return FakeTokenizer


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file into a folder of its own and gives its path."""

    def write_file(text: str, name: str = "task.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def rows_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that $CIRCUITFIND_ROWS names; the hub is off."""
    monkeypatch.setenv("CIRCUITFIND_ROWS", str(tmp_path / "rows"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows").mkdir()
    return tmp_path / "rows"
