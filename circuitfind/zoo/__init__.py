"""Models that come with circuitfind. Names only: nothing is loaded here."""

from __future__ import annotations

from pathlib import Path

from circuitfind.errors import ModelError, did_you_mean

ZOO: dict[str, str] = {
    "mini": "a small GPT-2 trained on generated English, with nine behaviours in it",
    "planted/induction": "written weights: a previous-token head and an induction head",
    "planted/ioi-planted": "written weights: duplicate-token, S-inhibition and name-mover heads",
    "planted/and-gate": "written weights: two heads that are jointly necessary",
    "planted/or-gate": "written weights: two heads that are each sufficient",
    "planted/gated-backup": "written weights: a head, and a backup that wakes without it",
    "planted/ln-repair": "written weights: two heads that a final LayerNorm weighs against each other",
    "planted/relief": "written weights: a head, and a negative one that takes part of its answer back",
    "planted/co-workers": "written weights: two heads that add up",
    "planted/three-way": "written weights: two heads, and a backup that wakes without both",
    "planted/single-blind": "written weights: backups that no score of the intact model shows, and decoys",
    "planted/second-order": "written weights: a head, its backup, and a backup for both",
    "planted/inner-backup": "written weights: a head that feeds another one, and a backup that feeds it instead",
    "planted/ioi-redundant": "written weights: name movers, their backups and negative heads, under LayerNorm",
    "planted/neuron-lookup": "written weights: three facts in two neurons and a group of neurons, with known features",
    "planted/gated-lookup": "written weights: the same in a gated MLP",
    "planted/saturated-lookup": "written weights: the same with a group of which any one neuron can go unnoticed",
    "planted/tracr-reverse": "written weights: reads a sequence backwards, as Tracr would compile it",
    "planted/tracr-xproportion": "written weights: the share of x so far, as Tracr would compile it",
    "mini-redundant": "mini trained with attention layers left out at random, so that heads may stand in for others",
}

TRAINED: dict[str, str] = {"mini": "", "mini-redundant": " --drop-attention 0.15"}
"""Models whose weights were trained and are files of the package, with the options of their training."""


def is_planted(name: str) -> bool:
    """Whether the name is meant for a model whose weights are written when it is asked for, known or not."""
    return name.startswith("planted/")


def is_zoo(name: str) -> bool:
    """Whether the name is meant for the zoo, known or not."""
    return name in TRAINED or is_planted(name)


def has_dictionaries(name: str) -> bool:
    """Whether transcoders come with a model."""
    from circuitfind.zoo.planted import NEURONS

    return name == "mini" or name.partition(":")[0] in {f"planted/{one}" for one in NEURONS}


def weights_path(name: str) -> Path:
    """Where the weights of a trained model belong; those of ``mini-redundant`` are in ``mini_redundant``."""
    return Path(__file__).resolve().parent / name.replace("-", "_") / "weights"


def trained_folder(name: str) -> Path:
    """The folder of a trained model, in the Hugging Face format.

    Raises:
        FileNotFoundError: It is not there.
    """
    folder = weights_path(name)
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"the weights of {name} are not at {folder}; "
            f"train them with: python -m circuitfind.zoo.mini.train{TRAINED[name]} --out {folder}"
        )
    return folder


def split_zoo(name: str) -> tuple[str, int]:
    """``planted/induction:7`` is the model ``planted/induction`` drawn from seed 7 (0 without a number).

    Raises:
        ModelError: The zoo has no such model, or the seed is no number.
    """
    kind, colon, seed = name.partition(":")
    if kind not in ZOO:
        raise ModelError(f"the zoo has no model '{kind}'", hint=did_you_mean(kind, ZOO))
    if colon and not seed.isdecimal():
        raise ModelError(f"'{seed}' is no seed", where=name, hint=f"write a whole number, as in {kind}:7")
    return kind, int(seed) if colon else 0
