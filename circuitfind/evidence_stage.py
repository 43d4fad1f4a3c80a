"""The stage that gathers evidence: a circuit on prompts that it was not pruned on, under two ablations, against controls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitfind.circuit.graph import Circuit, Evaluation
from circuitfind.config import DEFAULT_CONTROLS, Ablation, Controls
from circuitfind.errors import CircuitfindError, RunError, UnsupportedError
from circuitfind.evidence.certify import ENOUGH, certify
from circuitfind.evidence.report import Control, Evidence
from circuitfind.session import Session, Silent
from circuitfind.settings import Settings, resolve
from circuitfind.task.spec import TaskSpec, find_tasks, load_task

if TYPE_CHECKING:
    from circuitfind.circuit.evaluate import Evaluator
    from circuitfind.circuit.scores import Scores
    from circuitfind.model.bridge import Model
    from circuitfind.model.runs import Runs
    from circuitfind.task.pairs import PromptPairs

Made = tuple[dict[str, bytes | str], dict[str, Any]]

ORDER: tuple[Ablation, ...] = ("resample", "mean", "zero")
"""What a second ablation is chosen from."""

TRIES = 4
"""How often more prompts are drawn to find some that are new, each time twice as many."""

STRIDE = 1009
"""Between the seeds of a run's prompts and of those that it is measured on."""

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


@dataclass(frozen=True)
class EvidenceOptions:
    """What is measured.

    Attributes:
        controls: ``none``, ``cheap`` or ``full``.
        ablations: Under which; the circuit's own and a second one if empty.
        count: Prompt pairs to draw; as many as the run has if None.
        seed: Of the prompts, relative to the run's, and of everything that is drawn.
    """

    controls: Controls = DEFAULT_CONTROLS
    ablations: tuple[Ablation, ...] = ()
    count: int | None = None
    seed: int = 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Fresh:
    """Prompts for evidence, and the circuit's model on those that it answers rightly.

    Attributes:
        held_out: Whether the circuit was pruned on others; None where that is not known.
        every: All that line up.
        kept: Those that are answered rightly.
        whole: Runs of all.
        runs: Runs of the kept ones.
    """

    held_out: bool | None
    every: PromptPairs
    kept: PromptPairs
    whole: Runs
    runs: Runs


def evidence_of(session: Session, circuit: Circuit, options: EvidenceOptions) -> Made:
    """Files and facts of the stage."""
    evidence = gather(session, circuit, options)
    verdict = certify(evidence, min_accuracy=session.settings.min_accuracy)
    facts = {"verdict": verdict.as_dict(), "options": options.as_dict()}
    return {"evidence.json": evidence_text(evidence)}, facts


def evidence_text(evidence: Evidence) -> str:
    """What ``evidence.json`` holds."""
    return json.dumps(evidence.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def gather(session: Session, circuit: Circuit, options: EvidenceOptions) -> Evidence:
    """Measure a circuit.

    Raises:
        CircuitfindError: The prompts cannot be drawn or run.
    """
    return measure(session, circuit, options, fresh(session, circuit, options))


def measure(session: Session, circuit: Circuit, options: EvidenceOptions, prompts: Fresh) -> Evidence:
    """The same on given prompts."""
    from circuitfind.circuit.evaluate import Evaluator, measured
    from circuitfind.evidence.behaviour import behaviour
    from circuitfind.evidence.breakdown import by_template, outliers

    own = session.settings.ablation
    asked = options.ablations or (own, *(a for a in ORDER if a != own))
    main = own if own in asked else asked[0]
    every = Evaluator(prompts.whole, own)
    facts = behaviour(
        every.full,
        every.empty,
        prompts.whole.answered_rightly,
        held_out=prompts.held_out,
        content_hash=prompts.every.content_hash(),
    )
    notes: list[str] = []
    found: list[Evaluation] = []
    parts: dict[str, Any] = {}
    controls: tuple[Control, ...] = ()
    if len(prompts.kept):
        for ablation in asked:
            evaluator = Evaluator(prompts.runs, ablation)
            try:
                _ = evaluator.gap
                values = evaluator.values([circuit.mask])[0]
            except (UnsupportedError, RunError) as error:
                notes.append(error.what)
                continue
            full, empty = evaluator.full, evaluator.empty
            found.append(measured(values, full, empty, ablation, prompts.runs.metric.name))
            if ablation == main:
                texts = [p.clean_text or str(list(p.clean)) for p in prompts.kept]
                parts = {
                    "by_template": by_template(values, full, empty, [p.group for p in prompts.kept]),
                    "outliers": outliers(values, full, empty, texts, [p.where for p in prompts.kept]),
                }
                if options.controls != "none":
                    controls = tuple(_controls(session, circuit, options, prompts, evaluator, values))
            if not options.ablations and len(found) == 2:
                break
    return Evidence(
        conditions=vars(circuit.conditions).copy(),
        edges=len(circuit.edges),
        edges_in_model=circuit.anatomy.n_edges,
        prompts=facts,
        measured=tuple(found),
        controls=controls,
        notes=tuple(notes),
        parts=parts,
    )


# Prompts.


def fresh(session: Session, circuit: Circuit, options: EvidenceOptions) -> Fresh:
    """Prompts that the circuit was not pruned on; its own where the task has too few others."""
    pairs = held_out(session, options)
    new = pairs is not None
    pairs = pairs or session.all_pairs
    model = session.runs_for(circuit.anatomy).model if circuit.anatomy.split else session.model
    whole = session.runs_of(pairs, model=model)
    right = whole.answered_rightly
    kept = pairs.subset(np.flatnonzero(right).tolist())
    runs = whole if right.all() or not right.any() else session.runs_of(kept, model=model)
    if session.settings.ablation == "optimal" or "optimal" in options.ablations:
        runs.constants = session.full_runs.constants
    return Fresh(new, pairs, kept, whole, runs)


def held_out(session: Session, options: EvidenceOptions) -> PromptPairs | None:
    """Pairs whose clean prompts are none of the run's, about as many as it has; None where there are fewer than a
    certificate needs.
    """
    seen = {pair.clean for pair in session.all_pairs}
    wanted = options.count or len(session.all_pairs)
    new: PromptPairs | None = None
    for times in range(1, TRIES):
        asked = wanted * 2**times
        try:
            found = session.draw(asked, session.settings.seed + STRIDE * options.seed, drop_bad_pairs=True)
        except CircuitfindError:  # the run's own pairs line up: these then have no other
            break
        first = {pair.clean: i for i, pair in reversed(list(enumerate(found)))}
        new = found.subset(sorted(i for clean, i in first.items() if clean not in seen))
        if len(new) >= wanted or len(found) < asked:
            break
    return None if new is None or len(new) < min(ENOUGH, wanted) else _in_company(new, wanted)


def _in_company(pairs: PromptPairs, wanted: int) -> PromptPairs:
    """The first ones, but none that is alone of its template and length: there would be no mean to replace it by."""
    alike = [(pair.group, len(pair.clean)) for pair in pairs]
    chosen = list(range(min(wanted, len(pairs))))
    for i in list(chosen):
        if sum(alike[j] == alike[i] for j in chosen) == 1:
            other = next((j for j in range(wanted, len(pairs)) if alike[j] == alike[i]), None)
            if other is None:
                chosen.remove(i)
            else:
                chosen.append(other)
    return pairs.subset(chosen or range(min(wanted, len(pairs))))


# Controls.


def _controls(
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
    found = other_ranking(evaluator, circuit.mask, scores, "cross-task", what)
    return (
        found
        if found.values
        else not_made("cross-task", f"{what} is the circuit itself: the same behaviour?")
    )


def _other_tasks(session: Session, most: int | None) -> Iterator[tuple[str, PromptPairs]]:
    """Tasks, and pairs of them that the model answers rightly; those behind the session's own in the alphabet first.

    After ``most`` that it does not do no others are tried.
    """
    names = sorted(find_tasks())
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
