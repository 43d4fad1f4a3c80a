"""Edge attribution as one contraction: (ablated - current) writer outputs against reader gradients.

For writer s and reader r, the sum over tokens of d_s . g_r with d_s = dz_s W_O and, for a head's input,
g_r = J^T (W_r dq_r) with the Jacobian J of the norm at the stream that was read. Every gradient method is a different
backward pass in front of this function.

With v = w * (W_r dq_r) the pullback is (1/sigma) (v - mean(v) - xhat mean(xhat . v)). The first two terms are the weights,
scaled and centred, applied to dq_r / sigma, so several gradients (the steps of an integral) are summed in ``d_head``
numbers a token before anything else. The third is a product of two numbers a token: d_s . xhat, and mean(xhat . v) / sigma,
which is the inner product of the projected query (less its constant part) and its gradient.

Tokens are taken in chunks, in which the writers are one matrix [writer, token * d_model] and the readers of a layer
another, so a layer costs one matrix product; sums over tokens make chunks exact. The values returned are minus d . g:
positive where the current value of the edge helps the metric.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.model.bridge import Model
from circuitfind.model.forward import BlockRun, Trace
from circuitfind.model.gradients import BlockGradients
from circuitfind.model.layer import Layer
from circuitfind.model.norms import Norm
from circuitfind.model.rules import PLAIN, Rules
from circuitfind.model.transfer import to_host, upload
from circuitfind.model.writes import Writes

CHUNK_BYTES = 64 << 20
"""Size of the matrix of writers in one chunk."""


@dataclass(frozen=True)
class Attribution:
    """Sums over the tokens of a batch, group by group of positions."""

    edges: Float[np.ndarray, "group writer reader"]
    nodes: Float[np.ndarray, "group writer"]


@dataclass
class _LayerSum:
    """Summed gradients of one block's readers; see the module. ``outer`` holds a pair (xhat, coefficient) for each run."""

    heads: Float[Tensor, "row pos heads d_head"] | None = None
    mlp: Float[Tensor, "row pos d_model"] | None = None
    behind_heads: Float[Tensor, "row pos d_model"] | None = None
    behind_mlp: Float[Tensor, "row pos d_model"] | None = None
    features: Float[Tensor, "row pos d_model"] | None = None
    units: list[Float[Tensor, "row pos unit"]] = field(default_factory=list)
    unit_outer: list[tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos unit"]]] = field(
        default_factory=list
    )
    outer: list[tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos heads"]]] = field(
        default_factory=list
    )


class ReaderGradients:
    """Gradients at every reader, summed over the runs that a method takes.

    Args:
        model: The model.
        rules: Those of the backward passes.
    """

    def __init__(self, model: Model, rules: Rules = PLAIN) -> None:
        self._model, self._rules = model, rules
        self.layers = [_LayerSum() for _ in model.layers]
        self.logits: Float[Tensor, "row pos d_model"] | None = None
        self.behind_input: Float[Tensor, "row pos d_model"] | None = None

    def add(self, trace: Trace, found: BlockGradients, weight: float = 1.0) -> None:
        """Add a block of one backward pass at ``trace``; hand it to ``Runs.backward`` as the visitor.

        Every block of a pass must come, the last one first, and then its ends.
        """
        layer, block = self._model.layers[found.layer], trace.blocks[found.layer]
        into = self.layers[found.layer]
        joined = torch.cat((found.q[0], found.k[0], found.v[0]), 2) * weight
        inverse = layer.norm.inverse_scale(block.resid) if layer.norm.kind != "none" else None
        if inverse is not None:
            joined = joined * inverse[..., None]
            if not self._rules.freeze_norms:
                coefficient = (_varying(layer, block, trace) * joined).sum(-1) / self._model.d_model
                into.outer.append((layer.norm.hat(block.resid), coefficient))
        into.heads = _plus(into.heads, joined)
        into.behind_heads = _plus(into.behind_heads, found.behind_heads[0] * weight)
        if found.mlp is not None and found.behind_mlp is not None:
            into.mlp = _plus(into.mlp, found.mlp[0] * weight)
            into.behind_mlp = _plus(into.behind_mlp, found.behind_mlp[0] * weight)
            if found.features is not None:
                into.features = _plus(into.features, found.features[0] * weight)
            if layer.parts is not None:
                self._add_units(trace, found, weight)
        if found.layer == len(self._model.layers) - 1:
            self.logits = _plus(self.logits, trace.place.spread(found.final[0][:, None]) * weight)

    def _add_units(self, trace: Trace, found: BlockGradients, weight: float) -> None:
        """Add what the units of a split MLP read: what heads are, with one number each in place of ``d_head``."""
        index, last = found.layer, found.layer == len(self._model.layers) - 1
        layer, block, into = self._model.layers[index], trace.blocks[index], self.layers[index]
        parts = layer.parts
        assert parts is not None
        assert found.parts is not None
        assert block.parts is not None

        def whole(x: Tensor) -> Tensor:
            return trace.place.spread(x) if last else x

        read = block.mid
        if self._model.anatomy.parallel:
            read = trace.place.at_answer(block.resid) if last else block.resid
        scaled = [grad[0] * weight for grad in found.parts.channels]
        if parts.norm.kind != "none":
            inverse = parts.norm.inverse_scale(read)
            scaled = [grad * inverse for grad in scaled]
            if not self._rules.freeze_norms:
                before = parts.before(block.saved, block.parts)
                each = [
                    (pre - _constant(parts.norm, *read_through)) * grad
                    for pre, read_through, grad in zip(before, parts.reads, scaled, strict=True)
                ]
                coefficient = torch.stack(each).sum(0) / self._model.d_model
                into.unit_outer.append((whole(parts.norm.hat(read)), whole(coefficient)))
        new = [whole(grad) for grad in scaled]
        into.units = [a + b for a, b in zip(into.units, new, strict=True)] if into.units else new

    def add_input(self, behind: Float[Tensor, "cut row pos d_model"], weight: float = 1.0) -> None:
        """Add the gradient on the embedded prompts that ends a backward pass."""
        self.behind_input = _plus(self.behind_input, behind[0] * weight)


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _constant(norm: Norm, weight: Tensor, bias: Tensor | None) -> Tensor | float:
    """What a projection of the normalised stream has whatever the stream is."""
    found: Tensor | float = 0.0 if norm.bias is None else norm.bias @ weight
    return found if bias is None else found + bias


def _varying(layer: Layer, block: BlockRun, trace: Trace) -> Float[Tensor, "row pos heads d_head"]:
    """Projected queries, keys and values without the part that no input changes: (xhat * w) W."""
    assert block.projected is not None
    q, k, v = block.projected
    if q.shape[1] != k.shape[1]:
        q = trace.place.spread(q)
    joined = torch.cat((q, k, v), 2)
    constant = layer.b_qkv
    if layer.norm.bias is not None:
        part = layer.norm.bias @ layer.w_qkv
        constant = part if constant is None else part + constant
    return joined if constant is None else joined - constant.unflatten(0, joined.shape[2:])


def attribute(
    gradients: ReaderGradients,
    model: Model,
    current: Writes,
    ablated: Writes,
    groups: Int[Tensor, "row pos"] | None = None,
    n_groups: int = 1,
) -> Attribution:
    """Attribution of every edge and, from the gradient on the stream, of every node.

    The node values come from other gradients than the edge values; each writer's edges must sum to its node.

    Args:
        gradients: Those of a batch.
        model: The model.
        n_groups: Groups of positions.
        current: What writers wrote.
        ablated: What they write when replaced.
        groups: For each token the group of positions that it is summed in; all in one if None.
    """
    anatomy, d_model = model.anatomy, model.d_model
    writers, readers = anatomy.edge_mask.shape
    table = torch.zeros(n_groups, writers, readers, device=model.device, dtype=torch.float32)
    nodes = torch.zeros(n_groups, writers, device=model.device, dtype=torch.float32)
    d_writes = current.minus(ablated).map(lambda x: x.flatten(0, 1))
    total = d_writes.input.shape[0]
    size = max(1, min(total, CHUNK_BYTES // (writers * d_model * 4)))
    if model.placement is not None and model.placement.offloads:
        size = total  # every chunk goes through all weights; the memory plan has room for the whole batch ("gap")
    buffer = torch.empty(writers, size, d_model, device=model.device, dtype=current.input.dtype)
    hats = [hat.flatten(0, 1) for part in gradients.layers for hat, _ in (*part.outer, *part.unit_outer)]
    for group, part in _chunks(groups, total, size):
        delta = buffer[:, : len(d_writes.input[part])]
        delta[0] = d_writes.input[part]
        for index, layer in enumerate(model.layers):
            torch.matmul(
                d_writes.z[index][part].transpose(0, 1), layer.w_o, out=delta[anatomy.head_slice(index)]
            )
            if d_writes.mlp is not None:
                d_writes.into(model, index, delta[anatomy.mlp_slice(index)], part)
        flat = delta.flatten(1)
        along = None  # d_s . xhat by token, writer and norm
        if hats:
            along = torch.bmm(delta.transpose(0, 1), torch.stack([hat[part] for hat in hats], -1))
        done = 0
        for index in range(len(model.layers)):
            _layer(gradients, model, index, part, flat, table[group])
            done = _outer(gradients, model, index, part, along, done, table[group])
            if model.layers[index].parts is not None:
                done = _units(gradients, model, index, part, delta, along, done, table[group])
        assert gradients.logits is not None
        table[group, :, -1] += flat @ gradients.logits.flatten(0, 1)[part].flatten()
        _nodes(gradients, model, part, flat, nodes[group])
    edges, found = (x.astype(np.float64) for x in to_host(table, nodes))
    edges[:, ~anatomy.edge_mask] = np.nan
    return Attribution(edges, found)


def _folded(layer: Layer) -> Float[Tensor, "heads d_head d_model"]:
    """W_Q, W_K and W_V with the norm's weight multiplied in, and centred where the norm centres."""
    return torch.unflatten(fold(layer.norm, layer.w_qkv), 1, (-1, layer.d_head)).permute(1, 2, 0)


def fold(norm: Norm, weight: Float[Tensor, "d_model out"]) -> Float[Tensor, "d_model out"]:
    """Weights with the norm's weight multiplied in, and centred where the norm centres."""
    found = weight if norm.weight is None else weight * norm.weight[:, None]
    return found - found.mean(0) if norm.kind == "ln" else found


def _chunks(groups: Tensor | None, total: int, size: int) -> Iterator[tuple[int, slice | Tensor]]:
    """(group, tokens) such that a chunk lies in one group."""
    if groups is None:
        for start in range(0, total, size):
            yield 0, slice(start, min(start + size, total))
        return
    (labels,) = to_host(groups.flatten())
    for group in np.unique(labels):
        members = np.flatnonzero(labels == group)
        for start in range(0, len(members), size):
            yield int(group), upload(members[start : start + size], groups.device)


def _layer(
    gradients: ReaderGradients,
    model: Model,
    index: int,
    part: slice | Tensor,
    flat: Tensor,
    table: Tensor,
) -> None:
    """Add the edges into one layer's heads and MLP, but for the outer products."""
    anatomy, summed = model.anatomy, gradients.layers[index]
    assert summed.heads is not None
    heads = summed.heads.flatten(0, 1)[part].transpose(0, 1)
    inputs = torch.matmul(heads, _folded(model.layers[index]))  # [heads, token, d_model]
    before, columns = _heads_of(model, index)
    table[:before, columns] += flat[:before] @ inputs.flatten(1).T
    if summed.mlp is not None and model.layers[index].parts is None:
        before = anatomy.rows_before(index, "mlp")
        column = anatomy.reader_slice(index, "mlp").start
        table[:before, column] += flat[:before] @ summed.mlp.flatten(0, 1)[part].flatten()


def _units(
    gradients: ReaderGradients,
    model: Model,
    index: int,
    part: slice | Tensor,
    delta: Float[Tensor, "writer token d_model"],
    along: Tensor | None,
    done: int,
    table: Tensor,
) -> int:
    """Add the edges into the parts of a split MLP; returns how many columns of ``along`` are used up."""
    anatomy, summed, parts = model.anatomy, gradients.layers[index], model.layers[index].parts
    assert parts is not None
    assert summed.mlp is not None
    before, first = anatomy.rows_before(index, "mlp"), anatomy.reader_slice(index, "mlp").start
    below = delta[:before]
    found = torch.zeros(before, len(parts.units), device=table.device, dtype=table.dtype)
    for (weight, _), grad in zip(parts.reads, summed.units, strict=True):
        read = torch.matmul(below, fold(parts.norm, weight))  # [writer, token, unit]
        found += (read * grad.flatten(0, 1)[part]).sum(1)
    for _, coefficient in summed.unit_outer:
        assert along is not None
        found -= along[:, :before, done].T @ coefficient.flatten(0, 1)[part]
        done += 1
    each = parts.by_node(found)
    total = below.flatten(1) @ summed.mlp.flatten(0, 1)[part].flatten()
    if parts.live and parts.error is not None:
        assert summed.features is not None
        through = below.flatten(1) @ summed.features.flatten(0, 1)[part].flatten()
        each[:, parts.error] = total - through
        total = through
    each[:, parts.rest] = total - found.sum(1)
    table[:before, first : first + parts.n_readers] += each[:, : parts.n_readers]
    return done


def _heads_of(model: Model, index: int) -> tuple[int, slice]:
    anatomy = model.anatomy
    columns = slice(anatomy.reader_slice(index, "q").start, anatomy.reader_slice(index, "v").stop)
    return anatomy.rows_before(index, "q"), columns


def _outer(
    gradients: ReaderGradients,
    model: Model,
    index: int,
    part: slice | Tensor,
    along: Tensor | None,
    done: int,
    table: Tensor,
) -> int:
    """Take off what the scale of a layer's norm passes back; returns how many columns of ``along`` are used up."""
    before, columns = _heads_of(model, index)
    for _, coefficient in gradients.layers[index].outer:
        assert along is not None
        table[:before, columns] -= along[:, :before, done].T @ coefficient.flatten(0, 1)[part]
        done += 1
    return done


def _nodes(
    gradients: ReaderGradients, model: Model, part: slice | Tensor, flat: Tensor, nodes: Tensor
) -> None:
    """Add each writer's output against the gradient on the stream behind it."""
    anatomy = model.anatomy
    assert gradients.behind_input is not None
    nodes[0] += flat[0] @ gradients.behind_input.flatten(0, 1)[part].flatten()
    for index, summed in enumerate(gradients.layers):
        rows = anatomy.head_slice(index)
        assert summed.behind_heads is not None
        nodes[rows] += flat[rows] @ summed.behind_heads.flatten(0, 1)[part].flatten()
        if summed.behind_mlp is not None:
            rows = anatomy.mlp_slice(index)
            nodes[rows] += flat[rows] @ summed.behind_mlp.flatten(0, 1)[part].flatten()
