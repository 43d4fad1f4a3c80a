"""The prompt pairs of a run, one row each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MOST = 2000
"""Rows of a page."""
COLUMNS = ("pair", "clean", "corrupted", "answer", "wrong", "predicted", "right", "clean_metric", "corrupted_metric",
           "circuit_metric", "empty_metric", "template", "where", "outlier")  # fmt: skip


def prompt_rows(
    text: str | None, views: Mapping[str, Any] | None, metric: str, *, damaged: bool = False
) -> dict[str, Any] | None:
    """Rows with the columns that the run has.

    Args:
        text: Of ``prompts.jsonl``.
        views: As in ``views.json``, which knows more of each pair.
        metric: What the columns of metrics are of.
        damaged: Whether there is a ``views.json`` that cannot be used.

    Returns:
        ``rows``, at most ``MOST``, of ``total``; ``columns`` that some row has; ``partial``: why columns are missing.
    """
    found = None if views is None else views.get("prompts")
    if found:
        rows, partial = [dict(row) for row in found], None
    elif text is not None:
        rows = list(_plain(text))
        what = "its views.json cannot be used" if damaged else "it has no views.json"
        partial = f"Answers and what the circuit does on each pair are not in this run: {what}."
    else:
        return None
    shown = rows[:MOST]
    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in shown)]
    return {
        "metric": metric,
        "total": len(rows),
        "columns": columns,
        "rows": [[row.get(name) for name in columns] for row in shown],
        "partial": partial,
    }


def _plain(text: str) -> list[dict[str, Any]]:
    """Of the file of pairs, which holds tokens and not their texts."""
    found = []
    for i, line in enumerate(line for line in text.splitlines() if line.strip()):
        pair = json.loads(line)
        found.append(
            {
                "pair": i,
                "clean": pair["clean"],
                "corrupted": pair["corrupted"],
                "clean_metric": pair.get("metric"),
                "right": pair.get("kept"),
                "where": pair.get("where"),
            }
        )
    return found
