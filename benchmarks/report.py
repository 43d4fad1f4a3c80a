"""Rows of results, on the screen and in a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path

HEADER = ("job", "figure", "value", "of", "bar", "verdict", "how")
MISSED, FAILED = "missed", "failed"


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        job: Which job.
        figure: ``time``, ``speed``, ``memory``, ``difference``, or a number of pairs.
        value: As it is read.
        of: What it is a multiple of, or its unit.
        bar: What it has to keep to.
        verdict: ``ok``, ``missed``, ``failed``, ``not available``, or nothing where there is no bar.
        how: What went in.
    """

    job: str
    figure: str
    value: str = ""
    of: str = ""
    bar: str = ""
    verdict: str = ""
    how: str = ""


class Screen:
    """Prints rows as they come."""

    def __init__(self, jobs: Sequence[str]) -> None:
        widths = [max(len(job) for job in (*jobs, HEADER[0])), 10, 8, 14, 7, 8, 0]
        self._layout = "  ".join(f"{{:<{width}}}" for width in widths)
        self._print(HEADER)

    def row(self, row: Row) -> None:
        self._print(astuple(row))

    def _print(self, cells: Sequence[str]) -> None:
        print(self._layout.format(*cells).rstrip(), flush=True)


def versions() -> str:
    """What was measured with what."""
    names = ("circuitfind", "torch", "transformers", "transformer-lens")
    return ", ".join(f"{name} {version(name)}" for name in names)


INTRODUCTION = """\
# Benchmarks

Written by `make bench ARGS="--write docs/benchmarks.md"`; what the figures mean is in
`benchmarks/README.md`. Random weights of the shape named, random tokens, fp32. On a CPU: ratios
of the fastest CPU times on one thread; on a GPU: of the fastest times by the clock.
"""


def write(path: Path, section: str, note: str, rows: Sequence[Row], order: Sequence[str]) -> None:
    """Put rows into a page: the section's rows of the same jobs go, rows of other jobs and other sections stay."""
    sections = _read(path)
    fresh = {row.job for row in rows}
    kept = [row for row in sections.get(section, ("", []))[1] if row.job not in fresh and row.job in order]
    sections[section] = (note, sorted([*kept, *rows], key=lambda row: order.index(row.job)))
    page = [INTRODUCTION]
    for title, (told, table) in sections.items():
        lines = [HEADER, ("---",) * len(HEADER), *(astuple(row) for row in table)]
        page += [f"## {title}\n", f"{told}\n", *(_line(line) for line in lines), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(page), encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _read(path: Path) -> dict[str, tuple[str, list[Row]]]:
    found: dict[str, tuple[str, list[Row]]] = {}
    title = ""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.startswith("## "):
            title = line[3:]
            found[title] = ("", [])
        elif title and line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if tuple(cells) != HEADER and set(cells[0]) != {"-"}:
                found[title][1].append(Row(*cells))
        elif title and line.strip():
            found[title] = (line, found[title][1])
    return found
