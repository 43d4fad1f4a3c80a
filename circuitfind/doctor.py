"""What ``circuitfind doctor`` looks at: versions, devices, Graphviz, folders, the embedded model."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import circuitfind

BRIDGE = "transformer_lens.model_bridge"
PACKAGES = (
    "torch",
    "transformer-lens",
    "transformers",
    "numpy",
    "networkx",
    "pydantic",
    "safetensors",
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: ``ok``, ``note`` (something works less well) or ``bad`` (something will fail)."""

    what: str
    state: str
    found: str
    hint: str = ""


def examine() -> Iterator[Finding]:
    yield Finding("circuitfind", "ok", circuitfind.__version__)
    good = sys.version_info >= (3, 10)
    yield Finding(
        "Python",
        "ok" if good else "bad",
        platform.python_version(),
        "" if good else "install Python 3.10 or newer",
    )
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "bad", "not installed", f"pip install {name}")
    yield from _torch()
    yield _engines()
    yield _graphviz()
    yield from _folders()
    yield from _trained()
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    yield Finding(
        "hub",
        "note" if offline else "ok",
        "offline by HF_HUB_OFFLINE" if offline else "asked only for hub names",
    )


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("device", "bad", f"torch cannot be imported: {error}", "reinstall torch")
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        free = torch.cuda.mem_get_info()[0]
        yield Finding("device", "ok", f"{names}; {_size(free)} free")
    else:
        yield Finding("device", "ok", f"cpu, {torch.get_num_threads()} threads (no CUDA device)")
    try:
        importlib.import_module(BRIDGE)
    except ImportError as error:
        yield Finding(
            "TransformerBridge",
            "bad",
            f"cannot be imported: {error}",
            'pip install "transformer-lens>=3.9,<5"',
        )


def _engines() -> Finding:
    from circuitfind.engine.base import ENGINES
    from circuitfind.machine import cores, gpus

    try:
        ray = f"ray {metadata.version('ray')}"
    except metadata.PackageNotFoundError:
        ray = ""
    shared = [f"processes ({cores()} cores{f', {gpus()} GPUs' if gpus() else ''})", *([ray] if ray else [])]
    return Finding(
        "engines",
        "ok",
        ", ".join([ENGINES[0], *shared]),
        "" if ray else 'for --engine ray: pip install "circuitfind[ray]"',
    )


def _graphviz() -> Finding:
    from circuitfind.output.draw import dot_binary, install_hint

    binary = dot_binary()
    if binary is None:
        return Finding("dot", "note", "not found: everything but pictures works", install_hint())
    told = subprocess.run([str(binary), "-V"], capture_output=True, text=True, check=False, timeout=30)
    return Finding("dot", "ok", f"{(told.stderr or told.stdout).strip()} ({binary})")


def _folders() -> Iterator[Finding]:
    from circuitfind.output.store import Store
    from circuitfind.task.spec import find_tasks, task_folders

    tasks = find_tasks()
    where = next((str(f) for f in task_folders() if f.is_dir()), "nowhere")
    yield Finding(
        "tasks",
        "ok" if tasks else "bad",
        f"{len(tasks)} found, first in {where}",
        "" if tasks else "set CIRCUITFIND_TASKS",
    )
    root = Store().root
    parent = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    if parent.is_dir() and os.access(parent, os.W_OK):
        free = shutil.disk_usage(parent).free
        state = "ok" if free > 200e6 else "note"
        yield Finding(
            "outputs",
            state,
            f"{root} ({_size(free)} free)",
            "" if state == "ok" else "make room, or use --outputs",
        )
    else:
        yield Finding(
            "outputs", "bad", f"{root} cannot be written to", "use --outputs or set CIRCUITFIND_OUTPUTS"
        )


def _trained() -> Iterator[Finding]:
    """The models whose weights are files of the package."""
    from circuitfind.zoo import TRAINED, trained_folder

    for name in TRAINED:
        try:
            yield Finding(name, "ok", str(trained_folder(name)))
        except FileNotFoundError as error:
            yield Finding(name, "bad", str(error), "reinstall circuitfind")


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
