"""The command that makes a run again, from its manifest alone: everything that decides its result, spelt out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import circuitfind
from circuitfind.config import DEFAULT_EVALUATIONS

SWITCHES = {
    "counterfactual": None,
    "positions": "none",
    "precision": "fp32",
    "dictionaries": None,
    "model_b": None,
}
"""Options that are told where they are not as by default."""


def reproduce(manifest: Mapping[str, Any]) -> str:
    """The command line, quoted for a shell.

    That of ``discover`` is put together from the resolved settings, so that defaults which a task or a later version
    changes do not matter. Other commands are told as they were given.
    """
    config = manifest["config"]
    settings = config.get("settings", {})
    if config.get("saes") or "backups" in config or "rule" not in settings:
        return shlex.join(["circuitfind", *manifest["command"][1:]])
    words = ["circuitfind", "discover", _task(manifest), "--model", settings["model"]]
    words += ["--method", settings["method"]]
    for name, value in settings.get("options", {}).items():
        words += ["--option", f"{name}={_text(value)}"]
    for name in ("metric", "ablation", "direction"):
        words += [f"--{name}", settings[name]]
    for name, default in SWITCHES.items():
        if settings.get(name) not in (default, None):
            words += [f"--{name.replace('_', '-')}", _text(settings[name])]
    rule = settings["rule"]
    words += [
        w
        for name in ("faithfulness", "edges", "threshold")
        if rule[name] is not None
        for w in (f"--{name}", _text(rule[name]))
    ]
    if rule["evaluations"] != DEFAULT_EVALUATIONS:
        words += ["--evaluations", str(rule["evaluations"])]
    if settings.get("nodes", "heads,mlps") != "heads,mlps":  # older runs know no other
        words += ["--nodes", settings["nodes"], "--errors", settings["errors"]]
    if settings["count"] is not None:
        words += ["--count", str(settings["count"])]
    words += ["--seed", str(settings["seed"]), "--min-accuracy", _text(settings["min_accuracy"])]
    words += ["--drop-bad-pairs"] if settings["drop_bad_pairs"] else []
    words += [] if settings.get("backups", True) else ["--no-backups"]
    words += ["--include-backups"] if settings.get("include_backups") else []
    return shlex.join(words)


def _task(manifest: Mapping[str, Any]) -> str:
    """The name of a task that comes with the program, else the file it was read from."""
    name, file = str(manifest["task"]), manifest.get("task_file")
    if file is None:
        return name
    package, path = Path(circuitfind.__file__).resolve().parent, Path(file)
    shipped = path.parent in (package / "_tasks", package.parent / "tasks")
    return name if shipped and path.stem == name else str(file)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)
