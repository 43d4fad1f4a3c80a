"""Nested circuits of the strongest edges, from one edge to all: what each carries, and what is left without it.

A circuit of n edges is the connected part of the n strongest by |score|, as the MIB benchmark makes it (circuit/curve.py).

    faithfulness  F(C)      (m(C) - m(empty)) / (m(full) - m(empty)), a ratio of means over prompts
    completeness  F(M \\ C)  the same with the circuit's edges cut and all others kept; 0 where the circuit is all there is
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.curve import circuits, edge_order, edge_strengths
from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.intervals import ratio_intervals
from circuitfind.circuit.scores import Scores
from circuitfind.views.report import Band, Bounds, Curve, Point

Mask = Bool[np.ndarray, "writer reader"]
Values = Float[np.ndarray, " prompt"]


def sizes(n_edges: int, own: int, count: int) -> list[int]:
    """About so many numbers of edges, equally far apart on a logarithmic axis, and the own one among them.

    Args:
        n_edges: Of the model; the last size.
        own: Of the circuit.
        count: Of sizes; fewer where numbers of edges between them are missing.
    """
    spread = np.unique(np.geomspace(1, n_edges, count).round().astype(int)).tolist()
    return sorted({*spread, n_edges, *([own] if 0 < own <= n_edges else [])})


def nested(scores: Scores, edges: Sequence[int]) -> list[Mask]:
    """The connected part of so many of the strongest edges, for each number of them."""
    anatomy = scores.anatomy
    order = edge_order(anatomy, edge_strengths(scores))
    return circuits(anatomy, order, [n / anatomy.n_edges for n in edges])


def curve(
    evaluator: Evaluator, scores: Scores, edges: Sequence[int], circuit: Point, random: Band | None
) -> Curve:
    """The curve, with a circuit beside it.

    Runs at the most two circuits for each size; the full and the empty one are not run again.

    Args:
        evaluator: Runs the circuits.
        scores: Of edges or nodes.
        edges: Sizes, rising.
        circuit: What is known of the circuit.
        random: What chance does at these sizes.

    Raises:
        RunError: There is no behaviour to explain.
    """
    _ = evaluator.gap
    every = evaluator.runs.model.anatomy.edge_mask
    masks = nested(scores, edges)
    found = shares(evaluator, evaluator.each_once([*masks, *(every & ~mask for mask in masks)]))
    return Curve(
        ablation=evaluator.ablation,
        n_prompts=len(evaluator.runs),
        edges=tuple(edges),
        connected=tuple(int(mask.sum()) for mask in masks),
        faithfulness=tuple(found[: len(masks)]),
        completeness=tuple(found[len(masks) :]),
        random=random,
        circuit=circuit,
    )


def shares(evaluator: Evaluator, values: Float[np.ndarray, "circuit prompt"]) -> list[Bounds]:
    """Faithfulness of circuits from the metric in them; of the full one exactly 1, however its sums are rounded.

    Raises:
        ValueError: There is no behaviour to explain.
    """
    full, empty = evaluator.full, evaluator.empty
    found = ratio_intervals(values - empty, full - empty)
    return [
        Bounds(1.0, 1.0, 1.0) if np.array_equal(own, full) else Bounds.of(one)
        for own, one in zip(values, found, strict=True)
    ]
