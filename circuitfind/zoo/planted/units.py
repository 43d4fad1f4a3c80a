"""MLP neurons written one by one, and the transcoder features that say what they do.

What a neuron reads is a *signal*: a direction along which a normalised stream holds either nothing or a known
amount. A neuron fires at *level* 1 or whatever is drawn for a signal that is on, and not at all for one that is off.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from circuitfind.names import Kind, unit
from circuitfind.zoo.planted import PlantedDictionary
from circuitfind.zoo.planted.parts import Weights, frame, gaussian

# How far below zero a neuron rests, as a share of level 1.
REST = 0.5
# The pre-activation of level 1: so large that other activations are ReLU there, and at rest.
SHARP = {"relu": 1.0, "gelu": 6.0, "gelu_new": 6.0, "silu": 14.0}
# Beside 1, the activations of features.
HEIGHTS = (0.8, 2.5)
# How far below zero a dead feature is, and how much one that is always on writes.
DEAD, ALWAYS = 60.0, 0.2


@dataclass(frozen=True)
class Signal:
    """``value`` is how much of ``direction`` [d_model] a normalised stream holds while the signal is on."""

    direction: Tensor
    value: float

    @property
    def reader(self) -> Tensor:
        """What reads 1 while it is on, [d_model]."""
        return self.direction / self.value


Drive = tuple[Signal, float]
"""A signal, and the level that it drives a neuron to."""
Wiring = Literal["plain", "gate", "up"]


@dataclass(frozen=True)
class _Feature:
    role: str
    drives: tuple[Drive, ...]
    write: Tensor
    neurons: str | None
    # Below this the feature is silent whatever it reads.
    dead: bool = False


class Bench:
    """The MLPs of a model under construction. ``steady`` [d_model] is a direction that every position holds alike."""

    def __init__(
        self, weights: Weights, rng: random.Random, generator: Generator, *, steady: Tensor, ballast: float
    ) -> None:
        self.weights, self.rng, self._generator = weights, rng, generator
        self._steady, self._ballast = steady, ballast
        shape = weights.shape
        self.sharp = SHARP[shape.act_fn]
        places = range(shape.d_mlp)
        self._free = [rng.sample(places, shape.d_mlp) for _ in range(shape.n_layers)]
        self._roles: dict[tuple[int, int], str] = {}
        self._features: list[list[_Feature]] = [[] for _ in range(shape.n_layers)]

    @property
    def roles(self) -> dict[str, str]:
        """Role by neuron, in the order of the model."""
        return {f"m{layer}.n{place}": role for (layer, place), role in sorted(self._roles.items())}

    def steady(self, inverse: float) -> Signal:
        """What is always on; ``inverse`` is what a stream is multiplied by there."""
        return Signal(self._steady, self._ballast * inverse)

    def neuron(
        self,
        layer: int,
        role: str,
        drives: Sequence[Drive],
        write: Tensor,
        inverse: float,
        *,
        rest: float = REST,
        sharp: float | None = None,
        step: bool = False,
    ) -> int:
        """Write a neuron that adds ``level * write`` to the stream; gives its place.

        Its level is ``relu(sum_i (level_i + rest) v_i - rest)``, where v_i is 1 while signal i is on. ``inverse`` is what
        the stream is multiplied by where the neuron works. In a gated MLP some neurons have their level from the gate and
        others, unless it is to be a step, from what the gate lets through.
        """
        place = self._free[layer].pop()
        sharp = sharp or self.sharp
        steady = self.steady(inverse).reader
        level = sharp * sum_of((level + rest) * signal.reader for signal, level in drives)
        wiring: Wiring = "plain"
        if self.weights.shape.gated:
            wiring = "gate" if step or self.rng.random() < 0.5 else "up"
        if wiring == "plain":
            self.weights.neuron(layer, place, level, write / sharp, bias=-rest * sharp)
        elif wiring == "gate":
            gate = level - rest * sharp * steady
            self.weights.neuron(layer, place, steady, write / sharp, gate=gate)
        else:
            through = sum_of(level * signal.reader for signal, level in drives)
            self.weights.neuron(layer, place, through, write / sharp, gate=sharp * steady)
        self._roles[layer, place] = role
        return place

    def group(
        self, layer: int, role: str, signals: Sequence[Signal], code: Tensor, writes: Tensor, inverse: float
    ) -> list[int]:
        """Neurons that carry several signals: ``code`` [neuron, signal] are their levels, ``writes`` [neuron, d_model]."""
        places = []
        for row, write in zip(code, writes, strict=True):
            drives = [(signal, float(level)) for signal, level in zip(signals, row, strict=True) if level]
            places.append(self.neuron(layer, role, drives, write, inverse))
        return places

    def feature(
        self, layer: int, role: str, drives: Sequence[Drive], write: Tensor, neurons: str | None = None
    ) -> None:
        """A feature that writes ``level * write``; ``neurons`` is the unit that it stands for."""
        self._features[layer].append(_Feature(role, tuple(drives), write, neurons))

    def dictionaries(
        self, unread: Tensor, inverses: Sequence[float], jump: bool
    ) -> tuple[tuple[PlantedDictionary, ...], dict[str, str], dict[str, str]]:
        """A transcoder for each layer, role by feature, and feature by unit.

        Each gets dead features too, and some that are always on, whose writing its bias takes back.
        """
        made: list[PlantedDictionary] = []
        roles: dict[str, str] = {}
        stands: dict[str, str] = {}
        for layer, inverse in enumerate(inverses):
            found = list(self._features[layer])
            always = [
                _Feature("always-on", ((self.steady(inverse), 1.0),), ALWAYS * row, None)
                for row in unread[: self.rng.randint(1, 2)]
            ]
            found += always
            for _ in range(self.rng.randint(3, 5)):
                direction, write = frame(2, len(self._steady), self._generator)
                found.append(_Feature("dead", ((Signal(direction, 1.0), 1.0),), write, None, dead=True))
            self.rng.shuffle(found)
            bias = self.weights.b_out(layer).double() - sum_of(feature.write for feature in always)
            made.append(self._dictionary(layer, found, bias, jump))
            for index, feature in enumerate(found):
                name = f"t{layer}.f{index}"
                roles[name] = feature.role
                if feature.neurons:
                    stands[feature.neurons] = name
        return tuple(made), roles, stands

    def _dictionary(
        self, layer: int, features: Sequence[_Feature], bias: Tensor, jump: bool
    ) -> PlantedDictionary:
        """ReLU features rest below zero as neurons do; JumpReLU ones are proportional to what they read."""
        enc, start, dec, threshold = [], [], [], []
        for feature in features:
            height = self.rng.uniform(*HEIGHTS)
            rest = 0.0 if jump else REST
            enc.append(height * sum_of((level + rest) * signal.reader for signal, level in feature.drives))
            start.append(-DEAD if feature.dead else -height * rest)
            dec.append(feature.write / height)
            lowest = min(level for _, level in feature.drives)
            threshold.append(0.0 if feature.dead else REST * height * lowest)
        return PlantedDictionary(
            layer,
            w_enc=torch.stack(enc, 1).float(),
            b_enc=torch.tensor(start),
            w_dec=torch.stack(dec).float(),
            b_dec=bias.float(),
            threshold=torch.tensor(threshold) if jump else None,
        )


def node(layer: int, places: Sequence[int]) -> str:
    """The name of neurons that are one unit: ``m1.n3`` or ``m1.n3+17``."""
    return str(unit(Kind.NEURON, "m", layer, places))


def superpose(n: int, n_topics: int, generator: Generator, rng: random.Random) -> tuple[Tensor, Tensor]:
    """A code of one main signal and more topics than there are neurons: levels and shares [n, 1 + n_topics].

    The main signal drives every neuron, a topic two. ``shares[:, s]`` is how much of output s each neuron writes for a level
    of 1: an equal share of the main output; of a topic's output so much that it comes out as 1 for its topic and as 0 for
    the main signal, and as little as these allow for other topics.
    """
    levels = torch.zeros(n, 1 + n_topics, dtype=torch.float64)
    levels[:, 0] = 0.8 + 0.5 * torch.rand(n, generator=generator, dtype=torch.float64)
    order = rng.sample(range(n), n)
    ring = [(order[i], order[(i + 1) % n]) for i in range(n)]
    others = [(i, j) for i in range(n) for j in range(i) if {i, j} not in [set(pair) for pair in ring]]
    for topic, members in enumerate([*ring, *rng.sample(others, n_topics - n)], start=1):
        drawn = torch.rand(2, generator=generator, dtype=torch.float64)
        levels[list(members), topic] = 0.7 + 0.5 * drawn
    shares = torch.zeros_like(levels)
    shares[:, 0] = 1 / (n * levels[:, 0])
    for topic in range(1, 1 + n_topics):
        rest = [s for s in range(1, 1 + n_topics) if s != topic]
        shares[:, topic] = _least(levels[:, rest], levels[:, [topic, 0]])
    return levels, shares


def _least(small: Tensor, fixed: Tensor) -> Tensor:
    """The x with ``x @ fixed = (1, 0)`` for which ``|x @ small|^2 + 0.1 |x|^2`` is least, by Lagrange's multipliers."""
    n, count = len(small), fixed.shape[1]
    system = torch.zeros(n + count, n + count, dtype=small.dtype)
    system[:n, :n] = small @ small.T + 0.1 * torch.eye(n, dtype=small.dtype)
    system[:n, n:] = fixed
    system[n:, :n] = fixed.T
    wanted = torch.zeros(n + count, dtype=small.dtype)
    wanted[n] = 1.0
    solution: Tensor = torch.linalg.solve(system, wanted)
    return solution[:n]


def unit_row(rows: Tensor, generator: Generator) -> Tensor:
    """A random direction in the span of orthonormal rows, [d_model]."""
    mix = gaussian((len(rows),), generator)
    row: Tensor = (mix / mix.norm()) @ rows
    return row


def sum_of(vectors: Iterable[Tensor]) -> Tensor:
    """The sum of one or more vectors."""
    return torch.stack(list(vectors)).sum(0)
