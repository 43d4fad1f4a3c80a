"""How much of the lost direct effect each component takes over, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuitfind.backups.report import CLASSES
from circuitfind.output.backup_text import joined
from circuitfind.output.dot_style import MUTED, NEGATIVE, POSITIVE
from circuitfind.output.figures.style import WIDTHS, Width, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from circuitfind.output.report.charts import Data

MOST = 24
"""Rows."""
COLOURS = dict(zip(CLASSES, (POSITIVE, "#56B4E9", NEGATIVE, "#E69F00", "#CC79A7", MUTED), strict=True))
MARKS = dict(zip(CLASSES, "oDvs^x", strict=True))


def rows_of(data: Data) -> list[Mapping[str, Any]]:
    """What is drawn: components whose direct effect changed with the removal, the strongest claims first."""
    return [row for row in data["rows"] if row["share"]][:MOST]


def draw(data: Data, width: Width) -> Figure:
    """The figure; ``data`` is the report's ``backups``, and ``rows_of`` it is not empty."""
    rows = rows_of(data)
    figure = blank(WIDTHS[width], 0.85 + 0.2 * len(rows))
    axes = figure.subplots()
    told: set[str] = set()
    for line, row in enumerate(rows):
        kind = row["kind"]
        axes.hlines(line, row["low"], row["high"], color=COLOURS[kind], linewidth=1)
        axes.plot(
            row["share"],
            line,
            MARKS[kind],
            color=COLOURS[kind],
            markersize=4,
            linestyle="none",
            label=None if kind in told else kind,
        )
        told.add(kind)
    axes.axvline(0, color=MUTED, linewidth=0.6)
    names = [f"{row['name']} for {joined(row['covers'], most=2)}" for row in rows]
    readers = {row["reader"] for row in rows}
    if len(readers) > 1:
        names = [f"{name}, at {row['reader']}" for name, row in zip(names, rows, strict=True)]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %".replace("-", "\u2212"))
    at = f" at {readers.pop()}" if len(readers) == 1 else ""
    axes.set_xlabel(f"taken over of the lost direct effect{at}")
    figure.legend(loc="outside lower center", ncols=3, handletextpad=0.2)
    return figure
