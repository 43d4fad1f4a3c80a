"""Random circuits: connected ones of an exact size, grown path by path, to compare a circuit with.

A random edge is taken and completed to a way from the input to the logits: down from its writer and up from its reader by
random edges, until both meet what is there already. That is done again until the circuit has its size. Every edge of the
model can be in it. Near the size, edges that would need more company than is left are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from circuitfind.circuit.graph import connected
from circuitfind.errors import UsageError
from circuitfind.model.anatomy import Anatomy

Mask = Bool[np.ndarray, "writer reader"]
Path = list[tuple[int, int]]


class RandomCircuits:
    """Random circuits of one model.

    Args:
        anatomy: Its parts.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        index = anatomy.writer_index
        self._reads = [
            [anatomy.reader_index[name] for name in anatomy.readers_of(node)] for node in anatomy.writers
        ]
        """By writer: the columns that it reads."""
        self._feeds = [
            [index[str(node)] for node in anatomy.served_by(reader) if str(node) in index]
            for reader, _ in anatomy.readers
        ]
        """By column: the rows that depend on it; none for the logits."""
        mask = anatomy.edge_mask
        # Writers and readers are in the order of the forward pass: what feeds a reader comes first, what a writer feeds last.
        self._below = mask.sum(0).tolist()
        self._above = (mask.shape[1] - mask.sum(1)).tolist()
        self._logits = mask.shape[1] - 1
        self._edges = np.argwhere(mask)

    def draw(self, n_edges: int, rng: np.random.Generator) -> Mask:
        """One connected circuit of so many edges.

        Args:
            n_edges: From 0 to all edges of the model.
            rng: Where the draws come from.

        Raises:
            UsageError: The model has fewer edges.
        """
        every = self._anatomy.n_edges
        if not 0 <= n_edges <= every:
            raise UsageError(
                f"no circuit of {n_edges} edges: the model has {every}",
                hint=f"give a number of edges from 0 to {every}",
            )
        if n_edges == every:
            return np.array(self._anatomy.edge_mask)
        grown = _Grown(self, rng)
        grown.grow(n_edges)
        while grown.size < n_edges:  # one edge is missing and none fits alone: make room for a way of two
            grown.drop_one()
            grown.grow(n_edges, least=2)
        return grown.mask

    def inflate(self, mask: Mask, rng: np.random.Generator) -> Mask:
        """A circuit and one random way more, through an edge that it lacks.

        Raises:
            UsageError: It lacks none.
        """
        if not (self._anatomy.edge_mask & ~mask).any():
            raise UsageError(
                "the circuit is the whole model: it lacks no edge", hint="give a smaller circuit"
            )
        grown = _Grown(self, rng, mask)
        while not (grown.mask & ~mask).any():
            row, column = self._edges[rng.integers(len(self._edges))]
            if not mask[row, column]:
                grown.add(int(row), int(column), self._anatomy.n_edges)
        return grown.mask

    def seeds(self, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
        """Every edge of the model, in random order."""
        for i in rng.permutation(len(self._edges)):
            yield int(self._edges[i, 0]), int(self._edges[i, 1])


class _Grown:
    """A circuit while it grows; connected after every step, if it was at the start.

    Attributes:
        reached: By row, whether the writer is on a way from the input.
        useful: By column, whether the reader is on a way to the logits.
    """

    def __init__(self, of: RandomCircuits, rng: np.random.Generator, start: Mask | None = None) -> None:
        self._of, self._rng = of, rng
        self.mask: Mask = np.zeros_like(of._anatomy.edge_mask) if start is None else np.array(start)
        self._look()

    def _look(self) -> None:
        """What is reached and useful, from the mask alone."""
        of, anatomy = self._of, self._of._anatomy
        self.size = int(self.mask.sum())
        self.reached = [False] * self.mask.shape[0]
        for row in anatomy.source_rows:
            self.reached[row] = True
        for column in np.flatnonzero(self.mask.any(0)):
            self._reach(int(column))
        self.useful = [False] * self.mask.shape[1]
        self.useful[of._logits] = True
        for writer in np.flatnonzero(self.mask.any(1)):
            self._use(int(writer))

    def _reach(self, column: int) -> None:
        for row in self._of._feeds[column]:
            self.reached[row] = True

    def _use(self, row: int) -> None:
        for column in self._of._reads[row]:
            self.useful[column] = True

    def grow(self, n_edges: int, *, least: int = 1) -> None:
        """Add ways through random edges, of at least so many edges each, up to a size, as far as they fit."""
        for row, column in self._of.seeds(self._rng):
            left = n_edges - self.size
            if not left:
                return
            needed = 1 + (not self.reached[row]) + (not self.useful[column])
            if self.mask[row, column] or not least <= needed <= left:
                continue
            self.add(row, column, left)

    def add(self, row: int, column: int, most: int) -> None:
        """Add a way through an edge, of at most so many edges; three are enough for any."""
        down = self._down(row, most - 1 - (not self.useful[column]))
        up = self._up(column, most - 1 - len(down))
        for w, r in [(row, column), *down, *up]:
            self.mask[w, r] = True
            self._reach(r)
            self._use(w)
            self.size += 1

    def _down(self, row: int, most: int) -> Path:
        """A random way to a writer from what is reached, of at most so many edges."""
        path: Path = []
        while not self.reached[row]:
            columns = self._of._reads[row]
            column = columns[self._rng.integers(len(columns))]
            rows = self._of._below[column]
            if len(path) + 1 == most:
                known = [w for w in range(rows) if self.reached[w]]
                row = known[int(self._rng.integers(len(known)))]
            else:
                row = int(self._rng.integers(rows))
            path.append((row, column))
        return path

    def _up(self, column: int, most: int) -> Path:
        """A random way from a reader to what is useful, of at most so many edges."""
        path: Path = []
        while not self.useful[column]:
            rows = self._of._feeds[column]
            row = rows[self._rng.integers(len(rows))]
            first = self._of._above[row]
            if len(path) + 1 == most:
                known = [r for r in range(first, self._of._logits + 1) if self.useful[r]]
                column = known[self._rng.integers(len(known))]
            else:
                column = int(self._rng.integers(first, self._of._logits + 1))
            path.append((row, column))
        return path

    def drop_one(self) -> None:
        """Take out a random edge that no other one needs."""
        for i in self._rng.permutation(np.argwhere(self.mask)):
            self.mask[i[0], i[1]] = False
            if (connected(self._of._anatomy, self.mask) == self.mask).all():
                self._look()
                return
            self.mask[i[0], i[1]] = True
        raise AssertionError("a connected circuit has an edge that no other one needs")


def random_circuit(anatomy: Anatomy, n_edges: int, rng: np.random.Generator) -> Mask:
    """A connected circuit of exactly so many edges, grown by random ways from the input to the logits.

    For many circuits of one model ``RandomCircuits`` does what they share once.

    Raises:
        UsageError: The model has fewer edges.
    """
    return RandomCircuits(anatomy).draw(n_edges, rng)
