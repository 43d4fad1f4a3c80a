"""Pages of circuits that nobody searched for: of any size, with words of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from circuitfind.circuit.curve import circuits, edge_order, edge_strengths
from circuitfind.circuit.graph import Circuit, connected, from_mask
from circuitfind.circuit.scores import Scores
from circuitfind.model.anatomy import Anatomy
from circuitfind.output.report.circuit_graph import circuit_graph
from circuitfind.output.report.page import page
from circuitfind.output.report.write import SCRIPTS
from circuitfind.output.words import Words
from tests.output.circuits import conditions


def scores_of(anatomy: Anatomy, seed: int = 0) -> Scores:
    """Scores of every edge, a few of them far above the rest, as real ones are."""
    rng = np.random.default_rng(seed)
    writes, reads = (rng.exponential(size=len(ends)) ** 2 for ends in (anatomy.writers, anatomy.readers))
    writes[0], reads[-1] = writes.max(), reads.max()
    noise = rng.normal(0.3, 1, anatomy.edge_mask.shape)
    values = np.where(anatomy.edge_mask, writes[:, None] * reads[None] * noise, np.nan)
    values *= 9 / np.nanmax(np.abs(values))
    return Scores(
        anatomy=anatomy,
        level="edge",
        values=values,
        method="eap",
        direction="noising",
        metric="logit-diff",
        ablation="resample",
    )


def circuit_of(scores: Scores, count: int) -> Circuit:
    """The connected part of the strongest edges."""
    anatomy = scores.anatomy
    mask = np.zeros_like(anatomy.edge_mask)
    for edge in edge_order(anatomy, edge_strengths(scores))[:count]:
        mask[edge] = True
    found = connected(anatomy, mask)
    return from_mask(anatomy, found, conditions(), edge_values=scores.values, node_values=scores.node_values)


def wide_circuit(scores: Scores, nodes: int, edges: int, seed: int = 0) -> Circuit:
    """A circuit of exactly so many nodes and edges, every one of them on a way from the input to the logits."""
    anatomy, rng = scores.anatomy, np.random.default_rng(seed)
    inner = np.sort(rng.choice(np.arange(1, len(anatomy.writers)), nodes - 2, replace=False))
    mask = np.zeros_like(anatomy.edge_mask)
    last = anatomy.reader_index["logits"]
    for row in inner:
        mask[0, anatomy.reader_index[anatomy.readers_of(anatomy.writers[row])[-1]]] = True
        mask[row, last] = True
    among = [
        (int(w), anatomy.reader_index[name])
        for w in inner
        for r in inner
        for name in anatomy.readers_of(anatomy.writers[r])
        if anatomy.edge_mask[w, anatomy.reader_index[name]]
    ]
    for i in rng.permutation(len(among))[: edges - int(mask.sum())]:
        mask[among[i]] = True
    made = from_mask(anatomy, mask, conditions(), edge_values=scores.values, node_values=scores.node_values)
    assert (len(made.nodes), len(made.edges)) == (nodes, edges)
    assert np.array_equal(connected(anatomy, mask), mask)
    return made


def strongest_edges(scores: Scores, count: int) -> list[str]:
    """What Python keeps of so many: ``circuit/curve.circuits`` itself, as names."""
    anatomy = scores.anatomy
    order = edge_order(anatomy, edge_strengths(scores))
    (mask,) = circuits(anatomy, order, [count / anatomy.n_edges])
    return sorted(str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(mask))


def graph_page(path: Path, circuit: Circuit, scores: Scores, words: Words | None = None, **more: Any) -> Path:
    """A page with the circuit and its tables, and whatever else."""
    views: Mapping[str, Any] | None = more.pop("views", None)
    data = {
        "title": "a circuit",
        "graph": circuit_graph(circuit, scores, words or Words(), views=views),
        "tables": True,
        "missing": {},
        **more,
    }
    path.write_text(page(str(data["title"]), data, SCRIPTS), encoding="utf-8")
    return path
