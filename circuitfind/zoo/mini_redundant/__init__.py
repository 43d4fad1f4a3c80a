"""mini-redundant: mini trained with attention layers left out at random, so that heads may stand in for others."""

from __future__ import annotations

from pathlib import Path

from circuitfind.zoo import trained_folder, weights_path

__all__ = ["WEIGHTS", "weights_folder"]

WEIGHTS: Path = weights_path("mini-redundant")


def weights_folder() -> Path:
    """The folder of the trained model, in the Hugging Face format."""
    return trained_folder("mini-redundant")
