"""What the stage ``views`` measured of a run for its report, and where there is nothing: why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuitfind.errors import UsageError
from circuitfind.output.store import Run, Stage
from circuitfind.summary import views_stage
from circuitfind.views.report import FILE, Views

AGAIN = "give its discover command again to have it measured"
NO_VIEWS = f"Not in this run, which has no views.json: {AGAIN}."


def views_of(run: Run, stages: Mapping[str, Stage]) -> tuple[dict[str, Any] | None, str, bool]:
    """What was measured of the circuit as it is now.

    Returns:
        As in ``views.json``; else None, why, and whether something is wrong with the file: a run may also be without one.
    """
    stage = views_stage(stages)
    if stage is None:
        if "views" in stages:
            return None, f"Its views.json is of the circuit before it was changed: {AGAIN}.", False
        if "views" in run.manifest["stages"]:
            return None, f"Its views.json is missing or was changed: {AGAIN}.", True
        return None, NO_VIEWS, False
    try:
        return Views.load(stage.files[FILE]).as_dict(), "", False
    except UsageError as error:
        return None, f"Its views.json cannot be read ({error.what}): {AGAIN}, with --force.", True
