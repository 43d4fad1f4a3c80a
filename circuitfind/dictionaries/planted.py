"""Transcoders of planted models, whose features are known: see ``Planted.units``."""

from __future__ import annotations

from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.errors import ModelError
from circuitfind.zoo.planted import NEURONS, Planted, PlantedDictionary


def planted_dictionaries(planted: Planted) -> tuple[Dictionary, ...]:
    """A transcoder for each layer of a planted model, in order of layers.

    ``planted.units.features`` says which feature is which unit, ``planted.units.feature_roles`` what the others are.

    Raises:
        ModelError: None were written for this model.
    """
    if planted.units is None:
        raise ModelError(
            f"no transcoders come with planted/{planted.name}",
            hint=f"they come with {', '.join(f'planted/{name}' for name in NEURONS)}",
        )
    source = f"zoo: planted/{planted.name}:{planted.seed}"
    return tuple(_read(found, source) for found in planted.units.dictionaries)


def _read(found: PlantedDictionary, source: str) -> Dictionary:
    return Dictionary(
        kind="transcoder",
        layer=found.layer,
        site_in="mlp_normed",
        site_out="mlp_out",
        activation="relu" if found.threshold is None else "jumprelu",
        w_enc=found.w_enc,
        b_enc=found.b_enc,
        w_dec=found.w_dec,
        b_dec=found.b_dec,
        threshold=found.threshold,
        source=source,
    )
