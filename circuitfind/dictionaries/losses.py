"""Activations and penalties as training sees them: pseudo-gradients where a threshold has none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitfind.dictionaries.dictionary import top

STEEPNESS = 4.0
"""Of the tanh penalty: a feature that writes a quarter of the output's deviation pays three quarters of the most."""


def window(distance: Tensor, bandwidth: float) -> Tensor:
    """The rectangle K((z - threshold) / bandwidth) of Rajamanoharan et al. 2024, as 0 and 1."""
    return (distance.abs() < bandwidth / 2).to(distance.dtype)


class JumpReLU(torch.autograd.Function):
    """``pre`` where it is above a threshold, else 0.

    The threshold moves the output only by jumps, so its gradient is that of the expectation, estimated in a window
    (arXiv 2407.14435, equation 11): ``-(threshold / bandwidth) K((pre - threshold) / bandwidth)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        pre: Float[Tensor, "row feature"],
        threshold: Float[Tensor, " feature"],
        bandwidth: float,
    ) -> Float[Tensor, "row feature"]:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        near = window(pre - threshold, ctx.bandwidth)
        return grad * (pre > threshold), -(threshold / ctx.bandwidth) * (near * grad).sum(0), None


class Step(torch.autograd.Function):
    """1 where ``pre`` is above a threshold, else 0: what L0 counts.

    The threshold's pseudo-gradient is ``-(1 / bandwidth) K((pre - threshold) / bandwidth)`` (equation 12); ``pre`` has none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        pre: Float[Tensor, "row feature"],
        threshold: Float[Tensor, " feature"],
        bandwidth: float,
    ) -> Float[Tensor, "row feature"]:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        near = window(pre - threshold, ctx.bandwidth)
        return None, -(1 / ctx.bandwidth) * (near * grad).sum(0), None


def paid(
    features: Float[Tensor, "row feature"], w_dec: Float[Tensor, "feature d_out"], penalty: str
) -> Float[Tensor, ""]:
    """What ReLU pays for a token: activations times decoder norms, so that shrinking the one and growing the other saves
    nothing (outputs have unit variance).
    """
    size = features * w_dec.norm(dim=1) / math.sqrt(w_dec.shape[1])
    return (size if penalty == "l1" else torch.tanh(STEEPNESS * size)).sum(1).mean()


def revived(
    pre: Float[Tensor, "row feature"],
    dead: Bool[Tensor, " feature"],
    w_dec: Float[Tensor, "feature d_out"],
    left: Float[Tensor, "row d_out"],
) -> Float[Tensor, ""]:
    """TopK's auxiliary loss (Gao et al. 2024): the share of what was left that the best dead features do not explain."""
    k = min(int(dead.sum()), max(1, w_dec.shape[1] // 2))
    if not k:
        return pre.new_zeros(())
    guess = top(pre.masked_fill(~dead, -torch.inf), k) @ w_dec
    whole = left.square().sum().clamp_min(torch.finfo(left.dtype).tiny)
    return (left - guess).square().sum() / whole


class Steering:
    """The weight of a penalty, moved until as many features fire as were asked for.

    What is too much or too little now acts at once; what has been so for long adds up, as a logarithm, so that a wrong
    beginning by some powers of ten costs few steps.

    Args:
        target: How many should fire.
        signed: Whether the weight may be negative where too few fire. The thresholds of JumpReLU go down for no other
            reason, as under the quadratic penalty of Rajamanoharan et al.; ReLU would be paid for large activations.
    """

    FAST, SLOW, SMOOTH = 0.5, 0.02, 0.9

    def __init__(self, target: float, *, signed: bool = False) -> None:
        self.target, self.signed = target, signed
        self.level, self.lift = math.log(0.03), 0.0
        self.seen: float | None = None

    @property
    def weight(self) -> float:
        """What the penalty counts for."""
        found = math.exp(self.level) + self.FAST * self._gap() + self.lift
        return found if self.signed else max(0.0, found)

    def _gap(self) -> float:
        if self.seen is None:
            return 0.0
        return max(-1.0, min(1.0, math.log(max(self.seen, 1e-3) / self.target)))

    def hear(self, l0: float) -> None:
        """So many features fired on a token of the last batch."""
        self.seen = l0 if self.seen is None else self.SMOOTH * self.seen + (1 - self.SMOOTH) * l0
        gap = self._gap()
        self.level = max(-16.0, min(6.0, self.level + self.SLOW * gap))
        if self.signed:
            self.lift = min(0.0, self.lift + self.SLOW * gap)

    def state(self) -> dict[str, float | None]:
        """For a checkpoint."""
        return {"level": self.level, "lift": self.lift, "seen": self.seen}

    def restore(self, state: Mapping[str, float | None]) -> None:
        """What ``state`` gave."""
        level, lift = state["level"], state["lift"]
        assert level is not None
        assert lift is not None
        self.level, self.lift, self.seen = level, lift, state["seen"]
