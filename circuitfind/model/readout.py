"""Direct effects: what every writer adds to one linear reading of the stream.

A readout is the metric at the end of the model, or an input of a head further down. Its direction is the gradient at the
normalised stream of the clean run, pulled back through the norm with the scale frozen there, so that the reading is a sum
over writers: the direct effect of a writer is its output times the direction (at the logits of single tokens this is
direct logit attribution as in Rushing and Nanda 2024, arXiv 2402.15390). What the real norm does beside is measured apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.model.bridge import Model
from circuitfind.model.contrast import Contrast
from circuitfind.model.forward import Place, Trace
from circuitfind.model.gradients import BlockGradients
from circuitfind.model.norms import Norm
from circuitfind.model.rules import PLAIN


@dataclass(frozen=True)
class Readout:
    """A linear reading of one batch of clean prompts.

    Attributes:
        point: Where it reads, as a watch of a pass counts.
        norm: The norm between the stream and the reader.
        stream: What the norm reads in the clean run.
        read: Direction at what the norm gives.
        direction: Direction at the stream, with the norm's scale frozen.
        answers_only: Whether these hold the answer position alone, and are zero elsewhere; else every position.
    """

    point: int
    norm: Norm
    stream: Float[Tensor, "row pos d_model"]
    read: Float[Tensor, "row pos d_model"]
    direction: Float[Tensor, "row pos d_model"]
    answers_only: bool

    def here(self, x: Tensor, place: Place) -> Tensor:
        """A tensor of the readout at the positions that a pass computes; the answer's alone where it has no others."""
        return x if self.answers_only else x[:, place.start :]


def logits_readout(model: Model, trace: Trace, gradient: Float[Tensor, "row d_model"]) -> Readout:
    """The reading at the end of the model, from the gradient at the normalised final stream."""
    stream, read = trace.final[:, None], gradient[:, None]
    direction = model.final_norm.pullback(stream, read, frozen=True)
    return Readout(2 * len(model.layers), model.final_norm, stream, read, direction, answers_only=True)


def head_readout(model: Model, trace: Trace, found: BlockGradients, slot: str, index: int) -> Readout:
    """The reading of a head's input, from the gradients in its block of a whole clean run."""
    layer, stream = model.layers[found.layer], trace.blocks[found.layer].resid
    gradient = {"q": found.q, "k": found.k, "v": found.v}[slot][0, :, :, index]
    read = gradient @ layer.weight(slot)[index].T
    direction = layer.norm.pullback(stream, read, frozen=True)
    return Readout(2 * found.layer, layer.norm, stream, read, direction, answers_only=False)


def mlp_readout(model: Model, trace: Trace, found: BlockGradients) -> Readout:
    """The reading of an MLP's input, from the gradients in its block of a whole clean run."""
    layer, run = model.layers[found.layer], trace.blocks[found.layer]
    assert layer.mlp is not None
    assert found.hidden is not None
    assert run.saved is not None
    read = layer.mlp.backward(found.hidden, run.saved, PLAIN)[0]
    last, parallel = found.layer == len(model.layers) - 1, model.anatomy.parallel
    stream = run.resid if parallel else run.mid
    if parallel and last:
        stream = trace.place.at_answer(stream)
    direction = layer.mlp_norm.pullback(stream, read, frozen=True)
    point = 2 * found.layer + (not parallel)
    return Readout(point, layer.mlp_norm, stream, read, direction, answers_only=last)


class Effects:
    """Direct effects on readouts of one batch: in the clean run, and (as a watch of a pass) how patches change them.

    Args:
        contrast: The clean run, from wherever passes over it begin.
        readouts: Made from the whole clean run.
        count: Patches of the pass.

    Attributes:
        change: Of each writer's direct effect; zero where it cannot reach the readout. ``[readout, patch, writer, row]``
        read: How the reading itself changes, through the real norm. ``[readout, patch, row]``
        bent: How much of that the frozen norm would not give. ``[readout, patch, row]``
        scale: What the norm multiplies by, as a ratio to the clean run, at the answer position; 1 where a
            reader reads many positions. ``[readout, patch, row]``
    """

    def __init__(self, contrast: Contrast, readouts: Sequence[Readout], count: int) -> None:
        self._model, self._place, self._readouts = contrast.model, contrast.base.place, readouts
        like, rows = contrast.base.input, contrast.n_rows
        self.change = like.new_zeros(len(readouts), count, len(self._model.anatomy.writers), rows)
        self.read = like.new_zeros(len(readouts), count, rows)
        self.bent = torch.zeros_like(self.read)
        self.scale = torch.ones_like(self.read)

    def stream(self, point: int, change: Float[Tensor, "patch row pos d_model"]) -> None:
        if point == 0:
            self._add(0, -1, change, last=False)
        for number, readout in enumerate(self._readouts):
            if readout.point != point:
                continue
            # Behind the heads of the last block there is the answer position alone.
            x = self._seen(readout, change, point >= 2 * len(self._model.layers) - 1)
            stream, read, direction = (
                readout.here(t, self._place) for t in (readout.stream, readout.read, readout.direction)
            )
            real = ((readout.norm(stream + x) - readout.norm(stream)) * read).sum((-1, -2))
            if readout.answers_only and readout.norm.kind != "none":
                ratio = readout.norm.inverse_scale(stream + x) / readout.norm.inverse_scale(stream)
                self.scale[number, : len(x)] = ratio[..., 0, 0]
            self.read[number, : len(x)] = real
            self.bent[number, : len(x)] = real - (x * direction).sum((-1, -2))

    def heads(self, index: int, change: Float[Tensor, "patch row pos head d_head"]) -> None:
        last, heads = self._last(index), self._model.anatomy.head_slice(index)
        for number, readout in enumerate(self._readouts):
            if readout.point <= 2 * index:
                continue
            x = self._seen(readout, change, last)
            out = torch.einsum("nrphd,rphd->nhr", x, self._at_heads(readout, index, last))
            self.change[number, : len(x), heads] = out

    def mlp(self, index: int, change: Float[Tensor, "patch row pos d_model"]) -> None:
        self._add(self._model.anatomy.mlp_row(index), 2 * index + 1, change, last=self._last(index))

    def _add(self, row: int, behind: int, change: Tensor, *, last: bool) -> None:
        """The effects of one writer, on readouts behind a point."""
        for number, readout in enumerate(self._readouts):
            if readout.point > behind:
                x = self._seen(readout, change, last)
                direction = self._direction(readout, last)
                self.change[number, : len(x), row] = (x * direction).sum((-1, -2))

    def _last(self, index: int) -> bool:
        return index == len(self._model.layers) - 1

    def _seen(self, readout: Readout, change: Tensor, last: bool) -> Tensor:
        """A change at the positions of a readout. In the last block it has the answer position alone already."""
        if not readout.answers_only or last:
            return change
        rows = torch.arange(change.shape[1], device=change.device)
        return change[:, rows, self._place.answers - self._place.start][:, :, None]

    def _direction(self, readout: Readout, last: bool) -> Float[Tensor, "row pos d_model"]:
        found = readout.here(readout.direction, self._place)
        return self._place.at_answer(found) if last and not readout.answers_only else found

    def _at_heads(self, readout: Readout, index: int, last: bool) -> Float[Tensor, "row pos head d_head"]:
        """The direction as a head's values meet it, through W_O."""
        return torch.einsum("rpm,hdm->rphd", self._direction(readout, last), self._model.layers[index].w_o)


def clean_effects(contrast: Contrast, readouts: Sequence[Readout]) -> Float[Tensor, "readout writer row"]:
    """The direct effect of every writer in the clean run. The contrast must begin at the first position."""
    found, base = Effects(contrast, readouts, 1), contrast.base
    found.stream(0, base.input[None])
    for index, block in enumerate(base.blocks):
        found.heads(index, block.z[None])
        if block.mlp is not None:
            found.mlp(index, block.mlp[None])
    return found.change[:, 0]
