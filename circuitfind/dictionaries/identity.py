"""What a set of dictionaries is, by hash, without reading it in. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from circuitfind.dictionaries import hub
from circuitfind.errors import ModelError
from circuitfind.reading import expanded

_READ = (".safetensors", ".npz", ".pt", "cfg.json", "config.json", "config.yaml", "activation_scaler.json")
"""Files that decide what dictionaries compute; ``training.json``, logs and pages beside them do not."""


def dictionaries_identity(where: str | Path) -> str:
    """Hash of the files of a set of dictionaries; the same for a copy of the folder elsewhere.

    Raises:
        ModelError: Nothing is there.
    """
    path = expanded(where)
    if not path.exists():
        if not hub.is_hub_name(str(where)):
            raise ModelError(
                f"'{where}' is no folder, no file and no hub name",
                hint="give a folder of dictionaries, or owner/repo:folder on the hub",
            )
        path = hub.fetch(str(where), None)
    files = (
        [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and _counts(p, path))
    )
    if not files:
        raise ModelError(f"'{where}' holds no dictionary", hint="give a folder of dictionaries")
    digest = hashlib.sha256()
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        digest.update(name.encode() + b"\0")
        with file.open("rb") as handle:
            while piece := handle.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()


def _counts(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.name.lower().endswith(_READ)
