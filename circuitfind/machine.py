"""What this machine has, without torch."""

from __future__ import annotations

import os
from pathlib import Path

UNKNOWN = 4 << 30
"""Bytes taken for free where the system does not say: any machine with a model on it has them."""


def free_memory() -> int:
    """Bytes of memory that are free now."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):  # not Linux
        return UNKNOWN


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> int:
    """CUDA devices that this process may use, as far as the system says."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    folder = Path("/proc/driver/nvidia/gpus")
    there = len(list(folder.iterdir())) if folder.is_dir() else 0
    return there if named is None else min(there, len([one for one in named.split(",") if one.strip()]))


def side_by_side(device: str) -> int:
    """How many processes a device is shared out over, unless somebody says more: one for each GPU, or for each core."""
    if device in ("auto", "cuda") and gpus():
        return gpus()
    return cores() if device in ("auto", "cpu") else 1
