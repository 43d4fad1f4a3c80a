"""The charts of a report as figures for papers: vector files of one or two columns, the same bytes every time.

Each figure has a module that makes a ``matplotlib`` figure from what the report shows; the circuit itself is drawn by Graphviz.
"""

from circuitfind.output.figures.make import FIGURES, Drawn, NotDrawn, draw_figures, figure_of, wanted
from circuitfind.output.figures.style import FORMATS, WIDTHS, file_of

__all__ = [
    "FIGURES",
    "FORMATS",
    "WIDTHS",
    "Drawn",
    "NotDrawn",
    "draw_figures",
    "figure_of",
    "file_of",
    "wanted",
]
