"""Two runs beside each other as one HTML file: what differs in how they were found, then what differs in what was found."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from circuitfind.circuit.changes import Changes
from circuitfind.circuit.compare import Comparison, Side, compare, shared_scores
from circuitfind.errors import UsageError
from circuitfind.output.files import write_atomic
from circuitfind.output.report import charts
from circuitfind.output.report.circuit_graph import circuit_graph
from circuitfind.output.report.measured import views_of
from circuitfind.output.report.page import page
from circuitfind.output.report.sides import side_of
from circuitfind.output.report.verdict import circuit_verdict
from circuitfind.output.store import Run
from circuitfind.output.words import words_or_none
from circuitfind.summary import REPORT, Found, finished_stages, stored

SCRIPTS = ("tables.js", "panel.js", "layout.js", "draw.js", "compare.js", "compare_charts.js")
POINTS = 3000
"""Scores that the scatter draws: those of either circuit, then the strongest of the others."""
EFFECTS = ("noising", "denoising", "direct")

Data = dict[str, Any]


def write_comparison(before: Run, after: Run, path: Path | None = None) -> Path:
    """Write the comparison, into the folder of the second run when no other place is named.

    Raises:
        UsageError: They are one run, or nothing of them can be compared; the folder cannot be written to.
        RunError: One has no circuit, its files were changed, or the disk is full.
    """
    target = path or after.path / f"compare-{before.name}.html"
    return write_atomic(target, comparison_page(before, after, target.parent))


def comparison_page(before: Run, after: Run, folder: Path) -> str:
    """The comparison as HTML, for a file in a folder: links to the reports of both begin there.

    Raises:
        UsageError, RunError: As for ``write_comparison``.
    """
    if before.path.resolve() == after.path.resolve():
        raise UsageError(
            f"{before.name} is compared with itself", hint="give two runs; `circuitfind list runs` shows all"
        )
    data = collect(before, after, folder)
    return page(data["title"], data, SCRIPTS)


def collect(before: Run, after: Run, folder: Path) -> Data:
    """What the page shows, section by section, and why a section has nothing."""
    runs = before, after
    found = [stored(run) for run in runs]
    sides = [side_of(run, one) for run, one in zip(runs, found, strict=True)]
    made = compare(*sides, top=50)
    measured = [views_of(run, finished_stages(run)) for run in runs]
    views = [one or {"missing": {}} for one, _, _ in measured]
    reasons = dict.fromkeys(
        f"{run.name}: {why}" for run, (_, why, _) in zip(runs, measured, strict=True) if why
    )
    unmeasured = " ".join(reasons) or "It was not measured of both runs."
    heat, no_heat = _heatmap(made, sides, views, unmeasured)
    curves = [
        charts.curve(one, side.circuit.conditions.metric) for one, side in zip(views, sides, strict=True)
    ]
    both = all(curve is not None for curve in curves)
    return {
        "title": f"{made.before} and {made.after}",
        "conditions": {
            **{
                key: made.as_dict()[key]
                for key in ("before", "after", "differs", "alike", "notes", "set_aside")
            },
            "links": [_link(run, folder) for run in runs],
        },
        "verdicts": [_verdict(run, one) for run, one in zip(runs, found, strict=True)],
        "merged": _graph(made, runs, found),
        "changes": {
            "nodes": _changes(made.nodes),
            "edges": _changes(made.edges),
            "backups": _changes(made.backups) if made.backups.every else None,
            "shares_of": made.as_dict()["shares_of"],
        },
        "scatter": _scatter(made, sides),
        "curves": curves if both else None,
        "difference": heat,
        "missing": {
            "scatter": "The runs score nothing in common.",
            "curves": unmeasured,
            "difference": no_heat,
        },
    }


def _link(run: Run, folder: Path) -> str | None:
    report = run.path / REPORT
    if not report.is_file():
        return None
    return quote(os.path.relpath(report.resolve(), folder.resolve()).replace(os.sep, "/"))


def _verdict(run: Run, found: Found) -> Data:
    """What the card of a side says."""
    told = circuit_verdict(found.circuit, found.summary, finished_stages(run), run.manifest)
    evidence = told["evidence"]
    keys = (
        "evaluations",
        "held_out",
        "sizes",
        "parts",
        "prompts",
        "completeness",
        "backups",
        "known",
        "cost",
    )
    return {
        "run": run.name,
        "status": run.status,
        "certified": None if evidence is None else evidence["certified"],
        "reasons": [] if evidence is None else evidence["reasons"],
        **{key: told[key] for key in (*keys, "warnings", "command")},
    }


def _changes(found: Changes) -> Data:
    data = found.as_dict()
    return {**{key: data[key] for key in ("jaccard", "kept", "gained", "lost")}, "rows": data["changes"]}


def _graph(made: Comparison, runs: Sequence[Run], found: Sequence[Found]) -> Data:
    """Both circuits as one: nodes by name with where they stand, edges with what became of them."""
    parts = []
    for run, one in zip(runs, found, strict=True):
        words, _ = words_or_none(run)
        parts.append(circuit_graph(one.circuit, one.scores, words, most=1))
    fates = {change.name: change.fate for change in made.nodes.every}
    ends = [{str(node) for node in one.circuit.nodes} | {"logits"} for one in found]
    nodes: Data = {}
    for name in sorted(ends[0] | ends[1]):
        rows = [part["nodes"].get(name) for part in parts]
        known = rows[1] or rows[0]
        if known is None:
            continue
        alone = "lost" if name not in ends[1] else "gained" if name not in ends[0] else "kept"
        scores = [row.get("score") if row else None for row in rows]
        nodes[name] = {**known, "fate": fates.get(name, alone), "before": scores[0], "after": scores[1]}
    changes = {change.name: change for change in made.edges.every}
    edges = []
    for name, edge in {str(edge): edge for part in found for edge in part.circuit.edges}.items():
        if name in changes:
            places = {"from": str(edge.sender), "to": str(edge.receiver), "slot": edge.slot}
            edges.append({**places, **changes[name].as_dict()})
    return {"nodes": nodes, "edges": edges, "set_aside": len(made.set_aside)}


def _scatter(made: Comparison, sides: Sequence[Side]) -> Data | None:
    """Scores of everything that both score, and how far they agree; the numbers are of all, not only of what is drawn."""
    level, names, a, b = shared_scores(*sides)
    agreement = made.edge_scores if level == "edge" else made.node_scores
    if agreement is None or not names:
        return None
    fates = {change.name: change.fate for change in (made.edges if level == "edge" else made.nodes).every}
    size = np.maximum(np.abs(a / made.wholes[0]), np.abs(b / made.wholes[1]))
    inside = np.array([name in fates for name in names])
    order = np.lexsort((-size, ~inside))[:POINTS]
    units = [
        side.circuit.conditions.metric if made.of_gap else side.circuit.conditions.method for side in sides
    ]
    varied = len(a) > 2 and float(np.ptp(a)) > 0 and float(np.ptp(b)) > 0
    return {
        "level": level,
        "points": [[names[i], _six(a[i]), _six(b[i]), fates.get(names[i], "outside")] for i in order],
        "common": len(names),
        "pearson": float(np.corrcoef(a, b)[0, 1]) if varied else None,
        **{key: agreement.as_dict()[key] for key in ("spearman", "spearman_signed", "overlap")},
        "units": units,
        "same_units": len(set(units)) == 1,
    }


def _six(value: float) -> float:
    return float(f"{value:.6g}")


def _heatmap(
    made: Comparison, sides: Sequence[Side], views: Sequence[Mapping[str, Any]], unmeasured: str
) -> tuple[Data | None, str]:
    """After less before, of each kind of effect that both measured; else why there is none."""
    metrics = {side.circuit.conditions.metric for side in sides}
    if len(metrics) > 1:
        return (
            None,
            f"The effects are in units of {' and of '.join(sorted(metrics))}: they are not subtracted.",
        )
    grids = [charts.heatmap(one) for one in views]
    panels = []
    if grids[0] is not None and grids[1] is not None:
        if grids[0]["ablation"] != grids[1]["ablation"]:
            both = " and ".join(grid["ablation"] for grid in grids if grid is not None)
            return None, f"The effects are under {both} ablation: they are not subtracted."
        by_name = [{panel["name"]: panel for panel in grid["panels"]} for grid in grids if grid is not None]
        shared = [name for name in EFFECTS if name in by_name[0] and name in by_name[1]]
        panels = [_difference(by_name[0][name], by_name[1][name]) for name in shared]
    elif made.of_gap and _same_measure(sides):
        panels = [_of_scores(sides)]
    panels = [panel for panel in panels if panel["cells"]]
    if not panels:
        return None, unmeasured
    cells = [cell for panel in panels for cell in panel["cells"]]
    return {
        "panels": panels,
        "layers": 1 + max(cell["layer"] for cell in cells),
        "heads": 1 + max((cell["column"] for cell in cells if cell["column"] is not None), default=-1),
        "mlps": any(cell["column"] is None for cell in cells),
        "metric": metrics.pop(),
    }, ""


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Data:
    """Of one kind of effect, over the parts that both models have."""
    was = {cell["node"]: cell for cell in before["cells"]}
    cells = [
        {
            **{key: cell[key] for key in ("node", "layer", "column")},
            "before": [was[cell["node"]][key] for key in ("value", "low", "high")],
            "after": [cell[key] for key in ("value", "low", "high")],
        }
        for cell in after["cells"]
        if cell["node"] in was and None not in (cell["value"], was[cell["node"]]["value"])
    ]
    return {"title": after["title"], "meaning": after["meaning"], "cells": cells}


def _same_measure(sides: Sequence[Side]) -> bool:
    """Whether scores of the two can be subtracted."""
    told = [side.circuit.conditions for side in sides]
    return len({(c.method, c.ablation, c.direction) for c in told}) == 1


def _of_scores(sides: Sequence[Side]) -> Data:
    """The same of the scores of nodes, which every run has; they have no intervals."""
    tables = []
    for side in sides:
        assert side.scores is not None  # those of a run
        values = zip(side.scores.anatomy.writers, side.scores.node_values.tolist(), strict=True)
        tables.append({str(node): (node, value) for node, value in values if math.isfinite(value)})
    cells = []
    for name, (node, value) in tables[1].items():
        if name in tables[0] and node.kind.name in ("HEAD", "MLP"):
            column = node.index if node.kind.name == "HEAD" else None
            pair = {"before": [_six(tables[0][name][1]), None, None], "after": [_six(value), None, None]}
            cells.append({"node": name, "layer": node.layer, "column": column, **pair})
    return {"title": "Score", "meaning": "what the methods give to the nodes", "cells": cells}
