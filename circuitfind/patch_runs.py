"""Dose-response: patches that go a part of the way, of a task or with the prompts of a finished run."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

import circuitfind
from circuitfind.backup_runs import of_one_model, session_of
from circuitfind.circuit.dose import DoseCurve, Reading, read_curve, table_of
from circuitfind.config import SCHEMA_VERSION
from circuitfind.errors import CircuitfindError, UnsupportedError, UsageError
from circuitfind.output.cells import cell
from circuitfind.output.links import below
from circuitfind.output.provenance import versions
from circuitfind.output.store import Run, Store, run_name, stage_key, write_atomic
from circuitfind.patch_targets import Named, PatchOptions, fitting, runs_with, targets_of, tokens_at
from circuitfind.prompt_stage import draw_prompts
from circuitfind.session import Reporter, Session, Silent, configuration
from circuitfind.settings import Settings
from circuitfind.shown import Shown
from circuitfind.summary import finished_stages
from circuitfind.task.spec import TaskSpec

if TYPE_CHECKING:
    from circuitfind.model.dose import Target
    from circuitfind.model.runs import Runs

FORMAT = "circuitfind.dose"
FOLDER = "patches"
"""Where the doses of tasks go, below the folder of run folders."""


@dataclass(frozen=True)
class Patched(Shown):
    """What doses did.

    Attributes:
        readings: A curve for each patch.
        conditions: Under what.
        folder: Where the files are.
        files: By name.
        facts: Passes, seconds, notes.
    """

    readings: tuple[Reading, ...]
    conditions: Mapping[str, Any]
    folder: Path
    files: tuple[Path, ...]
    facts: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: what ``dose.json`` holds, and where the files are."""
        return {
            **_document(self.readings, self.conditions, self.facts),
            "folder": str(self.folder),
            "files": [str(path) for path in self.files],
        }


def patch_task(
    spec: TaskSpec,
    settings: Settings,
    options: PatchOptions,
    *,
    outputs: Path | str | None = None,
    out: Path | str | None = None,
    formats: Sequence[str] = ("svg",),
    device: str = "auto",
    memory: int | None = None,
    reporter: Reporter | None = None,
) -> Patched:
    """Doses of a task's prompts, of those that the model answers rightly.

    Args:
        spec: The task.
        settings: Of prompts, ablation, direction and metric.
        options: What is patched.
        outputs: Folder of run folders.
        out: Where the files go in place of a folder of their own below ``outputs``.
        formats: Pictures; empty for none.
        device: Where the model runs.
        memory: Bytes to plan for; what is free if None.
        reporter: Hears of progress.

    Raises:
        UsageError: A name that the model does not have.
        UnsupportedError: What cannot be patched so.
    """
    session = Session(spec, fitting(settings, options), device, reporter or Silent(), memory=memory)
    session.reporter.stage("prompts", "running")
    _, facts = draw_prompts(session)
    session.kept = list(facts["kept"])
    session.reporter.stage("prompts", "finished", f"{len(session.kept)} pairs")
    folder = Path(out) if out is not None else _own_folder(session, options, Store(outputs))
    return _patch(session, options, folder, formats, facts["counterfactual"])


def patch_run(
    run: Run,
    options: PatchOptions,
    *,
    changed: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    formats: Sequence[str] = ("svg",),
    device: str = "auto",
    memory: int | None = None,
    reporter: Reporter | None = None,
) -> Patched:
    """The same with the task, the settings and the prompts of a finished run; the files go into a folder in its own.

    Args:
        run: The run.
        options: What is patched.
        changed: Settings that are not the run's: ``ablation``, ``direction``, ``metric``.
        out: Where the files go in place of there.
        formats: Pictures; empty for none.
        device: Where the model runs.
        memory: Bytes to plan for; what is free if None.
        reporter: Hears of progress.

    Raises:
        UsageError: Its task or its model has changed, or it has no prompts.
    """
    done = finished_stages(run)
    if "prompts" not in done:
        raise UsageError(
            f"the run has no finished prompts (it is {run.status})",
            where=str(run.path),
            hint="finish it with the command that began it, or give the task",
        )
    session = session_of(run, of_one_model(run), device, memory, reporter or Silent())
    settings = replace(session.settings, **dict(changed or {}))
    session.settings = fitting(settings, options)
    session.kept = list(done["prompts"].facts["kept"])
    folder = Path(out) if out is not None else run.place(f"{FOLDER}/{_identity(session, options)}")
    return _patch(session, options, folder, formats, done["prompts"].facts["counterfactual"])


def _own_folder(session: Session, options: PatchOptions, store: Store) -> Path:
    name, _ = run_name(session.spec.name, session.settings.model, _configuration(session, options))
    return below(store.root, f"{FOLDER}/{name}", folder=True)


def _configuration(session: Session, options: PatchOptions) -> dict[str, Any]:
    return {**configuration(session), "patch": asdict(options)}


def _identity(session: Session, options: PatchOptions) -> str:
    return stage_key(_configuration(session, options))[:8]


# The work.


def _patch(
    session: Session, options: PatchOptions, folder: Path, formats: Sequence[str], counterfactual: str
) -> Patched:
    runs = runs_with(session, options)
    labels, targets = targets_of(runs.model.anatomy, options)
    where = tokens_at(runs, options.positions)
    settings = session.settings
    notes: list[str] = []
    if options.doses[0] < 0 or options.doses[-1] > 1:
        notes.append("doses beyond 0 and 1 put activations where the model never was: read them with care")
    session.reporter.stage("doses", "running")
    before, start = session.passes(), time.perf_counter()
    curves = _measure(session, runs, labels, targets, options, where, notes)
    readings = tuple(read_curve(curve) for curve in curves)
    after = session.passes()
    facts = {
        "seconds": round(time.perf_counter() - start, 3),
        "forward_passes": after["forward"] - before["forward"],
        "backward_passes": after["backward"] - before["backward"],
        "notes": notes,
    }
    session.reporter.stage("doses", "finished", f"{facts['seconds']:.1f} s")
    conditions = {
        "task": session.spec.name,
        "model": settings.model,
        "metric": settings.metric,
        "ablation": settings.ablation,
        "direction": settings.direction,
        "counterfactual": counterfactual,
        "positions": list(options.positions),
        "n_prompts": len(runs),
        "seed": settings.seed,
    }
    files = _write(readings, conditions, facts, folder, formats)
    return Patched(readings, conditions, folder, files, facts)


def _measure(
    session: Session,
    runs: Runs,
    labels: Sequence[Named],
    targets: Sequence[Target],
    options: PatchOptions,
    where: Bool[np.ndarray, "prompt pos"] | None,
    notes: list[str],
) -> list[DoseCurve]:
    from circuitfind.model.dose import measure_doses

    settings, alphas = session.settings, options.doses
    slopes = options.gradient and runs.metric.differentiable
    if options.gradient and not slopes:
        notes.append(f"no slopes: the metric '{runs.metric.name}' has no gradient")
    denoising = settings.direction == "denoising"
    if denoising and settings.ablation != "resample":
        raise UnsupportedError(
            f"denoising puts clean values into the corrupted run, not those of {settings.ablation} ablation",
            hint="leave out --ablation, or use --direction noising",
        )

    def work() -> Any:
        return measure_doses(
            runs,
            targets,
            alphas,
            base="corrupted" if denoising else "clean",
            ablation="clean" if denoising else settings.ablation,
            where=where,
            slopes=slopes,
        )

    found = runs.fitted(work)
    asked = [None] * len(targets)
    if slopes and where is None:
        asked = _eap_ig(session, runs, targets, options.steps, notes)
    elif slopes:
        notes.append("EAP-IG was not asked: it scores all positions together")
    return [
        DoseCurve(
            label.label,
            label.nodes,
            label.edges,
            alphas=np.array(alphas),
            values=found.values[i],
            right=found.right[i],
            slopes=None if found.slopes is None else found.slopes[i],
            eap_ig=asked[i],
        )
        for i, label in enumerate(labels)
    ]


def _eap_ig(
    session: Session, runs: Runs, targets: Sequence[Target], steps: int, notes: list[str]
) -> list[Any]:
    """What EAP-IG says that each patch changes: minus (noising) or plus (denoising) the scores of its edges."""
    from circuitfind.methods import get_method

    settings = session.settings
    try:
        scores = get_method("eap-ig", {"steps": steps}).run(
            runs, ablation=settings.ablation, direction=settings.direction
        )
    except CircuitfindError as error:
        notes.append(f"EAP-IG says nothing here: {error.what}")
        return [None] * len(targets)
    values = np.nan_to_num(scores.values)
    sign = 1.0 if settings.direction == "denoising" else -1.0
    edges = [t.nodes[:, None] | (t.edges if t.edges is not None else False) for t in targets]
    return [sign * float((values * mask).sum()) for mask in edges]


def _document(
    readings: Sequence[Reading], conditions: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": SCHEMA_VERSION,
        "conditions": dict(conditions),
        "patches": [reading.as_dict() for reading in readings],
        "facts": dict(facts),
    }


def _write(
    readings: Sequence[Reading],
    conditions: Mapping[str, Any],
    facts: Mapping[str, Any],
    folder: Path,
    formats: Sequence[str],
) -> tuple[Path, ...]:
    made = {"command": list(sys.argv), "circuitfind": circuitfind.__version__, "versions": versions()}
    document = {**_document(readings, conditions, facts), "made": made}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    files = [write_atomic(folder / "dose.json", text + "\n")]
    table = io.StringIO()
    rows = [row for reading in readings for row in table_of(reading)]
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    files.append(write_atomic(folder / "dose.csv", table.getvalue()))
    if formats:
        from circuitfind.output.dose_picture import write_pictures

        files += write_pictures(readings, conditions, folder, formats)
    return tuple(files)
