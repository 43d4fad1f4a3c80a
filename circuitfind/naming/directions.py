"""Vectors through a normalisation whose scale is frozen at 1: what is left is linear.

A norm gives ``weight * centred(x) / sigma + bias`` (an RMSNorm does not centre). With sigma = 1 and without the bias, a written
vector becomes ``weight * centred(v)``, and what reads ``r`` behind the norm reads ``centred(weight * r)`` before it, since
centring is symmetric. One is the transpose of the other.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from circuitfind.model.norms import Norm


def written_through(
    norm: Norm | None, vectors: Float[Tensor, "*row d_model"]
) -> Float[Tensor, "*row d_model"]:
    """What written vectors are behind a norm."""
    if norm is None:
        return vectors
    if norm.kind == "ln":
        vectors = vectors - vectors.mean(-1, keepdim=True)
    return vectors if norm.weight is None else vectors * norm.weight


def read_through(norm: Norm | None, readings: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
    """What readings taken behind a norm are of the stream before it."""
    if norm is None:
        return readings
    if norm.weight is not None:
        readings = readings * norm.weight
    return readings - readings.mean(-1, keepdim=True) if norm.kind == "ln" else readings


def cosine(a: Float[Tensor, "*#row d"], b: Float[Tensor, "*#row d"]) -> Float[Tensor, "*row"]:
    """The cosine between vectors; 0 where one is zero."""
    found: Tensor = (_unit(a) * _unit(b)).sum(-1)
    return found


def cosines(a: Float[Tensor, "row d"], b: Float[Tensor, "other d"]) -> Float[Tensor, "row other"]:
    """The cosine of each with each; 0 where one is zero."""
    return _unit(a) @ _unit(b).T


def _unit(x: Float[Tensor, "*row d"]) -> Float[Tensor, "*row d"]:
    found: Tensor = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    return found
