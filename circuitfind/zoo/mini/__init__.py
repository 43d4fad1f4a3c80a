"""mini: a small GPT-2 trained on generated English that shows nine known behaviours."""

from __future__ import annotations

from pathlib import Path

__all__ = ["WEIGHTS", "weights_folder"]

WEIGHTS: Path = Path(__file__).resolve().parent / "weights"


def weights_folder() -> Path:
    """The folder of the trained model, in the Hugging Face format."""
    if not (WEIGHTS / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"the weights of mini are not at {WEIGHTS}; "
            f"train them with: python -m circuitfind.zoo.mini.train --out {WEIGHTS}"
        )
    return WEIGHTS
