"""A run and what its replaced parts carry, over the positions where the two may differ."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.model.bridge import Model
from circuitfind.model.forward import Trace, keys_before
from circuitfind.model.writes import Writes


@dataclass(frozen=True)
class Contrast:
    """What every patched pass over one batch starts from.

    Attributes:
        base: The run that is patched, from the first position that can differ.
        cut: What replaced parts carry.
        cut_is_run: Whether ``cut`` is what the model itself wrote for other prompts, so that a node whose inputs are
            all replaced writes just that. Not so for means and zeros.
    """

    model: Model
    base: Trace
    cut: Writes
    cut_is_run: bool

    @property
    def n_rows(self) -> int:
        return int(self.base.input.shape[0])

    @property
    def length(self) -> int:
        return int(self.base.input.shape[1])

    def n_bytes(self, *, edges: bool = True) -> int:
        """What it holds at the most: the runs, and the tables of differences once they are made for edges."""
        if not edges:
            return self.base.n_bytes + self.cut.n_bytes
        anatomy, size = self.model.anatomy, self.base.input.element_size()
        streams = len(anatomy.writers) + 2 * anatomy.n_layers + 1
        tables = self.n_rows * self.length * self.model.d_model * streams * size
        return tables + self.base.n_bytes + self.cut.n_bytes

    @cached_property
    def written(self) -> Writes:
        """What the writers of the base run wrote."""
        return self.base.writes

    @cached_property
    def before(self) -> list[tuple[Tensor, Tensor]] | None:
        """Keys and values of the positions before the first one here."""
        return keys_before(self.base, self.base.place.start)

    @cached_property
    def cut_streams(self) -> list[Float[Tensor, "token d_model"]]:
        """The stream of nothing but replaced parts; see ``Writes.streams``."""
        return [s.flatten(0, 1) for s in self.cut.streams(self.model)]

    @cached_property
    def gap(self) -> Float[Tensor, "writer token d_model"]:
        """What each writer carries when replaced, minus what it wrote."""
        model, anatomy = self.model, self.model.anatomy
        out = self.written.input.new_empty(len(anatomy.writers), self.n_rows * self.length, model.d_model)
        change = self.cut.minus(self.written)
        out[0] = change.input.flatten(0, 1)
        for index, layer in enumerate(model.layers):
            z = change.z[index].flatten(0, 1).transpose(0, 1)
            torch.matmul(z, layer.w_o, out=out[anatomy.head_slice(index)])
            if change.mlp is not None:
                change.into(model, index, out[anatomy.mlp_slice(index)])
        return out

    @cached_property
    def gap_at_answer(self) -> Float[Tensor, "writer prompt d_model"]:
        """The same at the answer position of each prompt."""
        at = self.base.place.at_answer(self.gap.unflatten(1, (self.n_rows, -1)).permute(1, 2, 0, 3))
        return at[:, 0].transpose(0, 1).contiguous()
