"""Rows of patches of one edge each: its reader is computed from the changed input, and the model runs on from there.

Below the reader nothing changes, and beside it nothing does either, so of its layer only the reader itself is computed: one
head (or those that share a key or value) or the MLP. From then on a patch is a row of a plain pass, as with nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.model.anatomy import Anatomy
from circuitfind.model.contrast import Contrast
from circuitfind.model.forward import BlockRun, behind
from circuitfind.model.node_pass import NodePass
from circuitfind.model.transfer import index_of
from circuitfind.names import SLOTS


def edge_stage(anatomy: Anatomy, reader: int) -> int:
    """Where a patch of an edge begins, in the count of ``first_stage``; the logits come last."""
    node, slot = anatomy.readers[reader]
    if reader == len(anatomy.readers) - 1:
        return 2 * anatomy.n_layers + 1
    return 2 * node.layer + (2 if slot is None else 1)


class SingleEdges(NodePass):
    """One pass with a row for each edge and prompt.

    Args:
        contrast: The base run and what replaced edges carry.
        edges: (writer, reader) of each patch; sorted by ``edge_stage``.
    """

    def __init__(self, contrast: Contrast, edges: Sequence[tuple[int, int]]) -> None:
        anatomy = contrast.model.anatomy
        nodes = np.zeros((len(edges), len(anatomy.writers)), dtype=bool)
        super().__init__(contrast, nodes, stages=[edge_stage(anatomy, reader) for _, reader in edges])
        self._edges = list(edges)

    def _changed(
        self, stream: Float[Tensor, "prompt pos d_model"], writers: Sequence[int], late: bool
    ) -> Tensor:
        """A stream of the base run in which these writers are replaced, one by one: [writer, prompt, pos, d_model]."""
        contrast = self._contrast
        gap = contrast.gap[self._index(writers)].unflatten(1, (self._n_rows, -1))
        if late:
            place = contrast.base.place
            rows = torch.arange(self._n_rows, device=gap.device)
            gap = gap[:, rows, place.answers - place.start][:, :, None]
        changed: Tensor = stream + gap
        return changed

    def _begin_heads(self, index: int, patches: slice, last: bool) -> Float[Tensor, "row pos d_model"]:
        anatomy, run = self._model.anatomy, self._contrast.base.blocks[index]
        mine = self._edges[patches]
        out = run.mid.new_empty((len(mine), *run.mid.shape))
        for slot in SLOTS:
            span = anatomy.reader_slice(index, slot)
            some = [i for i, (_, reader) in enumerate(mine) if span.start <= reader < span.stop]
            if some:
                edges = [(mine[i][0], mine[i][1] - span.start) for i in some]
                out[self._index(some)] = self._behind_heads(index, slot, edges, last)
        return out.flatten(0, 1)

    def _behind_heads(
        self, index: int, slot: str, edges: Sequence[tuple[int, int]], last: bool
    ) -> Float[Tensor, "patch prompt pos d_model"]:
        """The stream behind attention, for edges as (writer, query or key/value head)."""
        model, run = self._model, self._contrast.base.blocks[index]
        layer, anatomy, late = model.layers[index], model.anatomy, last and slot == "q"
        core, n = layer.attention, len(edges)
        share = anatomy.n_heads // anatomy.n_kv_heads
        writers = sorted({writer for writer, _ in edges})
        stream = self._at(run.resid, late)
        normed = layer.norm(self._changed(stream, writers, late)).flatten(1, 2)  # [writer, token, d_model]
        normed = normed[self._index(writers.index(writer) for writer, _ in edges)]
        chosen, bias = self._index(head for _, head in edges), layer.bias(slot)
        raw = torch.matmul(normed, layer.weight(slot)[chosen])  # [patch, token, d_head]
        raw = raw if bias is None else raw + bias[chosen][:, None]
        place = self._place(n)
        new = core.prepare(
            slot,
            raw.reshape(n * self._n_rows, -1, 1, layer.d_head),
            place.queries(late) if slot == "q" else place.positions,
        )
        model.passes["work"] += (
            n * self._n_rows * self._contrast.length * (1 if slot == "q" else share) // anatomy.n_heads
        )
        # Query heads of each patch, and the key/value head that they read.
        heads = [
            [head] if slot == "q" else list(range(head * share, (head + 1) * share)) for _, head in edges
        ]
        groups = [[anatomy.kv_of(some[0])] for some in heads]
        core = replace(core, group=len(heads[0]))
        q, k, v = self._of(run.q, heads), self._of(run.k, groups), self._of(run.v, groups)
        plain = core.mix(q, k, v, place.visible(layer, last)) if layer.post_norm is not None else None
        if slot == "q":
            q = new
        else:
            before = self._contrast.before
            if before is not None:
                old = before[index][0 if slot == "k" else 1]
                new = behind(self._of(old, groups), new)
            k, v = (new, v) if slot == "k" else (k, new)
        z = core.mix(q, k, v, place.visible(layer, last))  # [row, query, head, d_head]
        if plain is not None:
            return self._behind_post_norm(index, run, z - plain, heads, last)
        known = self._of(run.z.transpose(1, 2), heads).transpose(1, 2)
        gap = (z - known).flatten(2).unflatten(0, (n, -1)).flatten(1, 2)
        moved = torch.matmul(gap, layer.w_o[self._table(heads)].flatten(1, 2))
        out: Tensor = run.mid + moved.unflatten(1, (self._n_rows, -1))
        return out

    def _behind_post_norm(
        self, index: int, run: BlockRun, gap: Tensor, heads: list[list[int]], last: bool
    ) -> Float[Tensor, "patch prompt pos d_model"]:
        """The same where a norm stands behind attention: the change of one head rescales them all."""
        layer = self._model.layers[index]
        assert layer.post_norm is not None
        assert run.raw is not None
        flat = gap.flatten(2).unflatten(0, (len(heads), -1)).flatten(1, 2)
        raw = run.raw + torch.matmul(flat, layer.w_o_raw[self._table(heads)].flatten(1, 2)).unflatten(
            1, (self._n_rows, -1)
        )
        return self._at(run.resid, last) + layer.post_norm(raw)

    def _of(self, x: Float[Tensor, "prompt head pos d_head"], heads: list[list[int]]) -> Tensor:
        """Some heads of a tensor of the base run for each patch: [patch * prompt, head, pos, d_head]."""
        found: Tensor = x[:, self._table(heads)].transpose(0, 1).flatten(0, 1)
        return found

    def _index(self, rows: Iterable[int]) -> Tensor:
        return index_of(rows, self._model.device)

    def _table(self, heads: list[list[int]]) -> Int[Tensor, "patch head"]:
        flat = self._index(head for some in heads for head in some)
        return flat.reshape(len(heads), -1)

    def _begin_mlp(self, index: int, patches: slice, last: bool) -> Float[Tensor, "row pos d_model"]:
        model, run = self._model, self._contrast.base.blocks[index]
        layer = model.layers[index]
        assert layer.mlp is not None
        writers = [writer for writer, _ in self._edges[patches]]
        known = self._at(run.resid, last) if model.anatomy.parallel else run.mid
        read = self._changed(known, writers, last)
        return (run.mid + layer.mlp(layer.mlp_norm(read))).flatten(0, 1)

    def _begin_end(self, patches: slice) -> Float[Tensor, "row 1 d_model"]:
        writers = [writer for writer, _ in self._edges[patches]]
        return self._changed(self._contrast.base.final[:, None], writers, late=True).flatten(0, 1)
