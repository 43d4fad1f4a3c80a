"""What the backups of a circuit change: the edges that join it with them, and what it can do without because of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from circuitfind.circuit.graph import Backup, Circuit, connected
from circuitfind.names import Node

Mask = Bool[np.ndarray, "writer reader"]


@dataclass(frozen=True)
class StoodInFor:
    """Components that no edge of the circuit leaves, since others stand in when they are removed.

    Attributes:
        nodes: They.
        group: What was removed together, they among it.
        backups: What stood in.
    """

    nodes: tuple[Node, ...]
    group: tuple[Node, ...]
    backups: tuple[Node, ...]
    reader: str


def stand_ins(circuit: Circuit) -> tuple[Backup, ...]:
    """Backups of the first and second order."""
    return tuple(b for b in circuit.backups if b.stands_in)


def stood_in_for(circuit: Circuit) -> tuple[StoodInFor, ...]:
    """Redundant groups: what backups cover and the circuit left out. It is not useless: its removal is repaired."""
    writing = {edge.sender.bare for edge in circuit.edges}
    grouped: dict[tuple[str, tuple[Node, ...]], list[Node]] = {}
    for backup in circuit.backups:
        if backup.kind == "backup":
            grouped.setdefault((backup.reader, backup.covers), []).append(backup.node)
    return tuple(
        StoodInFor(missing, group, tuple(backups), reader)
        for (reader, group), backups in grouped.items()
        if (missing := tuple(node for node in group if node not in writing))
    )


def with_backups(circuit: Circuit) -> Mask:
    """The circuit's edges, those of its backups to their readers, and those from its writers into its backups."""
    anatomy = circuit.anatomy
    mask = circuit.mask.copy()
    writers = np.zeros(len(anatomy.writers), dtype=bool)
    writers[[0, *(anatomy.row_of(edge.sender) for edge in circuit.edges)]] = True
    for backup in stand_ins(circuit):
        row, column = anatomy.row_of(backup.node), anatomy.reader_index[backup.reader]
        mask[row, column] = anatomy.edge_mask[row, column]
        for name in anatomy.readers_of(backup.node):
            mask[:, anatomy.reader_index[name]] |= writers & anatomy.edge_mask[:, anatomy.reader_index[name]]
    return connected(anatomy, mask)


def covered(circuit: Circuit) -> tuple[Node, ...]:
    """What first-order backups stand in for, all of it."""
    nodes = {node for backup in circuit.backups if backup.kind == "backup" for node in backup.covers}
    return tuple(sorted(nodes, key=lambda node: node.order))


def knocked_out(circuit: Circuit, mask: Mask, nodes: Sequence[Node]) -> Mask:
    """Some edges of the model, less those that leave some nodes."""
    left = np.array(mask)
    left[[circuit.anatomy.row_of(node) for node in nodes]] = False
    return left


def without(circuit: Circuit, backups: Sequence[Backup] = ()) -> Mask:
    """Every edge of the model but the circuit's, and but those that leave some backups."""
    mask = circuit.anatomy.edge_mask & ~circuit.mask
    return knocked_out(circuit, mask, [backup.node for backup in backups])
