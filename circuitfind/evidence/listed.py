"""Known circuits as parts of a model: what a published list names, the circuit that it stands for, the truth of planted models.

Torch is imported for planted models alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from circuitfind.circuit.graph import connected
from circuitfind.config import Ablation, Nodes
from circuitfind.errors import UsageError
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import INPUT, Kind, Node, parse_edge, parse_node
from circuitfind.task.findings import Known

Mask = Bool[np.ndarray, "writer reader"]

IDLE = ("noise", "uniform", "idle", "decoy", "distractor")
"""Roles in planted models of what does no work; the last two begin longer names."""


class Listed(NamedTuple):
    """The circuit that a list stands for."""

    mask: Mask
    note: str
    """What was added to the list, in a sentence."""


def title(known: Known) -> str:
    """What to call a known circuit."""
    if known.name and known.source:
        return f"{known.name} ({known.source})"
    return known.name or known.source or "the known circuit"


def edges_of(anatomy: Anatomy, known: Known) -> tuple[tuple[int, int], ...]:
    """(writer, reader) of the listed edges that are edges here; keys and values by the head that computes them.

    An edge of a neuron or feature, or of a whole MLP, is no edge where MLPs are in other parts; it is left out.

    Raises:
        UsageError: The model cannot have one of the edges.
    """
    found: dict[tuple[int, int], None] = {}
    wrong: list[UsageError] = []
    for name in known.edges:
        edge = parse_edge(name)
        try:
            found[anatomy.index_of(edge)] = None
        except UsageError as error:
            if not any(_is_inside(anatomy, node) for node in (edge.sender, edge.receiver)):
                wrong.append(error)
    _refuse(known, wrong)
    return tuple(found)


def rows_of(anatomy: Anatomy, known: Known, names: Iterable[str]) -> dict[str, int]:
    """Rows of listed nodes by name, of those that are writers here; see ``edges_of``.

    Raises:
        UsageError: The model cannot have one of them.
    """
    found, wrong = {}, []
    for name in names:
        node = parse_node(name).bare
        try:
            found[str(node)] = anatomy.row_of(node)
        except UsageError as error:
            if not _is_inside(anatomy, node):
                wrong.append(error)
    _refuse(known, wrong)
    return found


def _is_inside(anatomy: Anatomy, node: Node) -> bool:
    """Whether a node that the anatomy lacks is an MLP that is split here, or a part of one that is split otherwise."""
    is_mlp = node.kind not in (Kind.INPUT, Kind.HEAD, Kind.KV, Kind.LOGITS)
    return anatomy.split and is_mlp and node.layer < anatomy.n_layers


def _refuse(known: Known, wrong: list[UsageError]) -> None:
    if not wrong:
        return
    more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
    raise UsageError(
        f"{title(known)} does not fit: {wrong[0].what}{more}",
        hint=f"{wrong[0].hint}; or compare with a list that was made for this model",
        details=[error.what for error in wrong[1:6]],
    )


def heads_circuit(anatomy: Anatomy, heads: Collection[str], mlps: Collection[str] | None = None) -> Mask:
    """All edges among some heads and MLPs, the input and the logits.

    Args:
        anatomy: The model's parts.
        heads: By name.
        mlps: By name; all of them if None. Of an MLP that is split, all parts.

    Raises:
        UsageError: The model has no such head or MLP.
    """
    rows = {anatomy.row_of(INPUT), *(anatomy.row_of(name) for name in heads)}
    layers = range(anatomy.n_layers) if mlps is None else [_layer(anatomy, name) for name in mlps]
    for layer in layers:
        rows |= {anatomy.row_of(node) for node in anatomy.mlp_nodes(layer)}
    return _among(anatomy, rows)


def nodes_circuit(anatomy: Anatomy, mask: Mask) -> Mask:
    """All edges among the nodes of a circuit: what it is when nodes are kept or ablated, and not edges."""
    rows = {int(row) for row in np.flatnonzero(mask.any(axis=1))}
    return _among(anatomy, rows | {anatomy.row_of(INPUT)})


def _among(anatomy: Anatomy, rows: Collection[int]) -> Mask:
    kept = np.isin(np.arange(len(anatomy.writers)), sorted(rows))
    names = {str(anatomy.writers[row]) for row in rows}
    read = [
        node.kind is Kind.LOGITS or any(str(served) in names for served in anatomy.served_by(node))
        for node, _ in anatomy.readers
    ]
    return np.asarray(anatomy.edge_mask & kept[:, None] & np.array(read)[None])


def _layer(anatomy: Anatomy, name: str) -> int:
    node = parse_node(name)
    if node.kind is not Kind.MLP or not anatomy.has_mlp or node.layer >= anatomy.n_layers:
        anatomy.row_of(node)  # says what is nearest
        raise UsageError(f"'{name}' is not an MLP", hint="MLPs are named like m5")
    return node.layer


def known_circuit(anatomy: Anatomy, known: Known, *, complete: bool = False) -> Listed:
    """The circuit that a list stands for, so that it can be run; the note says what was taken.

    - Edges that reach MLPs, or of a model without, or of a list that is ``complete``: those edges.
    - Edges between heads alone: those, and every edge at an MLP among the listed heads, all MLPs, input and logits: such a
      list takes MLPs as given.
    - Heads and MLPs: every edge among them, input and logits. Where no MLP is listed, all MLPs are in it.

    Args:
        anatomy: The model's parts.
        known: The list.
        complete: Whether it names every edge, so that none is added; as the truth of planted models does.

    Raises:
        UsageError: The list names nothing, or what the model cannot have.
    """
    if not known.edges and not known.nodes:
        raise UsageError(
            f"{title(known)} lists no heads, MLPs or edges, so there is nothing to run",
            hint="list some in the task (known: ... heads:)",
        )
    rows_of(anatomy, known, known.nodes)
    if known.edges:
        return _of_edges(anatomy, known, complete)
    mlps = known.mlps or None
    mask = heads_circuit(anatomy, known.heads, mlps)
    listed = f"{len(known.heads)} heads" + (f" and {len(known.mlps)} MLPs" if known.mlps else "")
    added = " and every MLP, since the list names none" if anatomy.has_mlp and mlps is None else ""
    return Listed(mask, f"every edge among the {listed} of the list, the input and the logits{added}")


def _of_edges(anatomy: Anatomy, known: Known, complete: bool) -> Listed:
    mask = np.zeros_like(anatomy.edge_mask)
    for edge in edges_of(anatomy, known):
        mask[edge] = True
    note = f"the {int(mask.sum())} edges of the list"
    if anatomy.has_mlp and not complete and not reaches_mlps(known):
        heads = {str(n) for e in map(parse_edge, known.edges) for n in (e.sender, e.receiver)}
        heads = {name for name in heads | set(known.heads) if parse_node(name).kind is Kind.HEAD}
        every = heads_circuit(anatomy, heads, known.mlps or None)
        mask |= every & ~heads_circuit(anatomy, heads, ())
        note += ", and every edge at an MLP among its heads, all MLPs, the input and the logits: it takes MLPs as given"
    idle = int((mask & ~connected(anatomy, mask)).sum())
    if idle:
        note += f"; {idle} of them lie on no way from the input to the logits and carry nothing"
    return Listed(mask, note)


def reaches_mlps(known: Known) -> bool:
    """Whether a listed edge begins or ends at an MLP or a part of one."""
    heads = (Kind.INPUT, Kind.HEAD, Kind.KV, Kind.LOGITS)
    return any(
        edge.sender.kind not in heads or edge.receiver.kind not in heads
        for edge in map(parse_edge, known.edges)
    )


def truth_of_planted(name: str, ablation: Ablation, nodes: Nodes = "heads,mlps") -> Known:
    """What is true of a planted model: its edges under an ablation, the heads and MLPs on them, and their roles.

    Under an ablation for which no edges are listed, and of models that list none at all, the heads and MLPs are those that
    were written to do something. The edges are complete (see ``known_circuit``).

    Args:
        name: Such as ``planted/induction:7``.
        ablation: Edges are known under some ablations alone; none are listed under others.
        nodes: With neurons or features as nodes, edges are those of the units that do the work.

    Raises:
        ModelError: No planted model has that name.
    """
    from circuitfind.model.load import planted

    truth = planted(name)
    by_ablation = truth.edges
    if nodes != "heads,mlps":
        units = truth.units
        by_ablation = {} if units is None else units.feature_edges if "features" in nodes else units.edges
    edges = sorted(by_ablation.get(ablation, ()), key=lambda e: parse_edge(e).order)
    ends = {node for edge in map(parse_edge, edges) for node in (edge.sender, edge.receiver)}
    used = {str(replace(n, kind=Kind.MLP, index=0, family="", members=()) if n.units else n) for n in ends}
    roles: dict[str, list[str]] = {}
    for node, role in truth.roles.items():
        if node in used if edges else not role.startswith(IDLE):
            roles.setdefault(role.lower().replace(" ", "-"), []).append(node)
    note = truth.note
    if by_ablation and not edges:
        note += f" Its edges are known under {' and '.join(by_ablation)} ablation alone."
    kinds = {node: parse_node(node).kind for members in roles.values() for node in members}
    return Known.model_validate(
        {
            "name": "truth",
            "source": f"the weights of {name} were written by hand",
            "heads": tuple(node for node, kind in kinds.items() if kind is Kind.HEAD),
            "mlps": tuple(node for node, kind in kinds.items() if kind is Kind.MLP),
            "roles": {role: tuple(members) for role, members in roles.items()},
            "edges": tuple(edges),
            "ablation": ablation,
            "note": note,
        }
    )
