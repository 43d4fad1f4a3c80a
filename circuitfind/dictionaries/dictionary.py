"""A sparse dictionary: what it reads, which features fire, what each of them writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Activation = Literal["relu", "jumprelu", "topk"]
Kind = Literal["transcoder", "sae", "cross-layer"]
Site = Literal[
    "resid", "mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_hat", "mlp_normed", "mlp_out", "z"
]
"""Where in a block: the stream that enters it, the one behind its heads and the one that leaves it; what attention and the
MLP read (``_in``: the stream; ``_hat``: normalised, before the norm's weight and bias; ``_normed``: behind them) and write;
head values before W_O, side by side."""


def top(pre: Float[Tensor, "*row feature"], k: int) -> Float[Tensor, "*row feature"]:
    """The k largest of each row where they are positive, else 0."""
    values, index = pre.topk(k, -1)
    return torch.zeros_like(pre).scatter(-1, index, values.clamp_min(0))


@dataclass(frozen=True)
class Dictionary:
    """One layer's dictionary, in one orientation whatever the file had.

    ``features = act(x @ w_enc + b_enc)`` and ``output = features @ w_dec + b_dec [+ x @ w_skip]``, where ``x`` is what stands at
    ``site_in`` (less ``b_dec`` first, where ``centred``).

    Attributes:
        kind: A transcoder writes at another site than it reads, an SAE at the same one, a cross-layer transcoder in its own
            layer and every later one.
        layer: The block that it reads in.
        site_in, site_out: Where it reads and writes.
        w_dec: For a cross-layer transcoder ``[feature, layer, d_out]``, from its own layer on.
        b_dec: Likewise ``[layer, d_out]``; one row for each layer that it writes to.
        threshold: Of JumpReLU: a feature fires where its pre-activation is above this.
        k: Of TopK.
        centred: Whether ``b_dec`` is taken off the input before encoding (SAEs with ``apply_b_dec_to_input``).
        scale_in: What the input is multiplied by before encoding; outputs are divided by ``scale_out``.
        source: The file or folder that it was read from.
        facts: What else the file said.
    """

    kind: Kind
    layer: int
    site_in: Site
    site_out: Site
    activation: Activation
    w_enc: Float[Tensor, "d_in feature"]
    b_enc: Float[Tensor, " feature"]
    w_dec: Float[Tensor, "feature *layer d_out"]
    b_dec: Float[Tensor, "*layer d_out"]
    threshold: Float[Tensor, " feature"] | None = None
    k: int | None = None
    w_skip: Float[Tensor, "d_in d_out"] | None = None
    centred: bool = False
    scale_in: float = 1.0
    scale_out: float = 1.0
    source: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        return int(self.w_enc.shape[0])

    @property
    def n_features(self) -> int:
        return int(self.w_enc.shape[1])

    @property
    def d_out(self) -> int:
        return int(self.w_dec.shape[-1])

    @property
    def n_layers_out(self) -> int:
        """How many layers it writes to."""
        return int(self.w_dec.shape[1]) if self.w_dec.ndim == 3 else 1

    def pre(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row feature"]:
        """Pre-activations."""
        x = x * self.scale_in
        if self.centred:
            x = x - self.b_dec
        return x @ self.w_enc + self.b_enc

    def act(self, pre: Float[Tensor, "*row feature"]) -> Float[Tensor, "*row feature"]:
        """Feature activations from pre-activations."""
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return torch.where(pre > self.threshold, pre.clamp_min(0), torch.zeros_like(pre))
        if self.activation == "topk":
            assert self.k is not None
            return top(pre, min(self.k, pre.shape[-1]))
        return pre.clamp_min(0)

    def encode(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row feature"]:
        """Feature activations."""
        return self.act(self.pre(x))

    def decode(
        self, features: Float[Tensor, "*row feature"], x: Float[Tensor, "*row d_in"] | None = None
    ) -> Float[Tensor, "*row *layer d_out"]:
        """What features write; ``x``, where there is a skip connection, is what was encoded."""
        out: Tensor = torch.tensordot(features, self.w_dec, dims=([-1], [0])) + self.b_dec
        if self.w_skip is not None and x is not None:
            skip = (x * self.scale_in) @ self.w_skip
            if self.w_dec.ndim == 3:  # a cross-layer transcoder skips to its own layer alone
                own = torch.zeros_like(out)
                own[..., 0, :] = skip
                skip = own
            out = out + skip
        return out / self.scale_out

    def __call__(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row *layer d_out"]:
        """What it makes of an input: the approximation of what stands at ``site_out``."""
        return self.decode(self.encode(x), x)

    def features(self, rows: Int[Tensor, " some"]) -> Dictionary:
        """Some of its features alone."""
        return replace(
            self,
            w_enc=self.w_enc[:, rows],
            b_enc=self.b_enc[rows],
            w_dec=self.w_dec[rows],
            threshold=None if self.threshold is None else self.threshold[rows],
        )

    def to(self, device: torch.device | str) -> Dictionary:
        """On another device."""
        moved = {
            name: None if value is None else value.to(device)
            for name, value in (
                ("w_enc", self.w_enc),
                ("b_enc", self.b_enc),
                ("w_dec", self.w_dec),
                ("b_dec", self.b_dec),
                ("threshold", self.threshold),
                ("w_skip", self.w_skip),
            )
        }
        return replace(self, **moved)  # type: ignore[arg-type]
