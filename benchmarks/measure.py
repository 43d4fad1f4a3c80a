"""Time in turns, and memory in a process of its own."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Closure

SHORTEST = 0.2
"""Seconds: a side that takes less runs several times in a turn."""

LONG = 15
"""Seconds: a side that takes more runs once where it runs alone."""


@dataclass(frozen=True)
class Times:
    """Seconds of every side, turn by turn, and what each returned last."""

    turns: list[dict[str, float]]
    results: dict[str, Any]

    @property
    def fastest(self) -> dict[str, float]:
        return {name: min(turn[name] for turn in self.turns) for name in self.turns[0]}


def take_turns(sides: Mapping[str, Closure], repeats: int, device: str) -> Times:
    """Run the sides one after another, again and again: what disturbs one disturbs its neighbours too.

    Seconds of CPU time on a CPU; on a GPU seconds between two events in its queue. A first turn warms up and says how often
    each side runs in a turn.
    """
    single_thread()
    often: dict[str, int] = {}
    results: dict[str, Any] = {}
    turns: list[dict[str, float]] = []
    for turn in range(repeats + 1):
        found: dict[str, float] = {}
        for name, run in sides.items():
            gc.collect()
            clock = Clock(device)
            for _ in range(often.get(name, 1)):
                results[name] = run()
            found[name] = clock.seconds() / often.get(name, 1)
        if turn:
            turns.append(found)
        else:
            often = {name: max(1, math.ceil(SHORTEST / max(took, 1e-4))) for name, took in found.items()}
    return Times(turns, results)


def single_thread() -> None:
    import torch

    torch.set_num_threads(1)


class Clock:
    """Time from now on: of the CPU, or of a GPU, which is waited for at both ends and nowhere between them."""

    def __init__(self, device: str) -> None:
        self._cpu = device == "cpu"
        if self._cpu:
            self._start = time.process_time()
            return
        import torch

        torch.cuda.synchronize()
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._begin.record()

    def seconds(self) -> float:
        """Until now; to be asked once."""
        if self._cpu:
            return time.process_time() - self._start
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3


@dataclass(frozen=True)
class Alone:
    """One side in a fresh process: seconds of its faster run, and MB at its peak beyond the loaded model."""

    seconds: float
    extra: float


def alone(case: Case, side: str) -> Alone | None:
    """Measure a side in a fresh process; None where the system does not tell a process's peak."""
    if case.device == "cpu" and sys.platform != "linux":
        return None
    root = str(Path(__file__).resolve().parent.parent)
    code = (
        f"import sys; sys.path.insert(0, {root!r}); from benchmarks.measure import report; "
        f"report({str(case.folder)!r}, {case.shape!r}, {case.device!r}, {case.full}, {side!r})"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if told.returncode:
        why = (told.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"'{side}' in a process of its own: {why}")
    seconds, extra = told.stdout.splitlines()[-1].split()
    return Alone(float(seconds), float(extra))


def report(folder: str, shape: str, device: str, full: bool, side: str) -> None:
    """Print the figures for ``alone``."""
    from benchmarks.jobs import make_side

    single_thread()
    case = Case(Path(folder), shape, device, full)
    run = make_side(case, side)
    gc.collect()
    loaded = start_peak(device)
    seconds: list[float] = []
    while len(seconds) < 2 and sum(seconds) < LONG:  # the first run warms up, unless it is long
        clock = Clock(device)
        run()
        seconds.append(clock.seconds())
    print(min(seconds), (peak(device) - loaded) / 1e6)


def start_peak(device: str) -> float:
    """Bytes held now; peaks count from here."""
    if device == "cpu":
        held = _resident("VmRSS")
        # Loading peaks higher than running; Linux forgets the peak when asked to.
        Path("/proc/self/clear_refs").write_text("5")
        return held
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak(device: str) -> float:
    """Bytes held at the most since ``start_peak``."""
    if device == "cpu":
        return _resident("VmHWM")
    import torch

    return torch.cuda.max_memory_allocated()


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(key))
