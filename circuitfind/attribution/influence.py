"""Influence: how much of the output a node has a part in, through all paths of the graph. No torch here.

With A the sizes of the edges, normalised to sum to 1 over the inputs of each target, and w the probabilities of the logits,
influence = w (A + A^2 + ...) (Ameisen et al. 2025). A source lies below its target, so one pass from the top down gives the
whole sum: when a layer is reached, all that reads it has been counted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int


def by_layer(levels: Int[np.ndarray, " row"]) -> Iterator[Int[np.ndarray, " some"]]:
    """The rows whose targets are in one layer, from the highest layer down."""
    for level in sorted(set(levels.tolist()), reverse=True):
        yield np.flatnonzero(levels == level)


def influence(
    edges: Float[np.ndarray, "row source"],
    row_nodes: Int[np.ndarray, " row"],
    levels: Int[np.ndarray, " row"],
    weights: Float[np.ndarray, " node"],
    sizes: Float[np.ndarray, " row"] | None = None,
) -> Float[np.ndarray, " node"]:
    """Influence of every node; what flows into a node without a row ends there.

    Args:
        edges: Their signs do not matter.
        row_nodes: The node that each row leads to; sources are the first nodes.
        levels: The layer of each row's node, above those of all its sources.
        weights: Where influence starts.
        sizes: What a row's edges are divided by; the sum of their sizes if None. Larger ones let some of it go.
    """
    total = weights.astype(np.float64)
    for rows in by_layer(levels):
        block = np.abs(edges[rows])
        # As a product: NumPy's own sum over rows takes several times as long.
        size = block @ np.ones(block.shape[1], block.dtype) if sizes is None else sizes[rows]
        share = np.divide(total[row_nodes[rows]], size, out=np.zeros(len(rows)), where=size > 0)
        total[: edges.shape[1]] += share.astype(block.dtype) @ block
    found: Float[np.ndarray, " node"] = total - weights
    return found
