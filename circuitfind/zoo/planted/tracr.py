"""Two programs in the manner of Tracr (Lindner et al. 2023, arXiv 2301.05062), written out by hand.

Every coordinate of the residual stream has one meaning, no weight is noise, attention is bidirectional and scores are
100 where a position is selected, 50 for the first one, which is looked at where nothing is selected, and 0 elsewhere.
There are no biases: thresholds are multiples of a coordinate that is 1 in every embedding. So what an edge does not
carry is exactly 0, and which edges are true can be settled by ablating each alone.

The programs are those that Conmy et al. 2023 (arXiv 2304.14997) compile, in as many layers, with one head each:
``reverse`` (a sequence read backwards) and ``xproportion`` (the share of x among the tokens so far). Which edges are true
hangs on what takes their place: a corrupted prompt of the same length has the same length to compute.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import count
from math import sqrt

import torch
from torch import Tensor

from circuitfind.zoo.planted import DESCRIPTIONS, Planted, PlantedPair
from circuitfind.zoo.planted.parts import Shape, Weights, edge_set, sources

BOS = 0
SELECTED, DEFAULT = 100.0, 50.0
# A step is this steep: it rises within 1/2000 of its threshold, and lengths are further apart than that.
STEEP = 1000.0


class _Program:
    """Exact weights under construction, all 0 at the start."""

    def __init__(
        self,
        name: str,
        seed: int,
        *,
        n_layers: int,
        d_vocab: int,
        max_length: int,
        pieces: dict[str, int],
        d_mlp: int,
    ) -> None:
        generator = sources(name, seed)[1]
        width = sum(pieces.values())
        self.name, self.seed = name, seed
        self.shape = Shape(
            n_layers=n_layers,
            n_heads=1,
            d_head=max(max_length, d_vocab),
            d_model=width,
            d_vocab=d_vocab,
            n_ctx=max_length + 1,
            attn_only=False,
            d_mlp=d_mlp,
        )
        self._state = Weights(self.shape, generator).finish()
        order: list[int] = torch.randperm(width, generator=generator).tolist()
        places = iter(order)
        self._places: dict[str, list[int]] = {
            piece: [next(places) for _ in range(size)] for piece, size in pieces.items()
        }
        self._free = {layer: count() for layer in range(n_layers)}

    def at(self, piece: str, index: int = 0) -> int:
        """The coordinate of a piece of the stream."""
        return self._places[piece][index]

    def embed(self, positions: Sequence[int]) -> None:
        """Tokens say which they are and that they are there; positions after the first one which they are."""
        for token in range(self.shape.d_vocab):
            self._state["embed.W_E"][token, [self.at("token", token), self.at("one")]] = 1.0
        for index in positions:
            self._state["pos_embed.W_pos"][index + 1, self.at("index", index)] = 1.0

    def head(
        self,
        layer: int,
        scores: Sequence[tuple[int, int, float]],
        carried: Sequence[tuple[int, int]],
    ) -> None:
        """A head. scores: (coordinate of the query, coordinate of the key, score); carried: (from, to)."""
        names = sorted({query for query, _, _ in scores})
        query, key, value, out = (self._state[f"blocks.{layer}.attn.W_{letter}"][0] for letter in "QKVO")
        for row, name in enumerate(names):
            query[name, row] = sqrt(self.shape.d_head)
        for name, coordinate, score in scores:
            key[coordinate, names.index(name)] = score
        for column, (source, target) in enumerate(carried):
            value[source, column] = 1.0
            out[column, target] = 1.0

    def neuron(self, layer: int, reads: dict[int, float], writes: dict[int, float]) -> None:
        """One neuron: the ReLU of a weighted sum of coordinates, written to others."""
        place = next(self._free[layer])
        for coordinate, weight in reads.items():
            self._state[f"blocks.{layer}.mlp.W_in"][coordinate, place] = weight
        for coordinate, weight in writes.items():
            self._state[f"blocks.{layer}.mlp.W_out"][place, coordinate] = weight

    def unembed(self, coordinate: int, token: int, scale: float) -> None:
        """The logit of a token is ``scale`` times a coordinate."""
        self._state["unembed.W_U"][coordinate, token] = scale

    def logit_bias(self, token: int, value: float) -> None:
        """A constant logit."""
        self._state["unembed.b_U"][token] = value

    def finish(
        self,
        roles: dict[str, str],
        edges: dict[str, frozenset[str]],
        note: str,
        draw: Callable[[int, random.Random], PlantedPair],
    ) -> Planted:
        """Say what is true of the model; whatever has no role has no weights."""
        names = [name for layer in range(self.shape.n_layers) for name in (f"a{layer}.h0", f"m{layer}")]
        state: dict[str, Tensor] = self._state
        return Planted(
            name=self.name,
            seed=self.seed,
            description=DESCRIPTIONS[self.name],
            config={**self.shape.config(), "attention_dir": "bidirectional"},
            state=state,
            edges=edges,
            roles={name: roles.get(name, "idle") for name in names},
            direction="noising",
            note=note,
            draw=draw,
        )


def build_reverse(seed: int) -> Planted:
    """The first head finds how long the sequence is, MLPs turn that into where to look, the last head looks there."""
    rng = sources("tracr-reverse", seed)[0]
    max_length = 5 if seed == 0 else rng.randint(4, 7)
    n_tokens = max_length + (1 if seed == 0 else rng.randint(1, 3))
    # Shorter than the longest: a length that cannot be read is taken for that.
    length = max_length - 1
    scale = 5.0 if seed == 0 else rng.uniform(4.0, 8.0)
    lengths = range(1, max_length + 1)
    program = _Program(
        "tracr-reverse",
        seed,
        n_layers=4,
        d_vocab=1 + n_tokens,
        max_length=max_length,
        pieces={
            "token": 1 + n_tokens,
            "index": max_length,
            "one": 1,
            "share": 1,
            "length": max_length + 1,
            "difference": max_length + 1,
            "opposite": max_length,
            "out": n_tokens,
        },
        d_mlp=max(2 * max_length, max_length * (max_length + 1) // 2),
    )
    at, one = program.at, program.at("one")
    program.embed(range(max_length))

    # Looks everywhere alike: 1 / (length + 1) of it falls on the first position.
    program.head(0, [(one, one, SELECTED)], [(at("token", BOS), at("share"))])
    # The share, step by step, as a length.
    program.neuron(0, {one: 1.0}, {at("length", max_length): 1.0})
    for shorter in range(1, max_length):
        threshold = (1 / (shorter + 1) + 1 / (shorter + 2)) / 2
        writes = {at("length", shorter): 1.0, at("length", shorter + 1): -1.0}
        for half, sign in ((0.5, 1.0), (-0.5, -1.0)):
            reads = {at("share"): STEEP, one: half - STEEP * threshold}
            program.neuron(0, reads, {coordinate: sign * weight for coordinate, weight in writes.items()})
    for total in lengths:
        for index in range(total):
            both = {at("length", total): 1.0, at("index", index): 1.0, one: -1.0}
            program.neuron(1, both, {at("difference", total - index): 1.0})
    for difference in lengths:
        program.neuron(2, {at("difference", difference): 1.0}, {at("opposite", difference - 1): 1.0})
    looks = [
        (at("opposite", index), key, score)
        for index in range(max_length)
        for key, score in ((at("index", index), SELECTED), (at("token", BOS), DEFAULT))
    ]
    program.head(3, looks, [(at("token", 1 + token), at("out", token)) for token in range(n_tokens)])
    for token in range(n_tokens):
        program.unembed(at("out", token), 1 + token, scale)

    def draw(_index: int, rng: random.Random) -> PlantedPair:
        """Different tokens; the corrupted prompt is another order of them, with another one first."""
        clean = rng.sample(range(1, 1 + n_tokens), length)
        corrupted = list(clean)
        while corrupted[0] == clean[0]:
            rng.shuffle(corrupted)
        return PlantedPair(
            clean=(BOS, *clean),
            corrupted=(BOS, *corrupted),
            answer=clean[0],
            wrong=corrupted[0],
            positions={"FIRST": 1, "END": length},
        )

    looked_up = ("input -> a3.h0<v>", "a3.h0 -> logits")
    return program.finish(
        {
            "a0.h0": "selector-width",
            "m0": "length",
            "m1": "difference",
            "m2": "opposite-index",
            "a3.h0": "aggregate",
        },
        {
            "resample": edge_set(*looked_up),
            "zero": edge_set(
                *looked_up,
                "input -> a3.h0<k>",
                "m2 -> a3.h0<q>",
                "m1 -> m2",
                "m0 -> m1",
                "input -> m1",
                "a0.h0 -> m0",
                "input -> m0",
                "input -> a0.h0<v>",
            ),
        },
        "A corrupted prompt is as long as the clean one: where to look is computed alike in both, so that only what is "
        "seen there is true under resample ablation. The first head looks everywhere alike with or without its "
        "query and key.",
        draw,
    )


def build_xproportion(seed: int) -> Planted:
    """An MLP marks each x, the head takes the mean of the marks so far."""
    rng = sources("tracr-xproportion", seed)[0]
    length = 5 if seed == 0 else rng.choice((5, 7))
    n_tokens = 4 if seed == 0 else rng.randint(3, 5)
    x = 2 if seed == 0 else rng.randint(1, n_tokens)
    scale = 5.0 if seed == 0 else rng.uniform(4.0, 8.0)
    half = 1 + n_tokens
    program = _Program(
        "tracr-xproportion",
        seed,
        n_layers=2,
        d_vocab=2 + n_tokens,
        max_length=length,
        pieces={"token": 2 + n_tokens, "index": length, "one": 1, "is_x": 1, "proportion": 1},
        d_mlp=2 + n_tokens,
    )
    at = program.at
    program.embed(range(length))
    program.neuron(0, {at("token", x): 1.0}, {at("is_x"): 1.0})
    looks = [
        (at("index", index), key, score)
        for index in range(length)
        for key, score in (
            *((at("index", before), SELECTED) for before in range(index + 1)),
            (at("token", BOS), DEFAULT),
        )
    ]
    program.head(1, looks, [(at("is_x"), at("proportion"))])
    program.unembed(at("proportion"), x, scale)
    program.logit_bias(half, scale / 2)

    others = [token for token in range(1, 1 + n_tokens) if token != x]

    def draw(_index: int, rng: random.Random) -> PlantedPair:
        """More than half are x; in the corrupted prompt so many of them are not that less than half are."""
        most, fewest = length // 2 + 1, length // 2
        marked = set(rng.sample(range(length), rng.randint(most, length)))
        kept = set(rng.sample(sorted(marked), rng.randint(0, fewest)))
        clean = [x if place in marked else rng.choice(others) for place in range(length)]
        corrupted = [
            rng.choice(others) if place in marked - kept else token for place, token in enumerate(clean)
        ]
        return PlantedPair(
            clean=(BOS, *clean),
            corrupted=(BOS, *corrupted),
            answer=x,
            wrong=half,
            positions={"END": length},
        )

    chain = ("input -> m0", "m0 -> a1.h0<v>", "a1.h0 -> logits")
    return program.finish(
        {"m0": "is-x", "a1.h0": "mean-of-previous"},
        {"resample": edge_set(*chain), "zero": edge_set(*chain, "input -> a1.h0<q><k>")},
        "Which positions came before is the same in the clean and in the corrupted prompt. Without its query or its key "
        "the head also looks at the first position, where there is no x.",
        draw,
    )


BUILDERS: dict[str, Callable[[int], Planted]] = {
    "tracr-reverse": build_reverse,
    "tracr-xproportion": build_xproportion,
}
