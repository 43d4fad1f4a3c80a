"""Evaluations that are asked for, of runs and of other circuits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from circuitfind.config import CONTROLS
from circuitfind.errors import CircuitfindError
from circuitfind.evidence.certify import Verdict, certify
from circuitfind.evidence.report import Evidence
from circuitfind.evidence_parts import PARTS, Work
from circuitfind.evidence_prompts import EvidenceOptions, fresh
from circuitfind.evidence_stage import evidence_text, measure
from circuitfind.evidence_subjects import Subject, subject_of_known
from circuitfind.output.report.write import renew_report
from circuitfind.output.store import Run, Stage, Store, stage_key
from circuitfind.pipeline import Stages
from circuitfind.summary import evidence_stages, finished_stages
from circuitfind.task.spec import TaskSpec

DRAWS = 50
"""Random sets, circuits and rankings that each part of an evaluation draws."""


def evaluate(
    subject: Subject,
    options: EvidenceOptions,
    parts: Sequence[str],
    *,
    draws: int = DRAWS,
) -> Evidence:
    """Gather evidence on a circuit.

    Args:
        subject: The circuit.
        options: Controls, ablations and prompts.
        parts: What to add, of ``PARTS``.
        draws: Random sets, circuits and rankings that each of them draws.

    Raises:
        CircuitfindError: The prompts cannot be drawn or run. A part that cannot be had is a note.
    """
    from circuitfind.circuit.evaluate import Evaluator

    session, circuit = subject.session, subject.circuit
    prompts = fresh(session, circuit, options)
    if not subject.prompts_known:
        prompts = replace(prompts, held_out=None)
    evidence = measure(session, circuit, options, prompts)
    notes = [*evidence.notes, *([subject.note] if subject.note else [])]
    found: dict[str, Any] = {}
    if len(prompts.kept):
        work = Work(subject, prompts, Evaluator(prompts.runs, session.settings.ablation), draws, options.seed)
        for name in parts:
            session.reporter.stage("evaluation", "running", name)
            try:
                found[name] = PARTS[name](work)
            except CircuitfindError as error:
                notes.append(f"no {name}: {error.what}")
    return replace(evidence.with_parts(**found), notes=tuple(notes))


def evaluate_run(
    subject: Subject,
    store: Store,
    options: EvidenceOptions,
    parts: Sequence[str],
    *,
    draws: int = DRAWS,
    force: bool = False,
) -> tuple[Evidence, Stage]:
    """Evaluate a run's circuit; what is found is a stage of the run, ``evaluation.json``."""
    run = subject.run
    assert run is not None
    done = finished_stages(run)
    of = (done.get("backups") or done["circuit"]).key
    key = stage_key(of, "evaluation", options.as_dict(), sorted(parts), draws)
    found = None if force else run.stage("evaluation", key)
    if found is None:
        with run:
            stages = Stages(subject.session, store, run, force=force)

            def work() -> tuple[dict[str, bytes | str], dict[str, Any]]:
                evidence = evaluate(subject, options, parts, draws=draws)
                verdict = certify(evidence, min_accuracy=subject.session.settings.min_accuracy)
                return {"evaluation.json": evidence_text(evidence)}, {
                    "verdict": verdict.as_dict(),
                    "options": options.as_dict(),
                    "of": of,
                }

            found = stages.stage("evaluation", key, work)
        renew_report(run, subject.session.reporter.note)
    return Evidence.load(found.files["evaluation.json"]), found


def evidence_on(run: Run, options: EvidenceOptions) -> Evidence | None:
    """What was gathered on a run's circuit as it is now, if that is what is asked for, or more."""
    for stage in evidence_stages(finished_stages(run)):
        told = stage.facts.get("options")
        if told is None or (told["count"], told["seed"]) != (options.count, options.seed):
            continue
        if CONTROLS.index(told["controls"]) < CONTROLS.index(options.controls):
            continue
        found = Evidence.load(next(iter(stage.files.values())))
        if all(found.under(one) for one in options.ablations) and (
            options.ablations or not told["ablations"]
        ):
            return found
    return None


def certify_known(
    spec: TaskSpec,
    name: str | None = None,
    *,
    model: str | None = None,
    options: EvidenceOptions | None = None,
    faithfulness: float | None = None,
    **settings: Any,
) -> Verdict:
    """The verdict on a circuit that a task lists as known.

    Raises:
        UsageError: There is no such list.
        CircuitfindError: The prompts cannot be drawn or run.
    """
    subject = subject_of_known(spec, name, model=model, **settings)
    evidence = evaluate(subject, options or EvidenceOptions(), ())
    return certify(evidence, faithfulness=faithfulness, min_accuracy=subject.session.settings.min_accuracy)
