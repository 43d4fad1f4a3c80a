"""Circuits to draw and store, without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from circuitfind.circuit.graph import Circuit, Conditions, Evaluation, Interval
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import parse_edge

SMALL = Anatomy(n_layers=2, n_heads=2, n_kv_heads=2)
GPT2 = Anatomy(n_layers=12, n_heads=12, n_kv_heads=12)
GROUPED = Anatomy(n_layers=2, n_heads=4, n_kv_heads=2)


def conditions(**changes: str) -> Conditions:
    found = {
        "task": "ioi",
        "model": "gpt2",
        "method": "eap",
        "metric": "logit_diff",
        "ablation": "resample",
        "direction": "noising",
        "counterfactual": "abc",
        "rule": "faithfulness 0.9",
    }
    return Conditions(**{**found, **changes})


def evaluation(ablation: str = "resample") -> Evaluation:
    return Evaluation(ablation, "logit_diff", Interval(0.913, 0.881, 0.94), 3.2, 3.5, 0.1, 64)


def make(
    edges: Mapping[str, float] | Sequence[str],
    anatomy: Anatomy = SMALL,
    roles: Mapping[str, str] | None = None,
    **changes: Any,
) -> Circuit:
    scores = dict(edges) if isinstance(edges, Mapping) else dict.fromkeys(edges, math.nan)
    return Circuit(
        anatomy=anatomy,
        edges=tuple(parse_edge(name) for name in scores),
        conditions=changes.pop("conditions", conditions()),
        edge_scores=scores,
        evaluations=changes.pop("evaluations", (evaluation(),)),
        roles=roles or {},
        **changes,
    )


def random_circuit(anatomy: Anatomy, n_edges: int, seed: int) -> Circuit:
    rng = np.random.default_rng(seed)
    existing = np.argwhere(anatomy.edge_mask)
    chosen = existing[rng.choice(len(existing), min(n_edges, len(existing)), replace=False)]
    edges = [anatomy.edge_at(int(w), int(r)) for w, r in chosen]
    return make({str(edge): float(rng.normal()) for edge in edges}, anatomy)
