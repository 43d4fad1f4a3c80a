"""A dose-response curve in words, and drawn in characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from circuitfind.circuit.dose import FAR, Plateau, Reading, Shape
from circuitfind.circuit.graph import Interval

NEAR = 0.05
"""A departure below which a curve is told as close to a line."""
NOUGHT = 0.05
"""A prediction below this share of the effect is blind to it."""


def percent(value: float) -> str:
    """A share of the effect, such as ``97 %``; -0 is 0."""
    return f"{round(100 * value) + 0} %"


def told(value: Interval) -> str:
    """The same with its interval."""
    ends = (
        f"[{round(100 * value.low) + 0}, {round(100 * value.high) + 0}]" if _bounded(value) else "[unbounded]"
    )
    return f"{percent(value.value)} {ends}"


def _bounded(value: Interval) -> bool:
    return abs(value.low) != float("inf") and abs(value.high) != float("inf")


def sentences(reading: Reading) -> list[tuple[str, str]]:
    """(title, text) of what a curve says, in the order in which it should be read."""
    shape = reading.shape
    if shape is None:
        e = reading.effect
        text = f"{e}: these prompts cannot tell it from zero, so the curve has no shape to speak of"
        return [("effect", f"{text} (patch something else, or take more prompts with --count)")]
    return [("shape", _overall(shape)), *_ranges(shape), *_single(shape), *_predictions(reading, shape)]


def even(s: Shape) -> bool:
    """Whether the slopes at the ends, where they are known, are those of a line too."""
    return all(abs(one.value - 1) <= FAR for one in (s.first, s.last) if one is not None)


def _overall(s: Shape) -> str:
    if s.straight and not even(s):
        return (
            f"at these doses a straight line (off by {s.departure.value:.3f} on average), but the slopes at its ends are not "
            "those of a line: it bends near an end, so take finer doses (--steps 20, or --alpha 0,0.02,0.05,...)"
        )
    if s.straight:
        return (
            f"a straight line (off by {s.departure.value:.3f} on average, at most {s.departure.high:.3f}): what is patched "
            "acts in proportion to the dose, and one gradient says it all"
        )
    near = "close to a straight line: off" if s.departure.value < NEAR else "not a straight line: off"
    lean = (
        "the first doses do most of it"
        if s.bend.low > 0
        else "the last doses do most of it"
        if s.bend.high < 0
        else "it leans to neither end for sure"
    )
    lean = lean if s.departure.value >= NEAR else lean.replace("most of it", "a little more")
    return (
        f"{near} by {s.departure} on average (0 is a line, 0.5 a step at an end); {lean}; "
        f"half of the effect at alpha {_alpha(s.half)}"
    )


def _alpha(value: Interval) -> str:
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _ranges(s: Shape) -> Iterator[tuple[str, str]]:
    for one in s.plateaus:
        yield "plateau", _plateau(one)
    if s.threshold is not None:
        low, high = s.threshold
        yield (
            "threshold",
            f"from a quarter to three quarters of the effect between alpha {low:.2f} and {high:.2f}",
        )
    if s.outside is not None:
        way = "past the full effect" if s.outside > 1 else "the other way"
        yield "overshoot", f"on the way it goes {way}, to {percent(s.outside)} of it"
    if s.reversal is not None:
        text = f"on the way it gives back {percent(s.reversal)} of the effect before it goes on: two things answer the dose, "
        yield "turns back", text + "such as a part and what stands in for it"


def _plateau(one: Plateau) -> str:
    where = f"flat from alpha {one.start:g} to {one.stop:g}, at {percent(one.level)} of the effect: "
    if one.start == 0:
        return where + (
            "small doses do nothing; something is saturated, or stands in, at the unpatched run, and a gradient taken "
            "there under-estimates what is patched"
        )
    if one.stop == 1:
        return where + (
            "the effect is complete before the dose is; a gradient taken at the patched end sees nothing of it, one at "
            "the unpatched end may see too much"
        )
    return where + "the effect comes in two steps, and a gradient between them sees neither"


def _single(s: Shape) -> Iterator[tuple[str, str]]:
    if s.halves is not None and s.counted > 1:
        low, middle, high = s.halves
        text = f"half of the own effect at alpha {middle:.2f}, for the middle half of them from {low:.2f} to {high:.2f}"
        yield "by prompt", f"{text} ({s.counted} prompts)"


def _predictions(reading: Reading, s: Shape) -> Iterator[tuple[str, str]]:
    if s.first is None or s.last is None or s.path is None:
        return
    what = "EAP" if reading.curve.edges else "AtP"
    yield (
        "gradient",
        f"{what}, the slope at alpha 0, predicts {told(s.first)} of the effect: {_verdict(s.first)}",
    )
    yield "", f"the slope at alpha 1 predicts {told(s.last)}: {_verdict(s.last)}"
    if reading.eap_ig is not None:
        value = reading.eap_ig
        verdict = _verdict(Interval(value, value, value))
        yield "", f"EAP-IG, which goes from one input to the other, predicts {percent(value)}: {verdict}"
    yield "", f"slopes along this very path add up to {percent(s.path.value)} ({_coarse(s.path.value)})"


def _coarse(value: float) -> str:
    return "100 % but for rounding" if abs(value - 1) < 0.02 else "100 % with finer doses: --steps"


def _verdict(share: Interval) -> str:
    if abs(share.value) < NOUGHT:
        return "blind to it"
    if share.high < 0:
        return "the wrong sign"
    if share.high < 1 - FAR:
        return "too little"
    if share.low > 1 + FAR:
        return "too much"
    if share.low > 1 - FAR and share.high < 1 + FAR:
        return "right"
    return "about right" if abs(share.value - 1) < FAR else "unsure"


# Drawn in characters.


def chart(reading: Reading, *, width: int = 72, height: int = 12, blocks: bool = True) -> list[str]:
    """The curve with its intervals (a bar) over the straight line between its ends (dots).

    Args:
        reading: The curve.
        width: Columns that it may take.
        height: Rows of the plot.
        blocks: Use characters beyond ASCII.
    """
    alphas, metric = reading.curve.alphas, reading.metric
    marks = "●│·" if blocks else "o|."
    ends = [x for one in metric for x in (one.value, one.low, one.high) if abs(x) != float("inf")]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    labels = [f"{high - span * row / (height - 1):.3g}" for row in range(height)]
    margin = max(len(text) for text in labels) + 1
    columns = width - margin - 2
    grid = [[" "] * columns for _ in range(height)]

    def place(value: float) -> int:
        inside = min(max(value, low), high)
        return round((high - inside) / span * (height - 1))

    first, last = float(alphas[0]), float(alphas[-1])
    at = [round((float(a) - first) / (last - first) * (columns - 1)) for a in alphas]
    zero, one = metric[reading.curve.at(0)].value, metric[reading.curve.at(1)].value
    for column in range(columns):
        alpha = first + (last - first) * column / (columns - 1)
        if 0 <= alpha <= 1:
            grid[place(zero + alpha * (one - zero))][column] = marks[2]
    for column, value in zip(at, metric, strict=True):
        for row in range(place(value.high), place(value.low) + 1):
            grid[row][column] = marks[1]
    for column, value in zip(at, metric, strict=True):
        grid[place(value.value)][column] = marks[0]
    wall, corner, floor = ("┤", "└", "─") if blocks else ("|", "+", "-")
    every = max(1, (height - 1) // 4)
    rows = [
        f"{labels[row] if row % every == 0 else '':>{margin}} {wall}{''.join(cells)}".rstrip()
        for row, cells in enumerate(grid)
    ]
    return [
        *rows,
        f"{'':>{margin}} {corner}{floor * columns}",
        _ticks([float(a) for a in alphas], at, margin + 2, columns),
    ]


def _ticks(alphas: Sequence[float], at: Sequence[int], margin: int, columns: int) -> str:
    """Doses below the axis, as many as fit."""
    line = [" "] * (columns + 6)
    for alpha, column in sorted(zip(alphas, at, strict=True), key=lambda one: (one[0] not in (0, 1), one[0])):
        text = f"{float(alpha):g}"
        cells = range(max(0, column - 1), column + len(text) + 1)
        if all(line[cell] == " " for cell in cells if cell < len(line)):
            line[column : column + len(text)] = text
    return (" " * margin + "".join(line)).rstrip()
