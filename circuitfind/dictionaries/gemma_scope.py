"""gemma-scope (``params.npz``) and gemma-scope-2 (``params.safetensors`` beside ``config.json``): JumpReLU throughout.

Both keep the encoder as [d_in, feature]. An ``.npz`` does not say what it reads: its path or a ``cfg.json`` beside it does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitfind.dictionaries.dictionary import Dictionary, Kind, Site
from circuitfind.dictionaries.processing import facts_of
from circuitfind.dictionaries.sites import read_hook
from circuitfind.dictionaries.weights import (
    bad,
    build,
    first_row,
    inside,
    read_json,
    read_npz,
    read_safetensors,
    take,
)
from circuitfind.errors import UnsupportedError

_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")
_SITES: dict[str, tuple[Kind, Site, Site]] = {
    "res": ("sae", "resid_post", "resid_post"),
    "mlp": ("sae", "mlp_out", "mlp_out"),
    "att": ("sae", "z", "z"),
    "transcoders": ("transcoder", "mlp_hat", "mlp_out"),
}
_LAYER = re.compile(r"layer_(\d{1,4})(?:[_./]|$)")
_BY_LAYER = re.compile(r"params_layer_(\d{1,4})\.safetensors")


def is_gemma(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are spelt as in gemma-scope-2."""
    return "w_enc" in tensors


def is_gemma_2(folder: Path) -> bool:
    return (folder / "config.json").is_file() and bool(_files_2(folder))


def _files_2(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.glob("params*.safetensors")
        if p.name == "params.safetensors" or _BY_LAYER.match(p.name)
    )


def of_gemma(
    tensors: Mapping[str, Tensor],
    path: Path,
    layer: int,
    site_in: Site,
    site_out: Site,
    facts: Mapping[str, Any],
    kind: Kind = "transcoder",
    affine: bool | None = None,
) -> Dictionary:
    """A dictionary from the tensors of either version."""
    given = {(f"W_{name[2:]}" if name.startswith("w_") else name): tensor for name, tensor in tensors.items()}
    w_dec, b_dec = take(given, "W_dec", path), take(given, "b_dec", path)
    if kind == "cross-layer":
        if w_dec.ndim != 3 or layer >= w_dec.shape[1]:
            raise bad(f"w_dec is {list(w_dec.shape)}, not [feature, layer, d_out] with layer {layer}", path)
        w_dec = w_dec[:, layer:]
        b_dec = first_row(b_dec, w_dec.shape[1])
    skip = given.get("affine_skip_connection")
    if affine is not None and affine != (skip is not None):
        raise bad(
            f"affine_connection is {str(affine).lower()}, and there is {'one' if skip is not None else 'none'}",
            path,
            "config.json and the weights do not belong together",
        )
    return build(
        {
            "w_enc": take(given, "W_enc", path),
            "b_enc": take(given, "b_enc", path),
            "w_dec": w_dec,
            "b_dec": b_dec,
            "threshold": take(given, "threshold", path),
            "w_skip": skip,  # [d_in, d_out], as ours
        },
        where=path,
        kind=kind,
        layer=layer,
        site_in=site_in,
        site_out=site_out,
        activation="jumprelu",
        facts=facts,
    )


def read_gemma_npz(path: Path, label: str) -> Dictionary:
    """One ``.npz``.

    Args:
        path: The file.
        label: Where it came from, the hub's repository first where it did: the names in it say what it reads.
    """
    kind: Kind
    config = path.with_name("cfg.json")
    facts: dict[str, Any] = {"format": "gemma-scope"}
    if config.is_file():
        raw = read_json(config)
        layer, site_in = read_hook(raw.get("hook_name"), f"{config} (hook_name)")
        kind, site_out = "sae", site_in
        if "hook_name_out" in raw:
            kind = "transcoder"
            _, site_out = read_hook(raw["hook_name_out"], f"{config} (hook_name_out)")
        facts |= {key: raw[key] for key in ("model_name",) if isinstance(raw.get(key), str)}
        if layer is None:
            raise bad("no layer is named", f"{config} (hook_name)", "such as blocks.3.hook_resid_post")
    else:
        name, number = _REPOSITORY.search(label), _LAYER.search(label)
        if name is None or number is None:
            raise bad(
                "an .npz does not say what it reads, and neither does its path",
                path,
                "keep gemma-scope's folders (gemma-scope-2b-pt-res/layer_3/.../params.npz), or write a cfg.json beside it "
                'with {"hook_name": "blocks.3.hook_resid_post"}, and "hook_name_out" for a transcoder',
            )
        size, tuned, what = name.groups()
        kind, site_in, site_out = _SITES[what]
        layer = int(number.group(1))
        facts["model_name"] = f"google/gemma-2-{size}" + ("-it" if tuned == "it" else "")
    facts |= facts_of(site_in, folded=False, centred=False)
    return of_gemma(read_npz(path), path, layer, site_in, site_out, facts, kind)


def read_gemma_2(folder: Path, layers: Sequence[int] | None) -> list[Dictionary]:
    """A folder of gemma-scope-2, single-layer or one file a layer of a cross-layer transcoder."""
    path = folder / "config.json"
    config = read_json(path)
    if config.get("architecture") != "jump_relu":
        raise UnsupportedError(
            f"the architecture {config.get('architecture')!r} is not read",
            where=f"{path} (architecture)",
            hint="jump_relu is",
        )
    key, key_out = "hf_hook_point_in", "hf_hook_point_out"
    layer, site_in = read_hook(config.get(key), f"{path} ({key})")
    site_out = site_in
    if config.get(key_out) is not None:
        _, site_out = read_hook(config[key_out], f"{path} ({key_out})")
    facts: dict[str, Any] = {"format": "gemma-scope-2", "hook_in": config[key]}
    facts |= {k: config[k] for k in ("model_name", "l0") if isinstance(config.get(k), str | int)}
    affine = config.get("affine_connection")
    found = []
    for file in _files_2(folder):
        own = _BY_LAYER.match(file.name)
        number = int(own.group(1)) if own else layer
        if number is None:
            raise bad("no layer is named", f"{path} ({key})", "such as model.layers.3.output")
        if layers is not None and number not in layers:
            continue
        kind: Kind = "cross-layer" if own else ("sae" if site_in == site_out else "transcoder")
        tensors = read_safetensors(inside(folder, file.name, folder))
        flag = affine if isinstance(affine, bool) else None
        found.append(of_gemma(tensors, file, number, site_in, site_out, facts, kind, flag))
    return found
