"""How fast this machine runs blocks of a shape: one block with random numbers for weights, timed for a second or two."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from circuitfind.model.shapes import Shape

if TYPE_CHECKING:
    import torch

    from circuitfind.model.bridge import Model

MOST_WEIGHTS = 1 << 26
"""Numbers in the block that is timed; of larger blocks a part of the heads and neurons is, at the full width."""
LONG_ENOUGH = 0.2
"""Seconds of passes that are timed at the least."""
MOST_PASSES = 50


@dataclass(frozen=True)
class Speed:
    """Operations in a second.

    Attributes:
        flops: Of forward passes, as ``Shape.flops`` counts them.
        told: How it is known.
        timed: Whether it was timed here.
    """

    flops: float
    told: str
    timed: bool = True


def timed(shape: Shape, pairs: int, length: int, device: torch.device) -> Speed:
    """Time one block of a shape on a batch of random numbers.

    Args:
        shape: Of the model; nothing of it is loaded.
        pairs: Rows of the batch.
        length: Tokens of each.
        device: Where.
    """
    import torch

    from circuitfind.model.forward import Place, run_block

    part = _part(shape)
    generator = torch.Generator(device=device).manual_seed(0)
    model = _block(part, generator, device)
    x = torch.randn(pairs, length, part.d_model, generator=generator, device=device)
    place = Place(0, length, torch.full((pairs,), length - 1, device=device), everywhere=True)
    passes, total = 0, 0.0
    with torch.no_grad():
        for number in range(MOST_PASSES + 1):
            start = time.perf_counter()
            run_block(model, 0, x, place, None, keep=False)[0].flatten()[0].item()
            if number:  # the first one is slower
                passes, total = passes + 1, total + time.perf_counter() - start
            if total >= LONG_ENOUGH:
                break
    flops = passes * pairs * length * replace(part, n_layers=1).flops(length) / total
    share = part.block_parameters / shape.block_parameters
    what = "a block of this shape" if share == 1 else f"{share:.0%} of a block of this shape"
    return Speed(flops, f"measured here on {what}, {pairs} x {length} tokens on {device}")


def _part(shape: Shape) -> Shape:
    """The shape, with fewer heads and neurons where a block is large."""
    while shape.block_parameters > MOST_WEIGHTS and (shape.n_kv_heads > 1 or shape.d_mlp > 1):
        group, kv_heads = shape.n_heads // shape.n_kv_heads, max(1, shape.n_kv_heads // 2)
        shape = replace(
            shape,
            n_kv_heads=kv_heads,
            n_heads=kv_heads * group,
            d_mlp=max(1, shape.d_mlp // 2) if shape.d_mlp else 0,
        )
    return shape


def _block(shape: Shape, generator: torch.Generator, device: torch.device) -> Model:
    """What ``run_block`` needs of a model: one block of random numbers."""
    import torch

    from circuitfind.model.attention import Attention
    from circuitfind.model.bridge import Model
    from circuitfind.model.layer import Layer
    from circuitfind.model.mlp import MLP
    from circuitfind.model.norms import Norm

    def numbers(*size: int) -> torch.Tensor:
        found: torch.Tensor = torch.randn(*size, generator=generator, device=device) / size[0] ** 0.5
        return found

    d = shape.d_model
    norm = Norm("rms" if shape.norm_vectors == 1 else "ln", torch.ones(d, device=device))
    act = torch.nn.functional.silu if shape.gated else torch.nn.functional.gelu
    mlp = None
    if shape.d_mlp:
        gate = numbers(d, shape.d_mlp) if shape.gated else None
        mlp = MLP(numbers(d, shape.d_mlp), numbers(shape.d_mlp, d), None, None, act, True, gate)
    w_o = numbers(shape.heads, d).unflatten(0, (shape.n_heads, shape.d_head))
    layer = Layer(
        sites={},
        attention=Attention(shape.n_heads // shape.n_kv_heads, shape.d_head**-0.5, causal=shape.causal),
        norm=norm,
        post_norm=None,
        w_qkv=numbers(d, shape.qkv),
        b_qkv=None,
        w_o=w_o,
        w_o_raw=w_o,
        b_o=None,
        mlp_norm=norm,
        mlp=mlp,
    )
    model = object.__new__(Model)  # with what passes over blocks look at, and no bridge
    model.layers = [layer]
    model.anatomy = replace(shape, n_layers=1).anatomy
    model.passes = {"forward": 0, "backward": 0, "work": 0}
    model.precision = "fp32"
    return model
