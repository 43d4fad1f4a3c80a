"""A split model run the slow way: every reader from its own input, writer by writer, over all positions."""

from __future__ import annotations

from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from circuitfind.model.batches import Side
from circuitfind.model.bridge import Model
from circuitfind.model.features import FeatureParts, Features
from circuitfind.model.layer import Layer
from circuitfind.model.mlp import MLP
from circuitfind.model.parts import NeuronParts
from circuitfind.model.runs import Runs
from circuitfind.model.split import split_features, split_neurons
from circuitfind.names import Kind

Activation = Literal["relu", "jumprelu", "topk"]


class SlowPass:
    """One batch of clean prompts in which nodes and edges carry what they carry when replaced."""

    def __init__(self, runs: Runs, ablation: str, *, base: str = "clean", number: int = 0) -> None:
        self.runs, self.model, self.number = runs, runs.model, number
        sides: tuple[Side, Side] = ("clean", "corrupted") if base == "clean" else ("corrupted", "clean")
        self.trace = runs.trace(number, sides[0], whole=True)
        written = self.trace.writes
        if ablation == "resample":
            cut = runs.trace(number, sides[1], whole=True).writes
        else:
            cut = written.zeros() if ablation == "zero" else runs.ablated(number, "mean")
        count = len(self.model.anatomy.writers)
        self.base = [written.of_writer(self.model, row) for row in range(count)]
        self.cut = [cut.of_writer(self.model, row) for row in range(count)]

    def value(self, nodes: np.ndarray, edges: np.ndarray) -> Tensor:
        """The metric of each prompt."""
        model, anatomy = self.model, self.model.anatomy
        now: dict[int, Tensor] = {0: self.cut[0] if nodes[0] else self.base[0]}

        def read(column: int, before: int, bias: Tensor) -> Tensor:
            parts = [
                self.cut[row] if edges[row, column] or nodes[row] else now[row]
                for row in range(before)
                if anatomy.edge_mask[row, column]
            ]
            return torch.stack(parts).sum(0) + bias

        bias = torch.zeros(model.d_model, dtype=self.base[0].dtype)
        for index, layer in enumerate(model.layers):
            heads, mlps = anatomy.head_slice(index), anatomy.mlp_slice(index)
            z = self._heads(
                layer,
                [
                    [read(c, heads.start, bias) for c in _columns(anatomy.reader_slice(index, slot))]
                    for slot in "qkv"
                ],
            )
            for h, row in enumerate(_columns(heads)):
                now[row] = z[:, :, h] @ layer.w_o[h]
            below = bias
            if layer.b_o is not None:
                bias = bias + layer.b_o
            columns = _columns(anatomy.reader_slice(index, "mlp"))
            streams = [read(c, mlps.start, below if anatomy.parallel else bias) for c in columns]
            now |= dict(zip(_columns(mlps), self._parts(index, streams), strict=True))
        final = read(len(anatomy.readers) - 1, len(anatomy.writers), bias)
        place = self.trace.place
        logits = model.head(final[torch.arange(len(final)), place.answers])
        return self.runs.metric_of(self.number, logits)

    def _heads(self, layer: Layer, streams: list[list[Tensor]]) -> Tensor:
        core, place = layer.attention, self.trace.place
        raw = []
        for slot, mine in zip("qkv", streams, strict=True):
            one = [layer.norm(x) @ layer.weight(slot)[h] for h, x in enumerate(mine)]
            joined, add = torch.stack(one, 2), layer.bias(slot)
            raw.append(joined if add is None else joined + add)
        q, k, v = (core.prepare(s, x, place.positions) for s, x in zip("qkv", raw, strict=True))
        z = core.mix(q, k, v, place.visible(layer, False))
        return z if layer.post_norm is None else layer.scaled(z, layer.raw_out(z))

    def _parts(self, index: int, streams: list[Tensor]) -> list[Tensor]:
        layer = self.model.layers[index]
        assert layer.mlp is not None
        parts = layer.parts
        if parts is None:
            return [layer.mlp(layer.mlp_norm(streams[0]))]
        if isinstance(parts, FeatureParts):
            return self._features(index, parts, streams)
        assert isinstance(parts, NeuronParts)
        mlp = layer.mlp
        nodes = self.model.anatomy.mlp_nodes(index)
        raw = []
        for node, x in zip(nodes, streams, strict=True):
            normed = layer.mlp_norm(x)
            hidden = _hidden(mlp, normed)
            mine = [i for other in nodes if other.kind is Kind.NEURON for i in other.units]
            if node.kind is Kind.REST:
                keep = [i for i in range(mlp.d_mlp) if i not in mine]
                out = hidden[..., keep] @ mlp.w_out[keep]
                raw.append(out if mlp.b_out is None else out + mlp.b_out)
            else:
                raw.append(hidden[..., list(node.units)] @ mlp.w_out[list(node.units)])
        if mlp.post_norm is None:
            return raw
        total = torch.stack(raw).sum(0)
        weight = 1.0 if mlp.post_norm.weight is None else mlp.post_norm.weight
        return [x * weight * mlp.post_norm.inverse_scale(total) for x in raw]

    def _features(self, index: int, parts: FeatureParts, streams: list[Tensor]) -> list[Tensor]:
        layer, nodes = self.model.layers[index], self.model.anatomy.mlp_nodes(index)
        one = parts.features
        run = self.trace.blocks[index]
        x = run.resid if self.model.anatomy.parallel else run.mid
        place = self.trace.place
        last = index == len(self.model.layers) - 1
        if last and self.model.anatomy.parallel:
            x = place.at_answer(x)
        level = one.level(one.norm(x))
        if level is not None and last:
            level = place.spread(level)
        ids = one.ids.tolist()

        def encoded(stream: Tensor) -> Tensor:
            pre = one.norm(stream) @ one.w_enc + one.b_enc
            if level is not None:
                return torch.where(pre > level, pre, 0.0)
            bound = torch.zeros(len(ids)) if one.threshold is None else one.threshold.clamp_min(0)
            return torch.where(pre > bound, pre, 0.0)

        mine = [ids.index(i) for node in nodes if node.kind is Kind.FEATURE for i in node.units]
        found = []
        streams = streams + [streams[-1]] * (len(nodes) - len(streams))
        for node, stream in zip(nodes, streams, strict=True):
            f = encoded(stream)
            if node.kind is Kind.FEATURE:
                at = [ids.index(i) for i in node.units]
                found.append(f[..., at] @ one.w_dec[at])
            elif node.kind is Kind.REST:
                rest = [i for i in range(len(ids)) if i not in mine]
                out = f[..., rest] @ one.w_dec[rest] + one.b_dec
                found.append(out if one.w_skip is None else out + one.norm(stream) @ one.w_skip)
            elif parts.live_errors:
                assert layer.mlp is not None
                made = f @ one.w_dec + one.b_dec
                made = made if one.w_skip is None else made + one.norm(stream) @ one.w_skip
                found.append(layer.mlp(layer.mlp_norm(stream)) - made)
            else:
                found.append(self.base[self.model.anatomy.mlp_slice(index).stop - 1])
        return found


def _columns(span: slice) -> list[int]:
    return list(range(span.start, span.stop))


def _hidden(mlp: MLP, normed: Tensor) -> Tensor:
    pre = normed @ mlp.w_in + (0 if mlp.b_in is None else mlp.b_in)
    if mlp.w_gate is None:
        return mlp.act(pre)
    gate = normed @ mlp.w_gate + (0 if mlp.b_gate is None else mlp.b_gate)
    return mlp.act(gate) * pre


def random_features(model: Model, index: int, activation: Activation, *, skip: bool = False) -> Features:
    """A dictionary of random weights for an MLP; its features are called 3, 4, ..."""
    generator = torch.Generator().manual_seed(index)
    d, n = model.d_model, 24

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    w_enc, b_enc = draw(d, n) / d**0.5, 0.1 * draw(n)
    topk = activation == "topk"
    return Features(
        ids=torch.arange(3, 3 + n),
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=draw(n, d) / n**0.5,
        b_dec=0.1 * draw(d),
        norm=model.layers[index].mlp_norm,
        threshold=0.3 * torch.rand(n, generator=generator) if activation == "jumprelu" else None,
        k=5 if topk else None,
        level_w=torch.cat((w_enc, draw(d, 3) / d**0.5), 1) if topk else None,
        level_b=torch.cat((b_enc, 0.1 * draw(3))) if topk else None,
        w_skip=draw(d, d) / d if skip else None,
    )


SPLITS = ("neurons", "relu, frozen", "topk, frozen", "topk, live", "jumprelu, live")


def split_in(model: Model, how: str) -> Model:
    """A model in parts: single units and groups in the first and the last layer, and in features all layers."""
    last = len(model.layers) - 1
    if how == "neurons":
        return split_neurons(model, {0: [(0,), (2, 5, 7), (3,)], last: [(1,), (4,), (0, 3)]})
    activation, errors = how.split(", ")
    features = {
        i: as_is(
            random_features(model, i, cast("Activation", activation), skip=activation != "relu"),
            model.w_u.dtype,
        )
        for i in range(len(model.layers))
    }
    chosen = {0: [(3,), (4, 7)], last: [(5,), (6,), (9, 11)]}
    return split_features(model, features, chosen, live_errors=errors == "live")


Thing = TypeVar("Thing")


def as_is(thing: Thing, dtype: torch.dtype) -> Thing:
    """All numbers of a nest of dataclasses in another precision."""
    if isinstance(thing, Tensor):
        return thing.to(dtype) if thing.is_floating_point() else thing  # type: ignore[return-value]
    if is_dataclass(thing) and not isinstance(thing, type):
        changed = {f.name: as_is(getattr(thing, f.name), dtype) for f in fields(thing) if f.name != "sites"}
        return replace(thing, **changed)
    return tuple(as_is(x, dtype) for x in thing) if isinstance(thing, tuple) else thing  # type: ignore[return-value]


def in_double(model: Model) -> Model:
    """A model in double precision."""
    found = copy(model)
    found.layers = [as_is(layer, torch.float64) for layer in model.layers]
    found.final_norm = as_is(model.final_norm, torch.float64)
    found.w_u, found.b_u = as_is(model.w_u, torch.float64), as_is(model.b_u, torch.float64)
    found.embed = lambda tokens: model.embed(tokens).double()  # type: ignore[method-assign]
    return found
