"""Small graphs with random edges, for what needs no model."""

from __future__ import annotations

import numpy as np

from circuitfind.attribution.graph import AttributionGraph, NodeKind, Nodes


def random_graph(
    seed: int = 0,
    *,
    n_layers: int = 3,
    n_pos: int = 4,
    each: int = 3,
    logits: int = 2,
    rows: int | None = None,
    bare: bool = False,
) -> AttributionGraph:
    """A graph with ``each`` features at every layer and position; with ``rows`` some features have no row.

    With ``bare`` some rows have no edges at all.
    """
    rng = np.random.default_rng(seed)
    parts = [(NodeKind.TOKEN, -1, at, 100 + at) for at in range(n_pos)]
    for layer in range(n_layers):
        parts += [
            (NodeKind.FEATURE, layer, at, int(rng.integers(50)) * each + i)
            for at in range(n_pos)
            for i in range(each)
        ]
        parts += [(NodeKind.ERROR, layer, at, -1) for at in range(n_pos)]
    parts += [(NodeKind.LOGIT, n_layers, n_pos - 1, 7 + i) for i in range(logits)]
    kind, layer, position, index = (np.array(column) for column in zip(*parts, strict=True))
    nodes = Nodes(kind.astype(int), layer, position, index, rng.random(len(parts)))
    n_sources = len(parts) - logits
    features = np.flatnonzero(kind == NodeKind.FEATURE)
    if rows is not None:
        features = np.sort(rng.choice(features, rows, replace=False))
    row_nodes = np.concatenate([features, np.arange(n_sources, len(parts))])
    edges = rng.normal(size=(len(row_nodes), n_sources)) ** 3
    edges[layer[None, :n_sources] >= layer[row_nodes][:, None]] = 0
    edges[position[None, :n_sources] > position[row_nodes][:, None]] = 0
    edges[rng.random(edges.shape) < 0.3] = 0
    if not bare:
        edges[np.arange(len(row_nodes)), position[row_nodes]] += 0.1  # the token at its own position
    bias = rng.normal(size=len(row_nodes))
    probability = -np.sort(-rng.random(logits)) / logits
    return AttributionGraph(
        model="some/model",
        dictionaries="somewhere",
        prompt="a b c d"[: 2 * n_pos - 1],
        tokens=tuple(range(100, 100 + n_pos)),
        pieces=tuple("abcdefgh"[:n_pos]),
        n_layers=n_layers,
        nodes=nodes,
        probability=probability,
        logit_pieces=tuple(f" w{i}" for i in range(logits)),
        row_nodes=row_nodes,
        edges=edges.astype(np.float32),
        bias=bias,
        inputs=edges.astype(np.float32).sum(1, dtype=float) + bias,
        settings={"max_features": 7500, "max_logits": 10, "logit_probability": 0.95},
    )
