"""The sizes that a model's configuration declares, held against its weights before a model of these sizes is made.

A model is built layer by layer from its configuration alone, and only then filled: a number in a file of a few hundred bytes
could otherwise keep the program busy for hours, or take all memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuitfind.errors import ModelError, shortened

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = (
    *(
        "hidden_size",
        "n_embd",
        "d_model",
        "intermediate_size",
        "n_inner",
        "ffn_dim",
        "vocab_size",
        "head_dim",
    ),
    *("num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "sliding_window"),
)
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx")
MAX_LAYERS = 1_000
"""Layers that a configuration may give however few the weights have; what lies between is told when these are read."""
MAX_TIMES = 64
"""How many times the largest side of a weight a width may be."""
MAX_POSITIONS = 1 << 24
_INSIDE = ("text_config",)
_NUMBERED = re.compile(r"\.([0-9]{1,6})\.")
_HINT = "config.json and the weights do not belong together, or config.json was changed"


def check_declared(config: Mapping[str, Any], weights: Sequence[Path], where: Path) -> None:
    """Refuse sizes that the weights cannot have.

    Args:
        config: What ``config.json`` holds.
        weights: The files beside it, whose headers are read.
        where: That file.

    Raises:
        ModelError: There is one, or it is no whole number above 0.
    """
    layers, largest = _of_weights(weights)
    for part in (config, *(config.get(key) for key in _INSIDE)):
        if not isinstance(part, Mapping):
            continue
        for key, most in (
            *((key, max(MAX_LAYERS, layers)) for key in LAYERS),
            *((key, MAX_TIMES * max(largest, 1024)) for key in WIDTHS),
            *((key, MAX_POSITIONS) for key in POSITIONS),
        ):
            _check(part.get(key), key, most, where)


def _check(value: Any, key: str, most: int, where: Path) -> None:
    if value is None:  # left out, or as the family has it
        return
    values = value if isinstance(value, list) else [value]
    for one in values:
        if type(one) is not int or one < 1:
            told = shortened(repr(one), 60)
            raise ModelError(f"{key} is {told}, not a whole number above 0", where=str(where), hint=_HINT)
        if one > most:
            raise ModelError(
                f"{key} is {one:,}, and the weights beside it are of a far smaller model",
                where=str(where),
                hint=_HINT,
            )


def _of_weights(weights: Sequence[Path]) -> tuple[int, int]:
    """How many numbered blocks the weights have, and their largest side."""
    from safetensors import safe_open

    numbers: set[int] = set()
    largest = 0
    for path in weights:
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (no mapping)
                numbers.update(int(found) for found in _NUMBERED.findall(f".{name}"))
                largest = max(largest, *handle.get_slice(name).get_shape(), 0)
    return len(numbers), largest
