"""Circuits to gather evidence on: of a finished run, in a file, or listed by a task as known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from circuitfind.backup_runs import of_one_model, session_of
from circuitfind.circuit.graph import Circuit, Conditions, from_mask
from circuitfind.circuit.scores import Scores
from circuitfind.config import Nodes
from circuitfind.errors import UsageError, did_you_mean
from circuitfind.evidence.listed import known_circuit
from circuitfind.output.store import Run
from circuitfind.session import Reporter, Session, Silent
from circuitfind.settings import resolve
from circuitfind.summary import finished_stages, stored
from circuitfind.task.findings import Known
from circuitfind.task.spec import TaskSpec


@dataclass
class Subject:
    """A circuit to evaluate, and where it comes from.

    Attributes:
        session: Its task, model and settings.
        circuit: The circuit.
        scores: Of all nodes or edges, where they are known.
        run: The run that it is of, if any.
        note: What should be told of how it was made.
        prompts_known: Whether it is known which prompts it was pruned on.
    """

    session: Session
    circuit: Circuit
    scores: Scores | None
    run: Run | None = None
    note: str = ""
    prompts_known: bool = True


# Where circuits come from.


def subject_of_run(
    run: Run, *, device: str = "auto", memory: int | None = None, reporter: Reporter | None = None
) -> Subject:
    """A finished run's circuit.

    Raises:
        RunError: It has none, or its task or model has changed since.
    """
    found = stored(run)
    session = session_of(run, of_one_model(run), device, memory, reporter or Silent())
    session.kept = list(finished_stages(run)["prompts"].facts["kept"])
    return Subject(session, found.circuit, found.scores, run)


def subject_of_file(
    path: Path,
    spec: TaskSpec,
    *,
    model: str | None = None,
    device: str = "auto",
    memory: int | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Subject:
    """A circuit in a file, ours or EAP-IG's, on a task.

    Raises:
        UsageError: The file is no circuit, or its model has another shape.
    """
    from circuitfind.circuit.mib import fit, read_circuit

    circuit, scores = read_circuit(path)
    told = circuit.conditions
    given = {
        "metric": told.metric or None,
        "ablation": told.ablation or None,
        "direction": told.direction or None,
        "counterfactual": told.counterfactual if told.counterfactual in spec.counterfactuals else None,
        "nodes": told.nodes if told.nodes in get_args(Nodes) else "heads,mlps",
        "dictionaries": told.dictionaries or None,
        "errors": told.errors or "frozen",
    }
    given |= {k: v for k, v in settings.items() if v is not None}
    named = model or (told.model if told.task == spec.name else None)
    session = _session(spec, named, device, memory, reporter, given)
    if circuit.anatomy.n_kv_heads != session.model.anatomy.n_kv_heads:
        circuit, scores = fit(circuit, scores, session.model.anatomy, where=str(path))
    _check_shape(session, circuit, str(path))
    conditions = _conditions(session, rule=told.rule, method=told.method)
    circuit = replace(circuit, conditions=conditions)
    return Subject(session, circuit, scores, prompts_known=False)


def subject_of_known(
    spec: TaskSpec,
    name: str | None = None,
    *,
    model: str | None = None,
    device: str = "auto",
    memory: int | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Subject:
    """A circuit that a task lists as known for a model.

    Args:
        spec: The task.
        name: Of the list, where the model has several; the first if None.
        model: On which it is run, such as a folder; the one that the list is for if None.
        device: Where it runs.
        memory: Bytes to plan for.
        reporter: Hears of progress.
        **settings: As for ``discover``.

    Raises:
        UsageError: There is no such list, or the model has other parts.
    """
    listed, known = listed_circuit(spec, model, name)
    session = _session(spec, model or listed, device, memory, reporter, settings)
    mask, note = known_circuit(session.model.anatomy, known)
    source = known.name or known.source or "known"
    conditions = _conditions(session, rule="as listed", method=f"known: {source}")
    circuit = from_mask(session.model.anatomy, mask, conditions, roles=_roles(known))
    return Subject(session, circuit, None, note=note)


def listed_circuit(spec: TaskSpec, model: str | None, name: str | None) -> tuple[str, Known]:
    """The model that a task lists a circuit for, and the circuit.

    Raises:
        UsageError: There is none, or more than one and none is named.
    """
    models = [
        one for one in (model, spec.model if model is None else None) if one in spec.known
    ] or spec.known
    found = [(one, known) for one in models if one for known in spec.known_of(one, name)]
    if not found:
        names = dict.fromkeys(known.name or one for one in spec.known for known in spec.known_of(one))
        what = f"task {spec.name} knows no circuit" + (f" named '{name}'" if name else "")
        raise UsageError(
            what, hint=did_you_mean(name or "", names) if names else "`circuitfind list tasks` shows others"
        )
    if len(found) > 1 and name is None and len({one for one, _ in found}) > 1:
        models_told = ", ".join(dict.fromkeys(one for one, _ in found))
        raise UsageError(
            f"task {spec.name} knows circuits of {models_told}"
            + ("" if model is None else f", not of {model}"),
            hint="say which by --model" if model is None else "name the one to run there by --known NAME",
        )
    return next((one for one in found if one[1].replicates), found[0])


def _roles(known: Known) -> dict[str, str]:
    return {node: role for role, nodes in known.roles.items() for node in nodes}


def _session(
    spec: TaskSpec,
    model: str | None,
    device: str,
    memory: int | None,
    reporter: Reporter | None,
    settings: Mapping[str, Any],
) -> Session:
    given = {k: v for k, v in settings.items() if v is not None}
    session = Session(spec, resolve(spec, model=model, **given), device, reporter or Silent(), memory=memory)
    session.kept = list(range(len(session.all_pairs)))
    return session


def _conditions(session: Session, *, rule: str, method: str) -> Conditions:
    settings = session.settings
    return Conditions(
        task=session.spec.name,
        model=settings.model,
        method=method,
        metric=settings.metric,
        ablation=settings.ablation,
        direction=settings.direction,
        counterfactual=session.all_pairs.counterfactual,
        rule=rule,
        nodes=settings.nodes,
        dictionaries=settings.dictionaries or "",
        errors=settings.errors if "features" in settings.nodes else "",
    )


def _check_shape(session: Session, circuit: Circuit, where: str) -> None:
    own, given = session.model.anatomy, circuit.anatomy
    if given.whole != own:
        raise UsageError(
            f"the circuit is of a model of {given.n_layers} layers and {given.n_heads} heads, and "
            f"{session.settings.model} has {own.n_layers} and {own.n_heads}"
            if (given.n_layers, given.n_heads) != (own.n_layers, own.n_heads)
            else f"the circuit is of a model that is built otherwise than {session.settings.model}",
            where=where,
            hint="name its model with --model",
        )
