"""Tensors out of files that may be damaged or hostile, and a Dictionary out of tensors that may not fit together.

Everything is checked on what a file declares before its numbers are read; nothing in a file is ever executed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitfind import reading
from circuitfind.dictionaries.dictionary import Activation, Dictionary, Kind, Site
from circuitfind.errors import ModelError, UnsupportedError, nearest
from circuitfind.reading import MAX_SETTINGS, Unreadable, parse_json, read_arrays

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_AGAIN = "copy or download the file again"


def bad(what: str, where: object, hint: str = _AGAIN) -> ModelError:
    return ModelError(what, where=str(where), hint=hint)


def read_text(path: Path) -> str:
    """A configuration as text."""
    try:
        return reading.read_text(path, MAX_SETTINGS)
    except (OSError, Unreadable) as error:
        raise bad(f"cannot be read: {getattr(error, 'strerror', None) or error}", path) from error


def read_json(path: Path) -> dict[str, Any]:
    """A configuration that is a JSON object."""
    try:
        found = parse_json(read_text(path))
    except Unreadable as error:
        raise bad(f"is no JSON: {error}", path) from error
    if not isinstance(found, dict):
        raise bad(f"holds a {type(found).__name__}, not an object", path)
    return found


def inside(folder: Path, name: str, where: object) -> Path:
    """A file of the folder; neither ``..`` nor a link may lead out of it.

    The hub's cache is such a folder of links, into the ``blobs`` beside its snapshots, and is let be.
    """
    path = folder / name
    root = folder.resolve()
    blobs = next((up.parent / "blobs" for up in root.parents if up.name == "snapshots"), None)
    try:
        real = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise bad(f"'{name[:200]}' is no path: {error}", where) from error
    allowed = real.is_relative_to(root) or (blobs is not None and real.is_relative_to(blobs))
    if Path(name).is_absolute() or ".." in Path(name).parts or not allowed:
        raise ModelError(
            f"'{name[:200]}' leads out of the folder; refused",
            where=str(where),
            hint="paths are relative to the folder and stay in it; copy the file there",
        )
    if not real.is_file():
        raise bad(f"there is no file '{name[:200]}'", where, "copy it into the folder")
    return path


# Tensors.


def read_safetensors(path: Path, wanted: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a file, or those that are wanted and there."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            names = [n for n in handle.keys() if wanted is None or n in set(wanted)]  # noqa: SIM118 (no mapping)
            return {name: handle.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise bad(f"the weights are damaged: {_line(error)}", path) from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an ``.npz``; none may be pickled, and none is unpacked that is larger than it says."""
    try:
        arrays = read_arrays(path, accept=_only_floats, free=0)
    except (OSError, Unreadable) as error:
        told = getattr(error, "strerror", None) or error
        raise bad(f"the weights cannot be read: {told}", path) from error
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _only_floats(name: str, dtype: np.dtype[Any]) -> str | None:
    return None if dtype.kind == "f" else f"holds {dtype}, not floating-point numbers"


def take(tensors: Mapping[str, Tensor], name: str, where: object) -> Tensor:
    """A tensor that must be there."""
    if name not in tensors:
        near = nearest(name, tensors)
        known = ", ".join(sorted(tensors)[:12]) or "nothing"
        raise bad(
            f"there is no '{name}'" + (f"; '{near}' is near" if near else ""), where, f"it holds: {known}"
        )
    return tensors[name]


# From tensors to a dictionary.


def build(
    weights: Mapping[str, Tensor | None],
    *,
    where: object,
    kind: Kind,
    layer: int,
    site_in: Site,
    site_out: Site,
    activation: Activation,
    k: int | None = None,
    centred: bool = False,
    scale_in: float = 1.0,
    scale_out: float = 1.0,
    facts: Mapping[str, Any] | None = None,
) -> Dictionary:
    """A dictionary of weights in our orientation, in float32, once they fit together.

    ``weights`` are ``w_enc`` [d_in, feature], ``b_enc``, ``w_dec`` [feature, d_out] or [feature, layer, d_out], ``b_dec``,
    and where there are such ``threshold`` and ``w_skip`` [d_in, d_out]; ``where`` is told when they do not fit.

    Raises:
        ModelError: Wrong shapes, NaN or infinite numbers, no floating-point numbers.
        UnsupportedError: A number of features that TopK cannot keep.
    """
    found = {name: _numbers(tensor, name, where) for name, tensor in weights.items() if tensor is not None}
    w_enc, w_dec = found["w_enc"], found["w_dec"]
    _check_shapes(found, where)
    n_features = w_enc.shape[1]
    if activation == "topk" and not (isinstance(k, int) and not isinstance(k, bool) and 0 < k <= n_features):
        raise UnsupportedError(
            f"TopK keeps k = {k!r} of {n_features} features",
            where=str(where),
            hint=f"k is a whole number from 1 to {n_features}",
        )
    if activation == "jumprelu" and "threshold" not in found:
        raise bad("JumpReLU needs a threshold for each feature, and the file has none", where)
    for name, scale in (("scale_in", scale_in), ("scale_out", scale_out)):
        if not (math.isfinite(scale) and scale > 0):
            raise bad(f"{name} is {scale}", where, "a scale is a positive number")
    return Dictionary(
        kind=kind,
        layer=layer,
        site_in=site_in,
        site_out=site_out,
        activation=activation,
        w_enc=w_enc,
        b_enc=found["b_enc"],
        w_dec=w_dec,
        b_dec=found["b_dec"],
        threshold=found["threshold"] if activation == "jumprelu" else None,
        k=k if activation == "topk" else None,
        w_skip=found.get("w_skip"),
        centred=centred,
        scale_in=float(scale_in),
        scale_out=float(scale_out),
        source=str(where),
        facts=dict(facts or {}),
    )


def first_row(bias: Tensor, n_layers: int) -> Tensor:
    """The bias of a layer as that of the transcoder that reads there: it is added once, not by every one below."""
    out = torch.zeros(n_layers, *bias.shape, dtype=bias.dtype)
    out[0] = bias
    return out


def _numbers(tensor: Tensor, name: str, where: object) -> Tensor:
    if tensor.dtype not in FLOATS:
        raise bad(
            f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers",
            where,
            "quantised weights are not read; give float32, float16 or bfloat16",
        )
    out = tensor.detach().to(torch.float32).contiguous()
    if not bool(torch.isfinite(out).all()):
        index = (~torch.isfinite(out)).nonzero()[0].tolist()
        raise bad(f"{name} is {float(out[tuple(index)])} at {index}", where)
    return out


def _check_shapes(found: Mapping[str, Tensor], where: object) -> None:
    n_features = _width(found["b_enc"], "b_enc", where)
    w_enc, w_dec, b_dec = found["w_enc"], found["w_dec"], found["b_dec"]
    if w_enc.ndim != 2 or w_dec.ndim not in (2, 3) or b_dec.ndim != w_dec.ndim - 1 or not n_features:
        raise bad(f"the shapes are {_shapes(found)}: these are no dictionary", where)
    if w_enc.shape[1] != n_features:
        turned = w_enc.shape[0] == n_features
        raise bad(
            f"the encoder gives {w_enc.shape[1]} features, b_enc {n_features} ({_shapes(found)})",
            where,
            "the encoder is transposed for this format: was the file written by another tool?"
            if turned
            else _AGAIN,
        )
    if w_dec.shape[0] != n_features:
        turned = w_dec.ndim == 2 and w_dec.shape[1] == n_features
        raise bad(
            f"the decoder has {w_dec.shape[0]} features, the encoder {n_features} ({_shapes(found)})",
            where,
            "the decoder is transposed for this format: was the file written by another tool?"
            if turned
            else _AGAIN,
        )
    wanted = {
        "b_dec": tuple(w_dec.shape[1:]),
        "threshold": (n_features,),
        "w_skip": (w_enc.shape[0], w_dec.shape[-1]),
    }
    for name, shape in wanted.items():
        if name in found and tuple(found[name].shape) != shape:
            raise bad(f"{name} is {list(found[name].shape)}, not {list(shape)} ({_shapes(found)})", where)


def _width(tensor: Tensor, name: str, where: object) -> int:
    if tensor.ndim != 1:
        raise bad(f"{name} is {list(tensor.shape)}, not one number for each feature", where)
    return int(tensor.shape[0])


def _shapes(found: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in found.items())


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
