"""What every writer put on the residual stream in one run, kept small.

Heads are kept as their values before W_O (``d_head`` numbers a token, not ``d_model``), scaled so that ``z @ w_o`` is what
the head adds to the stream; MLPs and the input as what they add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.model.bridge import Model
from circuitfind.names import Kind


@dataclass(frozen=True)
class PartWrites:
    """What the parts of one MLP put there; the rest follows from what they put there together (model/parts.py)."""

    values: Float[Tensor, "*batch pos unit"]
    error: Float[Tensor, "*batch pos d_model"] | None

    def map(self, change: Callable[[Tensor], Tensor]) -> PartWrites:
        """The same change made to both."""
        return PartWrites(change(self.values), None if self.error is None else change(self.error))

    def combined(self, other: PartWrites, how: Callable[[Tensor, Tensor], Tensor]) -> PartWrites:
        """Tensor by tensor with those of another run."""
        error = None
        if self.error is not None and other.error is not None:
            error = how(self.error, other.error)
        return PartWrites(how(self.values, other.values), error)


@dataclass(frozen=True)
class Writes:
    """Writers' outputs of one batch of prompts (or, without the axis ``batch``, of one), layer by layer."""

    input: Float[Tensor, "*batch pos d_model"]
    z: list[Float[Tensor, "*batch pos head d_head"]]
    mlp: list[Float[Tensor, "*batch pos d_model"]] | None
    parts: list[PartWrites | None] | None = None
    """By layer, where MLPs are split: what ``mlp`` is made of."""

    @property
    def n_bytes(self) -> int:
        parts = [x for p in self.parts or [] if p is not None for x in (p.values, p.error) if x is not None]
        return sum(p.numel() * p.element_size() for p in (self.input, *self.z, *(self.mlp or []), *parts))

    def part(self, layer: int) -> PartWrites:
        """What the parts of an MLP, which is split, put there."""
        found = None if self.parts is None else self.parts[layer]
        assert found is not None
        return found

    def map(self, change: Callable[[Tensor], Tensor]) -> Writes:
        """The same change made to every tensor."""
        return Writes(
            change(self.input),
            [change(z) for z in self.z],
            None if self.mlp is None else [change(m) for m in self.mlp],
            None if self.parts is None else [None if p is None else p.map(change) for p in self.parts],
        )

    def combined(self, other: Writes, how: Callable[[Tensor, Tensor], Tensor]) -> Writes:
        """Tensor by tensor with those of another run."""
        pairs = None
        if self.mlp is not None and other.mlp is not None:
            pairs = [how(a, b) for a, b in zip(self.mlp, other.mlp, strict=True)]
        z = [how(a, b) for a, b in zip(self.z, other.z, strict=True)]
        parts = None
        if self.parts is not None and other.parts is not None:
            both = zip(self.parts, other.parts, strict=True)
            parts = [None if a is None or b is None else a.combined(b, how) for a, b in both]
        return Writes(how(self.input, other.input), z, pairs, parts)

    def minus(self, other: Writes) -> Writes:
        """The difference of two runs."""
        return self.combined(other, torch.sub)

    def zeros(self) -> Writes:
        """Every writer silent."""
        return self.map(torch.zeros_like)

    def of_writer(self, model: Model, row: int) -> Float[Tensor, "batch pos d_model"]:
        """One writer's output by its row in the list of writers. For tests and small jobs."""
        node = model.anatomy.writers[row]
        if row == 0:
            return self.input
        if node.kind is not Kind.HEAD:
            assert self.mlp is not None
            return self._of_mlp(model, row, node.layer)
        return self.z[node.layer][:, :, node.index] @ model.layers[node.layer].w_o[node.index]

    def _of_mlp(self, model: Model, row: int, index: int) -> Float[Tensor, "batch pos d_model"]:
        assert self.mlp is not None
        rows = model.anatomy.mlp_slice(index)
        shape = self.mlp[index].shape
        every = self.mlp[index].new_empty((rows.stop - rows.start, shape[0] * shape[1], shape[2]))
        self.into(model, index, every)
        own: Tensor = torch.unflatten(every[row - rows.start], 0, shape[:2])
        return own

    def into(
        self,
        model: Model,
        index: int,
        out: Float[Tensor, "node token d_model"],
        tokens: slice | Tensor = slice(None),
    ) -> None:
        """Put what the MLP of a layer, or each of its parts, wrote at some tokens into a tensor."""
        assert self.mlp is not None
        parts, total = model.layers[index].parts, self.mlp[index].flatten(0, -2)[tokens]
        if parts is None:
            out[0] = total
            return
        own = self.part(index)
        error = None if own.error is None else own.error.flatten(0, -2)[tokens]
        parts.written(total, own.values.flatten(0, -2)[tokens], error, out)

    def streams(self, model: Model) -> list[Float[Tensor, "*batch pos d_model"]]:
        """The stream that these outputs sum to: before each block, behind each one's attention, and at the end.

        Entries 2l and 2l + 1 stand before and behind the attention of block l; the last one before the final norm.
        """
        found = [self.input]
        for index, layer in enumerate(model.layers):
            found.append(found[-1] + layer.heads_out(self.z[index]))
            found.append(found[-1] if self.mlp is None else found[-1] + self.mlp[index])
        return found
