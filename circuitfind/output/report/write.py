"""``report.html`` in a run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from circuitfind.errors import CircuitfindError
from circuitfind.output.files import write_atomic
from circuitfind.output.report.data import collect
from circuitfind.output.report.page import page
from circuitfind.output.store import Run
from circuitfind.summary import REPORT

SCRIPTS = (
    "tables.js",
    "verdict.js",
    "prune.js",
    "layout.js",
    "panel.js",
    "draw.js",
    "graph.js",
    "heatmap.js",
    "curves.js",
    "patterns.js",
    "backups.js",
    "units.js",
    "prompts.js",
    "parts.js",
    "manifest.js",
)
"""In the order of the sections that they register."""


def report_page(run: Run) -> str:
    """A run's report as HTML.

    Raises:
        RunError: The run has found nothing yet, or its files were changed.
    """
    data = collect(run)
    return page(data["title"], data, SCRIPTS)


def write_report(run: Run, path: Path | None = None) -> Path:
    """Write a run's report, into its folder when no other place is named.

    Raises:
        RunError: The run has found nothing yet, its files were changed, or the disk is full.
        UsageError: The folder cannot be written to.
    """
    return write_atomic(path or run.path / REPORT, report_page(run))


def renew_report(run: Run, note: Callable[[str], None]) -> Path | None:
    """Write the report of a run that has changed. What goes wrong is told and not raised: the work is done without it."""
    try:
        return write_report(run)
    except CircuitfindError as error:
        note(f"no report written: {error.what}")
    except Exception as error:  # noqa: BLE001  # hours of work are not to end at their page
        note(f"no report written: {type(error).__name__}: {error} (`circuitfind report --debug` tells more)")
    return None
