"""What a lookup in neurons is staged in: tokens, a stream, heads that carry a key to the end, and norms to reckon with.

A key stands anywhere between first and last and belongs to one of three classes; the answer at the end, where a query
stands, is a function of its class. *Topics* stand between fillers and are echoed where they stand.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from circuitfind.zoo.planted import PlantedPair
from circuitfind.zoo.planted.parts import (
    Residual,
    Shape,
    Weights,
    name_of,
    one_hot,
    scored,
    sharpness,
    sources,
)
from circuitfind.zoo.planted.units import Bench, Signal

BOS = 0
CLASSES = 3
KEYS_EACH = 3
Place = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """What the tokens mean; the query ends every prompt."""

    n_ctx: int
    keys: tuple[tuple[int, ...], ...]
    answers: tuple[int, ...]
    fillers: tuple[int, ...]
    query: int


@dataclass(frozen=True)
class Cast:
    """Who stands where. ``layers`` are those of the three units; ``rounding`` that of a saturated group's readers."""

    mover: Place
    tagger: Place
    stray: Place
    layers: tuple[int, ...]
    rounding: int | None


class Stage:
    """A model with its heads, before anything is written in its MLPs but noise."""

    def __init__(self, name: str, seed: int) -> None:
        self.rng, self.generator = sources(name, seed)
        rng = self.rng
        gated, saturated = name == "gated-lookup", name == "saturated-lookup"
        n_ctx = rng.randint(8, 12)
        self.n_group = rng.randint(5, 8)
        n_topics = self.n_group + rng.randint(1, 3)
        n_fillers, n_keys = rng.randint(4, 6), CLASSES * KEYS_EACH
        d_vocab = 1 + n_keys + CLASSES + 2 * n_topics + n_fillers + 1
        tokens = iter(rng.sample(range(1, d_vocab), d_vocab - 1))
        keys = tuple(tuple(next(tokens) for _ in range(KEYS_EACH)) for _ in range(CLASSES))
        answers = tuple(next(tokens) for _ in range(CLASSES))
        self.topics, self.echoes = ([next(tokens) for _ in range(n_topics)] for _ in range(2))
        fillers = tuple(next(tokens) for _ in range(n_fillers))
        self.layout = Layout(n_ctx, keys, answers, (*fillers, *self.topics), next(tokens))
        self.flat = [key for members in keys for key in members]
        norm = rng.choice((None, "LN", "RMS"))
        shape = Shape(
            n_layers=rng.randint(2, 3),
            n_heads=rng.randint(3, 4),
            d_head=n_keys + rng.randint(0, 6),
            d_model=d_vocab + n_ctx + n_keys + n_topics + 16 + rng.randint(0, 12),
            d_vocab=d_vocab,
            n_ctx=n_ctx,
            attn_only=False,
            d_mlp=rng.randint(48, 72),
            act_fn=rng.choice(
                ("silu", "gelu", "gelu_new") if gated else ("relu", "gelu", "gelu_new", "silu")
            ),
            normalization=norm,
            gated=gated,
        )
        self.cast = _draw_cast(rng, shape, saturated)
        self.strengths = [rng.uniform(0.9, 1.1) for _ in range(CLASSES)]
        self.gain = rng.uniform(5.0, 9.0)

        stream = Residual(shape.d_model, self.generator, centred=norm == "LN")
        self.token, self.position = stream.take(d_vocab), stream.take(n_ctx)
        self.report, self.tag = stream.take(CLASSES), stream.take(n_keys)
        self.out, self.note, self.echo = stream.take(CLASSES), stream.take(1)[0], stream.take(n_topics)
        self.unread, self.steady = stream.take(6), stream.take(1)[0]
        # So long that what heads and neurons write hardly changes what a norm divides by.
        self.ballast = 1.0 if norm is None else rng.uniform(3.5, 4.5)
        # What is added to the squared length of the stream at the end, by block and half of it.
        self._lengths: list[tuple[int, int, float]] = [(-1, 0, 2 + self.ballast**2)]
        self.weights = Weights(shape, self.generator)
        self.weights.embed(self.token, self.position + self.ballast * self.steady)
        for layer in range(shape.n_layers):
            self.weights.noise_mlp(layer)
        self.seen = rng.uniform(0.93, 0.96)
        self._heads()
        self.bench = Bench(self.weights, rng, self.generator, steady=self.steady, ballast=self.ballast)

    def _length(self, layer: int, half: int) -> float:
        """Squared length of the stream at the end that heads (half 0) or the MLP (half 1) of a layer read."""
        return sum(amount for at, part, amount in self._lengths if (at, part) < (layer, half))

    def inverse(self, layer: int, half: int = 1) -> float:
        """What a norm multiplies the stream at the end by, as far as it is written; an embedding alone for layer -1."""
        shape = self.weights.shape
        return sqrt(shape.d_model / self._length(layer, half)) if shape.normalization else 1.0

    def _head(self, place: Place, value: Tensor, out: Tensor) -> None:
        """Copies something of the key's token to the end; elsewhere it rests on the first position."""
        layer, _ = place
        n_ctx = self.layout.n_ctx
        sharp = sharpness(self.seen, n_ctx - 1) / self.inverse(layer, 0) / self.inverse(-1)
        end, before = one_hot(n_ctx - 1, self.position), one_hot(range(n_ctx - 1), self.position)
        rows = scored(
            (sharp, end, one_hot(self.flat, self.token)), (sharp, before, one_hot(0, self.position))
        )
        self.weights.head(place, *rows, value, out / self.inverse(-1))
        self._lengths.append((layer, 0, self.seen**2))

    def _heads(self) -> None:
        """The mover reports the class of the key, the tagger which key it is, and the stray the class to no one."""
        classes = torch.cat([one_hot(members, self.token) for members in self.layout.keys])
        self._head(self.cast.mover, classes, self.report)
        self._head(self.cast.tagger, self.token[self.flat], self.tag)
        self._head(self.cast.stray, classes, self.unread[:CLASSES])

    def wrote(self, layer: int, write: Tensor, share: float) -> None:
        """The stream at the end is longer from here on, in this share of prompts."""
        self._lengths.append((layer, 1, share * float(write @ write)))

    def signal(self, direction: Tensor, layer: int) -> Signal:
        """What a head reported, as an MLP reads it."""
        return Signal(direction, self.seen * self.inverse(layer))

    def reported(self, number: int, layer: int) -> Signal:
        """That the key belongs to a class."""
        return self.signal(self.report[number], layer)

    def roles(self) -> dict[str, str]:
        """Role by head, of those that were written."""
        cast = self.cast
        return {
            name_of(cast.mover): "key-mover",
            name_of(cast.tagger): "distractor-tag",
            name_of(cast.stray): "distractor-unread",
        }


def _draw_cast(rng: random.Random, shape: Shape, saturated: bool) -> Cast:
    """The mover comes before all units or in the layer of the first; the rounding neurons after the group."""
    last = shape.n_layers - 1
    group = rng.randint(0, last - 1 if saturated else last)
    layers = (rng.randint(0, last), rng.randint(0, last), group)
    heads = range(shape.n_heads)
    mover = (rng.randint(0, min(layers)), rng.choice(heads))
    cells = [(layer, head) for layer in range(shape.n_layers) for head in heads if (layer, head) != mover]
    tagger, stray = rng.sample(cells, 2)
    return Cast(mover, tagger, stray, layers, rng.randint(group + 1, last) if saturated else None)


def draw_pair(index: int, rng: random.Random, layout: Layout) -> PlantedPair:
    """Every two classes in turn, so that a mean favours none; the key stands anywhere between first and last."""
    right, wrong = divmod(index % (CLASSES * (CLASSES - 1)), CLASSES - 1)
    wrong += wrong >= right
    at = rng.randint(1, layout.n_ctx - 2)
    clean = [BOS, *(rng.choice(layout.fillers) for _ in range(layout.n_ctx - 2)), layout.query]
    corrupted = list(clean)
    clean[at], corrupted[at] = rng.choice(layout.keys[right]), rng.choice(layout.keys[wrong])
    return PlantedPair(
        clean=tuple(clean),
        corrupted=tuple(corrupted),
        answer=layout.answers[right],
        wrong=layout.answers[wrong],
        positions={"KEY": at, "END": layout.n_ctx - 1},
    )
