"""Models that bring Python code along: refused unless the user asks for it with a flag. No torch here.

``auto_map`` in ``config.json`` or ``tokenizer_config.json`` names classes that ``transformers`` would fetch from beside the
weights and run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitfind.allowed import allowed
from circuitfind.config import offline
from circuitfind.errors import ModelError
from circuitfind.reading import read_json

FLAG = "--trust-remote-code"
MAP = "auto_map"
ADAPTER = "adapter_config.json"
FILES = ("config.json", "tokenizer_config.json")
"""Where code is named."""


def code_is_allowed(path: str, name: str, *, local: bool) -> bool:
    """Whether ``transformers`` may run code that a model brings along: true where it brings some, and the flag was given.

    Args:
        path: A folder or a hub name.
        name: What the user calls the model.
        local: It is a folder.

    Raises:
        ModelError: It brings some, and the flag was not given. Nothing of it has been read but JSON.
    """
    for file in FILES:
        found = _named(path, file, local)
        if not found:
            continue
        if allowed().trust_remote_code:
            return True
        raise ModelError(
            f"'{name}' brings its own Python code ({found}), which could do anything that you can; refused",
            where=f"{path}/{file} ({MAP})" if local else f"{file} ({MAP})",
            hint=f"read the code; if you trust it, give {FLAG}. Where transformers' own class does the same, "
            f"take {MAP} out of a copy of the folder instead",
        )
    return False


def check_folder(folder: Path, name: str) -> None:
    """Refuse files of a model folder that lead out of it.

    Raises:
        ModelError: It is an adapter of another model, or its index of weights names files elsewhere.
    """
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"'{name}' is an adapter ({ADAPTER}), whose weights belong to another model",
            where=str(folder),
            hint="merge it into its model where you have that, and save the whole (merge_and_unload, save_pretrained)",
        )
    for index in sorted(folder.glob("*.safetensors.index.json")):
        weights = _read(index).get("weight_map")
        for file in set(weights.values()) if isinstance(weights, Mapping) else ():
            if not isinstance(file, str) or file != Path(file).name or "\\" in file:
                raise ModelError(
                    f"the index of the weights names '{str(file)[:100]}', which is no file of this folder",
                    where=str(index),
                    hint="copy or download the model again",
                )


def _named(path: str, file: str, local: bool) -> str:
    """The code that a file names; empty where it names none."""
    config = _read(Path(path) / file) if local else _of_hub(path, file)
    found = config.get(MAP)
    if not found:
        return ""
    named = found.values() if isinstance(found, Mapping) else [found]
    flat = [one for value in named for one in (value if isinstance(value, list) else [value])]
    return next((str(one)[:100] for one in flat if one), "") or str(found)[:100]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path, words=True)
    except (OSError, ValueError, RecursionError):  # told by whoever needs the file
        return {}
    return found if isinstance(found, dict) else {}


def _of_hub(name: str, file: str) -> Mapping[str, Any]:
    """A JSON file of the hub; empty where there is none, which is told when the model is loaded."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(name, file, local_files_only=offline())
    except Exception:  # noqa: BLE001  # the client raises errors of several libraries
        return {}
    return _read(Path(path))
