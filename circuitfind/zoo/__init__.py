"""Models that come with circuitfind. Names only: nothing is loaded here."""

from __future__ import annotations

from circuitfind.errors import ModelError, did_you_mean

ZOO: dict[str, str] = {
    "mini": "a small GPT-2 trained on generated English, with nine behaviours in it",
    "planted/induction": "written weights: a previous-token head and an induction head",
    "planted/ioi-planted": "written weights: duplicate-token, S-inhibition and name-mover heads",
    "planted/and-gate": "written weights: two heads that are jointly necessary",
    "planted/or-gate": "written weights: two heads that are each sufficient",
}


def is_zoo(name: str) -> bool:
    """Whether the name is meant for the zoo, known or not."""
    return name == "mini" or name.startswith("planted/")


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
