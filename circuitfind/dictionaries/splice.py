"""A model in which dictionaries stand for MLPs, with or without the error that they make.

What is added to the stream at a layer is what its dictionary makes of the MLP's input, plus an error:

* ``frozen``: the error of a finished run of the same prompts. At that run the logits are the model's own; elsewhere the
  error stays what it was, so an effect of a feature is the effect of the features alone. Attribution asks for this.
* ``recomputed``: the error at the present input. Whatever changes upstream the MLP is the model's own, and only what is
  done to features directly (``edit``) shows: effects that pass through other features' errors are hidden.
* ``none``: no error. What the dictionaries alone can do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.dictionaries.activations import Rows, own_mlp, run_mlps
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.fit import check_fits
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.bridge import Model

Errors = Literal["frozen", "recomputed", "none"]
Edit = Callable[[int, Tensor], Tensor]
"""Changes feature activations: (layer, ``[row, pos, feature]``) -> the same shape."""

READS = ("mlp_normed", "mlp_hat", "mlp_in", "mlp_out")


@dataclass(frozen=True)
class Spliced:
    """A run.

    Attributes:
        stream: What the final norm reads.
        features: Activations of each dictionary, by the layer that it reads in, before any edit.
        errors: What the MLP would have written at its present input less what its dictionaries make of it unedited.
    """

    stream: Float[Tensor, "row pos d_model"]
    features: dict[int, Float[Tensor, "row pos feature"]]
    errors: dict[int, Float[Tensor, "row pos d_model"]]


def check_fit(model: Model, dictionaries: Mapping[int, Dictionary]) -> None:
    """Refuse dictionaries that cannot stand for this model's MLPs.

    Raises:
        UnsupportedError: They are of something else than MLPs, or the model has none.
        UsageError: There are none.
        ModelError: Sizes, layers or names are those of another model.
    """
    if not model.has_mlp:
        raise UnsupportedError(
            f"{model.name} has no MLPs, so no dictionary can stand for one",
            hint="give the model that the dictionaries are of",
        )
    if not dictionaries:
        raise UsageError("there are no dictionaries", hint="give a folder that holds some")
    for layer, one in sorted(dictionaries.items()):
        where = one.source or f"layer {layer}"
        if one.site_out != "mlp_out" or one.site_in not in READS:
            raise UnsupportedError(
                f"the dictionary reads {one.site_in} and writes {one.site_out}, so it stands for no MLP",
                where=where,
                hint="give transcoders, or SAEs of what MLPs write",
            )
        if layer != one.layer:
            raise ValueError(f"a dictionary of layer {one.layer} under layer {layer}")
        check_fits(one, model)


def run_spliced(
    model: Model,
    rows: Rows,
    dictionaries: Mapping[int, Dictionary],
    *,
    errors: Errors = "none",
    frozen: Mapping[int, Float[Tensor, "row pos d_model"]] | None = None,
    edit: Edit | None = None,
) -> Spliced:
    """Run with MLPs replaced by their dictionaries; layers without one keep their MLP.

    Args:
        model: The model.
        rows: What it reads.
        dictionaries: By the layer that they read in. A cross-layer one writes to later layers too, whose MLPs are
            replaced likewise.
        errors: What is added beside the features; see above.
        frozen: The errors of the base run (``base_errors``), for ``frozen``.
        edit: Changes features before they are decoded.
    """
    if (errors == "frozen") != (frozen is not None):
        raise ValueError("frozen errors, and only they, come from a base run")
    features: dict[int, Tensor] = {}
    left: dict[int, Tensor] = {}
    clean, edited = _Writes(dictionaries), _Writes(dictionaries)
    own = own_mlp(model)

    def mlp(index: int, read: Tensor, normed: Tensor) -> Tensor:
        if not clean.reaches(index):
            return own(index, read, normed)
        written = own(index, read, normed)
        if index in dictionaries:
            one = dictionaries[index]
            x = read_at(model, one, index, read, normed, written)
            found = features[index] = one.encode(x)
            clean.add(index, one.decode(found, x))
            if edit is not None:
                edited.add(index, one.decode(edit(index, found), x))
        left[index] = written - clean.at(index)
        out = clean.at(index) if edit is None else edited.at(index)
        if errors == "recomputed":
            return out + left[index]
        return out if frozen is None else out + frozen[index]

    with torch.no_grad():
        stream = run_mlps(model, rows, mlp)
    return Spliced(stream, features, left)


def read_at(
    model: Model, one: Dictionary, index: int, read: Tensor, normed: Tensor, written: Tensor
) -> Float[Tensor, "*row d_in"]:
    """What a dictionary reads of an MLP's stream, normalised stream and output."""
    if one.site_in == "mlp_hat":
        return model.layers[index].mlp_norm.hat(read)
    return {"mlp_normed": normed, "mlp_in": read, "mlp_out": written}[one.site_in]


class _Writes:
    """What dictionaries have written to each layer so far."""

    def __init__(self, dictionaries: Mapping[int, Dictionary]) -> None:
        self._targets = {
            layer + step for layer, one in dictionaries.items() for step in range(one.n_layers_out)
        }
        self._cross = {layer for layer, one in dictionaries.items() if one.w_dec.ndim == 3}
        self._sums: dict[int, Tensor] = {}

    def reaches(self, layer: int) -> bool:
        return layer in self._targets

    def add(self, layer: int, written: Tensor) -> None:
        parts = written.unbind(-2) if layer in self._cross else (written,)
        for step, part in enumerate(parts):
            before = self._sums.get(layer + step)
            self._sums[layer + step] = part if before is None else before + part

    def at(self, layer: int) -> Tensor:
        return self._sums[layer]


def base_errors(
    model: Model, rows: Rows, dictionaries: Mapping[int, Dictionary]
) -> dict[int, Float[Tensor, "row pos d_model"]]:
    """What the dictionaries miss of each MLP in a plain run of the model: for ``errors="frozen"``."""
    return run_spliced(model, rows, dictionaries, errors="recomputed").errors
