"""What a transcoder reads of a frozen run, and how a gradient at its input reaches the residual stream."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from circuitfind.attribution.frozen import FrozenBlock, apply, pull
from circuitfind.dictionaries.dictionary import Dictionary, Site
from circuitfind.dictionaries.fit import check_fits
from circuitfind.errors import UnsupportedError
from circuitfind.model.bridge import Model
from circuitfind.model.norms import Norm

READS: tuple[Site, ...] = ("mlp_normed", "mlp_hat", "mlp_in", "mid")
"""Sites that are linear in the stream once norm scales are frozen."""


def norm_of(block: FrozenBlock, site: Site) -> Norm:
    """The norm between the stream and a site."""
    norm = block.layer.mlp_norm
    if site == "mlp_normed":
        return norm
    if site == "mlp_hat":
        return replace(norm, weight=None, bias=None)
    return Norm("none")


def read(
    block: FrozenBlock, site: Site, x: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos d_model"]:
    """What stands at a site when the stream before the MLP's norm is ``x``."""
    return apply(norm_of(block, site), x, block.mlp_scale)


def to_stream(
    block: FrozenBlock, site: Site, g: Float[Tensor, "*row d_model"], scale: Float[Tensor, "*#row 1"]
) -> Float[Tensor, "*row d_model"]:
    """A gradient at a site carried to the stream; ``scale`` is that of the MLP's norm where ``g`` stands."""
    return pull(norm_of(block, site), g, scale)


def check_transcoder(dictionary: Dictionary, model: Model) -> None:
    """Refuse a dictionary that cannot stand for an MLP in a linear network.

    Raises:
        UnsupportedError: It writes elsewhere than an MLP does, or reads what is no linear map of the stream.
        ModelError: Its sizes, layers or model are others.
    """
    where = dictionary.source or f"dictionary of layer {dictionary.layer}"
    if dictionary.site_out != "mlp_out" or dictionary.site_in not in READS:
        raise UnsupportedError(
            f"the dictionary reads {dictionary.site_in} and writes {dictionary.site_out}; attribution needs "
            "transcoders, which read what an MLP reads and write what it writes",
            where=where,
            hint="train some with `circuitfind transcoders train`, or give a set of circuit-tracer",
        )
    check_fits(dictionary, model)
