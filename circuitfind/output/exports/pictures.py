"""Pictures: DOT text, and what Graphviz makes of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from circuitfind.circuit.graph import Circuit
from circuitfind.output.exports.form import Exported, Source
from circuitfind.output.exports.plain import plain


def dot(source: Source) -> Exported:
    """DOT text as ``circuitfind render`` draws it; circuits of very many edges are drawn by the strongest alone."""
    return _exported(source, ".dot", _dot(source))


def picture(source: Source, name: str) -> Exported:
    """The same as SVG, PNG or PDF.

    Raises:
        RunError: Graphviz is not installed, or cannot draw it.
    """
    from circuitfind.output.draw import render

    with TemporaryDirectory(prefix="circuitfind-export-") as folder:
        (path,) = render(_dot(source), Path(folder) / "circuit", (name,))
        return _exported(source, f".{name}", path.read_bytes())


svg, png, pdf = (partial(picture, name=name) for name in ("svg", "png", "pdf"))


def _dot(source: Source) -> str:
    from circuitfind.output.dot import to_dot
    from circuitfind.output.dot_features import feature_dot

    if isinstance(source.what, Circuit):
        return to_dot(source.what, words=source.words)
    return feature_dot(source.what, labels=source.words.texts)


def _exported(source: Source, ending: str, content: str | bytes) -> Exported:
    return Exported({ending: content}, plain(source.what).counts, _fewer(source))


def _fewer(source: Source) -> tuple[str, ...]:
    """What a picture leaves out."""
    from circuitfind.output.dot_features import DRAWN
    from circuitfind.output.dot_fewer import fewer_edges

    if isinstance(source.what, Circuit):
        drawn, whole = len(fewer_edges(source.what).edges), len(source.what.edges)
        return (f"the picture shows the {drawn:,} strongest of {whole:,} edges",) if drawn < whole else ()
    whole = len(source.what.nodes)
    return (f"the picture shows the {DRAWN} strongest of {whole:,} nodes",) if whole > DRAWN else ()
