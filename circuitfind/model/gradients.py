"""The backward pass, written out: gradients of a metric at every reader, every writer and every neuron.

No autograd graph is kept: the products of each block are taken again from what the forward pass saved, so several
gradients can share one forward pass (GradDrop), a method's rules can stand in for derivatives (RelP, GIM), and memory
stays that of the forward pass. Head inputs are represented by the gradient at their projected ``q``, ``k``, ``v``
(``d_head`` numbers a token); methods/contraction.py carries them back through the weights and the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.errors import RunError
from circuitfind.model.bridge import Model
from circuitfind.model.forward import BlockRun, Place, Trace
from circuitfind.model.layer import Layer
from circuitfind.model.parts import PartGradients
from circuitfind.model.precision import lowered_gradient, seen_in_full
from circuitfind.model.rules import PLAIN, Rules

Part = tuple[int, str]
"""A layer and ``attn`` or ``mlp``."""


@dataclass(frozen=True)
class BlockGradients:
    """Gradients in one block; ``cut`` counts gradients that differ in what was dropped above (one without GradDrop).

    In the last block all but the answer position is zero at ``q``, ``behind_heads`` and ``mlp``.

    Attributes:
        layer: Which block.
        q, k, v: At the projections. ``[cut, row, pos, head, d_head]``
        z: At the head values before W_O and a post-norm, where queries are.
        mlp: At the MLP's input from the stream. ``[cut, row, pos, d_model]``
        hidden: At the neuron activations (where a dictionary stands for the MLP, at its features), where queries are.
        parts: What a split MLP has besides.
        features: At the stream, through all features and no error, where errors are live. ``[cut, row, pos, d_model]``
        behind_heads, behind_mlp: On the stream right after these writers, all readers together.
    """

    layer: int
    q: Float[Tensor, "cut row pos head d_head"]
    k: Float[Tensor, "cut row pos kv d_head"]
    v: Float[Tensor, "cut row pos kv d_head"]
    z: Float[Tensor, "cut row query head d_head"]
    mlp: Float[Tensor, "cut row pos d_model"] | None
    hidden: Float[Tensor, "cut row query d_mlp"] | None
    behind_heads: Float[Tensor, "cut row pos d_model"]
    behind_mlp: Float[Tensor, "cut row pos d_model"] | None
    final: Float[Tensor, "#cut row d_model"]
    """At the stream that the final norm reads: the gradient that the pass began with."""
    parts: PartGradients | None = None
    features: Float[Tensor, "cut row pos d_model"] | None = None


Visitor = Callable[[BlockGradients], None]


def metric_gradient(
    model: Model, trace: Trace, metric: Callable[[Tensor], Tensor], rules: Rules = PLAIN
) -> tuple[Float[Tensor, " row"], Float[Tensor, "row d_model"]]:
    """The metric of each row, and the gradient of their sum at the stream that the final norm reads.

    Whoever reads what comes of it asks whether it is finite, and raises ``not_finite`` if not.
    """
    values, found = unembed_gradient(model, trace, metric)
    return values, model.final_norm.pullback(trace.final, found, frozen=rules.freeze_norms)


def not_finite() -> RunError:
    """For a gradient of the metric that is not finite."""
    return RunError(
        "the gradient of the metric is not finite",
        hint="the model gives NaN or infinite values; check its weights and --precision",
    )


def unembed_gradient(
    model: Model, trace: Trace, metric: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, " row"], Float[Tensor, "row d_model"]]:
    """The metric of each row, and the gradient of their sum at what the final norm gives."""
    with torch.enable_grad():
        leaf = model.final_norm(trace.final).detach().requires_grad_()
        values = metric(model.unembed(leaf))
        (found,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), found


@lowered_gradient
def backward(
    model: Model,
    trace: Trace,
    final: Float[Tensor, "row d_model"],
    visit: Visitor,
    *,
    rules: Rules = PLAIN,
    drop_each: bool = False,
    dropped: Collection[Part] = (),
) -> Float[Tensor, "cut row pos d_model"]:
    """Go back through every block, from the last to the first, and return the gradient on the embedded prompts.

    Args:
        model: The model.
        rules: What stands in for derivatives.
        trace: A run that kept what this needs.
        final: The gradient at the stream that the final norm reads.
        visit: Is handed the gradients of each block.
        drop_each: GradDrop: at each block a further gradient starts that does not go through its attention and MLP.
            Entry 0 is the plain gradient, entry i that which drops block n_layers - i; entries come to be on the way
            down, since above the block that they drop they equal entry 0.
        dropped: Parts that no gradient goes through.

    Raises:
        ValueError: The run did not keep what the backward pass needs.
    """
    model.passes["backward"] += 1
    visit = seen_in_full(model, visit)
    place = trace.place
    gradient = final[None, :, None]  # [cut, row, 1, d_model]: the last block works at the answer position
    for index in reversed(range(len(model.layers))):
        plain = gradient[:1]
        gradient, found = _block(model, index, trace.blocks[index], place, gradient, rules, dropped)
        visit(replace(found, final=final[None]))
        if drop_each:
            skipped = place.spread(plain, 1) if plain.shape[2] != gradient.shape[2] else plain
            gradient = torch.cat((gradient, skipped))
    return gradient


def _block(
    model: Model,
    index: int,
    run: BlockRun,
    place: Place,
    above: Float[Tensor, "cut row query d_model"],
    rules: Rules,
    dropped: Collection[Part],
) -> tuple[Tensor, BlockGradients]:
    layer, last = model.layers[index], index == len(model.layers) - 1
    parallel = model.anatomy.parallel
    if run.projected is None:
        raise ValueError("this run kept nothing for a backward pass")
    model.passes["work"] += above.shape[0] * run.resid.shape[0] * run.resid.shape[1]

    def whole(x: Tensor) -> Tensor:
        return place.spread(x, 1) if last else x

    here = place.at_answer(run.resid) if last else run.resid
    # Where the MLP is dropped its readers see no gradient, and neither does what is below it.
    hidden, g_mlp, parts, features = None, None, None, None
    if layer.mlp is not None:
        assert run.saved is not None
        read = here if parallel else run.mid
        source = torch.zeros_like(above) if (index, "mlp") in dropped else above
        if layer.parts is not None:
            assert run.parts is not None
            parts = layer.parts.backward(source, run.saved, run.parts, rules)
            hidden = parts.hidden
            g_mlp = layer.parts.norm.pullback(read, parts.normed, frozen=rules.freeze_norms)
            if parts.own is not None:
                features = g_mlp
                g_mlp = layer.mlp_norm.pullback(read, parts.own, frozen=rules.freeze_norms)
        else:
            hidden = layer.mlp.backward_hidden(source, run.saved, rules)
            normed = layer.mlp.backward(hidden, run.saved, rules)
            g_mlp = layer.mlp_norm.pullback(read, normed, frozen=rules.freeze_norms)
    behind = above if parallel or g_mlp is None else above + g_mlp
    source = torch.zeros_like(behind) if (index, "attn") in dropped else behind
    if layer.post_norm is not None:
        assert run.raw is not None
        source = layer.post_norm.pullback(run.raw, source, frozen=rules.freeze_norms)
    g_z = torch.matmul(source, layer.w_o_raw.flatten(0, 1).T).unflatten(-1, (layer.n_heads, -1))
    visible = place.visible(layer, last)
    g_q, g_k, g_v = layer.attention.backward(g_z, run.q, run.k, run.v, visible, rules)
    projected = _unprepared(
        layer, run, place, last, (g_q, g_k[..., place.start :, :], g_v[..., place.start :, :]), rules
    )
    projected[0] = whole(projected[0])
    joined = torch.cat([p.flatten(3) for p in projected], -1)
    stream = layer.norm.pullback(run.resid, torch.matmul(joined, layer.w_qkv.T), frozen=rules.freeze_norms)
    stream = stream + whole(behind)
    if parallel and g_mlp is not None:
        stream = stream + whole(g_mlp)
    found = BlockGradients(
        layer=index,
        q=projected[0],
        k=projected[1],
        v=projected[2],
        z=g_z,
        mlp=None if g_mlp is None else whole(g_mlp),
        hidden=hidden,
        behind_heads=whole(behind),
        behind_mlp=None if g_mlp is None else whole(above),
        final=above[:, :, 0],
        parts=parts,
        features=None if features is None else whole(features),
    )
    return stream, found


def _unprepared(
    layer: Layer, run: BlockRun, place: Place, last: bool, grads: tuple[Tensor, Tensor, Tensor], rules: Rules
) -> list[Tensor]:
    """Gradients at the projections from those at what attention used; every cut apart, since rows share positions."""
    core = layer.attention
    assert run.projected is not None
    found = []
    for slot, grad, raw in zip("qkv", grads, run.projected, strict=True):
        positions = place.queries(last) if slot == "q" else place.positions
        found.append(torch.stack([core.unprepare(slot, g, raw, positions, rules) for g in grad]))
    return found
