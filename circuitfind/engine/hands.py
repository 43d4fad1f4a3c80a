"""Hands that let an engine do the pieces of runs; what cannot be sent, or is not worth it, is done in this process.

Who does a piece changes none of its numbers, so what is worth sending is found out by trying: pieces are done here until
they have taken longer than it takes to have them done elsewhere.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from circuitfind.engine.base import Engine, PieceJob
from circuitfind.model.pieces import Found, Own, Piece, done

if TYPE_CHECKING:
    from circuitfind.model.runs import Runs

TO_START, TO_SEND = 2.0, 0.1
"""Seconds of work in one call that are done here before workers are begun, and before those that are there are given any."""


class EngineHands:
    """Hands of an engine.

    Args:
        engine: Does the pieces.
        device: Where models run, as the user named it.
        note: Hears which part is done in this process, and why.
        to_start: Seconds of work in one call that are done here before workers are begun.
        to_send: The same where workers are there.
    """

    def __init__(
        self,
        engine: Engine,
        device: str = "auto",
        note: Callable[[str], None] | None = None,
        *,
        to_start: float = TO_START,
        to_send: float = TO_SEND,
    ) -> None:
        self.engine, self.device = engine, device
        self.sent = 0
        """Pieces that were done elsewhere."""
        self._note = note or (lambda text: None)
        self._to_start, self._to_send = to_start, to_send
        self._own = Own()

    def do(self, runs: Runs, pieces: Iterable[Piece]) -> Iterator[tuple[int, Found]]:
        """See ``Hands.do``.

        Raises:
            CircuitfindError: What a piece raised, whole.
            MemoryError: Memory ran out in a worker.
        """
        from circuitfind.engine.recipe import why_not

        reason = why_not(runs)
        if reason is not None:
            self._note(f"done in this process, not by the {self.engine.name} engine: {reason}")
        if reason is not None or self.engine.busy:
            yield from self._own.do(runs, pieces)
            return
        waiting = enumerate(pieces)
        enough = self._to_send if self.sent else self._to_start
        start = time.monotonic()
        while time.monotonic() - start < enough:
            number, piece = next(waiting, (None, None))
            if number is None or piece is None:
                return
            yield number, done(runs, piece)
        some = [one for one in (next(waiting, None), next(waiting, None)) if one is not None]
        if len(some) == 1:  # nobody would do anything beside it
            yield some[0][0], done(runs, some[0][1])
        elif some:
            yield from self._sent(runs, deque(some), waiting)

    def _sent(
        self, runs: Runs, first: deque[tuple[int, Piece]], rest: Iterator[tuple[int, Piece]]
    ) -> Iterator[tuple[int, Found]]:
        """Pieces that can be sent are; those that cannot are done while the others are under way."""
        from circuitfind.engine.recipe import needs_of, recipe_of

        numbers: list[int] = []
        rows: list[int] = []
        here: deque[tuple[int, Found]] = deque()

        def jobs() -> Iterator[PieceJob]:
            while True:
                one = first.popleft() if first else next(rest, None)
                if one is None:
                    return
                number, piece = one
                if not piece.portable:
                    here.append((number, done(runs, piece)))
                    continue
                if runs.constants is None and getattr(piece, "ablation", None) == "optimal":
                    runs.ablated(0, "optimal")  # learned once, not by every worker
                recipe = recipe_of(runs, self.device)
                numbers.append(number)
                rows.append(piece.rows)
                yield PieceJob(recipe, piece, needs_of(runs, recipe))

        with closing(self.engine.map(jobs())) as results:
            for sent, found in results:
                self.sent += 1
                counted = runs.model.passes
                for name, count in found.passes.items():
                    counted[name] = counted.get(name, 0) + count
                if rows[sent]:
                    runs.progressed(rows[sent])
                yield numbers[sent], found
                while here:
                    yield here.popleft()
        yield from here
