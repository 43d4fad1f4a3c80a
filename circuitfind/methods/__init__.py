"""The registry of methods: names to the files that hold them, imported when asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitfind.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from circuitfind.methods.base import Method


@dataclass(frozen=True)
class Entry:
    """Where a method is, and what `circuitfind list methods` says of it without loading it."""

    path: str
    level: str
    summary: str
    source: str


METHODS: dict[str, Entry] = {
    "eap": Entry(
        "circuitfind.methods.eap:EAP",
        "edge",
        "edge attribution patching: every edge in two forward passes and one backward pass",
        "Syed et al. 2023, arXiv 2310.10348",
    ),
    "activation-patching": Entry(
        "circuitfind.methods.activation_patching:ActivationPatching",
        "node",
        "exact effect of every head and MLP, one patched forward pass each",
        "Heimersheim and Nanda 2024, arXiv 2404.15255",
    ),
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UsageError: There is none; the hint has the nearest name.
    """
    if name not in METHODS:
        raise UsageError(f"no method is named '{name}'", hint=did_you_mean(name, METHODS))
    module, _, attribute = METHODS[name].path.partition(":")
    method: Method = getattr(importlib.import_module(module), attribute)()
    return method
