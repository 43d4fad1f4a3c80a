"""The page of a sweep: its runs side by side, with links to their reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuitfind.output.report.page import page

ALWAYS = ["task", "model", "method"]


def sweep_page(data: Mapping[str, Any]) -> str:
    """HTML of what ``sweep.json`` holds; the file belongs beside it, since its links begin there."""
    cells = [dict(cell) for cell in data["cells"]]
    measured = [c for c in cells if c["faithfulness"] and c["faithfulness"]["value"] is not None]
    sections = {
        "about": {
            "file": data["file"],
            "same": data["same"],
            "varied": data["varied"],
            "counts": data["counts"],
            "total": len(cells),
            "command": data["command"],
        },
        "table": cells,
        "faithfulness": measured or None,
        "columns": data["varied"] or ALWAYS,
        "missing": {"faithfulness": "No run has come so far."},
    }
    return page(f"{data['name']}: a sweep", sections, ["tables.js", "listing.js", "sweep.js"])
