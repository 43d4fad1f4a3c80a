"""One block of a model as plain weights: what every pass of our own is made of.

Read once from the bridge; the probe of model/bridge.py proves that each part computes what the bridge's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitfind.errors import UnsupportedError
from circuitfind.model.attention import Attention, Rotary, read_attention
from circuitfind.model.mlp import MLP, read_mlp
from circuitfind.model.norms import Norm, read_norm
from circuitfind.model.parts import Parts


@dataclass(frozen=True)
class Layer:
    """The sites and weights of one block.

    Sites are hook points of the bridge, for the probe and for tests: ``resid`` (stream into the block), ``q``, ``k``,
    ``v`` (projections before any rotation or head norm), ``z`` (head values before W_O), ``attn_raw`` and
    ``attn_out`` (before and after a post-norm; the same point without one), ``mlp_in`` (stream into the MLP's norm),
    ``mlp_out`` (what the MLP adds to the stream).
    """

    sites: dict[str, nn.Module]
    attention: Attention
    norm: Norm
    post_norm: Norm | None
    w_qkv: Float[Tensor, "d_model qkv"]
    """W_Q, W_K and W_V side by side, heads side by side in each."""
    b_qkv: Float[Tensor, " qkv"] | None
    w_o: Float[Tensor, "head d_head d_model"]
    """With the weight of a post-norm multiplied in."""
    w_o_raw: Float[Tensor, "head d_head d_model"]
    b_o: Float[Tensor, " d_model"] | None
    """Added to the stream beside the heads; it belongs to no writer and is never ablated."""
    mlp_norm: Norm
    mlp: MLP | None
    parts: Parts | None = None
    """What the MLP is split into, where it is."""

    @property
    def n_heads(self) -> int:
        return int(self.w_o.shape[0])

    @property
    def d_head(self) -> int:
        return int(self.w_o.shape[1])

    @property
    def n_kv_heads(self) -> int:
        return (self.w_qkv.shape[1] // self.d_head - self.n_heads) // 2

    def with_parts(self, parts: Parts | None) -> Layer:
        """The same block with its MLP split so, or whole."""
        return replace(self, parts=parts)

    def _span(self, slot: str) -> slice:
        heads, groups = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        start = {"q": 0, "k": heads, "v": heads + groups}[slot]
        return slice(start, start + (heads if slot == "q" else groups))

    def weight(self, slot: str) -> Float[Tensor, "head d_model d_head"]:
        """W_Q, W_K or W_V by head; a view."""
        return torch.unflatten(self.w_qkv[:, self._span(slot)], 1, (-1, self.d_head)).transpose(0, 1)

    def bias(self, slot: str) -> Float[Tensor, "head d_head"] | None:
        return None if self.b_qkv is None else self.b_qkv[self._span(slot)].unflatten(0, (-1, self.d_head))

    @property
    def w_q(self) -> Float[Tensor, "head d_model d_head"]:
        return self.weight("q")

    @property
    def w_k(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self.weight("k")

    @property
    def w_v(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self.weight("v")

    def project(
        self, slots: str, normed: Float[Tensor, "row pos d_model"]
    ) -> list[Float[Tensor, "row pos head d_head"]]:
        """Queries, keys and values of all heads from one normalised stream; ``slots`` is ``qkv``, ``kv`` or ``q``."""
        span = slice(self._span(slots[0]).start, self._span(slots[-1]).stop)
        x = normed.flatten(0, 1)
        weight = self.w_qkv[:, span]
        out = x @ weight if self.b_qkv is None else torch.addmm(self.b_qkv[span], x, weight)
        out = out.unflatten(0, normed.shape[:2])
        parts = []
        for slot in slots:
            own = self._span(slot)
            parts.append(
                out[..., own.start - span.start : own.stop - span.start].unflatten(-1, (-1, self.d_head))
            )
        return parts

    def project_apart(
        self, slot: str, heads: Sequence[int], normed: Float[Tensor, "#patch head token d_model"]
    ) -> Float[Tensor, "#patch head token d_head"]:
        """Some heads, each from a normalised input of its own."""
        weight, bias = self.weight(slot), self.bias(slot)
        chosen = slice(None) if len(heads) == len(weight) else list(heads)
        out = torch.matmul(normed, weight[chosen])
        return out if bias is None else out + bias[chosen][:, None, :]

    def scaled(
        self, z: Float[Tensor, "*batch head d_head"], raw: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch head d_head"]:
        """Head values such that ``scaled @ w_o`` is what each head adds to the stream, post-norm included.

        A post-norm (Gemma 2) divides the sum of all heads by its scale; each head's share of the sum is divided alike,
        so the writers still sum to the stream exactly, whatever run they come from.
        """
        return z if self.post_norm is None else z * self.post_norm.inverse_scale(raw)[..., None]

    def raw_out(self, z: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch d_model"]:
        """What attention gives before a post-norm, from unscaled head values."""
        return z.flatten(-2) @ self.w_o_raw.flatten(0, 1)

    def heads_out(self, z: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch d_model"]:
        """What all heads and ``b_o`` add to the stream, from scaled head values."""
        out = z.flatten(-2) @ self.w_o.flatten(0, 1)
        return out if self.b_o is None else out + self.b_o


def read_layers(block: Any, config: Any, rotaries: Sequence[Rotary], where: str) -> list[Layer]:
    """A block as the layers that it may be: they differ only in ``attention``."""
    attention = block.attn
    has_mlp = hasattr(block, "mlp")
    d_model, d_head, n_heads = int(config.d_model), int(config.d_head), int(config.n_heads)
    post_attn, post_mlp = getattr(block, "ln1_post", None), getattr(block, "ln2_post", None)
    sites = {
        "resid": block.hook_in,
        "q": attention.q.hook_out,
        "k": attention.k.hook_out,
        "v": attention.v.hook_out,
        "z": attention.o.hook_in,
        "attn_raw": attention.hook_out,
        "attn_out": attention.hook_out if post_attn is None else post_attn.hook_out,
    }
    w_raw, b_o = linear(attention.o)
    w_raw = w_raw.reshape(n_heads, d_head, d_model).contiguous()
    post_norm, w_o = None, w_raw
    if post_attn is not None:
        post_norm = read_norm(post_attn.original_component, d_model, f"{where}, norm after attention")
        if post_norm.kind == "ln" or b_o is not None:
            raise UnsupportedError(
                f"{where}: the norm after attention mixes heads in a way that cannot be shared out among them",
                hint="an RMSNorm after a projection without bias (Gemma 2) is supported",
            )
        w_o = w_raw if post_norm.weight is None else w_raw * post_norm.weight
    parts = [linear(attention.q), linear(attention.k), linear(attention.v)]
    biases = [bias for _, bias in parts]
    b_qkv = None
    if any(bias is not None for bias in biases):
        b_qkv = torch.cat([w.new_zeros(w.shape[1]) if b is None else b.flatten() for w, b in parts])
    mlp, mlp_norm = None, Norm("none")
    if has_mlp:
        sites["mlp_in"] = block.ln2.hook_in
        sites["mlp_out"] = block.mlp.hook_out if post_mlp is None else post_mlp.hook_out
        mlp_norm = read_norm(block.ln2.original_component, d_model, f"{where}, norm before the MLP")
        after = None
        if post_mlp is not None:
            after = read_norm(post_mlp.original_component, d_model, f"{where}, norm after the MLP")
        mlp = read_mlp(block.mlp, linear, after, where)
    layer = Layer(
        sites=sites,
        attention=Attention(1, 1.0),
        norm=read_norm(block.ln1.original_component, d_model, f"{where}, norm before attention"),
        post_norm=post_norm,
        w_qkv=torch.cat([w for w, _ in parts], 1).contiguous(),
        b_qkv=b_qkv,
        w_o=w_o,
        w_o_raw=w_raw,
        b_o=b_o,
        mlp_norm=mlp_norm,
        mlp=mlp,
    )
    module = attention.original_component
    return [replace(layer, attention=found) for found in read_attention(module, config, rotaries)]


def linear(module: Any) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"] | None]:
    """Weight and bias of a bridge's linear layer, whatever it stores (GPT-2's Conv1D keeps the transpose)."""
    component = module.original_component
    weight: Tensor = component.weight.detach()
    bias = getattr(component, "bias", None)
    return (
        weight if type(component).__name__ == "Conv1D" else weight.T,
        bias.detach() if isinstance(bias, Tensor) else None,
    )
