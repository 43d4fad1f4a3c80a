"""What every writer put on the residual stream in one run, kept small.

Heads are kept as their values before W_O (``d_head`` numbers a token, not ``d_model``), scaled so that ``z @ w_o`` is what
the head adds to the stream; MLPs and the input as what they add.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.model.bridge import Hook, Model


@dataclass(frozen=True)
class Writes:
    """Writers' outputs of one batch of prompts (or, without the axis ``batch``, of one)."""

    input: Float[Tensor, "*batch pos d_model"]
    z: Float[Tensor, "layer *batch pos head d_head"]
    mlp: Float[Tensor, "layer *batch pos d_model"] | None

    @property
    def n_bytes(self) -> int:
        parts = (self.input, self.z, self.mlp)
        return sum(p.numel() * p.element_size() for p in parts if p is not None)

    def zeros(self) -> Writes:
        """Every writer silent."""
        mlp = None if self.mlp is None else torch.zeros_like(self.mlp)
        return Writes(torch.zeros_like(self.input), torch.zeros_like(self.z), mlp)

    def of_writer(self, model: Model, row: int) -> Float[Tensor, "batch pos d_model"]:
        """One writer's output by its row in the list of writers. For tests and small jobs."""
        node = model.anatomy.writers[row]
        if row == 0:
            return self.input
        if str(node).startswith("m"):
            assert self.mlp is not None
            return self.mlp[node.layer]
        return self.z[node.layer][:, :, node.index] @ model.layers[node.layer].w_o[node.index]


class WritesRecorder:
    """Hooks that record ``Writes`` during a forward pass."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._input: Tensor | None = None
        self._z: list[Tensor] = []
        self._mlp: list[Tensor] = []

    def hooks(self) -> list[tuple[torch.nn.Module, Hook]]:
        """In the order in which the forward pass meets them."""
        model = self._model
        found: list[tuple[torch.nn.Module, Hook]] = [(model.layers[0].sites["resid"], self._keep_input)]
        for index, layer in enumerate(model.layers):
            found += [(layer.sites["z"], self._keep_z), (layer.sites["attn_raw"], self._scale(index))]
            if model.has_mlp:
                found.append((layer.sites["mlp_out"], self._keep_mlp))
        return found

    def writes(self) -> Writes:
        """What was recorded; call after the forward pass."""
        assert self._input is not None
        return Writes(self._input, torch.stack(self._z), torch.stack(self._mlp) if self._mlp else None)

    def _keep_input(self, tensor: Tensor) -> None:
        self._input = tensor.detach()

    def _keep_z(self, tensor: Tensor) -> None:
        self._z.append(tensor.detach().unflatten(-1, (self._model.anatomy.n_heads, self._model.d_head)))

    def _keep_mlp(self, tensor: Tensor) -> None:
        self._mlp.append(tensor.detach())

    def _scale(self, index: int) -> Hook:
        layer = self._model.layers[index]

        def hook(raw: Tensor) -> None:
            if layer.post_norm is not None:
                self._z[index] = layer.scaled(self._z[index], raw.detach())

        return hook
