"""The parts of an evaluation: each from a circuit on new prompts to plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitfind.circuit.rule import Rule
from circuitfind.errors import UsageError, did_you_mean
from circuitfind.evidence_prompts import Fresh
from circuitfind.evidence_subjects import Subject
from circuitfind.session import Session

if TYPE_CHECKING:
    from circuitfind.circuit.evaluate import Evaluator
    from circuitfind.methods.base import Method
    from circuitfind.model.runs import Runs
    from circuitfind.task.findings import Known

RESAMPLES = 20
"""Times that prompts are drawn again for stability."""

SEEDS = 3
"""Seeds that prompts are drawn from, the run's own among them."""


@dataclass
class Work:
    """What the parts of an evaluation are made from.

    Attributes:
        subject: The circuit.
        prompts: New ones.
        evaluator: On those that are answered rightly, under the circuit's own ablation.
        draws: Random sets, circuits and rankings that a part draws.
        seed: Of what is drawn.
    """

    subject: Subject
    prompts: Fresh
    evaluator: Evaluator
    draws: int
    seed: int


def _completeness(work: Work) -> dict[str, Any]:
    from circuitfind.evidence.knockouts import completeness, incompleteness

    given, mask = work.evaluator, work.subject.circuit.mask
    return {
        "left": completeness(given, mask).as_dict(),
        "nodes": incompleteness(given, mask, level="node", draws=work.draws, seed=work.seed).as_dict(),
        "edges": incompleteness(given, mask, level="edge", draws=work.draws, seed=work.seed).as_dict(),
    }


def _minimality(work: Work) -> dict[str, Any]:
    from circuitfind.evidence.knockouts import minimality

    mask = work.subject.circuit.mask
    return {
        "edges": minimality(work.evaluator, mask, level="edge").as_dict(),
        "nodes": minimality(work.evaluator, mask, level="node").as_dict(),
    }


def _curve(work: Work) -> dict[str, Any]:
    from circuitfind.evidence.curves import curves

    scores = work.subject.scores
    if scores is None:
        raise UsageError("the scores of the model's other edges are not known", hint="give a run")
    few = max(2, work.draws // 5)
    return curves(work.evaluator, scores, rankings=few, same_size=few, seed=work.seed).as_dict()


def _tests(work: Work) -> dict[str, Any]:
    from circuitfind.evidence.hypothesis import all_tests

    found = all_tests(work.evaluator, work.subject.circuit.mask, draws=2 * work.draws, seed=work.seed)
    return {"tests": [one.as_dict() for one in found]}


def _stability(work: Work) -> dict[str, Any]:
    from circuitfind.evidence.stability import over_prompts

    session, method, rule = _search(work)
    settings = session.settings
    return over_prompts(
        session.runs_for(work.subject.circuit.anatomy),
        method,
        ablation=settings.ablation,
        direction=settings.direction,
        rule=rule,
        circuit=work.subject.circuit.mask,
        draws=RESAMPLES,
        seed=work.seed,
    ).as_dict()


def _counterfactuals(work: Work) -> dict[str, Any]:
    from circuitfind.evidence.counterfactuals import over_counterfactuals

    session, method, _ = _search(work)
    settings, names = session.settings, session.spec.counterfactuals
    if len(names) < 2:
        raise UsageError("the task has one counterfactual", hint="give it another one")

    def make(name: str) -> Runs:
        other = Session(
            session.spec,
            replace(settings, counterfactual=name),
            session.device,
            session.reporter,
            memory=session.memory,
        )
        return _rightly(session, other, settings.seed)

    return over_counterfactuals(
        make,
        names,
        method,
        ablation=settings.ablation,
        direction=settings.direction,
        rule=_same_size(work),
    ).as_dict()


def _seeds(work: Work) -> dict[str, Any]:
    from circuitfind.evidence.seeds import over_seeds

    session, method, _ = _search(work)
    settings = session.settings
    return over_seeds(
        lambda seed: _rightly(session, session, seed),
        method,
        ablation=settings.ablation,
        direction=settings.direction,
        rule=_same_size(work),
        seeds=[settings.seed + i for i in range(SEEDS)],
    ).as_dict()


def _known(work: Work) -> dict[str, Any]:
    from circuitfind.evidence.against import against

    subject = work.subject
    found = _lists(subject.session)
    return {"lists": [against(subject.scores, subject.circuit, known).as_dict() for known in found]}


def _lists(session: Session) -> list[Known]:
    """What is known of the model: what it was written to do, what the task lists, what its folder says."""
    from circuitfind.evidence.listed import truth_of_planted
    from circuitfind.evidence.truth import truth_of_folder
    from circuitfind.model.identity import model_folder
    from circuitfind.zoo import is_planted

    settings = session.settings
    if is_planted(settings.model):
        return [truth_of_planted(settings.model, settings.ablation, settings.nodes)]
    listed = list(session.spec.known_of(settings.model))
    truth = None if settings.units else truth_of_folder(model_folder(settings.model), settings.ablation)
    return listed + ([truth] if truth is not None else [])


def _search(work: Work) -> tuple[Session, Method, Rule]:
    """How the circuit was found, where that can be done again."""
    from circuitfind.methods import get_method

    subject = work.subject
    if subject.scores is None or subject.run is None:
        raise UsageError("how the circuit was found is not known", hint="give a run")
    if subject.circuit.anatomy.split:
        raise UsageError("units are not looked for again", hint="give a run of heads and MLPs")
    settings = subject.session.settings
    return subject.session, get_method(settings.method, settings.options), settings.rule


def _same_size(work: Work) -> Rule:
    """Prune to as many edges as the circuit has: runs no circuits, and sizes do not differ by chance."""
    return Rule(edges=len(work.subject.circuit.edges))


def _rightly(session: Session, other: Session, seed: int) -> Runs:
    """Runs of the pairs of a session's task that the model answers rightly, drawn from a seed."""
    other.model = session.model
    pairs = other.draw(session.settings.count, seed, drop_bad_pairs=True)
    runs = session.runs_of(pairs)
    right = runs.answered_rightly
    return runs if right.all() else session.runs_of(pairs.subset(np.flatnonzero(right).tolist()))


PARTS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "completeness": _completeness,
    "minimality": _minimality,
    "curve": _curve,
    "tests": _tests,
    "stability": _stability,
    "counterfactuals": _counterfactuals,
    "seeds": _seeds,
    "known": _known,
}
"""By name, in the order in which they are made."""


def parts_named(names: Sequence[str]) -> tuple[str, ...]:
    """Names of parts, where ``all`` stands for every one.

    Raises:
        UsageError: There is no such part.
    """
    for name in names:
        if name not in (*PARTS, "all"):
            raise UsageError(f"an evaluation has no part '{name}'", hint=did_you_mean(name, [*PARTS, "all"]))
    return tuple(PARTS) if "all" in names else tuple(dict.fromkeys(names))
