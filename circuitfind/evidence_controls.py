"""The controls of a run: rankings of a model with shuffled weights and of another task, pairs dealt anew, random circuits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from circuitfind.circuit.graph import Circuit
from circuitfind.errors import CircuitfindError, UnsupportedError
from circuitfind.evidence.report import Control
from circuitfind.evidence_prompts import EvidenceOptions, Fresh
from circuitfind.session import Session, Silent
from circuitfind.settings import Settings, resolve
from circuitfind.task.spec import TaskSpec, find_tasks, load_task

if TYPE_CHECKING:
    from circuitfind.circuit.evaluate import Evaluator
    from circuitfind.circuit.scores import Scores
    from circuitfind.model.bridge import Model
    from circuitfind.task.pairs import PromptPairs

LOOKED_AT = 3
"""Other tasks that are tried, at the most, to find one that the model does; with full controls all are."""

PAIRS = 32
"""Prompt pairs of another task."""


@dataclass(frozen=True)
class Draws:
    """How thorough the controls are.

    Attributes:
        random: Random circuits.
        pairs: Times that pairs are dealt anew.
        weights: Times that weights are shuffled.
        tasks: Other tasks.
    """

    random: int
    pairs: int
    weights: int
    tasks: int


DRAWS = {"cheap": Draws(19, 5, 1, 1), "full": Draws(99, 20, 5, 1000)}


def make_controls(
    session: Session,
    circuit: Circuit,
    options: EvidenceOptions,
    prompts: Fresh,
    evaluator: Evaluator,
    values: np.ndarray,
) -> Iterator[Control]:
    from circuitfind.evidence.controls import random_circuits

    draws = DRAWS[options.controls]
    given = session, circuit, options, prompts, evaluator
    session.reporter.stage("evidence", "running", "random circuits")
    yield random_circuits(evaluator, circuit.mask, draws=draws.random, seed=options.seed)
    for name, make in (
        ("shuffled pairs", lambda: _shuffled_pairs(*given, values, draws.pairs)),
        ("shuffled weights", lambda: _shuffled_weights(*given, draws.weights)),
        ("cross-task", lambda: _cross_task(*given, draws.tasks)),
    ):
        session.reporter.stage("evidence", "running", name)
        yield _or_not(name, make)


def _or_not(name: str, make: Callable[[], Control]) -> Control:
    """A control, or why there is none."""
    from circuitfind.evidence.controls import not_made

    try:
        return make()
    except CircuitfindError as error:
        return not_made(name, error.what)
    except (RuntimeError, MemoryError) as error:
        from circuitfind.model.memory import out_of_memory

        if not out_of_memory(error):
            raise
        return not_made(name, "memory ran out: a second copy of the weights, or so many prompts, did not fit")


def _shuffled_pairs(
    session: Session,
    circuit: Circuit,
    options: EvidenceOptions,
    prompts: Fresh,
    evaluator: Evaluator,
    values: np.ndarray,
    draws: int,
) -> Control:
    from circuitfind.circuit.evaluate import Evaluator
    from circuitfind.evidence.controls import shuffled_pairs
    from circuitfind.evidence.shuffled import shuffle_pairs

    if session.settings.metric == "kl":
        raise UnsupportedError(
            "the metric kl does not look at the answers", hint="look at the other controls"
        )
    carried = []
    for i in range(draws):
        dealt = session.runs_of(shuffle_pairs(prompts.kept, options.seed + i), model=evaluator.runs.model)
        dealt.constants = evaluator.runs.constants
        again = Evaluator(dealt, evaluator.ablation)
        carried.append(again.values([circuit.mask])[0] - again.empty)
    return shuffled_pairs(values - evaluator.empty, carried)


def _shuffled_weights(
    session: Session,
    circuit: Circuit,
    options: EvidenceOptions,
    prompts: Fresh,
    evaluator: Evaluator,
    draws: int,
) -> Control:
    from circuitfind.evidence.controls import other_ranking
    from circuitfind.model.shuffle import shuffled

    if session.settings.model_b is not None:
        raise UnsupportedError(
            "what two models differ in lies in their weights, which are not shuffled alike",
            hint="look at the other controls",
        )
    scores = []
    for i in range(draws):
        model = shuffled(prompts.runs.model, options.seed + i)
        scores.append(_ranking(session, options, prompts.kept, model))
    return other_ranking(
        evaluator,
        circuit.mask,
        scores,
        "shuffled weights",
        "what the method picks when the weights are shuffled",
    )


def _cross_task(
    session: Session,
    circuit: Circuit,
    options: EvidenceOptions,
    prompts: Fresh,
    evaluator: Evaluator,
    most: int,
) -> Control:
    from circuitfind.circuit.prune import rank
    from circuitfind.evidence.controls import not_made, other_ranking

    names, scores = [], []
    for name, pairs in _other_tasks(session, LOOKED_AT if options.controls == "cheap" else None):
        model = prompts.runs.model
        try:
            one = _ranking(session, options, pairs, model)
            rank(one)
        except CircuitfindError:  # it cannot be run, or no edge has a score
            continue
        names.append(name)
        scores.append(one)
        if len(names) == most:
            break
    if not names:
        return not_made("cross-task", f"no other task is known that {session.settings.model} does")
    what = f"what the method picks for {names[0] if len(names) == 1 else f'{len(names)} other tasks'}"
    found = other_ranking(evaluator, circuit.mask, scores, "cross-task", what, leave_out_equal=True)
    return (
        found
        if found.values
        else not_made("cross-task", f"{what} is the circuit itself: the same behaviour?")
    )


def _other_tasks(session: Session, most: int | None) -> Iterator[tuple[str, PromptPairs]]:
    """Tasks, and pairs of them that the model answers rightly; those behind the session's own in the alphabet first.

    After ``most`` that it does not do no others are tried.
    """
    from circuitfind.zoo import is_planted

    # The weights of a planted model were written for one task.
    names = [] if is_planted(session.settings.model) else sorted(find_tasks())
    behind = [n for n in names if n > session.spec.name]
    failed = 0
    for name in [*behind, *(n for n in names if n < session.spec.name)]:
        try:
            spec = load_task(name)
            if spec.prompts.kind in ("zoo", "dataset") or not _for_model(spec, session.settings.model):
                continue
            other = Session(spec, resolve(spec, model=session.settings.model), session.device, Silent())
            other.model = session.model
            pairs = other.draw(PAIRS, spec.seed, drop_bad_pairs=True)
            right = session.runs_of(pairs, metric="logit-diff").answered_rightly
        except CircuitfindError:
            continue
        if right.mean() >= spec.min_accuracy:
            yield name, pairs.subset(np.flatnonzero(right).tolist())
            continue
        failed += 1
        if most is not None and failed >= most:
            return


def _for_model(spec: TaskSpec, model: str) -> bool:
    """Whether a task may be one for a model: models of the zoo do their own tasks, token ids mean something in one alone."""
    from circuitfind.zoo import is_zoo

    ids = spec.vocab is not None or any(not isinstance(one.clean, str) for one in spec.prompts.pairs or ())
    return spec.model == model or (not ids and (not is_zoo(model) or spec.model == "mini"))


def _ranking(session: Session, options: EvidenceOptions, pairs: PromptPairs, model: Model) -> Scores:
    """Scores of some pairs: by the run's own method where controls are thorough, by EAP where they are cheap."""
    from circuitfind.methods import get_method

    settings: Settings = session.settings
    thorough = options.controls == "full"
    method = get_method(settings.method, settings.options) if thorough else get_method("eap", {})
    graded = settings.metric in ("logit-diff", "prob-diff", "log-prob")
    runs = session.runs_of(pairs, None if thorough or graded else "logit-diff", model=model)
    # Another ablation than resample may need more prompts of a template than there are; a ranking does not.
    return method.run(runs, ablation="resample", direction=settings.direction)
