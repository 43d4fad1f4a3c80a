"""The scores of a run in which neurons or features are nodes: find the few that count, then score the edges among them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitfind.circuit.scores import Scores
from circuitfind.names import LOGITS, Node
from circuitfind.session import Session

if TYPE_CHECKING:
    from circuitfind.methods.base import Method
    from circuitfind.units.find import Found

SLACK = 0.25
"""Nodes are chosen to miss at most this share less than the circuit may: its edges have the rest to lose."""

Made = tuple[dict[str, bytes | str], dict[str, Any]]


def score_units(session: Session, method: Method) -> Made:
    """Files and facts of the stage: ``scores.npz`` of the edges, ``nodes.npz`` of every unit, ``units.json``.

    Raises:
        CircuitfindError: There is no behaviour, or the model or its dictionaries do not allow it.
    """
    from circuitfind.methods.finite import checked
    from circuitfind.units.find import UnitOptions, find

    settings = session.settings
    wanted = settings.rule.faithfulness
    assert wanted is not None
    found = find(
        session.split,
        session.unit_runs,
        ablation=settings.ablation,
        target=wanted + SLACK * (1 - wanted),
        options=UnitOptions(seed=settings.seed),
        report=lambda text: session.reporter.stage("scores", "running", text),
    )
    checked(found.scores, session.model)
    runs = session.runs_for(found.model.anatomy)
    every = method.run(runs, ablation=settings.ablation, direction=settings.direction, positions="none")
    scores = among(checked(every, session.model), found.kept)
    facts = {"level": scores.level, **scores.facts, "units": dict(found.facts)}
    return {
        "scores.npz": scores.to_bytes(),
        "nodes.npz": found.scores.to_bytes(),
        "units.json": json.dumps(as_dict(found), indent=1) + "\n",
    }, facts


def among(scores: Scores, kept: tuple[Node, ...]) -> Scores:
    """Edge scores with those alone that lie among some nodes; no other edge is looked at any more."""
    anatomy, names = scores.anatomy, {str(node) for node in kept}
    writers = np.array([name in names for name in anatomy.writer_names])
    readers = np.array(
        [
            node == LOGITS or any(str(one) in names for one in anatomy.served_by(node))
            for node, _ in anatomy.readers
        ]
    )
    return replace(scores, values=np.where(writers[:, None] & readers[None], scores.values, np.nan))


def as_dict(found: Found) -> dict[str, Any]:
    """``units.json``: what was verified, which neurons act together, which nodes were kept."""
    values = dict(zip(found.scores.anatomy.writer_names, found.scores.values.tolist(), strict=True))
    return {
        **found.facts,
        "format": "circuitfind.units",
        "version": 1,
        "kept": [str(node) for node in found.kept],
        "faithfulness": found.faithfulness,
        "verified": [
            {"name": name, "effect": effect, "attribution": values[name]}
            for name, effect in found.exact.items()
        ],
        "groups": [
            {
                "name": name,
                "effect": group.effect,
                "largest_alone": group.largest,
                "shares": list(group.shares),
            }
            for name, group in found.groups.items()
        ],
    }
