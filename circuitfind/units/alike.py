"""Neurons of a layer whose activations differ in the same way from what they carry when replaced.

What a neuron does is the product of that difference, over all tokens of all prompts, and the row that it writes. Two neurons
whose differences are alike (cosine, of either sign) are driven by the same thing. Two whose products are opposed take away
from each other, whatever reads them: what either does alone says nothing. If almost nothing is left, they are of no effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from circuitfind.config import Ablation
from circuitfind.model.runs import Runs
from circuitfind.names import Kind

ALIKE = 0.7
"""The least cosine, of either sign: half of what one of them does is what both do."""
UNDONE = 0.25
"""Two undo each other if what they do together is at most this share of what the larger one does."""
CANDIDATES = 2048
"""Neurons of a layer that are looked at, those that do most: all pairs of them are compared."""
SETS = 48
"""Sets of a layer, those that do most."""
LARGEST = 48
"""Members of a set, those that do most."""


@dataclass(frozen=True)
class Moves:
    """What the neurons of a layer do, those first that do most.

    Attributes:
        rows: Of writers.
        size: How much each does.
        drives: Cosines between how they differ.
        does: Cosines between what they do.
    """

    rows: Int[np.ndarray, " neuron"]
    size: Float[np.ndarray, " neuron"]
    drives: Float[np.ndarray, "neuron neuron"]
    does: Float[np.ndarray, "neuron neuron"]

    @classmethod
    def of(cls, runs: Runs, ablation: Ablation, layer: int) -> Moves:
        """Of a layer of which neurons are nodes, each on its own."""
        anatomy, parts = runs.model.anatomy, runs.model.layers[layer].parts
        first = anatomy.mlp_slice(layer).start
        count = sum(node.kind is Kind.NEURON for node in anatomy.writers[anatomy.mlp_slice(layer)])
        assert parts is not None
        moved = _differences(runs, ablation, layer)[:, :count]
        write = parts.w_out[:count].double().cpu().numpy()
        size = np.linalg.norm(moved, axis=0) * np.linalg.norm(write, axis=1)
        some = np.argsort(-size, kind="stable")[:CANDIDATES]
        some = some[size[some] > 1e-6 * size.max(initial=0.0)]
        drives = _cosines(moved[:, some].T)
        return cls(first + some, size[some], drives, drives * _cosines(write[some]))

    @cached_property
    def _leaves(self) -> Float[np.ndarray, "neuron neuron"]:
        """What two do together, as a share of what the larger one does."""
        size, other = self.size[:, None], self.size[None]
        squares = size**2 + other**2 + 2 * size * other * self.does
        return np.asarray(np.sqrt(np.maximum(squares, 0.0)) / np.maximum(size, other))

    @cached_property
    def undone(self) -> Bool[np.ndarray, " neuron"]:
        """Which have another one that undoes them; each undoes one at the most, those first that leave least."""
        one, other = np.nonzero(np.triu(self._leaves <= UNDONE, 1))
        found = np.zeros(len(self.rows), dtype=bool)
        for pair in np.argsort(self._leaves[one, other], kind="stable"):
            if not found[one[pair]] and not found[other[pair]]:
                found[[one[pair], other[pair]]] = True
        return found

    def sets(self, allowed: Bool[np.ndarray, " writer"]) -> list[list[int]]:
        """Rows that move alike, set by set; each has two members at the least, and no neuron is in two sets.

        Neurons that are undone by another one are left out, also by one that is not allowed.
        """
        left, found = allowed[self.rows] & ~self.undone, []
        for leader in range(len(self.rows)):
            if left[leader]:
                alike = np.flatnonzero(left & (np.abs(self.drives[leader]) >= ALIKE))
                left[alike] = False
                if len(alike) > 1:
                    rows = sorted(int(row) for row in self.rows[alike][:LARGEST])
                    found.append((float(self.size[alike].sum()), rows))
        return [rows for _, rows in sorted(found, reverse=True)[:SETS]]

    def opposed(self, allowed: Bool[np.ndarray, " writer"]) -> list[tuple[int, int]]:
        """Pairs of rows that take away from each other and leave something; each is in one pair at the most."""
        left, found = allowed[self.rows] & ~self.undone, []
        for one in range(len(self.rows)):
            against = np.where(left & (np.arange(len(left)) != one), self.does[one], 1.0)
            other = int(against.argmin())
            if left[one] and against[other] <= -ALIKE:
                left[[one, other]] = False
                first, second = sorted((int(self.rows[one]), int(self.rows[other])))
                found.append((first, second))
        return found


def _cosines(rows: Float[np.ndarray, "one n"]) -> Float[np.ndarray, "one one"]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1.0)
    return np.asarray(unit @ unit.T)


def _differences(runs: Runs, ablation: Ablation, layer: int) -> Float[np.ndarray, "token unit"]:
    """How far the activations of units are from what they carry when replaced."""
    found = []
    with torch.no_grad():
        for number in range(len(runs.batches)):
            contrast = runs.contrast(number, ablation)
            change = contrast.written.part(layer).values - contrast.cut.part(layer).values
            found.append(change.flatten(0, 1).double().cpu())
    return torch.cat(found).numpy()
