"""Dictionaries written as sae-lens writes them, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.processing import KWARGS
from circuitfind.dictionaries.sae_lens import CONFIG, OURS, WEIGHTS
from circuitfind.dictionaries.sites import hook_name
from circuitfind.errors import RunError, UnsupportedError, UsageError

VERSION = "6.0.0"
"""Of sae-lens: the first whose layout this is. Without one its reader takes a file for an older one."""

_NAMES = {
    ("sae", "relu", False): "standard",
    ("sae", "jumprelu", False): "jumprelu",
    ("sae", "topk", False): "topk",
    ("transcoder", "relu", False): "transcoder",
    ("transcoder", "relu", True): "skip_transcoder",
    ("transcoder", "jumprelu", False): "jumprelu_transcoder",
    ("transcoder", "jumprelu", True): "jumprelu_skip_transcoder",
    ("transcoder", "topk", False): "topk_transcoder",
    ("transcoder", "topk", True): "topk_skip_transcoder",
}
_TOLD = ("model_name", "prepend_bos", "context_size", "dataset_path", "neuronpedia_id")
_REWRITTEN = ("format", "architecture", "hook_in", "hook_out", "sae_lens_version")


def save_dictionary(dictionary: Dictionary, folder: Path | str) -> Path:
    """Write ``cfg.json`` and ``sae_weights.safetensors`` into a new folder; what stood there before is replaced.

    Raises:
        UnsupportedError: A cross-layer transcoder or a skip connection of an SAE, which the format does not know.
        UsageError: The folder holds other things, or cannot be written.
        RunError: The disk is full.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    config, weights = _config(dictionary), _weights(dictionary)
    _check_target(target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        save_file(weights, temporary / WEIGHTS)
        # Without NaN: weights are finite, and JSON has no such numbers.
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
        (temporary / CONFIG).write_text(text, encoding="utf-8")
        _replace(temporary, target)
    except OSError as error:
        raise _explained(error, target) from error
    except Exception as error:  # safetensors has an error of its own for a full disk
        if type(error).__name__ != "SafetensorError":
            raise
        raise RunError(f"cannot write: {error}", where=str(target), hint="is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _replace(temporary: Path, target: Path) -> None:
    """The new folder in place of the old one, which goes only when the new one stands."""
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    if not target.exists():
        temporary.rename(target)
        return
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_target(target: Path) -> None:
    if not target.exists() and not target.is_symlink():
        return
    others = (
        []
        if not target.is_dir() or target.is_symlink()
        else sorted({p.name for p in target.iterdir()} - {CONFIG, WEIGHTS})
    )
    if target.is_symlink() or not target.is_dir() or others:
        what = f"holds other files ({others[0]})" if others else "is no folder of its own"
        raise UsageError(
            f"'{target}' {what}, and would be replaced",
            hint="give a new folder, or one of a saved dictionary",
        )


def _config(dictionary: Dictionary) -> dict[str, Any]:
    d = dictionary
    name = _NAMES.get((d.kind, d.activation, d.w_skip is not None))
    if name is None or d.w_dec.ndim != 2:
        raise UnsupportedError(
            f"the format of sae-lens knows no {d.kind} dictionary"
            + (" with a skip connection" if d.kind == "sae" else ""),
            where=d.source or None,
            hint="save one layer's transcoder or SAE",
        )
    metadata: dict[str, Any] = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "hook_name": hook_name(d.layer, d.site_in),
        **{key: d.facts[key] for key in _TOLD if key in d.facts},
    }
    if more := _more_facts(d):
        metadata[OURS] = more
    if d.kind == "transcoder":
        metadata["hook_name_out"] = hook_name(d.layer, d.site_out)
    if d.site_in == "mlp_hat" and d.facts.get("fold_ln") is not False:
        metadata[KWARGS] = {"fold_ln": True}  # before the norm's weight in every family
    config: dict[str, Any] = {
        "architecture": name,
        "d_in": d.d_in,
        "d_sae": d.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": d.centred and d.kind == "sae",
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if d.site_in == "z" else "none",
        "metadata": metadata,
    }
    if d.kind == "transcoder":
        config["d_out"] = d.d_out
    if d.activation == "topk":
        config["k"] = d.k
    return config


def _more_facts(dictionary: Dictionary) -> dict[str, Any]:
    """Facts that the format has no key for, as far as JSON can hold them."""
    found = {}
    for key, value in dictionary.facts.items():
        if key not in (*_TOLD, *_REWRITTEN):
            with contextlib.suppress(TypeError, ValueError):
                found[key] = json.loads(json.dumps(value, allow_nan=False))
    return found


def _weights(dictionary: Dictionary) -> dict[str, Tensor]:
    """Scales are folded in: the folder has no place for them."""
    d = dictionary
    b_enc, b_dec = d.b_enc, d.b_dec / d.scale_out
    if d.centred:
        # sae-lens takes the folded b_dec off the raw input of an SAE, and none off that of a transcoder.
        theirs = b_dec * d.scale_in if d.kind == "sae" else torch.zeros_like(b_dec)
        b_enc = b_enc + (theirs - d.b_dec) @ d.w_enc
    found = {
        "W_enc": d.w_enc * d.scale_in,
        "b_enc": b_enc,
        "W_dec": d.w_dec / d.scale_out,
        "b_dec": b_dec,
    }
    if d.threshold is not None:
        found["threshold"] = d.threshold
    if d.w_skip is not None:
        found["W_skip"] = (d.w_skip * (d.scale_in / d.scale_out)).T
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in found.items()}


def _explained(error: OSError, target: Path) -> UsageError | RunError:
    if os.access(target.parent, os.W_OK) or not target.parent.exists():
        return RunError(
            f"cannot write it: {error.strerror or error}",
            where=str(target),
            hint="make room or check the permissions, then give the same command again",
        )
    return UsageError("the folder cannot be written to", where=str(target.parent), hint="choose another one")
