"""Rows of patches that replace edges: readers of their own inputs, computed for no more nodes than can matter.

What reader r reads in patch p is a known stream plus ``M0[p, :, r] @ (replaced - base)`` plus ``M1[p, :, r] @ (current -
known)``: the first sum is over writers that are as they were, the second over those that are computed in this pass
(model/reach.py). Known is the base run, or, where a circuit leaves few edges, what cut edges carry; from that end the first
sum is empty. What does not depend on the patch is computed once for all patches, and readers of a layer with the same
in-edges share a row.

From the base run, a reader of which most edges are cut starts at the replaced stream and subtracts what is left: under zero
ablation a stream that was cancelled out would leave rounding errors, which a norm then blows up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitfind.model.contrast import Contrast
from circuitfind.model.part_pass import PartsOfPass
from circuitfind.model.precision import full, lowered
from circuitfind.model.reach import reach
from circuitfind.model.transfer import index_of, upload

FEW = 0.7
"""Below this share of rows, copying them is cheaper than a product with all."""

Kept = Bool[np.ndarray, "patch before reader"]


class _Moved:
    """How far the values of some writers are from those of the known run, in each of some patches.

    Tensors are ``[patch, writer, token, d_model]``; tokens are those of all positions and, once the last block is
    reached, of the answer positions too.
    """

    def __init__(self, contrast: Contrast, patches: int, active: Bool[np.ndarray, " writer"]) -> None:
        anatomy, like = contrast.model.anatomy, contrast.written.input
        self.n = patches
        self.rows = np.flatnonzero(active)
        self.slots = {int(row): i for i, row in enumerate(self.rows)}
        self._place, self._prompts = contrast.base.place, contrast.n_rows
        # Writers of the last block have a value at the answer positions alone.
        self._n_early = self.count(anatomy.head_slice(anatomy.n_layers - 1).start)
        width = contrast.model.d_model
        self.early = like.new_empty((patches, self._n_early, contrast.n_rows * contrast.length, width))
        self.late = like.new_empty((patches, len(self.rows), contrast.n_rows, width))

    def count(self, before: int) -> int:
        """How many of the writers lie below a row of the list of writers."""
        return int((self.rows < before).sum())

    def reach_last_block(self) -> None:
        """Take out the answer positions of what was written so far."""
        if self._n_early:
            every = self.early.unflatten(2, (self._prompts, -1)).permute(2, 3, 0, 1, 4)
            self.late[:, : self._n_early] = self._place.at_answer(every)[:, 0].permute(1, 2, 0, 3)

    def below(self, before: int, answer: bool) -> Float[Tensor, "patch writer values"]:
        """The writers below a row, tokens and ``d_model`` in one axis."""
        return (self.late if answer else self.early)[:, : self.count(before)].flatten(2)


class EdgePass:
    """One pass with a row for each patch and prompt. Use once.

    Args:
        contrast: The run and what replaced parts carry.
        nodes: Writers that each patch replaces, for every reader.
        edges: Edges that each patch replaces.
    """

    def __init__(
        self,
        contrast: Contrast,
        nodes: Bool[np.ndarray, "patch writer"],
        edges: Bool[np.ndarray, "patch writer reader"],
    ) -> None:
        model = contrast.model
        anatomy = model.anatomy
        self._contrast, self._model = contrast, model
        found = reach(
            anatomy,
            nodes,
            edges & anatomy.edge_mask,
            cut_is_run=contrast.cut_is_run,
            heads_together=any(layer.post_norm is not None for layer in model.layers),
        )
        self._from_base = found.end == "base"
        self._nodes = nodes
        self._kept = anatomy.edge_mask & ~edges
        self._n, self._rows = len(edges), contrast.n_rows
        self._same = _Moved(contrast, 1, found.active & ~found.varied)
        self._apart = _Moved(contrast, self._n, found.active & found.varied)

    @lowered
    def run(self) -> Float[Tensor, "patch prompt d_model"]:
        """The stream that the final norm reads at each prompt's answer position, under each patch."""
        contrast, model = self._contrast, self._model
        anatomy = model.anatomy
        model.passes["forward"] += 1
        for moved in (self._same, self._apart):
            if 0 in moved.slots:
                replaced = contrast.cut.input[None]
                value = self._chosen(moved, 0, contrast.base.input[None], replaced)
                known = contrast.base.input if self._from_base else replaced
                moved.early[:, 0] = (value - known).flatten(1, 2)
        for index in range(anatomy.n_layers):
            last = index == anatomy.n_layers - 1
            if last:
                self._same.reach_last_block()
                self._apart.reach_last_block()
            for moved in (self._same, self._apart):
                self._heads(moved, index, last)
            if model.has_mlp:
                for moved in (self._same, self._apart):
                    self._mlp(moved, index, last)
        ((_, final),) = self._inputs([-1], len(anatomy.writers), 2 * anatomy.n_layers, answer=True)
        return final[:, 0].expand(self._n, -1, -1)

    # Readers. Tokens are [row * pos], or [row] where only answer positions matter.

    def _inputs(
        self, columns: Sequence[int], before: int, stage: int, *, answer: bool
    ) -> Iterator[tuple[list[list[int]], Float[Tensor, "patch row token d_model"]]]:
        """What some readers read, of the writers below row ``before``.

        Comes in two parts at most: what no patch varies, with one patch, and the rest. A part says which of ``columns``
        read each of its rows.
        """
        kept = self._kept[:, :before][:, :, columns]
        varied = (kept != kept[:1]).any((0, 1))
        varied |= kept[:, self._apart.rows[: self._apart.count(before)]].any((0, 1))
        for apart in (False, True):
            shared: dict[bytes, list[int]] = {}
            for i in np.flatnonzero(varied == apart):
                shared.setdefault(kept[:, :, i].tobytes(), []).append(int(i))
            if shared:
                rows = kept[:, :, [group[0] for group in shared.values()]]
                yield list(shared.values()), self._read(rows if apart else rows[:1], apart, stage, answer)

    @full
    def _read(
        self, kept: Kept, apart: bool, stage: int, answer: bool
    ) -> Float[Tensor, "patch row token d_model"]:
        """The inputs of readers with these in-edges."""
        patches, before, readers = kept.shape
        same, varied = self._same.below(before, answer), self._apart.below(before, answer)
        matrix = kept[:, self._same.rows[: same.shape[1]]].transpose(0, 2, 1)
        tables = [(matrix.astype(np.float32), same[0])]
        mostly = np.ones((patches, readers), dtype=bool)  # patch by patch: start at the replaced stream
        if self._from_base:
            mostly = kept.sum(1) < 0.5 * before
            change = (~kept).astype(np.float32) - mostly[:, None]
            tables.append((change.transpose(0, 2, 1), self._gap(answer)[:before]))
        shared, out = None, None
        for matrix, rows in tables:
            agreed = np.where((matrix == matrix[:1]).all(0), matrix[0], 0)
            shared = self._plus(shared, agreed, rows)
            if patches > 1:
                out = self._plus(out, (matrix - agreed).reshape(patches * readers, matrix.shape[2]), rows)
        if out is not None:
            out = out.unflatten(0, (patches, readers))
        if apart and varied.shape[1]:
            weights = self._float(kept[:, self._apart.rows[: varied.shape[1]]].transpose(0, 2, 1))
            out = torch.bmm(weights, varied) if out is None else out.baddbmm_(weights, varied)
        if out is None:
            out = same.new_zeros((patches, readers, same.shape[2]))
            out += 0.0 if shared is None else shared
        elif shared is not None:
            out += shared
        out = out.unflatten(-1, (-1, self._model.d_model))
        return self._from_start(out, mostly, stage, answer)

    def _plus(self, total: Tensor | None, matrix: np.ndarray, rows: Tensor) -> Tensor | None:
        """Add ``matrix @ rows`` in place; None stands for zero."""
        used = np.flatnonzero(matrix.any(0))
        if not len(used):
            return total
        if len(used) < FEW * len(rows):
            matrix, rows = matrix[:, used], rows[index_of(used, rows.device)]
        weights = self._float(matrix)
        return weights @ rows if total is None else total.addmm_(weights, rows)

    def _float(self, matrix: np.ndarray) -> Tensor:
        return upload(matrix, self._model.device, self._contrast.written.input.dtype)

    def _from_start(self, out: Tensor, mostly: np.ndarray, stage: int, answer: bool) -> Tensor:
        """Add the known stream that each reader starts from."""
        if mostly.all() or not mostly.any():
            out += self._known_stream(stage, answer, bool(mostly.all()))
            return out
        streams = [self._known_stream(stage, answer, replaced) for replaced in (False, True)]
        if (mostly == mostly[:1]).all():
            for reader, replaced in enumerate(mostly[0]):
                out[:, reader] += streams[int(replaced)]
            return out
        choice = upload(mostly, out.device)[..., None, None]
        return out + torch.where(choice, streams[1], streams[0])

    def _known_stream(self, stage: int, answer: bool, replaced: bool) -> Float[Tensor, "token d_model"]:
        """The base stream or the replaced one at a stage of ``Writes.streams``."""
        contrast = self._contrast
        base, end = contrast.base, len(self._model.layers)
        if replaced:
            stream = contrast.cut_streams[stage].unflatten(0, (self._rows, -1))
            return (base.place.at_answer(stream) if answer else stream).flatten(0, 1)
        layer, behind_heads = divmod(stage, 2)
        if layer == end:
            return base.final
        run = base.blocks[layer]
        if behind_heads:
            return run.mid.flatten(0, 1)
        return (base.place.at_answer(run.resid) if answer else run.resid).flatten(0, 1)

    def _gap(self, answer: bool) -> Float[Tensor, "writer values"]:
        """Replaced minus base of every writer, tokens and ``d_model`` in one axis."""
        return (self._contrast.gap_at_answer if answer else self._contrast.gap).flatten(1)

    def _mlp_inputs(
        self, index: int, last: bool, which: Sequence[int]
    ) -> Iterator[tuple[list[list[int]], Float[Tensor, "patch row token d_model"]]]:
        """What the MLP of a layer, or some of its parts, read."""
        anatomy = self._model.anatomy
        first = anatomy.reader_slice(index, "mlp").start
        stage = 2 * index + (0 if anatomy.parallel else 1)
        before = anatomy.rows_before(index, "mlp")
        yield from self._inputs([first + i for i in which], before, stage, answer=last)

    # Writers.

    def _chosen(self, moved: _Moved, row: int, current: Tensor, replaced: Tensor) -> Tensor:
        """A writer's value patch by patch; tensors are [1 or patch, prompt, pos, ...]."""
        nodes = self._nodes[: moved.n, row]
        if not nodes.any():
            return current
        mask = upload(nodes, current.device)
        return torch.where(mask.reshape(-1, *[1] * (current.ndim - 1)), replaced, current)

    def _index(self, rows: Iterable[int]) -> Tensor:
        return index_of(rows, self._model.device)

    def _at(self, x: Tensor, last: bool) -> Tensor:
        return self._contrast.base.place.at_answer(x) if last else x

    def _heads(self, moved: _Moved, index: int, last: bool) -> None:
        model, contrast = self._model, self._contrast
        layer, start = model.layers[index], model.anatomy.head_slice(index).start
        heads = [h for h in range(model.anatomy.n_heads) if start + h in moved.slots]
        if not heads:
            return
        at = self._index(heads)
        replaced = self._at(contrast.cut.z[index], last)[:, :, at]  # [prompt, query, head, d_head]
        known = contrast.base.blocks[index].z[:, :, at] if self._from_base else replaced
        nodes = self._nodes[: moved.n, [start + h for h in heads]]
        if nodes.all():
            z = replaced[None].expand(moved.n, -1, -1, -1, -1)
        else:
            z = self._attention(moved.n, index, heads, last)
            if nodes.any():
                z = torch.where(upload(nodes, z.device)[:, None, None, :, None], replaced, z)
        gap = (z - known).flatten(1, 2).transpose(1, 2)  # [patch, head, token, d_head]
        first = moved.slots[start + heads[0]]
        out = (moved.late if last else moved.early)[:, first : first + len(heads)]
        weight = layer.w_o if len(heads) == layer.n_heads else layer.w_o[at]
        for into, rows in zip(out, gap, strict=True):
            torch.bmm(rows, weight, out=into)

    def _attention(
        self, patches: int, index: int, heads: list[int], last: bool
    ) -> Float[Tensor, "patch prompt query head d_head"]:
        """Values of some heads, each reading its own inputs."""
        model, contrast = self._model, self._contrast
        anatomy, layer, core = model.anatomy, model.layers[index], model.layers[index].attention
        model.passes["work"] += patches * self._rows * contrast.length * len(heads) // anatomy.n_heads
        groups = sorted({anatomy.kv_of(h) for h in heads})
        parts = {"q": heads, "k": groups, "v": groups}
        columns = {
            slot: [anatomy.reader_slice(index, slot).start + h for h in of] for slot, of in parts.items()
        }
        if last:
            q = self._projected(patches, index, columns["q"], answer=True)
            both = self._projected(patches, index, columns["k"] + columns["v"], answer=False)
            k, v = both.split(len(groups), 2)
        else:
            every = self._projected(patches, index, columns["q"] + columns["k"] + columns["v"], answer=False)
            q, k, v = every.split((len(heads), len(groups), len(groups)), 2)
        many = contrast.base.place.repeated(patches)
        q = core.prepare("q", q, many.queries(last))
        k, v = core.prepare("k", k, many.positions), core.prepare("v", v, many.positions)
        if contrast.before is not None:
            at = self._index(groups)
            old_k, old_v = (t[:, at].repeat(patches, 1, 1, 1) for t in contrast.before[index])
            k, v = torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
        if anatomy.grouped:
            chosen = self._index(groups.index(anatomy.kv_of(h)) for h in heads)
            k, v, core = k[:, chosen], v[:, chosen], replace(core, group=1)
        z = core.mix(q, k, v, many.visible(layer, last))
        if layer.post_norm is not None:  # all heads are computed then
            z = layer.scaled(z, layer.raw_out(z))
        by_patch: Tensor = z.unflatten(0, (patches, self._rows))
        return by_patch

    def _projected(
        self, patches: int, index: int, columns: list[int], *, answer: bool
    ) -> Float[Tensor, "row pos reader d_head"]:
        """Queries, keys and values of some heads of a layer, by reader."""
        anatomy, layer = self._model.anatomy, self._model.layers[index]
        first = anatomy.reader_slice(index, "q").start
        weight = layer.w_qkv.unflatten(1, (-1, layer.d_head))  # readers stand in the order of these columns
        out: Tensor | None = None
        for rows, read in self._inputs(columns, anatomy.rows_before(index, "q"), 2 * index, answer=answer):
            x = layer.norm(read)
            if out is None:
                out = x.new_empty((patches, len(columns), x.shape[2], layer.d_head))
            for row, readers in enumerate(rows):
                chosen = [columns[i] - first for i in readers]
                own = (
                    weight[:, chosen[0] : chosen[-1] + 1]
                    if len(chosen) == chosen[-1] - chosen[0] + 1
                    else weight[:, self._index(chosen)]
                )
                found = torch.bmm(x[:, row], own.flatten(1).expand(len(x), -1, -1))
                found = found.unflatten(2, (-1, layer.d_head)).transpose(1, 2).to(out.dtype)
                out[:, self._index(readers)] = found
        assert out is not None
        if layer.b_qkv is not None:
            own = self._index(c - first for c in columns)
            out += layer.b_qkv.unflatten(0, (-1, layer.d_head))[own][:, None]
        by_row: Tensor = out.unflatten(2, (self._rows, -1)).permute(0, 2, 3, 1, 4)
        return by_row.flatten(0, 1)

    def _mlp(self, moved: _Moved, index: int, last: bool) -> None:
        model, contrast = self._model, self._contrast
        layer, row = model.layers[index], model.anatomy.mlp_slice(index).start
        if layer.parts is not None:
            out = moved.late if last else moved.early
            some = [i for i in range(len(layer.parts.nodes)) if row + i in moved.slots]
            if some:
                first, nodes = moved.slots[row + some[0]], self._nodes[: moved.n, row:]
                into = out[:, first : first + len(some)]
                PartsOfPass(contrast, index, last, from_base=self._from_base).write(
                    some, nodes, partial(self._mlp_inputs, index, last), into
                )
            return
        if row not in moved.slots:
            return
        assert layer.mlp is not None
        assert contrast.cut.mlp is not None
        replaced = self._at(contrast.cut.mlp[index], last)  # [prompt, query, d_model]
        run = contrast.base.blocks[index].mlp
        assert run is not None
        if self._nodes[: moved.n, row].all():
            value = replaced[None]
        else:
            ((_, read),) = self._mlp_inputs(index, last, [0])
            value = layer.mlp(layer.mlp_norm(read[:, 0])).unflatten(1, (self._rows, -1))
            value = self._chosen(moved, row, value, replaced[None])
        out = moved.late if last else moved.early
        out[:, moved.slots[row]] = (value - (run if self._from_base else replaced)).flatten(1, 2)
