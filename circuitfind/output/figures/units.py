"""The tokens that the strongest neurons and features promote and suppress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuitfind.output.dot_style import MUTED, NEGATIVE, POSITIVE
from circuitfind.output.figures.style import WIDTHS, Width, blank, seen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from circuitfind.output.report.charts import Data

MOST: dict[Width, int] = {"column": 4, "page": 9}
"""Units."""
TOKENS = 5
"""Of each sign."""


def draw(data: Data, width: Width) -> Figure:
    """The figure; ``data`` is the report's ``units``, with ``nodes`` in it."""
    nodes = data["nodes"][: MOST[width]]
    across = min(len(nodes), 2 if width == "column" else 3)
    rows = -(-len(nodes) // across)
    figure = blank(WIDTHS[width], 1.35 * rows + 0.2)
    made = figure.subplots(rows, across, squeeze=False).ravel()
    for place, axes in enumerate(made):
        if place < len(nodes):
            _unit(axes, nodes[place])
        else:
            axes.set_axis_off()
    figure.supxlabel("logit lens: what it writes to a token's logit, for an activation of 1", fontsize=6.5)
    return figure


def _unit(axes: Axes, node: Mapping[str, Any]) -> None:
    tokens = [*node["promotes"][:TOKENS], *reversed(node["suppresses"][:TOKENS])]
    values = [row["value"] for row in tokens]
    axes.barh(range(len(tokens)), values, height=0.7, color=[POSITIVE if v > 0 else NEGATIVE for v in values])
    axes.axvline(0, color=MUTED, linewidth=0.6)
    axes.set_yticks(
        range(len(tokens)), [seen(row["token"]) for row in tokens], fontsize=5.5, parse_math=False
    )
    axes.set_ylim(len(tokens) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title(node["name"] + (f" {seen(node['label'], 24)}" if node["label"] else ""), fontsize=6.5)
