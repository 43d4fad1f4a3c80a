"""The stage that gathers evidence: a circuit on prompts that it was not pruned on, under two ablations, against controls."""

from __future__ import annotations

import json
from typing import Any

from circuitfind.circuit.graph import Circuit, Evaluation
from circuitfind.config import Ablation
from circuitfind.errors import RunError, UnsupportedError
from circuitfind.evidence.certify import certify
from circuitfind.evidence.report import Control, Evidence
from circuitfind.evidence_controls import make_controls
from circuitfind.evidence_prompts import EvidenceOptions, Fresh, fresh
from circuitfind.session import Session

Made = tuple[dict[str, bytes | str], dict[str, Any]]

ORDER: tuple[Ablation, ...] = ("resample", "mean", "zero")
"""What a second ablation is chosen from."""


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
    from circuitfind.evidence.listed import nodes_circuit

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
    parts: dict[str, Any] = {"as_nodes": []}
    controls: tuple[Control, ...] = ()
    nodes = nodes_circuit(circuit.anatomy, circuit.mask)
    if len(prompts.kept):
        for ablation in asked:
            evaluator = Evaluator(prompts.runs, ablation)
            try:
                _ = evaluator.gap
                values, among = evaluator.values([circuit.mask, nodes])
            except (UnsupportedError, RunError) as error:
                notes.append(error.what)
                continue
            full, empty = evaluator.full, evaluator.empty
            metric = prompts.runs.metric.name
            found.append(measured(values, full, empty, ablation, metric))
            whole = measured(among, full, empty, ablation, metric)
            parts["as_nodes"].append({"edges": int(nodes.sum()), **whole.as_dict()})
            if ablation == main:
                texts = [p.clean_text or str(list(p.clean)) for p in prompts.kept]
                parts |= {
                    "by_template": by_template(values, full, empty, [p.group for p in prompts.kept]),
                    "outliers": outliers(values, full, empty, texts, [p.where for p in prompts.kept]),
                }
                if options.controls != "none":
                    controls = tuple(make_controls(session, circuit, options, prompts, evaluator, values))
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
