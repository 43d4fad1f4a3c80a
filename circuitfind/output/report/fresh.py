"""A run's report as it should be now: written where it is missing, or older than what it tells of."""

from __future__ import annotations

import contextlib
from pathlib import Path

from circuitfind.output.labels import FILE as LABELS
from circuitfind.output.manifest import LOCK
from circuitfind.output.report.page import ASSETS
from circuitfind.output.report.write import write_report
from circuitfind.output.store import Run
from circuitfind.summary import REPORT


def report_of(run: Run) -> Path:
    """Where it is."""
    return run.path / REPORT


def is_fresh(run: Run) -> bool:
    """Whether the report is younger than every file that it is made from: the run's, the labels, and the program's own."""
    try:
        made = report_of(run).stat().st_mtime_ns
    except OSError:
        return False
    pages = {LOCK, *(p.name for p in run.path.glob("*.html"))}
    told = [p for p in run.path.iterdir() if p.name not in pages and not p.name.startswith(".")]
    told += [run.path.parent / LABELS, *ASSETS.iterdir()]
    times = []
    for path in told:
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime_ns)
    return made >= max(times, default=0)


def fresh_report(run: Run) -> None:
    """Write it unless it is fresh.

    Raises:
        RunError: The run has found nothing yet, its files were changed, or the disk is full.
        UsageError: The folder cannot be written to.
    """
    if not is_fresh(run):
        write_report(run)
