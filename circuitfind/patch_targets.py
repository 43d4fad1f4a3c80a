"""What is patched by doses: names to masks over writers, edges and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from circuitfind.errors import UsageError, did_you_mean
from circuitfind.names import UNITS, Edge, Kind, Node, parse_edge, parse_node
from circuitfind.session import Session
from circuitfind.settings import Settings

if TYPE_CHECKING:
    from circuitfind.model.anatomy import Anatomy
    from circuitfind.model.dose import Target
    from circuitfind.model.runs import Runs

MOST = 200
"""Doses, and patches of their own."""


@dataclass(frozen=True)
class PatchOptions:
    """What is patched, and how far.

    Attributes:
        nodes, edges: Names, in any spelling that is read.
        alphas: The doses; 0 and 1 are added.
        each: Patch every node and edge by itself, in place of all together.
        positions: Names or numbers of positions at which nodes are patched; empty for all.
        gradient: Take slopes, and ask EAP-IG.
        steps: Of EAP-IG.
    """

    nodes: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()
    alphas: tuple[float, ...] = tuple(i / 20 for i in range(21))
    each: bool = False
    positions: tuple[str, ...] = ()
    gradient: bool = True
    steps: int = 5

    def __post_init__(self) -> None:
        if not self.nodes and not self.edges:
            raise UsageError(
                "nothing is named to patch",
                hint="name nodes (--nodes a1.h4,m0) or edges (--edges 'a1.h4->logits')",
            )
        wrong = [a for a in self.alphas if not np.isfinite(a)]
        if wrong or not self.alphas:
            raise UsageError(
                f"{wrong[0] if wrong else 'nothing'} is no dose", hint="give numbers from 0 to 1"
            )
        if len(self.alphas) > MOST:
            raise UsageError(f"{len(self.alphas)} doses are too many", hint=f"give at most {MOST}")
        if self.edges and self.positions:
            raise UsageError(
                "edges are patched at all positions", hint="leave out --positions, or name nodes alone"
            )

    @property
    def parsed(self) -> tuple[tuple[Node, ...], tuple[Edge, ...]]:
        """The nodes and edges, each once.

        Raises:
            UsageError: A name is none, or has a position of its own.
        """
        nodes = tuple(dict.fromkeys(parse_node(name) for name in self.nodes))
        edges = tuple(dict.fromkeys(parse_edge(name) for name in self.edges))
        for node in (*nodes, *(edge.sender for edge in edges)):
            if node.position is not None:
                raise UsageError(
                    f"'{node}' names a position", hint=f"write {node.bare}, and --positions {node.position}"
                )
        for node in nodes:
            if node.kind in (Kind.LOGITS, Kind.KV):
                raise UsageError(
                    f"'{node}' writes nothing", hint="patch input, heads, MLPs, neurons or features"
                )
        return nodes, edges

    @property
    def doses(self) -> tuple[float, ...]:
        """The doses, rising, with 0 and 1."""
        return tuple(sorted({0.0, 1.0, *(round(float(a), 9) + 0.0 for a in self.alphas)}))


@dataclass(frozen=True)
class Named:
    """The names of what is patched together."""

    label: str
    nodes: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()


def fitting(settings: Settings, options: PatchOptions) -> Settings:
    """The settings with the kinds of nodes that are named."""
    nodes, edges = options.parsed
    kinds = {node.kind for node in (*nodes, *(edge.sender for edge in edges))}
    neurons, features = Kind.NEURON in kinds, bool(kinds & {Kind.FEATURE, Kind.ERROR})
    if neurons and features:
        raise UsageError(
            "neurons and features are not patched together", hint="patch them one after the other"
        )
    if any(node.family.startswith("s") for node in nodes):
        raise UsageError(
            "features of SAEs are not patched by doses", hint="patch features of transcoders, or heads"
        )
    if not neurons and not features:
        return settings
    if edges:
        raise UsageError(
            "doses of edges are of heads and whole MLPs", hint="patch neurons and features as --nodes"
        )
    return replace(settings, nodes="heads,neurons" if neurons else "heads,features")


def runs_with(session: Session, options: PatchOptions) -> Runs:
    """The prompts, in a model in which the neurons or features are nodes that are named."""
    if not session.settings.units:
        return session.runs
    chosen: dict[int, list[tuple[int, ...]]] = {}
    for node in options.parsed[0]:
        if node.kind in UNITS:
            chosen.setdefault(node.layer, []).append(node.units)
    if session.settings.nodes == "heads,neurons":
        from circuitfind.model.split import split_neurons

        beyond = next((layer for layer in sorted(chosen) if layer >= session.model.anatomy.n_layers), None)
        if beyond is not None:
            raise UsageError(
                f"this model has no layer {beyond}",
                hint=f"layers go from 0 to {session.model.anatomy.n_layers - 1}",
            )
        return session.unit_runs(split_neurons(session.model, chosen))
    return session.unit_runs(session.split(chosen))


def targets_of(anatomy: Anatomy, options: PatchOptions) -> tuple[list[Named], list[Target]]:
    """What is patched: names and masks, each by itself or all in one.

    Raises:
        UsageError: This model has no such node or edge, or too many are named.
    """
    from circuitfind.model.dose import Target

    nodes, edges = options.parsed
    names = [Named(str(node), nodes=(str(node),)) for node in nodes]
    names += [Named(str(edge), edges=(str(edge),)) for edge in edges]
    made: list[Target] = []
    for node in nodes:
        mask = np.zeros(len(anatomy.writers), dtype=bool)
        mask[_rows(anatomy, node)] = True
        made.append(Target(mask))
    for edge in edges:
        cut = np.zeros_like(anatomy.edge_mask)
        cut[anatomy.index_of(edge)] = True
        made.append(Target(np.zeros(len(anatomy.writers), dtype=bool), cut))
    if options.each or len(made) == 1:
        if len(made) > MOST:
            raise UsageError(f"{len(made)} patches are too many", hint=f"name at most {MOST}")
        return names, made
    cuts = [one.edges for one in made if one.edges is not None]
    whole = Target(np.any([one.nodes for one in made], axis=0), np.any(cuts, axis=0) if cuts else None)
    label = ", ".join(one.label for one in names)
    return [Named(label, tuple(map(str, nodes)), tuple(map(str, edges)))], [whole]


def _rows(anatomy: Anatomy, node: Node) -> list[int]:
    """The writers that a node stands for: all parts of an MLP that is split."""
    whole = str(node) in anatomy.writer_index
    if node.kind is Kind.MLP and anatomy.has_mlp and not whole and node.layer < anatomy.n_layers:
        rows = anatomy.mlp_slice(node.layer)
        return list(range(rows.start, rows.stop))
    return [anatomy.row_of(node)]


def tokens_at(runs: Runs, names: Sequence[str]) -> Bool[np.ndarray, "prompt pos"] | None:
    """True at the tokens that are named: by the task, or by number from the start of the prompt.

    Raises:
        UsageError: No prompt has a position of that name.
    """
    if not names:
        return None
    longest = max(len(pair.clean) for pair in runs.pairs)
    known = {name for pair in runs.pairs for name in pair.positions}
    found = np.zeros((len(runs), longest), dtype=bool)
    for name in names:
        number = int(name) if name.lstrip("-").isdecimal() else None
        if number is None and name not in known:
            raise UsageError(
                f"the prompts name no position '{name}'",
                hint=f"{did_you_mean(name, known)} (or count tokens from 0, or -1 for the last)",
            )
        for row, pair in enumerate(runs.pairs):
            at = pair.positions.get(name) if number is None else number
            at = at + len(pair.clean) if at is not None and at < 0 else at
            if at is not None and 0 <= at < len(pair.clean):
                found[row, at] = True
    if not found.any():
        raise UsageError(f"no prompt has the positions {', '.join(names)}", hint="count tokens from 0")
    return found
