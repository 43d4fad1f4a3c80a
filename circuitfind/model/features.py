"""Features of a dictionary as the parts of an MLP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.model.mlp import MLP, Saved
from circuitfind.model.norms import Norm
from circuitfind.model.parts import Fixed, PartGradients, PartRun, Parts
from circuitfind.model.rules import PLAIN, Rules
from circuitfind.model.transfer import index_of


@dataclass(frozen=True)
class Features:
    """``act(read w_enc + b_enc) w_dec + b_dec [+ read w_skip]`` in the place of an MLP; read is behind ``norm``.

    Only features that may fire are held. TopK needs all of them to say how high its level is: ``level_w`` and ``level_b``.

    Attributes:
        ids: What held features are called.
        threshold: Of JumpReLU.
        k: Of TopK; ReLU has neither.
    """

    ids: Int[Tensor, " held"]
    w_enc: Float[Tensor, "d_model held"]
    b_enc: Float[Tensor, " held"]
    w_dec: Float[Tensor, "held d_model"]
    b_dec: Float[Tensor, " d_model"]
    norm: Norm
    threshold: Float[Tensor, " held"] | None = None
    k: int | None = None
    level_w: Float[Tensor, "d_model feature"] | None = None
    level_b: Float[Tensor, " feature"] | None = None
    w_skip: Float[Tensor, "d_model d_model"] | None = None

    def pre(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row held"]:
        """Held features before the activation."""
        return x @ self.w_enc + self.b_enc

    def level(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row 1"] | None:
        """Halfway between the k-th feature and the next one, and not below 0; None for other activations than TopK."""
        if self.k is None or self.level_w is None or self.level_b is None:
            return None
        if self.k >= self.level_w.shape[1]:
            return x.new_zeros((*x.shape[:-1], 1))
        found = (x @ self.level_w + self.level_b).topk(self.k + 1, -1).values[..., -2:]
        return found.mean(-1, keepdim=True).clamp_min(0)

    def fires(
        self, pre: Float[Tensor, "*row some"], level: Tensor | None, which: Tensor | slice = slice(None)
    ) -> Tensor:
        """Where features fire."""
        if level is not None:
            return pre > level
        return pre > 0 if self.threshold is None else pre > self.threshold[which].clamp_min(0)

    def act(
        self, pre: Float[Tensor, "*row some"], level: Tensor | None, which: Tensor | slice = slice(None)
    ) -> Float[Tensor, "*row some"]:
        """Activations of some features."""
        return pre * self.fires(pre, level, which)

    def decode(
        self, values: Float[Tensor, "*row held"], x: Float[Tensor, "*row d_model"]
    ) -> Float[Tensor, "*row d_model"]:
        """What the dictionary adds to the stream."""
        out = values @ self.w_dec + self.b_dec
        return out if self.w_skip is None else out + x @ self.w_skip


@dataclass(frozen=True)
class FeatureParts(Parts):
    """Features of a dictionary that stands for an MLP, and its error.

    Attributes:
        features: The dictionary.
        mlp, mlp_norm: The MLP, for live errors.
        live_errors: Whether errors are taken at the present input.
    """

    features: Features
    mlp: MLP
    mlp_norm: Norm
    live_errors: bool = False

    @property
    def norm(self) -> Norm:
        return self.features.norm

    @property
    def n_held(self) -> int:
        return len(self.features.ids)

    @property
    def live(self) -> bool:
        return self.live_errors

    @cached_property
    def w_out(self) -> Float[Tensor, "unit d_model"]:
        return self.features.w_dec if self.all_held else self.features.w_dec[self.units]

    @cached_property
    def reads(self) -> list[tuple[Tensor, Tensor | None]]:
        return [(self.pick(self.features.w_enc), self.pick(self.features.b_enc))]

    def observe(self, read: Tensor, out: Tensor, saved: Saved, *, keep: bool) -> PartRun:
        features, x = self.features, self.norm(read)
        pre, level = features.pre(x), features.level(x)
        values = features.act(pre, level)
        error = out - features.decode(values, x)
        return PartRun(self.pick(values), error, level, pre if keep else None)

    def again(self, read: Tensor, fixed: Fixed) -> tuple[Tensor, PartRun]:
        features, x = self.features, self.norm(read)
        values = features.act(features.pre(x), fixed.level)
        made = features.decode(values, x)
        if not self.live_errors:
            assert fixed.error is not None
            return made + fixed.error, PartRun(self.pick(values), fixed.error, fixed.level)
        out = self.mlp(self.mlp_norm(read))
        return out, PartRun(self.pick(values), out - made, fixed.level)

    def some(self, read: Tensor, which: Sequence[int], level: Tensor | None) -> Tensor:
        ((weight, bias),) = self.reads
        assert bias is not None
        chosen = index_of(which, weight.device)
        pre = self.norm(read) @ weight[:, chosen] + bias[chosen]
        return self.features.act(pre, level, self.units[chosen])

    def missed(
        self, read: Float[Tensor, "*row d_model"], level: Tensor | None
    ) -> Float[Tensor, "*row d_model"]:
        """What the dictionary misses at an input."""
        features, x = self.features, self.norm(read)
        return self.mlp(self.mlp_norm(read)) - features.decode(features.act(features.pre(x), level), x)

    def before(self, saved: Saved | None, run: PartRun) -> list[Tensor]:
        assert run.pre is not None
        return [self.pick(run.pre)]

    def backward(self, grad: Tensor, saved: Saved, run: PartRun, rules: Rules = PLAIN) -> PartGradients:
        features = self.features
        assert run.pre is not None
        hidden = torch.matmul(grad, features.w_dec.T)
        g_pre = hidden * features.fires(run.pre, run.level)
        normed = torch.matmul(g_pre, features.w_enc.T)
        if features.w_skip is not None:
            normed = normed + torch.matmul(grad, features.w_skip.T)
        own = None
        if self.live_errors:
            own = self.mlp.backward(self.mlp.backward_hidden(grad, saved, rules), saved, rules)
        return PartGradients(hidden, [self.pick(g_pre)], normed, own)
