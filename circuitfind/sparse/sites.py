"""Where SAEs stand in a model, in the order of the forward pass, and what each makes of a vector there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.fit import check_fits
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.bridge import Model
from circuitfind.names import Kind, Node

Point = tuple[int, str]
"""A block, and where in it: ``in``, ``attn``, ``mid``, ``mlp`` or ``post``."""

FAMILY = {"in": "si", "attn": "sa", "mid": "sh", "mlp": "sm", "post": "s"}
"""What nodes at a point are named after."""
ORDER = tuple(FAMILY)
"""Of the points of a block in a pass."""
_POINTS = {"attn_out": "attn", "mid": "mid", "mlp_out": "mlp", "resid_post": "post"}


@dataclass(frozen=True, eq=False)
class Site:
    """An SAE in its place, in the model's precision and on its device.

    What stands there is always ``encode(x) @ decoder + bias + error(x)``.
    """

    point: Point
    dictionary: Dictionary

    @property
    def name(self) -> str:
        """What its nodes' names begin with: ``s5``, ``sa5``, ``sm5``, ``sh5``, ``si0``."""
        return f"{FAMILY[self.point[1]]}{self.point[0]}"

    @property
    def begin(self) -> int:
        """The first block that what is written here can change, or change in part."""
        return self.point[0] + (self.point[1] == "post")

    @cached_property
    def decoder(self) -> Float[Tensor, "feature d_model"]:
        """What one unit of each feature writes."""
        return self.dictionary.w_dec / self.dictionary.scale_out

    @cached_property
    def bias(self) -> Float[Tensor, " d_model"]:
        """What is written whatever fires."""
        return self.dictionary.b_dec / self.dictionary.scale_out

    def encode(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row feature"]:
        """Activations of all features."""
        return self.dictionary.encode(x)

    def encode_some(
        self, x: Float[Tensor, "*row d_model"], index: Int[Tensor, " some"]
    ) -> Float[Tensor, "*row some"]:
        """Activations of some features; of TopK, those among all."""
        if self.dictionary.activation == "topk":
            return self.encode(x)[..., index]
        return self.dictionary.features(index).encode(x)

    def error(
        self, x: Float[Tensor, "*row d_model"], found: Float[Tensor, "*row feature"]
    ) -> Float[Tensor, "*row d_model"]:
        """What the features of ``x`` do not give of it."""
        return x - found @ self.decoder - self.bias

    def feature(self, index: int) -> Node:
        return Node(Kind.FEATURE, self.point[0], index, family=FAMILY[self.point[1]])

    @property
    def error_node(self) -> Node:
        return Node(Kind.ERROR, self.point[0], family=FAMILY[self.point[1]])


def read_sites(model: Model, dictionaries: Sequence[Dictionary]) -> tuple[Site, ...]:
    """SAEs as sites of a model, in the order of its forward pass.

    Raises:
        UnsupportedError: One of them is no SAE of the stream or of what is written to it.
        UsageError: There are none, or two for one place.
        ModelError: Sizes, layers or names are those of another model.
    """
    if not dictionaries:
        raise UsageError("there are no dictionaries", hint="give a folder that holds some SAEs")
    found: dict[Point, Site] = {}
    for one in dictionaries:
        where = one.source or f"dictionary of layer {one.layer}"
        _check_kind(one, where)
        check_fits(one, model)
        point = _point(one)
        if point in found:
            raise UsageError(
                f"two SAEs stand for one place, {one.site_in} of layer {one.layer}",
                where=where,
                hint="give the folder of one of them, or choose --layers",
                details=[found[point].dictionary.source, one.source],
            )
        found[point] = Site(point, _matched(one, model))
    return tuple(found[p] for p in sorted(found, key=lambda p: (p[0], ORDER.index(p[1]))))


def _check_kind(one: Dictionary, where: str) -> None:
    if one.kind != "sae":
        raise UnsupportedError(
            f"it is a {'transcoder' if one.kind == 'transcoder' else 'cross-layer transcoder'}, and SAEs are wanted here",
            where=where,
            hint="for circuits of transcoder features use `circuitfind discover --nodes heads,features`",
        )
    if one.site_in != "resid" and one.site_in not in _POINTS:
        raise UnsupportedError(
            f"an SAE of {one.site_in} is not spliced in",
            where=where,
            hint="give SAEs of the stream (resid, mid, resid_post) or of what is written to it (attn_out, mlp_out)",
        )
    if one.w_skip is not None:
        raise UnsupportedError(
            "an SAE with a skip connection explains what it reads by what it reads",
            where=where,
            hint="give one without",
        )


def _point(one: Dictionary) -> Point:
    """The stream into a block is the one behind the block before it."""
    if one.site_in == "resid":
        return (one.layer - 1, "post") if one.layer else (0, "in")
    return one.layer, _POINTS[one.site_in]


def _matched(one: Dictionary, model: Model) -> Dictionary:
    """In the model's precision, on its device."""
    tensors = {
        f.name: value.to(model.device, model.dtype)
        for f in fields(one)
        if isinstance(value := getattr(one, f.name), Tensor)
    }
    return replace(one, **tensors)  # type: ignore[arg-type]  # the tensors alone


def tokens_at_once(sites: Sequence[Site], budget: int, most: int) -> int:
    """How many tokens' activations of the widest SAE fit into a share of a budget of bytes; at least 1."""
    width = max(site.dictionary.n_features for site in sites)
    size = torch.finfo(sites[0].decoder.dtype).bits // 8
    return max(1, min(most, budget // (8 * 4 * width * size)))
