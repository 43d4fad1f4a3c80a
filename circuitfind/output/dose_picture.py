"""A picture of dose-response curves: the metric above, the accuracy below, over the dose."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitfind.circuit.dose import Reading
from circuitfind.output.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#000000")
"""Told apart by colour-blind readers too (Okabe and Ito)."""
MARKS = "os^Dv<>P"
STYLE: Any = {
    "svg.hashsalt": "circuitfind",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def picture_bytes(readings: Sequence[Reading], conditions: Mapping[str, Any], form: str) -> bytes:
    """The picture as a file of a form: svg, png or pdf. The same curves give the same bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        _metric(upper, readings, conditions)
        _accuracy(lower, readings)
        _name(figure, upper, readings, conditions)
        out = io.BytesIO()
        dates: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(out, format=form, dpi=160, metadata=dates.get(form))
    return out.getvalue()


def write_pictures(
    readings: Sequence[Reading], conditions: Mapping[str, Any], folder: Path, forms: Sequence[str]
) -> list[Path]:
    """The picture in several forms, as ``dose.svg`` and so on."""
    return [
        write_atomic(folder / f"dose.{form}", picture_bytes(readings, conditions, form)) for form in forms
    ]


def _name(figure: Figure, axes: Axes, readings: Sequence[Reading], conditions: Mapping[str, Any]) -> None:
    what = readings[0].curve.label if len(readings) == 1 else f"{len(readings)} patches"
    axes.set_title(_plain(_short(f"{conditions['task']}: doses of {what}", 72)), fontsize=10, loc="left")
    c = conditions
    told = (
        f"{c['model']}, {c['direction']}, {c['ablation']} ablation, counterfactual {c['counterfactual']}, "
        f"{c['n_prompts']} prompts, 95 % bootstrap intervals"
    )
    figure.supxlabel(_plain(told), fontsize=7, color="#555555", x=0.99, ha="right")


def _plain(text: str) -> str:
    """A text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _metric(axes: Axes, readings: Sequence[Reading], conditions: Mapping[str, Any]) -> None:
    alone = len(readings) == 1
    for i, reading in enumerate(readings):
        curve, colour = reading.curve, COLOURS[i % len(COLOURS)]
        x, y = curve.alphas, np.array([one.value for one in reading.metric])
        low, high = (_ends(reading, name, y) for name in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        label = _plain(_short(curve.label, 40)) if not alone else "measured"
        mark = MARKS[i % len(MARKS)]
        axes.plot(x, y, color=colour, marker=mark, markersize=3.5, linewidth=1.4, label=label)
        ends = [y[curve.at(0)], y[curve.at(1)]]
        axes.plot(
            [0, 1], ends, color=colour, linestyle=":", linewidth=1, label="straight line" if alone else None
        )
        if alone:
            _extras(axes, reading, y)
    axes.set_ylabel(_plain(str(conditions["metric"])))
    axes.margins(x=0.02)
    axes.legend(fontsize=8, frameon=False)


def _ends(reading: Reading, name: str, y: np.ndarray) -> np.ndarray:
    """One end of the intervals; where it is unbounded, the value."""
    found = np.array([getattr(one, name) for one in reading.metric])
    return np.where(np.isfinite(found), found, y)


def _extras(axes: Axes, reading: Reading, y: np.ndarray) -> None:
    """Of a picture of one curve: the slope at the unpatched run, and plateaus."""
    curve, shape = reading.curve, reading.shape
    if shape is not None:
        for i, one in enumerate(shape.plateaus):
            name = "plateau" if not i else None
            axes.axvspan(one.start, one.stop, color="#999999", alpha=0.18, linewidth=0, label=name)
    if curve.slopes is None:
        return
    zero = curve.at(0)
    slope = float(curve.slopes[zero].mean())
    low, high = axes.get_ylim()
    reach = 1.0
    if slope:  # as far as it stays in the picture, so that it does not squeeze the curve
        room = (high - y[zero]) if slope > 0 else (low - y[zero])
        reach = min(1.0, max(float(room / slope), 0.05))
    name = f"slope at 0 ({'EAP' if curve.edges else 'AtP'})"
    axes.plot(
        [0, reach],
        [y[zero], y[zero] + slope * reach],
        color="#d55e00",
        linestyle="--",
        linewidth=1.2,
        label=name,
    )
    axes.set_ylim(low, high)


def _accuracy(axes: Axes, readings: Sequence[Reading]) -> None:
    for i, reading in enumerate(readings):
        y = [one.value for one in reading.accuracy]
        axes.plot(
            reading.curve.alphas,
            y,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKS[i % len(MARKS)],
            markersize=2.5,
            linewidth=1.2,
        )
    axes.set_ylim(-0.05, 1.05)
    axes.set_yticks([0, 0.5, 1])
    axes.set_ylabel("accuracy")
    axes.set_xlabel("alpha: 0 is the unpatched run, 1 the full patch")
