"""Fewer edges, for a circuit that is too large to be drawn whole: the strongest, and one into and out of every node."""

from __future__ import annotations

import math
from dataclasses import replace

from circuitfind.circuit.graph import Circuit
from circuitfind.names import Edge

MOST = 250
"""Edges that are drawn. With many more Graphviz takes minutes, and nobody can follow a line."""


def fewer_edges(circuit: Circuit, most: int = MOST) -> Circuit:
    """The circuit with all of its nodes and its strongest edges; the same one if it has no more than ``most``.

    Each node keeps the strongest edge into it and out of it, so a few more than ``most`` may stay. Edges without a score come
    last.
    """
    if len(circuit.edges) <= most:
        return circuit

    def size(edge: Edge) -> float:
        score = circuit.edge_scores.get(str(edge), math.nan)
        return -1.0 if math.isnan(score) else abs(score)

    ranked = sorted(circuit.edges, key=lambda edge: (-size(edge), edge.order))
    ends = {("out", edge.sender): edge for edge in reversed(ranked)}
    ends |= {("in", edge.receiver): edge for edge in reversed(ranked)}
    needed = dict.fromkeys(ends.values())
    rest = [edge for edge in ranked if edge not in needed]
    return replace(circuit, edges=(*needed, *rest[: max(0, most - len(needed))]))
