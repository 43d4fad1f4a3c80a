"""Backups in a picture: dashed nodes beside the circuit, dashed edges to what they write to, dotted lines to what they cover."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from circuitfind.circuit.backup import stood_in_for
from circuitfind.circuit.graph import Backup, Circuit
from circuitfind.names import Node, parse_reader
from circuitfind.output.dot_style import MUTED, NEGATIVE, POSITIVE, quoted

MANY = 6
"""More dotted lines than these say less than the labels do: then each backup has one, to the first of what it covers."""
SHOWN = 3
"""Names in a label."""


@dataclass
class Aside:
    """What a node beside the circuit, or a backup in it, has in its label, and how it is drawn."""

    lines: list[str] = field(default_factory=list)
    against: bool = False


def asides(circuit: Circuit) -> dict[Node, Aside]:
    """Backups, and what they cover that the circuit left out."""
    found: dict[Node, Aside] = {}
    for backup in circuit.backups:
        aside = found.setdefault(backup.node, Aside())
        aside.against |= not backup.stands_in
        verb = "backs up" if backup.stands_in else "lets go without"
        kind = [] if backup.kind in circuit.roles.get(str(backup.node), "") else [backup.kind]
        aside.lines = list(dict.fromkeys((*aside.lines, *kind, f"{verb} {_few(backup.covers)}")))
    for group in stood_in_for(circuit):
        for node in group.nodes:
            aside = found.setdefault(node, Aside())
            aside.lines += ["redundant group", f"backed up by {_few(group.backups)}"]
    return found


def drawn_nodes(circuit: Circuit) -> tuple[Node, ...]:
    """The circuit's, and those beside it."""
    return tuple(sorted({*circuit.nodes, *asides(circuit)}, key=lambda n: n.order))


def backup_lines(circuit: Circuit) -> Iterator[str]:
    """Edges of what stands beside the circuit."""
    present = set(drawn_nodes(circuit))
    have = {(edge.sender, edge.reader) for edge in circuit.edges}
    wanted = [(b.node, b.reader, b.stands_in) for b in circuit.backups]
    wanted += [(node, group.reader, True) for group in stood_in_for(circuit) for node in group.nodes]
    for node, reader, helps in dict.fromkeys(wanted):
        target, slot = parse_reader(reader)
        if target in present and (node, reader) not in have:
            port = f":{slot}" if slot else ""
            colour = (POSITIVE if helps else NEGATIVE) + "AA"
            yield (
                f"  {quoted(str(node))}:n -> {quoted(str(target))}{port}:s [style=dashed, penwidth=1.2, arrowsize=0.45, "
                f"color={quoted(colour)}, weight=1, tooltip={quoted(f'{node} writes to {reader} when others are removed')}, "
                f"class=backup];"
            )
    yield from _covers(circuit.backups, present)


def _covers(backups: Iterable[Backup], present: set[Node]) -> Iterator[str]:
    pairs = dict.fromkeys((b.node, node) for b in backups for node in b.covers if node in present)
    if len(pairs) > MANY:
        first: dict[Node, Node] = {}
        for node, covered in pairs:
            first.setdefault(node, covered)
        pairs = dict.fromkeys(first.items())
    for node, covered in pairs:
        yield (
            f"  {quoted(str(covered))} -> {quoted(str(node))} [style=dotted, penwidth=0.9, arrowhead=none, "
            f"color={quoted(MUTED)}, constraint=false, tooltip={quoted(f'{node} acts when {covered} is removed')}, "
            f"class=covers];"
        )


def caption(circuit: Circuit) -> str:
    """What dashed means; empty where nothing is."""
    beside = asides(circuit)
    if not beside:
        return ""
    inside = sum(node in circuit.nodes for node in beside)
    counted = (
        "not counted in the faithfulness"
        if not inside
        else "counted in the faithfulness"
        if inside == len(beside)
        else f"{inside} of {len(beside)} counted in the faithfulness"
    )
    return (
        f"Dashed: what acts when others are removed ({counted}); dotted lines lead to these. "
        "What lets go works against the answer, less so without them."
        if any(a.against for a in beside.values())
        else f"Dashed: what stands in when others are removed ({counted}); dotted lines lead to these."
    )


def _few(nodes: Iterable[Node]) -> str:
    names = [str(node) for node in nodes]
    more = f", {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
