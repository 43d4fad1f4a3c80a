"""Draw the points of docs/data/scale.json, and write the tables of docs/scale.md: ``python -m benchmarks.scale_page``.

Pictures are on a logarithmic scale both ways. Measured points are filled and joined; estimated ones are hollow, on a dashed
line. Tables are put between the marks of the page; what stands around them is written by hand.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from benchmarks.scale import DATA, Point, read

DOCS = DATA.parent.parent
PAGE, IMAGES = DOCS / "scale.md", DOCS / "images"
AXES = {
    "prompts": "prompt pairs",
    "size": "weights of the model",
    "candidates": "edges patched exactly",
    "workers": "workers",
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 300, 64, 20, 16, 46
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Told apart by colour-blind readers too (Okabe and Ito)."""
PAPER, INK, GRID = "#ffffff", "#333333", "#dddddd"
MARK = "<!-- {}: from docs/data/scale.json by benchmarks/scale_page.py -->"
NOT_YET = "not measured yet"


Series = tuple[str, str, list[Point]]
"""What a line is called, ``measured`` or ``estimated``, and its points."""


def series(points: Sequence[Point]) -> list[Series]:
    """The lines of a picture: by machine, kind, and for workers by engine."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        name = point.machine
        if point.curve == "workers":
            name = point.label
        found.setdefault((name, point.kind), []).append(point)
    return [(name, kind, sorted(some, key=lambda p: p.x)) for (name, kind), some in found.items()]


def ticks(low: float, high: float, base: int) -> list[float]:
    """Powers of a base from below the smallest value to above the largest."""
    first, last = math.floor(math.log(low, base) + 1e-9), math.ceil(math.log(high, base) - 1e-9)
    return [float(base) ** i for i in range(first, max(last, first + 1) + 1)]


def picture(curve: str, points: Sequence[Point]) -> str:
    """A curve as SVG, on paper of its own so that it can be read on any page."""
    across = ticks(min(p.x for p in points), max(p.x for p in points), 10 if curve == "size" else 2)
    up = ticks(min(p.seconds for p in points), max(p.seconds for p in points), 10)

    def x(value: float) -> float:
        share = math.log(value / across[0]) / math.log(across[-1] / across[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = math.log(value / up[0]) / math.log(up[-1] / up[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            f'font-family="sans-serif" font-size="11" role="img" aria-label="seconds by {AXES[curve]}">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
    ]
    every = max(1, math.ceil(len(across) / 9))
    for i, value in enumerate(across):
        lines.append(_line((x(value), y(up[0])), (x(value), y(up[-1])), GRID))
        if i % every == 0:
            told = short(value) if curve == "size" else f"{value:,.0f}"
            lines.append(_text((x(value), HEIGHT - BOTTOM + 16), told, "middle"))
    for value in up:
        lines.append(_line((x(across[0]), y(value)), (x(across[-1]), y(value)), GRID))
        lines.append(_text((LEFT - 6, y(value) + 4), short(value), "end"))
    lines.append(_text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10), AXES[curve], "middle"))
    lines.append(
        f'<text x="14" y="{(HEIGHT - BOTTOM + TOP) / 2:.0f}" fill="{INK}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(HEIGHT - BOTTOM + TOP) / 2:.0f})">seconds</text>'
    )
    names = list(dict.fromkeys(name for name, _, _ in series(points)))
    for row, (name, kind, some) in enumerate(series(points)):
        colour, real = COLOURS[names.index(name) % len(COLOURS)], kind == "measured"
        places = [(x(p.x), y(p.seconds)) for p in some]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        dash = "" if real else ' stroke-dasharray="4 3"'
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
        lines += [_dot(place, colour, filled=real) for place in places]
        at = (WIDTH * 0.6 if curve == "workers" else LEFT + 14.0, TOP + 12.0 + 15 * row)
        lines += [
            _dot((at[0], at[1] - 4), colour, filled=real),
            _text((at[0] + 10, at[1]), f"{kind}: {name}", "start"),
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _line(a: tuple[float, float], b: tuple[float, float], colour: str) -> str:
    return f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" stroke="{colour}"/>'


def _text(at: tuple[float, float], text: str, anchor: str) -> str:
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" fill="{INK}" text-anchor="{anchor}">{escape(text)}</text>'


def _dot(at: tuple[float, float], colour: str, *, filled: bool) -> str:
    inside = colour if filled else PAPER
    return f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="3.5" fill="{inside}" stroke="{colour}" stroke-width="1.5"/>'


def short(value: float) -> str:
    """A number as an axis has it: 0.1, 16, 2k, 125M, 7.6B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(curve: str, points: Sequence[Point]) -> Iterator[str]:
    """Measured and estimated seconds side by side, never in one column."""
    by = "engine" if curve == "workers" else "machine"
    yield f"| {AXES[curve]} | {by} | measured | estimated |"
    yield "| --: | --- | --: | --: |"
    rows: dict[tuple[float, str], dict[str, Point]] = {}
    for point in points:
        name = point.label if curve == "workers" else point.machine
        rows.setdefault((point.x, name), {})[point.kind] = point
    for (at, name), found in sorted(rows.items()):
        label = next(iter(found.values())).label if curve == "size" else ""
        where = f"{short(at)} ({label})" if label else f"{at:,.0f}"
        cells = [
            f"{seconds(found[kind].seconds)} s" if kind in found else "" for kind in ("measured", "estimated")
        ]
        yield f"| {where} | {name} | {cells[0]} | {cells[1]} |"


def said(points: Sequence[Point]) -> str:
    """When points were measured, and what else the machines did."""
    measured = [point for point in points if point.kind == "measured"]
    if not measured:
        return f"The points are {NOT_YET}."
    days = ", ".join(sorted({point.day for point in measured}))
    loads = [point.load for point in measured if point.load is not None]
    busy = f", at a load of {min(loads):.1f} to {max(loads):.1f} from other work" if loads else ""
    found = f"Measured on {days}{busy}."
    clock = [point for point in measured if point.curve == "workers"]
    if clock and min(loads, default=0.0) > 2 * max(point.x for point in clock):
        found += (
            " **That is far more than the cores there are: these points tell how the machine was shared out, and not what "
            "workers are worth.**"
        )
    return found


def section(curve: str, points: Sequence[Point]) -> str:
    """What stands between the marks of a curve."""
    some = [point for point in points if point.curve == curve]
    if not some:
        return f"{NOT_YET}\n"
    text = f"![Seconds by {AXES[curve]}](images/scale-{curve}.svg)"
    return "\n".join([text, "", *table(curve, some), "", said(some), ""])


def page(text: str, points: Sequence[Point]) -> str:
    """The page with its tables made anew."""
    for curve in AXES:
        begin, end = re.escape(MARK.format(curve)), re.escape(MARK.format(f"end of {curve}"))
        made = f"{MARK.format(curve)}\n\n{section(curve, points)}\n{MARK.format(f'end of {curve}')}"
        text, count = re.subn(f"{begin}.*?{end}", made.replace("\\", r"\\"), text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{PAGE} has no place for {curve}: {MARK.format(curve)}")
    return text


def files(points: Sequence[Point], text: str) -> dict[Path, str]:
    """What is written, by path."""
    found = {PAGE: page(text, points)}
    for curve in AXES:
        some = [point for point in points if point.curve == curve]
        if some:
            found[IMAGES / f"scale-{curve}.svg"] = picture(curve, some)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the curves of docs/scale.md.")
    parser.add_argument("--check", action="store_true", help="exit with 1 if something is stale")
    asked = parser.parse_args()
    stale = []
    for path, text in files(read(), PAGE.read_text(encoding="utf-8")).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not asked.check:
                path.write_text(text, encoding="utf-8")
                print(path.relative_to(DOCS.parent))
    if asked.check and stale:
        sys.exit(f"stale: {', '.join(str(path.relative_to(DOCS.parent)) for path in stale)}")


if __name__ == "__main__":
    main()
