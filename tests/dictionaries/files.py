"""Files of every format, written by hand: nothing here uses the readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

D, F, OUT = 5, 11, 4
"""Widths that all differ, so that a transposed matrix cannot go unseen."""

Weights = dict[str, np.ndarray]


def weights(seed: int = 0, *, d_in: int = D, d_out: int = OUT, n_features: int = F) -> Weights:
    """Random weights as the papers write them: encoder [d_in, feature], decoder [feature, d_out]."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    return {
        "enc": draw(d_in, n_features),
        "b_enc": draw(n_features),
        "dec": draw(n_features, d_out),
        "b_dec": draw(d_out),
        "b_in": draw(d_in),
        "threshold": np.abs(draw(n_features)),
        "skip": draw(d_in, d_out),
    }


def inputs(d_in: int = D, n: int = 7) -> np.ndarray:
    return np.random.default_rng(99).normal(size=(n, d_in)).astype(np.float32)


# The published forwards, in float64.


def relu(pre: np.ndarray) -> np.ndarray:
    return np.maximum(pre, 0)


def jumprelu(threshold: np.ndarray) -> Any:
    return lambda pre: np.maximum(pre, 0) * (pre > threshold)


def topk(k: int) -> Any:
    def act(pre: np.ndarray) -> np.ndarray:
        out = np.zeros_like(pre)
        for row, values in enumerate(pre):
            best = np.argsort(-values)[:k]
            out[row, best] = np.maximum(values[best], 0)
        return out

    return act


def forward(
    w: Weights, x: np.ndarray, act: Any = relu, *, centre: Any = 0.0, skip: bool = False
) -> np.ndarray:
    """``act((x - centre) W_enc + b_enc) W_dec + b_dec [+ x W_skip]``."""
    w64 = {name: value.astype(np.float64) for name, value in w.items()}
    x = x.astype(np.float64)
    features = act((x - centre) @ w64["enc"] + w64["b_enc"])
    out: np.ndarray = features @ w64["dec"] + w64["b_dec"]
    return out + x @ w64["skip"] if skip else out


def gap(dictionary: Any, x: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, by the largest number."""
    ours = dictionary(torch.from_numpy(x)).double().numpy()
    assert ours.shape == wanted.shape
    return float(np.abs(ours - wanted).max() / max(1.0, np.abs(wanted).max()))


# Writers.


def write_sae_lens(
    folder: Path, w: Mapping[str, np.ndarray], architecture: str, /, *, layer: int = 3, **more: Any
) -> Path:
    """A folder in the spelling of version 6; ``more`` goes into cfg.json, None takes a key out."""
    folder.mkdir(parents=True, exist_ok=True)
    elsewhere = "transcoder" in architecture
    tensors = {"W_enc": w["enc"], "b_enc": w["b_enc"], "W_dec": w["dec"], "b_dec": w["b_dec"]}
    if "jumprelu" in architecture:
        tensors["threshold"] = w["threshold"]
    if "skip" in architecture:
        tensors["W_skip"] = np.ascontiguousarray(w["skip"].T)
    save_file(tensors, folder / "sae_weights.safetensors")
    hook = f"blocks.{layer}.ln2.hook_in" if elsewhere else f"blocks.{layer}.hook_resid_pre"
    metadata: dict[str, Any] = {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": hook}
    if elsewhere:
        metadata["hook_name_out"] = f"blocks.{layer}.hook_mlp_out"
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": w["enc"].shape[0],
        "d_sae": w["enc"].shape[1],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not elsewhere,
        "normalize_activations": "none",
        "metadata": metadata,
    }
    if elsewhere:
        config["d_out"] = w["dec"].shape[1]
    if "topk" in architecture:
        config["k"] = 3
    metadata |= more.pop("metadata", {})
    config |= more
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def write_set(folder: Path, sets: list[Weights], *, kind: str = "jumprelu_skip", **more: Any) -> Path:
    """A transcoder set of circuit-tracer: its encoders are [feature, d_in], its skips [d_out, d_in]."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, w in enumerate(sets):
        tensors = {
            "W_enc": np.ascontiguousarray(w["enc"].T),
            "b_enc": w["b_enc"],
            "W_dec": w["dec"],
            "b_dec": w["b_dec"],
        }
        if "jumprelu" in kind:
            tensors["activation_function.threshold"] = w["threshold"]
        if "skip" in kind:
            tensors["W_skip"] = np.ascontiguousarray(w["skip"].T)
        save_file(tensors, folder / f"layer_{i}.safetensors")
    write_yaml(folder, **more)
    return folder


def write_yaml(folder: Path, **more: Any) -> None:
    lines = {
        "model_name": "gpt2",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
    } | more
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items() if value is not None)
    (folder / "config.yaml").write_text(text)


def write_cross(folder: Path, n_layers: int = 3, *, threshold: bool = True) -> list[Weights]:
    """A cross-layer set; decoders of layer i are [feature, n_layers - i, d_out]."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = []
    for i in range(n_layers):
        w = weights(i)
        w["dec"] = np.random.default_rng(50 + i).normal(size=(F, n_layers - i, OUT)).astype(np.float32)
        tensors = {
            f"W_enc_{i}": np.ascontiguousarray(w["enc"].T),
            f"b_enc_{i}": w["b_enc"],
            f"b_dec_{i}": w["b_dec"],
        }
        if threshold:
            tensors[f"threshold_{i}"] = w["threshold"]
        save_file(tensors, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": w["dec"]}, folder / f"W_dec_{i}.safetensors")
        sets.append(w)
    write_yaml(folder, model_kind="cross_layer_transcoder", feature_input_hook="hook_resid_mid")
    return sets


def gemma_arrays(w: Weights) -> dict[str, np.ndarray]:
    return {
        "W_enc": w["enc"],
        "b_enc": w["b_enc"],
        "W_dec": w["dec"],
        "b_dec": w["b_dec"],
        "threshold": w["threshold"],
    }


def write_gemma_2(folder: Path, w: Weights, *, affine: bool, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name.replace("W_", "w_"): value for name, value in gemma_arrays(w).items()}
    if affine:
        tensors["affine_skip_connection"] = w["skip"]
    save_file(tensors, folder / "params.safetensors")
    config = {
        "hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output",
        "width": F,
        "model_name": "google/gemma-3-270m-it",
        "architecture": "jump_relu",
        "l0": 18,
        "affine_connection": affine,
        "type": "transcoder",
    } | more
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder
