"""Training per-layer transcoders of a model on text: all layers from the same passes, the same again from the same seed."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from circuitfind.dictionaries.activations import Buffer, check_layers
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.settings import TranscoderSettings
from circuitfind.dictionaries.texts import Texts
from circuitfind.dictionaries.trainee import Trainee, finite
from circuitfind.errors import RunError, UsageError
from circuitfind.model.bridge import Model

__all__ = ["Told", "TranscoderSettings", "Transcoders", "train"]

TELL_EVERY = 25


@dataclass(frozen=True)
class Told:
    """How far a training is.

    Attributes:
        step, steps: Updates done, and all.
        layers: Running means by layer: ``fvu``, ``l0``, ``dead``.
    """

    step: int
    steps: int
    layers: dict[int, dict[str, float]]


@dataclass(frozen=True)
class Transcoders:
    """What a training gives.

    Attributes:
        dictionaries: By layer.
        facts: What it was determined by, and its last figures; plain data.
    """

    dictionaries: dict[int, Dictionary]
    facts: dict[str, Any]


def train(
    model: Model,
    texts: Texts,
    settings: TranscoderSettings,
    layers: Sequence[int] | None = None,
    *,
    checkpoint: Path | None = None,
    every: int = 250,
    progress: Callable[[Told], None] | None = None,
) -> Transcoders:
    """Train one transcoder for each layer.

    Args:
        model: Whose MLPs are learnt.
        texts: What it reads.
        settings: Of the training.
        layers: Which layers; all if None.
        checkpoint: Written every so many steps and read at the start, so that a stopped training goes on where it was.
        every: Steps between checkpoints.
        progress: Called now and then.

    Raises:
        UnsupportedError: The model has no MLPs.
        UsageError: A layer or the text does not fit, or the checkpoint is of another training.
        RunError: Losses became infinite.
    """
    chosen = check_layers(model, layers, settings.site)
    key = training_key(model, texts, settings, chosen)
    state = None if checkpoint is None else _read(checkpoint, key, model)
    work = _Training(model, texts, settings, chosen, state)
    for step in range(work.step, settings.steps):
        work.update()
        done = step + 1
        if done % TELL_EVERY == 0 or done == settings.steps:
            work.check()
            if progress is not None:
                progress(work.told())
        if checkpoint is not None and (done % every == 0 or done == settings.steps):
            _write(checkpoint, {"key": key, **work.state()})
    facts = {
        "settings": settings.as_dict(),
        "layers": chosen,
        "model_name": model.name,
        "model_fingerprint": model.fingerprint,
        "text": texts.key,
        "training_key": key,
        "last": {str(layer): figures for layer, figures in work.told().layers.items()},
    }
    return Transcoders(
        {
            layer: replace(t.dictionary(), facts={k: facts[k] for k in ("model_name", "model_fingerprint")})
            for layer, t in work.trainees.items()
        },
        facts,
    )


class _Training:
    """All layers and the stream that they learn from."""

    def __init__(
        self,
        model: Model,
        texts: Texts,
        settings: TranscoderSettings,
        layers: Sequence[int],
        state: dict[str, Any] | None,
    ) -> None:
        self.settings = settings
        at = (0, 0) if state is None else tuple(state["at"])
        self.buffer = Buffer(
            model,
            texts,
            layers,
            batch=settings.batch,
            tokens=settings.buffer,
            seed=settings.seed,
            site=settings.site,
            at=(int(at[0]), int(at[1])),
        )
        first = self.buffer.portion(0)
        self.trainees = {layer: Trainee(layer, settings, first[layer]) for layer in layers}
        self.step = 0
        if state is not None:
            self.step = int(state["step"])
            for layer, trainee in self.trainees.items():
                trainee.restore(state["layers"][layer])

    def update(self) -> None:
        batch = self.buffer.next()
        for layer, trainee in self.trainees.items():
            trainee.step(batch[layer], self.step)
        self.step += 1

    def told(self) -> Told:
        layers = {layer: {**t.told, "dead": t.dead} for layer, t in self.trainees.items()}
        return Told(self.step, self.settings.steps, layers)

    def check(self) -> None:
        for layer, trainee in self.trainees.items():
            if not finite(trainee):
                raise RunError(
                    f"the training of layer {layer} ran away at step {self.step}", hint="give a smaller --lr"
                )

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "at": list(self.buffer.at),
            "layers": {layer: trainee.state() for layer, trainee in self.trainees.items()},
        }


def training_key(model: Model, texts: Texts, settings: TranscoderSettings, layers: Sequence[int]) -> str:
    """Hash of all that a training is determined by."""
    parts = [1, settings.as_dict(), list(layers), model.fingerprint, texts.key]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path, key: str, model: Model) -> dict[str, Any] | None:
    """The checkpoint, if there is one.

    Raises:
        UsageError: It is damaged, or of another training.
    """
    if not path.is_file():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is no checkpoint at all
            found: dict[str, Any] = torch.load(path, map_location=model.device, weights_only=True)
        same = found["key"] == key
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        AttributeError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        raise UsageError(
            "the checkpoint is damaged", where=str(path), hint=f"remove {path.parent} and begin anew"
        ) from error
    if not same:
        raise UsageError(
            "the checkpoint is of a training with other settings, text or model",
            where=str(path),
            hint=f"give the same settings to go on with it, or remove {path.parent} to begin anew",
        )
    return found


def _write(path: Path, state: dict[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        fresh.unlink(missing_ok=True)  # a link there would be written through
        torch.save(state, fresh)
        fresh.replace(path)
    except (OSError, RuntimeError) as error:
        fresh.unlink(missing_ok=True)
        raise RunError(
            f"cannot write the checkpoint: {error}",
            where=str(path),
            hint="make room, or choose another folder",
        ) from error
