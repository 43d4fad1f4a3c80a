"""Edge patching: the exact effect of every edge, by running the model with it alone replaced.

What attribution estimates to first order. ``noising`` has the edge carry its ablated value in the clean run, ``denoising``
its clean value in the corrupted run (see methods/activation_patching.py for what that tells). A patch is one row of a pass
that begins at the edge's reader (model/single_edges.py), about half a forward pass; a large model has tens of thousands
of edges, so ``of`` names a method that proposes the ``top`` of them and the others stay NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Level, Positions
from circuitfind.errors import UsageError
from circuitfind.methods.base import Cost, Method
from circuitfind.methods.exact import effects, needs_corrupted_run, refuse_zeros, whole_prompts
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs

MOST_EFFECTS = 1 << 24
"""Effects of single prompts that are held at once."""
DEFAULT_TOP = 500
"""How many edges ``of`` proposes when ``top`` is not given."""


@dataclass(frozen=True)
class EdgePatching:
    """See the module.

    Attributes:
        of: The method that proposes edges; all are taken if empty.
        top: How many of them; 0 for 500.
    """

    of: str = ""
    top: int = 0

    name: ClassVar[str] = "edge-patching"
    level: ClassVar[Level] = "edge"

    def cost(self, anatomy: Anatomy) -> Cost:
        if not self.of:
            return Cost(forward=2 + anatomy.n_edges, backward=0)
        first = self.proposer().cost(anatomy)
        return replace(first, forward=first.forward + min(self.n_edges, anatomy.n_edges))

    @property
    def n_edges(self) -> int:
        """How many edges a method proposes."""
        return self.top or DEFAULT_TOP

    def proposer(self) -> Method:
        """The method that proposes edges.

        Raises:
            UsageError: There is none of that name, or it scores no edges.
        """
        from circuitfind.methods import get_method  # the registry knows this module

        if self.top < 0:
            raise UsageError(f"edge-patching: top={self.top} is negative", hint="give the number of edges")
        found = get_method(self.of)
        if found.level != "edge" or self.of == self.name:
            raise UsageError(
                f"edge-patching: of={self.of} scores no edges by itself",
                hint="use a method such as eap or eap-ig",
            )
        return found

    def run(
        self, runs: Runs, *, ablation: Ablation, direction: Direction, positions: Positions = "none"
    ) -> Scores:
        """Scores of every edge, or of those that were proposed; positive where the clean value helps the metric.

        ``extra`` has the ``proposed`` scores that the edges were chosen by.

        Raises:
            UsageError: ``top`` without ``of``, or ``of`` names no method that scores edges.
            UnsupportedError: Positions kept apart, or denoising without a corrupted run.
            RunError: No edge has any effect.
        """
        whole_prompts(self.name, positions)
        needs_corrupted_run(direction, ablation)
        anatomy = runs.model.anatomy
        extra: dict[str, np.ndarray] = {}
        if self.of:
            proposed = self.proposer().run(runs, ablation=ablation, direction=direction)
            edges = proposed.ranked_edges()[: self.n_edges]
            extra = {"proposed": proposed.values.copy()}
        elif self.top:
            raise UsageError(
                f"edge-patching: top={self.top} of what?",
                hint="say which method proposes edges, such as of=eap",
            )
        else:
            edges = [(int(writer), int(reader)) for writer, reader in np.argwhere(anatomy.edge_mask)]
        # Edges into one layer stand together, so that they share passes.
        edges.sort(key=lambda edge: (edge[1], edge[0]))
        values = np.full(anatomy.edge_mask.shape, np.nan)
        size = max(1, MOST_EFFECTS // len(runs))
        for first in range(0, len(edges), size):
            some = edges[first : first + size]
            patches = [Patch(edge=edge) for edge in some]
            found = runs.fitted(lambda: effects(runs, patches, direction, ablation))  # noqa: B023  called at once
            values[tuple(np.array(some).T)] = found.mean(1)
        refuse_zeros(runs, values)
        return Scores(
            anatomy=anatomy,
            level="edge",
            values=values,
            extra=extra,
            facts={"edges": len(edges), "of": self.of},
            method=self.name,
            direction=direction,
            metric=runs.metric.name,
            ablation=ablation,
        )
