"""Throughput of the engines on 64 equal pieces: ``python -m benchmarks.engines``.

A piece is two patched passes through the last two blocks of a GPT-2-shaped model, on one thread; workers are warm. Who does
them takes turns, round by round, so that what else the machine does disturbs all alike. Beside the ratio of two workers to
one stands the ceiling: that of two processes that do nothing but multiply matrices. ``--kill`` adds a round of two workers
of which one is killed in the middle.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"
if __package__ in (None, ""):  # run as a file: the package is the folder above it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.case import Case

if TYPE_CHECKING:
    from circuitfind.engine.base import PieceJob

PIECES, PATCHES, BAR = 64, 2, 1.7
"""Pieces of a round, patches in each, and the bar for the throughput of two workers of Ray over that of one."""

MATMULS = """
import sys, time, torch
torch.set_num_threads(1)
a, b = torch.randn(256, 768), torch.randn(768, 3072)
def work(times):
    for _ in range(times): a @ b
work(50)
print("ready", flush=True)
while sys.stdin.readline():
    start = time.perf_counter(); work(200)
    print(time.perf_counter() - start, flush=True)
"""


def jobs_of(case: Case) -> list[PieceJob]:
    """Equal pieces, each of other heads."""
    import torch

    from circuitfind.engine.base import PieceJob
    from circuitfind.engine.recipe import needs_of, recipe_of
    from circuitfind.model.memory import make_plan
    from circuitfind.model.node_pass import Patch
    from circuitfind.model.runs import Patched, Runs
    from circuitfind.task.metrics import get_metric

    torch.set_num_threads(1)
    model = case.model
    runs = Runs(model, case.pairs("early"), get_metric("logit-diff"), plan=make_plan(model, 2 * 10**9))
    recipe = recipe_of(runs, "cpu")
    needs = needs_of(runs, recipe)
    anatomy = model.anatomy
    slots = range(len(anatomy.writers))
    heads = list(slots)[anatomy.head_slice(anatomy.n_layers - 2)]
    found = []
    for number in range(PIECES):
        rows = [heads[(number * PATCHES + i) % len(heads)] for i in range(PATCHES)]
        patches = tuple(Patch(nodes=np.array(slots) == row) for row in rows)
        found.append(PieceJob(recipe, Patched(runs.batches[0].index, patches, "clean", "resample"), needs))
    return found


def timed(engine: Any, workers: int, jobs: list[PieceJob], *, kill: bool = False) -> tuple[float, list[Any]]:
    """Seconds of a round, and what each piece gave."""
    engine.workers = workers
    found: list[Any] = [None] * len(jobs)
    start = time.perf_counter()
    for done, (number, result) in enumerate(engine.map(jobs)):
        found[number] = result.arrays["values"]
        if kill and done == len(jobs) // 3:
            worker = next(iter(engine._alive.values()))
            os.kill(worker.pid if hasattr(worker, "pid") else worker.process.pid, signal.SIGKILL)
    return time.perf_counter() - start, found


@contextmanager
def multipliers() -> Iterator[Any]:
    """A function of 1 or 2: how much that many processes multiply in a second, together."""
    command = [sys.executable, "-c", MATMULS]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]

    def rate(count: int) -> float:
        start = time.perf_counter()
        for one in both[:count]:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        for one in both[:count]:
            assert one.stdout is not None
            one.stdout.readline()
        return count / (time.perf_counter() - start)

    try:
        for one in both:
            assert one.stdout is not None
            one.stdout.readline()
        yield rate
    finally:
        for one in both:
            one.communicate()


def main() -> int:
    """Measure and print; with --strict say by the exit code whether the bar was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--shape", default="gpt2-small", help="gpt2-small (default), four-layers or tiny")
    parser.add_argument("--kill", action="store_true", help="a round more in which a worker is killed")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when the bar is missed")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    from circuitfind.engine.local import LocalEngine
    from circuitfind.engine.processes import processes
    from circuitfind.engine.ray import ray_engine

    seconds: dict[str, list[float]] = {}
    loads: list[float] = []
    deaths = 0
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        jobs = jobs_of(Case(Path(made), given.shape, "cpu"))
        rate = stack.enter_context(multipliers())
        engines: dict[str, Any] = {"processes": processes(2), "ray": ray_engine(2)}
        for engine in engines.values():
            stack.enter_context(engine)
            timed(engine, 2, jobs[:16])
        local: Any = stack.enter_context(LocalEngine())
        _, truth = timed(local, 1, jobs)
        for turn in range(given.rounds):
            loads.append(os.getloadavg()[0])
            took: dict[str, float] = {}
            took["local"], found = timed(local, 1, jobs)
            sides = [(name, count) for name in engines for count in (1, 2)]
            for name, count in sides if turn % 2 == 0 else reversed(sides):
                took[f"{name} {count}"], found = timed(engines[name], count, jobs)
                assert all(map(np.array_equal, found, truth)), "results differ"
            took["ceiling 1"], took["ceiling 2"] = 1 / rate(1), 1 / rate(2)
            for name, value in took.items():
                seconds.setdefault(name, []).append(value)
        if given.kill:
            value, found = timed(engines["ray"], 2, jobs, kill=True)
            assert all(map(np.array_equal, found, truth)), "results differ"
            seconds["ray 2, one killed"] = [value]
            deaths = engines["ray"].facts["deaths"]
    ratios = {
        name: [a / b for a, b in zip(seconds[f"{name} 1"], seconds[f"{name} 2"], strict=True)]
        for name in ("processes", "ray", "ceiling")
    }
    middle = {name: statistics.median(some) for name, some in ratios.items()}
    if given.json:
        print(json.dumps({"seconds": seconds, "ratios": ratios, "load": loads, "deaths": deaths}, indent=1))
    else:
        print(
            f"{PIECES} pieces, {given.shape}, one thread each; load of the machine {min(loads):.1f}-{max(loads):.1f}"
        )
        for name, some in seconds.items():
            what = "s for a unit of work" if name.startswith("ceiling") else "s"
            print(f"{name:<20}{min(some):8.2f} to {max(some):.2f} {what}")
        for name, some in ratios.items():
            told = ", ".join(f"{one:.2f}" for one in some)
            print(f"{name}: two do {middle[name]:.2f} times what one does (median of {told})")
        print(f"bar for ray: {BAR}: {'ok' if middle['ray'] >= BAR else 'missed'}; killed workers: {deaths}")
    return 1 if given.strict and middle["ray"] < BAR else 0


if __name__ == "__main__":
    sys.exit(main())
