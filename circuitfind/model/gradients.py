"""The gradient of a metric at every reader's input and on the stream behind every writer, in one backward pass.

No ``[head, d_model]`` tensor is built here: head inputs are represented by the gradient at their projected ``q``, ``k``,
``v`` (``d_head`` numbers a token) and the stream that was read; methods/contraction.py carries them back through the
weights and the norm in chunks.

Every tensor that is differentiated is first passed on as a view of itself. At the points where the residual stream is
shared, ``autograd.grad`` would otherwise give the derivative of the whole stream and not of one branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitfind.errors import RunError
from circuitfind.model.bridge import Hook, Model
from circuitfind.model.writes import Writes, WritesRecorder


@dataclass(frozen=True)
class Gradients:
    """Gradients of the sum over prompts of a metric.

    Attributes:
        q, k, v: At the heads' projections, ``[layer][batch, pos, head * d_head]``.
        resid: The stream that the heads of each layer read (not a gradient).
        mlp: At each MLP's input from the stream.
        logits: At the input of the final norm.
        behind_input, behind_heads, behind_mlp: On the stream right after the writers of that kind wrote, all readers
            together.
        values: The metric of each prompt.
        writes: What the writers wrote in this run.
    """

    q: list[Float[Tensor, "batch pos hd"]]
    k: list[Float[Tensor, "batch pos kv_hd"]]
    v: list[Float[Tensor, "batch pos kv_hd"]]
    resid: list[Float[Tensor, "batch pos d_model"]]
    mlp: list[Float[Tensor, "batch pos d_model"]]
    logits: Float[Tensor, "batch pos d_model"]
    behind_input: Float[Tensor, "batch pos d_model"]
    behind_heads: list[Float[Tensor, "batch pos d_model"]]
    behind_mlp: list[Float[Tensor, "batch pos d_model"]]
    values: Float[Tensor, " batch"]
    writes: Writes


def take_gradients(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    answer_positions: Int[Tensor, " batch"],
    mask: Bool[Tensor, "batch pos"] | None,
    metric: Callable[[Float[Tensor, "batch vocab"]], Float[Tensor, " batch"]],
) -> Gradients:
    """One forward and one backward pass at ``tokens``. No gradient is taken of any weight."""
    recorder = WritesRecorder(model)
    leaf: list[Tensor] = []
    seen: dict[str, list[Tensor]] = {
        name: [] for name in ("q", "k", "v", "resid", "mlp_in", "attn_out", "mlp_out", "final")
    }

    def start(x: Tensor) -> Tensor:
        leaf.append(x.detach().clone().requires_grad_())
        return leaf[0]

    def watch(name: str) -> Hook:
        def hook(x: Tensor) -> Tensor:
            view = x.view_as(x)
            seen[name].append(view)
            return view

        return hook

    def keep(x: Tensor) -> None:
        seen["resid"].append(x.detach())

    hooks: list[tuple[nn.Module, Hook]] = [(model.layers[0].sites["resid"], start), *recorder.hooks()]
    for layer in model.layers:
        hooks.append((layer.sites["resid"], keep))
        hooks += [(layer.sites[name], watch(name)) for name in ("q", "k", "v", "attn_out")]
        if model.has_mlp:
            hooks += [(layer.sites[name], watch(name)) for name in ("mlp_in", "mlp_out")]
    hooks.append((model.final_site, watch("final")))
    with torch.enable_grad(), model.hooked(hooks):
        values = metric(model.logits(tokens, answer_positions, mask))
    wanted = [*leaf, *seen["final"]]
    for name in ("q", "k", "v", "attn_out", "mlp_in", "mlp_out"):
        wanted += seen[name]
    model.passes["backward"] += 1
    found: Sequence[Tensor | None] = torch.autograd.grad(values.sum(), wanted, allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]
    if not all(bool(torch.isfinite(g).all()) for g in (grads[0], grads[1])):
        raise RunError(
            "the gradient of the metric is not finite",
            hint="the model gives NaN or infinite values; check its weights and --dtype",
        )
    n, rest = len(model.layers), grads[2:]
    parts = {
        name: rest[i * n : (i + 1) * n]
        for i, name in enumerate(("q", "k", "v", "attn_out", "mlp_in", "mlp_out"))
    }
    return Gradients(
        q=parts["q"],
        k=parts["k"],
        v=parts["v"],
        resid=seen["resid"],
        mlp=parts["mlp_in"],
        logits=grads[1],
        behind_input=grads[0],
        behind_heads=parts["attn_out"],
        behind_mlp=parts["mlp_out"],
        values=values.detach(),
        writes=recorder.writes(),
    )
