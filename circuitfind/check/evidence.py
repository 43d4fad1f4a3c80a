"""What a task expects of the evidence for a circuit: its certificate, its stability, and which known ones get none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from circuitfind.check.reasons import Reason, brief, some
from circuitfind.task.findings import Range

if TYPE_CHECKING:
    from circuitfind.check.cases import Case
    from circuitfind.session import Session
    from circuitfind.summary import Discovery

DRAWS = 10
"""Times that prompts are drawn again for stability."""


def judge_evidence(case: Case, session: Session, found: Discovery) -> Iterator[Reason]:
    """What of it does not hold."""
    if case.expect.certified is not None:
        yield from _certified(found, case.expect.certified)
    if case.expect.stability is not None:
        yield from _stable(session, found, case.expect.stability)
    for name in case.expect.refuses:
        yield from _refused(case, session, name)


def _reason(text: str, lines: tuple[str, ...] = ()) -> Reason:
    return Reason("evidence", "expectation", text, lines)


def _certified(found: Discovery, expected: bool) -> Iterator[Reason]:
    evidence = found.summary.get("evidence")
    if evidence is None:
        yield _reason("no evidence was gathered, so the circuit is neither certified nor refused")
    elif bool(evidence["certified"]) != expected:
        reasons = tuple(evidence["reasons"])
        text = f"the circuit is certified, and must not be: {evidence['verdict']}"
        if expected:
            text = f"the circuit is not certified: {some(reasons, 2) or evidence['verdict']}"
        yield _reason(text, reasons if expected else ())


def _stable(session: Session, found: Discovery, limits: Range) -> Iterator[Reason]:
    """Mean Jaccard index of the edges of two draws of the prompts, each cut to the size of the circuit."""
    from circuitfind.evidence.stability import over_prompts
    from circuitfind.methods import get_method

    settings, circuit = session.settings, found.circuit
    if settings.units:
        yield _reason("stability is measured of circuits of heads and MLPs, and not of units")
        return
    measured = over_prompts(
        session.runs_for(circuit.anatomy),
        get_method(settings.method, settings.options),
        ablation=settings.ablation,
        direction=settings.direction,
        rule=settings.rule,
        circuit=circuit.mask,
        positions=settings.positions,
        draws=DRAWS,
        measure=False,
    )
    value = measured.edges.mean
    if not limits.holds(value):
        yield _reason(
            f"the stability over prompts is {brief(value)}, expected {limits.words}", (measured.text,)
        )


def _refused(case: Case, session: Session, name: str) -> Iterator[Reason]:
    """That a circuit which others could not find again gets no certificate here."""
    from circuitfind.evidence_runs import certify_known

    given = case.expect.settings.model_dump(exclude_none=True)
    how = {
        key: given[key]
        for key in ("metric", "ablation", "direction", "counterfactual", "count", "min_accuracy")
        if key in given
    }
    verdict = certify_known(
        case.spec, name, model=case.model, device=session.device, memory=session.memory, **how
    )
    if verdict.certified:
        yield _reason(f"the known circuit '{name}' is certified, and must not be: {verdict}")
