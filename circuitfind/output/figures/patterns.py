"""Attention of the circuit's strongest heads on one prompt: a matrix each."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from circuitfind.errors import UsageError, did_you_mean
from circuitfind.names import parse_node
from circuitfind.output.figures.style import LINE, WIDTHS, Width, bare, blank, rising, seen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from circuitfind.output.report.charts import Data

MOST: dict[Width, int] = {"column": 4, "page": 6}
"""Heads."""
LARGEST = 2.6
"""Inches of a pattern's side."""
MARGIN = 0.55
"""Inches for the names of tokens at the left and below."""
FONT = (3.5, 5.5)
"""Points of these names: where the smaller ones would not fit, every second or third token is named."""


def matrix(data: Data, head: int, prompt: int) -> Float[np.ndarray, "destination source"]:
    """One pattern, as numbers between 0 and 1."""
    size = len(data["prompts"][prompt]["tokens"])
    found = base64.b64decode(data["heads"][head]["data"][prompt])
    return np.frombuffer(found, dtype=np.uint8).reshape(size, size) / 255


def chosen(data: Data, heads: Sequence[str] = (), prompt: int = 1) -> Data:
    """Some of the heads, in the order in which they are named, on one of the prompts.

    Args:
        data: The report's ``patterns``.
        heads: Their names, as the field spells them; the strongest where none is named.
        prompt: Which, counted from 1.

    Raises:
        UsageError: No pattern of such a head or prompt is kept.
    """
    if not 1 <= prompt <= len(data["prompts"]):
        told = [
            f"{i}: pair {one['pair']}, {one['side']} ({one['why']})"
            for i, one in enumerate(data["prompts"], 1)
        ]
        raise UsageError(
            f"there is no prompt {prompt}: attention is kept on {len(told)}",
            hint=f"give a number from 1 to {len(told)}",
            details=told,
        )
    known = {head["name"]: head for head in data["heads"]}
    names = list(dict.fromkeys(str(parse_node(name)) for name in heads))
    for name in names:
        if name not in known:
            raise UsageError(
                f"no attention of {name} is kept, only that of the circuit's heads",
                hint=did_you_mean(name, known),
            )
    return {
        "prompts": [data["prompts"][prompt - 1]],
        "heads": [{**known[name], "data": [known[name]["data"][prompt - 1]]} for name in names or known],
    }


def draw(data: Data, width: Width) -> Figure:
    """The figure.

    Args:
        data: The report's ``patterns``; its first prompt is drawn.
        width: A column has room for 4 heads, a page for 6.
    """
    heads = min(len(data["heads"]), MOST[width])
    across = min(heads, 2 if width == "column" else 3)
    rows = -(-heads // across)
    side = min((WIDTHS[width] - MARGIN) / across, LARGEST)
    figure = blank(WIDTHS[width], rows * (side + 0.2) + MARGIN + 0.5)
    made = figure.subplots(rows, across, squeeze=False).ravel()
    for place, axes in enumerate(made):
        if place >= heads:
            axes.set_axis_off()
            continue
        lowest = place + across >= heads
        _pattern(axes, data, place, 0.7 * side, named_y=place % across == 0, named_x=lowest)
    bar = figure.colorbar(made[0].images[0], ax=list(made), location="bottom", shrink=0.4, aspect=40)
    bar.outline.set_visible(False)
    bar.set_label("attention from row to column")
    return figure


def _pattern(axes: Axes, data: Data, head: int, side: float, *, named_y: bool, named_x: bool) -> None:
    values = matrix(data, head, 0)
    shown = np.ma.masked_array(values, np.triu(np.ones_like(values, dtype=bool), 1))
    axes.imshow(shown, cmap=rising(), vmin=0, vmax=1, interpolation="nearest")
    size = len(values)
    stairs = np.repeat(np.arange(size + 1.0), 2) - 0.5
    axes.plot(stairs[1:], stairs[:-1], color=LINE, linewidth=0.5)
    axes.plot([-0.5, -0.5, size - 0.5], [-0.5, size - 0.5, size - 0.5], color=LINE, linewidth=0.5)
    room = 72 * side / size  # points of a cell
    step = max(1, math.ceil(FONT[0] / room))
    font = min(FONT[1], max(FONT[0], 0.95 * room * step))
    kept = range((size - 1) % step, size, step)  # the last one is the answer's
    tokens = data["prompts"][0]["tokens"]
    names = [seen(tokens[i], 12) for i in kept]
    axes.set_xticks(list(kept), names if named_x else [], rotation=90, fontsize=font, parse_math=False)
    axes.set_yticks(list(kept), names if named_y else [], fontsize=font, parse_math=False)
    one = data["heads"][head]
    axes.set_title(one["name"] + (f" ({one['role']})" if one["role"] else ""))
    bare(axes)
