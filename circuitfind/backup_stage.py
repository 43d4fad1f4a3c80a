"""The stage that looks for backups: the search itself, what the circuit is without them, and the circuit beside them.

The search runs in logit difference and single precision, whatever the metric and the precision of the run: direct effects
add up in no other metric. Completeness is measured in the run's own metric and ablation.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitfind.backups.report import BackupReport, Class
from circuitfind.circuit.backup import covered, knocked_out, stand_ins, with_backups, without
from circuitfind.circuit.graph import Backup, Circuit, Interval, from_mask
from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation
from circuitfind.errors import CircuitfindError, PromptError, UnsupportedError, UsageError
from circuitfind.known import known_roles
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import INPUT, Edge, Kind, Node, parse_node, parse_reader
from circuitfind.output.backup_text import verdict
from circuitfind.session import Session
from circuitfind.settings import BackupOptions

if TYPE_CHECKING:
    from circuitfind.circuit.evaluate import Evaluator
    from circuitfind.model.runs import Runs

METRIC = "logit-diff"
ABLATIONS = 3
"""Under how many a search is made, if the prompts allow them: what is told must hold under two."""
LISTED: tuple[Class, ...] = ("backup", "second-order backup", "relief")
"""Classes that a circuit lists."""

Reader = tuple[Node, str | None]
Made = tuple[dict[str, bytes | str], dict[str, Any]]


def look(
    session: Session, options: BackupOptions, circuit: Circuit | None = None, scores: Scores | None = None
) -> Made:
    """Files and facts of the stage, with or without a circuit.

    Raises:
        CircuitfindError: The search refuses.
    """
    notes: list[str] = []
    report = search(session, options, circuit, notes)
    files: dict[str, bytes | str] = {"backups.json": _text(report.as_dict())}
    facts = {
        "skipped": None,
        "verdict": verdict(report),
        "counts": dict(Counter(f.kind for f in report.findings)),
        "redundant_groups": sum(g.redundant for g in report.groups),
        "notes": notes,
    }
    if circuit is None:
        return files, facts
    beside = replace(circuit, backups=_listed(report))
    found, measured = _measured(session, beside, scores, notes)
    return files | {"circuit.json": circuit_text(found)}, facts | measured


def refused(circuit: Circuit, error: CircuitfindError) -> Made:
    """The same where there is nothing to search: the circuit as it is, and why."""
    facts = {"skipped": error.what, "verdict": "", "counts": {}, "redundant_groups": 0, "notes": []}
    return {"circuit.json": circuit_text(circuit)}, facts


def circuit_text(circuit: Circuit) -> str:
    """What ``circuit.json`` holds."""
    return _text(circuit.as_dict())


def search(
    session: Session, options: BackupOptions, circuit: Circuit | None, notes: list[str]
) -> BackupReport:
    """The report, with the conditions that it holds under."""
    from circuitfind.backups.reading import Search
    from circuitfind.backups.search import find_backups

    primaries, readers = named(session.model.anatomy, options)
    runs = _runs(session, notes)
    ablations = _ablations(runs, session.settings.ablation, notes)
    for text in notes:
        session.reporter.note(text)
    return find_backups(
        runs,
        ablations,
        primaries=primaries,
        readers=readers or None,
        circuit=() if circuit is None else circuit.heads,
        options=Search(rate=options.rate, min_share=options.min_share),
        conditions={
            "task": session.spec.name,
            "model": session.settings.model,
            "metric": METRIC,
            "ablations": list(ablations),
            "counterfactual": session.all_pairs.counterfactual,
            "n_prompts": len(runs),
            "circuit": circuit is not None,
            "options": {
                **asdict(options),
                "primaries": list(map(str, primaries)),
                "readers": list(options.readers),
            },
        },
        report=lambda text: session.reporter.stage("backups", "running", text),
    )


def named(anatomy: Anatomy, options: BackupOptions) -> tuple[list[Node], list[Reader]]:
    """The components and inputs that the options name, in a model.

    Raises:
        UsageError: It has no such one, or a component does not come before what it should write to.
    """
    primaries = [anatomy.writers[anatomy.row_of(parse_node(name))] for name in options.primaries]
    if INPUT in primaries:
        raise UsageError("the input cannot be removed", hint="name heads or MLPs, such as a9.h9")
    columns = [_column(anatomy, name) for name in options.readers]
    for name, column in zip(options.readers, columns, strict=True):
        for node in primaries:
            if not anatomy.edge_mask[anatomy.row_of(node), column]:
                raise UsageError(
                    f"{node} does not write to {name}: it does not come before it",
                    hint="remove components below the reader, or name another reader",
                )
    return list(dict.fromkeys(primaries)), list(dict.fromkeys(anatomy.readers[c] for c in columns))


def _column(anatomy: Anatomy, name: str) -> int:
    node, slot = parse_reader(name)
    if node.kind is Kind.INPUT:
        raise UsageError("nothing writes to the input", hint="a reader is logits, an MLP (m5) or a9.h9<q>")
    if node.kind in (Kind.HEAD, Kind.KV) and slot is None:
        raise UsageError(f"'{name}' has several inputs", hint=f"name one of them, such as '{node.bare}<q>'")
    return anatomy.index_of(Edge(INPUT, node.bare, slot))[1]


def _runs(session: Session, notes: list[str]) -> Runs:
    """Runs of the pairs that have wrong answers, in logit difference and single precision."""
    kept = session.all_pairs.subset(session.kept)
    usable = [i for i, pair in enumerate(kept) if len(pair.wrong)]
    if not usable:
        raise PromptError(
            "no prompt has a wrong answer, and without one there is no logit difference",
            hint="give the task wrong answers",
        )
    if len(usable) < len(kept):
        notes.append(
            f"{len(kept) - len(usable)} of {len(kept)} pairs have no wrong answer: not searched for backups"
        )
        return session.runs_of(kept.subset(usable), METRIC)
    return session.full_runs if session.settings.metric == METRIC else session.runs_of(kept, METRIC)


def _ablations(runs: Runs, used: Ablation, notes: list[str]) -> list[Ablation]:
    """The run's own, and the next ones that the prompts allow."""
    order: tuple[Ablation, ...] = ("resample", "mean", "zero")
    found: list[Ablation] = [used if used in order else "resample"]
    for other in (a for a in order if a != found[0]):
        if len(found) == ABLATIONS:
            break
        try:
            runs.contrast(0, other)
            found.append(other)
        except UnsupportedError as error:
            notes.append(error.what)
    return found


def _listed(report: BackupReport) -> tuple[Backup, ...]:
    return tuple(
        Backup(parse_node(f.name), f.kind, tuple(map(parse_node, f.covers)), f.reader, f.share)
        for f in report.of_kind(*LISTED)
    )


# The circuit with and without them.


def _measured(
    session: Session, circuit: Circuit, scores: Scores | None, notes: list[str]
) -> tuple[Circuit, dict[str, Any]]:
    """The circuit to keep, and how complete it is."""
    from circuitfind.circuit.evaluate import Evaluator

    evaluator = Evaluator(session.runs_for(circuit.anatomy), session.settings.ablation)
    try:
        facts: dict[str, Any] = {"completeness": _completeness(evaluator, circuit)}
    except CircuitfindError as error:  # nothing to explain there: it was told with the circuit
        notes.append(error.what)
        facts = {"completeness": None}
    roles = known_roles(session.spec, session.settings.model)
    backups = {str(b.node) for b in circuit.backups}
    circuit = replace(circuit, roles={**circuit.roles, **{k: v for k, v in roles.items() if k in backups}})
    if session.settings.include_backups and stand_ins(circuit):
        facts["without_backups"] = [e.as_dict() for e in circuit.evaluations]
        circuit = _extended(evaluator, circuit, scores)
    return circuit, facts


def _completeness(evaluator: Evaluator, circuit: Circuit) -> dict[str, Any]:
    """What of the behaviour is left without the circuit, and without its backups either (0 is complete); and what is left
    of the model, the circuit, and the circuit with its backups, when what the backups stand in for is knocked out, which
    in a complete circuit is the same (Wang et al. 2022, arXiv 2211.00593, section 4.2).
    """
    found = evaluator.evaluate(without(circuit)).faithfulness
    both: Interval | None = None
    if backups := stand_ins(circuit):
        both = evaluator.evaluate(without(circuit, backups)).faithfulness
    return {
        "without_circuit": vars(found).copy(),
        "without_circuit_and_backups": None if both is None else vars(both).copy(),
        "knocked_out": _knocked_out(evaluator, circuit),
    }


def _knocked_out(evaluator: Evaluator, circuit: Circuit) -> dict[str, Any] | None:
    nodes = covered(circuit)
    if not nodes:
        return None
    masks = {
        "model": circuit.anatomy.edge_mask,
        "circuit": circuit.mask,
        "circuit_and_backups": with_backups(circuit),
    }
    left = {
        name: vars(evaluator.evaluate(knocked_out(circuit, mask, nodes)).faithfulness).copy()
        for name, mask in masks.items()
    }
    return {"nodes": [str(node) for node in nodes], **left}


def _extended(evaluator: Evaluator, circuit: Circuit, scores: Scores | None) -> Circuit:
    """The circuit with its backups in it, measured again."""
    from circuitfind.circuit.evaluate import evaluate_twice

    mask = with_backups(circuit)
    nodes = {str(b.node) for b in stand_ins(circuit)}
    joined = sorted(n for n in nodes if mask[circuit.anatomy.row_of(n)].any())
    rule = f"{circuit.conditions.rule}, and {len(joined)} backup{'' if len(joined) == 1 else 's'} included"
    evaluations, _ = evaluate_twice(evaluator, mask)
    made = from_mask(
        circuit.anatomy,
        mask,
        replace(circuit.conditions, rule=rule),
        edge_values=scores.values if scores is not None and scores.level == "edge" else None,
        node_values=None if scores is None else scores.node_values,
        evaluations=evaluations,
        roles=circuit.roles,
    )
    return replace(made, backups=circuit.backups, roles=circuit.roles)


def _text(data: Any) -> str:
    """JSON with numpy's numbers as plain ones."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False, default=_number) + "\n"


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")
