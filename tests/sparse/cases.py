"""Random SAEs in small models, models in double precision, and a splice written as plainly as possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from circuitfind.circuit.graph import Conditions
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.model.attention import Attention
from circuitfind.model.bridge import Model
from circuitfind.model.runs import Runs
from circuitfind.sparse.sites import Point, read_sites
from tests import families
from tests.dictionaries.synthetic import random_dictionary

SITES = ("resid_post", "attn_out", "mlp_out", "mid")


def conditions(ablation: str = "resample") -> Conditions:
    return Conditions("task", "model", "method", "logit-diff", ablation, "noising", "default", "rule")


def random_sae(
    model: Model, layer: int, site: str, *, activation: str = "relu", seed: int = 0, **changes: Any
) -> Dictionary:
    """An SAE with random weights, which misses most of what it reads."""
    more: dict[str, Any] = {"topk": {"k": 4}, "jumprelu": {"threshold": torch.full((12,), 0.3)}}.get(
        activation, {}
    )
    made = random_dictionary(
        model,
        layer,
        width=12,
        seed=seed + (7 * SITES.index(site) if site in SITES else 0),
        kind="sae",
        site_in=site,
        site_out=site,
        activation=activation,
        **{**more, **changes},
    )
    # Ablated to zero, what stands there is the bias: close to nothing a norm would bend so sharply that no path is short.
    return replace(made, b_dec=4 * made.b_dec)


def everywhere(model: Model) -> list[Dictionary]:
    """An SAE at every kind of site: of several layers, with every activation function."""
    last = len(model.layers) - 1
    found = [
        random_sae(model, 0, "attn_out", activation="topk"),
        random_sae(model, 0, "resid_post", activation="jumprelu", scale_in=0.5, scale_out=2.0),
        random_sae(model, last, "attn_out", centred=True),
    ]
    if not model.anatomy.parallel:
        found.append(random_sae(model, last, "mid"))
    if model.has_mlp:
        found += [random_sae(model, 0, "mlp_out"), random_sae(model, last, "mlp_out", activation="topk")]
    return found


def doubled(thing: Any) -> Any:
    """The same with every tensor of floats in double precision, inside dataclasses too."""
    if isinstance(thing, Tensor):
        return thing.double() if thing.is_floating_point() else thing
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: doubled(getattr(thing, f.name)) for f in fields(thing) if f.init})
    return thing


@dataclass(frozen=True)
class Exact(Attention):
    """Attention whose patterns are in the precision of its queries, not in single."""

    def pattern(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        return self.scores(q, k, visible).softmax(-1)


class Doubled(Model):
    """A model whose own passes run in double precision."""

    def __init__(self, model: Model) -> None:
        self.__dict__.update(model.__dict__)
        self.layers = [
            replace(
                layer,
                attention=Exact(**{f.name: getattr(layer.attention, f.name) for f in fields(Attention)}),
            )
            for layer in map(doubled, model.layers)
        ]
        self.final_norm = doubled(model.final_norm)
        self.w_u, self.b_u = doubled(model.w_u), doubled(model.b_u)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    def embed(self, tokens: Tensor) -> Tensor:
        return super().embed(tokens).double()


@cache
def in_double(family: str) -> Model:
    return Doubled(families.model(family))


def runs_of(model: Model, **options: Any) -> Runs:
    """Random pairs of two lengths, with a known plan."""
    pairs = families.pairs_for(model, **{"count": 5, "lengths": (6, 5), **options})
    return families.runs_of(model, pairs)


# --- an ablated run, through the bridge's own pass -------------------------------------------------------------


def hook_of(model: Model, point: Point) -> nn.Module:
    """Where the bridge holds what stands at a point."""
    block, where = point
    if where == "post":
        return model.final_site if block + 1 == len(model.layers) else model.layers[block + 1].sites["resid"]
    return model.layers[block].sites[{"attn": "attn_out", "mlp": "mlp_out", "in": "resid"}[where]]


Change = Callable[[Point, Tensor], Tensor]


def bridged(
    model: Model, tokens: Sequence[int], at: int, change: Mapping[Point, Callable[[Tensor], Tensor]]
) -> Tensor:
    """Logits of one prompt at a position, with what stands at some points changed."""

    def wrap(work: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: work(x)

    hooks = [(hook_of(model, point), wrap(work)) for point, work in change.items()]
    with torch.no_grad(), model.hooked(hooks):
        return model.bridge_logits(torch.tensor([tokens]), torch.tensor([at]))[0]


def seen_at(model: Model, tokens: Sequence[int], points: Sequence[Point]) -> dict[Point, Tensor]:
    """What stands at some points for one prompt."""
    found: dict[Point, Tensor] = {}

    def keep(point: Point) -> Callable[[Tensor], Tensor]:
        def work(x: Tensor) -> Tensor:
            found[point] = x.clone()
            return x

        return work

    bridged(model, tokens, len(tokens) - 1, {p: keep(p) for p in points})
    return found


def slow_values(runs: Runs, dictionaries: Sequence[Dictionary], kept: set[str], ablation: str) -> np.ndarray:
    """The metric of each prompt with some nodes alone: prompt by prompt, feature by feature, every feature written out."""
    model, out = runs.model, []
    sites = read_sites(model, dictionaries)
    points = [site.point for site in sites]
    seen = {
        side: [seen_at(model, getattr(pair, side), points) for pair in runs.pairs]
        for side in ("clean", "corrupted")
    }
    for number, pair in enumerate(runs.pairs):
        change = {}
        for site in sites:
            same = [
                i
                for i, p in enumerate(runs.pairs)
                if (p.group, len(p.clean)) == (pair.group, len(pair.clean))
            ]
            other = seen["corrupted"][number][site.point]
            cut_f, cut_e = site.encode(other), other - site.dictionary(other)
            if ablation == "zero":
                cut_f, cut_e = torch.zeros_like(cut_f), torch.zeros_like(cut_e)
            if ablation == "mean":
                every = torch.cat([seen[side][i][site.point] for side in seen for i in same])
                f = site.encode(every)
                cut_f, cut_e = f.mean(0, keepdim=True), (every - site.dictionary(every)).mean(0, keepdim=True)

            def work(x: Tensor, site: Any = site, cut_f: Tensor = cut_f, cut_e: Tensor = cut_e) -> Tensor:
                f = site.encode(x)
                e = x - site.dictionary(x)
                out = site.dictionary.decode(torch.zeros_like(f))
                for index in range(f.shape[-1]):
                    value = f if f"{site.name}.f{index}" in kept else cut_f
                    out = (
                        out
                        + value[..., index, None] * site.dictionary.w_dec[index] / site.dictionary.scale_out
                    )
                return out + (e if f"{site.name}.err" in kept else cut_e)

            change[site.point] = work
        logits = bridged(model, pair.clean, pair.answer_position, change)
        out.append(float(logits[list(pair.answer)] - logits[list(pair.wrong)]))
    return np.array(out)
