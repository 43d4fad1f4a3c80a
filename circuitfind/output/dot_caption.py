"""What stands below a picture: a legend, and a caption that says what the circuit holds under."""

from __future__ import annotations

import math
from collections.abc import Sequence

from circuitfind.circuit.counts import parts_in_words
from circuitfind.circuit.graph import Circuit
from circuitfind.names import Kind
from circuitfind.output.dot_backups import caption as backups_caption
from circuitfind.output.dot_style import (
    BORDER,
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
from circuitfind.output.dot_units import PARTS, meaning, stacked

_COLUMNS = 92
"""Characters in a line of the caption."""
_SAMPLES = 5
"""In a line of the legend."""


def bottom_table(
    circuit: Circuit,
    scale: Scale,
    *,
    title: str | None,
    caption: bool,
    legend: bool,
    links: bool,
    drawn: int | None = None,
) -> str:
    """The label of the graph in Graphviz's HTML, or an empty string.

    It is a label and not a cluster of sample nodes, so that it cannot bend the layout of the circuit.
    """
    rows: list[str] = []
    if legend:
        rows.append(f"<TR><TD>{_legend(circuit, scale, links)}</TD></TR>")
    conditions = circuit.conditions
    if caption or title:
        named = (
            f"A circuit for {conditions.task or 'a task'} in {conditions.model or 'a model'}"
            if title is None
            else title
        )
        rows.append(_lines(wrapped(named, _COLUMNS - 20), size=scale.points(12.0), bold=True))
    if caption:
        sentences = (wrapped(sentence, _COLUMNS) for sentence in caption_lines(circuit, drawn))
        rows += [_lines(lines, size=scale.points(9.0)) for lines in sentences]
    if not rows:
        return '""'
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2">{"".join(rows)}</TABLE>>'


def caption_lines(circuit: Circuit, drawn: int | None = None) -> list[str]:
    """What the circuit holds under and how well, in sentences; and how many of its edges are drawn, if not all."""
    c = circuit.conditions
    other = f" ({c.model_b})" if c.model_b else ""
    told = (  # files of other programs leave out what they do not say
        f"metric {c.metric}" if c.metric else "",
        f"{c.ablation} ablation ({c.direction})" if c.ablation else "",
        f"counterfactual {c.counterfactual.strip()}{other}" if c.counterfactual.strip() else "",
        f"method {c.method}",
        f"rule {c.rule}",
    )
    conditions = f"A circuit under these conditions: {'; '.join(filter(None, told))}."
    measured = [
        f"{e.faithfulness} under {e.ablation} ablation ({e.n_prompts} prompts)" for e in circuit.evaluations
    ]
    faithful = "Faithfulness " + ("; ".join(measured) if measured else "not measured") + "."
    share = 100 * circuit.share_of_edges if circuit.anatomy.n_edges else 0.0
    percent = f"{share:.0f}" if share >= 10 else f"{share:.2g}"
    kept = (
        f"Kept: {len(circuit.edges):,} of {circuit.anatomy.n_edges:,} edges ({percent} %), "
        f"{parts_in_words(circuit)}."
    )
    beside = backups_caption(circuit)
    less = ""
    if drawn is not None and drawn < len(circuit.edges):
        less = f"Drawn: the {drawn:,} strongest of these edges, one into and out of each node among them."
    return [conditions, f"{faithful} {kept}", *(text for text in (less, beside) if text)]


def _lines(lines: Sequence[str], *, size: float, bold: bool = False) -> str:
    text = "<BR/>".join(html_text(line) for line in lines)
    text = f"<B>{text}</B>" if bold else text
    return f'<TR><TD><FONT POINT-SIZE="{size}">{text}</FONT></TD></TR>'


# The legend: samples made of table cells, which need no font to have a certain sign.


def _legend(circuit: Circuit, scale: Scale, links: bool) -> str:
    kinds = {node.kind for node in circuit.nodes}
    upper: list[tuple[str, str]] = []
    for kind, told in ((Kind.HEAD, "attention head"), (Kind.KV, "key/value head"), (Kind.MLP, "MLP")):
        if kind in kinds:
            upper.append((_box(kind), told))
    upper += [(_box(kind), meaning(kind)) for kind in PARTS if kind in kinds]
    group = next((node.kind for node in circuit.units if len(node.units) > 1), None)
    if group is not None:
        upper.append((stacked(_box(group), LINE[group]), "units that act together"))
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
    lines = [upper[i : i + _SAMPLES] for i in range(0, len(upper), _SAMPLES)] + [lower]
    columns = max(map(len, lines))
    rows = "".join(
        f"<TR>{''.join(_sample(*pair, scale) for pair in line)}{_filler(columns - len(line))}</TR>"
        for line in lines
        if line
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


def _box(kind: Kind) -> str:
    return (
        f'<TABLE BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0" STYLE="{BORDER.get(kind, "ROUNDED")}" '
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
