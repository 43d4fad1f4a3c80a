"""How long commands take that load no model: ``python -m benchmarks.startup``.

Each is run in a process of its own, several times in turns, and the least CPU time (user and system) and time by the clock
are told: what else the machine does can only add to them. The bars are for one core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HELP, RUN = 0.3, 1.0
"""Seconds of CPU time for help, and for a command on a finished run."""

TASK = """\
name: startup
model: planted/and-gate
prompts:
  zoo: {count: 32}
"""


@dataclass(frozen=True)
class Job:
    """A command, and the seconds that it may take."""

    words: tuple[str, ...]
    bar: float


JOBS = (
    Job(("--help",), HELP),
    Job(("discover", "--help"), HELP),
    Job(("--version",), HELP),
    Job(("list", "runs"), RUN),
    Job(("list", "tasks"), RUN),
    Job(("show", "latest"), RUN),
    Job(("show", "latest", "--nodes", "--edges"), RUN),
    Job(("show", "latest", "--json"), RUN),
    Job(("diff", "latest", "latest"), RUN),
    Job(("prune", "latest", "--edges", "4"), RUN),
    Job(("export", "latest", "--to", "eap-ig", "-o", "graph.json"), RUN),
    Job(("report", "latest"), RUN),
    Job(("config", "show", "--origin"), RUN),
)


@dataclass(frozen=True)
class Time:
    """Seconds of a process."""

    cpu: float
    clock: float


def measure(words: tuple[str, ...], folder: Path) -> Time:
    """Run a command.

    Raises:
        RuntimeError: It failed.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-m", "circuitfind", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if found.returncode:
        raise RuntimeError(f"circuitfind {' '.join(words)} ended with {found.returncode}: {found.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Time(cpu, clock)


def main() -> int:
    """Measure, print, and with --strict say by the exit code whether all bars were met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each command (default 3)")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a bar is missed")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    os.environ.pop("CIRCUITFIND_OUTPUTS", None)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "startup.yaml").write_text(TASK, encoding="utf-8")
        measure(("discover", "startup.yaml", "-q"), folder)
        times: dict[Job, list[Time]] = {job: [] for job in JOBS}
        for _ in range(max(1, given.repeats)):
            for job in JOBS:
                times[job].append(measure(job.words, folder))
    least = {job: Time(min(t.cpu for t in some), min(t.clock for t in some)) for job, some in times.items()}
    missed = [job for job, found in least.items() if found.cpu > job.bar]
    if given.json:
        rows = [
            {"command": " ".join(job.words), "cpu": found.cpu, "clock": found.clock, "bar": job.bar}
            for job, found in least.items()
        ]
        print(json.dumps({"version": 1, "times": rows}, indent=1))
    else:
        print(f"{'circuitfind':<40} {'CPU':>7} {'clock':>7} {'bar':>6}")
        for job, found in least.items():
            late = "  missed" if job in missed else ""
            print(f"{' '.join(job.words):<40} {found.cpu:6.2f}s {found.clock:6.2f}s {job.bar:5.1f}s{late}")
    return 1 if missed and given.strict else 0


if __name__ == "__main__":
    sys.exit(main())
