"""Small models in which one head stands in for another, or only seems to.

One position holds a name, and the answer at the end is that name. A *mover* looks there and writes the name;
beside it it may write a note of which name it wrote. A *gated* head reads the notes at the end: it weighs the
source against the first position, where there is nothing to copy, and a note of the very name that stands at
the source pushes it one way. So it wakes whatever takes the place of the note: nothing, the note of another
name (the corrupted prompt differs in the name at the source), or the mean over prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from math import sqrt

from torch import Tensor

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
    stages,
)

BOS = 0
Place = tuple[int, int]
# How far the source is above the first position in the scores of a gated head: asleep (it gets 0.02) and awake
# (0.95).
ASLEEP, AWAKE = -4.0, 3.0
# So far below that the attention is exactly 0 in single precision, and every gradient through it.
DEAD, ALIVE = -130.0, 20.0
# The score of the first position above those where nobody should look.
REST = 7.0
# The note a gated head still wakes at, as a share of one mover's. The mean over clean and corrupted prompts
# leaves 1/2 of a note at most, and 1/n_names where the pairs are balanced.
HALF = 0.5
# With two movers the mean leaves two such shares, and one mover alone must be enough.
OF_TWO = 0.62


class _Draft:
    """A model under construction. ``counts`` are the heads to place, stage by stage."""

    def __init__(
        self, name: str, seed: int, counts: tuple[int, ...], norm: str | None = None, heads: int = 3
    ) -> None:
        self.name, self.seed = name, seed
        self.rng, generator = sources(name, seed)
        rng = self.rng
        self.n_ctx = rng.randint(7, 10)
        n_names, n_fillers = rng.randint(6, 8), rng.randint(4, 6)
        tokens = rng.sample(range(1, 1 + n_names + n_fillers), n_names + n_fillers)
        self.names, self.fillers = tokens[:n_names], tokens[n_names:]
        self.source = rng.randint(1, self.n_ctx - 2)
        attn_only = rng.random() < 0.5
        d_vocab = 1 + len(tokens)
        shape = Shape(
            n_layers=max(2, len(counts)) + rng.choice((0, 0, 1, 2)),
            n_heads=heads + rng.randint(0, 1),
            d_head=n_names + 3 + rng.randint(0, 6),
            d_model=d_vocab + self.n_ctx + 2 * n_names + 1 + rng.randint(0, 12),
            d_vocab=d_vocab,
            n_ctx=self.n_ctx,
            attn_only=attn_only,
            d_mlp=0 if attn_only else rng.randint(12, 32),
            act_fn=rng.choice(("relu", "gelu", "gelu_new", "silu")),
            normalization=norm,
        )
        self.places = stages(rng, shape, counts)

        stream = Residual(shape.d_model, generator, centred=norm is not None)
        token, position = stream.take(d_vocab), stream.take(self.n_ctx)
        self.out, self.note = stream.take(n_names), stream.take(n_names)
        self.name_rows = token[self.names]
        self.first, self.at = one_hot(0, position), one_hot(self.source, position)
        self.end, self.before = one_hot(self.n_ctx - 1, position), one_hot(range(self.n_ctx - 1), position)
        # The share of its attention that a mover gives to the source, so what a note holds.
        self.seen = rng.uniform(0.93, 0.96)
        self.scale = rng.uniform(4.0, 8.0)

        self.weights = Weights(shape, generator)
        self.weights.embed(token, position)
        if not attn_only:
            for layer in range(shape.n_layers):
                self.weights.noise_mlp(layer)
        self.roles: dict[str, str] = {}

    def mover(
        self, place: Place, role: str, strength: float = 1.0, note: float = 0.0, seen: float = 0.0
    ) -> str:
        """A head that copies the name at the source, and rests on the first position anywhere but at the end."""
        sharp = sharpness(seen or self.seen, self.n_ctx - 1)
        query, key = scored((sharp, self.end, self.at), (sharp, self.before, self.first))
        return self._copy(place, role, query, key, strength * self.out + note * self.note)

    def gated(
        self,
        place: Place,
        role: str,
        strength: float,
        *,
        full: float = 1.0,
        low: float = HALF,
        scores: tuple[float, float] = (ASLEEP, AWAKE),
        note: float = 0.0,
    ) -> str:
        """A head whose attention to the source hangs on the notes.

        The source stands ``scores[0]`` above the first position at ``full`` notes of its name and
        ``scores[1]`` at ``low``; more or less than that takes it further the same way.
        """
        rest = max(REST, -scores[0])
        slope = (scores[1] - scores[0]) / (self.seen * (full - low))
        unnoted = scores[0] + slope * self.seen * full
        query, key = scored(
            (rest, self.end, self.first),
            (rest + unnoted, self.end, self.at),
            (-slope, self.note, self.name_rows),
            (rest, self.before, self.first),
        )
        return self._copy(place, role, query, key, strength * self.out + note * self.note)

    def _copy(self, place: Place, role: str, query: Tensor, key: Tensor, out: Tensor) -> str:
        self.weights.head(place, query, key, self.name_rows, out)
        self.roles[name_of(place)] = role
        return name_of(place)

    def finish(
        self,
        note: str,
        *,
        primaries: tuple[str, ...],
        classes: dict[str, str],
        covers: dict[str, tuple[str, ...]] | None = None,
        scale: float | None = None,
        reader: str = "logits",
    ) -> Planted:
        """Write what is left, and say what is true. ``scale`` is the unembedding's."""
        self.weights.unembed(self.out, self.names, scale or self.scale)
        roles = fill(self.weights, self.roles, self.rng)
        return Planted(
            name=self.name,
            seed=self.seed,
            description=DESCRIPTIONS[self.name],
            config=self.weights.shape.config(),
            state=self.weights.finish(),
            edges={},
            roles=roles,
            direction="noising",
            note=note,
            draw=self._draw,
            classes=classes,
            covers=covers or {},
            primaries=primaries,
            reader=reader,
        )

    def _draw(self, index: int, rng: random.Random) -> PlantedPair:
        """Each name is the answer as often as any other, and the wrong answer too: a mean favours none."""
        n = len(self.names)
        answer = self.names[index % n]
        wrong = self.names[(index + 1 + index // n % (n - 1)) % n]
        clean = [BOS, *(rng.choice(self.fillers) for _ in range(self.n_ctx - 1))]
        clean[self.source] = answer
        corrupted = list(clean)
        corrupted[self.source] = wrong
        return PlantedPair(
            clean=tuple(clean),
            corrupted=tuple(corrupted),
            answer=answer,
            wrong=wrong,
            positions={"SOURCE": self.source, "END": self.n_ctx - 1},
        )


def build_gated_backup(seed: int) -> Planted:
    draft = _Draft("gated-backup", seed, (1, 1))
    (first,), (second,) = draft.places
    a = draft.mover(first, "primary", note=1.0)
    b = draft.gated(second, "backup", draft.rng.uniform(0.6, 1.1))
    return draft.finish(
        "B attends to the source only where A's note of the name there is missing.",
        primaries=(a,),
        classes={b: "backup"},
        covers={b: (a,)},
    )


def build_ln_repair(seed: int) -> Planted:
    """A stream that is little else at the end than what the two heads write."""
    draft = _Draft("ln-repair", seed, (2,), norm="LN")
    weights, rng, d_model = draft.weights, draft.rng, draft.weights.shape.d_model
    places = draft.places[0]
    rng.shuffle(places)
    c = rng.uniform(1.6, 2.4)
    a = c * rng.uniform(1.0, 1.5)
    # A token and a position, and at the end what is written too.
    embedded, final = 2.0, 2.0 + (a + c) ** 2
    length = embedded
    for layer in range(weights.shape.n_layers):
        written = 0.0
        for place, strength in zip(places, (a, c), strict=True):
            if place[0] == layer:
                # The query is read from a stream that may hold what the other one wrote. Attention is so sharp
                # that this matters to no one.
                sharp = sharpness(0.999, draft.n_ctx - 1) * sqrt(length * embedded) / d_model
                query, key = scored((sharp, draft.end, draft.at), (sharp, draft.before, draft.first))
                out = strength * sqrt(embedded / d_model) * draft.out
                weights.head(place, query, key, draft.name_rows, out)
                written += strength
        length = embedded + (sqrt(length - embedded) + written) ** 2
    names = [name_of(place) for place in places]
    draft.roles |= {names[0]: "primary", names[1]: "LN rescale"}
    return draft.finish(
        "Without A the stream at the end is shorter, so the final LayerNorm weighs more what C writes, which is "
        "the same.",
        primaries=(names[0],),
        classes={names[1]: "LN rescale"},
        scale=draft.scale * sqrt(final / d_model) / (a + c),
    )


def build_relief(seed: int) -> Planted:
    draft = _Draft("relief", seed, (1, 1))
    (first,), (second,) = draft.places
    a = draft.mover(first, "primary", note=1.0)
    n = draft.gated(second, "negative", -draft.rng.uniform(0.3, 0.45), scores=(-ASLEEP, -AWAKE))
    return draft.finish(
        "N takes back part of the name whose note A wrote; without A it has nothing to take back.",
        primaries=(a,),
        classes={n: "relief"},
    )


def build_co_workers(seed: int) -> Planted:
    draft = _Draft("co-workers", seed, (2,))
    a, c = (draft.mover(place, "co-worker") for place in draft.places[0])
    return draft.finish(
        "Neither reads what the other writes, and nothing normalises their sum.",
        primaries=(a, c),
        classes={a: "co-worker", c: "co-worker"},
    )


def build_three_way(seed: int) -> Planted:
    draft = _Draft("three-way", seed, (2, 1))
    movers, (last,) = draft.places
    both = tuple(draft.mover(place, "primary", draft.rng.uniform(0.8, 1.2), note=1.0) for place in movers)
    b = draft.gated(last, "backup", draft.rng.uniform(0.6, 1.1), low=OF_TWO)
    return draft.finish(
        "Either note is enough to keep B asleep, so removing one head after the other finds nothing.",
        primaries=both,
        classes={b: "backup"},
        covers={b: both},
    )


def build_single_blind(seed: int) -> Planted:
    """After the idea of CoAx (arXiv 2607.01940): scores of the clean state against a conditional one."""
    rng = random.Random(f"single-blind/counts/{seed}")
    n_movers, n_backups, n_decoys = rng.randint(1, 2), rng.randint(2, 3), rng.randint(3, 6)
    # The last places of all are for decoys: they stand where backups could.
    draft = _Draft("single-blind", seed, (n_movers, n_backups, 1), heads=4)
    movers, backups, _ = draft.places
    primaries = tuple(
        draft.mover(place, "primary", draft.rng.uniform(0.8, 1.1), note=1.0) for place in movers
    )
    sleeping = [
        draft.gated(
            place,
            "backup",
            draft.rng.uniform(0.6, 1.1),
            low=HALF if n_movers == 1 else OF_TWO,
            scores=(DEAD, ALIVE),
        )
        for place in backups
    ]
    shape, used = draft.weights.shape, {*movers, *backups, *draft.places[2]}
    cells = [(layer, head) for layer in range(shape.n_layers) for head in range(shape.n_heads)]
    free = [cell for cell in cells if cell not in used]
    for place in [*draft.places[2], *draft.rng.sample(free, min(n_decoys - 1, len(free) - 2))]:
        draft.mover(place, "decoy", draft.rng.uniform(0.03, 0.1))
    return draft.finish(
        "In the clean run a backup attends to the first position alone, exactly: removing it changes nothing and "
        "no gradient passes, while the decoys have effects. Only without all primaries does it show.",
        primaries=primaries,
        classes=dict.fromkeys(sleeping, "backup"),
        covers=dict.fromkeys(sleeping, primaries),
    )


def build_second_order(seed: int) -> Planted:
    draft = _Draft("second-order", seed, (1, 1, 1))
    (first,), (second,), (third,) = draft.places
    a = draft.mover(first, "primary", note=1.0)
    strength = draft.rng.uniform(0.8, 1.1)
    b = draft.gated(second, "backup", strength, note=1.0)
    # Weaker than B, or losing B too would be no loss.
    weaker = strength * draft.rng.uniform(0.5, 0.75)
    c = draft.gated(third, "second-order backup", weaker, low=OF_TWO)
    return draft.finish(
        "B writes a note as A does, so C sleeps until both are gone.",
        primaries=(a,),
        classes={b: "backup", c: "second-order backup"},
        covers={b: (a,), c: (a, b)},
    )


def build_inner_backup(seed: int) -> Planted:
    """Neither A nor B writes the answer: C makes it of the note that either leaves at the end."""
    draft = _Draft("inner-backup", seed, (1, 1, 1))
    (first,), (second,), (third,) = draft.places
    a = draft.mover(first, "primary", strength=0.0, note=1.0)
    b = draft.gated(second, "backup", 0.0, note=draft.rng.uniform(0.8, 1.1))
    query, key = scored((sharpness(draft.seen, draft.n_ctx - 1), draft.end, draft.end))
    draft.weights.head(third, query, key, draft.note, draft.out)
    c = name_of(third)
    draft.roles[c] = "reader"
    return draft.finish(
        "C answers with the note at the end; B leaves one only where A did not.",
        primaries=(a,),
        classes={b: "backup"},
        covers={b: (a,)},
        reader=f"{c}<v>",
    )


BUILDERS: dict[str, Callable[[int], Planted]] = {
    "gated-backup": build_gated_backup,
    "ln-repair": build_ln_repair,
    "relief": build_relief,
    "co-workers": build_co_workers,
    "three-way": build_three_way,
    "single-blind": build_single_blind,
    "second-order": build_second_order,
    "inner-backup": build_inner_backup,
}
