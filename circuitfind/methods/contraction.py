"""Edge attribution as one contraction: (ablated - current) writer outputs against reader gradients.

For writer s and reader r, the sum over tokens of d_s . g_r with d_s = dz_s W_O and, for a head's input,
g_r = J^T (W_Q dq_r) with the Jacobian J of the norm at the stream that was read. Every gradient method is a different
backward pass in front of this function. Tokens are taken in chunks, in which the writers are one matrix
[writer, token * d_model] and the readers of a layer another, so a layer costs one matrix product; sums over tokens make
chunks exact. The values returned are minus d . g: positive where the current value of the edge helps the metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.model.bridge import Model
from circuitfind.model.gradients import Gradients
from circuitfind.model.writes import Writes

CHUNK_BYTES = 32 << 20
"""Size of the matrix of writers in one chunk: large enough for the product, small enough to stay near the cache."""


@dataclass(frozen=True)
class Attribution:
    """Sums over the tokens of a batch."""

    edges: Float[np.ndarray, "writer reader"]
    nodes: Float[np.ndarray, " writer"]


def attribute(model: Model, gradients: Gradients, current: Writes, ablated: Writes) -> Attribution:
    """Attribution of every edge and, from the gradient on the stream, of every node.

    The node values come from other gradients than the edge values; each writer's edges must sum to its node.
    """
    anatomy, d_model = model.anatomy, model.d_model
    writers, readers = anatomy.edge_mask.shape
    table = torch.zeros(writers, readers, device=model.device, dtype=torch.float32)
    nodes = torch.zeros(writers, device=model.device, dtype=torch.float32)
    d_input = (current.input - ablated.input).flatten(0, 1)
    d_z = (current.z - ablated.z).flatten(1, 2)
    d_mlp = None if current.mlp is None or ablated.mlp is None else (current.mlp - ablated.mlp).flatten(1, 2)
    total = d_input.shape[0]
    size = max(1, min(total, CHUNK_BYTES // (writers * d_model * 4)))
    buffer = torch.empty(writers, size, d_model, device=model.device, dtype=current.input.dtype)
    for start in range(0, total, size):
        part = slice(start, min(start + size, total))
        delta = buffer[:, : part.stop - part.start]
        delta[0] = d_input[part]
        for index, layer in enumerate(model.layers):
            torch.matmul(d_z[index, part].transpose(0, 1), layer.w_o, out=delta[anatomy.head_slice(index)])
            if d_mlp is not None:
                delta[anatomy.mlp_row(index)] = d_mlp[index, part]
        flat = delta.flatten(1)
        for index in range(len(model.layers)):
            _layer(model, gradients, index, part, flat, table)
        table[:, -1] += flat @ gradients.logits.flatten(0, 1)[part].flatten()
        _nodes(model, gradients, part, flat, nodes)
    edges = table.cpu().numpy().astype(np.float64)
    edges[~anatomy.edge_mask] = np.nan
    return Attribution(edges, nodes.cpu().numpy().astype(np.float64))


def _layer(model: Model, gradients: Gradients, index: int, part: slice, flat: Tensor, table: Tensor) -> None:
    """Add the edges into one layer's heads and MLP."""
    anatomy, layer = model.anatomy, model.layers[index]
    pulled = []
    for grads, weight in ((gradients.q, layer.w_q), (gradients.k, layer.w_k), (gradients.v, layer.w_v)):
        heads = grads[index].flatten(0, 1)[part].unflatten(-1, (weight.shape[0], -1)).transpose(0, 1)
        pulled.append(torch.matmul(heads, weight.transpose(1, 2)))
    inputs = layer.norm.pullback(gradients.resid[index].flatten(0, 1)[part], torch.cat(pulled))
    before = anatomy.rows_before(index, "q")
    columns = slice(anatomy.reader_slice(index, "q").start, anatomy.reader_slice(index, "v").stop)
    table[:before, columns] += flat[:before] @ inputs.flatten(1).T
    if anatomy.has_mlp:
        before = anatomy.rows_before(index, "mlp")
        column = anatomy.reader_slice(index, "mlp").start
        table[:before, column] += flat[:before] @ gradients.mlp[index].flatten(0, 1)[part].flatten()


def _nodes(model: Model, gradients: Gradients, part: slice, flat: Tensor, nodes: Tensor) -> None:
    """Add each writer's output against the gradient on the stream behind it."""
    anatomy = model.anatomy
    nodes[0] += flat[0] @ gradients.behind_input.flatten(0, 1)[part].flatten()
    for index in range(len(model.layers)):
        rows = anatomy.head_slice(index)
        nodes[rows] += flat[rows] @ gradients.behind_heads[index].flatten(0, 1)[part].flatten()
        if anatomy.has_mlp:
            row = anatomy.mlp_row(index)
            nodes[row] += flat[row] @ gradients.behind_mlp[index].flatten(0, 1)[part].flatten()
