"""Two logic gates: two heads report to the end whether their cues are on, an MLP puts them together.

A cue is a token; some tokens belong to a class, the others to none. Each head looks from the end at its own
cue and writes the cue's class. For each class one neuron reads both reports; when it says so, the answer is
the class's token, otherwise it is "no", whose logit is a constant. In the corrupted prompt neither cue
belongs to a class.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

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

BOS = 0
# and: relu(a + b - THRESHOLD) is 0 when one arm reports 1. or: 1 - relu(1 - GAIN * (a + b)) is 1 when one
# reports 0.93.
THRESHOLD = 1.05
GAIN = 1.2


@dataclass(frozen=True)
class _Layout:
    """Where the cues stand, and what the tokens mean."""

    n_ctx: int
    cues: tuple[int, int]
    classes: tuple[tuple[int, ...], ...]
    off: tuple[int, ...]
    yes: tuple[int, ...]
    no: int


def build_and(seed: int) -> Planted:
    """Both heads are needed."""
    return _build(
        "and-gate",
        seed,
        "noising",
        "The gate is open in the clean run and losing either head closes it, while under denoising one head "
        "alone restores nothing.",
    )


def build_or(seed: int) -> Planted:
    """Either head is enough."""
    return _build(
        "or-gate",
        seed,
        "denoising",
        "Either head saturates the gate: the smallest sufficient circuit has only one arm, and noising one "
        "arm changes nothing (its gradient in the clean run is 0); the edges listed are the union of both "
        "arms, and denoising shows each.",
    )


def _build(name: str, seed: int, direction: str, note: str) -> Planted:
    """Draw a model; the arms may share a layer, the gate is in any layer from theirs on."""
    rng, generator = sources(name, seed)
    n_ctx = rng.randint(8, 12)
    n_classes, size, n_off = rng.randint(2, 3), rng.randint(2, 3), rng.randint(4, 6)
    d_vocab = 1 + n_classes * size + n_off + n_classes + 1
    shape = Shape(
        n_layers=rng.choice((2, 2, 3, 4)),
        n_heads=rng.randint(2, 4),
        d_head=n_classes + rng.randint(2, 12),
        d_model=d_vocab + n_ctx + 3 * n_classes + rng.randint(0, 12),
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        attn_only=False,
        d_mlp=n_classes + rng.randint(8, 24),
    )
    tokens = iter(rng.sample(range(1, d_vocab), d_vocab - 1))
    first, second = rng.sample(range(1, n_ctx - 1), 2)
    layout = _Layout(
        n_ctx=n_ctx,
        cues=(first, second),
        classes=tuple(tuple(next(tokens) for _ in range(size)) for _ in range(n_classes)),
        off=tuple(next(tokens) for _ in range(n_off)),
        yes=tuple(next(tokens) for _ in range(n_classes)),
        no=next(tokens),
    )
    # The last layer's heads may be arms too: a layer's MLP reads its heads.
    cells = [(layer, head) for layer in range(shape.n_layers) for head in range(shape.n_heads)]
    arms = rng.sample(cells, 2)
    gate = rng.randint(max(layer for layer, _ in arms), shape.n_layers - 1)

    stream = Residual(shape.d_model, generator)
    token, position = stream.take(d_vocab), stream.take(n_ctx)
    reports = (stream.take(n_classes), stream.take(n_classes))
    out = stream.take(n_classes)
    member = torch.cat([one_hot(members, token) for members in layout.classes])

    weights = Weights(shape, generator)
    weights.embed(token, position)
    for layer in range(shape.n_layers):
        weights.noise_mlp(layer)
    for arm, cue, report in zip(arms, layout.cues, reports, strict=True):
        sharp = sharpness(rng.uniform(0.93, 0.96), n_ctx - 1)
        weights.head(arm, one_hot(n_ctx - 1, position), one_hot(cue, position), member, report, sharp)
    _write_gate(weights, name, gate, reports, out)
    scale = rng.uniform(4.0, 8.0)
    weights.unembed(out, layout.yes, scale)
    weights.logit_bias(layout.no, scale / 2)

    a, b = (f"a{layer}.h{head}" for layer, head in arms)
    roles = fill(weights, {a: "arm-a", b: "arm-b", f"m{gate}": "gate"}, rng)
    onward = (f"{a} -> m{gate}", f"{b} -> m{gate}", f"m{gate} -> logits")

    def draw(_index: int, rng: random.Random) -> PlantedPair:
        return _draw(rng, layout)

    return Planted(
        name=name,
        seed=seed,
        description=DESCRIPTIONS[name],
        config=shape.config(),
        state=weights.finish(),
        edges={
            "resample": edge_set(f"input -> {a}<v>", f"input -> {b}<v>", *onward),
            "zero": edge_set(f"input -> {a}<q><k><v>", f"input -> {b}<q><k><v>", *onward),
        },
        roles=roles,
        direction=direction,
        note=note,
        draw=draw,
    )


def _write_gate(weights: Weights, name: str, layer: int, reports: tuple[Tensor, Tensor], out: Tensor) -> None:
    """One neuron for each class. reports: two of [n_classes, d_model]; out [n_classes, d_model]."""
    both = reports[0] + reports[1]
    ones = torch.ones(len(out), dtype=out.dtype)
    if name == "and-gate":
        # About 1 when both arms report 0.95.
        weights.neurons(layer, both, -THRESHOLD * ones, out / (1.9 - THRESHOLD), torch.zeros_like(out[0]))
    else:
        # The bias says yes to every class, and the neuron of a class takes it back unless an arm reports the
        # class.
        weights.neurons(layer, -GAIN * both, ones, -out, out.sum(dim=0))


def _draw(rng: random.Random, layout: _Layout) -> PlantedPair:
    """Both cues from one class in the clean prompt, from none in the corrupted one."""
    chosen = rng.randrange(len(layout.classes))
    clean = [BOS, *(rng.choice(layout.off) for _ in range(layout.n_ctx - 1))]
    corrupted = list(clean)
    for cue in layout.cues:
        clean[cue] = rng.choice(layout.classes[chosen])
    return PlantedPair(
        clean=tuple(clean),
        corrupted=tuple(corrupted),
        answer=layout.yes[chosen],
        wrong=layout.no,
        positions={"CUE_A": layout.cues[0], "CUE_B": layout.cues[1], "END": layout.n_ctx - 1},
    )
