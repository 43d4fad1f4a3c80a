"""The ``.pt`` files of Dunefsky et al. (transcoder_circuits): a pickle, read without running anything in it.

torch's own unpickler for weights runs nothing; the one thing that it does not know in these files, the object that holds
the configuration, is put together as an inert record. A file that names anything else is refused, and the name told.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.processing import facts_of, off_the_mean
from circuitfind.dictionaries.sites import read_hook
from circuitfind.dictionaries.weights import bad, build, take
from circuitfind.errors import ModelError, UnsupportedError

SUFFIXES = (".pt",)
PICKLES = (".pkl", ".pkl.gz", ".bin", ".pth", ".ckpt")
"""Refused unopened."""

CONFIGS = (
    "sae_training.config.LanguageModelSAERunnerConfig",
    "sae_training.config.RunnerConfig",
    "sae_training.config.LanguageModelSAETrainingConfig",
)
"""Names of classes that hold nothing but settings."""


class Record:
    """Settings in place of the class that they were saved from; calling it does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})


def read_dunefsky(path: Path) -> Dictionary:
    """The transcoder or SAE of one file.

    Raises:
        ModelError: A damaged file, or one that names code.
        UnsupportedError: A hook that is none.
    """
    config, tensors = _parts(_load(path), path)
    hook, hook_out = config.get("hook_point"), config.get("out_hook_point")
    elsewhere = bool(config.get("is_transcoder"))
    if config.get("hook_point_head_index") is not None:
        raise UnsupportedError(
            "it reads one head alone",
            where=f"{path} (cfg.hook_point_head_index)",
            hint="dictionaries of all heads side by side (hook_z) are read",
        )
    layer, site_in = read_hook(hook, f"{path} (cfg.hook_point)")
    site_out, layer_out = site_in, layer
    if elsewhere:
        layer_out, site_out = read_hook(hook_out, f"{path} (cfg.out_hook_point)")
    if layer is None or layer_out != layer:
        raise UnsupportedError(
            f"it reads at {hook} and writes at {hook_out}",
            where=f"{path} (cfg)",
            hint="both must name the same layer, such as blocks.3.hook_mlp_out",
        )
    w_enc, b_enc, b_in = (take(tensors, name, path) for name in ("W_enc", "b_enc", "b_dec"))
    w_dec = take(tensors, "W_dec", path)
    b_out = take(tensors, "b_dec_out", path) if elsewhere else b_in
    if elsewhere:  # its input is less b_dec, which lies where it reads: another bias of the encoder
        if w_enc.ndim != 2 or b_in.shape != w_enc.shape[:1] or b_enc.shape != w_enc.shape[1:]:
            raise bad(
                f"W_enc is {list(w_enc.shape)}, b_dec {list(b_in.shape)}, b_enc {list(b_enc.shape)}",
                path,
                "they are [d_in, feature], [d_in] and [feature]",
            )
        b_enc = (b_enc.double() - b_in.double() @ w_enc.double()).to(torch.float32)
    weights: dict[str, Tensor | None] = {"w_enc": w_enc, "b_enc": b_enc, "w_dec": w_dec, "b_dec": b_out}
    weights = off_the_mean(weights, site_in, centred=not elsewhere)
    facts: dict[str, Any] = {"format": "transcoder_circuits", "hook_in": hook}
    if elsewhere:
        facts["hook_out"] = hook_out
    if isinstance(config.get("model_name"), str):
        facts["model_name"] = config["model_name"]
    return build(
        weights,
        where=path,
        kind="transcoder" if elsewhere else "sae",
        layer=layer,
        site_in=site_in,
        site_out=site_out,
        activation="relu",
        centred=not elsewhere,
        # That code loads its models with HookedTransformer.from_pretrained, which folds norms and takes means off.
        facts=facts | facts_of(site_in, folded=True, centred=True),
    )


def _load(path: Path) -> object:
    _check_archive(path)
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if strange := sorted(set(unknown) - set(CONFIGS)):
            raise ModelError(
                f"the file is a pickle that names '{strange[0][:100]}', which could run code; refused",
                where=str(path),
                hint="convert it where you trust it: save cfg.json and sae_weights.safetensors, as sae-lens does",
            )
        with torch.serialization.safe_globals([(Record, name) for name in CONFIGS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # torch and pickle raise anything on bytes that make no sense
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise bad(f"cannot be read: {lines[0][:200]}", path) from error


def _check_archive(path: Path) -> None:
    """A file of torch is a zip of uncompressed parts; an older pickle or a packed part is refused before it is opened."""
    try:
        if not zipfile.is_zipfile(path):
            raise ModelError(
                "the file is no archive of torch but a plain pickle or damaged; refused",
                where=str(path),
                hint="copy it again, or load it where you trust it and save it with torch.save or safetensors",
            )
        with zipfile.ZipFile(path) as archive:
            packed = [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise bad(f"the archive is damaged: {error}", path) from error
    if packed:
        raise bad(f"'{packed[0][:100]}' is compressed, which torch never does; refused", path)


def _parts(loaded: object, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors; a tensor may not be larger than the file (a view can repeat a few numbers without end)."""
    if not isinstance(loaded, dict) or "state_dict" not in loaded or "cfg" not in loaded:
        raise bad(
            "it does not hold 'cfg' and 'state_dict'", path, "only files of transcoder_circuits are read"
        )
    config, state = loaded["cfg"], loaded["state_dict"]
    settings = config.__dict__ if isinstance(config, Record) else config
    if not isinstance(settings, dict) or not isinstance(state, dict):
        raise bad(
            "'cfg' or 'state_dict' is of another kind", path, "only files of transcoder_circuits are read"
        )
    size = path.stat().st_size
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > size:
            raise bad(f"{name} declares {list(tensor.shape)}, more than the file holds", path)
    return {str(key): value for key, value in settings.items()}, tensors
