"""Run folders: ``outputs/<task>-<model>-<id>/``, where the id is a hash of the resolved configuration.

The same command therefore finds the folder that it made before, and the stages that are finished there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from circuitfind.errors import RunError, UsageError, did_you_mean
from circuitfind.output.files import OUTPUTS_VARIABLE, make_folder, stage_key, write_atomic
from circuitfind.output.links import below
from circuitfind.output.lock import FolderLock
from circuitfind.output.manifest import LOCK, MANIFEST, NewerRun, new_manifest, order_of, read_manifest
from circuitfind.output.run import Run, Stage

__all__ = ["Run", "RunInfo", "Stage", "Store", "run_name", "stage_key", "write_atomic"]

DEFAULT_ROOT = Path("outputs")
LATEST = "latest"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """A line in the list of runs.

    Attributes:
        status: That of the run, or ``damaged`` when its manifest cannot be read; ``problem`` then says why.
        error: What ended a run that failed.
        order: By which runs are sorted, so that the latest one comes first though the clock was set back.
        started: Time in UTC; of a damaged run, when its folder last changed.
    """

    name: str
    path: Path
    status: str
    started: str
    task: str | None = None
    model: str | None = None
    ended: str | None = None
    stages: tuple[str, ...] = ()
    problem: str | None = None
    error: str | None = None
    order: str = ""


class Store:
    """All runs below one folder: ``root``, else ``$CIRCUITFIND_OUTPUTS``, else ``./outputs``."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root or os.environ.get(OUTPUTS_VARIABLE) or DEFAULT_ROOT)

    def open(self, task: str, model: str, config: Mapping[str, Any]) -> Run:
        """The run of this configuration, made if there is none. Enter it (``with``) before running stages.

        A damaged manifest is set aside as ``manifest.json.damaged`` and the run begins anew.

        Raises:
            UsageError: The output folder cannot be written to, or the run's is a link to a folder that is no run.
            RunError: The disk is full, the damaged folder is in use, or a later version of the program wrote there.
        """
        name, identity = run_name(task, model, config)
        path = self.root / name
        if not (path / MANIFEST).is_file():
            below(self.root, name, folder=True)
        make_folder(path)
        if (path / MANIFEST).exists():
            try:
                return Run(path, read_manifest(path))
            except NewerRun:
                raise
            except RunError as error:
                logger.warning("%s: %s; the run begins anew", name, error.what)
                _set_manifest_aside(path)
        manifest = new_manifest(name, task, model, identity, config)
        return Run(path, manifest)

    def existing(self, task: str, model: str, config: Mapping[str, Any]) -> Run | None:
        """The run of this configuration if it is there and whole; writes nothing (for plans and dry runs)."""
        try:
            return _load(self.root / run_name(task, model, config)[0])
        except RunError:
            return None

    def runs(self) -> list[RunInfo]:
        """Every run, newest first; damaged ones too, so that nothing is hidden."""
        try:
            folders = [path for path in self.root.iterdir() if (path / MANIFEST).is_file()]
        except OSError:
            return []
        found = [_info(path) for path in folders]
        return sorted(found, key=lambda info: (info.order, info.name), reverse=True)

    def finished(self, stage: str, key: str, *, but: Path | None = None) -> Stage | None:
        """A finished stage with this key in any run but one, the newest first: its files serve others as well."""
        for info in self.runs():
            if info.problem or info.path == but:
                continue
            with contextlib.suppress(RunError):
                found = _load(info.path).stage(stage, key, warn=False)
                if found is not None:
                    return found
        return None

    def find(self, name: str) -> Run:
        """A run by its name, the beginning of its name, the path of its folder, or ``latest``.

        Raises:
            UsageError: There is no such run, or more than one.
            RunError: Its manifest is damaged.
        """
        infos = self.runs()
        by_name = {info.name: info for info in infos}
        if name in by_name:
            return _load(by_name[name].path)
        if name == LATEST:
            whole = [info for info in infos if info.problem is None]
            # A run that was refused or broken off is seldom what is meant, unless there is nothing else.
            for info in [*(i for i in whole if i.status == "finished"), *whole]:
                return _load(info.path)
            raise UsageError(f"no runs in {self.root}", hint="make one with `circuitfind discover`")
        if name and (Path(name) / MANIFEST).is_file():
            return _load(Path(name))
        matches = [info for info in infos if name and info.name.startswith(name)]
        if len(matches) == 1:
            return _load(matches[0].path)
        if matches:
            raise UsageError(
                f"'{name}' is the beginning of {len(matches)} runs",
                hint="write more of the name, or `latest`",
                details=[info.name for info in matches[:10]],
            )
        if not infos:
            raise UsageError(
                f"no run '{name}' in {self.root}",
                hint="make one with `circuitfind discover`; `circuitfind list runs` shows all",
            )
        if Path(name).is_dir():
            raise UsageError(
                f"'{name}' is a folder without a manifest.json, so it is no run",
                hint="`circuitfind list runs` shows the runs",
            )
        near = did_you_mean(name, [*by_name, LATEST])
        raise UsageError(
            f"no run '{name}' in {self.root}", hint=f"{near} (`circuitfind list runs` shows all)"
        )


def run_name(task: str, model: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """(folder name, id) of a configuration."""
    identity = stage_key(task, model, config)[:8]
    return f"{slug(task)}-{slug(model)}-{identity}", identity


def slug(text: str) -> str:
    """Text as part of a file name on every system: ``EleutherAI/pythia-70m`` -> ``pythia-70m``."""
    last = text.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._]+", "-", last).strip("-.")[:48] or "unnamed"


def _load(path: Path) -> Run:
    return Run(path, read_manifest(path))


def _info(path: Path) -> RunInfo:
    try:
        run = _load(path)
    except RunError as error:
        changed = 0.0
        with contextlib.suppress(OSError):
            changed = (path / MANIFEST).stat().st_mtime
        started = datetime.fromtimestamp(changed, timezone.utc).isoformat(timespec="microseconds")
        return RunInfo(path.name, path, "damaged", started, problem=error.what, order=started)
    manifest = run.manifest
    return RunInfo(
        name=path.name,
        path=path,
        status=run.status,
        started=manifest["started"],
        task=manifest["task"],
        model=manifest["model"],
        ended=manifest.get("ended"),
        stages=tuple(manifest["stages"]),
        error=(manifest.get("error") or {}).get("what"),
        order=order_of(manifest),
    )


def _set_manifest_aside(path: Path) -> None:
    lock = FolderLock(path / LOCK)
    lock.acquire()
    try:
        with contextlib.suppress(OSError):
            (path / MANIFEST).replace(path / f"{MANIFEST}.damaged")
    finally:
        lock.release()
