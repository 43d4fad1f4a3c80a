"""Hands that keep what pieces give in the journal of the stage that runs, and take from it what an interrupted run left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from circuitfind.model.pieces import Found, Hands, Own, Piece, digest
from circuitfind.output.journal import Journal, Record

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model
    from circuitfind.model.memory import MemoryPlan
    from circuitfind.model.runs import Runs
    from circuitfind.model.writes import Writes
    from circuitfind.task.pairs import PromptPairs

SPARE = 0.85
"""Sizes are used again where at least this share of the memory is planned for that they were made for."""
_SIZES = ("prompt_tokens", "batch_tokens", "pass_tokens", "edge_tokens")


@dataclass
class _Counter:
    """The passes of one model: as they were when the stage began, and how far kept pieces say that it had come."""

    passes: dict[str, int]
    before: dict[str, int]
    reached: dict[str, int] = field(default_factory=dict)
    replaying: bool = True
    """Whether nothing was done here yet, so that what was counted is what the interrupted run had counted too."""

    def since(self) -> dict[str, int]:
        return {name: count - self.before.get(name, 0) for name, count in self.passes.items()}

    def take(self, passes: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Count a kept piece: passes that led up to it and had to be run again here are not counted twice."""
        if not self.replaying:
            for name, count in passes.items():
                self.passes[name] = self.passes.get(name, 0) + count
            return
        for name, count in after.items():
            self.reached[name] = max(count, self.reached.get(name, 0))
            self.passes[name] = self.before.get(name, 0) + self.reached[name]


class Keeping:
    """Hands around others.

    What a piece gives is kept under what decides it: the piece, and the model, pairs, metric, device and constants of
    its runs. Sizes of batches are not among these: a piece says of which prompts it is.
    """

    def __init__(self, inner: Hands | None = None) -> None:
        self.inner: Hands = inner or Own()
        self.journal: Journal | None = None
        self.plans: Journal | None = None
        """Sizes of batches that the run began with, until it is finished."""
        self.resumed = 0
        """Pieces that came from the journal in the stage that runs."""
        self._counters: dict[int, _Counter] = {}
        self._known: WeakKeyDictionary[Runs, tuple[object, str, str]] = WeakKeyDictionary()

    @contextmanager
    def stage(self, journal: Journal, counted: Iterable[dict[str, int]] = ()) -> Iterator[Journal]:
        """Keep what is done inside the block; when it is left by an error or an interruption, for the next run too.

        Args:
            journal: Of the stage.
            counted: Counters of the models that were there before.
        """
        self.journal, self.resumed = journal, 0
        self._counters = {id(one): _Counter(one, dict(one)) for one in counted}
        try:
            yield journal
        except BaseException:
            journal.close()
            raise
        finally:
            self.journal = None
            self._counters = {}
            journal.close(sync=False)

    def do(self, runs: Runs, pieces: Iterable[Piece]) -> Iterator[tuple[int, Found]]:
        """What each piece gives, by its number: kept ones first, as far as they lead."""
        journal = self.journal
        if journal is None:
            yield from self.inner.do(runs, pieces)
            return
        counter = self._counters.setdefault(id(runs.model.passes), _Counter(runs.model.passes, {}))
        where, waiting = self._where(runs), enumerate(pieces)
        ready: list[tuple[int, Found]] = []
        new: list[tuple[int, str]] = []

        def rest(number: int, piece: Piece, key: str) -> Iterator[Piece]:
            new.append((number, key))
            yield piece
            for number, piece in waiting:
                key = digest(where, piece)
                kept = journal.take(key)
                if kept is None:
                    new.append((number, key))
                    yield piece
                else:
                    ready.append((number, self._taken(runs, piece, kept, counter)))

        for number, piece in waiting:
            key = digest(where, piece)
            kept = journal.take(key)
            if kept is not None:
                yield number, self._taken(runs, piece, kept, counter)
                continue
            counter.replaying = False
            for done, found in self.inner.do(runs, rest(number, piece, key)):
                at, its_key = new[done]
                told = {"passes": _plain(found.passes), "after": _plain(counter.since())}
                journal.put(its_key, Record(told, found.arrays))
                yield at, found
                while ready:
                    yield ready.pop()
        yield from ready

    def planned(self, model: Model, pairs: PromptPairs, plan: MemoryPlan) -> tuple[MemoryPlan, bool]:
        """A plan for what is free now, in the sizes that the run began with, so that it rounds as it did.

        Also whether the two differ because too little is free for these sizes now: those of now are then kept.
        """
        if self.plans is None:
            return plan, False
        key = digest(model.fingerprint, model.anatomy, pairs.content_hash(), plan.edge_tokens > 0)
        kept = self.plans.take(key)
        if kept is None:
            sizes = {name: getattr(plan, name) for name in _SIZES}
            self.plans.put(key, Record({"budget": plan.budget, **sizes}))
            self.plans.close(sync=False)
            return plan, False
        told = kept.told
        old = replace(
            plan,
            prompt_tokens=told["prompt_tokens"],
            batch_tokens=told["batch_tokens"],
            pass_tokens=told["pass_tokens"],
            edge_tokens=told["edge_tokens"],
        )
        if old == plan:
            return plan, False
        if told["budget"] * SPARE > plan.budget:
            return plan, True
        return old, False

    def _taken(self, runs: Runs, piece: Piece, kept: Record, counter: _Counter) -> Found:
        passes = {name: int(count) for name, count in kept.told["passes"].items()}
        counter.take(passes, kept.told["after"])
        self.resumed += 1
        if piece.rows:
            runs.progressed(piece.rows)
        return Found(kept.arrays, passes)

    def _where(self, runs: Runs) -> str:
        """A hash of what a piece is done on."""
        model, pairs = runs.model, runs.pairs
        known = self._known.get(runs)
        if known is not None and known[0] is runs.constants and known[1] == model.precision:
            return known[2]
        other: Any = getattr(runs, "model_b", None)
        found = digest(
            type(runs).__qualname__,
            model.fingerprint,
            model.anatomy,
            model.precision,
            str(model.device),
            str(model.dtype),
            pairs.content_hash(),
            [pair.group for pair in pairs],
            runs.metric.name,
            runs.mean_over,
            None if runs.constants is None else _constants(runs.constants),
            None if other is None else (other.fingerprint, bool(getattr(runs, "own", False))),
        )
        self._known[runs] = (runs.constants, model.precision, found)
        return found


def _plain(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: int(count) for name, count in counts.items()}


def _constants(writes: Writes) -> list[Any]:
    """The numbers of learned constants."""
    tensors = [writes.input, *writes.z, *(writes.mlp or [])]
    return [tensor.detach().float().cpu().numpy() for tensor in tensors]
