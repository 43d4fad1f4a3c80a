"""What stands below a picture: a legend, and a caption that says what the circuit holds under."""

from __future__ import annotations

import math
from collections.abc import Sequence

from circuitfind.circuit.graph import Circuit
from circuitfind.names import Kind
from circuitfind.output.dot_backups import caption as backups_caption
from circuitfind.output.dot_style import (
    FILL,
    INK,
    LINE,
    MUTED,
    NEGATIVE,
    POSITIVE,
    THICK,
    UNSCORED,
    Scale,
    html_text,
    wrapped,
)

_COLUMNS = 92
"""Characters in a line of the caption."""


def bottom_table(
    circuit: Circuit, scale: Scale, *, title: str | None, caption: bool, legend: bool, links: bool
) -> str:
    """The label of the graph in Graphviz's HTML, or an empty string.

    It is a label and not a cluster of sample nodes, so that it cannot bend the layout of the circuit.
    """
    rows: list[str] = []
    if legend:
        rows.append(f"<TR><TD>{_legend(circuit, scale, links)}</TD></TR>")
    conditions = circuit.conditions
    if caption or title:
        named = f"A circuit for {conditions.task} in {conditions.model}" if title is None else title
        rows.append(_lines(wrapped(named, _COLUMNS - 20), size=scale.points(12.0), bold=True))
    if caption:
        sentences = (wrapped(sentence, _COLUMNS) for sentence in caption_lines(circuit))
        rows += [_lines(lines, size=scale.points(9.0)) for lines in sentences]
    if not rows:
        return '""'
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2">{"".join(rows)}</TABLE>>'


def caption_lines(circuit: Circuit) -> list[str]:
    """What the circuit holds under and how well, in sentences."""
    c = circuit.conditions
    conditions = (
        f"A circuit under these conditions: metric {c.metric}; {c.ablation} ablation ({c.direction}); "
        f"counterfactual {c.counterfactual.strip()}; method {c.method}; rule {c.rule}."
    )
    measured = [
        f"{e.faithfulness} under {e.ablation} ablation ({e.n_prompts} prompts)" for e in circuit.evaluations
    ]
    faithful = "Faithfulness " + ("; ".join(measured) if measured else "not measured") + "."
    share = 100 * circuit.share_of_edges if circuit.anatomy.n_edges else 0.0
    kept = (
        f"Kept: {len(circuit.edges):,} of {circuit.anatomy.n_edges:,} edges ({share:.2g} %), "
        f"{_count(len(circuit.heads), 'head')}, {_count(len(circuit.mlps), 'MLP')}."
    )
    beside = backups_caption(circuit)
    return [conditions, f"{faithful} {kept}", *([beside] if beside else [])]


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _lines(lines: Sequence[str], *, size: float, bold: bool = False) -> str:
    text = "<BR/>".join(html_text(line) for line in lines)
    text = f"<B>{text}</B>" if bold else text
    return f'<TR><TD><FONT POINT-SIZE="{size}">{text}</FONT></TD></TR>'


# The legend: samples made of table cells, which need no font to have a certain sign.


def _legend(circuit: Circuit, scale: Scale, links: bool) -> str:
    kinds = {node.kind for node in circuit.nodes}
    upper: list[tuple[str, str]] = []
    for kind, style, meaning in (
        (Kind.HEAD, "ROUNDED", "attention head"),
        (Kind.KV, "ROUNDED,DASHED", "key/value head"),
        (Kind.MLP, "SOLID", "MLP"),
    ):
        if kind in kinds:
            upper.append((_box(kind, style), meaning))
    if kinds & {Kind.HEAD, Kind.KV}:
        upper.append((_word("q k v", scale), "input that an edge enters"))
    lower: list[tuple[str, str]] = []
    if True in scale.signs:
        lower.append((_bar(POSITIVE, 3), "positive score: helps"))
    if False in scale.signs:
        lower.append((_bar(NEGATIVE, 3), "negative score: hinders"))
    if _unscored(circuit):
        lower.append((_bar(UNSCORED, 1), "not scored"))
    if links:
        dots = "".join(f"<TD>{_bar(LINE[Kind.KV], 1, length=2)}</TD>" for _ in range(6))
        upper.append(
            (
                f'<TABLE BORDER="0" CELLSPACING="1" CELLPADDING="0"><TR>{dots}</TR></TABLE>',
                "k and v serve this head",
            )
        )
    if scale.strongest:
        widths = (1, 3, round(THICK))
        bars = "".join(f"<TD>{_bar(INK, width, length=12)}</TD>" for width in widths)
        sizes = ", ".join(f"{scale.score_of(float(width)):.2g}" for width in widths)
        lower.append(
            (
                f'<TABLE BORDER="0" CELLSPACING="1" CELLPADDING="0"><TR>{bars}</TR></TABLE>',
                f"size of score: {sizes}",
            )
        )
    columns = max(len(upper), len(lower))
    rows = "".join(
        f"<TR>{''.join(_sample(*pair, scale) for pair in row)}{_filler(columns - len(row))}</TR>"
        for row in (upper, lower)
        if row
    )
    rows = rows or "<TR><TD></TD></TR>"
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="3" CELLPADDING="1">{rows}</TABLE>'


def _unscored(circuit: Circuit) -> bool:
    return any(math.isnan(circuit.edge_scores.get(str(edge), math.nan)) for edge in circuit.edges)


def _filler(pairs: int) -> str:
    return "<TD></TD><TD></TD>" * pairs


def _sample(sample: str, meaning: str, scale: Scale) -> str:
    text = f'<FONT POINT-SIZE="{scale.points(8.0)}" COLOR="{INK}">{html_text(meaning)}&#160;&#160;</FONT>'
    return f'<TD>{sample}</TD><TD ALIGN="LEFT">{text}</TD>'


def _box(kind: Kind, style: str) -> str:
    return (
        f'<TABLE BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0" STYLE="{style}" '
        f'COLOR="{LINE[kind]}" BGCOLOR="{FILL[kind]}" FIXEDSIZE="TRUE" WIDTH="22" HEIGHT="12">'
        "<TR><TD></TD></TR></TABLE>"
    )


def _bar(colour: str, height: int, *, length: int = 24) -> str:
    return (
        '<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>'
        f'<TD WIDTH="{length}" HEIGHT="{height}" FIXEDSIZE="TRUE" BGCOLOR="{colour}"></TD></TR></TABLE>'
    )


def _word(text: str, scale: Scale) -> str:
    return f'<FONT POINT-SIZE="{scale.points(8.0)}" COLOR="{MUTED}"><B>{html_text(text)}</B></FONT>'
