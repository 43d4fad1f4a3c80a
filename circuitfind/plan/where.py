"""Where the sizes of a model are that is not loaded: a file, a folder, the hub or its cache, the built-in table, the zoo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from circuitfind.config import offline
from circuitfind.errors import ModelError, UnsupportedError, UsageError, nearest
from circuitfind.model import hub
from circuitfind.model.configurations import (
    CONFIG,
    Configuration,
    from_table,
    read_configuration,
    shape_of,
    with_sizes,
)
from circuitfind.model.identity import model_folder
from circuitfind.model.published import PUBLISHED
from circuitfind.offload import current
from circuitfind.session import Session
from circuitfind.zoo import TRAINED, ZOO, is_planted, trained_folder

SIZE = 4
"""Bytes of a number: models are loaded in single precision."""


def configured(session: Session, given: Sequence[str], *, always: bool) -> tuple[Configuration, str] | None:
    """A configuration, and why it stands for the model; None for a model to load.

    Args:
        session: What names the model, and the device.
        given: As in ``Asked.model``.
        always: As in ``Asked``.

    Raises:
        ModelError: There is none, or it cannot be read.
        UnsupportedError: It is of a model that cannot be taken apart.
        UsageError: What is given makes no sense.
    """
    name = session.settings.model
    if given:
        return _given(name, given), "--model-config was given"
    folder = model_folder(name)
    if is_planted(name) or name in TRAINED:
        return (_of_zoo(name), "--from-config was given") if always else None
    if folder.is_dir():
        return _of_folder(session, folder, name, always)
    if folder.is_file():
        return read_configuration(folder, name), "a configuration was given"
    if name.startswith((".", "/", "~", "$")) or name.count("/") > 1:
        return None  # the loader says best what is wrong
    return _of_hub(session, name, always)


def _given(name: str, given: Sequence[str]) -> Configuration:
    """What ``--model-config`` says: a file, sizes over those of the model's own configuration, or sizes alone."""
    files = [text for text in given if "=" not in text]
    sizes = [text for text in given if "=" in text]
    if len(files) > 1:
        raise UsageError(
            "--model-config names two files", hint="give one, and sizes to put in place of its own"
        )
    base = None
    if files:
        base = read_configuration(model_folder(files[0]), name)
    elif not is_planted(name) and name not in TRAINED:
        base = _found(name)
    return with_sizes(base, sizes, name) if sizes else cast(Configuration, base)


def _found(name: str) -> Configuration | None:
    """The configuration of a folder or of a hub name, as far as it is on this machine."""
    folder = model_folder(name)
    if folder.is_file() or (folder / CONFIG).is_file():
        return read_configuration(folder, name)
    return _cached(name) or from_table(name)


def _of_zoo(name: str) -> Configuration:
    if name in TRAINED:
        return read_configuration(trained_folder(name), name)
    from circuitfind.model.load import planted

    content = {"format": "transformer-lens", "config": dict(planted(name).config)}
    return Configuration(name, shape_of(content, name), "the zoo")


def _of_folder(session: Session, folder: Path, name: str, always: bool) -> tuple[Configuration, str] | None:
    if not (folder / CONFIG).is_file():
        return None
    weights = any(folder.glob("*.safetensors"))
    if always:
        return read_configuration(folder, name), "--from-config was given"
    if not weights:
        pickles = any(one.suffix in (".bin", ".pt", ".pth", ".ckpt") for one in folder.iterdir())
        return None if pickles else (read_configuration(folder, name), "its weights are not there")
    return _if_too_large(session, lambda: read_configuration(folder, name))


def _of_hub(session: Session, name: str, always: bool) -> tuple[Configuration, str] | None:
    if hub.has_weights(name):
        if always:
            found = _cached(name) or from_table(name)
            return None if found is None else (found, "--from-config was given")
        return _if_too_large(session, lambda: _cached(name))
    found = _cached(name) or _fetched(name) or from_table(name)
    if found is not None:
        return found, "its weights are not on this machine"
    near = nearest(name, [*ZOO, *PUBLISHED])
    raise ModelError(
        f"cannot find the model '{name}', nor sizes of it: it is not in the zoo, no folder, "
        "not in the hub's cache and not in the built-in table, and the hub gave no config.json",
        hint=(f"did you mean '{near}'? Or give " if near else "give ")
        + "--model-config FILE, or sizes such as --model-config n_layers=32,n_heads=32,d_model=4096,d_vocab=32000",
    )


def _if_too_large(
    session: Session, read: Callable[[], Configuration | None]
) -> tuple[Configuration, str] | None:
    """The configuration of a model whose weights are here, if they do not fit."""
    try:
        known = read()
    except (ModelError, UnsupportedError):
        return None  # the loader says what is wrong, or knows it
    if known is None or current().placed:
        return None
    from circuitfind.model.load import pick_device
    from circuitfind.model.memory import free_bytes

    needed = SIZE * (known.shape.weights + known.shape.copies)
    return None if needed < free_bytes(pick_device(session.device)) else (known, "its weights do not fit")


def _cached(name: str) -> Configuration | None:
    """The configuration in the hub's cache."""
    try:
        path = hub.cached(name, CONFIG)
    except ValueError:
        return None
    if path is None:
        return None
    return replace(read_configuration(path, name), origin=f"{CONFIG} in the hub's cache")


def _fetched(name: str) -> Configuration | None:
    """The configuration from the hub: this one small file, no weights."""
    if offline() or not hub.reachable():
        return None
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(name, CONFIG))
    except Exception:  # noqa: BLE001  # the client raises errors of several libraries; there may be a table's entry
        return None
    return replace(read_configuration(path, name), origin=f"{CONFIG} of the hub")
