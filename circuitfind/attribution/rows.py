"""Edges into targets: gradients carried down the frozen network by a written-out linear recurrence, many targets at once.

With attention, norms and what features read held fixed, the gradient of a target's pre-activation at the stream behind block
l is that behind block l + 1 plus what attention (and a transcoder's skip connection) of block l + 1 carries back. The edge
from a source is what it writes times the gradient where it writes (Ameisen et al. 2025). No graph of autograd is kept: a
row costs the products with W_O and W_V of the blocks below its target, at the positions up to its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.attribution.features import Replacement
from circuitfind.attribution.reads import norm_of, to_stream

ROW_BYTES = 256 << 20
"""What the gradients of the rows of one pass may take."""
MOST_ROWS = 256
"""Rows of a pass: more make it no faster."""


@dataclass(frozen=True)
class Targets:
    """What edges lead to.

    Attributes:
        layer: Where each reads; the number of layers for a logit.
        position: Likewise.
        reads: The gradient of its value at the stream that it reads.
        constant: What biases add behind that stream.
    """

    layer: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    reads: Float[Tensor, "row d_model"]
    constant: Float[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.layer)

    def take(self, index: Int[Tensor, " some"]) -> Targets:
        return Targets(self.layer[index], self.position[index], self.reads[index], self.constant[index])


class Linear:
    """The frozen network of one prompt, read from behind.

    Columns are its sources: tokens; then layer by layer features (by position, then number) and errors (by position).
    """

    def __init__(self, replacement: Replacement) -> None:
        self.replacement = replacement
        self.run = replacement.run
        self.n_layers = len(self.run.blocks)
        self.n_pos = self.run.n_pos
        self._spans = {layer: active.spans(self.n_pos) for layer, active in replacement.active.items()}

    @cached_property
    def starts(self) -> dict[int, tuple[int, int]]:
        """Of each layer the first column of its features and of its errors."""
        found, at = {}, self.n_pos
        for layer in range(self.n_layers):
            count = len(self.replacement.active.get(layer, ()))
            found[layer] = (at, at + count)
            at += count + self.n_pos
        return found

    @cached_property
    def amounts(self) -> Float[Tensor, " column"]:
        """What each column's write is multiplied by: activations of features, 1 of the others."""
        out = self.run.embedded.new_ones(self.n_columns)
        for layer, active in self.replacement.active.items():
            first = self.starts[layer][0]
            out[first : first + len(active)] = active.activation
        return out

    @property
    def n_columns(self) -> int:
        return self.starts[self.n_layers - 1][1] + self.n_pos

    @property
    def chunk(self) -> int:
        """Rows of a pass."""
        each = 5 * 4 * self.n_pos * self.run.model.d_model
        return max(1, min(MOST_ROWS, ROW_BYTES // each))

    def order(self, targets: Targets) -> Int[Tensor, " row"]:
        """The order in which rows waste least: those of a pass end at like positions."""
        return torch.argsort(targets.position * (self.n_layers + 1) + targets.layer, descending=True)

    @torch.no_grad()
    def rows(self, targets: Targets) -> tuple[Float[Tensor, "row column"], Float[Tensor, " row"]]:
        """Edges from every source, and what biases add to each target, for the rows of one pass."""
        order = torch.argsort(targets.layer, descending=True, stable=True)
        targets = targets.take(order)
        n = int(targets.position.max()) + 1 if self.run.model.causal else self.n_pos
        done = _Pass(self, targets, n)
        back = torch.argsort(order)
        return done.edges[back], done.bias[back]


class _Pass:
    """One pass from the last block down. Rows are sorted by layer: those whose target is met later stay zero till then."""

    def __init__(self, linear: Linear, targets: Targets, n: int) -> None:
        self._linear, self._targets, self._n = linear, targets, n
        like, rows = targets.reads, len(targets)
        self._g = like.new_zeros(rows, n, like.shape[1])
        self.edges = like.new_zeros(rows, linear.n_columns)
        self.bias = targets.constant.clone()
        levels = targets.layer.tolist()
        top = linear.n_layers
        begun = self._begin(0, levels, top)
        for layer in reversed(range(top)):
            self._collect(layer, begun)
            begun = self._block(layer, begun, levels)
        self.edges[:, :n] = torch.einsum("rpd,pd->rp", self._g, linear.run.embedded[0, :n])
        self.edges *= linear.amounts

    def _begin(self, begun: int, levels: list[int], layer: int) -> int:
        """Put the gradients of the targets of a layer where they read; how many rows have begun."""
        end = begun + sum(level == layer for level in levels[begun:])
        rows = torch.arange(begun, end, device=self._g.device)
        self._g[rows, self._targets.position[begun:end]] += self._targets.reads[begun:end]
        return end

    def _collect(self, layer: int, begun: int) -> None:
        """Edges from all that writes to the stream at a layer's MLP."""
        linear, g = self._linear, self._g[:begun]
        replacement = linear.replacement
        if not begun:
            return
        for own, active in replacement.active.items():
            step = layer - own
            if not 0 <= step < active.writes.shape[1]:
                continue
            first = linear.starts[own][0]
            for position, span in enumerate(linear._spans[own][: self._n]):
                if span.stop > span.start:
                    part = self.edges[:begun, first + span.start : first + span.stop]
                    part += g[:, position] @ active.writes[span, step].T
        errors = linear.starts[layer][1]
        self.edges[:begun, errors : errors + self._n] = torch.einsum(
            "rpd,pd->rp", g, replacement.errors[layer][: self._n]
        )
        if layer in replacement.biases:
            self.bias[:begun] += g.sum(1) @ replacement.biases[layer]

    def _block(self, layer: int, begun: int, levels: list[int]) -> int:
        """Carry gradients from behind a block to before it; rows whose targets read here join."""
        skipped = self._skip(layer, begun)
        if self._linear.run.model.anatomy.parallel:
            self._attend(layer, begun)
            if skipped is not None:
                self._g[:begun] += skipped
            return self._begin(begun, levels, layer)
        if skipped is not None:
            self._g[:begun] += skipped
        begun = self._begin(begun, levels, layer)
        self._attend(layer, begun)
        return begun

    def _skip(self, layer: int, begun: int) -> Tensor | None:
        skip = self._linear.replacement.skips.get(layer)
        if skip is None or not begun:
            return None
        block = self._linear.run.blocks[layer]
        g = torch.matmul(self._g[:begun], skip.weight.T)
        norm = norm_of(block, skip.site)
        if norm.bias is not None:
            self.bias[:begun] += g.sum(1) @ norm.bias
        return to_stream(block, skip.site, g, block.mlp_scale[:, : self._n])

    def _attend(self, layer: int, begun: int) -> None:
        if not begun:
            return
        block = self._linear.run.blocks[layer]
        back, bias = block.attention_back(self._g[:begun], block.pattern())
        self._g[:begun] += back
        self.bias[:begun] += bias
