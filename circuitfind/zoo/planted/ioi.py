"""Indirect object identification in miniature: two names, one of them again, who is the other one?

The duplicate-token head at the second mention (S2) finds the first mention (S1) and writes its position; the
S-inhibition head carries that position from S2 to the end; the name-mover head would look at both names there
and is kept away from S1. In the corrupted prompt S2 is the other name, so that the answer is the other way
round.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from circuitfind.zoo.planted import DESCRIPTIONS, Planted, PlantedPair
from circuitfind.zoo.planted.parts import (
    Residual,
    Shape,
    Weights,
    edge_set,
    fill,
    one_hot,
    sharpness,
    sources,
)

NAME = "ioi-planted"
BOS = 0
# Scores of the name mover: a name slot, and what an inhibited slot loses. The answer gets 0.95, S1 0.05.
SLOT = 7.0
INHIBITION = 3.0
# How much more the duplicate-token head dislikes its own position than it likes its own token.
SELF = 4.0


@dataclass(frozen=True)
class _Layout:
    """Where the names stand, and which tokens are names."""

    n_ctx: int
    slots: tuple[int, int]
    second: int
    names: tuple[int, ...]
    fillers: tuple[int, ...]


def build(seed: int) -> Planted:
    """Draw a model; the three heads are in three layers in this order."""
    rng, generator = sources(NAME, seed)
    n_ctx = rng.randint(8, 11)
    n_names, n_fillers = rng.randint(6, 9), rng.randint(5, 8)
    tokens = rng.sample(range(1, 1 + n_names + n_fillers), n_names + n_fillers)
    places = sorted(rng.sample(range(1, n_ctx - 1), 3))
    layout = _Layout(
        n_ctx, (places[0], places[1]), places[2], tuple(tokens[:n_names]), tuple(tokens[n_names:])
    )
    attn_only = rng.random() < 0.5
    d_vocab = 1 + len(tokens)
    shape = Shape(
        n_layers=rng.choice((3, 3, 4)),
        n_heads=rng.randint(2, 3),
        d_head=n_names + n_ctx + rng.randint(0, 4),
        d_model=d_vocab + 3 * n_ctx + 2 * n_names + rng.randint(0, 6),
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        attn_only=attn_only,
        d_mlp=0 if attn_only else rng.randint(12, 32),
        act_fn=rng.choice(("relu", "gelu", "gelu_new", "silu")),
    )
    layers = sorted(rng.sample(range(shape.n_layers), 3))
    duplicate, inhibition, mover = [(layer, rng.randrange(shape.n_heads)) for layer in layers]

    stream = Residual(shape.d_model, generator)
    token, position = stream.take(d_vocab), stream.take(n_ctx)
    seen_at, avoid = stream.take(n_ctx), stream.take(n_ctx)
    out, unread = stream.take(n_names), stream.take(n_names)
    name = token[list(layout.names)]
    end = one_hot(n_ctx - 1, position)
    found, moved = rng.uniform(0.90, 0.94), rng.uniform(0.93, 0.96)

    weights = Weights(shape, generator)
    weights.embed(token, position)
    if not attn_only:
        for layer in range(shape.n_layers):
            weights.noise_mlp(layer)
    look = sharpness(found, n_ctx - 2)
    away = torch.cat([name, -(look + SELF) / look * position])
    weights.head(duplicate, away, torch.cat([name, position]), position, seen_at, look)
    weights.head(
        inhibition, end, one_hot(layout.second, position), seen_at, avoid, sharpness(moved, n_ctx - 1)
    )
    # One row asks for a name slot; the others compare the position to avoid with the key's.
    ask = torch.cat([SLOT * end, -INHIBITION / (found * moved) * avoid])
    weights.head(mover, ask, torch.cat([one_hot(layout.slots, position), position]), name, out)
    scale = rng.uniform(4.0, 8.0)
    weights.unembed(out, layout.names, scale)

    dup, inh, mov = (f"a{layer}.h{head}" for layer, head in (duplicate, inhibition, mover))
    roles = {dup: "duplicate-token", inh: "s-inhibition", mov: "name-mover"}
    # Distractors: one copies names where nobody looks, one raises the logits of all names alike; `fill` needs
    # two heads.
    free = [(i, h) for i in range(shape.n_layers) for h in range(shape.n_heads) if f"a{i}.h{h}" not in roles]
    strays = rng.sample(free, min(2, len(free) - 2))
    for role, (layer, head) in zip(("distractor-unread", "distractor-all-names"), strays, strict=False):
        roles[f"a{layer}.h{head}"] = role
        if role == "distractor-unread":
            weights.head(
                (layer, head), position[1:], position[:-1], 2 * name, unread, sharpness(0.95, n_ctx - 2)
            )
        else:
            everywhere, names = one_hot(range(n_ctx), position), one_hot(range(n_names), out)
            weights.head((layer, head), end, end, 0.3 * everywhere, names)
    roles = fill(weights, roles, rng)
    chain = (f"{dup} -> {inh}<v>", f"{inh} -> {mov}<q>", f"{mov} -> logits")

    def draw(index: int, rng: random.Random) -> PlantedPair:
        return _draw(index, rng, layout)

    return Planted(
        name=NAME,
        seed=seed,
        description=DESCRIPTIONS[NAME],
        config=shape.config(),
        state=weights.finish(),
        edges={
            "resample": edge_set(f"input -> {dup}<q>", *chain),
            "zero": edge_set(
                f"input -> {dup}<q><k><v>", f"input -> {inh}<q><k>", f"input -> {mov}<q><k><v>", *chain
            ),
        },
        roles=roles,
        direction="noising",
        note="The edges form a chain: breaking any of them in the clean run loses the answer.",
        draw=draw,
    )


def _draw(index: int, rng: random.Random, layout: _Layout) -> PlantedPair:
    """Two random names in the slots; the first one is repeated in every other pair."""
    clean = [BOS, *(rng.choice(layout.fillers) for _ in range(layout.n_ctx - 1))]
    s1, io = layout.slots if index % 2 == 0 else layout.slots[::-1]
    clean[s1], clean[io] = rng.sample(layout.names, 2)
    clean[layout.second] = clean[s1]
    corrupted = list(clean)
    corrupted[layout.second] = clean[io]
    return PlantedPair(
        clean=tuple(clean),
        corrupted=tuple(corrupted),
        answer=clean[io],
        wrong=clean[s1],
        positions={"S1": s1, "IO": io, "S2": layout.second, "END": layout.n_ctx - 1},
    )
