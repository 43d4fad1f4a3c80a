"""Faithfulness and completeness over the number of edges kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from circuitfind.output.dot_style import INK, MUTED, NEGATIVE, POSITIVE
from circuitfind.output.figures.style import LINE, WIDTHS, Width, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from circuitfind.output.report.charts import Data

SERIES = (("completeness", NEGATIVE, (0, (4, 2)), "s"), ("faithfulness", POSITIVE, "-", "o"))
RANDOM = {"rankings": "random rankings", "circuits": "random circuits"}


def draw(data: Data, width: Width) -> Figure:
    """The figure; ``data`` is the report's ``curve``."""
    figure = blank(WIDTHS[width], 2.7 if width == "column" else 3.1)
    axes = figure.subplots()
    points = data["points"]
    edges = [point["asked"] for point in points]
    for level in (0, 1):
        axes.axhline(level, color=MUTED, linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
    if data["random"] is not None:
        _random(axes, data, edges)
    for name, colour, line, mark in SERIES:
        found = [point[name] for point in points]
        axes.fill_between(edges, *_ends(found), color=colour, alpha=0.2, linewidth=0)
        values = [one["value"] for one in found]
        axes.plot(edges, values, color=colour, linestyle=line, marker=mark, markersize=2.2, label=name)
    if data["circuit"] is not None:
        _circuit(axes, data)
    axes.set_xscale("log")
    axes.set_xlim(edges[0] * 0.9, data["edges"] * 1.1)
    axes.set_xlabel("edges kept, the strongest first")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    _shares(axes, data, every=width == "page")
    figure.legend(loc="outside lower center", ncols=2 if width == "column" else 4)
    return figure


def _ends(found: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Both ends of intervals; an end that is unbounded is not drawn."""
    low = [one["value"] if one["low"] is None else one["low"] for one in found]
    return low, [one["value"] if one["high"] is None else one["high"] for one in found]


def _random(axes: Axes, data: Data, edges: list[int]) -> None:
    found = [point["random"] for point in data["points"]]
    axes.fill_between(
        edges,
        [one["low"] for one in found],
        [one["high"] for one in found],
        color=MUTED,
        alpha=0.25,
        linewidth=0,
    )
    told = f"{data['random']['count']} {RANDOM[data['random']['of']]}"
    axes.plot(edges, [one["mean"] for one in found], color=MUTED, linewidth=0.8, label=told)


def _circuit(axes: Axes, data: Data) -> None:
    """Diamonds with intervals, named once."""
    mine = data["circuit"]
    for name, colour, _, _ in SERIES:
        found = mine[name]
        (low,), (high,) = _ends([found])
        error = np.array([[found["value"] - low], [high - found["value"]]]).clip(min=0)
        axes.errorbar(
            [mine["edges"]],
            [found["value"]],
            yerr=error,
            fmt="D",
            markersize=4,
            color=colour,
            markeredgecolor=INK,
            markeredgewidth=0.7,
            ecolor=INK,
            elinewidth=0.8,
            zorder=5,
            label="this circuit" if name == "faithfulness" else None,
        )


def _shares(axes: Axes, data: Data, *, every: bool) -> None:
    """Shares of all edges, at the top."""
    chosen = [s for s in data["shares"] if every or s["share"] in (0.001, 0.01, 0.1, 1)]
    for one in chosen:
        axes.axvline(one["edges"], color=LINE, linewidth=0.4, zorder=0)
    above = axes.secondary_xaxis("top")
    above.set_xticks([s["edges"] for s in chosen], [f"{100 * s['share']:g} %" for s in chosen])
    above.set_xticks([], minor=True)
    above.tick_params(length=0, labelcolor=MUTED, labelsize=6)
    above.set_xlabel("share of all edges", color=MUTED, fontsize=6)
    above.spines[:].set_visible(False)
