"""circuitfind: find the circuit behind a behaviour of a language model, and measure how much of it the circuit carries.

    >>> import circuitfind
    >>> found = circuitfind.discover("ioi", "mini")
    >>> found.circuit.edges, found.summary["evaluations"]

Names are loaded when they are used, so that importing this costs nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Libraries read these when they are imported. Nobody is told who uses what, and the hub's bot is not asked to convert weights.
for _switch in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_SAFETENSORS_CONVERSION"):
    os.environ.setdefault(_switch, "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__version__ = "0.1.0"
__all__ = [
    "Circuit",
    "CircuitfindError",
    "Scores",
    "allowing",
    "discover",
    "evaluate",
    "export",
    "find_backups",
    "load_task",
    "offloaded",
    "open_run",
    "patch",
    "prune",
    "report",
]

if TYPE_CHECKING:
    from circuitfind.allowed import allowing
    from circuitfind.api import discover, evaluate, export, find_backups, open_run, patch, prune, report
    from circuitfind.circuit.graph import Circuit
    from circuitfind.circuit.scores import Scores
    from circuitfind.errors import CircuitfindError
    from circuitfind.offload import offloaded
    from circuitfind.task.spec import load_task

_WHERE = {
    "allowing": "circuitfind.allowed",
    "discover": "circuitfind.api",
    "evaluate": "circuitfind.api",
    "export": "circuitfind.api",
    "find_backups": "circuitfind.api",
    "open_run": "circuitfind.api",
    "patch": "circuitfind.api",
    "prune": "circuitfind.api",
    "report": "circuitfind.api",
    "Circuit": "circuitfind.circuit.graph",
    "Scores": "circuitfind.circuit.scores",
    "CircuitfindError": "circuitfind.errors",
    "load_task": "circuitfind.task.spec",
    "offloaded": "circuitfind.offload",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'circuitfind' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
