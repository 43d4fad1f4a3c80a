"""A forward pass in which every edge has a weight between 0 and 1, differentiable in these weights.

Reader r reads ``cut stream + sum_w mask[w, r] (current_w - cut_w)``: the circuit at masks of 0 and 1, where it equals
model/edge_pass.py, and something between circuits elsewhere (Bhaskar et al. 2024, arXiv 2406.16778, section 3). A mask for
a writer is the same mask on all edges out of it. The gradient of a metric at masks of 1 is the score that EAP gives.

Plain autograd, on the parts of model/layer.py. What the graph holds of a block is computed again in the backward pass when
asked (``recompute``); the gaps of the writers are held in either case.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from circuitfind.model.bridge import Model
from circuitfind.model.contrast import Contrast
from circuitfind.model.writes import Writes


class MaskedPass:
    """Passes over one batch; each call of ``run`` is one.

    Args:
        contrast: The run whose inputs are read, and what cut edges carry.
        cut: What cut edges carry, in place of the contrast's own: a tensor that needs a gradient gets one.
        recompute: Hold less for the backward pass, and run each block twice.
    """

    def __init__(self, contrast: Contrast, *, cut: Writes | None = None, recompute: bool = False) -> None:
        self._contrast, self._model = contrast, contrast.model
        self._place = contrast.base.place
        self._cut = contrast.cut if cut is None else cut
        self._streams = self._cut.streams(self._model)
        self._recompute = recompute

    def run(self, mask: Float[Tensor, "#row writer reader"]) -> Float[Tensor, "row vocab"]:
        """Logits at each prompt's answer position.

        Args:
            mask: Share of its current value that each edge carries, for all prompts or for each; what is marked where no
                edge exists is never read.
        """
        with self._model.learning():
            return self._model.head(self.final(mask))

    def final(self, mask: Float[Tensor, "#row writer reader"]) -> Float[Tensor, "row d_model"]:
        """The stream that the final norm reads at each prompt's answer position; see ``run``."""
        model, anatomy = self._model, self._model.anatomy
        model.passes["forward"] += 1
        gaps = [(self._contrast.base.input - self._cut.input)[:, None]]  # each [row, writer, pos, d_model]
        for index in range(anatomy.n_layers):
            if index == anatomy.n_layers - 1:
                late = [self._place.at_answer(gap.transpose(1, 2)).transpose(1, 2) for gap in gaps]
                gaps = self._through(self._last_block, mask, gaps, late)
            else:
                gaps = gaps + self._through(self._block(index), mask, gaps)
        final = self._read(
            mask, gaps, slice(len(anatomy.readers) - 1, None), 2 * anatomy.n_layers, answer=True
        )
        return final[:, 0, 0]

    def _through(self, block: Callable[..., list[Tensor]], *inputs: object) -> list[Tensor]:
        if not (self._recompute and torch.is_grad_enabled()):
            return block(*inputs)
        found: list[Tensor] = checkpoint(block, *inputs, use_reentrant=False)
        return found

    def _read(
        self,
        mask: Float[Tensor, "#row writer reader"],
        gaps: list[Float[Tensor, "row _ pos d_model"]],
        columns: slice,
        stage: int,
        *,
        answer: bool,
    ) -> Float[Tensor, "row some pos d_model"]:
        """What some readers read of the writers so far; ``stage`` as in ``Writes.streams``."""
        gap = torch.cat(gaps, 1) if len(gaps) > 1 else gaps[0]
        weights = mask[:, : gap.shape[1], columns].transpose(1, 2).to(gap.dtype)
        moved = torch.matmul(weights, gap.flatten(2)).unflatten(2, gap.shape[2:])
        stream = self._streams[stage]
        found: Tensor = (self._place.at_answer(stream) if answer else stream)[:, None] + moved
        return found

    def _block(self, index: int) -> Callable[[Tensor, list[Tensor]], list[Tensor]]:
        def run(mask: Tensor, gaps: list[Tensor]) -> list[Tensor]:
            return self._written(index, mask, gaps, gaps, last=False)

        return run

    def _last_block(self, mask: Tensor, gaps: list[Tensor], late: list[Tensor]) -> list[Tensor]:
        """All gaps at the answer position, those of the last block included."""
        return late + self._written(self._model.anatomy.n_layers - 1, mask, gaps, late, last=True)

    def _written(
        self, index: int, mask: Tensor, gaps: list[Tensor], asking: list[Tensor], *, last: bool
    ) -> list[Float[Tensor, "row _ query d_model"]]:
        """What the heads and the MLP of a block write, minus what they carry when cut."""
        model, anatomy, place = self._model, self._model.anatomy, self._place
        layer, core = model.layers[index], model.layers[index].attention
        model.passes["work"] += self._contrast.n_rows * self._contrast.length
        prepared = []
        for slot in "qkv":
            ask = last and slot == "q"
            columns = anatomy.reader_slice(index, slot)
            x = self._read(mask, asking if ask else gaps, columns, 2 * index, answer=ask)
            x = layer.norm(x).transpose(0, 1)  # heads in front: one product for each head's weights
            raw = layer.project_apart(slot, range(len(x)), x.flatten(1, 2)[None])[0].unflatten(
                1, x.shape[1:3]
            )
            positions = place.queries(last) if slot == "q" else place.positions
            prepared.append(core.prepare(slot, raw.permute(1, 2, 0, 3), positions))
        q, k, v = prepared
        if self._contrast.before is not None:
            old_k, old_v = self._contrast.before[index]
            k, v = torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
        z = core.mix(q, k, v, place.visible(layer, last))
        if layer.post_norm is not None:
            z = layer.scaled(z, layer.raw_out(z))
        gap = (z - self._at(self._cut.z[index], last)).permute(2, 0, 1, 3)  # [head, row, query, d_head]
        heads = torch.matmul(gap.flatten(1, 2), layer.w_o).unflatten(1, gap.shape[1:3]).transpose(0, 1)
        if layer.mlp is None:
            return [heads]
        assert self._cut.mlp is not None
        stage, below = (2 * index, asking) if anatomy.parallel else (2 * index + 1, [*asking, heads])
        read = self._read(mask, below, anatomy.reader_slice(index, "mlp"), stage, answer=last)
        out = layer.mlp(layer.mlp_norm(read[:, 0]))
        return [heads, (out - self._at(self._cut.mlp[index], last))[:, None]]

    def _at(self, x: Tensor, last: bool) -> Tensor:
        return self._place.at_answer(x) if last else x


def graph_bytes(model: Model) -> int:
    """What a pass with gradients holds for each token, without ``recompute``; an estimate on the high side."""
    anatomy, layer = model.anatomy, model.layers[0]
    readers = layer.n_heads + 2 * layer.n_kv_heads
    block = (
        3 * readers * model.d_model + 4 * layer.n_heads * layer.d_head + 6 * model.d_mlp + 4 * model.d_model
    )
    writers = len(anatomy.writers) * (2 + anatomy.n_layers) * model.d_model
    return (anatomy.n_layers * block + writers) * model.dtype.itemsize
