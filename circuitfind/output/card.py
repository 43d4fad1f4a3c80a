"""A card: a title, a few facts, tables and a picture, as HTML for a notebook and as text for a terminal.

Everything that is put in is text and is escaped here, once. The HTML names no colour for text or ground: it takes
those of the notebook, light or dark. Pictures stand on paper of their own, because their lines are dark.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_TABLE = "border-collapse:collapse;margin:.5em 0;font-size:.92em"
_CELL = "padding:.15em .8em .15em 0;border:0;border-bottom:1px solid rgba(128,128,128,.3);vertical-align:top;"
_MUTED = "opacity:.7"


@dataclass(frozen=True)
class Table:
    """Rows of text under a head. Numbers stand right.

    Attributes:
        head: A word for each column.
        rows: As many texts each; what looks like a number is set as one.
        title: What stands above it.
        more: What stands below it, such as how many rows are left out.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    more: str = ""


@dataclass(frozen=True)
class Card:
    """What an object shows of itself.

    Attributes:
        title: One line.
        facts: Names with texts.
        tables: In their order.
        svg: A picture; empty for none.
        alt: What the picture shows, for those who cannot see it.
        note: A last line.
    """

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    svg: str = ""
    alt: str = ""
    note: str = ""

    def as_html(self) -> str:
        """Without script, without a link, without a request."""
        parts = [f'<div class="circuitfind"><div><strong>{escape(self.title)}</strong></div>']
        if self.facts:
            rows = "".join(
                f'<tr><td style="{_CELL}{_MUTED};text-align:left">{escape(name)}</td>'
                f'<td style="{_CELL}text-align:left">{"<br>".join(map(escape, text.splitlines()))}</td></tr>'
                for name, text in self.facts
            )
            parts.append(f'<table style="{_TABLE}">{rows}</table>')
        tables = "".join(_table_html(table) for table in self.tables if table.rows)
        picture = ""
        if self.svg:
            data = base64.b64encode(self.svg.encode()).decode()
            # An image of its own: nothing in it can run, and its ids meet those of no other picture of the page.
            picture = (
                f'<img alt="{escape(self.alt or self.title)}" src="data:image/svg+xml;base64,{data}" '
                'style="max-width:100%;max-height:32em;background:white;border-radius:4px">'
            )
        if picture and tables:
            aside = f'<div style="flex:0 1 auto">{picture}</div>'
            parts.append(
                f'<div style="display:flex;flex-wrap:wrap;gap:0 2em"><div>{tables}</div>{aside}</div>'
            )
        else:
            parts += [tables, picture]
        if self.note:
            parts.append(f'<div style="{_MUTED}">{escape(self.note)}</div>')
        return "".join([*parts, "</div>"])

    def as_text(self) -> str:
        """The same but for the picture."""
        width = max((len(name) for name, _ in self.facts), default=0)
        lines = [self.title]
        for name, text in self.facts:
            head, *rest = text.splitlines() or [""]
            lines.append(f"  {name:<{width}}  {head}")
            lines += [f"  {'':<{width}}  {line}" for line in rest]
        for table in self.tables:
            if table.rows:
                lines += ["", *_table_lines(table)]
        return "\n".join([*lines, *([self.note] if self.note else [])])


def is_number(text: str) -> bool:
    """Whether a cell is set as a number: ``+1.2``, ``3 %``, ``0.9 [0.8, 1.0]``, ``1,519``; a dash is one left out."""
    first = text.split(" ", maxsplit=1)[0].replace(",", "").replace("−", "-")
    try:
        float(first)
    except ValueError:
        return text in ("", "-", "–")
    return True


def _right(table: Table) -> list[bool]:
    columns = range(len(table.head))
    return [
        any(row[i].strip("-–") for row in table.rows) and all(is_number(row[i]) for row in table.rows)
        for i in columns
    ]


def _table_html(table: Table) -> str:
    sides = ["right" if right else "left" for right in _right(table)]

    def line(cells: Sequence[str], tag: str, style: str = "") -> str:
        inner = "".join(
            f'<{tag} style="{_CELL}text-align:{side};white-space:pre-wrap;{style}">{escape(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{inner}</tr>"

    title = f'<div style="margin-top:.6em">{escape(table.title)}</div>' if table.title else ""
    body = "".join(line(row, "td") for row in table.rows)
    more = f'<div style="{_MUTED}">{escape(table.more)}</div>' if table.more else ""
    head = f"<thead>{line(table.head, 'th', 'font-weight:600;')}</thead>"
    return f'{title}<table style="{_TABLE}">{head}<tbody>{body}</tbody></table>{more}'


def _table_lines(table: Table) -> list[str]:
    rows = [table.head, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    sides = _right(table)
    lines = [f"  {table.title}"] if table.title else []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, sides, strict=True)
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return [*lines, *([f"  {table.more}"] if table.more else [])]
