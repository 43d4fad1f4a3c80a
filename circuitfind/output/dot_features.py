"""A feature graph as DOT text: layer upon layer of features and errors, the logits above. No library is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from circuitfind.circuit.feature_graph import FeatureGraph, node_order
from circuitfind.names import Edge, Kind, Node
from circuitfind.output.dot_style import (
    BORDER,
    FILL,
    FONT,
    INK,
    LINE,
    MUTED,
    NEGATIVE,
    POSITIVE,
    Scale,
    html_text,
    quoted,
    signed,
    wrapped,
)

DRAWN = 80
"""Nodes in a picture."""
EDGES_EACH = 2.5
"""Edges in a picture, for each of its nodes."""
ABREAST = 12
"""Nodes side by side; a layer of more stands in several rows, between which no edge runs."""
_COLUMNS = 92
_TITLES = {
    "s": "stream {}",
    "sa": "attn {}",
    "sh": "mid {}",
    "sm": "MLP {}",
    "si": "into {}",
    "t": "MLP {}",
    "m": "MLP {}",
    "": "attn {}",
}

_Row = tuple[int, int]


@dataclass(frozen=True)
class _Drawn:
    """What of a graph is in its picture."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    rows: dict[_Row, list[Node]]


def feature_dot(
    graph: FeatureGraph,
    *,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    most: int = DRAWN,
    caption: bool = True,
    legend: bool = True,
) -> str:
    """DOT text of a feature graph.

    Args:
        graph: What to draw.
        title: A bold line above the caption; by default it names the task and the model.
        labels: More of what features mean, by node name; those of the graph come first.
        most: Nodes to draw, those with the largest scores.
        caption: Write below what the graph holds under, and its faithfulness.
        legend: Write below what shapes, colours and widths mean.
    """
    drawn = _chosen(graph, most)
    words = {**(labels or {}), **graph.labels}
    scale = Scale([graph.weight(edge) for edge in drawn.edges], ranks=len(drawn.rows))
    named = f"Features for {graph.conditions.task} in {graph.conditions.model}" if title is None else title
    below = [f"<TR><TD>{_legend(drawn, scale)}</TD></TR>"] if legend else []
    if caption or title:
        below.append(_text(wrapped(named, _COLUMNS - 20), scale.points(12.0), bold=True))
    if caption:
        below += [_text(wrapped(line, _COLUMNS), scale.points(9.0)) for line in _caption(graph, drawn)]
    lines = ["digraph features {", *_head(scale, named, below)]
    lines += _row_lines(drawn, scale)
    lines += [_node_line(node, graph, words, scale) for row in drawn.rows.values() for node in row]
    lines += [
        _edge_line(edge, graph, scale) for edge in sorted(drawn.edges, key=lambda e: _size(graph.weight(e)))
    ]
    return "\n".join([*lines, "}", ""])


def _chosen(graph: FeatureGraph, most: int) -> _Drawn:
    strongest = sorted(graph.nodes, key=lambda n: (-_size(graph.score(n)), node_order(n)))[:most]
    shown = {*strongest, *(e.receiver for e in graph.edges if e.receiver.kind is Kind.LOGITS)}
    among = [e for e in graph.edges if e.sender in shown and e.receiver in shown]
    among.sort(key=lambda e: (-_size(graph.weight(e)), e.order))
    first = list({edge.sender: edge for edge in reversed(among)}.values())  # the strongest out of each node
    wanted = max(len(first), round(EDGES_EACH * len(shown)))
    edges = list(dict.fromkeys([*first, *among]))[:wanted]
    rows: dict[_Row, list[Node]] = {}
    by_layer: dict[int, list[Node]] = {}
    for node in sorted(shown, key=node_order):
        by_layer.setdefault(node.layer_rank, []).append(node)
    for rank, nodes in by_layer.items():
        count = math.ceil(len(nodes) / ABREAST)
        for row in range(count):
            rows[rank, row] = nodes[row::count]
    return _Drawn(tuple(sorted(shown, key=node_order)), tuple(edges), rows)


def _size(value: float) -> float:
    return -1.0 if math.isnan(value) else abs(value)


def _head(scale: Scale, named: str, below: list[str]) -> Iterator[str]:
    label = '""'
    if below:
        label = f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2">{"".join(below)}</TABLE>>'
    yield "  graph [rankdir=BT, newrank=true, outputorder=edgesfirst, splines=true, ranksep=0.55, nodesep=0.18,"
    yield f"    pad=0.15, bgcolor=white, fontname={quoted(FONT)}, fontsize=10, fontcolor={quoted(INK)}, labelloc=b,"
    yield f"    tooltip={quoted(named)}, label={label}];"
    yield f"  node [shape=plain, fontname={quoted(FONT)}, fontsize={scale.points(11.0)}, fontcolor={quoted(INK)}];"
    yield f"  edge [fontname={quoted(FONT)}, arrowhead=normal];"


def _caption(graph: FeatureGraph, drawn: _Drawn) -> Iterator[str]:
    c = graph.conditions
    told = (  # graphs of other programs leave out what they do not have
        f"metric {c.metric}" if c.metric else "",
        f"{c.ablation} ablation ({c.direction})" if c.ablation else "",
        f"counterfactual {c.counterfactual.strip()}" if c.counterfactual.strip() else "",
        f"method {c.method}" if c.method else "",
        f"rule {c.rule}" if c.rule else "",
    )
    held = "; ".join(filter(None, told))
    yield f"{held[:1].upper()}{held[1:]}."
    measured = "; ".join(
        f"{e.faithfulness} under {e.ablation} ablation ({e.n_prompts} prompts)" for e in graph.evaluations
    )
    errors = len(graph.error_nodes)
    fire = f" of {graph.n_active:,} features that fire" if graph.n_active else " features"
    kept = f"{len(graph.features):,}{fire}"
    kept += f" and {errors} error{'' if errors == 1 else 's'}" if errors else ""
    yield f"Faithfulness {measured or 'not measured'}. Kept: {kept}, {len(graph.edges):,} edges."
    nodes = sum(node.kind is not Kind.LOGITS for node in drawn.nodes)
    if nodes < len(graph.nodes) or len(drawn.edges) < len(graph.edges):
        yield (
            f"Drawn: {nodes} of {len(graph.nodes):,} nodes and {len(drawn.edges):,} of {len(graph.edges):,} edges, "
            "the strongest."
        )


def _text(lines: list[str], size: float, *, bold: bool = False) -> str:
    text = "<BR/>".join(html_text(line) for line in lines)
    text = f"<B>{text}</B>" if bold else text
    return f'<TR><TD><FONT POINT-SIZE="{size}">{text}</FONT></TD></TR>'


def _legend(drawn: _Drawn, scale: Scale) -> str:
    kinds = {node.kind for node in drawn.nodes}
    told = ((Kind.FEATURE, "feature, with its score"), (Kind.ERROR, "error: what a dictionary misses"))
    cells = [_sample(_box(kind), text, scale) for kind, text in told if kind in kinds]
    for there, colour, text in (
        (True in scale.signs, POSITIVE, "helps"),
        (False in scale.signs, NEGATIVE, "hinders"),
    ):
        if there:
            cells.append(_sample(_bar(colour), text, scale))
    if scale.strongest:
        text = f"widest edge: {scale.strongest:.2g}"
        cells.append(_sample("", text, scale))
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="3" CELLPADDING="1"><TR>{"".join(cells) or "<TD></TD>"}</TR></TABLE>'


def _sample(sample: str, text: str, scale: Scale) -> str:
    font = f'POINT-SIZE="{scale.points(8.0)}" COLOR="{INK}"'
    return f'<TD>{sample}</TD><TD ALIGN="LEFT"><FONT {font}>{html_text(text)}&#160;&#160;</FONT></TD>'


def _box(kind: Kind) -> str:
    return (
        f'<TABLE BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0" STYLE="{BORDER.get(kind, "ROUNDED")}" '
        f'COLOR="{LINE[kind]}" BGCOLOR="{FILL[kind]}" FIXEDSIZE="TRUE" WIDTH="22" HEIGHT="12"><TR><TD></TD></TR></TABLE>'
    )


def _bar(colour: str) -> str:
    return (
        '<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>'
        f'<TD WIDTH="24" HEIGHT="3" FIXEDSIZE="TRUE" BGCOLOR="{colour}"></TD></TR></TABLE>'
    )


def _row_lines(drawn: _Drawn, scale: Scale) -> Iterator[str]:
    """A column of layer names at the left, tied together by an invisible line that keeps the rows in order."""
    for row, nodes in drawn.rows.items():
        text = _title(nodes[0]) if row[1] == 0 else ""
        yield (
            f"  {_row_id(row)} [shape=plaintext, label={quoted(text)}, fontsize={scale.points(9.0)}, "
            f"fontcolor={quoted(MUTED)}, width=0, height=0, margin=0, group=layers, tooltip={quoted(text or ' ')}];"
        )
        names = " ".join(f"{quoted(str(node))};" for node in nodes)
        yield f"  {{ rank=same; {_row_id(row)}; {names} }}"
        # Such an edge has to weigh something, or dot ignores it.
        yield from (f"  {_row_id(row)} -> {quoted(str(node))} [style=invis, weight=1];" for node in nodes)
    for low, high in pairwise(drawn.rows):
        yield f"  {_row_id(low)} -> {_row_id(high)} [style=invis, weight=200];"


def _row_id(row: _Row) -> str:
    return quoted(f"row:{row[0]}.{row[1]}")


def _title(node: Node) -> str:
    if node.kind in (Kind.INPUT, Kind.LOGITS):
        return ""
    family = "m" if node.kind is Kind.MLP else node.family
    return _TITLES[family].format(node.layer)


def _node_line(node: Node, graph: FeatureGraph, words: Mapping[str, str], scale: Scale) -> str:
    score, name = graph.score(node), str(node)
    meaning = words.get(name, words.get(str(node.bare), ""))
    tip = name + (f" ({meaning})" if meaning else "") + (f": {signed(score)}" if math.isfinite(score) else "")
    ends = node.kind in (Kind.INPUT, Kind.LOGITS)
    text = f"<B>{html_text(name)}</B>"
    if ends:
        text = f'<FONT COLOR="white">&#160;&#160;&#160;&#160;{text}&#160;&#160;&#160;&#160;</FONT>'
    said = [html_text(line) for line in wrapped(meaning, 18, most=2)] if meaning else []
    rows = [f'<TR><TD CELLPADDING="{6 if ends else 2}">{text}</TD></TR>']
    if said:
        rows.append(_small("<I>" + "<BR/>".join(said) + "</I>", "white" if ends else INK, scale))
    if math.isfinite(score):
        colour = "white" if ends else POSITIVE if score > 0 else NEGATIVE
        rows.append(_small(html_text(f"{score:+.2g}"), colour, scale))
    table = (
        f'<<TABLE BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2" STYLE="{BORDER.get(node.kind, "ROUNDED")}" '
        f'COLOR="{LINE[node.kind]}" BGCOLOR="{FILL[node.kind]}">{"".join(rows)}</TABLE>>'
    )
    return f"  {quoted(name)} [label={table}, tooltip={quoted(tip)}, class={quoted(node.kind.name.lower())}];"


def _small(text: str, colour: str, scale: Scale) -> str:
    font = f'POINT-SIZE="{scale.points(8.0)}" COLOR="{colour}"'
    return f'<TR><TD CELLPADDING="1"><FONT {font}>{text}</FONT></TD></TR>'


def _edge_line(edge: Edge, graph: FeatureGraph, scale: Scale) -> str:
    weight = graph.weight(edge)
    width = scale.width(weight)
    tip = f"{edge}: {signed(weight)}" if math.isfinite(weight) else f"{edge}: no weight"
    return (
        f"  {quoted(str(edge.sender))}:n -> {quoted(str(edge.receiver))}:s [penwidth={width:.2f}, "
        f"color={quoted(scale.colour(weight))}, arrowsize={0.3 + 0.09 * width:.2f}, weight={scale.weight(weight)}, "
        f"tooltip={quoted(tip)}];"
    )
