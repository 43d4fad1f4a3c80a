"""The patched forward pass: one pass in which every patch replaces its own nodes and its own edges.

A batch holds P patches of the same N prompts as P * N rows. A **node** that is replaced writes its ablated value to the
stream, for everyone. An **edge** that is replaced shows its ablated value to one reader only: the reader's input is the
stream plus the sum, over the replaced edges into it, of (ablated - current) writer outputs. Replacing all outgoing edges
of a node is the same as replacing the node.

Where a patch replaces most edges into some readers, their input is put together from the other end: the ablated stream plus the
sum, over the edges that are left, of (current - ablated). With few edges left this is more exact: under zero ablation a
stream that was cancelled out would leave rounding errors, which a norm then blows up.

Heads read through their own ``<q>``, ``<k>``, ``<v>`` inputs: each is normalised and projected apart. Corrections are one
matrix product per reader group, ``mask [reader, writer] @ delta [writer, token * d_model]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitfind.model.bridge import Hook, Model
from circuitfind.model.writes import Writes


@dataclass(frozen=True)
class Patch:
    """Which writers and which edges carry their ablated value.

    Attributes:
        nodes: Writers replaced for every reader, or None for no writer.
        edges: Edges replaced, or None for no edge.
    """

    nodes: Bool[np.ndarray, " writer"] | None = None
    edges: Bool[np.ndarray, "writer reader"] | None = None


class PatchedPass:
    """The hooks of one patched forward pass. Use once.

    Args:
        model: The model.
        patches: P patches.
        ablated: What replaced parts carry, for the N prompts of the batch.
    """

    def __init__(self, model: Model, patches: Sequence[Patch], ablated: Writes) -> None:
        self._model = model
        self._ablated = ablated
        self._n_patches = len(patches)
        self._n_prompts, self._length = ablated.input.shape[:2]
        anatomy, device = model.anatomy, model.device
        writers, readers = anatomy.edge_mask.shape
        nodes = np.zeros((len(patches), writers), dtype=bool)
        edges = np.zeros((len(patches), writers, readers), dtype=bool)
        for i, patch in enumerate(patches):
            if patch.nodes is not None:
                nodes[i] = patch.nodes
            if patch.edges is not None:
                edges[i] = patch.edges & anatomy.edge_mask
        self._any_node = np.asarray(nodes.any(0))
        self._any_edge = np.asarray(edges.any((0, 1)))
        self._nodes = torch.from_numpy(nodes).to(device)
        # [patch, reader, writer], as the product wants it.
        self._edges = torch.from_numpy(edges.transpose(0, 2, 1).copy()).to(device, model.dtype)
        self._delta: Tensor | None = None
        if self._any_edge.any():
            tokens = self._n_prompts * self._length
            self._delta = torch.empty(
                (len(patches), writers, tokens, model.d_model), device=device, dtype=model.dtype
            )
        self._z: Tensor | None = None
        self._stream: Tensor | None = None
        # What the ablated writers and the constants so far sum to: [token, d_model], now and before this layer.
        self._ablated_stream = torch.zeros(
            self._n_prompts * self._length, model.d_model, device=device, dtype=model.dtype
        )
        self._before_layer = self._ablated_stream

    def run(
        self,
        tokens: Int[Tensor, "prompt pos"],
        answer_positions: Int[Tensor, " prompt"],
        mask: Bool[Tensor, "prompt pos"] | None,
    ) -> Float[Tensor, "patch prompt vocab"]:
        """Logits at each prompt's answer position, under each patch."""
        p = self._n_patches
        with torch.no_grad(), self._model.hooked(self._hooks()):
            out = self._model.logits(
                tokens.repeat(p, 1), answer_positions.repeat(p), None if mask is None else mask.repeat(p, 1)
            )
        return torch.unflatten(out, 0, (p, self._n_prompts))

    def _hooks(self) -> list[tuple[nn.Module, Hook]]:
        model, anatomy = self._model, self._model.anatomy
        edges = self._delta is not None
        hooks: list[tuple[nn.Module, Hook]] = []
        if edges or self._any_node[0]:
            hooks.append((model.layers[0].sites["resid"], lambda x: self._write(0, x, self._ablated.input)))
        for index, layer in enumerate(model.layers):
            heads = anatomy.head_slice(index)
            columns = {s: anatomy.reader_slice(index, s) for s in ("q", "k", "v", "mlp")}
            if edges:
                hooks.append((layer.sites["resid"], self._enter_layer))
                touched = [slot for slot in ("q", "k", "v") if self._any_edge[columns[slot]].any()]
                hooks += [(layer.sites[slot], self._reader(index, slot)) for slot in touched]
            if edges or self._any_node[heads].any():
                hooks += [(layer.sites["z"], self._keep_z), (layer.sites["attn_raw"], self._scale_z(index))]
                hooks.append((layer.sites["attn_out"], self._heads(index)))
            if model.has_mlp:
                row = anatomy.mlp_row(index)
                if self._any_edge[columns["mlp"]].any():
                    before = anatomy.rows_before(index, "mlp")
                    hook = self._single(columns["mlp"].start, before, beside_heads=anatomy.parallel)
                    hooks.append((layer.sites["mlp_in"], hook))
                if edges or self._any_node[row]:
                    hooks.append((layer.sites["mlp_out"], self._mlp(row, index)))
        if self._any_edge[-1]:
            hooks.append((model.final_site, self._single(len(anatomy.readers) - 1, len(anatomy.writers))))
        return hooks

    # Shapes: rows are [patch * prompt, pos, ...]; delta is [patch, writer, prompt * pos, d_model].

    def _by_patch(self, x: Float[Tensor, "row pos d"]) -> Float[Tensor, "patch token d"]:
        return x.reshape(self._n_patches, self._n_prompts * self._length, x.shape[-1])

    def _by_row(self, x: Float[Tensor, "patch token d"]) -> Float[Tensor, "row pos d"]:
        return x.reshape(self._n_patches * self._n_prompts, self._length, x.shape[-1])

    # Writers.

    def _write(self, row: int, x: Tensor, ablated: Float[Tensor, "prompt pos d_model"]) -> Tensor | None:
        """A writer that writes to the stream directly: replace it where asked, remember (ablated - current)."""
        current = self._by_patch(x)
        wanted = ablated.reshape(1, -1, x.shape[-1])
        replaced = self._any_node[row]
        if replaced:
            current = torch.where(self._nodes[:, row, None, None], wanted, current)
        if self._delta is not None:
            torch.sub(wanted, current, out=self._delta[:, row])
            self._ablated_stream = self._ablated_stream + wanted[0]
        return self._by_row(current) if replaced else None

    def _mlp(self, row: int, index: int) -> Hook:
        assert self._ablated.mlp is not None
        ablated = self._ablated.mlp[index]
        return lambda x: self._write(row, x, ablated)

    def _keep_z(self, x: Tensor) -> None:
        self._z = x.unflatten(-1, (self._model.anatomy.n_heads, self._model.d_head))

    def _scale_z(self, index: int) -> Hook:
        def hook(raw: Tensor) -> None:
            assert self._z is not None
            self._z = self._model.layers[index].scaled(self._z, raw)

        return hook

    def _heads(self, index: int) -> Hook:
        layer, rows = self._model.layers[index], self._model.anatomy.head_slice(index)
        n_heads = self._model.anatomy.n_heads

        def hook(out: Tensor) -> Tensor | None:
            assert self._z is not None
            z = self._by_patch(self._z.flatten(2)).unflatten(-1, (n_heads, -1))
            gap = self._ablated.z[index].flatten(0, 1)[None] - z  # [patch, token, head, d_head]
            result = None
            if self._any_node[rows].any():
                replaced = self._nodes[:, None, rows, None]
                moved = (gap * replaced).flatten(2) @ layer.w_o.flatten(0, 1)
                result = out + self._by_row(moved)
                gap = gap * ~replaced
            if self._delta is not None:
                self._delta[:, rows] = torch.matmul(gap.transpose(1, 2), layer.w_o)
                heads = self._ablated.z[index].flatten(2).flatten(0, 1) @ layer.w_o.flatten(0, 1)
                self._ablated_stream = self._ablated_stream + heads + (0 if layer.b_o is None else layer.b_o)
            return result

        return hook

    # Readers.

    def _inputs(
        self, stream: Float[Tensor, "patch token d_model"], ablated: Tensor, columns: slice, before: int
    ) -> Float[Tensor, "patch reader token d_model"]:
        """What some readers read, given the stream and its ablated twin, from the writers before them."""
        assert self._delta is not None
        edges = self._edges[:, columns, :before]
        mostly_cut = edges.mean((1, 2), keepdim=True) > 0.5  # by patch
        # From the ablated end the edges that are left count -1: (edges - 1) @ (ablated - current).
        change = torch.bmm(edges - mostly_cut.to(edges.dtype), self._delta[:, :before].flatten(2))
        start = torch.where(mostly_cut, ablated, stream)
        return start[:, None] + torch.unflatten(change, -1, (-1, self._model.d_model))

    def _enter_layer(self, x: Tensor) -> None:
        self._stream = self._by_patch(x)
        self._before_layer = self._ablated_stream

    def _reader(self, index: int, slot: str) -> Hook:
        layer, anatomy = self._model.layers[index], self._model.anatomy
        columns, before = anatomy.reader_slice(index, slot), anatomy.rows_before(index, slot)

        def hook(_: Tensor) -> Tensor:
            assert self._stream is not None
            inputs = self._inputs(self._stream, self._before_layer, columns, before)
            return self._by_row(layer.project(slot, layer.norm(inputs)))

        return hook

    def _single(self, column: int, before: int, *, beside_heads: bool = False) -> Hook:
        """A reader with one input: an MLP or the logits. In a parallel block the MLP reads beside the heads."""

        def hook(x: Tensor) -> Tensor:
            ablated = self._before_layer if beside_heads else self._ablated_stream
            inputs = self._inputs(self._by_patch(x), ablated, slice(column, column + 1), before)
            return self._by_row(inputs[:, 0])

        return hook
