"""What of a model of the hub is on this machine, and whether the hub can be asked. No torch here."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def cached(name: str, file: str = "config.json") -> Path | None:
    """A file of a model in the hub's cache; None where it is not there.

    Raises:
        ValueError: No repository can have such a name.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError as error:
        raise ValueError(str(error)) from error
    return Path(found) if isinstance(found, str) else None


def has_weights(name: str) -> bool:
    """Whether a model's weights are in the hub's cache."""
    try:
        return any(cached(name, file) is not None for file in WEIGHTS)
    except ValueError:
        return False


def reachable() -> bool:
    """Whether the hub answers at all. With a proxy only the hub's client can tell."""
    from huggingface_hub import constants

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=5):
            return True
    except OSError:
        return False
