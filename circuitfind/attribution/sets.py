"""Dictionaries one after the other, so that no more than one is in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from circuitfind.dictionaries import hub
from circuitfind.dictionaries.circuit_tracer import CONFIG, is_circuit_tracer, read_yaml
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.load import load_dictionaries
from circuitfind.dictionaries.sae_lens import is_sae_lens
from circuitfind.reading import expanded

_NUMBERED = re.compile(r"(?:layer|W_enc)_(\d{1,4})\.safetensors")


def stream_dictionaries(where: str | Path) -> Iterator[Dictionary]:
    """The dictionaries of a file, folder or hub name, each read when it is asked for.

    A set of circuit-tracer is read layer by layer and a folder of sae-lens folders one by one; other formats at once.

    Raises:
        ModelError, UnsupportedError, UsageError: As ``load_dictionaries``.
    """
    path = expanded(where)
    if not path.exists() and hub.is_hub_name(str(where)) and not str(where).startswith((".", "/", "~")):
        path = hub.fetch(str(where), None)
    layers = _layers(path) if path.is_dir() and is_circuit_tracer(path) else []
    inner = [] if not path.is_dir() or layers else sorted(p for p in path.iterdir() if _visible(p))
    if layers:
        for layer in layers:
            yield from load_dictionaries(path, layers=[layer])
    elif inner and all(is_sae_lens(p) for p in inner) and not is_sae_lens(path):
        for folder in inner:
            yield from load_dictionaries(folder)
    else:
        yield from load_dictionaries(path if path.exists() else where)


def _visible(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not path.name.startswith(".")


def _layers(folder: Path) -> list[int]:
    """The layers of a set of circuit-tracer."""
    named = read_yaml(folder / CONFIG).get("transcoders")
    if isinstance(named, list):
        return list(range(len(named)))
    found = (_NUMBERED.fullmatch(path.name) for path in folder.iterdir())
    return sorted({int(match.group(1)) for match in found if match})
