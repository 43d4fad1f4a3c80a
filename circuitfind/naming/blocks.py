"""A forward pass that stops at each block to be looked at, and goes no further than it is asked to."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.dictionaries.activations import Rows
from circuitfind.dictionaries.dictionary import Site
from circuitfind.errors import UnsupportedError
from circuitfind.model.bridge import Model
from circuitfind.model.forward import Place, attend
from circuitfind.model.layer import Layer
from circuitfind.model.mlp import Saved


class Block:
    """What one block read and wrote. What its MLP does is computed when something asks for it."""

    def __init__(self, layer: Layer, resid: Tensor, attn_out: Tensor, *, parallel: bool) -> None:
        self._layer = layer
        self.resid: Float[Tensor, "row pos d_model"] = resid
        self.attn_out: Float[Tensor, "row pos d_model"] = attn_out
        self.mlp_in = resid if parallel else resid + attn_out

    @cached_property
    def normed(self) -> Float[Tensor, "row pos d_model"]:
        """What the MLP reads, behind its norm and the norm's weight."""
        return self._layer.mlp_norm(self.mlp_in)

    @cached_property
    def mlp_run(self) -> tuple[Float[Tensor, "row pos d_model"], Saved]:
        """What the MLP adds to the stream, and what went on inside."""
        assert self._layer.mlp is not None
        return self._layer.mlp.run(self.normed)

    @cached_property
    def resid_post(self) -> Float[Tensor, "row pos d_model"]:
        """The stream behind the block."""
        mid = self.resid + self.attn_out
        return mid if self._layer.mlp is None else mid + self.mlp_run[0]

    def at(self, site: Site) -> Float[Tensor, "row pos d_in"]:
        """What stands at a site that dictionaries with named features read."""
        if site in ("mlp_normed", "mlp_hat"):
            return self.normed if site == "mlp_normed" else self._layer.mlp_norm.hat(self.mlp_in)
        if site == "mlp_out":
            return self.mlp_run[0]
        if site == "resid_post":
            return self.resid_post
        found: dict[str, Tensor] = {"mlp_in": self.mlp_in, "attn_out": self.attn_out, "resid": self.resid}
        if site in found:
            return found[site]
        if site == "mid":
            return self.resid + self.attn_out
        raise UnsupportedError(
            f"features that read {site} have no names here", hint="give transcoders, or SAEs of other sites"
        )


@torch.no_grad()
def blocks(model: Model, rows: Rows, stop: int) -> Iterator[Block]:
    """The blocks of a plain forward pass over whole rows, up to and with layer ``stop``."""
    mask = None if model.causal or bool(rows.real.all()) else rows.real
    place = Place(0, rows.tokens.shape[1], rows.real.sum(1) - 1, mask, everywhere=True)
    model.passes["forward"] += 1
    x = model.embed(rows.tokens)
    for index, layer in enumerate(model.layers[: stop + 1]):
        model.passes["work"] += rows.tokens.numel()
        z = attend(layer, x, place, None, last=False)[3]
        block = Block(layer, x, layer.heads_out(z), parallel=model.anatomy.parallel)
        yield block
        if index < stop:
            x = block.resid_post
