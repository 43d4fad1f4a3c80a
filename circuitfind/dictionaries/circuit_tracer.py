"""Sets of circuit-tracer: ``config.yaml`` and one safetensors file a layer, or two for a cross-layer transcoder.

Encoders lie the other way round than in sae-lens ([feature, d_in]), and a set may name files of gemma-scope.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from circuitfind.dictionaries.dictionary import Dictionary, Site
from circuitfind.dictionaries.gemma_scope import is_gemma, of_gemma
from circuitfind.dictionaries.processing import facts_of
from circuitfind.dictionaries.sites import read_hook
from circuitfind.dictionaries.weights import (
    bad,
    build,
    first_row,
    inside,
    read_npz,
    read_safetensors,
    read_text,
    take,
)
from circuitfind.errors import UnsupportedError, did_you_mean
from circuitfind.reading import Unreadable, compose_yaml, construct_yaml, one_line

CONFIG = "config.yaml"
KINDS = ("transcoder_set", "cross_layer_transcoder")
ACTIVATIONS = ("relu", "jumprelu", "jump_relu")
Fetch = Callable[[str], Path]
"""From an ``hf://`` path to a file on this disk."""


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration that is a YAML mapping."""
    text = read_text(path)
    try:
        loader, node = compose_yaml(text)
        found = None if node is None else construct_yaml(loader, node)
    except (yaml.YAMLError, Unreadable) as error:
        raise bad(f"is no YAML: {one_line(error)}", path, "restore the file") from error
    if not isinstance(found, dict):
        raise bad(f"holds a {type(found).__name__}, not a mapping", path, "restore the file")
    return found


def is_circuit_tracer(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read_circuit_tracer(folder: Path, layers: Sequence[int] | None, fetch: Fetch) -> list[Dictionary]:
    """The dictionaries of a set, of all layers or of some.

    Raises:
        ModelError: A file that is damaged, missing or outside the folder.
        UnsupportedError: A kind or hook that is not known.
    """
    path = folder / CONFIG
    config = read_yaml(path)
    kind = config.get("model_kind")
    if kind not in KINDS:
        raise UnsupportedError(
            f"the model_kind {kind!r} is not known",
            where=f"{path} (model_kind)",
            hint=did_you_mean(str(kind), KINDS),
        )
    if config.get("activation", "relu") not in ACTIVATIONS:
        raise UnsupportedError(
            f"the activation {str(config['activation'])[:100]!r} is not read",
            where=f"{path} (activation)",
            hint=f"{', '.join(ACTIVATIONS)} are; which of them a file has, its threshold tells",
        )
    sites = tuple(_site(config, key, path) for key in ("feature_input_hook", "feature_output_hook"))
    facts = {
        "format": "circuit-tracer",
        "hook_in": config["feature_input_hook"],
        "hook_out": config["feature_output_hook"],
        **{key: config[key] for key in ("model_name", "scan") if isinstance(config.get(key), str)},
        **facts_of(sites[0], folded=False, centred=False),
    }
    if kind == "transcoder_set":
        files = _files(config, folder, fetch, layers)
        return [read_layer(file, layer, sites[0], sites[1], facts) for layer, file in files.items()]
    if "transcoders" in config:
        raise UnsupportedError(
            "a cross-layer transcoder out of gemma-scope-2 files by name is not read",
            where=f"{path} (transcoders)",
            hint="give the folder of gemma-scope-2 itself (config.json and params_layer_*.safetensors)",
        )
    return _read_cross(folder, layers, sites[0], sites[1], facts)


def _site(config: Mapping[str, Any], key: str, path: Path) -> Site:
    if key not in config:
        raise bad(
            f"the key '{key}' is missing", path, "such as mlp.hook_in; it says where features read or write"
        )
    layer, site = read_hook(config[key], f"{path} ({key})")
    if layer is not None:
        raise bad(f"names one layer ({config[key]}) for all", f"{path} ({key})", "leave out blocks.N.")
    return site


# Sets of one transcoder a layer.


def _files(
    config: Mapping[str, Any], folder: Path, fetch: Fetch, layers: Sequence[int] | None
) -> dict[int, Path]:
    """The file of each layer that is asked for."""
    named = config.get("transcoders")
    where = f"{folder / CONFIG} (transcoders)"
    if named is None:
        found = _numbered(folder, "layer_")
    elif isinstance(named, list) and named and all(isinstance(item, str) for item in named):
        wanted = range(len(named)) if layers is None else [i for i in layers if 0 <= i < len(named)]
        return {
            i: fetch(named[i]) if named[i].startswith("hf://") else inside(folder, named[i], where)
            for i in wanted
        }
    else:
        raise bad("is no list of paths, one for each layer", where, "such as - layer_0.safetensors")
    if not found:
        raise bad("there is no layer_0.safetensors", folder, "copy the set's files there")
    return {i: file for i, file in found.items() if layers is None or i in layers}


def _numbered(folder: Path, stem: str) -> dict[int, Path]:
    found = {}
    for file in folder.glob(f"{stem}*.safetensors"):
        if number := re.fullmatch(rf"{stem}(\d{{1,4}})\.safetensors", file.name):
            found[int(number.group(1))] = inside(folder, file.name, folder)
    return dict(sorted(found.items()))


def read_layer(path: Path, layer: int, site_in: Site, site_out: Site, facts: Mapping[str, Any]) -> Dictionary:
    """One file of a set, of circuit-tracer itself or of gemma-scope."""
    tensors = read_npz(path) if path.suffix == ".npz" else read_safetensors(path)
    if is_gemma(tensors) or path.suffix == ".npz":
        return of_gemma(tensors, path, layer, site_in, site_out, facts)
    if "log_thresholds" in tensors:
        raise UnsupportedError(
            "log_thresholds are not read", where=str(path), hint="save activation_function.threshold instead"
        )
    threshold = _threshold(tensors.get("activation_function.threshold"), path)
    skip = tensors.get("W_skip")
    return build(
        {
            "w_enc": take(tensors, "W_enc", path).T,
            "b_enc": take(tensors, "b_enc", path),
            "w_dec": take(tensors, "W_dec", path),
            "b_dec": take(tensors, "b_dec", path),
            "threshold": threshold,
            "w_skip": None if skip is None else skip.T,
        },
        where=path,
        kind="transcoder",
        layer=layer,
        site_in=site_in,
        site_out=site_out,
        activation="relu" if threshold is None else "jumprelu",
        facts=facts,
    )


def _threshold(threshold: Tensor | None, path: Path) -> Tensor | None:
    """There it is ``x * (x > threshold)`` with no ReLU: the same as ours unless a threshold is negative."""
    if threshold is None:
        return None
    if threshold.numel() and bool((threshold < 0).any()):
        raise UnsupportedError(
            "a threshold is negative; circuit-tracer then gives negative activations, which no feature has here",
            where=str(path),
            hint="set such thresholds to 0 if they are rounding",
        )
    return threshold.reshape(-1) if threshold.numel() > 1 else threshold


# Cross-layer transcoders.


def _read_cross(
    folder: Path, layers: Sequence[int] | None, site_in: Site, site_out: Site, facts: Mapping[str, Any]
) -> list[Dictionary]:
    encoders, decoders = _numbered(folder, "W_enc_"), _numbered(folder, "W_dec_")
    n_layers = len(encoders)
    if not n_layers:
        raise bad("there is no W_enc_0.safetensors", folder, "copy the set's files there")
    for name, files in (("W_enc", encoders), ("W_dec", decoders)):
        missing = sorted(set(range(n_layers)) - set(files))
        if missing:
            raise bad(
                f"{name}_{missing[0]}.safetensors is missing", folder, "a cross-layer set needs every layer"
            )
    found: list[Dictionary] = []
    for i in range(n_layers):
        if layers is not None and i not in layers:
            continue
        tensors = read_safetensors(encoders[i]) | read_safetensors(decoders[i])
        w_dec = take(tensors, f"W_dec_{i}", decoders[i])
        if w_dec.ndim != 3 or w_dec.shape[1] != n_layers - i:
            raise bad(
                f"W_dec_{i} is {list(w_dec.shape)}; of {n_layers} layers it writes to {n_layers - i}",
                decoders[i],
                "the files do not belong together, or one is missing",
            )
        threshold = _threshold(tensors.get(f"threshold_{i}"), encoders[i])
        found.append(
            build(
                {
                    "w_enc": take(tensors, f"W_enc_{i}", encoders[i]).T,
                    "b_enc": take(tensors, f"b_enc_{i}", encoders[i]),
                    "w_dec": w_dec,
                    "b_dec": first_row(take(tensors, f"b_dec_{i}", encoders[i]), n_layers - i),
                    "threshold": threshold,
                },
                where=encoders[i],
                kind="cross-layer",
                layer=i,
                site_in=site_in,
                site_out=site_out,
                activation="relu" if threshold is None else "jumprelu",
                facts=facts,
            )
        )
    return found
