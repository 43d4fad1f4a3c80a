"""A run whose attention patterns and norm scales are kept: with them frozen, all but the MLPs is linear in the stream.

Every norm is ``C(x) * s * w + b``, where C takes off the mean (LayerNorm) or does nothing (RMSNorm), and s, one number a token,
is what the run gave. Attention mixes values by the pattern of the run. Formulas: Ameisen et al. 2025, Circuit Tracing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitfind.errors import PromptError, RunError, UnsupportedError
from circuitfind.model.attention import SCORE_BYTES
from circuitfind.model.bridge import Model
from circuitfind.model.forward import Place, attend
from circuitfind.model.layer import Layer
from circuitfind.model.norms import Norm
from circuitfind.task.pairs import pad


def apply(
    norm: Norm, x: Float[Tensor, "*row d_model"], scale: Float[Tensor, "*#row 1"]
) -> Float[Tensor, "*row d_model"]:
    """A norm with its scale given."""
    if norm.kind == "none":
        return x
    x = (x - x.mean(-1, keepdim=True) if norm.kind == "ln" else x) * scale
    if norm.weight is not None:
        x = x * norm.weight
    return x if norm.bias is None else x + norm.bias


def pull(
    norm: Norm, g: Float[Tensor, "*row d_model"], scale: Float[Tensor, "*#row 1"]
) -> Float[Tensor, "*row d_model"]:
    """The transpose of ``apply``'s linear part: a gradient before the norm from one behind it."""
    if norm.kind == "none":
        return g
    if norm.weight is not None:
        g = g * norm.weight
    return (g - g.mean(-1, keepdim=True) if norm.kind == "ln" else g) * scale


def scale_of(norm: Norm, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row 1"]:
    """What a norm multiplies its input by."""
    return torch.ones_like(x[..., :1]) if norm.kind == "none" else norm.inverse_scale(x)


@dataclass(frozen=True)
class FrozenBlock:
    """What one block of a run leaves to be held fixed.

    Attributes:
        layer: Its weights.
        q, k: Queries and keys as attention uses them.
        seen: Which keys each query sees.
        scale: Of the norm before attention. ``[row, pos, 1]``
        post_scale: Of a norm behind attention, where there is one.
        mlp_scale: Of the norm before the MLP.
        resid: The stream that enters.
        read: The stream that the MLP's norm reads.
        written: What the MLP adds to the stream.
    """

    layer: Layer
    q: Float[Tensor, "row head pos d_head"]
    k: Float[Tensor, "row kv pos d_head"]
    seen: Bool[Tensor, "#row 1 pos pos"]
    scale: Float[Tensor, "row pos 1"]
    post_scale: Float[Tensor, "row pos 1"] | None
    mlp_scale: Float[Tensor, "row pos 1"]
    resid: Float[Tensor, "row pos d_model"]
    read: Float[Tensor, "row pos d_model"]
    written: Float[Tensor, "row pos d_model"]
    kept: Float[Tensor, "row head pos pos"] | None = None
    """The pattern, where it is small enough to be held."""

    def pattern(self) -> Float[Tensor, "row head pos pos"]:
        """Attention probabilities of the run."""
        return self.layer.attention.pattern(self.q, self.k, self.seen) if self.kept is None else self.kept

    def attention(self, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """What attention adds to the stream, from the stream that enters it."""
        layer = self.layer
        (raw,) = layer.project("v", apply(layer.norm, x, self.scale))
        values = layer.attention.prepare("v", raw, torch.arange(x.shape[1], device=x.device))
        if layer.attention.group > 1:
            values = values.repeat_interleave(layer.attention.group, 1)
        z = torch.matmul(self.pattern(), values).transpose(1, 2)
        return layer.heads_out(z if self.post_scale is None else z * self.post_scale[..., None])

    def attention_back(
        self, g: Float[Tensor, "row pos d_model"], pattern: Float[Tensor, "#row head all all"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, " row"]]:
        """The gradient at the stream that enters attention from that behind it, and what biases add to each row's target.

        Args:
            g: Of many rows at the first positions of one prompt, or of each row of a batch.
            pattern: ``pattern()``, asked for once for many calls; of one row, or of as many as ``g`` has.
        """
        layer, n = self.layer, g.shape[1]
        bias = g.new_zeros(len(g)) if layer.b_o is None else g.sum(1) @ layer.b_o
        source = g if self.post_scale is None else g * self.post_scale[:, :n]
        g_z = torch.matmul(source, layer.w_o.flatten(0, 1).T).unflatten(-1, (layer.n_heads, -1))
        mixed = _mix_back(pattern[..., :n, :n], g_z)
        if layer.attention.group > 1:
            mixed = mixed.unflatten(2, (-1, layer.attention.group)).sum(3)
        g_v = mixed.flatten(2)
        b_v = layer.bias("v")
        if b_v is not None:
            bias = bias + g_v.sum(1) @ b_v.flatten()
        g_normed = torch.matmul(g_v, layer.weight("v").transpose(0, 1).flatten(1).T)
        if layer.norm.bias is not None:
            bias = bias + g_normed.sum(1) @ layer.norm.bias
        return pull(layer.norm, g_normed, self.scale[:, :n]), bias


def _mix_back(
    pattern: Float[Tensor, "#row head query key"], g_z: Float[Tensor, "row query head d_head"]
) -> Float[Tensor, "row key head d_head"]:
    """Gradients of the values from those of what heads mixed of them."""
    if len(pattern) == len(g_z):
        return torch.matmul(pattern.transpose(-1, -2), g_z.transpose(1, 2)).transpose(1, 2)
    rows, _, _, width = g_z.shape
    joined = g_z.permute(2, 1, 0, 3).flatten(2)  # one product a head for all rows, which share the pattern
    mixed = torch.bmm(pattern[0].transpose(-1, -2), joined)
    return torch.unflatten(mixed, 2, (rows, width)).permute(2, 1, 0, 3)


@dataclass(frozen=True)
class FrozenRun:
    """A run of some prompts.

    Attributes:
        tokens: Right-padded.
        answers: The position that each row is read at.
        embedded: What the embedding writes.
        final: The stream at the answer position, as the final norm reads it.
        final_scale: Of the final norm there.
    """

    model: Model
    tokens: Int[Tensor, "row pos"]
    answers: Int[Tensor, " row"]
    blocks: list[FrozenBlock]
    embedded: Float[Tensor, "row pos d_model"]
    final: Float[Tensor, "row d_model"]
    final_scale: Float[Tensor, "row 1"]

    @property
    def n_pos(self) -> int:
        return int(self.tokens.shape[1])

    def logits(
        self, final: Float[Tensor, "row d_model"], tokens: Int[Tensor, " vocab"] | None = None
    ) -> Float[Tensor, "row vocab"]:
        """Logits from a stream at the answer position, with the final norm's scale of the run."""
        return self.model.unembed(apply(self.model.final_norm, final, self.final_scale), tokens)

    def at_answers(self, x: Float[Tensor, "row pos *rest"]) -> Float[Tensor, row * rest]:
        return x[torch.arange(len(x), device=x.device), self.answers]


@torch.no_grad()
def freeze(model: Model, prompts: Sequence[Sequence[int]], answers: Sequence[int] | None = None) -> FrozenRun:
    """Run prompts and keep what stays fixed.

    Args:
        model: The model.
        prompts: Token ids.
        answers: Where each is read; at its last token if None. What is behind it is cut off where nothing looks ahead.

    Raises:
        PromptError: A prompt is empty, too long, or has ids that the model does not know.
        UnsupportedError: The model has no MLPs.
        RunError: Values are not finite.
    """
    if not model.has_mlp:
        raise UnsupportedError(
            f"{model.name} has no MLPs, so there is nothing that transcoders could stand for",
            hint="give a model with MLPs",
        )
    read_at = [len(p) - 1 for p in prompts] if answers is None else list(answers)
    if model.causal:
        prompts = [p[: at + 1] for p, at in zip(prompts, read_at, strict=True)]
    _check(model, prompts)
    padded = pad(prompts)
    tokens = torch.from_numpy(padded.ids).to(model.device)
    mask = None if model.causal or padded.mask.all() else torch.from_numpy(padded.mask).to(model.device)
    at = torch.tensor(read_at, device=model.device)
    place = Place(0, tokens.shape[1], at, mask, everywhere=True)
    model.passes["forward"] += 1
    model.passes["work"] += tokens.numel() * len(model.layers)
    embedded = x = model.embed(tokens)
    hold = 4 * len(model.layers) * model.anatomy.n_heads * tokens.numel() * tokens.shape[1] <= SCORE_BYTES
    blocks = []
    for layer in model.layers:
        q, k, _, z, raw, _ = attend(layer, x, place, None, last=False)
        mid = x + layer.heads_out(z)
        read = x if model.anatomy.parallel else mid
        assert layer.mlp is not None
        written = layer.mlp(layer.mlp_norm(read))
        seen = place.visible(layer, False)
        post_scale = None
        if layer.post_norm is not None:
            assert raw is not None
            post_scale = scale_of(layer.post_norm, raw)
        blocks.append(
            FrozenBlock(
                layer=layer,
                q=q,
                k=k,
                seen=seen,
                scale=scale_of(layer.norm, x),
                post_scale=post_scale,
                mlp_scale=scale_of(layer.mlp_norm, read),
                resid=x,
                read=read,
                written=written,
                kept=layer.attention.pattern(q, k, seen) if hold else None,
            )
        )
        x = mid + written
    final = x[torch.arange(len(x), device=x.device), at]
    if not bool(torch.isfinite(final).all()):
        raise RunError(
            f"{model.name} gives NaN or infinite values on these tokens",
            hint="check the model's weights; a damaged or wrongly converted model does this",
        )
    return FrozenRun(model, tokens, at, blocks, embedded, final, scale_of(model.final_norm, final))


def _check(model: Model, prompts: Sequence[Sequence[int]]) -> None:
    for prompt in prompts:
        if not len(prompt):
            raise PromptError("the prompt is empty", hint="give at least one token")
        if len(prompt) > model.n_ctx:
            raise PromptError(
                f"the prompt has {len(prompt)} tokens, but {model.name} reads at most {model.n_ctx}",
                hint="shorten it",
            )
        wrong = [token for token in prompt if not 0 <= token < model.n_vocab]
        if wrong:
            raise PromptError(
                f"there is no token {wrong[0]}: {model.name} has {model.n_vocab:,} tokens",
                hint=f"give ids from 0 to {model.n_vocab - 1}",
            )
