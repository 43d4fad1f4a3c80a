"""Path patching: what senders carry when replaced flows along chosen paths only, everywhere else the base run flows.

Two streams go up the layers together. What senders and carriers add to the base stream, and nothing else, makes the first:
the chosen readers, and the inputs of nodes that may carry, read it. It needs no mask of edges, since every node that reads
from a path at all reads the same stream. The second is the model run on from the last readers of the path, which keep
the input that they had from the first (the two passes of Wang et al. 2022, arXiv 2211.00593, and of the path patching of
Goldowsky-Dill et al. 2023, arXiv 2304.05969). A path of several hops is a first stream for each: at the end of one, the
nodes read on the way become the senders of the next, with what they write when just those inputs are changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitfind.model.contrast import Contrast
from circuitfind.model.forward import attend
from circuitfind.model.precision import lowered
from circuitfind.model.transfer import index_of, upload

Rows = Float[Tensor, "row pos d_model"]
"""Rows are [patch * prompt]; in the last block the answer position alone."""


@dataclass(frozen=True)
class Hop:
    """The inputs that a path goes into at the end of a hop.

    Attributes:
        slots: Queries, keys and values by query head.
        mlp: MLPs.
        logits: The end of the model. Never beside other inputs, and in the last hop only.
    """

    slots: Bool[np.ndarray, "layer slot head"]
    mlp: Bool[np.ndarray, " layer"]
    logits: bool = False


@dataclass(frozen=True)
class Paths:
    """From some senders over one or more hops to the end of the path.

    Attributes:
        hops: The inputs at the end of each hop; the nodes behind them begin the next.
        via: Writers that may carry within any hop.
    """

    hops: tuple[Hop, ...]
    via: Bool[np.ndarray, " writer"]


class _Source(Protocol):
    """What begins a hop: changes of writers, as they are added to the stream. None where nothing changes."""

    chosen: Bool[np.ndarray, "patch writer"]

    def input(self) -> Rows | None: ...

    def heads(self, index: int) -> Rows | None: ...

    def mlp(self, index: int) -> Rows | None: ...


class _Reader(Protocol):
    """What is done along the first stream; it is None as long as it is that of the base run."""

    def heads(self, index: int, stream: Rows | None) -> None: ...

    def mlp(self, index: int, stream: Rows | None) -> None: ...


class PathPass:
    """Rows of patches along the same paths.

    Args:
        contrast: The base run and what senders carry.
        senders: Which writers begin the paths, patch by patch.
        paths: The paths.
    """

    def __init__(self, contrast: Contrast, senders: Bool[np.ndarray, "patch writer"], paths: Paths) -> None:
        self.contrast, self._model = contrast, contrast.model
        self._senders, self._paths = senders, paths
        self.count = len(senders)
        self._place = contrast.base.place.repeated(self.count)

    @lowered
    def run(self) -> Float[Tensor, "patch prompt d_model"]:
        """The stream that the final norm reads at each prompt's answer position, under each patch."""
        source: _Source = _Senders(self, self._senders)
        *hops, end = self._paths.hops
        for hop in hops:
            through = _Through(self, hop)
            self._carry(source, through)
            source = through.found
        final = None
        if end.logits:
            final = self._carry(source, None)
        else:
            self._model.passes["forward"] += 1
            on = _RunOn(self, end)
            self._carry(source, on)
            final = on.stream
        final = self.rows(self.contrast.base.final[:, None]) if final is None else final
        return torch.unflatten(final[:, 0], 0, (self.count, -1))

    # Rows.

    def rows(self, x: Tensor) -> Tensor:
        """A tensor of the base run, once for each patch."""
        return x.repeat(self.count, *[1] * (x.ndim - 1))

    def shifted(self, x: Tensor, change: Tensor | None) -> Tensor | None:
        """A stream of the base run plus a change; None for no change."""
        return None if change is None else (x + change.unflatten(0, (self.count, -1))).flatten(0, 1)

    def last(self, index: int) -> bool:
        return index == len(self._model.layers) - 1

    def at(self, x: Tensor, index: int) -> Tensor:
        """Rows at the positions that a layer writes at."""
        return self._place.at_answer(x) if self.last(index) else x

    def attend(self, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values and scaled head values of a layer that reads a stream."""
        self._model.passes["work"] += x.shape[0] * x.shape[1]
        before = self.contrast.before
        keys = None if before is None else before[index]
        return attend(self._model.layers[index], x, self._place, keys, last=self.last(index))[:4]

    def mixed(
        self, index: int, rest: Rows | None, chosen: Rows, slots: Bool[np.ndarray, "slot head"]
    ) -> Float[Tensor, "row query head d_head"]:
        """Head values before a post-norm; inputs in ``slots`` read ``chosen``, the others ``rest`` or else the base run."""
        layer, run = self._model.layers[index], self.contrast.base.blocks[index]
        core = layer.attention
        others = (
            tuple(map(self.rows, (run.q, run.k, run.v))) if rest is None else self.attend(index, rest)[:3]
        )
        found = []
        for slot, *pair in zip(slots, self.attend(index, chosen)[:3], others, strict=True):
            mask = upload(slot, chosen.device)[:, None, None]
            # A key or value serves a group of query heads.
            mine, other = (t.repeat_interleave(len(slot) // t.shape[1], 1) for t in pair)
            found.append(torch.where(mask, mine, other))
        q, k, v = found
        return replace(core, group=1).mix(q, k, v, self._place.visible(layer, self.last(index)))

    # The first stream.

    def _carry(self, source: _Source, reader: _Reader | None) -> Rows | None:
        """What senders and carriers make of the stream; returns it as the final norm reads it."""
        model, base, via = self._model, self.contrast.base, self._paths.via
        model.passes["forward"] += 1
        change = source.input()
        for index, layer in enumerate(model.layers):
            run, heads = base.blocks[index], model.anatomy.head_slice(index)
            x = self.shifted(run.resid, change)
            if reader is not None:
                reader.heads(index, x)
            here = None if change is None else self.at(change, index)
            change = _plus(here, source.heads(index))
            if x is not None and via[heads].any():
                gap = self.attend(index, x)[3].unflatten(0, (self.count, -1)) - run.z
                gap = gap * self._carriers(source, heads)[:, None, None, :, None]
                change = _plus(change, gap.flatten(0, 1).flatten(2) @ layer.w_o.flatten(0, 1))
            if layer.mlp is None:
                continue
            assert run.mlp is not None
            if not model.anatomy.parallel:
                x = self.shifted(run.mid, change)
            elif x is not None:
                x = self.at(x, index)
            if reader is not None:
                reader.mlp(index, x)
            change = _plus(change, source.mlp(index))
            row = slice(model.anatomy.mlp_row(index), model.anatomy.mlp_row(index) + 1)
            if x is not None and via[row].any():
                gap = layer.mlp(layer.mlp_norm(x)).unflatten(0, (self.count, -1)) - run.mlp
                change = _plus(change, (gap * self._carriers(source, row)[:, None, None]).flatten(0, 1))
        return self.shifted(base.final[:, None], change)

    def _carriers(self, source: _Source, rows: slice) -> Float[Tensor, "patch writer"]:
        """1 for writers that carry: those of ``via`` that are no senders."""
        found = self._paths.via[rows] & ~source.chosen[:, rows]
        return upload(found, self._model.device, self.contrast.base.input.dtype)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class _Senders:
    """Writers that are replaced by what they carry in the contrast."""

    def __init__(self, along: PathPass, chosen: Bool[np.ndarray, "patch writer"]) -> None:
        self._along, self.chosen = along, chosen

    def input(self) -> Rows | None:
        contrast = self._along.contrast
        return self._share(0, contrast.cut.input - contrast.base.input)

    def heads(self, index: int) -> Rows | None:
        contrast, heads = self._along.contrast, self._along.contrast.model.anatomy.head_slice(index)
        used = np.flatnonzero(self.chosen[:, heads].any(0))
        if not len(used):
            return None
        at = index_of(used, contrast.model.device)
        gap = self._gap(index, contrast.cut.z[index], contrast.base.blocks[index].z)[:, :, at]
        weight = contrast.model.layers[index].w_o[at]
        each = torch.einsum("rphd,hdm->hrpm", gap, weight)
        matrix = upload(self.chosen[:, heads][:, used], each.device, each.dtype)
        out: Tensor = (matrix @ each.flatten(1)).unflatten(1, each.shape[1:]).flatten(0, 1)
        return out

    def mlp(self, index: int) -> Rows | None:
        contrast, run = self._along.contrast, self._along.contrast.base.blocks[index]
        assert contrast.cut.mlp is not None
        assert run.mlp is not None
        row = contrast.model.anatomy.mlp_row(index)
        return self._share(row, self._gap(index, contrast.cut.mlp[index], run.mlp))

    def _gap(self, index: int, cut: Tensor, run: Tensor) -> Tensor:
        return (self._along.contrast.base.place.at_answer(cut) if self._along.last(index) else cut) - run

    def _share(self, row: int, gap: Float[Tensor, "prompt pos d_model"]) -> Rows | None:
        if not self.chosen[:, row].any():
            return None
        chosen = upload(self.chosen[:, row], gap.device, gap.dtype)
        return (gap * chosen[:, None, None, None]).flatten(0, 1)


class _Changes:
    """Writers that the path went through: what they write less what they wrote in the base run."""

    def __init__(self, along: PathPass, hop: Hop) -> None:
        anatomy = along.contrast.model.anatomy
        found = np.zeros(len(anatomy.writers), dtype=bool)
        for index in range(anatomy.n_layers):
            found[anatomy.head_slice(index)] = hop.slots[index].any(0)
            if anatomy.has_mlp:
                found[anatomy.mlp_row(index)] = hop.mlp[index]
        self.chosen = np.tile(found, (along.count, 1))
        self.z: dict[int, Float[Tensor, "row pos head d_head"]] = {}
        self.mlps: dict[int, Rows] = {}
        self._layers = along.contrast.model.layers

    def input(self) -> Rows | None:
        return None

    def heads(self, index: int) -> Rows | None:
        if index not in self.z:
            return None
        return self.z[index].flatten(2) @ self._layers[index].w_o.flatten(0, 1)

    def mlp(self, index: int) -> Rows | None:
        return self.mlps.get(index)


class _Through:
    """The nodes at the end of a hop, when the chosen inputs read the first stream and nothing else does.

    Every node is taken by itself: a post-norm, which ties the heads of a layer together, sees the change of one head.
    """

    def __init__(self, along: PathPass, hop: Hop) -> None:
        self._along, self._hop = along, hop
        self.found = _Changes(along, hop)

    def heads(self, index: int, stream: Rows | None) -> None:
        slots = self._hop.slots[index]
        if stream is None or not slots.any():
            return
        along, run = self._along, self._along.contrast.base.blocks[index]
        layer = along.contrast.model.layers[index]
        z = along.mixed(index, None, stream, slots)
        gap = torch.zeros_like(z)
        plain = None if run.raw is None else along.mixed(index, None, stream, np.zeros_like(slots))
        for head in np.flatnonzero(slots.any(0)):
            mine = z[:, :, head]
            if plain is not None:
                assert run.raw is not None
                assert layer.post_norm is not None
                raw = along.rows(run.raw) + (mine - plain[:, :, head]) @ layer.w_o_raw[head]
                mine = mine * layer.post_norm.inverse_scale(raw)
            gap[:, :, head] = mine - along.rows(run.z[:, :, head])
        self.found.z[index] = gap

    def mlp(self, index: int, stream: Rows | None) -> None:
        layer, run = self._along.contrast.model.layers[index], self._along.contrast.base.blocks[index]
        if stream is None or layer.mlp is None or not self._hop.mlp[index]:
            return
        assert run.mlp is not None
        self.found.mlps[index] = layer.mlp(layer.mlp_norm(stream)) - self._along.rows(run.mlp)


class _RunOn:
    """The second stream: the model run on from the last readers of the path, which read the first."""

    def __init__(self, along: PathPass, hop: Hop) -> None:
        self._along, self._hop = along, hop
        self.stream: Rows | None = None
        self._before: Rows | None = None

    def heads(self, index: int, stream: Rows | None) -> None:
        slots, along = self._hop.slots[index], self._along
        run, layer = along.contrast.base.blocks[index], along.contrast.model.layers[index]
        self._before = None if self.stream is None else along.at(self.stream, index)
        if stream is not None and slots.any():
            z = along.mixed(index, self.stream, stream, slots)
            if layer.post_norm is not None:
                z = layer.scaled(z, layer.raw_out(z))
        elif self.stream is not None:
            z = along.attend(index, self.stream)[3]
        else:
            return
        here = along.at(along.rows(run.resid), index) if self._before is None else self._before
        self.stream = here + layer.heads_out(z)

    def mlp(self, index: int, stream: Rows | None) -> None:
        along = self._along
        run, layer = along.contrast.base.blocks[index], along.contrast.model.layers[index]
        reads = stream is not None and layer.mlp is not None and bool(self._hop.mlp[index])
        if layer.mlp is None or (self.stream is None and not reads):
            return
        assert run.mlp is not None
        mid = along.rows(run.mid) if self.stream is None else self.stream
        if reads:
            read = stream
        elif along.contrast.model.anatomy.parallel:
            read = self._before
        else:
            read = mid
        # A parallel MLP below which nothing has changed writes what it wrote.
        out = along.rows(run.mlp) if read is None else layer.mlp(layer.mlp_norm(read))
        self.stream = mid + out
