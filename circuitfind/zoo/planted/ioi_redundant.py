"""Indirect object identification with redundancy: name movers, their backups and negative heads, under LayerNorm.

The chain is that of ``ioi``: a duplicate-token head finds the first mention of the repeated name, the
S-inhibition head carries its slot to the end, and the name movers look at both slots there and are kept away
from that one. Each name mover also writes a note of the name. A backup would do what a name mover does, but
avoids a slot whose name is noted, and then rests on the first token; it writes no note, so backups do not put
each other to sleep. A negative head looks for the noted name and writes the opposite.

Everything written lies across the all-ones direction, so LayerNorm only divides by the length of the stream.
At the end that length depends on what the heads have written: queries there are scaled for the length that
they meet in the clean run, and no other length changes which of two positions a head prefers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations
from math import sqrt

from torch import Generator, Tensor

from circuitfind.zoo.planted import DESCRIPTIONS, Planted, PlantedPair
from circuitfind.zoo.planted.parts import (
    Residual,
    Shape,
    Weights,
    fill,
    name_of,
    one_hot,
    scored,
    sharpness,
    sources,
)

NAME = "ioi-redundant"
BOS = 0
MAX_BACKUPS = 8
MAX_NEGATIVE = 2
Place = tuple[int, int]
# Scores of a name mover: a name slot, and what an inhibited slot loses.
SLOT = 8.0
INHIBITION = 5.0
# What the answer's slot gets of its attention, about: a note holds so much.
SEEN = 0.97
# How much more the duplicate-token head dislikes a name's own position than it likes the name.
SELF = 4.0
# The score of the first position above those where nobody should look.
REST = 7.0
# How far the answer's slot is above the first position in a backup: as long as it should sleep (0.002), and for
# the fewest notes that it should wake at.
ASLEEP, AWAKE = -6.0, 2.5
# The same for the inhibited slot without any note.
INHIBITED = -9.0
# Those fewest, as a share of the notes that keep it asleep. Sharp: of one name mover; the mean over prompts
# leaves 1/n_names of a note for each of up to three. Graded: of all of them.
SHARP, GRADED = 0.6, 0.55
SHARP_NOTE = "Any name mover that is left keeps the backups asleep."
GRADED_NOTE = "The backups wake by degrees as name movers go."
# A negative head sees all notes, or none.
NOTED, UNNOTED = 3.5, -6.0
# Negative heads take at most this share of what the name movers write.
TAKEN = 0.5


@dataclass(frozen=True)
class _Layout:
    """Where the names stand, and which tokens are names."""

    n_ctx: int
    slots: tuple[int, int]
    second: int
    names: tuple[int, ...]
    fillers: tuple[int, ...]


@dataclass(frozen=True)
class _Cast:
    """Who stands where, and how strongly the heads that answer write."""

    duplicate: Place
    inhibition: Place
    movers: dict[Place, float]
    backups: dict[Place, float]
    negative: dict[Place, float]
    sharp: bool

    @property
    def heads(self) -> tuple[Place, ...]:
        return (self.duplicate, self.inhibition, *self.movers, *self.backups, *self.negative)


def build(seed: int, backups: int | None = None) -> Planted:
    """Draw a model, with so many backups; None draws 0 to 8. The number moves no other head that was written."""
    rng, generator = sources(NAME, seed)
    drawn = rng.randint(0, MAX_BACKUPS)
    count = drawn if backups is None else backups
    if not 0 <= count <= MAX_BACKUPS:
        raise ValueError(f"there are 0 to {MAX_BACKUPS} backups, not {count}")
    n_ctx = rng.randint(8, 11)
    n_names, n_fillers = rng.randint(6, 9), rng.randint(5, 8)
    tokens = rng.sample(range(1, 1 + n_names + n_fillers), n_names + n_fillers)
    places = sorted(rng.sample(range(1, n_ctx - 1), 3))
    layout = _Layout(
        n_ctx, (places[0], places[1]), places[2], tuple(tokens[:n_names]), tuple(tokens[n_names:])
    )
    n_heads = rng.randint(3, 6)
    mover_layers = rng.randint(1, 2)
    n_layers = min(8, 2 + mover_layers + _late_layers(n_heads) + rng.randint(0, 1))
    attn_only = rng.random() < 0.5
    d_vocab = 1 + len(tokens)
    shape = Shape(
        n_layers=n_layers,
        n_heads=n_heads,
        d_head=n_names + 6 + rng.randint(0, 4),
        d_model=d_vocab + n_ctx + 3 * n_names + 6 + rng.randint(0, 12),
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        attn_only=attn_only,
        d_mlp=0 if attn_only else rng.randint(12, 32),
        act_fn=rng.choice(("relu", "gelu", "gelu_new", "silu")),
        normalization="LN",
    )
    cast = _draw_cast(rng, shape, mover_layers, count)
    writer = _Writer(Weights(shape, generator), layout, rng, generator)
    writer.chain(cast)
    writer.answer(cast)
    roles = {
        name_of(cast.duplicate): "duplicate-token",
        name_of(cast.inhibition): "s-inhibition",
        **{name_of(place): "name-mover" for place in cast.movers},
        **{name_of(place): "backup" for place in cast.backups},
        **{name_of(place): "negative" for place in cast.negative},
    }
    writer.distractors(cast, roles)
    roles = fill(writer.weights, roles, rng)

    def draw(index: int, rng: random.Random) -> PlantedPair:
        return _draw(index, rng, layout)

    primaries = tuple(name_of(place) for place in cast.movers)
    sleeping = [name_of(place) for place in cast.backups]
    return Planted(
        name=NAME,
        seed=seed,
        description=DESCRIPTIONS[NAME],
        config=shape.config(),
        state=writer.weights.finish(),
        edges={},
        roles=roles,
        direction="noising",
        note=SHARP_NOTE if cast.sharp else GRADED_NOTE,
        draw=draw,
        classes=dict.fromkeys(sleeping, "backup")
        | dict.fromkeys([name_of(place) for place in cast.negative], "relief"),
        covers=dict.fromkeys(sleeping, primaries),
        primaries=primaries,
    )


def _late_layers(n_heads: int) -> int:
    """Room for every number of backups, so that a model with none has the shape of one with eight."""
    return -(-(MAX_BACKUPS + MAX_NEGATIVE) // n_heads)


def _draw_cast(rng: random.Random, shape: Shape, mover_layers: int, backups: int) -> _Cast:
    """Backups and negative heads come after all name movers; the number of backups moves nothing else."""
    heads = range(shape.n_heads)
    early = shape.n_layers - _late_layers(shape.n_heads)
    first, second, *layers = sorted(rng.sample(range(early), 2 + mover_layers))
    n_movers = rng.randint(mover_layers, 3)
    cells = [(layer, head) for layer in layers for head in heads]
    spots = sorted(rng.sample(cells, n_movers))
    movers = {place: rng.uniform(0.6, 1.4) for place in spots}
    average = sum(movers.values()) / n_movers

    late = [(layer, head) for layer in range(layers[-1] + 1, shape.n_layers) for head in heads]
    n_negative = rng.randint(0, MAX_NEGATIVE)
    taken = [rng.uniform(0.3, 0.8) * average for _ in range(n_negative)]
    most = min(1.0, TAKEN * sum(movers.values()) / sum(taken)) if taken else 1.0
    negative = {place: most * share for place, share in zip(rng.sample(late, n_negative), taken, strict=True)}
    duplicate, inhibition = (first, rng.choice(heads)), (second, rng.choice(heads))
    sharp = rng.random() < 0.5

    own = random.Random(rng.random())
    free = [place for place in late if place not in negative]
    candidates = sorted({layer for layer, _ in free})
    for wanted in range(min(own.randint(1, 3), len(candidates)), len(candidates) + 1):
        # As few layers as drawn, if they hold so many; three always do.
        rooms = [[p for p in free if p[0] in chosen] for chosen in combinations(candidates, wanted)]
        if rooms := [room for room in rooms if len(room) >= backups]:
            break
    room = own.choice(rooms)
    sleeping = {place: own.uniform(0.5, 1.2) * average for place in sorted(own.sample(room, backups))}
    return _Cast(duplicate, inhibition, movers, sleeping, negative, sharp)


class _Writer:
    """Writes heads that read a normalised stream.

    A stream of length l is multiplied by sqrt(d_model) / l. ``base`` is the squared length of an embedding: a
    token, a position and a constant that steadies it.
    """

    def __init__(self, weights: Weights, layout: _Layout, rng: random.Random, generator: Generator) -> None:
        self.weights, self.layout, self.rng = weights, layout, rng
        shape, n_names = weights.shape, len(layout.names)
        stream = Residual(shape.d_model, generator, centred=True)
        token, self.position = stream.take(shape.d_vocab), stream.take(layout.n_ctx)
        self.seen_at, self.avoid = stream.take(2), stream.take(2)
        self.out, self.note, self.unread = (stream.take(n_names) for _ in range(3))
        ballast = rng.uniform(2.0, 3.0)
        self.base = 2 + ballast**2
        weights.embed(token, self.position + ballast * stream.take(1))
        if not shape.attn_only:
            for layer in range(shape.n_layers):
                weights.noise_mlp(layer)
        self.name = token[list(layout.names)]
        self.slots = self.position[list(layout.slots)]
        self.first, self.end = self.position[:1], self.position[-1:]
        self.elsewhere = one_hot(range(layout.n_ctx - 1), self.position)
        self.found, self.moved = rng.uniform(0.90, 0.94), rng.uniform(0.93, 0.96)

    def head(
        self,
        place: Place,
        rows: tuple[Tensor, Tensor],
        value: Tensor,
        out: Tensor,
        length: float | None = None,
    ) -> None:
        """``parts.Weights.head`` on a normalised stream; ``length`` is the query's squared one, if not ``base``."""
        d_model = self.weights.shape.d_model
        sharp = sqrt((length or self.base) * self.base) / d_model
        self.weights.head(place, *rows, value, sqrt(self.base / d_model) * out, sharp)

    def chain(self, cast: _Cast) -> None:
        """The heads that find the repeated name and say at the end which slot it stands in."""
        layout = self.layout
        look = sharpness(self.found, layout.n_ctx - 2)
        own = self.position[[*layout.slots, layout.second]]
        rows = scored((look, self.name, self.name), (-(look + SELF), own, own))
        self.head(cast.duplicate, rows, self.slots, self.seen_at)
        carry = sharpness(self.moved, layout.n_ctx - 1)
        rows = scored((carry, self.end, self.position[[layout.second]]))
        self.head(cast.inhibition, rows, self.seen_at, self.avoid)

    def answer(self, cast: _Cast) -> None:
        """Name movers, backups and negative heads, and the unembedding."""
        n_movers, shape = len(cast.movers), self.weights.shape
        inhibited = self.found * self.moved
        # Squared length at the end as each layer reads it in the clean run, while backups sleep.
        lengths: list[float] = []
        out = notes = 0.0
        for layer in range(shape.n_layers + 1):
            avoid = inhibited**2 if layer > cast.inhibition[0] else 0.0
            lengths.append(self.base + avoid + out**2 + notes**2)
            movers = [strength for place, strength in cast.movers.items() if place[0] == layer]
            taken = [strength for place, strength in cast.negative.items() if place[0] == layer]
            out += SEEN * (sum(movers) - sum(taken))
            notes += SEEN * len(movers)
        slots = one_hot(range(2), self.slots)
        away = (REST, self.elsewhere, self.first)

        for place, strength in cast.movers.items():
            rows = scored((SLOT, self.end, slots), (-INHIBITION / inhibited, self.avoid, self.slots), away)
            self.head(place, rows, self.name, strength * self.out + self.note, lengths[place[0]])

        # The stream is never longer than in the clean run, so who sleeps there sleeps deeper elsewhere.
        full = SEEN * (1 if cast.sharp else n_movers)
        slope = (AWAKE - ASLEEP) / (full * (1 - (SHARP if cast.sharp else GRADED)))
        unnoted = ASLEEP + slope * full
        rows = scored(
            (REST, self.end, self.first),
            (REST + unnoted, self.end, slots),
            (-(unnoted - INHIBITED) / inhibited, self.avoid, self.slots),
            (-slope, self.note, self.name),
            away,
        )
        for place, strength in cast.backups.items():
            self.head(place, rows, self.name, strength * self.out, lengths[place[0]])

        slope = (NOTED - UNNOTED) / (SEEN * n_movers)
        rows = scored(
            (REST, self.end, self.first),
            (REST + UNNOTED, self.end, slots),
            (slope, self.note, self.name),
            away,
        )
        for place, strength in cast.negative.items():
            self.head(place, rows, self.name, -strength * self.out, lengths[place[0]])

        total = sum(cast.movers.values())
        gain = self.rng.uniform(5.0, 9.0) * sqrt(lengths[-1] / shape.d_model) / total
        self.weights.unembed(self.out, self.layout.names, gain)

    def distractors(self, cast: _Cast, roles: dict[str, str]) -> None:
        """One copies names where nobody looks, one raises the logits of all names alike; ``fill`` needs two heads."""
        shape, n_ctx = self.weights.shape, self.layout.n_ctx
        taken = set(cast.heads)
        # In layers where no backup may stand, so that they are the same for every number of backups.
        last = max(layer for layer, _ in cast.movers)
        cells = [(layer, head) for layer in range(last + 1) for head in range(shape.n_heads)]
        free = [place for place in cells if place not in taken]
        for place, role in zip(
            self.rng.sample(free, 2), ("distractor-unread", "distractor-all-names"), strict=True
        ):
            roles[name_of(place)] = role
            if role == "distractor-unread":
                rows = scored((sharpness(0.95, n_ctx - 2), self.position[1:], self.position[:-1]))
                self.head(place, rows, self.name, self.unread)
            else:
                everywhere = one_hot(range(n_ctx), self.position)
                self.head(
                    place,
                    scored((1.0, self.end, self.end)),
                    0.3 * everywhere,
                    one_hot(range(len(self.name)), self.out),
                )


def _draw(index: int, rng: random.Random, layout: _Layout) -> PlantedPair:
    """Each name is the answer as often as any other, and the repeated one too: a mean favours none."""
    n = len(layout.names)
    turn, first = divmod(index, n)
    answer, repeated = layout.names[first], layout.names[(first + 1 + turn % (n - 1)) % n]
    clean = [BOS, *(rng.choice(layout.fillers) for _ in range(layout.n_ctx - 1))]
    s1, io = layout.slots if (index + turn) % 2 == 0 else layout.slots[::-1]
    clean[s1], clean[io] = repeated, answer
    clean[layout.second] = repeated
    corrupted = list(clean)
    corrupted[layout.second] = answer
    return PlantedPair(
        clean=tuple(clean),
        corrupted=tuple(corrupted),
        answer=answer,
        wrong=repeated,
        positions={"S1": s1, "IO": io, "S2": layout.second, "END": layout.n_ctx - 1},
    )
