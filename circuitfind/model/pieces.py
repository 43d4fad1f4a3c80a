"""Pieces: what the large loops of a run are cut into, and who does them.

A piece is a pure function of its fields and of the runs that it is done on, so it can be done in another process, done
again, or kept: its key says what it is. How work is cut depends on the work alone, never on who does it, and what pieces
give is put in place or added up in their order. The results are therefore the same whoever does them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from circuitfind.model.runs import Runs

CPU_PIECE, GPU_PIECE = 5e10, 2e13
"""Floating-point operations that a piece has about, where a single pass has fewer: seconds at the most."""


@dataclass(frozen=True)
class Found:
    """What a piece gave.

    Attributes:
        arrays: By name.
        passes: Forward and backward passes that it took, and the ``work`` in them, as ``Model.passes`` counts them.
    """

    arrays: Mapping[str, np.ndarray]
    passes: Mapping[str, int] = field(default_factory=dict)


class Piece(Protocol):
    """A frozen dataclass of plain data and arrays."""

    @property
    def rows(self) -> int:
        """Patched rows in it, for whoever watches the progress; 0 where that is no measure of it."""
        ...

    @property
    def portable(self) -> bool:
        """Whether it can be done in another process."""
        ...

    def run(self, runs: Runs) -> Mapping[str, np.ndarray]:
        """Do it."""
        ...


class Hands(Protocol):
    """Do pieces: here, elsewhere, or not at all where their results are kept."""

    def do(self, runs: Runs, pieces: Iterable[Piece]) -> Iterator[tuple[int, Found]]:
        """What each piece gives, by its number, in whatever order they are finished.

        Pieces are taken from the iterable as there is somebody to do them. Passes that the model of ``runs`` has not
        counted itself are added to its ``passes``.
        """
        ...


class Own:
    """Does pieces in this process, one after another."""

    def do(self, runs: Runs, pieces: Iterable[Piece]) -> Iterator[tuple[int, Found]]:
        for number, piece in enumerate(pieces):
            yield number, done(runs, piece)


def done(runs: Runs, piece: Piece) -> Found:
    """Do a piece in this process; its model counts the passes."""
    counted = runs.model.passes
    before = dict(counted)
    arrays = piece.run(runs)
    return Found(arrays, {name: count - before.get(name, 0) for name, count in counted.items()})


def in_order(results: Iterator[tuple[int, Found]]) -> Iterator[Mapping[str, np.ndarray]]:
    """What pieces gave in their order, whatever order they come in; for what is added up."""
    waiting: dict[int, Mapping[str, np.ndarray]] = {}
    after = 0
    for number, found in results:
        waiting[number] = found.arrays
        while after in waiting:
            yield waiting.pop(after)
            after += 1


def key_of(piece: Piece) -> str:
    """A hash of what a piece is, the same in every process."""
    return digest(piece)


def digest(*values: Any) -> str:
    """SHA-256 of data classes, arrays, tuples, mappings, text and numbers by content.

    Raises:
        TypeError: A value is none of them.
    """
    found = hashlib.sha256()
    for value in values:
        _feed(found, value)
    return found.hexdigest()


def _feed(into: Any, value: Any) -> None:
    if value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
        text = value if isinstance(value, bytes) else repr(value).encode()
        into.update(b"%s:%d:" % (type(value).__name__.encode(), len(text)) + text)
    elif isinstance(value, np.ndarray):
        into.update(f"array:{value.dtype.str}:{value.shape}:".encode())
        # Masks are most of what is hashed.
        into.update(np.packbits(value).tobytes() if value.dtype == bool else np.ascontiguousarray(value).data)
    elif is_dataclass(value):
        own = [one.name for one in fields(value) if one.compare]
        into.update(f"{type(value).__module__}.{type(value).__qualname__}:{len(own)}:".encode())
        for name in own:
            _feed(into, getattr(value, name))
    elif isinstance(value, list | tuple):
        into.update(f"list:{len(value)}:".encode())
        for item in value:
            _feed(into, item)
    elif isinstance(value, Mapping):
        into.update(f"map:{len(value)}:".encode())
        for name in sorted(value):
            _feed(into, name)
            _feed(into, value[name])
    elif callable(value) and hasattr(value, "__qualname__"):
        _feed(into, f"{value.__module__}.{value.__qualname__}")
    else:
        raise TypeError(f"{type(value).__name__} has no digest")
