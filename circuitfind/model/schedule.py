"""Which patches share passes over a batch, and from which position on those begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitfind.model.anatomy import Anatomy
from circuitfind.model.contrast import Contrast
from circuitfind.model.edge_pass import EdgePass
from circuitfind.model.node_pass import NodePass, Patch, Watch, first_stage, since
from circuitfind.model.path_pass import PathPass, Paths
from circuitfind.model.single_edges import SingleEdges, edge_stage

FEW_TOKENS = 64
"""Recomputing so many tokens costs no more than another pass."""


class Watcher(Protocol):
    """Makes a watch for each pass, and hears when the pass is done (one that ran out of memory never is)."""

    def begin(self, number: int, contrast: Contrast, count: int) -> Watch:
        """The watch of a pass of so many patches over a batch, which begins where the contrast does."""

    def end(self, number: int, members: Sequence[int], watch: Watch) -> None:
        """The pass is done; ``members`` are its patches, in its order."""


@dataclass
class Share:
    """Patches of one kind.

    Attributes:
        contrast: From the first position at which one of them replaces anything.
        edges: Whether they are patches of edges.
        single: Whether they are patches of one edge each.
        paths: Of what paths they are patches, if of any.
        members: Their places in the list of patches, in the order in which they join a pass.
        where: By member, the tokens of the contrast that it replaces; empty for all tokens.
    """

    contrast: Contrast
    edges: bool = False
    single: bool = False
    paths: Paths | None = None
    members: list[int] = field(default_factory=list)
    where: dict[int, Bool[np.ndarray, "row pos"]] = field(default_factory=dict)

    @property
    def light(self) -> bool:
        """Whether a row takes no more memory than that of a plain pass."""
        return not self.edges and self.paths is None

    @property
    def tokens(self) -> int:
        """Tokens of one patch."""
        return self.contrast.n_rows * self.contrast.length

    def run(
        self, patches: Sequence[Patch], some: Sequence[int], watch: Watch | None = None
    ) -> Float[Tensor, "patch prompt d_model"]:
        """What the final norm reads under some members, in one pass, which a watch sees where whole nodes are replaced."""
        if self.single:
            return SingleEdges(
                self.contrast, [edge for edge in (patches[i].edge for i in some) if edge]
            ).run()
        anatomy = self.contrast.model.anatomy
        none = np.zeros(len(anatomy.writers), dtype=bool)
        nodes = np.stack([none if row is None else row for row in (patches[i].nodes for i in some)])
        if self.paths is not None:
            return PathPass(self.contrast, nodes, self.paths).run()
        if not self.edges:
            where = [self.where[i] for i in some] if self.where else None
            kept = [patches[i].held for i in some]
            held = (
                np.stack([none if row is None else row for row in kept])
                if any(k is not None for k in kept)
                else None
            )
            return NodePass(self.contrast, nodes, where, held=held, watch=watch).run()
        edges = np.stack([_edges_of(anatomy, patches[i]) for i in some])
        return EdgePass(self.contrast, nodes, edges).run()


def shares(
    contrast: Contrast, patches: Sequence[Patch], index: Int[np.ndarray, " row"]
) -> tuple[list[Share], list[int]]:
    """Sort patches into passes over a batch, whose rows are the pairs of ``index``.

    Patches that replace nothing that an answer of the batch can see come apart: they need no pass.
    """
    anatomy = contrast.model.anatomy
    stages = [
        first_stage(anatomy, patch.nodes) if patch.edge is None else edge_stage(anatomy, patch.edge[1])
        for patch in patches
    ]
    edges, single, whole = Share(contrast, edges=True), Share(contrast, single=True), Share(contrast)
    along: dict[int, Share] = {}
    starts: dict[int, list[int]] = {}
    where: dict[int, Bool[np.ndarray, "row pos"]] = {}
    idle: list[int] = []
    read: dict[tuple[int, bool], Bool[np.ndarray, "row pos"]] = {}
    for i in sorted(range(len(patches)), key=stages.__getitem__):
        patch, last = patches[i], stages[i] >= 2 * anatomy.n_layers - 1
        if patch.edges is not None or (patch.edge is not None and anatomy.split):
            edges.members.append(i)
            continue
        if patch.edge is not None:
            single.members.append(i)
            continue
        if patch.paths is not None:
            along.setdefault(id(patch.paths), Share(contrast, paths=patch.paths)).members.append(i)
            continue
        if patch.where is None:
            whole.members.append(i)
            continue
        key = id(patch.where), last  # patches share their masks
        if key not in read:
            read[key] = _read(contrast, patch.where[index], last=last)
        at = np.flatnonzero(read[key].any(0))
        if len(at):
            where[i] = read[key]
            starts.setdefault(_start(contrast, int(at[0])), []).append(i)
        else:
            idle.append(i)
    edges.members.sort()
    parts = [part for part in (edges, single, whole, *along.values()) if part.members]
    return parts + _by_start(contrast, starts, where, stages), idle


def _edges_of(anatomy: Anatomy, patch: Patch) -> Bool[np.ndarray, "writer reader"]:
    """The edges that a patch replaces."""
    if patch.edges is not None:
        return patch.edges
    found = np.zeros_like(anatomy.edge_mask)
    if patch.edge is not None:
        found[patch.edge] = True
    return found


def _read(
    contrast: Contrast, where: Bool[np.ndarray, "row whole"], *, last: bool
) -> Bool[np.ndarray, "row pos"]:
    """The tokens of a contrast that are replaced and that the answer can see; in the last block the answer's alone."""
    place = contrast.base.place
    out = np.zeros((contrast.n_rows, contrast.length), dtype=bool)
    mine = where[:, place.start : place.stop]
    out[:, : mine.shape[1]] = mine
    at = place.answers_on_host[:, None]
    positions = np.arange(place.start, place.stop)
    if last:
        out &= positions == at
    elif contrast.model.causal:
        out &= positions <= at
    return out


def _start(contrast: Contrast, offset: int) -> int:
    """The first position to compute when nothing is replaced before an offset."""
    place = contrast.base.place
    if not contrast.model.causal:
        return place.start
    # Every row's answer must be among what is computed.
    return min(place.start + offset, int(place.answers_on_host.min()))


def _by_start(
    contrast: Contrast,
    starts: dict[int, list[int]],
    where: dict[int, Bool[np.ndarray, "row pos"]],
    stages: Sequence[int],
) -> list[Share]:
    """One share for each first position; a few patches join those that begin a little earlier."""
    found: list[Share] = []
    for start in sorted(starts):
        part = found[-1] if found else None
        if (
            part is None
            or (start - part.contrast.base.place.start) * contrast.n_rows * len(starts[start]) > FEW_TOKENS
        ):
            part = Share(since(contrast, start))
            found.append(part)
        gap = part.contrast.base.place.start - contrast.base.place.start
        part.members += starts[start]
        part.where.update({i: where[i][:, gap:] for i in starts[start]})
    for part in found:
        part.members.sort(key=stages.__getitem__)
    return found
