"""The Python API: ``discover``, ``open_run``, ``evaluate``, ``prune``, ... with the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitfind.config import CONTROLS, DEFAULT_CONTROLS, DEFAULT_MIN_SHARE, DEFAULT_RATE
from circuitfind.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from circuitfind.backups.report import BackupReport
    from circuitfind.circuit.graph import Circuit
    from circuitfind.evidence.report import Evidence
    from circuitfind.patch_runs import Patched
    from circuitfind.summary import Discovery
    from circuitfind.task.spec import TaskSpec


def discover(
    task: str | Path | TaskSpec,
    model: str | None = None,
    *,
    outputs: str | Path | None = None,
    device: str = "auto",
    memory: str | int | None = None,
    force: bool = False,
    formats: Sequence[str] = ("svg",),
    controls: str = DEFAULT_CONTROLS,
    views: bool = True,
    names: bool = True,
    engine: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    **settings: Any,
) -> Discovery:
    """Find a small circuit for a task, with the evidence for it.

    Args:
        task: A task's name, the path of a YAML file, or a loaded task.
        model: Zoo name, local folder or hub name; the task's own model if None.
        outputs: Folder of run folders (default ``outputs``).
        device: ``auto``, ``cpu``, ``cuda``, ...
        memory: To plan for beyond the model's weights: ``"8GB"``, or bytes; what is free if None.
        force: Run finished stages again.
        formats: Pictures to draw.
        controls: How thoroughly the circuit is held against controls, on prompts that it was not pruned on: ``cheap``,
            ``full``, or ``none`` for no such evidence.
        views: Compute what a report shows beside: effects of every node, curves, attention, every prompt.
        names: Where neurons or features are nodes, say what they are, as ``circuitfind name`` does.
        engine: Who does the work: ``local``, ``processes`` or ``ray``. The results are the same.
        workers: How many work side by side; as many as there are cores, or GPUs, if None.
        address: Of a Ray cluster that runs already.
        **settings: Those of ``circuitfind discover``, with underscores: ``method``, ``options`` (a mapping,
            such as ``{"steps": 10}``), ``metric``, ``ablation``, ``direction``, ``counterfactual``, ``faithfulness``,
            ``edges``, ``threshold``, ``evaluations``, ``positions``, ``precision``, ``count``, ``seed``,
            ``min_accuracy``, ``drop_bad_pairs``, ``backups`` (look for what stands in when heads are removed; True),
            ``include_backups`` (let it join the circuit; False), ``nodes`` (``"heads,mlps"``, ``"heads,neurons"``,
            ``"heads,features"``), ``dictionaries``, ``errors`` and ``model_b`` (another model of the same shape, whose
            values cut edges carry).

    Raises:
        CircuitfindError: Whatever the command would print; ``hint`` says what to do.
    """
    from circuitfind.engine.chosen import working_with
    from circuitfind.output.draw import FORMATS
    from circuitfind.pipeline import discover_task
    from circuitfind.settings import memory_bytes, resolve
    from circuitfind.task.spec import TaskSpec, load_task

    pictures = (formats,) if isinstance(formats, str) else tuple(formats)
    for name in pictures:
        if name not in FORMATS:  # before the work, not after it
            raise UsageError(f"unknown picture format '{name}'", hint=did_you_mean(name, FORMATS))
    if controls not in CONTROLS:
        raise UsageError(f"no controls are called '{controls}'", hint=did_you_mean(controls, CONTROLS))
    spec = task if isinstance(task, TaskSpec) else load_task(task)
    resolved = resolve(spec, model=model, **settings)
    with working_with(engine, workers, address, device=device):
        found = discover_task(
            spec,
            resolved,
            outputs=outputs,
            device=device,
            force=force,
            formats=pictures,
            memory=memory_bytes(memory),
            controls=controls,  # type: ignore[arg-type]  # checked
            views=views,
        )
    if names and resolved.units:
        from circuitfind.naming_runs import name_found

        name_found(found, device=device, force=force)
    return found


def open_run(run: str | Path = "latest", *, outputs: str | Path | None = None) -> Discovery:
    """A run that was made before, as it lies on disk. Loads no model.

    Args:
        run: Its name, the beginning of its name, its folder, or ``latest``.
        outputs: Folder of run folders (default ``outputs``).

    Raises:
        UsageError: There is no such run, or more than one.
        RunError: It found no circuit, or its files were changed.
    """
    from circuitfind.output.store import Store
    from circuitfind.summary import stored

    return stored(Store(outputs).find(str(run)))


def evaluate(
    run: Discovery | str | Path = "latest",
    *,
    parts: str | Sequence[str] = (),
    ablations: str | Sequence[str] = (),
    controls: str = DEFAULT_CONTROLS,
    count: int | None = None,
    seed: int = 1,
    draws: int = 50,
    outputs: str | Path | None = None,
    device: str = "auto",
    memory: str | int | None = None,
    force: bool = False,
    engine: str | None = None,
    workers: int | None = None,
    address: str | None = None,
) -> Evidence:
    """Measure a run's circuit on prompts that it was not pruned on; what is found is kept in the run.

    Args:
        run: What ``discover`` or ``open_run`` gave, or a run's name.
        parts: What to add: ``completeness``, ``minimality``, ``curve``, ``tests``, ``stability``, ``counterfactuals``,
            ``seeds``, ``known``, or ``all``.
        ablations: Under which; the circuit's own and a second one if empty.
        controls: ``none``, ``cheap`` or ``full``.
        count: New prompt pairs; as many as the run has if None.
        seed: Of new prompts and of draws.
        draws: Random sets, circuits and rankings that each part draws.
        outputs: Folder of run folders (default ``outputs``).
        device: ``auto``, ``cpu``, ``cuda``, ...
        memory: To plan for beyond the model's weights.
        force: Measure again.
        engine: As for ``discover``.
        workers: The same.
        address: The same.

    Raises:
        CircuitfindError: Whatever the command would print; ``hint`` says what to do.
    """
    from circuitfind.engine.chosen import working_with
    from circuitfind.evidence_parts import parts_named
    from circuitfind.evidence_prompts import options_named
    from circuitfind.evidence_runs import evaluate_run
    from circuitfind.evidence_subjects import subject_of_run
    from circuitfind.output.store import Store
    from circuitfind.settings import memory_bytes

    wanted = parts_named(_names(parts))
    options = options_named(_names(ablations), controls, count, seed)
    store = Store(outputs)
    with working_with(engine, workers, address, device=device):
        subject = subject_of_run(store.find(_name(run)), device=device, memory=memory_bytes(memory))
        return evaluate_run(subject, store, options, wanted, draws=draws, force=force)[0]


def find_backups(
    task: str | Path | TaskSpec,
    model: str | None = None,
    *,
    primaries: Sequence[str] = (),
    readers: Sequence[str] = (),
    min_share: float = DEFAULT_MIN_SHARE,
    rate: float = DEFAULT_RATE,
    outputs: str | Path | None = None,
    device: str = "auto",
    memory: str | int | None = None,
    force: bool = False,
    engine: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    **settings: Any,
) -> BackupReport:
    """Find what stands in when components are removed, without a circuit.

    Args:
        task: A task's name, the path of a YAML file, or a loaded task.
        model: Zoo name, local folder or hub name; the task's own model if None.
        primaries: What to remove, such as ``["a9.h9", "9.6"]``; what direct effects point to if empty.
        readers: What is written to, such as ``["logits", "a9.h6<q>"]``; the logits and one chosen input if empty.
        min_share: A component counts when it takes over at least this share of what was lost.
        rate: False-discovery rate.
        outputs: Folder of run folders (default ``outputs``).
        device: ``auto``, ``cpu``, ``cuda``, ...
        memory: As for ``discover``.
        force: Search again.
        engine: As for ``discover``.
        workers: The same.
        address: The same.
        **settings: ``ablation``, ``counterfactual``, ``count``, ``seed``, ``min_accuracy``, ``drop_bad_pairs``.

    Raises:
        CircuitfindError: Whatever the command would print; ``hint`` says what to do.
    """
    from circuitfind.backup_runs import search_task
    from circuitfind.engine.chosen import working_with
    from circuitfind.settings import BackupOptions, memory_bytes, resolve
    from circuitfind.task.spec import TaskSpec, load_task

    spec = task if isinstance(task, TaskSpec) else load_task(task)
    with working_with(engine, workers, address, device=device):
        return search_task(
            spec,
            resolve(spec, model=model, metric="logit-diff", **settings),
            BackupOptions(_names(primaries), _names(readers), rate, min_share),
            outputs=outputs,
            device=device,
            force=force,
            memory=memory_bytes(memory),
        ).report


def prune(
    run: Discovery | str | Path = "latest",
    *,
    edges: int | None = None,
    threshold: float | None = None,
    target: float | None = None,
    outputs: str | Path | None = None,
) -> Circuit:
    """A run's circuit, smaller or larger, from its stored scores. Nothing is run and nothing is written.

    Args:
        run: What ``discover`` or ``open_run`` gave, a run's name, or a circuit's file.
        edges: At most so many of the strongest edges.
        threshold: Edges whose ``|score|`` is at least this, in units of the metric.
        target: The smallest circuit of the measured curve with at least this faithfulness.
        outputs: Folder of run folders (default ``outputs``).

    Returns:
        The circuit, with its faithfulness where exactly these edges were measured.

    Raises:
        UsageError: Not exactly one of the three, or there is no such run or curve.
        RunError: No way from the input to the logits is left.
    """
    from circuitfind.circuit.rule import Rule
    from circuitfind.given import given
    from circuitfind.prune_runs import prune_again

    return prune_again(given(_name(run), outputs), Rule(target, edges, threshold)).circuit


def export(
    run: Discovery | str | Path = "latest",
    to: str = "json",
    path: str | Path | None = None,
    *,
    outputs: str | Path | None = None,
) -> tuple[Path, ...]:
    """Write a run's circuit in the form of another program (docs/exports.md). Loads no model.

    Args:
        run: What ``discover`` or ``open_run`` gave, a run's name, or a circuit's file.
        to: Such as ``graphml``, ``eap-ig``, ``neuronpedia``, ``csv``, ``python``.
        path: Where to; beside ``circuit.json`` if None. A form of several files puts its endings in place of that.
        outputs: Folder of run folders (default ``outputs``).

    Returns:
        The files: one, or for ``csv`` one of nodes and one of edges.

    Raises:
        UsageError: There is no such form or run.
        UnsupportedError: The form cannot hold it.
    """
    from circuitfind.given import given
    from circuitfind.output.exports import FORMS, Source, stem
    from circuitfind.output.files import write_atomic

    if to not in FORMS:
        raise UsageError(f"no form is called '{to}'", hint=did_you_mean(to, FORMS))
    found = given(_name(run), outputs)
    made = FORMS[to].make(
        Source(found.what, found.scores, found.words, found.prompts, found.tracer, found.d_model)
    )
    base = found.file.with_name(f"{stem(found.file.name)}.json") if path is None else Path(path)
    places = {
        ending: base if path is not None and len(made.files) == 1 else base.with_suffix(ending)
        for ending in made.files
    }
    if any(one.exists() and one.samefile(found.file) for one in places.values()):
        raise UsageError(f"'{base}' is the file that is read", hint="name another path")
    return tuple(write_atomic(places[ending], content) for ending, content in made.files.items())


def report(
    run: Discovery | str | Path = "latest",
    path: str | Path | None = None,
    *,
    outputs: str | Path | None = None,
) -> Path:
    """Write a run's report: one HTML file that loads nothing.

    Args:
        run: What ``discover`` or ``open_run`` gave, or a run's name.
        path: Where to; ``report.html`` in the run's folder if None.
        outputs: Folder of run folders (default ``outputs``).

    Raises:
        UsageError: There is no such run, or the place cannot be written to.
        RunError: It found nothing yet, or its files were changed.
    """
    from circuitfind.output.report.write import write_report
    from circuitfind.output.store import Store

    return write_report(Store(outputs).find(_name(run)), None if path is None else Path(path))


def patch(
    run: Discovery | str | Path = "latest",
    nodes: str | Sequence[str] = (),
    *,
    edges: str | Sequence[str] = (),
    alphas: Sequence[float] | None = None,
    each: bool = False,
    positions: str | Sequence[str] = (),
    outputs: str | Path | None = None,
    device: str = "auto",
    memory: str | int | None = None,
    engine: str | None = None,
    workers: int | None = None,
    address: str | None = None,
) -> Patched:
    """Patch nodes or edges by doses on a run's prompts, from 0 (nothing) to 1 (a full patch).

    Args:
        run: What ``discover`` or ``open_run`` gave, or a run's name.
        nodes: Names, such as ``["a1.h4", "m0"]``.
        edges: Names, such as ``"a1.h4->logits"``.
        alphas: The doses; 0 and 1 are added. In steps of 0.05 if None.
        each: Patch each by itself, rather than all together.
        positions: Names or numbers of positions at which nodes are patched; all if empty.
        outputs: Folder of run folders (default ``outputs``).
        device: ``auto``, ``cpu``, ``cuda``, ...
        memory: To plan for beyond the model's weights.
        engine: As for ``discover``.
        workers: The same.
        address: The same.

    Raises:
        CircuitfindError: Whatever the command would print; ``hint`` says what to do.
    """
    from circuitfind.engine.chosen import working_with
    from circuitfind.output.store import Store
    from circuitfind.patch_runs import patch_run
    from circuitfind.patch_targets import PatchOptions
    from circuitfind.settings import memory_bytes

    options = PatchOptions(_names(nodes), _names(edges), each=each, positions=_names(positions))
    if alphas is not None:
        options = replace(options, alphas=tuple(sorted({0.0, 1.0, *map(float, alphas)})))
    found = Store(outputs).find(_name(run))
    with working_with(engine, workers, address, device=device):
        return patch_run(found, options, device=device, memory=memory_bytes(memory))


def _name(run: Discovery | str | Path) -> str:
    """A run's name or folder."""
    return str(run) if isinstance(run, (str, Path)) else str(run.folder.resolve())


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
