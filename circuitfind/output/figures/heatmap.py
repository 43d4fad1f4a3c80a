"""Effects of heads and MLPs: layers by heads, a panel for each kind of effect, one scale for each unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuitfind.output.dot_style import INK
from circuitfind.output.figures.style import LINE, WIDTHS, Width, bare, blank, diverging

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from circuitfind.output.report.charts import Data

GAP = 0.5
"""Between the heads and the MLPs, in cells."""
SMALL = 0.12
"""Inches of a cell, below which lines are finer."""


def draw(data: Data, width: Width) -> Figure:
    """The figure.

    Args:
        data: The report's ``heatmap``.
        width: In one column the panels stand below each other.
    """
    panels = data["panels"]
    beside = len(panels) if width == "page" else 1
    rows = -(-len(panels) // beside)
    inches = WIDTHS[width]
    columns = data["heads"] + (GAP + 1 if data["mlps"] else 0)
    cell = min(0.3, (inches - 0.35 * beside - 0.3) / beside / max(columns, 1))
    bars = len({panel["metric"] for panel in panels}) if rows > 1 else 1
    figure = blank(inches, rows * (cell * data["layers"] + 0.55) + 0.65 * bars)
    made = figure.subplots(rows, beside, squeeze=False).ravel()
    for metric in dict.fromkeys(panel["metric"] for panel in panels):
        same = [(axes, panel) for axes, panel in zip(made, panels, strict=True) if panel["metric"] == metric]
        most = max(panel["max"] for _, panel in same) or 1.0
        for axes, panel in same:
            _panel(axes, panel, data, most, fine=cell < SMALL)
        drawn = [axes for axes, _ in same]
        share = len(same) / len(panels)
        bar = figure.colorbar(
            drawn[0].collections[0],
            ax=drawn,
            location="bottom",
            shrink=min(0.8, 0.5 / share) if width == "page" else 0.8,
            aspect=40 * share if width == "page" else 40,
        )
        bar.outline.set_visible(False)
        bar.set_label(f"effect on {metric}")
    return figure


def _panel(axes: Axes, panel: Mapping[str, Any], data: Data, most: float, *, fine: bool) -> None:
    layers, heads = data["layers"], data["heads"]
    inside = set(data["circuit"])
    values = values_of(panel, layers, heads)
    edges = np.arange(heads + 1.0)
    look: dict[str, Any] = {
        "cmap": diverging(),
        "vmin": -most,
        "vmax": most,
        "edgecolors": LINE,
        "linewidth": 0.06 if fine else 0.25,
    }
    lines = np.arange(layers + 1.0)
    if heads:
        axes.pcolormesh(edges, lines, values[:, :heads], **look)
    if data["mlps"]:
        axes.pcolormesh([heads + GAP, heads + GAP + 1], lines, values[:, heads:], **look)
    for cell in panel["cells"]:
        if cell["node"] in inside:
            left = heads + GAP if cell["column"] is None else cell["column"]
            axes.add_patch(_frame(left, cell["layer"], 0.5 if fine else 0.9))
    step = 1 if heads <= 12 else 4
    shown = list(range(0, heads, step))
    ticks = [*(h + 0.5 for h in shown), *([heads + GAP + 0.5] if data["mlps"] else [])]
    axes.set_xticks(ticks, [*map(str, shown), *(["MLP"] if data["mlps"] else [])])
    layer_step = 1 if layers <= 16 else 4
    axes.set_yticks(np.arange(0, layers, layer_step) + 0.5, [str(i) for i in range(0, layers, layer_step)])
    axes.set_xlim(0, heads + (GAP + 1 if data["mlps"] else 0))
    axes.set_ylim(layers, 0)
    axes.set_aspect("equal")
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.set_title(panel["title"])
    bare(axes)


def values_of(panel: Mapping[str, Any], layers: int, heads: int) -> Float[np.ndarray, "layer column"]:
    """Heads, then the MLP, of each layer; NaN where nothing was measured."""
    values = np.full((layers, heads + 1), np.nan)
    for cell in panel["cells"]:
        values[cell["layer"], heads if cell["column"] is None else cell["column"]] = cell["value"]
    return values


def _frame(left: float, top: float, width: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left + 0.05, top + 0.05), 0.9, 0.9, fill=False, edgecolor=INK, linewidth=width)
