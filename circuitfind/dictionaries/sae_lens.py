"""Folders of sae-lens: ``cfg.json`` and ``sae_weights.safetensors``, in the spelling of version 6 and of those before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitfind.dictionaries.dictionary import Activation, Dictionary, Site
from circuitfind.dictionaries.processing import KWARGS, facts_of, off_the_mean
from circuitfind.dictionaries.sites import read_hook
from circuitfind.dictionaries.weights import bad, build, read_json, read_safetensors, take
from circuitfind.errors import UnsupportedError, did_you_mean

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
OURS = "circuitfind"
"""Key of ``metadata`` for facts that the format has no key for."""

ARCHITECTURES: dict[str, tuple[bool, Activation]] = {
    "standard": (False, "relu"),
    "jumprelu": (False, "jumprelu"),
    "topk": (False, "topk"),
    "transcoder": (True, "relu"),
    "skip_transcoder": (True, "relu"),
    "jumprelu_transcoder": (True, "jumprelu"),
    "jumprelu_skip_transcoder": (True, "jumprelu"),
    "topk_transcoder": (True, "topk"),
    "topk_skip_transcoder": (True, "topk"),
}
"""Whether it writes elsewhere than it reads, and its activation. The two TopK transcoders are our own."""

_KNOWN_UNREAD = ("gated", "batchtopk", "matryoshka_batchtopk", "abstopk", "temporal", "matching_pursuit")
_OLD_NAMES = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
_TOLD = ("model_name", "prepend_bos", "context_size", "dataset_path", "neuronpedia_id", "sae_lens_version")


@dataclass(frozen=True)
class _Config:
    """One flat view of ``cfg.json``: version 6 keeps some keys in ``metadata``, older ones beside the others."""

    values: Mapping[str, Any]
    path: Path

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def at(self, key: str) -> str:
        return f"{self.path} ({key})"

    def need(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise bad(
                f"the key '{key}' is missing",
                self.path,
                f"it belongs there or under metadata; {key} says what is read",
            )
        return self.values[key]

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise bad(f"is {value!r}, not true or false", self.at(key), "correct it")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            raise bad(f"is {str(value)[:100]}, not a name", self.at(key), "correct it")
        return value

    def size(self, key: str) -> int:
        value = self.need(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise bad(f"is {value!r}, not a size", self.at(key), "correct it")
        return value


def is_sae_lens(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read_sae_lens(folder: Path) -> Dictionary:
    """The dictionary of one folder.

    Raises:
        ModelError: A file that is damaged or does not fit the other.
        UnsupportedError: An architecture, hook or normalisation whose numbers would come out wrong.
    """
    config = read_config(folder / CONFIG)
    elsewhere, activation = _architecture(config)
    layer, site_in, site_out = _hooks(config, elsewhere)
    centred = config.flag("apply_b_dec_to_input", not elsewhere)
    if elsewhere and centred:
        raise UnsupportedError(
            "apply_b_dec_to_input is true, but the b_dec of a transcoder lies where it writes, not where it reads",
            where=config.at("apply_b_dec_to_input"),
            hint="set it to false, as sae-lens does",
        )
    tensors = read_safetensors(folder / WEIGHTS)
    weights = _weights(tensors, config, folder / WEIGHTS, activation)
    kwargs = config.get(KWARGS, {})
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    folded, mean_free = bool(kwargs.get("fold_ln")), bool(kwargs.get("center_writing_weights"))
    scale = _scale(config, folder, elsewhere)
    if mean_free:
        weights = off_the_mean(weights, site_in, centred)
    return build(
        weights,
        where=folder / WEIGHTS,
        kind="transcoder" if elsewhere else "sae",
        layer=layer,
        site_in=site_in,
        site_out=site_out,
        activation=activation,
        k=_k(config) if activation == "topk" else None,
        centred=centred,
        scale_in=scale,
        scale_out=scale,
        facts=_facts(config) | facts_of(site_in, folded, mean_free) | _own_facts(config),
    )


def read_config(path: Path) -> _Config:
    """``cfg.json`` with the keys of ``metadata`` beside the others and old names as new ones."""
    raw = read_json(path)
    metadata = raw.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise bad(f"metadata is a {type(metadata).__name__}, not an object", path)
    values = {**raw, **(metadata or {})}
    return _Config({_OLD_NAMES.get(key, key): value for key, value in values.items()}, path)


def _architecture(config: _Config) -> tuple[bool, Activation]:
    name = config.text("architecture", "standard")
    function = config.text("activation_fn", config.text("activation_fn_str", "relu"))
    if function == "topk" and name in ("standard", "topk"):
        name = "topk"
    elif function not in ("relu", "jumprelu") and name not in (
        "topk",
        "topk_transcoder",
        "topk_skip_transcoder",
    ):
        raise UnsupportedError(
            f"the activation function '{function[:100]}' is not known",
            where=config.at("activation_fn"),
            hint="relu, jumprelu and topk are",
        )
    if name not in ARCHITECTURES:
        if name in _KNOWN_UNREAD:
            hint = f"known: {', '.join(ARCHITECTURES)}"
            if name in ("batchtopk", "matryoshka_batchtopk"):
                hint = "save it for inference in sae-lens: that gives a jumprelu one"
        else:
            hint = did_you_mean(name[:100], ARCHITECTURES)
        raise UnsupportedError(
            f"the architecture '{name[:100]}' is not read", where=config.at("architecture"), hint=hint
        )
    return ARCHITECTURES[name]


def _hooks(config: _Config, elsewhere: bool) -> tuple[int, Site, Site]:
    if config.get("hook_head_index") is not None or config.get("hook_head_index_out") is not None:
        raise UnsupportedError(
            "it reads one head alone",
            where=config.at("hook_head_index"),
            hint="dictionaries of all heads side by side (hook_z) are read",
        )
    if "hf_hook_name" in config.values and config.get("hf_hook_name"):
        # What it was really trained on; the hook_mlp_in beside it in gemma-scope-2 is only near.
        key, key_out = "hf_hook_name", "hf_hook_name_out"
    else:
        key, key_out = "hook_name", "hook_name_out"
    layer, site_in = read_hook(config.need(key), config.at(key))
    layer_out, site_out = (layer, site_in)
    if elsewhere:
        layer_out, site_out = read_hook(config.need(key_out), config.at(key_out))
    told = config.get("hook_layer", config.get("hook_point_layer"))
    if layer is None:
        layer = told
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        raise bad("no layer is named", config.at(key), "such as blocks.3.hook_mlp_out")
    if told is not None and told != layer:
        raise bad(
            f"hook_layer is {told}, but the hook lies in layer {layer}",
            config.at("hook_layer"),
            "correct one of them",
        )
    if layer_out is not None and layer_out != layer:
        raise UnsupportedError(
            f"it reads in layer {layer} and writes in layer {layer_out}",
            where=config.at(key_out),
            hint="single-layer dictionaries write in the layer that they read in",
        )
    return layer, site_in, site_out


def _k(config: _Config) -> int:
    if config.get("k") is not None:
        return config.size("k")
    kwargs = config.get("activation_fn_kwargs", {})
    k = kwargs.get("k") if isinstance(kwargs, dict) else None
    if isinstance(k, bool) or not isinstance(k, int):
        raise bad("TopK needs 'k'", config.path, "it belongs beside 'architecture'")
    return k


def _weights(
    tensors: Mapping[str, Tensor], config: _Config, path: Path, activation: Activation
) -> dict[str, Tensor | None]:
    """Ours from theirs: only ``W_skip`` is turned round there."""
    factor = tensors.get("scaling_factor", tensors.get("finetuning_scaling_factor"))
    if factor is not None and not bool(torch.allclose(factor.float(), torch.ones(()))):
        raise UnsupportedError(
            "a finetuning scaling factor is not folded into the weights",
            where=f"{path} (scaling_factor)",
            hint="multiply the rows of W_dec by it and leave it out",
        )
    w_enc, w_dec = take(tensors, "W_enc", path), take(tensors, "W_dec", path)
    b_enc = take(tensors, "b_enc", path)
    architecture = str(config.get("architecture", ""))
    skip = take(tensors, "W_skip", path) if "skip" in architecture else None
    if skip is None and "W_skip" in tensors:
        raise bad(
            f"there is a W_skip, but the architecture is '{architecture}'",
            config.at("architecture"),
            "it should be a skip transcoder",
        )
    for key, size, name in (("d_in", w_enc.shape[0], "W_enc"), ("d_sae", b_enc.shape[-1], "b_enc")):
        if config.get(key) is not None and config.size(key) != size:
            turned = w_enc.ndim == 2 and w_enc.shape[1] == config.size("d_in")
            raise bad(
                f"{key} is {config.size(key)}, but {name} is {list(tensors[name].shape)}",
                config.at(key),
                "W_enc is transposed for this format" if turned else "the two files do not belong together",
            )
    if config.get("d_out") is not None and config.size("d_out") != w_dec.shape[-1]:
        raise bad(
            f"d_out is {config.size('d_out')}, but W_dec is {list(w_dec.shape)}",
            config.at("d_out"),
            "the two files do not belong together",
        )
    if config.get("rescale_acts_by_decoder_norm") and w_dec.ndim == 2 and w_enc.ndim == 2:
        norm = w_dec.float().norm(dim=-1).clamp_min(1e-8)
        if len(norm) == w_enc.shape[1] == b_enc.shape[-1]:
            w_enc, b_enc, w_dec = w_enc.float() * norm, b_enc.float() * norm, w_dec.float() / norm[:, None]
    return {
        "w_enc": w_enc,
        "b_enc": b_enc,
        "w_dec": w_dec,
        "b_dec": take(tensors, "b_dec", path),
        "threshold": take(tensors, "threshold", path) if activation == "jumprelu" else None,
        "w_skip": None if skip is None else skip.T,
    }


def _scale(config: _Config, folder: Path, elsewhere: bool) -> float:
    """What inputs are multiplied by, and outputs divided by."""
    how = config.get("normalize_activations", "none")
    how = {True: "expected_average_only_in", False: "none"}.get(how, how) if isinstance(how, bool) else how
    if how == "none":
        return 1.0
    where = config.at("normalize_activations")
    if how != "expected_average_only_in":
        raise UnsupportedError(
            f"the normalisation '{how}' scales each token by numbers of its own"
            if how in ("layer_norm", "constant_norm_rescale")
            else f"the normalisation '{how}' is not read",
            where=where,
            hint="none and expected_average_only_in are read; sae-lens can fold others into the weights",
        )
    if not (folder / SCALER).is_file():
        raise UnsupportedError(
            f"the inputs were scaled by a number that the folder does not hold ({SCALER})",
            where=where,
            hint="fold it in sae-lens (fold_activation_norm_scaling_factor) and save again",
        )
    if elsewhere:
        raise UnsupportedError(
            "how the outputs of a transcoder are scaled is not told",
            where=where,
            hint="fold the scales into the weights and set normalize_activations to none",
        )
    factor = read_json(folder / SCALER).get("scaling_factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise bad(f"scaling_factor is {factor!r}, not a number", folder / SCALER)
    return float(factor)


def _facts(config: _Config) -> dict[str, Any]:
    facts: dict[str, Any] = {"format": "sae-lens", "architecture": config.get("architecture", "standard")}
    facts |= {
        key: config.values[key]
        for key in _TOLD
        if isinstance(config.values.get(key), str | int | float | bool)
    }
    for ours, theirs in (("hook_in", "hook_name"), ("hook_out", "hook_name_out")):
        if config.get(theirs) is not None:
            facts[ours] = config.get(theirs)
    return facts


def _own_facts(config: _Config) -> dict[str, Any]:
    ours = config.get(OURS, {})
    return {str(key): value for key, value in ours.items()} if isinstance(ours, dict) else {}
