"""Models, dictionaries and nodes for tests of naming, and a slow reference of what fires where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitfind.dictionaries.activations import Rows, run_mlps
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.model.bridge import Model
from circuitfind.names import Kind, Node, parse_node
from circuitfind.naming.banks import Banks
from tests import families
from tests.dictionaries.synthetic import random_dictionary

WITH_MLPS = [name for name in families.FAMILIES if not name.startswith("attn-only")]


def dictionaries(model: Model) -> list[Dictionary]:
    """A transcoder of each activation and input, by layer in turn, and SAEs of three sites in layer 1."""
    threshold = torch.full((10,), 0.3)
    made = [
        random_dictionary(model, 0, activation="topk", k=3),
        random_dictionary(model, 1, activation="jumprelu", threshold=threshold, site_in="mlp_hat"),
    ]
    saes = [(1, "resid_post"), (1, "attn_out"), (1, "mlp_out"), (0, "resid"), (1, "resid")]
    if not model.anatomy.parallel:
        saes.append((0, "mid"))
    for seed, (layer, site) in enumerate(saes, 5):
        options = {"kind": "sae", "site_in": site, "site_out": site}
        made.append(random_dictionary(model, layer, seed=seed, centred=True, **options))
    return made


def banks(model: Model) -> Banks:
    return Banks(model, dictionaries(model))


NODES = tuple(
    parse_node(name)
    for name in (
        "m0.n3",
        "m0.n1+7",
        "m1.n0",
        "m1.n2+5+11",
        "t0.f4",
        "t0.f1+2",
        "t1.f7",
        "t1.f0+3+9",
        "s1.f2",
        "sa1.f3+4",
        "sm1.f6",
        "si0.f5",
        "s0.f1",
    )
)
MID = parse_node("sh0.f8")


def nodes_of(model: Model) -> tuple[Node, ...]:
    """Those that a model has: blocks that run side by side have no stream between."""
    return NODES if model.anatomy.parallel else (*NODES, MID)


@dataclass(frozen=True)
class Fired:
    """What one node does at one token of one text."""

    value: float
    text: int
    position: int
    on: bool


def reference(
    model: Model, given: Sequence[Dictionary], node: Node, texts: Sequence[Sequence[int]]
) -> list[Fired]:
    """Every token of every text, one text at a time, with whole MLPs and whole dictionaries."""
    found = []
    for number, text in enumerate(texts):
        values, on = _text(model, given, node, text)
        found += [
            Fired(float(v), number, at, bool(o)) for at, (v, o) in enumerate(zip(values, on, strict=True))
        ]
    return found


def _text(
    model: Model, given: Sequence[Dictionary], node: Node, text: Sequence[int]
) -> tuple[Tensor, Tensor]:
    tokens = torch.tensor([list(text)])
    seen: dict[str, Tensor] = {}
    streams: list[Tensor] = []

    def watch(index: int, read: Tensor, normed: Tensor) -> Tensor:
        layer = model.layers[index]
        assert layer.mlp is not None
        out, saved = layer.mlp.run(normed)
        if index == node.layer:
            seen.update(
                mlp_normed=normed,
                mlp_in=read,
                mlp_hat=layer.mlp_norm.hat(read),
                mlp_out=out,
                hidden=layer.mlp.hidden(saved.pre, saved.up),
                pre=saved.pre,
            )
            if saved.raw is not None:
                assert layer.mlp.post_norm is not None
                seen["scale"] = layer.mlp.post_norm.inverse_scale(saved.raw)
        streams.append(read)
        return out

    final = run_mlps(model, Rows([0], tokens, torch.ones_like(tokens, dtype=torch.bool)), watch)
    with torch.no_grad(), model.hooked(_sites(model, node.layer, seen)):
        last = torch.tensor([len(text) - 1])
        model.bridge_logits(tokens, last)
    seen["resid_post"] = seen.get("next", final)
    seen["mid"] = seen["resid"] + seen["attn_out"]
    units = list(node.units)
    if node.kind is Kind.NEURON:
        mlp = model.layers[node.layer].mlp
        assert mlp is not None
        values, on = seen["hidden"][0][:, units], seen["pre"][0][:, units] > 0
        weight = mlp.post_norm.weight if mlp.post_norm is not None else None
        writes = mlp.w_out[units] if weight is None else mlp.w_out[units] * weight
    else:
        places = {"t": "mlp_out", "sa": "attn_out", "sm": "mlp_out", "sh": "mid", "si": "resid"}
        place = places.get(node.family, "resid_post" if node.layer else "resid")
        layer = node.layer + (node.family == "s" and place == "resid")  # the stream into the next block
        kind = "transcoder" if node.family == "t" else "sae"
        (one,) = (d for d in given if (d.layer, d.site_out, d.kind) == (layer, place, kind))
        values = one.encode(seen["next" if layer != node.layer else one.site_in])[0][:, units]
        on, writes = values > 0, one.w_dec[units] / one.scale_out
    if len(units) == 1:
        return values[:, 0], on[:, 0]
    out = torch.stack([sum(v * w for v, w in zip(row, writes, strict=True)) for row in values])  # type: ignore[misc]
    scale = seen["scale"][0] if node.kind is Kind.NEURON and "scale" in seen else torch.ones(len(out), 1)
    return (out * scale).norm(dim=-1), on.any(-1)


def _sites(model: Model, index: int, seen: dict[str, Tensor]):  # type: ignore[no-untyped-def]
    """What heads write, and the stream into the next block, from the bridge's own pass."""

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(x: Tensor) -> None:
            seen[name] = x

        return hook

    sites = model.layers[index].sites
    found = [(sites["attn_out"], keep("attn_out")), (sites["resid"], keep("resid"))]
    if index + 1 < len(model.layers):
        found.append((model.layers[index + 1].sites["resid"], keep("next")))
    return found
