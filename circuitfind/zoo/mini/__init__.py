"""mini: a small GPT-2 trained on generated English that shows nine known behaviours."""

from __future__ import annotations

from pathlib import Path

from circuitfind.zoo import trained_folder, weights_path

__all__ = ["TRANSCODERS", "WEIGHTS", "transcoders_folder", "weights_folder"]

WEIGHTS: Path = weights_path("mini")
TRANSCODERS: Path = WEIGHTS.parent / "transcoders"


def weights_folder() -> Path:
    """The folder of the trained model, in the Hugging Face format."""
    return trained_folder("mini")


def transcoders_folder() -> Path:
    """The folder of trained transcoders, one for each layer's MLP, in the format of sae-lens.

    Raises:
        FileNotFoundError: It is not there.
    """
    if not (TRANSCODERS / "layer_0" / "sae_weights.safetensors").is_file():
        raise FileNotFoundError(
            f"the transcoders of mini are not at {TRANSCODERS}; its README.md says how they are trained"
        )
    return TRANSCODERS
