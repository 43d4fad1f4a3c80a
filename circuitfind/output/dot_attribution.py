"""Attribution graphs as DOT text: tokens below, from left to right, layer upon layer of features, logits above."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath

import numpy as np

from circuitfind.attribution.average import LOGITS, TOKENS, AverageGraph
from circuitfind.attribution.graph import NodeKind
from circuitfind.attribution.prune import PrunedGraph
from circuitfind.names import parse_node
from circuitfind.output.dot_style import (
    FONT,
    INK,
    MUTED,
    NEGATIVE,
    POSITIVE,
    Scale,
    html_text,
    quoted,
    signed,
    wrapped,
)

DRAWN = 30
"""Features and errors in a picture."""
EDGES_EACH = 2
"""Edges in a picture, for each of its features and errors."""
ALL_TOKENS = 32
"""Of a longer prompt only the tokens are drawn that an edge leaves."""
_COLUMNS = 92
_FILL = {
    NodeKind.TOKEN: "#4A4A4A",
    NodeKind.FEATURE: "#E4F1E6",
    NodeKind.ERROR: "#FFFFFF",
    NodeKind.LOGIT: "#4A4A4A",
}
_LINE = {
    NodeKind.TOKEN: "#4A4A4A",
    NodeKind.FEATURE: "#5B9469",
    NodeKind.ERROR: "#8A8A8A",
    NodeKind.LOGIT: "#4A4A4A",
}


@dataclass(frozen=True)
class Spot:
    """A node in a picture: where it stands and what it says."""

    name: str
    kind: NodeKind
    layer: int
    column: int
    label: str
    below: str
    tip: str


@dataclass(frozen=True)
class Arrow:
    """An edge in a picture."""

    source: str
    target: str
    weight: float


def attribution_dot(pruned: PrunedGraph, most: int = DRAWN, labels: Mapping[str, str] | None = None) -> str:
    """DOT text of one prompt's graph.

    Args:
        pruned: What is kept of it.
        most: Features and errors to draw, the most influential.
        labels: What people call features, by names such as ``t5.f88``.
    """
    graph = pruned.graph
    nodes = graph.nodes
    inner = [i for i in pruned.nodes if nodes.kind[i] in (NodeKind.FEATURE, NodeKind.ERROR)]
    chosen = sorted(inner, key=lambda i: -pruned.influence[i])[:most]
    ends = [int(i) for i in pruned.nodes if nodes.kind[i] in (NodeKind.TOKEN, NodeKind.LOGIT)]
    drawn = {*map(int, chosen), *ends}
    among = [
        e for e in range(len(pruned.weights)) if {int(pruned.targets[e]), int(pruned.sources[e])} <= drawn
    ]
    strongest = _spread(
        among,
        pruned.flows,
        [(int(pruned.sources[e]), int(pruned.targets[e])) for e in among],
        {*map(int, chosen)},
    )
    linked = {int(end) for e in strongest for end in (pruned.sources[e], pruned.targets[e])}
    if len(graph.tokens) > ALL_TOKENS:
        drawn = {i for i in drawn if nodes.kind[i] != NodeKind.TOKEN or i in linked}
    spots = [_spot(pruned, i, labels or {}) for i in sorted(drawn)]
    arrows = [
        Arrow(
            nodes.name(int(pruned.sources[e])), nodes.name(int(pruned.targets[e])), float(pruned.weights[e])
        )
        for e in strongest
    ]
    scores = (
        f"Replacement score {pruned.full.replacement:.2f} and completeness {pruned.full.completeness:.2f} of the whole "
        f"graph; {pruned.pruned.replacement:.2f} and {pruned.pruned.completeness:.2f} of what pruning kept."
    )
    shown = (
        f"Drawn: {len(chosen)} of {len(inner)} features and errors kept (the most influential), "
        f"{len(arrows)} of {len(pruned.weights):,} edges (those that most influence flows through). "
        f"Node threshold {pruned.node_threshold:g}, edge threshold {pruned.edge_threshold:g}."
    )
    title = f"An attribution graph of {PurePath(graph.model).name}"
    return _dot(spots, arrows, title, [_frozen(graph.dictionaries), scores, shown], graph.n_layers)


def average_dot(
    average: AverageGraph,
    *,
    model: str,
    task: str,
    most: int = DRAWN,
    labels: Mapping[str, str] | None = None,
) -> str:
    """DOT text of the average over a task's prompts.

    Args:
        average: The average.
        model: Its name.
        task: Its name.
        most: Features and errors to draw, the most influential.
        labels: What people call features, by names such as ``t5.f88``.
    """
    inner = [n for n in average.nodes if _bare(n.name) not in (TOKENS, LOGITS) and n.kept > 0]
    chosen = inner[:most]
    names = {n.name for n in chosen} | {n.name for n in average.nodes if _bare(n.name) in (TOKENS, LOGITS)}
    among = [(s, t) for s, t in average.edges if s in names and t in names]
    weights = np.array([average.edges[ends] for ends in among])
    strongest = _spread(list(range(len(among))), np.abs(weights), among, {n.name for n in chosen})
    arrows = [Arrow(*among[e], float(weights[e])) for e in strongest]
    linked = {end for arrow in arrows for end in (arrow.source, arrow.target)}
    kept = [n for n in average.nodes if n.name in names and (n in chosen or n.name in linked)]
    columns = {name: i for i, name in enumerate(("", *average.positions))}
    spots = []
    for node in kept:
        kind, layer = _kind_of(node.name)
        share = [] if kind in (NodeKind.TOKEN, NodeKind.LOGIT) else [f"kept in {100 * node.kept:.0f} %"]
        spots.append(
            Spot(
                name=node.name,
                kind=kind,
                layer=layer,
                column=columns[node.name.partition("@")[2]],
                label=node.name,
                below="\n".join([*_called(_bare(node.name), labels or {}), *share]),
                tip=f"{node.name}: influence {node.influence:.3g}, active in {100 * node.active:.0f} % of prompts",
            )
        )
    layers = 1 + max((spot.layer for spot in spots if spot.kind != NodeKind.LOGIT), default=0)
    over = f"{average.n_prompts} prompt{'' if average.n_prompts == 1 else 's'}"
    shown = (
        f"Averages over {over}. Drawn: {len(chosen)} of {len(inner)} features and errors that some prompt keeps (the most "
        f"influential), {len(arrows)} of {len(average.edges):,} edges."
    )
    scores = (
        f"Mean replacement score {average.replacement:.2f}, mean completeness {average.completeness:.2f}."
    )
    title = f"Attribution graphs of {task} in {PurePath(model).name}, averaged"
    return _dot(spots, arrows, title, [_frozen(""), f"{shown} {scores}"], layers)


def _frozen(dictionaries: str) -> str:
    of = f" of {dictionaries}" if dictionaries else ""
    return (
        f"Direct effects between active transcoder features{of}, with attention patterns and norm scales frozen; what the "
        "features miss is in the errors (err)."
    )


def _bare(name: str) -> str:
    return name.partition("@")[0]


def _kind_of(name: str) -> tuple[NodeKind, int]:
    if _bare(name) == TOKENS:
        return NodeKind.TOKEN, -1
    if _bare(name) == LOGITS:
        return NodeKind.LOGIT, 1 << 20
    node = parse_node(_bare(name))
    return (NodeKind.FEATURE if node.units else NodeKind.ERROR), node.layer


def _spread(
    edges: list[int], sizes: np.ndarray, ends: Sequence[tuple[object, object]], inner: Collection[object]
) -> list[int]:
    """The strongest edges, and in any case the strongest one out of and into each feature or error; the weakest first."""
    order = sorted(range(len(edges)), key=lambda i: -sizes[edges[i]])
    chosen = set(order[: EDGES_EACH * max(len(inner), 5)])
    out, into = set(inner), set(inner)
    for i in order:
        source, target = ends[i]
        if source in out or target in into:
            chosen.add(i)
        out.discard(source)
        into.discard(target)
    return [edges[i] for i in reversed(order) if i in chosen]


def _spot(pruned: PrunedGraph, node: int, labels: Mapping[str, str]) -> Spot:
    graph = pruned.graph
    nodes = graph.nodes
    kind, position = NodeKind(int(nodes.kind[node])), int(nodes.position[node])
    name = nodes.name(node)
    at = f"“{graph.pieces[position].strip() or graph.pieces[position]}”"
    tip = f"{name}: influence {pruned.influence[node]:.3g}"
    if kind is NodeKind.LOGIT:
        rank = node - graph.n_sources
        text, chance = graph.logit_pieces[rank], f"p = {graph.probability[rank]:.2g}"
        return Spot(name, kind, graph.n_layers, rank, f"“{text.strip() or text}”", chance, name)
    if kind is NodeKind.TOKEN:
        return Spot(name, kind, -1, position, at, str(position), tip)
    if kind is NodeKind.FEATURE:
        tip += f", activation {nodes.value[node]:.3g}"
    label = name.partition("@")[0]
    below = "\n".join([*_called(label, labels), f"{at} {position}"])
    return Spot(name, kind, int(nodes.layer[node]), position, label, below, tip)


def _called(name: str, labels: Mapping[str, str]) -> list[str]:
    """What people call a feature, in lines."""
    return wrapped(labels[name], 22, most=2) if name in labels else []


def _dot(
    spots: Sequence[Spot], arrows: Sequence[Arrow], title: str, caption: Sequence[str], n_layers: int
) -> str:
    scale = Scale([arrow.weight for arrow in arrows])
    lines = ["digraph attribution {", *_head(title, caption, scale)]
    ranks: dict[int, list[Spot]] = {}
    for spot in sorted(spots, key=lambda s: (s.layer, s.column, s.name)):
        ranks.setdefault(spot.layer, []).append(spot)
    for layer, members in ranks.items():
        lines += list(_rank(layer, members, n_layers, scale))
    for low, high in pairwise(ranks):
        lines.append(f"  {_label_id(low)} -> {_label_id(high)} [style=invis, weight=200];")
    lines += list(_columns(list(ranks.values())))
    lines += [_arrow(arrow, scale) for arrow in arrows]
    return "\n".join([*lines, "}", ""])


def _head(title: str, caption: Sequence[str], scale: Scale) -> Iterator[str]:
    rows = [f"<TR><TD>{_legend(scale)}</TD></TR>"]
    for text, size, bold in ((title, 12.0, True), *((line, 9.0, False) for line in caption)):
        told = "<BR/>".join(html_text(line) for line in wrapped(text, _COLUMNS))
        told = f"<B>{told}</B>" if bold else told
        rows.append(f'<TR><TD><FONT POINT-SIZE="{scale.points(size)}">{told}</FONT></TD></TR>')
    label = f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2">{"".join(rows)}</TABLE>>'
    yield "  graph [rankdir=BT, newrank=true, outputorder=edgesfirst, splines=true, ranksep=1.1,"
    yield f"    nodesep=0.16, pad=0.15, bgcolor=white, fontname={quoted(FONT)}, fontsize=10,"
    yield f"    fontcolor={quoted(INK)}, labelloc=b, tooltip={quoted(title)}, label={label}];"
    yield f"  node [shape=plain, fontname={quoted(FONT)}, fontsize={scale.points(10.0)}, fontcolor={quoted(INK)}];"
    yield f"  edge [fontname={quoted(FONT)}, arrowhead=normal];"


def _legend(scale: Scale) -> str:
    cells = []
    for sign, colour, meaning in (
        (True, POSITIVE, "raises its target"),
        (False, NEGATIVE, "lowers its target"),
    ):
        if sign in scale.signs:
            bar = f'<FONT COLOR="{colour}"><B>—</B></FONT>'
            cells.append(f"{bar} {html_text(meaning)}")
    if scale.strongest:
        cells.append(html_text(f"widest edge: {scale.strongest:.3g}"))
    cells.append('<FONT COLOR="#8A8A8A">- - -</FONT> error')
    joined = "&#160;&#160;&#160;".join(cells)
    return f'<FONT POINT-SIZE="{scale.points(8.5)}">{joined}</FONT>'


def _label_id(layer: int) -> str:
    return quoted(f"layer:{layer}")


def _rank(layer: int, members: Sequence[Spot], n_layers: int, scale: Scale) -> Iterator[str]:
    text = "tokens" if layer < 0 else "logits" if layer >= n_layers else f"layer {layer}"
    yield (
        f"  {_label_id(layer)} [shape=plaintext, label={quoted(text)}, fontsize={scale.points(9.0)}, "
        f"fontcolor={quoted(MUTED)}, width=0, height=0, margin=0, group=layers, tooltip={quoted(text)}];"
    )
    for spot in members:
        yield f"  {quoted(spot.name)} [label={_table(spot, scale)}, tooltip={quoted(spot.tip)}, class={spot.kind.name.lower()}];"
    names = [_label_id(layer), *(quoted(spot.name) for spot in members)]
    yield f"  {{ rank=same; {' '.join(f'{name};' for name in names)} }}"
    for left, right in pairwise(names):
        yield f"  {left} -> {right} [style=invis, weight=1];"


def _columns(ranks: Sequence[Sequence[Spot]]) -> Iterator[str]:
    """Invisible ties that keep what stands at one position above one another."""
    last: dict[int, str] = {}
    for members in ranks:
        here: dict[int, list[str]] = {}
        for spot in members:
            if spot.kind is not NodeKind.LOGIT:
                here.setdefault(spot.column, []).append(spot.name)
        middles = {column: names[len(names) // 2] for column, names in here.items()}
        for column, name in middles.items():
            if column in last:
                yield f"  {quoted(last[column])} -> {quoted(name)} [style=invis, weight=60];"
        last |= middles


def _table(spot: Spot, scale: Scale) -> str:
    dark = spot.kind in (NodeKind.TOKEN, NodeKind.LOGIT)
    colour = "white" if dark else MUTED if spot.kind is NodeKind.ERROR else INK
    rows = f'<TR><TD CELLPADDING="3"><FONT COLOR="{colour}"><B>&#160;{html_text(spot.label)}&#160;</B></FONT></TD></TR>'
    for line in filter(None, spot.below.split("\n")):
        font = f'POINT-SIZE="{scale.points(7.5)}" COLOR="{"white" if dark else MUTED}"'
        rows += f'<TR><TD CELLPADDING="1"><FONT {font}>&#160;{html_text(line)}&#160;</FONT></TD></TR>'
    style = "DASHED" if spot.kind is NodeKind.ERROR else "ROUNDED"
    return (
        f'<<TABLE BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1" STYLE="{style}" '
        f'COLOR="{_LINE[spot.kind]}" BGCOLOR="{_FILL[spot.kind]}">{rows}</TABLE>>'
    )


def _arrow(arrow: Arrow, scale: Scale) -> str:
    width = scale.width(arrow.weight)
    tip = f"{arrow.source} -> {arrow.target}: {signed(arrow.weight)}"
    colour = scale.colour(arrow.weight)
    return (
        f"  {quoted(arrow.source)}:n -> {quoted(arrow.target)}:s [penwidth={width:.2f}, color={quoted(colour)}, "
        f"arrowsize={0.3 + 0.09 * width:.2f}, weight=1, tooltip={quoted(tip)}];"
    )
