"""Searches for backups that are asked for by themselves: of a task without a circuit, or of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from circuitfind.backup_stage import named
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.rule import Rule
from circuitfind.circuit.scores import Scores
from circuitfind.errors import RunError, TaskError, UsageError
from circuitfind.output.report.write import renew_report
from circuitfind.output.store import Run, Stage, Store, stage_key
from circuitfind.pipeline import Stages
from circuitfind.session import Reporter, Session, Silent, backups_key, configuration, stage_keys, task_hash
from circuitfind.settings import BackupOptions, Settings
from circuitfind.summary import (
    Searched,
    alone,
    circuit_file,
    finished_stages,
    no_circuit,
    of_features,
    searched,
)
from circuitfind.task.spec import TaskSpec, load_task


def search_task(
    spec: TaskSpec,
    settings: Settings,
    options: BackupOptions | None = None,
    *,
    outputs: Path | str | None = None,
    device: str = "auto",
    force: bool = False,
    memory: int | None = None,
    reporter: Reporter | None = None,
) -> Searched:
    """Look for backups in a task, without a circuit. The run folder is its own: each set of options has one.

    Args:
        spec: The task.
        settings: Of the prompts and the ablation.
        options: What to remove and where to look.
        outputs: Folder of run folders.
        device: Where the model runs.
        force: Search again.
        memory: Bytes to plan for; what is free if None.
        reporter: Hears of progress.
    """
    options = options or BackupOptions()
    session = Session(spec, settings, device, reporter or Silent(), memory=memory)
    if options.primaries or options.readers:
        named(session.model.anatomy, options)  # before a folder is made
    store = Store(outputs)
    run = store.open(spec.name, settings.model, {**configuration(session), "backups": asdict(options)})
    with run:
        stages = Stages(session, store, run, force=force)
        keys = stage_keys(session)
        stages.prompts(keys["prompts"])
        stage = stages.backups(backups_key(keys["prompts"], settings, options), options)
        stages.record_device()
    renew_report(run, session.reporter.note)
    return searched(run, stage)


def search_run(
    run: Run,
    store: Store,
    options: BackupOptions | None = None,
    *,
    device: str = "auto",
    force: bool = False,
    memory: int | None = None,
    reporter: Reporter | None = None,
) -> Searched:
    """Look for backups in a finished run, with its settings, prompts and circuit; the result takes the place of its own.

    Raises:
        RunError: It has no circuit, or its task or model has changed since.
    """
    options = options or BackupOptions()
    done = finished_stages(run)
    bare = alone(run)
    needed = ("prompts",) if bare else ("prompts", "scores", "circuit")
    missing = [name for name in needed if name not in done]
    if of_features(run):
        raise no_circuit(run)
    if missing:
        raise RunError(
            f"the run has no finished stage '{missing[0]}' (it is {run.status})",
            where=str(run.path),
            hint="finish it with the command that began it, or search the task: `circuitfind backups TASK`",
        )
    settings = of_one_model(run)
    key = backups_key(done[needed[-1]].key, settings, options)
    if not force and "backups" in done and done["backups"].key == key:
        return searched(run, done["backups"])
    circuit = None if bare else _pruned(run, done)
    if circuit is not None:
        named(circuit.anatomy, options)  # before a model is loaded
    session = session_of(run, settings, device, memory, reporter or Silent())
    session.kept = list(done["prompts"].facts["kept"])
    stages = Stages(session, store, run, force=force)
    stage = stages.backups(
        key, options, circuit, None if bare else Scores.load(done["scores"].files["scores.npz"])
    )
    drawn = done.get("pictures")
    if circuit is not None and drawn is not None:
        formats = tuple(p.suffix[1:] for p in drawn.files.values() if p.suffix != ".dot")
        stages.pictures(
            Circuit.load(circuit_file({**done, "backups": stage})), formats, stage_key(key, formats)
        )
    renew_report(run, session.reporter.note)
    return searched(run, stage)


def _pruned(run: Run, done: Mapping[str, Stage]) -> Circuit:
    files = done["circuit"].files
    if "pruned.json" not in files:  # its circuit.json would be written over
        raise RunError(
            "the run was made before runs were searched for backups",
            where=str(run.path),
            hint="give its discover command again",
        )
    return Circuit.load(files["pruned.json"])


def settings_of(run: Run) -> Settings:
    """The settings that a run was made with.

    Raises:
        RunError: They are of another version.
    """
    data: dict[str, Any] = run.manifest["config"]["settings"]
    try:
        return Settings(**{**data, "rule": Rule(**data["rule"])})
    except (KeyError, TypeError) as error:
        raise RunError(
            f"the settings of the run are of another version: {error}",
            where=str(run.path),
            hint="give its discover command again",
        ) from error


def of_one_model(run: Run) -> Settings:
    """The settings of a run, for what says nothing of the difference of two models.

    Raises:
        UsageError: The run compares two.
    """
    settings = settings_of(run)
    if settings.model_b is not None:
        raise UsageError(
            f"the run compares {settings.model} with {settings.model_b}: backups and evidence are of one model",
            where=str(run.path),
            hint="make a run without --model-b",
        )
    return settings


def session_of(run: Run, settings: Settings, device: str, memory: int | None, reporter: Reporter) -> Session:
    """A session of what a run was made from.

    Raises:
        UsageError: The task or the model is not what it was.
        RunError: The task cannot be read any more.
    """
    config = run.manifest["config"]
    spec = _task(run)
    session = Session(spec, settings, device, reporter, memory=memory)
    if task_hash(spec) != config["task_hash"]:
        raise _changed(run, f"the task {spec.name}")
    if session.identity != config["model_hash"]:
        raise _changed(run, f"the model {settings.model}")
    if session.identity_b != config.get("model_b_hash"):
        raise _changed(run, f"the model {settings.model_b}")
    return session


def _task(run: Run) -> TaskSpec:
    """From the file that the run was made from, or by name where that is gone or was not written down."""
    file, name = run.manifest.get("task_file"), run.manifest["task"]
    try:
        return load_task(file if file and Path(file).is_file() else name)
    except TaskError as error:
        raise RunError(
            f"the task of the run cannot be read any more: {error.what}", where=str(run.path), hint=error.hint
        ) from error


def _changed(run: Run, what: str) -> UsageError:
    return UsageError(
        f"{what} has changed since the run",
        where=str(run.path),
        hint="give its discover command again, which makes a new run",
    )
