"""The forward pass on a model's weights: of whole prompts, or of what is left to compute of them.

A pass may start behind the first positions (``Place.start``), where clean and corrupted prompts are still the same: their
keys and values are taken from a finished run. In the last block only the answer position is computed, since nothing
reads the others: their entries in ``Writes`` are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitfind.model.bridge import Model
from circuitfind.model.layer import Layer
from circuitfind.model.mlp import Saved
from circuitfind.model.parts import PartRun
from circuitfind.model.precision import lowered
from circuitfind.model.transfer import to_host
from circuitfind.model.writes import PartWrites, Writes


@dataclass(frozen=True)
class Place:
    """Where the rows of a pass stand.

    Attributes:
        start: The first position that is computed.
        stop: One past the last one.
        answers: The answer position of each row, counted from the beginning of the prompt.
        key_mask: False at padding, for models that look ahead; None where nothing behind a query is seen.
        everywhere: Compute every position in the last block too, though only the answer's is read.
    """

    start: int
    stop: int
    answers: Int[Tensor, " row"]
    key_mask: Bool[Tensor, "row key"] | None = None
    everywhere: bool = False
    _seen: dict[tuple[int | None, bool, bool], Tensor] = field(
        default_factory=dict, compare=False, repr=False
    )

    @cached_property
    def answers_on_host(self) -> Int[np.ndarray, " row"]:
        """``answers`` where they are asked for to plan with."""
        return to_host(self.answers)[0]

    @property
    def positions(self) -> Int[Tensor, " pos"]:
        return torch.arange(self.start, self.stop, device=self.answers.device)

    def queries(self, last: bool) -> Int[Tensor, "*row query"]:
        """Positions of the queries: all, or in the last block the answer position of each row."""
        return self.answers[:, None] if last else self.positions

    def visible(self, layer: Layer, last: bool) -> Bool[Tensor, "#row 1 query key"]:
        """Which keys each query of a block sees."""
        core = layer.attention
        key = (core.window, core.causal, last)
        if key not in self._seen:
            self._seen[key] = core.visible(self.queries(last), self.stop, self.key_mask)
        return self._seen[key]

    def at_answer(self, x: Float[Tensor, "row pos *rest"]) -> Float[Tensor, "row 1 *rest"]:
        """The answer position of each row."""
        return x[torch.arange(len(x), device=x.device), self.answers - self.start][:, None]

    def spread(
        self, x: Float[Tensor, "*cut row 1 *rest"], axis: int = 0
    ) -> Float[Tensor, "*cut row pos *rest"]:
        """Zeros everywhere but at the answer position; rows are ``axis``, positions the one behind it."""
        shape = list(x.shape)
        shape[axis + 1] = self.stop - self.start
        out = x.new_zeros(shape)
        rows = torch.arange(shape[axis], device=x.device)
        lead = (slice(None),) * axis
        out[lead + (rows, self.answers - self.start)] = x.select(axis + 1, 0)  # noqa: RUF005  mypy
        return out

    def repeated(self, times: int) -> Place:
        """For rows of several patches, prompt by prompt within each."""
        mask = None if self.key_mask is None else self.key_mask.repeat(times, 1)
        return Place(self.start, self.stop, self.answers.repeat(times), mask)

    def since(self, start: int) -> Place:
        """The same rows from a later position on."""
        return Place(start, self.stop, self.answers, self.key_mask)


@dataclass(frozen=True)
class BlockRun:
    """What one block did. In the last block all but ``resid``, ``k`` and ``v`` hold the answer position alone.

    Attributes:
        resid: The stream that entered. ``[row, pos, d_model]``
        q: Queries as attention uses them. ``[row, head, pos, d_head]``
        k, v: Keys and values, those before ``start`` included. ``[row, kv, key, d_head]``
        z: Head values, such that ``z @ w_o`` is what a head writes. ``[row, pos, head, d_head]``
        raw: Attention's output before a post-norm, if there is one.
        mid: The stream behind attention. ``[row, pos, d_model]``
        mlp: What the MLP wrote.
        saved: What its backward pass needs, where it was asked for.
        projected: Queries, keys, values before rotation and head norms, where they were asked for.
        parts: What the MLP's parts did, where it is split.
    """

    resid: Float[Tensor, "row pos d_model"]
    q: Float[Tensor, "row head query d_head"]
    k: Float[Tensor, "row kv key d_head"]
    v: Float[Tensor, "row kv key d_head"]
    z: Float[Tensor, "row query head d_head"]
    raw: Float[Tensor, "row query d_model"] | None
    mid: Float[Tensor, "row query d_model"]
    mlp: Float[Tensor, "row query d_model"] | None
    saved: Saved | None
    projected: list[Float[Tensor, "row _ _ d_head"]] | None
    parts: PartRun | None = None

    def since(self, gap: int, last: bool) -> BlockRun:
        """Without the first ``gap`` positions; keys and values stay whole."""
        if last:
            projected = self.projected
            if projected is not None:
                projected = [projected[0], projected[1][:, gap:], projected[2][:, gap:]]
            return replace(self, resid=self.resid[:, gap:], projected=projected)

        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[:, gap:]

        saved = self.saved
        if saved is not None:
            saved = Saved(saved.pre[:, gap:], cut(saved.up), cut(saved.raw))
        return BlockRun(
            resid=self.resid[:, gap:],
            q=self.q[:, :, gap:],
            k=self.k,
            v=self.v,
            z=self.z[:, gap:],
            raw=cut(self.raw),
            mid=self.mid[:, gap:],
            mlp=cut(self.mlp),
            saved=saved,
            projected=None if self.projected is None else [x[:, gap:] for x in self.projected],
            parts=None if self.parts is None else self.parts.since(gap),
        )

    def lightened(self) -> BlockRun:
        """Without what only a backward pass needs."""
        parts = None if self.parts is None else self.parts.lightened()
        return replace(self, saved=None, projected=None, parts=parts)

    @property
    def written(self) -> PartWrites | None:
        """What the MLP's parts wrote, where it is split."""
        return None if self.parts is None else PartWrites(self.parts.values, self.parts.error)


@dataclass(frozen=True)
class Trace:
    """A finished run of one batch.

    Attributes:
        place: Where its rows stand.
        input: What the writer ``input`` wrote.
        blocks: What each block did.
        final: The stream at the answer position, as the final norm reads it.
    """

    place: Place
    input: Float[Tensor, "row pos d_model"]
    blocks: list[BlockRun]
    final: Float[Tensor, "row d_model"]

    @property
    def writes(self) -> Writes:
        """What every writer wrote; zero in the last block but at the answer position."""
        if self.place.everywhere:
            every = [b.mlp for b in self.blocks if b.mlp is not None]
            return Writes(self.input, [b.z for b in self.blocks], every or None, self._parts())
        *rest, last = self.blocks
        z = [*(b.z for b in rest), self.place.spread(last.z)]
        mlp = None
        if last.mlp is not None:
            mlp = [*(b.mlp for b in rest if b.mlp is not None), self.place.spread(last.mlp)]
        parts = self._parts()
        if parts is not None and parts[-1] is not None:
            parts[-1] = parts[-1].map(self.place.spread)
        return Writes(self.input, z, mlp, parts)

    def _parts(self) -> list[PartWrites | None] | None:
        found = [b.written for b in self.blocks]
        return found if any(p is not None for p in found) else None

    def since(self, start: int) -> Trace:
        """The same run, from a later position on."""
        gap = start - self.place.start
        if not gap:
            return self
        end = len(self.blocks) - 1
        blocks = [block.since(gap, i == end) for i, block in enumerate(self.blocks)]
        return Trace(self.place.since(start), self.input[:, gap:], blocks, self.final)

    def lightened(self) -> Trace:
        """The same without what only a backward pass needs."""
        return replace(self, blocks=[block.lightened() for block in self.blocks])

    @property
    def n_bytes(self) -> int:
        tensors: list[Tensor | None] = [self.input, self.final]
        for b in self.blocks:
            tensors += [b.resid, b.q, b.k, b.v, b.z, b.raw, b.mid, b.mlp, *(b.projected or [])]
            tensors += [b.saved.pre, b.saved.up, b.saved.raw] if b.saved is not None else []
            tensors += b.parts.tensors if b.parts is not None else ()
        found = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None
        }
        return sum(found.values())


def attend(
    layer: Layer,
    x: Float[Tensor, "row pos d_model"],
    place: Place,
    before: tuple[Tensor, Tensor] | None,
    *,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, list[Tensor]]:
    """Queries, keys, values, scaled head values, raw output (with a post-norm) and projections of a block.

    Args:
        layer: The block.
        x: The stream that enters it.
        place: Where the rows stand.
        before: Keys and values of the positions before ``place.start``, of every row or of those of one patch.
        last: Whether this is the last block, where only the answer position asks.
    """
    core = layer.attention
    if last:
        (raw_q,) = layer.project("q", layer.norm(place.at_answer(x)))
        raw_k, raw_v = layer.project("kv", layer.norm(x))
    else:
        raw_q, raw_k, raw_v = layer.project("qkv", layer.norm(x))
    q = core.prepare("q", raw_q, place.queries(last))
    k, v = core.prepare("k", raw_k, place.positions), core.prepare("v", raw_v, place.positions)
    if before is not None:
        k, v = behind(before[0], k), behind(before[1], v)
    z = core.mix(q, k, v, place.visible(layer, last))
    raw = None
    if layer.post_norm is not None:
        raw = layer.raw_out(z)
        z = layer.scaled(z, raw)
    return q, k, v, z, raw, [raw_q, raw_k, raw_v]


def behind(
    old: Float[Tensor, "*patch kv before d_head"], new: Float[Tensor, "row kv pos d_head"]
) -> Float[Tensor, "row kv key d_head"]:
    """Keys before a pass and its own; the former are repeated where each row of them serves several patches."""
    if len(old) == len(new):
        return torch.cat((old, new), 2)
    times = len(new) // len(old)
    shared = old[None].expand(times, *[-1] * old.ndim)
    return torch.cat((shared, new.unflatten(0, (times, -1))), 3).flatten(0, 1)


@lowered
def run_block(
    model: Model,
    index: int,
    x: Float[Tensor, "row pos d_model"],
    place: Place,
    before: tuple[Tensor, Tensor] | None,
    *,
    keep: bool,
) -> tuple[Tensor, BlockRun]:
    """One block: the stream behind it, and what it did."""
    layer, last = model.layers[index], index == len(model.layers) - 1 and not place.everywhere
    model.passes["work"] += x.shape[0] * x.shape[1]
    q, k, v, z, raw, projected = attend(layer, x, place, before, last=last)
    here = place.at_answer(x) if last else x
    mid = here + layer.heads_out(z)
    out, saved, stream, parts = None, None, mid, None
    if layer.mlp is not None:
        read = here if model.anatomy.parallel else mid
        out, saved = layer.mlp.run(layer.mlp_norm(read))
        stream = mid + out
        if layer.parts is not None:
            parts = layer.parts.observe(read, out, saved, keep=keep)
    return stream, BlockRun(
        x, q, k, v, z, raw, mid, out, saved if keep else None, projected if keep else None, parts
    )


def run_trace(
    model: Model,
    embedded: Float[Tensor, "row pos d_model"],
    place: Place,
    before: Sequence[tuple[Tensor, Tensor]] | None = None,
    *,
    keep: bool = False,
) -> Trace:
    """A whole run from the embedded prompts.

    Args:
        model: The model.
        place: Where the rows stand.
        embedded: What ``input`` writes, from ``place.start`` on.
        before: Keys and values by block of the positions before ``place.start``.
        keep: Keep what a backward pass needs.
    """
    model.passes["forward"] += 1
    x, blocks = embedded, []
    for index in range(len(model.layers)):
        x, block = run_block(model, index, x, place, None if before is None else before[index], keep=keep)
        blocks.append(block)
    return Trace(place, embedded, blocks, (place.at_answer(x) if place.everywhere else x)[:, 0])


def keys_before(trace: Trace, start: int) -> list[tuple[Tensor, Tensor]] | None:
    """Keys and values of a run before a position, by block; None at the very start."""
    return [(b.k[:, :, :start], b.v[:, :, :start]) for b in trace.blocks] if start else None
