"""mini: a small GPT-2 trained on generated English that shows nine known behaviours."""

from __future__ import annotations

from pathlib import Path

from circuitfind.zoo import trained_folder, weights_path

__all__ = ["WEIGHTS", "weights_folder"]

WEIGHTS: Path = weights_path("mini")


def weights_folder() -> Path:
    """The folder of the trained model, in the Hugging Face format."""
    return trained_folder("mini")
