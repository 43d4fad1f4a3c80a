"""Where the direct effect of removed heads went: a stacked bar for each ablation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuitfind.output.backup_text import LEAST, joined
from circuitfind.output.dot_style import INK
from circuitfind.output.figures.style import PARTS, WIDTHS, Width, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from circuitfind.output.report.charts import Data

NAMES = {
    "lost": "really lost",
    "heads": "other heads",
    "mlps": "MLPs",
    "norm": "final norm",
    "metric": "metric's curve",
}


def sets_of(data: Data) -> list[Mapping[str, Any]]:
    """The removed sets that are drawn: for each reader the one that says most, as far as it lost anything."""
    told = [one for one in data["sets"] if one["telling"]]
    return [one for one in told if any(account["shares"] for account in one["accounts"])]


def draw(data: Data, width: Width) -> Figure:
    """The figure; ``data`` is the report's ``backups``, and ``sets_of`` it is not empty."""
    sets = sets_of(data)
    bars = [[account for account in one["accounts"] if account["shares"]] for one in sets]
    figure = blank(WIDTHS[width], 0.75 + sum(0.22 * len(found) + 0.3 for found in bars))
    made = figure.subplots(
        len(sets), 1, sharex=True, squeeze=False, height_ratios=[len(found) for found in bars]
    ).ravel()
    used: set[str] = set()
    for axes, one, found in zip(made, sets, bars, strict=True):
        for line, account in enumerate(found):
            used |= _bar(axes, line, account["shares"])
        axes.set_yticks(range(len(found)), [account["ablation"] for account in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"without {joined(one['members'], most=4)}, at {one['reader']}", fontsize=6.5)
    made[-1].xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %".replace("-", "\u2212"))
    made[-1].set_xlabel("share of the lost direct effect (below 0: made it worse)")
    _legend(figure, used)
    return figure


def _bar(axes: Axes, line: int, shares: Mapping[str, float]) -> set[str]:
    """Parts that made up for it to the right of zero, those that made it worse to the left."""
    right = left = 0.0
    for part, share in shares.items():
        if abs(share) < LEAST:
            continue
        axes.barh(
            line,
            share,
            left=right if share > 0 else left,
            height=0.66,
            color=PARTS[part],
            alpha=1 if share > 0 else 0.6,
            edgecolor="white",
            linewidth=0.4,
        )
        right, left = (right + share, left) if share > 0 else (right, left + share)
    return {part for part, share in shares.items() if abs(share) >= LEAST}


def _legend(figure: Figure, used: set[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=PARTS[part], label=name) for part, name in NAMES.items() if part in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3), handlelength=1.2)
