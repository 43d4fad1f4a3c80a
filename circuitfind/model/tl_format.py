"""Models in TransformerLens format: the parameter names and shapes of HookedTransformer, run by the native bridge.

Thousands of research checkpoints are kept so; planted models are written so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitfind.errors import ModelError, UnsupportedError, nearest
from circuitfind.model.bridge import Model
from circuitfind.model.quiet import quiet


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
        state.update(load_file(path))
    return boot_native(
        config["config"], state, name, device, fingerprint, source=f"folder: {folder.resolve()}"
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
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(
                f"the configuration is not one of a TransformerLens model: {error}",
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
        tensor = transform(state[source])
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
