"""Neurons, features, errors and rests in a picture: their names, what is said of them, where they stand."""

from __future__ import annotations

from collections.abc import Sequence

from circuitfind.names import UNITS, Kind, Node
from circuitfind.output.dot_style import INK, MUTED, Scale, html_text, wrapped
from circuitfind.output.words import Words

PARTS = (*UNITS, Kind.REST, Kind.ERROR)
_STEP = {"si": 0, "sa": 2, "sh": 3, "m": 4, "t": 4, "sm": 5, "s": 6}
HEADS, MLP = 1, 4
"""Steps of a layer, bottom to top: keys and the SAE before heads at 0, heads, what they wrote, the MLP, the stream behind."""
ROW = 12
"""Units side by side; more of a layer stand in rows above each other, since none of them feeds another."""
_MEMBERS = 12
"""Units listed in a tooltip."""


def step(node: Node, *, parallel: bool) -> int:
    """Where in its layer an MLP or a part of one stands; beside the heads where blocks are parallel."""
    found = MLP if node.kind is Kind.MLP else _STEP[node.family]
    return HEADS if parallel and found == MLP else found


def in_rows(nodes: Sequence[Node]) -> list[list[Node]]:
    """The nodes of a rank in rows of about equal length. Whatever is no part of an MLP stands in the first."""
    first = [n for n in nodes if n.kind not in PARTS]
    parts = [n for n in nodes if n.kind in PARTS]
    count = max(1, -(-len(parts) // ROW))
    length = -(-len(parts) // count)
    rows = [parts[i * length : (i + 1) * length] for i in range(count)]
    return [first + rows[0], *rows[1:]]


def shown_name(node: Node) -> str:
    """``m5.n3``, or ``m5.n3 +2`` for three neurons that act together."""
    if len(node.units) < 2:
        return str(node.bare)
    return f"{_one(node, node.units[0])} +{len(node.units) - 1}"


def _one(node: Node, unit: int) -> str:
    return f"{node.family}{node.layer}.{'n' if node.kind is Kind.NEURON else 'f'}{unit}"


def members(node: Node, words: Words) -> str:
    """The units of a group with their labels, for a tooltip; empty for a single unit."""
    if len(node.units) < 2:
        return ""
    named = [_one(node, unit) for unit in node.units[:_MEMBERS]]
    told = [f"{name} ({words.labels[name]})" if name in words.labels else name for name in named]
    more = f", {len(node.units) - _MEMBERS} more" if len(node.units) > _MEMBERS else ""
    return f"{len(node.units)} together: {', '.join(told)}{more}"


def label_of(node: Node, words: Words) -> str | None:
    """What people call a node."""
    return words.labels.get(str(node.bare))


def hint_of(node: Node, words: Words) -> str | None:
    """The token that a node promotes most, where nobody gave it a label."""
    return None if label_of(node, words) else words.hints.get(str(node.bare))


def label_rows(node: Node, words: Words, span: str, scale: Scale, *, light: bool) -> list[str]:
    """Rows of a node's table: its label, or a hint in muted type."""
    label, hint = label_of(node, words), hint_of(node, words)
    if label:
        lines, look = wrapped(label, 20, most=3), f'COLOR="{"white" if light else INK}"'
    elif hint:
        lines, look = [f"→ {hint}"], f'COLOR="{MUTED}"'
    else:
        return []
    text = "&#160;<BR/>&#160;".join(map(html_text, lines))
    font = f'POINT-SIZE="{scale.points(8.5)}" {look}'
    return [f'<TR><TD{span} CELLPADDING="1"><FONT {font}>&#160;{text}&#160;</FONT></TD></TR>']


def stacked(table: str, line: str) -> str:
    """A second frame around a node's table: several units that are one node."""
    return (
        f'<TABLE BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2" COLOR="{line}" BGCOLOR="white">'
        f"<TR><TD>{table}</TD></TR></TABLE>"
    )


def meaning(kind: Kind) -> str:
    """A kind in the legend."""
    return {
        Kind.NEURON: "neuron of an MLP",
        Kind.FEATURE: "feature of a dictionary",
        Kind.REST: "rest: every other unit together",
        Kind.ERROR: "error: what a dictionary misses",
    }[kind]
