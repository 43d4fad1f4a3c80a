"""How pictures look: colours, widths, and text made safe for DOT."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence

from circuitfind.names import Kind

FONT = "Helvetica,Arial,sans-serif"
INK = "#222222"
MUTED = "#8A8A8A"

# Blue and vermilion stay apart for every common kind of colour blindness (Okabe and Ito).
POSITIVE, NEGATIVE, UNSCORED = "#0072B2", "#D55E00", "#9A9A9A"

# Nodes keep out of the hues of the edges.
FILL = {
    Kind.INPUT: "#4A4A4A",
    Kind.HEAD: "#FFF6DC",
    Kind.KV: "#FFFDF5",
    Kind.MLP: "#E4F1E6",
    Kind.LOGITS: "#4A4A4A",
    Kind.NEURON: "#F1E8F6",
    Kind.FEATURE: "#DFF1F3",
    Kind.REST: "#F4F4F4",
    Kind.ERROR: "#F4F4F4",
}
LINE = {
    Kind.INPUT: "#4A4A4A",
    Kind.HEAD: "#B08A1E",
    Kind.KV: "#B08A1E",
    Kind.MLP: "#5B9469",
    Kind.LOGITS: "#4A4A4A",
    Kind.NEURON: "#8C62A8",
    Kind.FEATURE: "#3B8B94",
    Kind.REST: "#8F8F8F",
    Kind.ERROR: "#8F8F8F",
}
BORDER = {
    Kind.MLP: "SOLID",
    Kind.NEURON: "SOLID",
    Kind.REST: "SOLID",
    Kind.KV: "ROUNDED,DASHED",
    Kind.ERROR: "DASHED",
}
"""The rest are rounded."""

THIN, THICK = 0.6, 5.0


class Scale:
    """From an edge's score to its width, colour and pull on the layout, measured by the strongest edge.

    Widths grow with the square root, so that an edge a hundred times weaker than the strongest can still be
    seen. ``crowd`` goes from 0 (up to 40 edges) to 1 (120 and more), ``tall`` from 0 (16 ranks) to 1 (32).
    """

    def __init__(self, scores: Sequence[float], *, ranks: int = 1) -> None:
        finite = [score for score in scores if math.isfinite(score)]
        self.strongest = max((abs(score) for score in finite), default=0.0)
        self.signs = {score > 0 for score in finite if score != 0}
        self.crowd = min(max((len(scores) - 40) / 80, 0.0), 1.0)
        self.tall = min(max((ranks - 16) / 16, 0.0), 1.0)

    def share(self, score: float) -> float:
        """0 for nothing, 1 for the strongest edge; NaN counts as nothing, and an infinite score as the
        strongest.
        """
        if math.isnan(score) or score == 0:
            return 0.0
        return min(abs(score) / self.strongest, 1.0) if self.strongest else 1.0

    def width(self, score: float) -> float:
        """Pen width in points."""
        if math.isnan(score):
            return 1.0
        return THIN + (THICK - THIN) * math.sqrt(self.share(score))

    def score_of(self, width: float) -> float:
        """The size of score that is drawn at this width."""
        return self.strongest * ((width - THIN) / (THICK - THIN)) ** 2

    def points(self, size: float) -> float:
        """A font size, larger in large pictures."""
        return round(size * (1 + 0.45 * max(self.crowd, self.tall)), 1)

    def colour(self, score: float) -> str:
        """``#rrggbbaa``: the sign's colour, the fainter the weaker."""
        if math.isnan(score) or score == 0:
            return UNSCORED + "99"
        faintest = 0.45 - 0.15 * self.crowd
        opacity = faintest + (0.95 - faintest) * math.sqrt(self.share(score))
        return f"{POSITIVE if score > 0 else NEGATIVE}{round(255 * opacity):02X}"

    def weight(self, score: float) -> int:
        """How hard the layout tries to keep the edge short and straight."""
        return 1 + round(8 * self.share(score))


def signed(score: float) -> str:
    """``+0.123``: three figures and always a sign."""
    return f"{score:+.3g}"


def clean(text: str) -> str:
    """One line without control characters, which XML cannot hold."""
    return "".join(c if c.isprintable() else " " for c in text)


def quoted(text: str) -> str:
    """A quoted DOT string that means exactly ``text``: no escape sequence or entity in it is read as one."""
    # A tooltip is expanded twice, so that a backslash has to be doubled twice.
    safe = clean(text).replace("&", "&amp;").replace("\\", "\\" * 4).replace('"', '\\"')
    return f'"{safe}"'


def html_text(text: str) -> str:
    """Text for a label in Graphviz's HTML."""
    # Graphviz expands \N, \G and the like here too; doubled, a backslash is only itself.
    return html.escape(clean(text), quote=True).replace("\\", "\\\\")


def wrapped(text: str, width: int, *, most: int | None = None) -> list[str]:
    """Lines of at most ``width`` characters; past ``most`` lines the rest is cut and marked by an
    ellipsis.
    """
    lines = textwrap.wrap(clean(text).strip(), width, break_long_words=True) or [""]
    if most is not None and len(lines) > most:
        last = lines[most - 1][: width - 1].rstrip()
        lines = [*lines[: most - 1], f"{last}…"]
    return lines
