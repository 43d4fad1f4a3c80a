"""What each stage of a run takes, in passes and seconds; from the model's writers and readers, and nothing else of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from circuitfind.config import Ablation, Controls
from circuitfind.evidence_controls import DRAWS, Draws
from circuitfind.session import Session
from circuitfind.view_stage import passes

if TYPE_CHECKING:
    from circuitfind.methods.base import Cost
    from circuitfind.model.anatomy import Anatomy

EDGE_PASS = 0.7
"""What the evaluation of a circuit costs beside a plain pass: 1.3 with half of all edges, 0.4 with a fifth of the nodes."""

NODE_PASS = 0.5
"""What a pass with one node replaced costs, from that node on and from where the prompts differ, on average."""

TYPICAL_TRIALS = 100
"""Circuits that pruning by faithfulness tries on models of this size; it depends on what it finds."""


TYPICAL_UNITS = 500
"""Passes over all prompts that finding the neurons or features takes: those that are verified, and sets of them."""

TYPICAL_TASKS = 8
"""Other tasks that a model does."""

TYPICAL_SEARCH = 50
"""Passes of a search for backups, on models and tasks where there is something to verify; a few where there is not."""


@dataclass(frozen=True)
class StagePlan:
    """One stage: ``cached`` or to ``run``; passes over all prompts, a patched pass of one patch counting as one."""

    name: str
    state: str
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    note: str = ""


def foreseen(session: Session, controls: Controls) -> dict[str, StagePlan]:
    """What each stage takes, with one forward pass over all prompts in place of a second; for a session with its model.

    Nothing is run for it.
    """
    return work(session, len(session.kept), 1.0, draws_of(controls))


def draws_of(controls: Controls) -> Draws:
    """How much is drawn for the controls that are asked for; without any, what new prompts need is planned."""
    return DRAWS["cheap" if controls == "none" else controls]


def trials_of(session: Session) -> int:
    """Circuits that pruning tries, about."""
    rule = session.settings.rule
    return 3 if rule.faithfulness is None else min(TYPICAL_TRIALS, rule.evaluations)


def work(session: Session, prompts: int, forward: float, draws: Draws) -> dict[str, StagePlan]:
    """What each stage takes, where a forward pass over all prompts takes so many seconds."""
    from circuitfind.methods import get_method

    cost = get_method(session.settings.method, session.settings.options).cost(session.model.anatomy)
    units = session.settings.units
    across = 0 if session.settings.model_b is None else 2 * len(session.model.anatomy.writers)
    scored = ceil(cost.forward) + TYPICAL_UNITS * units + across, ceil(cost.backward) + units
    rule, trials = session.settings.rule, trials_of(session)
    note = (
        ""
        if rule.faithfulness is None
        else f"as many as it takes, at most {rule.evaluations}; the time is for {trials}"
    )
    return {
        "prompts": StagePlan("prompts", "run", 1, 0, forward),
        "scores": StagePlan(
            "scores",
            "run",
            *scored,
            forward * (scored[0] + 2 * scored[1]),
            "finds the units first, by as many passes as it takes"
            if units
            else "replaces each part twice besides"
            if across
            else "",
        ),
        "circuit": StagePlan("circuit", "run", trials, 0, forward * EDGE_PASS * trials, note),
        "backups": StagePlan(
            "backups", "run", TYPICAL_SEARCH, 0, forward * TYPICAL_SEARCH, "as many as there is to verify"
        ),
        "evidence": _evidence(draws, forward, cost),
        "views": _views(session.model.anatomy, prompts, session.settings.ablation, forward),
        "pictures": StagePlan("pictures", "run", seconds=1.0),
    }


def _evidence(draws: Draws, forward: float, cost: Cost) -> StagePlan:
    """New prompts, two ablations, and the controls: circuits to run, and rankings to make."""
    thorough = draws != DRAWS["cheap"]
    rankings = draws.weights + min(draws.tasks, TYPICAL_TASKS)
    each = (cost.forward, cost.backward) if thorough else (2, 1)
    runs = 2 + 4 + draws.random + 4 * draws.pairs + rankings
    total = runs + ceil(rankings * each[0]), ceil(rankings * each[1])
    seconds = forward * (EDGE_PASS * runs + rankings * (each[0] + 2 * each[1]))
    return StagePlan("evidence", "run", *total, seconds, "new prompts, and controls")


def _views(anatomy: Anatomy, prompts: int, ablation: Ablation, forward: float) -> StagePlan:
    """Every node replaced alone, and the circuits of a curve."""
    nodes, circuits = passes(anatomy, prompts, ablation)
    seconds = forward * (NODE_PASS * nodes + EDGE_PASS * circuits)
    return StagePlan(
        "views", "run", ceil(nodes + circuits), 0, seconds, "every node, and circuits of all sizes"
    )
