"""What a model was like when a dictionary was trained on it, where that differs from the raw weights that we run.

HookedTransformer can fold the weight of a norm into what reads it, and take the mean off everything that is written to
the stream. Both change what stands at a hook; both are undone here, in the dictionary's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from circuitfind.dictionaries.dictionary import Site
from circuitfind.dictionaries.sites import STREAM

KWARGS = "model_from_pretrained_kwargs"
"""Where sae-lens keeps the switches."""


def facts_of(site_in: Site, folded: bool, centred: bool) -> dict[str, Any]:
    """What ``check_fits`` must know.

    ``ln2.hook_normalized`` of HookedTransformer stands before the norm's weight where that is folded away and in RMSNorm,
    but behind weight and bias in a plain LayerNorm; and centring happens in models with LayerNorm only.
    """
    facts: dict[str, Any] = {}
    if site_in == "mlp_hat":
        facts["fold_ln"] = folded
    if centred:
        facts["center_writing_weights"] = True
    return facts


def off_the_mean(
    weights: Mapping[str, Tensor | None], site_in: Site, centred: bool
) -> dict[str, Tensor | None]:
    """Weights that read the raw stream as the given ones read a stream whose mean was taken off.

    Args:
        weights: As for ``build``.
        site_in: Normalised inputs have no mean, so nothing changes there.
        centred: Whether ``b_dec`` is taken off the input.
    """
    out = dict(weights)
    w_enc, b_enc, b_dec = out["w_enc"], out["b_enc"], out["b_dec"]
    if site_in not in STREAM or w_enc is None or b_enc is None or b_dec is None:
        return out
    lower = w_enc.float() - w_enc.float().mean(0, keepdim=True)
    out["w_enc"] = lower
    if centred:
        out["b_enc"] = b_enc.float() + b_dec.float() @ (lower - w_enc.float())
    return out
