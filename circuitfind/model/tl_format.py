"""Models in TransformerLens format: the parameter names and shapes of HookedTransformer, run by the native bridge.

Thousands of research checkpoints are kept so; planted models are written so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitfind.errors import ModelError, UnsupportedError, nearest, shortened
from circuitfind.model.bridge import Model
from circuitfind.model.quiet import quiet
from circuitfind.offload import current
from circuitfind.reading import one_line


def load_tl(
    folder: Path,
    config: Mapping[str, Any],
    weights: list[Path],
    name: str,
    device: torch.device,
    fingerprint: str,
) -> Model:
    from safetensors.torch import load_file

    if not isinstance(config.get("config"), dict):
        raise ModelError(
            "the key 'config' is missing",
            where=str(folder / "config.json"),
            hint="it holds the model's sizes",
        )
    state: dict[str, Tensor] = {}
    for path in weights:
        try:
            state.update(load_file(path))
        except Exception as error:  # safetensors and torch raise errors of several kinds
            raise ModelError(
                f"the weights are damaged: {one_line(error)}",
                where=str(path),
                hint="copy or download the file again",
            ) from error
    _check_sizes(config["config"], state, str(folder / "config.json"))
    return boot_native(
        config["config"], state, name, device, fingerprint, source=f"folder: {folder.resolve()}"
    )


_SIZES = ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_vocab")
_MORE_SIZES = ("d_mlp", "d_vocab_out", "n_key_value_heads")
_MAX_MASKS = 8_000_000_000
"""Bytes of the masks of all layers, which the native bridge makes before anything is run."""


def _check_sizes(config: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> None:
    """Hold the sizes that a file gives against its weights, before a model of these sizes is made."""
    hint = "the folder's config.json and its weights do not belong together"
    largest = max((max(tensor.shape, default=1) for tensor in state.values()), default=0)
    for key in (*_SIZES, *_MORE_SIZES):
        value = config.get(key)
        if value is None and key in _MORE_SIZES:
            continue
        if key == "d_vocab_out" and value == -1:  # as many as are read
            continue
        if key == "d_mlp" and config.get("attn_only"):  # TransformerLens writes it all the same
            continue
        if type(value) is not int or value < 1:
            raise ModelError(
                f"{key} is {shortened(repr(value), 60)}, not a whole number above 0", where=where, hint=hint
            )
        if key not in ("n_layers", "n_ctx", "n_heads", "n_key_value_heads") and value > largest:
            raise ModelError(f"{key} is {value:,}, and no weight has so many", where=where, hint=hint)
    blocks = {key.split(".")[1] for key in state if key.startswith("blocks.") and key.count(".") > 1}
    layers, heads, ctx = config["n_layers"], config["n_heads"], config["n_ctx"]
    if layers != len(blocks):
        raise ModelError(
            f"n_layers is {layers:,}, and there are weights of {len(blocks)} layers", where=where, hint=hint
        )
    if heads > largest or heads % (config.get("n_key_value_heads") or heads):
        raise ModelError(
            f"n_heads is {heads:,}, which does not fit n_key_value_heads or the weights",
            where=where,
            hint=hint,
        )
    if layers * ctx * ctx > _MAX_MASKS:
        raise ModelError(
            f"n_ctx is {ctx:,}, and the masks of so many positions take more than {_MAX_MASKS:,} bytes",
            where=where,
            hint="write a smaller n_ctx where positions are rotated; prompts are short",
        )


def boot_native(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    name: str,
    device: torch.device,
    fingerprint: str,
    *,
    source: str,
) -> Model:
    if current().placed:
        raise UnsupportedError(
            f"the weights of {name} cannot be placed: it is in TransformerLens format",
            hint="leave out --device-map and --max-memory, or give the model as a Hugging Face folder",
        )
    kind = config.get("normalization_type")
    if kind is not None and str(kind).upper() not in (
        "LN",
        "LNPRE",
        "RMS",
        "RMSPRE",
    ):  # run as LayerNorm otherwise
        raise ModelError(
            f"the configuration names a normalisation '{kind}' that is not known",
            where=name,
            hint="LN, LNPre, RMS, RMSPre and null are",
        )
    with quiet():
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge

        try:
            settings = TransformerBridgeConfig(**{**config, "device": str(device)})
            bridge = TransformerBridge.boot_native(settings)
        except Exception as error:  # it trusts its configuration, and raises whatever comes of a bad one
            raise ModelError(
                f"the configuration is not one of a TransformerLens model: {one_line(error)}",
                where=name,
                hint="compare its config.json",
            ) from error
    own = bridge.state_dict()
    found = _native_state(state, own, name)
    bridge.load_state_dict(found)
    with quiet():
        bridge.to(device)
    out = int(config.get("d_vocab_out") or config["d_vocab"])
    return Model(bridge, name=name, fingerprint=fingerprint, tokenizer=None, source=source, n_vocab_out=out)


def _native_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """HookedTransformer's parameters under the names and in the shapes of the native bridge."""
    # With grouped-query attention HookedTransformer stores its key/value weights as _W_K, _b_K, ...
    state = {key.replace(".attn._", ".attn."): tensor for key, tensor in state.items()}
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, wanted in own.items():
        source, transform = _legacy_name(key)
        used.add(source)
        if source not in state:
            if source.endswith((".b_O", ".b_Q", ".b_K", ".b_V", ".b_in", ".b_out", ".b_U")):
                found[key] = torch.zeros_like(wanted)
                continue
            near = nearest(source, state)
            raise ModelError(
                f"the weights lack '{source}'" + (f" (nearest: '{near}')" if near else ""),
                where=name,
                hint="the folder's config.json and its weights do not belong together",
            )
        try:
            tensor = transform(state[source])
        except (IndexError, RuntimeError):  # it has other axes
            tensor = state[source]
        if tensor.shape != wanted.shape:
            raise ModelError(
                f"'{source}' has the shape {tuple(state[source].shape)}, which config.json does not give",
                where=name,
                hint="the folder's config.json and its weights do not belong together",
            )
        found[key] = tensor.to(wanted.dtype).contiguous()
    # A weight that the native model has no place for (such as a bias of a gated MLP) would be lost in silence.
    lost = [k for k, t in state.items() if k not in used and not _is_constant(k) and bool(t.any())]
    if lost:
        raise UnsupportedError(
            f"the model has no place for the weight '{lost[0]}'"
            + (f" and {len(lost) - 1} more" if lost[1:] else ""),
            where=name,
            hint="the folder's config.json and its weights do not belong together, or TransformerLens cannot run such a model",
        )
    return found


def _is_constant(key: str) -> bool:
    """HookedTransformer saves its masks and rotation tables beside its weights."""
    return key.rpartition(".")[2] in ("mask", "IGNORE", "rotary_sin", "rotary_cos", "alibi")


def _legacy_name(key: str) -> tuple[str, Any]:
    """The HookedTransformer name behind a native bridge's key, and how its tensor is turned."""
    parts = key.split(".")
    kind = parts[-1]
    if parts[0] in ("embed", "pos_embed"):
        return f"{parts[0]}.{'W_E' if parts[0] == 'embed' else 'W_pos'}", lambda t: t
    if parts[0] == "unembed":
        return ("unembed.W_U", lambda t: t.T) if kind == "weight" else ("unembed.b_U", lambda t: t)
    if "ln" in parts[-2]:
        return ".".join([*parts[:-1], "w" if kind == "weight" else "b"]), lambda t: t
    head = ".".join(parts[:-2])
    part = parts[-2].removeprefix("fc_")
    if part in ("q", "k", "v"):
        if kind == "weight":
            return f"{head}.W_{part.upper()}", lambda t: t.transpose(1, 2).flatten(0, 1)
        return f"{head}.b_{part.upper()}", lambda t: t.flatten()
    if part == "o":
        return (
            (f"{head}.W_O", lambda t: t.flatten(0, 1).T) if kind == "weight" else (f"{head}.b_O", lambda t: t)
        )
    return (f"{head}.W_{part}", lambda t: t.T) if kind == "weight" else (f"{head}.b_{part}", lambda t: t)
