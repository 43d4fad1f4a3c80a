"""Dictionaries as what stands for the MLPs of a model, of which only features are held that fire on some prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.fit import check_fits
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.bridge import Model
from circuitfind.model.features import Features
from circuitfind.model.layer import Layer
from circuitfind.model.norms import Norm
from circuitfind.model.runs import Runs

READS = ("mlp_normed", "mlp_hat", "mlp_in")


def check_transcoders(model: Model, dictionaries: Sequence[Dictionary]) -> None:
    """Refuse dictionaries that cannot stand for the MLPs of this model in a graph with heads.

    Raises:
        UnsupportedError: They are no transcoders of one layer each, or the model has no MLPs.
        UsageError: There are none, or two for one layer.
        ModelError: Sizes, layers or names are those of another model.
    """
    if not model.has_mlp:
        raise UnsupportedError(
            f"{model.name} has no MLPs, so no dictionary can stand for one", hint="use --nodes heads,mlps"
        )
    if not dictionaries:
        raise UsageError("there are no dictionaries", hint="give --dictionaries FOLDER, or a name on the hub")
    seen: dict[int, Dictionary] = {}
    for one in dictionaries:
        where = one.source or f"layer {one.layer}"
        if one.kind == "cross-layer":
            raise UnsupportedError(
                "a cross-layer transcoder writes to several layers, which a graph with heads does not hold",
                where=where,
                hint="use --nodes features, or a transcoder for each layer",
            )
        if one.kind == "sae" or one.site_out != "mlp_out" or one.site_in not in READS:
            raise UnsupportedError(
                f"the dictionary reads {one.site_in} and writes {one.site_out}, so it stands for no MLP",
                where=where,
                hint="give transcoders; circuits of SAEs are found by `circuitfind saes`",
            )
        if one.layer in seen:
            raise UsageError(
                f"layer {one.layer} has two dictionaries: {seen[one.layer].source} and {where}",
                hint="give the folder of one",
            )
        check_fits(one, model)
        seen[one.layer] = one


def hold(runs: Runs, dictionaries: Sequence[Dictionary]) -> dict[int, Features]:
    """The features of each dictionary that fire at some token of the clean or the corrupted prompts, by layer."""
    model = runs.model
    whole = {one.layer: as_features(one.to(model.device), model.layers[one.layer]) for one in dictionaries}
    fires = {layer: torch.zeros(len(one.ids), dtype=torch.bool) for layer, one in whole.items()}
    with torch.no_grad():
        for number, batch in enumerate(runs.batches):
            lengths = torch.as_tensor(batch.lengths, device=model.device)
            for side in ("clean", "corrupted"):
                trace = runs.trace(number, side)
                for layer, one in whole.items():
                    block, last = trace.blocks[layer], layer == len(model.layers) - 1
                    read = block.mid
                    if model.anatomy.parallel:
                        read = trace.place.at_answer(block.resid) if last else block.resid
                    x = one.norm(read)
                    # The last block is computed at the answers alone; elsewhere there is padding.
                    x = x.flatten(0, 1) if last else x[trace.place.positions < lengths[:, None]]
                    fires[layer] |= one.fires(one.pre(x), one.level(x)).any(0).cpu()
    return {layer: _some(one, fires[layer].to(model.device)) for layer, one in whole.items()}


def as_features(one: Dictionary, layer: Layer) -> Features:
    """A dictionary with its scales and its own centring in its weights, reading behind the norm that it reads behind."""
    norm = {
        "mlp_normed": layer.mlp_norm,
        "mlp_hat": replace(layer.mlp_norm, weight=None, bias=None),
        "mlp_in": Norm("none"),
    }[one.site_in]
    b_enc = one.b_enc - one.b_dec @ one.w_enc if one.centred else one.b_enc
    like: Tensor = layer.w_o
    w_enc = (one.w_enc * one.scale_in).to(like)
    topk = one.activation == "topk"
    return Features(
        ids=torch.arange(one.n_features, device=like.device),
        w_enc=w_enc,
        b_enc=b_enc.to(like),
        w_dec=(one.w_dec / one.scale_out).to(like),
        b_dec=(one.b_dec / one.scale_out).to(like),
        norm=norm,
        threshold=None if one.threshold is None else one.threshold.to(like),
        k=one.k if topk else None,
        level_w=w_enc if topk else None,
        level_b=b_enc.to(like) if topk else None,
        w_skip=None if one.w_skip is None else (one.w_skip * (one.scale_in / one.scale_out)).to(like),
    )


def _some(one: Features, chosen: Bool[Tensor, " feature"]) -> Features:
    return replace(
        one,
        ids=one.ids[chosen],
        w_enc=one.w_enc[:, chosen],
        b_enc=one.b_enc[chosen],
        w_dec=one.w_dec[chosen],
        threshold=None if one.threshold is None else one.threshold[chosen],
    )
