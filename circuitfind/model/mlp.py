"""MLPs as plain functions: forwards, and backwards as linear maps of the gradient, with or without a method's rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.errors import UnsupportedError
from circuitfind.model.norms import Norm
from circuitfind.model.rules import PLAIN, Rules

Activation = Callable[[Tensor], Tensor]

_FAST: tuple[Activation, ...] = (
    lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    torch.nn.functional.gelu,
    torch.nn.functional.silu,
    torch.nn.functional.relu,
)
"""Fused kernels that stand in for a model's own activation where they compute the same."""


@dataclass(frozen=True)
class Saved:
    """What the backward pass needs of a forward pass.

    Attributes:
        pre: Before the activation (of the gate, in a gated MLP).
        up: The other branch of a gated MLP.
        raw: The output before a post-norm.
    """

    pre: Float[Tensor, "*row d_mlp"]
    up: Float[Tensor, "*row d_mlp"] | None
    raw: Float[Tensor, "*row d_model"] | None


@dataclass(frozen=True)
class MLP:
    """``act(x w_in + b_in) w_out + b_out``, or gated: ``(act(x w_gate + b_gate) * (x w_in + b_in)) w_out + b_out``.

    ``post_norm`` is one between the MLP and the stream (Gemma 2). ``elementwise`` says that the activation of a
    neuron depends on its own pre-activation alone.
    """

    w_in: Float[Tensor, "d_model d_mlp"]
    w_out: Float[Tensor, "d_mlp d_model"]
    b_in: Float[Tensor, " d_mlp"] | None
    b_out: Float[Tensor, " d_model"] | None
    act: Activation
    elementwise: bool
    w_gate: Float[Tensor, "d_model d_mlp"] | None = None
    b_gate: Float[Tensor, " d_mlp"] | None = None
    post_norm: Norm | None = None

    @property
    def d_mlp(self) -> int:
        return int(self.w_in.shape[1])

    def __call__(self, normed: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What the MLP adds to the stream, given its normalised input."""
        return self.run(normed)[0]

    def run(self, normed: Float[Tensor, "*row d_model"]) -> tuple[Float[Tensor, "*row d_model"], Saved]:
        """What the MLP adds to the stream, and what the backward pass needs."""
        up = _affine(normed, self.w_in, self.b_in)
        if self.w_gate is None:
            pre, other = up, None
        else:
            pre, other = _affine(normed, self.w_gate, self.b_gate), up
        out = _affine(self.hidden(pre, other), self.w_out, self.b_out)
        if self.post_norm is None:
            return out, Saved(pre, other, None)
        return self.post_norm(out), Saved(pre, other, out)

    def hidden(self, pre: Tensor, up: Tensor | None) -> Float[Tensor, "*row d_mlp"]:
        """Neuron activations: what w_out reads."""
        found = self.act(pre)
        return found if up is None else found * up

    def backward_hidden(
        self, grad: Float[Tensor, "cut *row d_model"], saved: Saved, rules: Rules = PLAIN
    ) -> Float[Tensor, "cut *row d_mlp"]:
        """The gradient at the neuron activations."""
        if self.post_norm is not None:
            assert saved.raw is not None
            grad = self.post_norm.pullback(saved.raw, grad, frozen=rules.freeze_norms)
        return torch.matmul(grad, self.w_out.T)

    def backward(
        self, g_hidden: Float[Tensor, "cut *row d_mlp"], saved: Saved, rules: Rules = PLAIN
    ) -> Float[Tensor, "cut *row d_model"]:
        """The gradient at the normalised input from that at the neuron activations."""
        return self.joined(self.backward_pre(g_hidden, saved, rules))

    def backward_pre(
        self, g_hidden: Float[Tensor, "cut *row d_mlp"], saved: Saved, rules: Rules = PLAIN
    ) -> list[tuple[Float[Tensor, "cut *row d_mlp"], Float[Tensor, "d_model d_mlp"]]]:
        """The gradient at what neurons read, with the weights that they read it through: the gate first, then the rest."""
        if saved.up is None or self.w_gate is None:
            return [(self._through(g_hidden, saved.pre, rules), self.w_in)]
        shared = g_hidden * rules.gate_share
        g_pre = self._through(shared * saved.up, saved.pre, rules)
        return [(g_pre, self.w_gate), (shared * self.act(saved.pre), self.w_in)]

    @staticmethod
    def joined(channels: list[tuple[Tensor, Tensor]]) -> Float[Tensor, "cut *row d_model"]:
        """The gradient at the normalised input from those of ``backward_pre``."""
        found = [torch.matmul(grad, weight.T) for grad, weight in channels]
        return found[0] if len(found) == 1 else found[0] + found[1]

    def _through(self, grad: Tensor, pre: Tensor, rules: Rules) -> Tensor:
        """The gradient before the activation from that behind it."""
        if rules.activation == "identity":
            if not self.elementwise:
                raise UnsupportedError(
                    "the activation of this model mixes neurons, which the Identity-rule does not know",
                    hint="use --method eap or eap-ig",
                )
            small = pre.abs() < 1e-6
            slope = self.act(pre) / torch.where(small, torch.ones_like(pre), pre)
            return grad * torch.where(small, self._slope(pre), slope)
        if self.elementwise:
            return grad * self._slope(pre)
        with torch.enable_grad():
            x = pre.detach().requires_grad_()
            y = self.act(x)
            return torch.stack([torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in grad])

    def _slope(self, pre: Tensor) -> Tensor:
        with torch.enable_grad():
            x = pre.detach().requires_grad_()
            return torch.autograd.grad(self.act(x).sum(), x)[0]


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.matmul(x, weight)
    return torch.unflatten(torch.addmm(bias, x.flatten(0, -2), weight), 0, x.shape[:-1])


def read_mlp(
    module: Any,
    linear: Callable[[Any], tuple[Tensor, Tensor | None]],
    post_norm: Norm | None,
    where: str,
) -> MLP:
    """The weights of an MLP; the caller proves that they give what the model gives.

    Args:
        module: The bridge's MLP.
        linear: Reads ``[in, out]`` weight and bias of a bridge's linear layer.
        post_norm: A norm between the MLP and the stream, if there is one.
        where: Which MLP this is, for errors.

    Raises:
        UnsupportedError: It has no plain layers in and out (a mixture of experts).
    """
    layers = dict(module.named_children())
    if "in" not in layers or "out" not in layers:
        raise UnsupportedError(
            f"{where}: the MLP has no plain layers in and out (is it a mixture of experts?)",
            hint="known to work: GPT-2, Pythia/NeoX, Llama, Qwen 2 and 3, Gemma 2, and TransformerLens-format models",
        )
    w_in, b_in = linear(layers["in"])
    w_out, b_out = linear(layers["out"])
    w_gate, b_gate = linear(layers["gate"]) if "gate" in layers else (None, None)
    act, elementwise = _activation(module.original_component, w_in)
    return MLP(w_in, w_out, b_in, b_out, act, elementwise, w_gate, b_gate, post_norm)


def _activation(component: Any, like: Tensor) -> tuple[Activation, bool]:
    """A model's activation, as a fused kernel where one computes the same, and whether neurons are apart in it."""
    own = next((f for f in (getattr(component, n, None) for n in ("act", "act_fn")) if f is not None), None)
    act: Activation = own if own is not None else torch.nn.functional.gelu
    norm = getattr(component, "ln", None)
    if norm is not None:
        plain = act
        act = lambda x: norm(plain(x))  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, like.shape[1], generator=generator) * 4).to(like.device, like.dtype)
    with torch.no_grad():
        wanted = act(x)
        for fast in _FAST:
            if torch.allclose(fast(x), wanted, atol=2e-6 if like.dtype == torch.float32 else 1e-2, rtol=0):
                return fast, True
        moved = x.clone()
        moved[:, 1:] += 1.0
        apart = bool(torch.equal(act(moved)[:, 0], wanted[:, 0]))
    return act, apart
