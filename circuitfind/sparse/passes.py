"""The forward pass with something done at the points of its blocks; autograd goes through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.model.bridge import Model
from circuitfind.model.forward import Place, attend
from circuitfind.sparse.sites import Point

Visit = Callable[[Point, Tensor], Tensor]
"""Sees what stands at a point and gives what stands there from then on: ``[row, pos, d_model]`` both."""


def run_points(
    model: Model, place: Place, stream: Float[Tensor, "row pos d_model"], visit: Visit, *, begin: int = 0
) -> Float[Tensor, "row d_model"]:
    """Run the blocks from one on, at every position; the stream that the final norm reads.

    Args:
        model: The model.
        place: Where the rows stand.
        stream: What enters block ``begin`` (the end of the model, if that is past its last block).
        visit: Called at ``in`` (the stream into a block), ``attn`` (what attention adds), ``mid`` (the stream behind it; not
            in parallel blocks), ``mlp`` (what the MLP adds) and ``post`` (the stream behind the block) of each block.
        begin: The first block.
    """
    model.passes["forward"] += 1
    x = stream
    for index in range(begin, len(model.layers)):
        layer = model.layers[index]
        model.passes["work"] += x.shape[0] * x.shape[1]
        x = visit((index, "in"), x)
        written = layer.heads_out(attend(layer, x, place, None, last=False)[3])
        mid = x + visit((index, "attn"), written)
        if layer.mlp is None:
            x = visit((index, "post"), visit((index, "mid"), mid))
            continue
        if model.anatomy.parallel:
            read = x
        else:
            read = mid = visit((index, "mid"), mid)
        x = visit((index, "post"), mid + visit((index, "mlp"), layer.mlp(layer.mlp_norm(read))))
    return place.at_answer(x)[:, 0]


def recorded(
    model: Model,
    place: Place,
    stream: Float[Tensor, "row pos d_model"],
    points: Sequence[Point],
    *,
    begin: int = 0,
) -> tuple[Float[Tensor, "row d_model"], dict[Point, Float[Tensor, "row pos d_model"]]]:
    """A plain run and what stood at some points in it."""
    seen: dict[Point, Tensor] = {}
    wanted = set(points)

    def visit(point: Point, x: Tensor) -> Tensor:
        if point in wanted:
            seen[point] = x
        return x

    return run_points(model, place, stream, visit, begin=begin), seen


def with_values(
    model: Model,
    place: Place,
    stream: Float[Tensor, "row pos d_model"],
    values: Mapping[Point, Float[Tensor, "row pos d_model"]],
    *,
    begin: int = 0,
) -> Float[Tensor, "row d_model"]:
    """A run in which what stands at some points is given."""
    return run_points(model, place, stream, values.get, begin=begin)


def gradients(
    model: Model, values: Float[Tensor, " row"], of: Sequence[Tensor]
) -> tuple[Float[Tensor, "row pos d_model"], ...]:
    """The gradient of the sum of some values at some tensors; zeros where it does not depend on them."""
    model.passes["backward"] += 1
    found: Sequence[Tensor | None] = torch.autograd.grad(
        values.sum(), list(of), retain_graph=True, allow_unused=True
    )
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(of, found, strict=True))
