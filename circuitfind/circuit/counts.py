"""What a circuit is made of, in words."""

from __future__ import annotations

from circuitfind.circuit.graph import Circuit
from circuitfind.names import Kind


def parts_in_words(circuit: Circuit) -> str:
    """``3 heads, 4 MLPs``; or with units ``3 heads, 14 neurons (1 group), 2 errors``, where a group's members are counted."""
    rests = [n for n in circuit.nodes if n.kind is Kind.REST]
    told = [counted(len(circuit.heads), "head")]
    if circuit.mlps or not (circuit.units or rests or circuit.errors):
        told.append(counted(len(circuit.mlps), "MLP"))
    for kind, word in ((Kind.NEURON, "neuron"), (Kind.FEATURE, "feature")):
        own = [n for n in circuit.units if n.kind is kind]
        if own:
            groups = sum(len(n.units) > 1 for n in own)
            together = f" ({counted(groups, 'group')})" if groups else ""
            told.append(counted(sum(len(n.units) for n in own), word) + together)
    told += [counted(len(circuit.errors), "error")] if circuit.errors else []
    told += [counted(len(rests), "rest")] if rests else []
    return ", ".join(told)


def counted(number: int, word: str) -> str:
    """``1 head``, ``2 heads``, ``1,024 neurons``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
