"""What all methods have in common that score edges by gradients: a few backward passes in front of one contraction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Positions
from circuitfind.errors import RunError, UnsupportedError
from circuitfind.methods.base import Cost
from circuitfind.methods.contraction import Attribution, ReaderGradients, attribute
from circuitfind.methods.positions import group_positions, merged
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.contrast import Contrast
from circuitfind.model.forward import Trace
from circuitfind.model.pieces import in_order
from circuitfind.model.rules import PLAIN, Rules
from circuitfind.model.runs import Runs

IDENTITY_TOLERANCE = 1e-3
"""Largest gap between a node and the sum of its edges, as a share of the largest node, in single precision."""

Collect = Callable[[Runs, int, Contrast, ReaderGradients], None]
"""Adds the gradients of one batch: ``collect(runs, number, contrast, into)``."""
Groups = Callable[[int, int], tuple[Int[Tensor, "row pos"] | None, int]]
"""Which tokens of a batch are summed together, and in how many groups: ``groups(number, start)``."""
TABLE_BYTES = 256 << 20
"""What the tables of the single prompts of a batch take at the most."""


@dataclass(frozen=True)
class Passes:
    """The backward passes that a method takes in front of the contraction.

    Attributes:
        collect: Several are added up; each is contracted before the next one runs, so that memory stays that of one.
        rules: Those of the backward passes.
        at_clean: Whether gradients are taken at the clean run, which must then keep what they need.
        at_corrupted: The same for the corrupted run.
    """

    collect: tuple[Collect, ...]
    rules: Rules = PLAIN
    at_clean: bool = True
    at_corrupted: bool = False


@runtime_checkable
class GradientMethod(Protocol):
    """A method whose scores are the mean over prompts of what some backward passes give for each."""

    @property
    def name(self) -> str: ...

    def cost(self, anatomy: Anatomy) -> Cost: ...

    def passes(self, runs: Runs, *, ablation: Ablation, direction: Direction) -> Passes:
        """What it takes; refuses what the method refuses."""
        ...


def add_gradient(
    runs: Runs, number: int, trace: Trace, into: ReaderGradients, weight: float = 1.0, rules: Rules = PLAIN
) -> None:
    """One backward pass at a run of a batch."""
    _, behind = runs.backward(number, trace, lambda block: into.add(trace, block, weight), rules=rules)
    into.add_input(behind, weight)


def needs_corrupted_run(direction: Direction, ablation: Ablation) -> None:
    """Refuse denoising where there is no corrupted run to take a gradient at.

    Raises:
        UnsupportedError: There is none.
    """
    if direction == "denoising" and ablation != "resample":
        raise UnsupportedError(
            f"denoising takes the gradient at a corrupted prompt, which {ablation} ablation does not have",
            hint="use --ablation resample, or --direction noising",
        )


def edge_scores(
    runs: Runs,
    method: GradientMethod,
    *,
    ablation: Ablation,
    direction: Direction,
    positions: Positions,
) -> Scores:
    """Scores of every edge, the mean over prompts, positive where the clean value helps.

    Args:
        runs: The prompts.
        method: What says which passes to take.
        ablation: As for a method.
        direction: The same.
        positions: The same.

    Raises:
        UnsupportedError: As for the method's ``passes``.
        RunError: The edges of a node do not sum to the node (a self-check that holds for every model).
    """
    method.passes(runs, ablation=ablation, direction=direction)  # refuses before any work
    return runs.fitted(lambda: _edge_scores(runs, method, ablation, direction, positions))


def weighted_scores(
    runs: Runs,
    method: GradientMethod,
    weights: Float[np.ndarray, "draw prompt"],
    *,
    ablation: Ablation,
    direction: Direction,
) -> tuple[Float[np.ndarray, "draw writer reader"], Float[np.ndarray, "draw writer"]]:
    """Weighted sums of the scores that single prompts have, of edges and of nodes, from one run of the method.

    A row of 1 / n gives the method's scores, a row of the unit matrix those of one prompt, and a row that counts how often
    each prompt was drawn, divided by the number of draws, the scores of the drawn prompts. Not so under ``mean`` ablation,
    where what a prompt is ablated to depends on the others: there it stays the mean over all of ``runs``.

    Args:
        runs: The prompts.
        method: What says which passes to take.
        weights: Of each prompt in each sum.
        ablation: As for a method.
        direction: The same.

    Raises:
        UnsupportedError: As for the method's ``passes``.
        RunError: The edges of a node do not sum to the node.
    """
    method.passes(runs, ablation=ablation, direction=direction)
    writers, readers = runs.model.anatomy.edge_mask.shape
    most = max(1, TABLE_BYTES // (12 * writers * readers))  # in single precision there, in double here
    if max(len(batch.index) for batch in runs.batches) > most:
        runs = runs.smaller(most)

    def work() -> Table:
        def piece(batches: Index) -> Weighted:
            rows = np.concatenate(batches)
            return Weighted(method, ablation, direction, batches, weights[:, rows])

        pieces = (
            piece(some) for some in groups_of_batches(runs, method.cost(runs.model.anatomy), MOST_WEIGHTED)
        )
        shape = runs.model.anatomy.edge_mask.shape
        return _summed(runs, pieces, (len(weights), *shape))

    edges, nodes = runs.fitted(work)
    _check_identity(runs, edges, nodes)
    return edges, nodes


# Pieces: sums over the prompts of some batches.

MOST_PIECES, MOST_WEIGHTED = 64, 8
"""Of a run of a method: each gives tables of all edges, which may be kept until the run is finished."""

Index = tuple[Int[np.ndarray, "_"], ...]
"""The prompts of some batches, batch by batch."""
Table = tuple[Float[np.ndarray, "group writer reader"], Float[np.ndarray, "group writer"]]


@dataclass(frozen=True)
class Attributed:
    """Sums over the tokens of each group of positions."""

    method: GradientMethod
    ablation: Ablation
    direction: Direction
    positions: Positions
    batches: Index

    rows = 0
    portable = True

    def run(self, runs: Runs) -> Mapping[str, np.ndarray]:
        model, shape = runs.model, runs.model.anatomy.edge_mask.shape
        grouping = group_positions(runs, self.positions, shape[0] * shape[1])
        count = 1 if grouping is None else len(grouping.names)

        def groups(number: int, start: int) -> tuple[Int[Tensor, "row pos"] | None, int]:
            return None if grouping is None else grouping.of(number, start, model.device), count

        edges, nodes = np.zeros((count, *shape)), np.zeros((count, shape[0]))
        for _, found in _attributions(runs, self, groups):
            edges += found.edges
            nodes += found.nodes
        return {"edges": edges, "nodes": nodes}


@dataclass(frozen=True)
class Weighted:
    """Weighted sums over prompts; ``weights`` are of those of the batches, in their order."""

    method: GradientMethod
    ablation: Ablation
    direction: Direction
    batches: Index
    weights: Float[np.ndarray, "draw row"]

    rows = 0
    portable = True

    def run(self, runs: Runs) -> Mapping[str, np.ndarray]:
        def groups(number: int, start: int) -> tuple[Int[Tensor, "row pos"], int]:
            rows, length = runs.batches[number].clean.shape
            every = torch.arange(rows, device=runs.model.device)
            return every[:, None].expand(-1, length - start), rows

        shape = runs.model.anatomy.edge_mask.shape
        edges = np.zeros((len(self.weights), *shape))
        nodes = np.zeros((len(self.weights), shape[0]))
        ends = np.cumsum([len(index) for index in self.batches])
        of_batch = dict(
            zip(map(runs.number_of, self.batches), np.split(self.weights, ends[:-1], 1), strict=True)
        )
        for number, found in _attributions(runs, self, groups):
            edges += np.tensordot(of_batch[number], found.edges, 1)
            nodes += of_batch[number] @ found.nodes
        return {"edges": edges, "nodes": nodes}


def groups_of_batches(runs: Runs, cost: Cost, most: int) -> Iterator[Index]:
    """Batches that follow each other, as many as a piece has; all in at most so many pieces."""
    tokens = sum(batch.clean.numel() for batch in runs.batches)
    # A backward pass costs about twice a forward one.
    in_piece = max(tokens / most, runs.tokens_in_piece() / (cost.forward + 2 * cost.backward))
    some: list[Int[np.ndarray, " row"]] = []
    held = 0
    for batch in runs.batches:
        some.append(batch.index)
        held += batch.clean.numel()
        if held >= in_piece:
            yield tuple(some)
            some, held = [], 0
    if some:
        yield tuple(some)


def _summed(runs: Runs, pieces: Iterator[Attributed] | Iterator[Weighted], shape: Sequence[int]) -> Table:
    """The sums over all pieces, added up in their order whatever order they come in."""
    edges, nodes = np.zeros(shape), np.zeros(shape[:-1])
    for arrays in in_order(runs.hands.do(runs, pieces)):
        edges += arrays["edges"]
        nodes += arrays["nodes"]
    return edges, nodes


def _attributions(
    runs: Runs, piece: Attributed | Weighted, groups: Groups
) -> Iterator[tuple[int, Attribution]]:
    """What each part of a method gives of each batch of a piece: (number, sums over the tokens of each group)."""
    ablation = piece.ablation
    passes = piece.method.passes(runs, ablation=ablation, direction=piece.direction)
    for number in map(runs.number_of, piece.batches):
        # Now, so that neither is run again to keep more of it.
        if passes.at_clean:
            runs.trace(number, "clean", keep=True)
        if passes.at_corrupted:
            runs.trace(number, "corrupted", keep=True)
        contrast = runs.contrast(number, ablation, keep=passes.at_clean)
        labels, count = groups(number, contrast.base.place.start)
        for collect in passes.collect:
            into = ReaderGradients(runs.model, passes.rules)
            collect(runs, number, contrast, into)
            if len(passes.collect) == 1:
                contrast = runs.lightened(contrast)
            yield number, attribute(into, runs.model, contrast.written, contrast.cut, labels, count)


def _edge_scores(
    runs: Runs, method: GradientMethod, ablation: Ablation, direction: Direction, positions: Positions
) -> Scores:
    model, shape = runs.model, runs.model.anatomy.edge_mask.shape
    grouping = group_positions(runs, positions, shape[0] * shape[1])
    count = 1 if grouping is None else len(grouping.names)
    pieces = (
        Attributed(method, ablation, direction, positions, some)
        for some in groups_of_batches(runs, method.cost(runs.model.anatomy), MOST_PIECES)
    )
    edges, nodes = _summed(runs, pieces, (count, *shape))
    edges, nodes = edges / len(runs), nodes / len(runs)
    gap = _check_identity(runs, edges, nodes)
    return Scores(
        anatomy=model.anatomy,
        level="edge",
        values=merged(edges, grouping),
        nodes=merged(nodes, grouping),
        by_position=None if grouping is None else edges,
        position_names=None if grouping is None else grouping.names,
        method=method.name,
        direction=direction,
        metric=runs.metric.name,
        ablation=ablation,
        facts={"identity_gap": gap},
    )


def _check_identity(runs: Runs, edges: np.ndarray, nodes: np.ndarray) -> float:
    """How far the edges of a node are from summing to the node, as a share of the largest node.

    Raises:
        RunError: Too far.
    """
    scale = float(np.abs(nodes).max())
    gap = 0.0 if scale == 0 else float(np.abs(np.nansum(edges, axis=-1) - nodes).max()) / scale
    allowed = IDENTITY_TOLERANCE if runs.model.precision == "fp32" else 50 * IDENTITY_TOLERANCE
    if runs.model.dtype.itemsize >= 4 and not gap <= allowed:
        raise RunError(
            f"the edges of a node do not sum to the node (off by {gap:.1e} of the largest): the scores cannot be trusted",
            hint="please report this model; --method activation-patching takes no gradients",
        )
    return gap
