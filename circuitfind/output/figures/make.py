"""From a finished run to its figures. Loads no model."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.errors import RunError, UsageError, did_you_mean
from circuitfind.output.dot import to_dot
from circuitfind.output.dot_features import feature_dot
from circuitfind.output.draw import dot_binary, install_hint, render
from circuitfind.output.figures.style import FORMATS, WIDTHS, Width, file_of, styled
from circuitfind.output.files import write_atomic
from circuitfind.output.report.data import collect
from circuitfind.output.store import Run
from circuitfind.output.words import words_of
from circuitfind.summary import alone, finished_stages, of_features, stored

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "circuit": "the circuit, by Graphviz",
    "heatmap": "effects of heads and MLPs: noising, denoising, direct",
    "curve": "faithfulness and completeness over edges kept",
    "patterns": "attention of the strongest heads on a prompt",
    "backups": "how much of a lost direct effect each component takes over",
    "repair": "where the lost direct effect of removed heads went",
    "units": "tokens that neurons and features promote",
}
"""Every figure, and what it shows."""

TALL = 9.0
"""Inches that a circuit may be high."""
LETTERS = 15
"""Of a title, in an inch."""


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class NotDrawn:
    """A figure that the run has nothing for, and why."""

    name: str
    why: str


def wanted(only: str | None) -> tuple[str, ...]:
    """The figures that are named, with commas between them; all for None.

    Raises:
        UsageError: A name that is not known, with the nearest.
    """
    if only is None:
        return tuple(FIGURES)
    names = [name.strip().lower() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in FIGURES:
            raise UsageError(f"there is no figure '{name}'", hint=did_you_mean(name, FIGURES))
    if not names:
        raise UsageError("no figure is named", hint=f"choose of {', '.join(FIGURES)}")
    return tuple(name for name in FIGURES if name in names)


def figure_of(
    name: str, data: Mapping[str, Any], width: Width = "page", *, title: str | None = None
) -> Figure:
    """One of the charts as a matplotlib figure.

    Args:
        name: Of ``FIGURES``, but for the circuit, which Graphviz draws.
        data: As ``output.report.data.collect`` gives it.
        width: Of a ``column`` or of a ``page``.
        title: Above it; none by default.

    Raises:
        UsageError: No such chart.
        RunError: The run has nothing for it.
    """
    if name not in FIGURES or name == "circuit":
        known = [one for one in FIGURES if one != "circuit"]
        raise UsageError(f"there is no chart '{name}'", hint=did_you_mean(name, known))
    why = _missing(name, data)
    if why is not None:
        raise RunError(f"there is nothing to draw for '{name}': {why}", hint="choose another figure")
    section = "backups" if name == "repair" else name
    with styled():
        figure: Figure = import_module(f"circuitfind.output.figures.{name}").draw(data[section], width)
        if title:
            lines = textwrap.wrap(title, round(WIDTHS[width] * LETTERS))
            figure.set_figheight(figure.get_figheight() + 0.14 * len(lines) + 0.06)
            figure.suptitle("\n".join(lines))
    return figure


def draw_figures(
    run: Run,
    folder: Path,
    *,
    names: Sequence[str] = tuple(FIGURES),
    formats: Sequence[str] = ("pdf",),
    width: Width = "page",
    titles: bool = False,
    heads: Sequence[str] = (),
    prompt: int = 1,
) -> tuple[list[Drawn], list[NotDrawn]]:
    """Write a run's figures, each named for what it shows.

    Args:
        run: A finished run.
        folder: Where to.
        names: Of ``FIGURES``.
        formats: Of ``FORMATS``.
        width: Of a ``column`` or of a ``page``.
        titles: Write above each what it shows, of which task and model.
        heads: Whose attention ``patterns`` shows; the strongest where none is named.
        prompt: On which of the prompts whose attention is kept, counted from 1.

    Returns:
        The figures that were drawn, and those that the run has nothing for.

    Raises:
        RunError: The run has found nothing yet, or its files were changed.
        UsageError: An unknown figure, format, width, head or prompt, or a folder that cannot be written to.
    """
    names, formats = wanted(",".join(names)), _forms(formats)
    if width not in WIDTHS:
        raise UsageError(f"there is no width '{width}'", hint=did_you_mean(width, WIDTHS))
    data = collect(run)
    if "patterns" in names and data["patterns"] is not None:
        from circuitfind.output.figures.patterns import chosen

        data["patterns"] = chosen(data["patterns"], heads, prompt)
    drawn: list[Drawn] = []
    left_out: list[NotDrawn] = []
    for name in names:
        title = _title(name, run) if titles else None
        why = _no_circuit(run) if name == "circuit" else _missing(name, data)
        if why is not None:
            left_out.append(NotDrawn(name, why))
        elif name == "circuit":
            drawn.append(Drawn(name, tuple(_circuit(run, folder, formats, width, title))))
        else:
            figure = figure_of(name, data, width, title=title)
            made = {form: file_of(figure, form) for form in formats}
            drawn.append(
                Drawn(name, tuple(write_atomic(folder / f"{name}.{f}", found) for f, found in made.items()))
            )
    return drawn, left_out


def _title(name: str, run: Run) -> str:
    what = "a circuit" if name == "circuit" else FIGURES[name]
    return f"{what[0].upper()}{what[1:]} ({run.manifest['task']}, {run.manifest['model']})"


def _forms(formats: Sequence[str]) -> tuple[str, ...]:
    for form in formats:
        if form not in FORMATS:
            raise UsageError(f"unknown format '{form}'", hint=did_you_mean(form, FORMATS))
    return tuple(dict.fromkeys(formats))


def _missing(name: str, data: Mapping[str, Any]) -> str | None:
    """Why a chart cannot be drawn; None where it can."""
    section = "backups" if name == "repair" else name
    found = data.get(section)
    if found is None:
        return str(data["missing"].get(section, "the run holds nothing of the kind"))
    if name == "units" and not found["nodes"]:
        return "nobody has looked at its neurons and features yet: `circuitfind name` does"
    if name == "backups":
        from circuitfind.output.figures.backups import rows_of

        return None if rows_of(found) else f"nothing took over anything ({found['verdict']})"
    if name == "repair":
        from circuitfind.output.figures.repair import sets_of

        return None if sets_of(found) else "no set that was removed lost a direct effect"
    return None


# The circuit.


def _no_circuit(run: Run) -> str | None:
    if alone(run):
        return "the run looked for backups alone: it has no circuit"
    if dot_binary() is None:
        return f"Graphviz's 'dot' is not installed; {install_hint()}"
    return None


def _circuit(run: Run, folder: Path, formats: Sequence[str], width: Width, title: str | None) -> list[Path]:
    words = words_of(run)
    legend = width == "page"  # it would be wider than a column
    if of_features(run):
        graph = FeatureGraph.load(finished_stages(run)["features"].files["graph.json"])
        text = feature_dot(graph, title=title or "", caption=False, legend=legend, labels=words.texts)
    else:
        circuit = stored(run).circuit
        text = to_dot(circuit, title=title or "", caption=False, legend=legend, words=words)
    fitted = re.sub(r"graph \[", f'graph [size="{WIDTHS[width]:g},{TALL:g}", ', text, count=1)
    return render(fitted, folder / "circuit", formats)
