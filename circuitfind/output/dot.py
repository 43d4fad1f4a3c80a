"""A circuit as DOT text. Nothing is run and no library is needed; ``draw`` turns the text into pictures.

The stream runs upwards: the input at the bottom, the logits at the top, one rank for each attention layer and
each MLP layer that occurs. Edges leave a node at its top and enter it at its bottom; a head has one port for
each of its inputs, so an edge shows by where it ends whether it feeds the query, the key or the value. Colour
is the sign of an edge's score and width its size. The same circuit always gives the same text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from circuitfind.circuit.graph import Circuit
from circuitfind.names import SLOTS, Edge, Kind, Node
from circuitfind.output.dot_backups import Aside, asides, backup_lines, drawn_nodes
from circuitfind.output.dot_caption import bottom_table
from circuitfind.output.dot_fewer import fewer_edges
from circuitfind.output.dot_style import (
    BORDER,
    FILL,
    FONT,
    INK,
    LINE,
    MUTED,
    NEGATIVE,
    Scale,
    html_text,
    quoted,
    signed,
    wrapped,
)
from circuitfind.output.dot_units import (
    HEADS,
    PARTS,
    hint_of,
    in_rows,
    label_of,
    label_rows,
    members,
    shown_name,
    stacked,
    step,
)
from circuitfind.output.words import Words

_LABEL_ID = "layer:"

_Rank = tuple[int, int, int]
_Ranks = dict[_Rank, list[Node]]


def to_dot(
    circuit: Circuit,
    *,
    title: str | None = None,
    positions: Sequence[str] = (),
    layer_labels: bool = True,
    caption: bool = True,
    legend: bool = True,
    words: Words | None = None,
    look: Callable[[Edge], str] | None = None,
    bottom: Callable[[Scale], str] | None = None,
) -> str:
    """DOT text of a circuit.

    Args:
        circuit: What to draw.
        title: A bold line above the caption; by default it names the task and the model.
        positions: Token positions from left to right, for circuits whose nodes have one; those left out come
            last.
        layer_labels: Write the layers at the left.
        caption: Write below what the circuit holds under: task, metric, ablation, counterfactual, method,
            faithfulness.
        legend: Write below what shapes, colours and widths mean.
        words: Labels and hints of nodes.
        look: Attributes of an edge's line that take the place of the usual ones.
        bottom: What stands below, in the place of legend and caption.
    """
    words, whole, circuit = words or Words(), circuit, fewer_edges(circuit)
    order = _position_order(circuit, positions)
    ranks = _ranks(circuit)
    scale = Scale([circuit.edge_scores.get(str(edge), math.nan) for edge in circuit.edges], ranks=len(ranks))
    links = list(_inner_links(circuit))
    below = bottom_table(
        whole, scale, title=title, caption=caption, legend=legend, links=bool(links), drawn=len(circuit.edges)
    )
    lines = ["digraph circuit {", *_head(circuit, below if bottom is None else bottom(scale), scale)]
    lines += _layer_lines(ranks, layer_labels, scale)
    lines += _node_lines(circuit, scale, words)
    lines += _rank_lines(ranks, order)
    lines += _rule_lines(ranks, order, scale)
    lines += [_edge_line(edge, circuit, scale, look) for edge in _weak_first(circuit)]
    lines += _serves_lines(links)
    lines += backup_lines(circuit)
    return "\n".join([*lines, "}", ""])


def _head(circuit: Circuit, bottom: str, scale: Scale) -> Iterator[str]:
    conditions = circuit.conditions
    name = f"A circuit for {conditions.task} in {conditions.model}"
    # Large pictures are packed closely and written larger: they will be shrunk to fit a page.
    ranksep, nodesep = 0.5 + 0.2 * (scale.crowd - scale.tall), 0.34 - 0.27 * scale.crowd
    yield f"  graph [rankdir=BT, newrank=true, outputorder=edgesfirst, splines=true, ranksep={ranksep:.2f},"
    yield f"    nodesep={nodesep:.2f}, pad=0.15, bgcolor=white, fontname={quoted(FONT)}, fontsize=10,"
    yield f"    fontcolor={quoted(INK)}, labelloc=b, tooltip={quoted(name)},"
    yield f"    label={bottom}];"
    yield f"  node [shape=plain, fontname={quoted(FONT)}, fontsize={scale.points(11.0)}, fontcolor={quoted(INK)}];"
    yield f"  edge [fontname={quoted(FONT)}, arrowhead=normal];"


# Ranks: the layers, bottom to top.


def _rank_of(node: Node, circuit: Circuit, keys: frozenset[Node]) -> tuple[int, int]:
    """(layer, step): keys and values come below the heads that they serve, the MLP and its parts above unless
    they run beside them.
    """
    if node.kind is Kind.INPUT:
        return (-1, 0)
    if node.kind is Kind.LOGITS:
        return (circuit.anatomy.n_layers, 0)
    if node.kind is Kind.KV or node in keys:
        return (node.layer, 0)
    return (node.layer, HEADS if node.kind is Kind.HEAD else step(node, parallel=circuit.anatomy.parallel))


def _ranks(circuit: Circuit) -> _Ranks:
    keys = _only_keys(circuit)
    found: dict[tuple[int, int], list[Node]] = {}
    for node in drawn_nodes(circuit):
        found.setdefault(_rank_of(node, circuit, keys), []).append(node)
    return {
        (*rank, row): nodes
        for rank, all_nodes in sorted(found.items())
        for row, nodes in enumerate(in_rows(all_nodes))
    }


def _only_keys(circuit: Circuit) -> frozenset[Node]:
    """Heads at a position where they are read through keys and values and write nothing: they write at
    another.
    """
    sending = {edge.sender for edge in circuit.edges}
    keyed = {edge.receiver for edge in circuit.edges if edge.slot in ("k", "v")}
    return frozenset(node for node in keyed if node.position is not None and node not in sending)


def _rank_text(rank: _Rank, nodes: Sequence[Node]) -> str:
    kinds = {node.kind for node in nodes}
    if kinds & {Kind.INPUT, Kind.LOGITS} or rank[2]:
        return ""
    if kinds & {Kind.KV} or (rank[1] == 0 and Kind.HEAD in kinds):
        return f"kv {rank[0]}"
    families = {node.family for node in nodes if node.kind in PARTS}
    words = ["attn"] if Kind.HEAD in kinds else []
    words += ["MLP"] if Kind.MLP in kinds or families & {"m", "t"} else []
    words += ["SAE"] if any(family.startswith("s") for family in families) else []
    return f"{' + '.join(words)} {rank[0]}"


def _label_id(rank: _Rank) -> str:
    return quoted(_LABEL_ID + ".".join(map(str, rank)))


def _layer_lines(ranks: _Ranks, shown: bool, scale: Scale) -> Iterator[str]:
    """A column of layer names, tied together by an invisible line that also keeps the ranks in order."""
    for rank, nodes in ranks.items():
        text = _rank_text(rank, nodes) if shown else ""
        yield (
            f"  {_label_id(rank)} [shape=plaintext, label={quoted(text)}, fontsize={scale.points(9.0)}, "
            f"fontcolor={quoted(MUTED)}, "
            f"width=0, height=0, margin=0, group=layers, tooltip={quoted(text or ' ')}];"
        )
    spine = list(ranks)
    for low, high in pairwise(spine):
        yield f"  {_label_id(low)} -> {_label_id(high)} [style=invis, weight=200];"


def _rank_lines(ranks: _Ranks, order: dict[str | None, int]) -> Iterator[str]:
    """Which nodes stand side by side, and invisible edges that put the layer's name and the positions in
    their order.

    Such an edge has to weigh something, or dot ignores it. Between two columns runs a rule, a straight line
    with a point in every rank: clusters would not keep an order, and edges inside a rank that pass other
    nodes break dot's routing.
    """
    columns: list[str | None] = [p for p in order if p is not None]
    columns = columns or [None]
    for rank, nodes in ranks.items():
        rules = [_rule_id(i, rank) for i in range(len(columns) - 1)]
        names = [*(quoted(str(node)) for node in nodes), *rules]
        yield f"  {{ rank=same; {_label_id(rank)}; {' '.join(f'{name};' for name in names)} }}"
        left = [_label_id(rank)]
        for i, position in enumerate(columns):
            here = [quoted(str(node)) for node in nodes if node.position == position]
            for group in (here, rules[i : i + 1]):
                yield from (f"  {a} -> {b} [style=invis, weight=1];" for a in left for b in group)
                left = group or left


def _rule_lines(ranks: _Ranks, order: dict[str | None, int], scale: Scale) -> Iterator[str]:
    """The columns of a circuit with positions: names below the input, and a pale rule between two columns."""
    positions = [p for p in order if p is not None]
    if not positions:
        return
    foot = (-2, 0, 0)
    every = [foot, *ranks]
    names = [quoted(f"position:{p}") for p in positions]
    for name, position in zip(names, positions, strict=True):
        yield (
            f"  {name} [shape=plaintext, label={quoted(position)}, fontsize={scale.points(11.0)}, "
            f"fontcolor={quoted(MUTED)}, width=0, height=0, margin=0.05, tooltip={quoted(position)}];"
        )
    yield f'  {_label_id(foot)} [shape=plaintext, label="", width=0, height=0, group=layers];'
    yield f"  {_label_id(foot)} -> {_label_id(every[1])} [style=invis, weight=200];"
    rules = range(len(positions) - 1)
    for i in rules:
        for rank in every:
            look = f'shape=point, width=0.01, height=0.01, color="#DDDDDD", group=rule{i}'
            yield f"  {_rule_id(i, rank)} [{look}];"
        for low, high in pairwise(every):
            yield f'  {_rule_id(i, low)} -> {_rule_id(i, high)} [color="#DDDDDD", arrowhead=none, weight=100];'
    line = [
        _label_id(foot),
        *(n for i, name in enumerate(names) for n in ([name, _rule_id(i, foot)] if i in rules else [name])),
    ]
    yield f"  {{ rank=same; {' '.join(f'{name};' for name in line)} }}"
    yield from (f"  {a} -> {b} [style=invis, weight=1];" for a, b in pairwise(line))
    for name, position in zip(names, positions, strict=True):
        lowest = next(node for nodes in ranks.values() for node in nodes if node.position == position)
        yield f"  {name} -> {quoted(str(lowest))} [style=invis, weight=5];"


def _rule_id(column: int, rank: _Rank) -> str:
    return quoted(f"rule:{column}:" + ".".join(map(str, rank)))


def _position_order(circuit: Circuit, positions: Sequence[str]) -> dict[str | None, int]:
    """Column of each position: as given, then the others by name; nodes without a position stand in the first
    column.
    """
    found = {node.position for node in circuit.nodes if node.position is not None}
    given = [p for p in dict.fromkeys(positions) if p in found]
    columns: list[str | None] = [None, *given, *sorted(found.difference(given))]
    return {position: i for i, position in enumerate(columns)}


# Nodes.


def _node_lines(circuit: Circuit, scale: Scale, words: Words) -> Iterator[str]:
    fed = {(edge.receiver, edge.slot) for edge in circuit.edges}
    beside = asides(circuit)
    for node in drawn_nodes(circuit):
        yield _node_line(node, circuit, fed, scale, words, beside.get(node))


def _node_line(
    node: Node,
    circuit: Circuit,
    fed: set[tuple[Node, str | None]],
    scale: Scale,
    words: Words,
    aside: Aside | None,
) -> str:
    role = circuit.roles.get(str(node), circuit.roles.get(str(node.bare)))
    score = circuit.node_scores.get(str(node.bare), math.nan)
    tip = str(node) + (f" ({role})" if role else "") + (f": {signed(score)}" if math.isfinite(score) else "")
    label, hint = label_of(node, words), hint_of(node, words)
    tip += f"; {label}" if label else f"; promotes {hint}" if hint else ""
    tip += f"; {members(node, words)}" if len(node.units) > 1 else ""
    slots: tuple[str, ...] = ()
    if aside is not None and node not in circuit.nodes:
        pass  # nothing enters it
    elif node.kind is Kind.HEAD:
        # With grouped-query attention the keys and values belong to the key/value head.
        slots = SLOTS[:1] if circuit.anatomy.grouped else SLOTS
    elif node.kind is Kind.KV:
        slots = SLOTS[1:]
    table = _node_table(node, role, [(slot, (node, slot) in fed) for slot in slots], scale, words, aside)
    return f"  {quoted(str(node))} [label=<{table}>, tooltip={quoted(tip)}, class={quoted(node.kind.name.lower())}];"


def _node_table(
    node: Node,
    role: str | None,
    slots: Sequence[tuple[str, bool]],
    scale: Scale,
    words: Words,
    aside: Aside | None = None,
) -> str:
    """Heads are round tables with their inputs at the lower side, MLPs square ones, input and logits dark
    bars, units that are one node have a second frame; what acts only when others are removed has a dashed
    border and says so.
    """
    span = f' COLSPAN="{len(slots)}"' if slots else ""
    ends = node.kind in (Kind.INPUT, Kind.LOGITS)
    pad = 3 if slots or node.kind in PARTS or label_of(node, words) else 6
    text = f"<B>{html_text(shown_name(node))}</B>"
    if ends:
        text = f'<FONT COLOR="white">&#160;&#160;&#160;&#160;{text}&#160;&#160;&#160;&#160;</FONT>'
    rows = [f'<TR><TD{span} CELLPADDING="{pad}">{text}</TD></TR>']
    rows += label_rows(node, words, span, scale, light=ends)
    said = wrapped(role, 20, most=2) if role else []
    said += [line for text in aside.lines for line in wrapped(text, 26, most=3)] if aside else []
    if said:
        lines = "&#160;<BR/>&#160;".join(map(html_text, said))
        font = f'POINT-SIZE="{scale.points(8.0)}" COLOR="{"white" if ends else INK}"'
        rows.append(f'<TR><TD{span} CELLPADDING="1"><FONT {font}><I>&#160;{lines}&#160;</I></FONT></TD></TR>')
    if slots:
        rows.append("<TR>" + "".join(_port(slot, used, scale) for slot, used in slots) + "</TR>")
    style, line = BORDER.get(node.kind, "ROUNDED"), LINE[node.kind]
    if aside:
        style = "DASHED" if style == "SOLID" else "ROUNDED,DASHED"
        line = NEGATIVE if aside.against else line
    table = (
        f'<TABLE BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2" STYLE="{style}" '
        f'COLOR="{line}" BGCOLOR="{FILL[node.kind]}">{"".join(rows)}</TABLE>'
    )
    return stacked(table, line) if len(node.units) > 1 else table


def _port(slot: str, used: bool, scale: Scale) -> str:
    colour = INK if used else "#BDBDBD"
    text = f"<B>{slot}</B>" if used else slot
    font = f'POINT-SIZE="{scale.points(9.0)}" COLOR="{colour}"'
    return (
        f'<TD PORT="{slot}" WIDTH="{scale.points(17.0):.0f}" CELLPADDING="1"><FONT {font}>{text}</FONT></TD>'
    )


# Edges.


def _weak_first(circuit: Circuit) -> list[Edge]:
    """What is written later is drawn on top."""

    def size(edge: Edge) -> float:
        score = circuit.edge_scores.get(str(edge), math.nan)
        return -1.0 if math.isnan(score) else abs(score)

    return sorted(circuit.edges, key=lambda e: (size(e), e.order))


def _edge_line(edge: Edge, circuit: Circuit, scale: Scale, look: Callable[[Edge], str] | None = None) -> str:
    score = circuit.edge_scores.get(str(edge), math.nan)
    width = scale.width(score)
    head = f"{quoted(str(edge.receiver))}:{edge.slot}:s" if edge.slot else f"{quoted(str(edge.receiver))}:s"
    tip = f"{edge}: {signed(score)}" if math.isfinite(score) else f"{edge}: not scored"
    return (
        f"  {quoted(str(edge.sender))}:n -> {head} [penwidth={width:.2f}, color={quoted(scale.colour(score))}, "
        f"arrowsize={0.3 + 0.09 * width:.2f}, weight={scale.weight(score)}, tooltip={quoted(tip)}, "
        f"class={quoted(edge.slot or 'plain')}{', ' + look(edge) if look else ''}];"
    )


def _serves_lines(links: Iterable[tuple[Node, Node]]) -> Iterator[str]:
    """Dotted lines inside the attention of a layer: from keys and values to the heads that use them."""
    for source, target in links:
        yield (
            f"  {quoted(str(source))}:n -> {quoted(str(target))}:s [style=dotted, penwidth=1.1, arrowhead=none, "
            f"color={quoted(LINE[Kind.KV])}, weight=3, tooltip={quoted(f'{source} serves {target}')}, class=serves];"
        )


def _inner_links(circuit: Circuit) -> Iterator[tuple[Node, Node]]:
    keys = _only_keys(circuit)
    for node in circuit.nodes:
        if node.kind is Kind.KV:
            served = set(circuit.anatomy.served_by(node.bare))
        elif node in keys:
            # What a head reads as a key or value at one position it writes at another.
            served = {node.bare}
        else:
            continue
        yield from ((node, head) for head in circuit.heads if head.bare in served and head not in keys)
