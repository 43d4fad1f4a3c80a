"""Rows of patches that replace whole nodes: a plain forward pass in which each patch joins at its first replaced node.

What lies below that node is the base run, so it is not computed: a pass goes up the layers once, and the rows of a patch are
added to the batch where the patch begins. Patches sorted by ``first_stage`` therefore share passes of any depth. Likewise a
pass begins at the first position at which one of its patches replaces anything; what is before comes from the base run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitfind.model.anatomy import Anatomy
from circuitfind.model.contrast import Contrast
from circuitfind.model.forward import Place, attend
from circuitfind.model.part_pass import swapped
from circuitfind.model.parts import PartRun
from circuitfind.model.path_pass import Paths
from circuitfind.model.precision import lowered, moved
from circuitfind.model.transfer import index_of, upload
from circuitfind.model.writes import Writes
from circuitfind.names import Kind


@dataclass(frozen=True)
class Patch:
    """Which writers and which edges carry their ablated value.

    Attributes:
        nodes: Writers replaced for every reader, or None for no writer.
        edges: Edges replaced, or None for no edge.
        edge: The only edge replaced, as (writer, reader), in place of the others: faster, and small.
        paths: The paths along which alone ``nodes`` are replaced; None for every reader. Not beside edges.
        where: The tokens at which ``nodes`` are replaced, pair by pair from the start of the prompt; None for all.
            Not beside edges or ``paths``.
        held: Writers that keep their value of the base run, whatever they read. Beside ``nodes`` alone.
    """

    nodes: Bool[np.ndarray, " writer"] | None = None
    edges: Bool[np.ndarray, "writer reader"] | None = None
    edge: tuple[int, int] | None = None
    paths: Paths | None = None
    where: Bool[np.ndarray, "prompt pos"] | None = None
    held: Bool[np.ndarray, " writer"] | None = None

    def __post_init__(self) -> None:
        if self.held is not None and (self.nodes is None or self.edges is not None or self.paths is not None):
            raise ValueError("writers are held beside replaced nodes")
        if self.held is not None and self.nodes is not None and (self.held & self.nodes).any():
            raise ValueError("a writer is replaced or held, not both")
        if sum(part is not None for part in (self.edges, self.edge, self.paths, self.where)) > 1:
            raise ValueError("a patch is of edges, of one edge, of paths, or at some positions")
        if self.edge is not None and self.nodes is not None:
            raise ValueError("a patch of one edge replaces no nodes")


def first_stage(anatomy: Anatomy, nodes: Bool[np.ndarray, " writer"] | None) -> int:
    """Where a patch begins: 0 for ``input``, 2l + 1 for heads of layer l, 2l + 2 for its MLP; beyond all if nowhere."""
    rows = np.flatnonzero(nodes) if nodes is not None else np.array([], dtype=int)
    if not len(rows):
        return 2 * anatomy.n_layers + 1
    first = anatomy.writers[int(rows[0])]
    if first.kind is Kind.INPUT:
        return 0
    return 2 * first.layer + (1 if first.kind is Kind.HEAD else 2)


def since(contrast: Contrast, start: int) -> Contrast:
    """The same contrast from a later position on. Only where nothing looks ahead."""
    gap = start - contrast.base.place.start
    if not gap:
        return contrast
    cut = contrast.cut.map(lambda x: x[:, gap:])
    return Contrast(contrast.model, contrast.base.since(start), cut, contrast.cut_is_run)


class Watch(Protocol):
    """Sees what differs from the base run while a pass goes up; in the last block at the answer position alone.

    Patches are the first ones of the pass, as many as the tensors have: the others have not begun, and differ in nothing.
    """

    def stream(self, point: int, change: Float[Tensor, "patch prompt pos d_model"]) -> None:
        """The stream at a point: 2l where it enters block l, 2l + 1 behind its heads, last where the final norm reads."""

    def heads(self, index: int, change: Float[Tensor, "patch prompt pos head d_head"]) -> None:
        """The values of the heads of a block, replaced ones included."""

    def mlp(self, index: int, change: Float[Tensor, "patch prompt pos d_model"]) -> None:
        """What the MLP of a block writes."""


class NodePass:
    """One pass with a row for each patch and prompt.

    Args:
        contrast: The run and what replaced nodes carry.
        nodes: Which writers each patch replaces; patches sorted by ``first_stage``.
        where: At which tokens of the contrast each patch does so; None for all.
        stages: Where patches begin, if not at their first node.
        held: Which writers keep their value of the base run in each patch; None for none.
        amounts: How far a patch moves what it replaces in each prompt, from 0 to 1 (all the way); None for 1.
        watch: Sees what differs from the base run.
    """

    def __init__(
        self,
        contrast: Contrast,
        nodes: Bool[np.ndarray, "patch writer"],
        where: Sequence[Bool[np.ndarray, "row pos"]] | None = None,
        stages: Sequence[int] | None = None,
        *,
        held: Bool[np.ndarray, "patch writer"] | None = None,
        amounts: Float[Tensor, "patch row"] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._contrast, self._model = contrast, contrast.model
        self._n = len(nodes)
        self._n_rows = contrast.n_rows
        self._any: Bool[np.ndarray, " writer"] = np.asarray(nodes.any(0))
        self._nodes = nodes  # on the host, where it is asked which patches do what
        chosen = upload(nodes, contrast.model.device)[:, None]
        self._amounts = chosen if amounts is None else chosen * amounts[..., None]
        anatomy = contrast.model.anatomy
        self._stages = list(stages) if stages is not None else [first_stage(anatomy, row) for row in nodes]
        assert self._stages == sorted(self._stages)
        self._held: Bool[Tensor, "patch writer"] | None = None
        self._any_held = np.zeros_like(self._any)
        if held is not None and held.any():
            self._held = upload(held, contrast.model.device)
            self._any_held = np.asarray(held.any(0))
        self._watch = watch
        self._values: Writes = contrast.cut
        self._where: Bool[Tensor, "patch row pos"] | None = None
        if where is not None:
            self._where = upload(np.stack(where), contrast.model.device)
        self._places: dict[int, Place] = {}

    @lowered
    def run(self) -> Float[Tensor, "patch prompt d_model"]:
        """The stream that the final norm reads at each prompt's answer position, under each patch."""
        model, base = self._model, self._contrast.base
        model.passes["forward"] += 1
        x = base.input.new_empty((0, self._contrast.length, model.d_model))
        if self._joined(0).stop:
            x = self._put(
                0, self._joined(0), self._repeated(base.input, self._joined(0).stop), self._values.input
            )
        for index in range(len(model.layers)):
            x = self._block(index, x)
        x = torch.cat((x, self._begin_end(slice(len(x) // self._n_rows, self._n))))
        if self._watch is not None:
            self._watch.stream(2 * len(model.layers), self._change(x, base.final[:, None]))
        return torch.unflatten(x[:, 0], 0, (self._n, self._n_rows))

    # Rows of x are [patch * prompt]: patches 0 to the number that have joined.

    def _joined(self, stage: int) -> slice:
        """The patches that begin at a stage."""
        first = next((i for i, s in enumerate(self._stages) if s >= stage), self._n)
        stop = next((i for i, s in enumerate(self._stages) if s > stage), self._n)
        return slice(first, stop)

    def _repeated(self, x: Tensor, times: int) -> Tensor:
        return x.repeat(times, *[1] * (x.ndim - 1))

    def _at(self, x: Tensor, last: bool) -> Tensor:
        return self._contrast.base.place.at_answer(x) if last else x

    def _place(self, n: int) -> Place:
        if n not in self._places:
            self._places[n] = self._contrast.base.place.repeated(n)
        return self._places[n]

    def _chosen(self, rows: slice, patches: slice, last: bool) -> Float[Tensor, "patch row pos writer"]:
        """How far a patch moves a writer at a token; axes ``row`` and ``pos`` have length 1 without ``where``."""
        chosen = self._amounts[patches, :, None, rows].to(self._contrast.base.input.dtype)
        if self._where is not None:
            where = self._where[patches]
            if last:
                place = self._contrast.base.place
                every = torch.arange(self._n_rows, device=where.device)
                where = where[:, every, place.answers - place.start, None]
            chosen = chosen * where[..., None]
        return chosen

    def _put(
        self,
        row: int,
        patches: slice,
        current: Tensor,
        wanted: Tensor,
        base: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """A writer's output, replaced in the patches that replace it, and that of the base run where it is held."""
        out: Tensor = torch.unflatten(current, 0, (-1, self._n_rows))
        if bool(self._any_held[row]) and base is not None:
            assert self._held is not None
            out = torch.where(self._held[patches, row][:, None, None, None], base, out)
        if bool(self._any[row]):
            out = moved(out, wanted, self._chosen(slice(row, row + 1), patches, last))
        return out.flatten(0, 1)

    def _gap(self, index: int, z: Tensor, patches: slice, last: bool) -> Tensor | None:
        """How far heads that are replaced or held are from the values that the rows have; None for nothing."""
        heads = self._model.anatomy.head_slice(index)
        replaced = bool(self._any[heads].any()) and bool(self._nodes[patches, heads].any())
        if patches.stop == patches.start or not (replaced or self._any_held[heads].any()):
            return None
        z = z.unflatten(0, (-1, self._n_rows))
        gap = None
        if replaced:
            gap = (self._at(self._values.z[index], last) - z) * self._chosen(heads, patches, last)[..., None]
        if self._held is not None and self._any_held[heads].any():
            held = self._held[patches, heads].to(z.dtype)[:, None, None, :, None]
            back = (self._contrast.base.blocks[index].z - z) * held
            gap = back if gap is None else gap + back
        return gap

    def _moved(self, index: int, gap: Float[Tensor, "patch prompt pos head d_head"]) -> Tensor:
        """What a change of heads of a layer adds to the stream."""
        moved: Tensor = gap.flatten(0, 1).flatten(2) @ self._model.layers[index].w_o.flatten(0, 1)
        return moved

    def _change(self, x: Tensor, base: Tensor) -> Tensor:
        """What rows of a pass have over the base run, patch by patch."""
        change: Tensor = torch.unflatten(x, 0, (-1, self._n_rows)) - base
        return change

    # Where patches begin.

    def _begin_heads(self, index: int, patches: slice, last: bool) -> Float[Tensor, "row pos d_model"]:
        """The stream behind the attention of a layer in patches whose first nodes are heads of it."""
        layer, heads = self._model.layers[index], self._model.anatomy.head_slice(index)
        run = self._contrast.base.blocks[index]
        used = index_of(np.flatnonzero(self._nodes[patches, heads].any(0)), run.z.device)
        n = patches.stop - patches.start
        if len(used) > n:
            gap = self._gap(index, self._repeated(run.z, n), patches, last)
            assert gap is not None
            return self._moved(index, gap) + self._repeated(run.mid, n)
        # What one head adds does not depend on the patch: each is projected once, not once for each patch.
        gap = (self._at(self._values.z[index], last) - run.z)[:, :, used].flatten(0, 1).transpose(0, 1)
        each = torch.matmul(gap, layer.w_o[used]).unflatten(1, run.z.shape[:2])  # [head, row, pos, d_model]
        if self._where is None and self._amounts.shape[1] == 1:
            matrix = self._amounts[patches, 0, heads][:, used].to(each.dtype)
            out = (matrix @ each.flatten(1)).unflatten(1, each.shape[1:])
        else:
            out = torch.einsum("nrph,hrpd->nrpd", self._chosen(heads, patches, last)[..., used], each)
        stream: Tensor = (out + run.mid).flatten(0, 1)
        return stream

    def _begin_mlp(self, index: int, patches: slice, last: bool) -> Float[Tensor, "row pos d_model"]:
        """The stream behind the MLP of a layer in patches whose first node it is."""
        run = self._contrast.base.blocks[index]
        assert run.mlp is not None
        assert self._values.mlp is not None
        if run.parts is not None:
            start: Tensor = run.mid + self._swapped(index, patches, run.mlp[None], run.parts, last)
            return start.flatten(0, 1)
        row = self._model.anatomy.mlp_row(index)
        gap = self._at(self._values.mlp[index], last) - run.mlp
        chosen = self._chosen(slice(row, row + 1), patches, last)
        stream: Tensor = run.mid + run.mlp + gap * chosen
        return stream.expand(patches.stop - patches.start, -1, -1, -1).flatten(0, 1)

    def _begin_end(self, patches: slice) -> Float[Tensor, "row 1 d_model"]:
        """The last stream in patches of nothing."""
        return self._repeated(self._contrast.base.final[:, None], patches.stop - patches.start)

    # Layers.

    def _block(self, index: int, x: Float[Tensor, "row pos d_model"]) -> Tensor:
        model, base = self._model, self._contrast.base
        layer, last = model.layers[index], index == len(model.layers) - 1
        run, before = base.blocks[index], slice(0, len(x) // self._n_rows)
        read = mid = x
        z: Tensor | None = None
        if before.stop:
            model.passes["work"] += x.shape[0] * x.shape[1]
            place, keys = self._place(before.stop), self._contrast.before
            if self._watch is not None:
                self._watch.stream(2 * index, self._change(x, run.resid))
            z = attend(layer, x, place, None if keys is None else keys[index], last=last)[3]
            read = place.at_answer(x) if last else x
            gap = self._gap(index, z, before, last)
            mid = read + layer.heads_out(z)
            if gap is not None:
                mid = mid + self._moved(index, gap)
                z = z if self._watch is None else z + gap.flatten(0, 1)
        new = self._joined(2 * index + 1)
        self._show_heads(index, z, new, last)
        if new.start < new.stop:
            begun = self._begin_heads(index, new, last)
            mid = torch.cat((mid, begun)) if before.stop else begun
        elif not before.stop:
            mid = mid.new_empty((0, run.mid.shape[1], model.d_model))
        if not model.has_mlp:
            return mid
        return self._mlp(index, mid, read if model.anatomy.parallel else mid, before, last)

    def _show_heads(self, index: int, z: Tensor | None, new: slice, last: bool) -> None:
        """Hand the watch what heads write: those of patches that had begun, and those where patches begin."""
        if self._watch is None:
            return
        run, changes = self._contrast.base.blocks[index], []
        if z is not None:
            changes.append(self._change(z, run.z))
        if new.start < new.stop:
            gap = self._gap(index, self._repeated(run.z, new.stop - new.start), new, last)
            if gap is not None:
                changes.append(gap)
        if changes:
            self._watch.heads(index, torch.cat(changes))

    def _mlp(self, index: int, mid: Tensor, read: Tensor, before: slice, last: bool) -> Tensor:
        """The stream behind the MLP of a block, with the patches that begin there."""
        model, run = self._model, self._contrast.base.blocks[index]
        assert run.mlp is not None
        changes: list[Tensor] = []
        if self._watch is not None and len(mid):
            self._watch.stream(2 * index + 1, self._change(mid, run.mid))
        if len(mid):
            all_now = slice(0, len(mid) // self._n_rows)
            # A parallel MLP does not read the heads that have just been replaced.
            computed = before if model.anatomy.parallel else all_now
            found = []
            if computed.stop:
                found.append(self._mlp_again(index, read, computed, last))
            if computed.stop < all_now.stop:
                found.append(self._mlp_as_it_was(index, slice(computed.stop, all_now.stop), last))
            out = found[0] if len(found) == 1 else torch.cat(found)
            mid = mid + out
            changes.append(out)
        new = self._joined(2 * index + 2)
        if new.start < new.stop:
            begun = self._begin_mlp(index, new, last)
            changes.append(begun - self._repeated(run.mid, new.stop - new.start))
            mid = torch.cat((mid, begun))
        if self._watch is not None and changes:
            self._watch.mlp(index, self._change(torch.cat(changes), run.mlp))
        return mid

    def _mlp_again(
        self, index: int, read: Tensor, patches: slice, last: bool
    ) -> Float[Tensor, "row pos d_model"]:
        """What an MLP adds in patches that had begun, of which some may replace it or parts of it."""
        model, run = self._model, self._contrast.base.blocks[index]
        layer = model.layers[index]
        assert layer.mlp is not None
        assert self._values.mlp is not None
        if layer.parts is None:
            wanted = self._at(self._values.mlp[index], last)
            out = layer.mlp(layer.mlp_norm(read))
            return self._put(model.anatomy.mlp_row(index), patches, out, wanted, run.mlp, last)
        assert run.parts is not None
        out, seen = layer.parts.again(read, run.parts.repeated(patches.stop - patches.start))
        error = None if seen.error is None else seen.error.unflatten(0, (-1, self._n_rows))
        seen = PartRun(seen.values.unflatten(0, (-1, self._n_rows)), error)
        return self._swapped(index, patches, out.unflatten(0, (-1, self._n_rows)), seen, last).flatten(0, 1)

    def _mlp_as_it_was(self, index: int, patches: slice, last: bool) -> Float[Tensor, "row pos d_model"]:
        """What an MLP adds that reads what it read in the base run, but for what patches replace of it."""
        run = self._contrast.base.blocks[index]
        assert run.mlp is not None
        assert self._values.mlp is not None
        count = patches.stop - patches.start
        if run.parts is None:
            wanted = self._at(self._values.mlp[index], last)
            row = self._model.anatomy.mlp_row(index)
            return self._put(row, patches, self._repeated(run.mlp, count), wanted, run.mlp, last)
        out = self._swapped(index, patches, run.mlp[None], run.parts, last)
        return out.expand(count, -1, -1, -1).flatten(0, 1)

    def _swapped(
        self,
        index: int,
        patches: slice,
        out: Float[Tensor, "#patch row pos d_model"],
        seen: PartRun,
        last: bool,
    ) -> Float[Tensor, "_ row pos d_model"]:
        """What an MLP adds, with the parts replaced that patches replace."""
        rows, parts = self._model.anatomy.mlp_slice(index), self._model.layers[index].parts
        assert parts is not None
        assert self._values.mlp is not None
        if not self._any[rows].any():
            return out
        cut = self._values.part(index).map(lambda x: self._at(x, last))
        total = self._at(self._values.mlp[index], last)
        return swapped(parts, self._any[rows], self._chosen(rows, patches, last), (out, seen), (total, cut))
