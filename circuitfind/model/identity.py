"""What a model is, by hash, without loading it: so that a finished run is recognised in an instant. No torch here."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from circuitfind import zoo
from circuitfind.reading import expanded


def hash_files(folder: Path) -> str:
    """Hash of the files that decide what a model folder computes and reads, and of its true edges where they are known."""
    digest = hashlib.sha256()
    code = sorted(folder.glob("*.py")) if _brings_code(folder) else []
    names = (
        "config.json",
        "edges.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
    )
    for path in sorted(
        [
            *(folder / name for name in names),
            *folder.glob("*.safetensors"),
            *folder.glob("tokenizer.model"),
            *code,
        ]
    ):
        if path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as handle:
                while chunk := handle.read(1 << 24):
                    digest.update(chunk)
    return digest.hexdigest()


def _brings_code(folder: Path) -> bool:
    try:
        return b'"auto_map"' in (folder / "config.json").read_bytes()
    except OSError:
        return False


def model_folder(name: str) -> Path:
    """The folder that a model's name would be; variables are filled in, as in ``$CIRCUITFIND_MODELS/modadd-113``."""
    return expanded(os.path.expandvars(name))


def identity(name: str) -> str | None:
    """Hash of a model of the zoo or of a local folder; None for hub names and for what is not there.

    Raises:
        ModelError: The zoo has no such model.
    """
    if zoo.is_zoo(name):
        kind, seed = zoo.split_zoo(name)
        if kind in zoo.TRAINED:
            return hash_files(zoo.weights_path(kind))
        digest = hashlib.sha256(f"{kind}:{seed}".encode())
        for path in sorted((Path(zoo.__file__).parent / "planted").glob("*.py")):
            digest.update(path.read_bytes())
        return digest.hexdigest()
    folder = model_folder(name)
    return hash_files(folder) if folder.is_dir() else None
