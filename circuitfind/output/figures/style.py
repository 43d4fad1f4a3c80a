"""How figures look: widths of a column and a page, colours for all eyes, and files that are the same every time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from circuitfind.output.dot_style import INK, MUTED, NEGATIVE, POSITIVE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Width = Literal["column", "page"]
WIDTHS: dict[Width, float] = {"column": 3.35, "page": 6.9}
"""Inches: one column, and both, of the usual two-column page."""
FORMATS = ("pdf", "svg", "png")
DPI = 300
"""Of PNG files."""

LINE = "#C8C8C8"
PARTS = {"lost": NEGATIVE, "heads": "#009E73", "mlps": "#56B4E9", "norm": POSITIVE, "metric": "#CC79A7"}
"""Of a lost direct effect: told apart by colour-blind readers (Okabe and Ito)."""

_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so files are the same everywhere
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "figure.titlesize": 8,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a token is one
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "circuitfind",
    "path.simplify": False,
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures that are made inside look like ours, whatever the user's own settings are."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def blank(width: float, height: float) -> Figure:
    """A figure of so many inches, which no display knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def file_of(figure: Figure, form: str) -> bytes:
    """A figure as a file: the same data give the same bytes, since no date stands in it."""
    dates: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    out = io.BytesIO()
    with styled(), warnings.catch_warnings():
        # Signs that the font lacks are drawn as boxes; a token may hold any.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format=form, dpi=DPI, metadata=dates.get(form))
    return out.getvalue()


def diverging() -> Colormap:
    """Vermilion below zero, white at zero, blue above; grey where nothing was measured."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("effects", [NEGATIVE, "#FFFFFF", POSITIVE]).with_extremes(
        bad="#FFFFFF"
    )


def rising() -> Colormap:
    """White at zero, blue at one."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("weights", ["#FFFFFF", POSITIVE])


def bare(axes: Axes) -> None:
    """Neither frame nor tick marks."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def seen(token: str, most: int = 14) -> str:
    """A token as it can be read: blanks and line ends show, control signs are replaced, and long ones are cut."""
    signs = {" ": "\u00b7", "\n": "\u23ce", "\t": "\u2192"}
    text = "".join(signs.get(c) or (c if c.isprintable() else "\ufffd") for c in token) or "\u2205"
    return text if len(text) <= most else text[: most - 1] + "\u2026"
