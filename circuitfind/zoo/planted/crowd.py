"""Neurons around those that do the work: they fire, differ between prompts, write the answer, all to no effect."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from circuitfind.zoo.planted.lookup import CLASSES, Stage
from circuitfind.zoo.planted.units import Signal, unit_row


class Crowd:
    """The distractors of a model, by layer."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        rng, mover, tagger = stage.rng, stage.cast.mover[0], stage.cast.tagger[0]
        self._plan: list[tuple[int, Callable[[int], None]]] = []
        tags = rng.sample(range(len(stage.tag)), len(stage.tag))
        for start in range(0, len(tags), 2):
            self._put(tagger, partial(self._loud, tags[start : start + 2]))
        for number in range(CLASSES):
            self._put(mover, partial(self._even, number))
        for _ in range(CLASSES):
            self._put(0, self._silent)
        for _ in range(rng.randint(1, 2)):
            self._put(mover, self._opposed)
        for index in range(rng.randint(5, 8)):
            self._put(mover, partial(self._weak, index))

    def _put(self, first: int, write: Callable[[int], None]) -> None:
        """In this layer or a later one: where what it reads is there."""
        self._plan.append((self.stage.rng.randrange(first, self.stage.weights.shape.n_layers), write))

    def write(self, layer: int) -> None:
        """Those of one layer."""
        for at, write in self._plan:
            if at == layer:
                write(layer)

    def _loud(self, tags: list[int], layer: int) -> None:
        """Fires at some keys, more than any unit does, and writes where nobody reads."""
        stage = self.stage
        level = stage.rng.uniform(2.0, 4.0)
        write = stage.rng.uniform(0.7, 0.9) / level * unit_row(stage.unread, stage.generator)
        self._add(layer, "loud", [(stage.signal(stage.tag[tag], layer), level) for tag in tags], write)
        stage.wrote(layer, level * write, len(tags) / len(stage.tag))

    def _even(self, number: int, layer: int) -> None:
        """Fires at a class and raises all answers alike."""
        write = self.stage.rng.uniform(0.3, 0.4) * self.stage.out.sum(0)
        self._add(layer, "even", [(self.stage.reported(number, layer), 1.0)], write)
        self.stage.wrote(layer, write, 1 / CLASSES)

    def _silent(self, layer: int) -> None:
        """Would write one answer against another, but reads a token that no prompt holds."""
        stage = self.stage
        one, other = stage.rng.sample(range(CLASSES), 2)
        unseen = Signal(stage.token[stage.layout.answers[one]], stage.inverse(layer))
        self._add(layer, "silent", [(unseen, 3.0)], stage.out[one] - stage.out[other], step=True)

    def _opposed(self, layer: int) -> None:
        """Two neurons that undo each other, each of which does more than a member of the group."""
        rng, number = self.stage.rng, self.stage.rng.randrange(CLASSES)
        amount = rng.uniform(1.5, 2.0) / self.stage.n_group
        for sign in (1, -1):
            level = rng.uniform(0.7, 1.4)
            write = sign * amount / level * self.stage.out[number]
            self._add(layer, "opposed", [(self.stage.reported(number, layer), level)], write)

    def _weak(self, index: int, layer: int) -> None:
        """Writes a little of some answer, or against it in turn; every other one is part of what the dictionary misses."""
        stage, rng = self.stage, self.stage.rng
        drive = (stage.reported(rng.randrange(CLASSES), layer), rng.uniform(0.5, 1.5))
        write = (-1) ** (index // 2) * rng.uniform(0.01, 0.03) * stage.out[rng.randrange(CLASSES)]
        if index % 2 == 0:
            self._add(layer, "weak", [drive], write)
        else:
            stage.bench.neuron(layer, "weak", [drive], write, stage.inverse(layer))

    def _add(
        self, layer: int, role: str, drives: list[tuple[Signal, float]], write: Tensor, *, step: bool = False
    ) -> None:
        """A neuron, and a feature that does the same."""
        self.stage.bench.neuron(layer, role, drives, write, self.stage.inverse(layer), step=step)
        self.stage.bench.feature(layer, role, drives, write)
