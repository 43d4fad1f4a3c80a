"""One run folder: its manifest, its finished stages and their files.

The manifest is the record of what is finished. A stage's files are written first and its record last, each
whole or not at all, so that an interruption at any point leaves either a stage that can be reused or one that
runs again. The format is described in docs/run-folder.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, final

from circuitfind.allowed import allowed
from circuitfind.errors import CircuitfindError, RunError, UsageError
from circuitfind.output.files import file_sha256, plain, sha256, write_atomic
from circuitfind.output.journal import FOLDER, Journal, drop
from circuitfind.output.links import below
from circuitfind.output.lock import FolderLock
from circuitfind.output.manifest import LOCK, MANIFEST, behind, is_inside, now, read_manifest, seal
from circuitfind.output.owner import sweep
from circuitfind.output.provenance import git_state, machine, versions

_PLANS = "plans"

Status = Literal["running", "finished", "refused", "failed", "interrupted"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A finished stage: its files are there and are those that it wrote."""

    name: str
    key: str
    files: Mapping[str, Path]
    facts: Mapping[str, Any]

    def read(self, name: str) -> bytes:
        return self.files[name].read_bytes()


@final
class Run:
    """A run folder. Made by ``Store``; use it as a context manager to run stages, and as it is to read
    results.

    Inside ``with`` the folder is locked, and on the way out the manifest records how the run ended.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self._manifest = manifest
        self._lock = FolderLock(path / LOCK)
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status})"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def manifest(self) -> dict[str, Any]:
        """A copy of what ``manifest.json`` holds."""
        return deepcopy(self._manifest)

    @property
    def status(self) -> Status:
        """``interrupted`` also when the process of a running run is gone."""
        status: Status = self._manifest["status"]
        if status == "running" and not self._lock.held and not self._lock.is_taken():
            return "interrupted"
        return status

    # Stages.

    def stage(self, name: str, key: str, *, warn: bool = True) -> Stage | None:
        """A finished stage with this key, or None when it has to run.

        A file that is missing or is not what the stage wrote makes the stage unfinished, with a warning.
        """
        record = self._manifest["stages"].get(name)
        if record is None or record["key"] != key:
            return None
        files: dict[str, Path] = {}
        # Facts are read as they are, so what was changed by hand counts as little as a file that was; older runs have no seal.
        changed = None if record.get("seal", seal(record["facts"])) == seal(record["facts"]) else MANIFEST
        for file, entry in record["files"].items():
            path = self.path / file
            try:
                intact = file_sha256(path) == entry["sha256"]
            except OSError:
                intact = False
            if not intact:
                changed = changed or file
            files[file] = path
        if changed is not None:
            if warn and name not in self._warned:
                logger.warning(
                    "%s: %s is missing or was changed; stage '%s' has to run again", self.name, changed, name
                )
                self._warned.add(name)
            return None
        return Stage(name, key, MappingProxyType(files), MappingProxyType(deepcopy(record["facts"])))

    def finish_stage(
        self, name: str, key: str, files: Mapping[str, bytes | str], facts: Mapping[str, Any] | None = None
    ) -> Stage:
        """Write a stage's files, then record it in the manifest.

        Args:
            name: Such as ``scores`` or ``prune``. A file belongs to one stage only.
            key: What the stage depended on (``stage_key``).
            files: Content by name inside the run folder.
            facts: What it took and said: ``seconds``, ``forward_passes``, ``backward_passes``, and whatever
                else.
        """
        with self._locked():
            entries: dict[str, Any] = {}
            for file, data in files.items():
                content = data.encode("utf-8") if isinstance(data, str) else data
                write_atomic(self._inside(file), content)
                entries[file] = {"sha256": sha256(content), "bytes": len(content)}
            self._manifest["stages"][name] = {
                "status": "finished",
                "key": key,
                "finished": now(),
                "files": entries,
                "facts": plain(facts or {}),
                "seal": seal(plain(facts or {})),
                "versions": versions(),
            }
            self._save()
        stored = {file: self.path / file for file in files}
        return Stage(name, key, MappingProxyType(stored), MappingProxyType(plain(facts or {})))

    def journal(self, name: str, key: str, *, fresh: bool = False) -> Journal:
        """What is kept of a stage until it is finished, from an interrupted run too unless it is to be ``fresh``."""
        return Journal(self._journal_path(name), key, fresh=fresh)

    def plans(self) -> Journal:
        """The sizes of batches that the run began with, until it is finished."""
        return self.journal(_PLANS, self.name)

    def _journal_path(self, name: str) -> Path:
        return self._inside(f"{FOLDER}/{name}.bin")

    # Files that belong to no stage, such as pictures drawn later.

    def place(self, name: str) -> Path:
        """A folder of the run, to write into.

        Raises:
            UsageError: A link leads out of the run's folder there.
        """
        return self._inside(name, folder=True)

    def write(self, name: str, data: bytes | str) -> Path:
        return write_atomic(self._inside(name), data)

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            RunError: It is not there or cannot be read.
        """
        path = self._inside(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise RunError(
                f"the run has no readable {name}: {error.strerror or error}",
                where=str(path),
                hint="give the same discover command again: what is finished is reused",
            ) from error

    def record(self, **facts: Any) -> None:
        """Put facts into the manifest: ``seeds``, ``hashes``, ``device``, ``dtype``, ``placement``, ``engine``,
        ``task_file``. Mappings are merged.
        """
        known = {"seeds", "hashes", "device", "dtype", "placement", "engine", "task_file"}
        if not facts.keys() <= known:
            raise TypeError(f"a manifest holds no {sorted(facts.keys() - known)}")
        with self._locked():
            for key, value in facts.items():
                new = plain(value)
                self._manifest[key] = {**self._manifest.get(key, {}), **new} if isinstance(new, dict) else new
            self._save()

    # The life of a run.

    def __enter__(self) -> Run:
        self._lock.acquire()
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            status: Status = "finished"
        elif issubclass(kind, KeyboardInterrupt):
            status = "interrupted"
        else:
            status = "refused" if issubclass(kind, UsageError) else "failed"
        try:
            self._end(status, error)
        except CircuitfindError:
            # The first error is the one to tell; a full disk may keep this one from being recorded.
            if kind is None:
                raise
        finally:
            self._lock.release()

    def _begin(self) -> None:
        # Another process may have finished stages since this one looked.
        with contextlib.suppress(RunError):
            self._manifest = read_manifest(self.path)
        # What a kill left here: temporary files, and the journal of a stage that it had just finished.
        sweep(self.path)
        for name, record in self._manifest["stages"].items():
            drop(self._journal_path(name), record["key"])
        started = now()
        self._manifest.update(
            status="running",
            started=started,
            order=max(started, behind(self.path)),
            ended=None,
            error=None,
            command=list(sys.argv),
            versions=versions(),
            platform=machine(),
            git=git_state(),
        )
        if allowed().trust_remote_code:
            self._manifest["trust_remote_code"] = True
        self._save()

    def _end(self, status: Status, error: BaseException | None) -> None:
        if status == "finished":
            drop(self._journal_path(_PLANS), self.name)
        told = None
        if status in ("refused", "failed") and error is not None:
            told = (
                error.as_dict()
                if isinstance(error, CircuitfindError)
                else {"error": type(error).__name__, "what": str(error)}
            )
        self._manifest.update(status=status, ended=now(), error=told)
        self._save()

    def _save(self) -> None:
        text = json.dumps(self._manifest, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomic(self.path / MANIFEST, text + "\n")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock.held:
            yield
            return
        self._lock.acquire()
        try:
            with contextlib.suppress(RunError):
                self._manifest = read_manifest(self.path)
            yield
        finally:
            self._lock.release()

    def _inside(self, name: str, *, folder: bool = False) -> Path:
        if not is_inside(name):
            raise ValueError(f"{name!r} is no name of a file inside a run folder")
        return below(self.path, name, folder=folder)
