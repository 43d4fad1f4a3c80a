"""Induction: ``.. A B .. C D .. A`` is followed by B.

A previous-token head writes at each position which token came before; the induction head at the last A looks
for the position whose previous token is A and copies the token there. In the corrupted prompt the first A and
the C have changed places, so that the answer is D: every token that is read at the end is the same, only what
came before it differs.
"""

from __future__ import annotations

import random

from circuitfind.zoo.planted import DESCRIPTIONS, Planted, PlantedPair
from circuitfind.zoo.planted.parts import Residual, Shape, Weights, edge_set, fill, sharpness, sources

NAME = "induction"
# Stands first, where the previous-token head can only see the token itself.
BOS = 0


def build(seed: int) -> Planted:
    """Draw a model; the previous-token head is in any layer before the induction head's."""
    rng, generator = sources(NAME, seed)
    n_ctx = rng.randint(8, 11)
    d_vocab = n_ctx + rng.randint(2, 6)
    attn_only = rng.random() < 0.5
    shape = Shape(
        n_layers=rng.choice((2, 2, 3, 4)),
        n_heads=rng.randint(2, 4),
        d_head=d_vocab + rng.randint(0, 4),
        d_model=3 * d_vocab + n_ctx + rng.randint(0, 6),
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        attn_only=attn_only,
        d_mlp=0 if attn_only else rng.randint(12, 32),
        act_fn=rng.choice(("relu", "gelu", "gelu_new", "silu")),
    )
    early, late = sorted(rng.sample(range(shape.n_layers), 2))
    first = (early, rng.randrange(shape.n_heads))
    second = (late, rng.randrange(shape.n_heads))

    stream = Residual(shape.d_model, generator)
    token, position = stream.take(d_vocab), stream.take(n_ctx)
    before, out = stream.take(d_vocab), stream.take(d_vocab)
    near, match = rng.uniform(0.93, 0.96), rng.uniform(0.92, 0.95)

    weights = Weights(shape, generator)
    weights.embed(token, position)
    if not attn_only:
        for layer in range(shape.n_layers):
            weights.noise_mlp(layer)
    weights.head(first, position[1:], position[:-1], token, before, sharpness(near, n_ctx - 2))
    # The key holds `near` of the token before it, hence the division.
    weights.head(second, token, before, token, out, sharpness(match, n_ctx - 1) / near)
    weights.unembed(out, range(d_vocab), rng.uniform(4.0, 8.0))

    previous, induction = f"a{first[0]}.h{first[1]}", f"a{second[0]}.h{second[1]}"
    roles = fill(weights, {previous: "previous-token", induction: "induction"}, rng)
    chain = (f"{previous} -> {induction}<k>", f"{induction} -> logits")

    def draw(index: int, rng: random.Random) -> PlantedPair:
        return _draw(index, rng, n_ctx, d_vocab)

    return Planted(
        name=NAME,
        seed=seed,
        description=DESCRIPTIONS[NAME],
        config=shape.config(),
        state=weights.finish(),
        edges={
            "resample": edge_set(f"input -> {previous}<v>", *chain),
            "zero": edge_set(f"input -> {previous}<q><k><v>", f"input -> {induction}<q><v>", *chain),
        },
        roles=roles,
        direction="noising",
        note="The edges form a chain: breaking any of them in the clean run loses the answer.",
        draw=draw,
    )


def _draw(index: int, rng: random.Random, n_ctx: int, d_vocab: int) -> PlantedPair:
    """Different tokens everywhere but the A at the end; A stands before C in every other pair."""
    low, high = sorted(rng.sample(range(1, n_ctx - 3), 2))
    high += 1  # B must not be C
    a, c = (low, high) if index % 2 == 0 else (high, low)
    clean = [BOS, *rng.sample(range(1, d_vocab), n_ctx - 2)]
    clean.append(clean[a])
    corrupted = list(clean)
    corrupted[a], corrupted[c] = clean[c], clean[a]
    return PlantedPair(
        clean=tuple(clean),
        corrupted=tuple(corrupted),
        answer=clean[a + 1],
        wrong=clean[c + 1],
        positions={"A": a, "B": a + 1, "C": c, "D": c + 1, "END": n_ctx - 1},
    )
