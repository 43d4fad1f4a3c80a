"""Dictionaries on the Hugging Face hub: which files are wanted, and where they lie on this disk."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, urlsplit

from circuitfind.errors import ModelError, UsageError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PART = re.compile(r"[\w.,=+-]+(?:/[\w.,=+-]+)*")
_LAYER = re.compile(r"(?:layers?[._]|blocks\.|W_enc_|W_dec_|resid_\w+_)(\d{1,4})(?!\d)")
_CONFIGS = ("cfg.json", "config.json", "config.yaml", "activation_scaler.json")
_WEIGHTS = (".safetensors", ".npz", ".pt")
MOST = 200
"""Files of weights that are fetched for one name."""


def is_hub_name(where: str) -> bool:
    """``owner/repo`` or ``owner/repo:folder``."""
    name, _, folder = where.partition(":")
    safe = not folder or (_PART.fullmatch(folder) is not None and ".." not in folder.split("/"))
    return _NAME.fullmatch(name) is not None and safe


def fetch(where: str, layers: Sequence[int] | None) -> Path:
    """The folder or file on this disk of a hub name.

    Raises:
        ModelError: No such repository or folder, or no network.
        UsageError: So many files that a folder should be named.
    """
    name, _, folder = where.partition(":")
    folder = folder.strip("/")
    if _offline():
        return _cached(name, folder, where)
    wanted = _wanted(_listing(name, where), folder, layers)
    if not wanted:
        raise ModelError(
            f"'{where}' holds no dictionary" + ("" if layers is None else f" of layers {list(layers)}"),
            hint="name a folder of the repository behind a colon: owner/repo:folder",
        )
    weights = [file for file in wanted if file.endswith(_WEIGHTS)]
    if len(weights) > MOST:
        examples = sorted({str(PurePosixPath(file).parent) for file in weights})[:3]
        raise UsageError(
            f"'{where}' holds {len(weights)} files of weights",
            hint=f"name one folder, such as {name}:{examples[0]}, or some layers",
            details=examples,
        )
    root = Path(_snapshot(name, wanted, where))
    return root / folder if folder else root


def fetch_file(uri: str) -> Path:
    """One file that a circuit-tracer set names: ``hf://owner/repo/path?revision=main``."""
    from huggingface_hub import hf_hub_download

    parts = urlsplit(uri)
    repository, _, path = parts.path.lstrip("/").partition("/")
    name = f"{parts.netloc}/{repository}"
    if not _NAME.fullmatch(name) or not _PART.fullmatch(path) or ".." in path.split("/"):
        raise ModelError(
            f"'{uri[:200]}' is no path on the hub", hint="such as hf://owner/repo/folder/file.safetensors"
        )
    revision = parse_qs(parts.query).get("revision", [None])[0]
    try:
        return Path(hf_hub_download(name, path, revision=revision, local_files_only=_offline()))
    except Exception as error:  # the client raises errors of several libraries
        raise _error(uri, error) from error


def _wanted(files: Sequence[str], folder: str, layers: Sequence[int] | None) -> list[str]:
    """The files of a folder that a reader may ask for; of some layers only where names tell them."""
    found = []
    for file in files:
        if folder and file != folder and not file.startswith(f"{folder}/"):
            continue
        number = _LAYER.search(file)
        crossing = PurePosixPath(file).name.startswith(
            ("W_enc_", "W_dec_")
        )  # such a set is counted by its files
        if layers is not None and number is not None and int(number.group(1)) not in layers and not crossing:
            continue
        if PurePosixPath(file).name in _CONFIGS or file.endswith(_WEIGHTS):
            found.append(file)
    return found


def _listing(name: str, where: str) -> list[str]:
    from huggingface_hub import HfApi

    try:
        return list(HfApi().list_repo_files(name))
    except Exception as error:
        raise _error(where, error) from error


def _snapshot(name: str, files: Sequence[str], where: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:
        raise _error(where, error) from error


def _cached(name: str, folder: str, where: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        root = Path(snapshot_download(name, local_files_only=True))
    except Exception as error:
        raise _error(where, error) from error
    path = root / folder if folder else root
    if not path.exists():
        raise ModelError(
            f"'{where}' is not in the hub's cache, and the network is switched off (HF_HUB_OFFLINE)",
            hint="fetch it once with the network on, or give a local folder",
        )
    return path


def _error(where: str, error: Exception) -> ModelError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return ModelError(
        f"cannot fetch '{where[:200]}': there is no such folder here, and the hub did not give it",
        hint="give a local folder or file, or owner/repo:folder; hub names need the network or a filled cache",
        details=[lines[0][:300] if lines else type(error).__name__],
    )


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
