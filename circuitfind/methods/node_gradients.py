"""What methods have in common that score nodes by gradients: products of differences and gradients, block by block.

A node is a value that the model computes: what a writer writes (``input``, a head's output, an MLP's), a query, key or
value as its projection gives it, or the activation of an MLP neuron. Its effect in a prompt is (clean - ablated) . dm/dnode,
summed over positions (or over each group of positions, where they are kept apart). Everything comes from the gradients that
a backward pass hands out anyway; no edges are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Positions
from circuitfind.errors import UnsupportedError
from circuitfind.methods.gradient_edges import needs_corrupted_run
from circuitfind.methods.positions import Grouping, group_positions, merged
from circuitfind.model.bridge import Model
from circuitfind.model.contrast import Contrast
from circuitfind.model.forward import BlockRun, Place, Trace
from circuitfind.model.gradients import BlockGradients
from circuitfind.model.layer import Layer
from circuitfind.model.runs import Runs
from circuitfind.model.transfer import index_of, to_host


@dataclass(frozen=True)
class Heads:
    """The attention of one block where a gradient is taken, and what its queries, keys and values are moved to.

    Attributes:
        last: Whether this is the last block, in which only the answer position asks.
        at: The run whose gradients are taken.
        other: The run that patched values come from; None where they are zero.
        sign: What (at - other) is multiplied by to become (clean - ablated).
    """

    layer: Layer
    last: bool
    place: Place
    at: BlockRun
    other: BlockRun | None
    sign: float

    @property
    def visible(self) -> Bool[Tensor, "#row 1 query key"]:
        return self.place.visible(self.layer, self.last)

    def moved(self, slot: Literal["q", "k"]) -> Float[Tensor, "row heads pos d_head"]:
        """The other run's queries or keys as attention uses them."""
        if self.other is not None:
            return self.other.q if slot == "q" else self.other.k
        assert self.at.projected is not None
        positions = self.place.queries(self.last) if slot == "q" else self.place.positions
        return self.layer.attention.prepare(
            slot, torch.zeros_like(self.at.projected["qk".index(slot)]), positions
        )

    def narrowed(self, x: Float[Tensor, "cut row pos *rest"]) -> Float[Tensor, "cut row query *rest"]:
        """The positions where queries are."""
        return torch.stack([self.place.at_answer(one) for one in x]) if self.last else x

    def widened(self, x: Float[Tensor, "cut row query heads"]) -> Float[Tensor, "cut row pos heads"]:
        """Zero where no query is."""
        return self.place.spread(x, 1) if self.last else x


SlotEffect = Callable[[Heads, BlockGradients, str], Float[Tensor, "cut row pos heads"]]
"""The effect of each query, key or value (``q``, ``k``, ``v``) of a block, by position."""


def linear(heads: Heads, found: BlockGradients, slot: str) -> Float[Tensor, "cut row pos heads"]:
    """(clean - ablated) . gradient at a projection: attribution patching."""
    number = "qkv".index(slot)
    assert heads.at.projected is not None
    change = heads.at.projected[number]
    if heads.other is not None:
        assert heads.other.projected is not None
        change = change - heads.other.projected[number]
    grad = (found.q, found.k, found.v)[number]
    if slot == "q":
        return heads.widened(inner(change, heads.narrowed(grad)) * heads.sign)
    return inner(change, grad) * heads.sign


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product over the last dimension, summed in at least single precision."""
    return (a * b).sum(-1, dtype=at_least_single(a.dtype))


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """What sums are taken in."""
    return torch.promote_types(dtype, torch.float32)


def node_scores(
    runs: Runs,
    name: str,
    *,
    ablation: Ablation,
    direction: Direction,
    positions: Positions,
    slot_effect: SlotEffect = linear,
    grad_drop: bool = False,
    neurons: bool = False,
) -> Scores:
    """Scores of every writer, and of queries, keys, values and (if asked for) neurons beside them.

    ``noising`` takes the gradient at the clean run, ``denoising`` at the corrupted one. Scores are means over prompts,
    positive where the clean value helps; with ``grad_drop`` they are means of sizes, never negative (methods/atp_star.py).

    ``extra`` has ``readers``, the scores of queries, keys and values by reader, NaN at other readers, and NaN altogether
    where the ablation gives them no value; ``neurons``, by layer; ``*_by_position`` of both where positions are kept
    apart; and with ``grad_drop`` ``signed``, the plain attribution of every writer with its sign.

    Raises:
        UnsupportedError: Denoising without a corrupted run, a metric without gradient there, or neurons that the model
            does not have or that the ablation gives no value.
    """
    needs_corrupted_run(direction, ablation)
    runs.check_gradient("clean" if direction == "noising" else "corrupted")
    if neurons:
        _check_neurons(runs.model, ablation)
    return runs.fitted(
        lambda: _Job(runs, ablation, direction, slot_effect, grad_drop, neurons).scores(name, positions)
    )


def _check_neurons(model: Model, ablation: Ablation) -> None:
    if not model.has_mlp:
        raise UnsupportedError(
            f"{model.name} has no MLPs, so it has no neurons", hint="leave the option neurons out"
        )
    if model.anatomy.split:
        raise UnsupportedError(
            "the MLPs are split into their parts already", hint="leave the option neurons out"
        )
    if ablation not in ("resample", "zero"):
        raise UnsupportedError(
            f"{ablation} ablation replaces what an MLP writes and gives its neurons no value",
            hint="use --ablation resample or zero, or leave the option neurons out",
        )


@dataclass(frozen=True)
class _Job:
    """One run of a method; see ``node_scores``."""

    runs: Runs
    ablation: Ablation
    direction: Direction
    slot_effect: SlotEffect
    grad_drop: bool
    neurons: bool

    def scores(self, name: str, positions: Positions) -> Scores:
        runs, model = self.runs, self.runs.model
        writers, readers = len(model.anatomy.writers), len(model.anatomy.readers)
        width = writers + readers + (len(model.layers) * model.d_mlp if self.neurons else 0)
        grouping = group_positions(runs, positions, width)
        count = 1 if grouping is None else len(grouping.names)
        total, signed = np.zeros((count, writers + readers)), np.zeros(writers)
        per_prompt = np.full((len(runs), writers), np.nan) if grouping is None else None
        hidden = np.zeros((count, len(model.layers), model.d_mlp)) if self.neurons else None
        for number, batch in enumerate(runs.batches):
            found = self._batch(number, grouping)
            parts = (found.nodes, found.signed, *(() if found.hidden is None else (found.hidden,)))
            table, plain, *neurons = (x.astype(np.float64) for x in to_host(*parts))
            if per_prompt is not None:
                per_prompt[batch.index] = table[:, :writers]
                total[0] += table.sum(0)
            else:
                total[: len(table)] += table
            signed += plain
            if hidden is not None:
                hidden[: len(neurons[0])] += neurons[0]
        total /= len(runs)
        values, slots = total[:, :writers], total[:, writers:]
        slots[:, ~self._scored_readers()] = np.nan
        extra = {"readers": merged(slots, grouping)}
        if hidden is not None:
            hidden /= len(runs)
            extra["neurons"] = merged(hidden, grouping)
        if grouping is not None:
            extra["readers_by_position"] = slots
            extra |= {} if hidden is None else {"neurons_by_position": hidden}
        if self.grad_drop:
            extra["signed"] = signed / len(runs)
        return Scores(
            anatomy=model.anatomy,
            level="node",
            values=merged(values, grouping),
            per_prompt=per_prompt,
            by_position=None if grouping is None else values,
            position_names=None if grouping is None else grouping.names,
            extra=extra,
            method=name,
            direction=self.direction,
            metric=runs.metric.name,
            ablation=self.ablation,
        )

    @property
    def has_slots(self) -> bool:
        """Whether the ablation says what a query, key or value carries: the corrupted run's, or zero."""
        return self.ablation in ("resample", "zero")

    def _scored_readers(self) -> Bool[np.ndarray, " reader"]:
        slots = [slot in ("q", "k", "v") for _, slot in self.runs.model.anatomy.readers]
        return np.array(slots) & self.has_slots

    def _batch(self, number: int, grouping: Grouping | None) -> _Batch:
        """Add up the effects of a batch in one backward pass."""
        runs, model = self.runs, self.runs.model
        corrupted: Trace | None = None
        if self.ablation == "resample":
            runs.trace(number, "clean", keep=True)  # asked for first, so that it need not run again
            corrupted = runs.trace(number, "corrupted", keep=True)
        contrast = runs.contrast(number, self.ablation, keep=True)
        place = contrast.base.place
        groups = None if grouping is None else grouping.of(number, place.start, model.device)
        into = _Batch(self, contrast, corrupted, groups)
        with torch.no_grad():
            _, behind = runs.backward(number, into.trace, into.visit, drop_each=into.drops)
            into.finish(behind)
        return into


class _Batch:
    """Sums over the prompts of one batch, filled by the visitor of a backward pass.

    Attributes:
        trace: The run whose gradients are taken.
        drops: Whether the backward pass shall drop each block in turn.
        nodes: Scores of writers, then readers, by prompt, or where positions are kept apart by group. ``[axis, node]``
        signed: The plain attribution of writers. ``[writer]``
        hidden: That of neurons, by group. ``[group, layer, d_mlp]``
    """

    def __init__(
        self, job: _Job, contrast: Contrast, corrupted: Trace | None, groups: Int[Tensor, "row pos"] | None
    ) -> None:
        self._job, self._contrast, self._groups = job, contrast, groups
        self._model = model = job.runs.model
        self.trace, self._other, self._sign = contrast.base, corrupted, 1.0
        if job.direction == "denoising":
            assert corrupted is not None
            self.trace, self._other, self._sign = corrupted, contrast.base, -1.0
        # With one block nothing is left when it is dropped: plain attribution, as a size.
        self.drops = job.grad_drop and len(model.layers) > 1
        writers, readers = len(model.anatomy.writers), len(model.anatomy.readers)
        like = contrast.base.input
        self._axis = len(like) if groups is None else int(groups.max()) + 1
        place: dict[str, Any] = {"device": like.device, "dtype": at_least_single(like.dtype)}
        self.nodes = torch.zeros(self._axis, writers + readers, **place)
        self.signed = torch.zeros(writers, **place)
        self.hidden: Tensor | None = None
        if job.neurons:
            count = 1 if groups is None else self._axis
            self.hidden = torch.zeros(count, len(model.layers), model.d_mlp, **place)

    def visit(self, found: BlockGradients) -> None:
        """Add the nodes of a block."""
        model, index = self._model, found.layer
        anatomy, writers = model.anatomy, len(model.anatomy.writers)
        heads = self._heads(index)
        effects = [self._outputs(heads, found)]
        columns = [anatomy.head_slice(index)]
        if found.behind_mlp is not None:
            written, cut = self._contrast.written.mlp, self._contrast.cut.mlp
            assert written is not None
            assert cut is not None
            total = inner(written[index] - cut[index], found.behind_mlp)[..., None]
            effects.append(total if found.parts is None else self._parts(heads, found, total))
            columns.append(anatomy.mlp_slice(index))
        if self._job.has_slots:
            for slot in ("q", "k", "v"):
                effects.append(self._job.slot_effect(heads, found, slot))
                own = anatomy.reader_slice(index, slot)
                columns.append(slice(writers + own.start, writers + own.stop))
        self._add(torch.cat(effects, -1), columns, index)
        if self.hidden is not None:
            self._add_neurons(heads, found)

    def finish(self, behind: Float[Tensor, "cut row pos d_model"]) -> None:
        """Add the input, from the gradient that the backward pass ends with."""
        change = self._contrast.written.input - self._contrast.cut.input
        self._add(inner(change, behind)[..., None], [slice(0, 1)], 0)

    def _heads(self, index: int) -> Heads:
        return Heads(
            layer=self._model.layers[index],
            last=index == len(self._model.layers) - 1,
            place=self.trace.place,
            at=self.trace.blocks[index],
            other=None if self._other is None else self._other.blocks[index],
            sign=self._sign,
        )

    def _outputs(self, heads: Heads, found: BlockGradients) -> Float[Tensor, "cut row pos head"]:
        """What heads write."""
        index, layer = found.layer, heads.layer
        change = heads.narrowed((self._contrast.written.z[index] - self._contrast.cut.z[index])[None])
        grad = found.z
        if layer.post_norm is not None:  # z is scaled by it here, and found.z is the gradient before it
            behind = heads.narrowed(found.behind_heads)
            grad = torch.matmul(behind, layer.w_o.flatten(0, 1).T).unflatten(-1, (layer.n_heads, -1))
        return heads.widened(inner(change, grad))

    def _parts(
        self, heads: Heads, found: BlockGradients, total: Float[Tensor, "cut row pos 1"]
    ) -> Float[Tensor, "cut row pos node"]:
        """What the parts of a split MLP write, from what all of them write."""
        index, parts = found.layer, heads.layer.parts
        assert parts is not None
        assert found.parts is not None
        assert found.behind_mlp is not None
        now, cut = self._contrast.written.part(index), self._contrast.cut.part(index)
        grad = parts.pick(found.parts.hidden)
        if parts.together:  # values are behind a post-norm, and this gradient is not
            grad = torch.matmul(heads.narrowed(found.behind_mlp), parts.w_out.T)
        change = heads.narrowed((now.values - cut.values)[None])
        each = heads.widened(parts.by_node((change * grad).to(total.dtype)))
        left = total - each.sum(-1, keepdim=True)
        if parts.error is not None:
            assert now.error is not None
            assert cut.error is not None
            each[..., parts.error] = inner(now.error - cut.error, found.behind_mlp)
            left = left - each[..., parts.error, None]
        each[..., parts.rest] = left[..., 0]
        return each

    def _add(self, effect: Float[Tensor, "cut row pos node"], columns: list[slice], below: int) -> None:
        """Add effects to the columns of some nodes that have ``below`` blocks under them."""
        cut, rows = effect.shape[:2]
        if self._groups is None:
            by_group = effect.sum(2)[:, :, None]
        else:
            at = torch.arange(rows, device=effect.device)[:, None] * self._axis + self._groups
            by_group = effect.new_zeros(cut, rows * self._axis, effect.shape[-1])
            by_group.index_add_(1, at.flatten(), effect.flatten(1, 2))
            by_group = by_group.unflatten(1, (rows, self._axis))
        found = by_group[0]
        if self._job.grad_drop:
            found = torch.tensordot(self._weights(cut, below).to(effect.dtype), by_group.abs(), 1)
        found = found[:, 0] if self._groups is None else found.sum(0)
        plain = by_group[0].sum((0, 1))
        start = 0
        for column in columns:
            width = column.stop - column.start
            self.nodes[:, column] += found[:, start : start + width]
            if column.stop <= len(self.signed):
                self.signed[column] += plain[start : start + width]
            start += width

    def _weights(self, cut: int, below: int) -> Float[Tensor, " cut"]:
        """How often each gradient counts: the plain one for every block under the node that is dropped."""
        if not self.drops:
            return self.nodes.new_ones(1)
        times = index_of((below, *[1] * (cut - 1)), self.nodes.device).to(self.nodes.dtype)
        return times / (len(self._model.layers) - 1)

    def _add_neurons(self, heads: Heads, found: BlockGradients) -> None:
        mlp, at = heads.layer.mlp, heads.at.saved
        assert mlp is not None
        assert at is not None
        assert found.hidden is not None
        assert self.hidden is not None
        change = mlp.hidden(at.pre, at.up)
        if heads.other is not None:
            assert heads.other.saved is not None
            change = change - mlp.hidden(heads.other.saved.pre, heads.other.saved.up)
        effect = (change * found.hidden[0]).to(self.hidden.dtype) * heads.sign
        if self._groups is None:
            self.hidden[0, found.layer] = effect.sum((0, 1))
            return
        groups = self._groups
        if heads.last:
            rows = torch.arange(len(groups), device=groups.device)
            groups = groups[rows, heads.place.answers - heads.place.start]
        self.hidden[:, found.layer].index_add_(0, groups.flatten(), effect.flatten(0, 1))
