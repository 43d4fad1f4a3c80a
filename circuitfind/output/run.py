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
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from types import MappingProxyType, TracebackType
from typing import Any, Literal, final

from circuitfind.config import SCHEMA_VERSION
from circuitfind.errors import CircuitfindError, RunError
from circuitfind.output.files import file_sha256, plain, sha256, write_atomic
from circuitfind.output.lock import FolderLock
from circuitfind.output.provenance import git_state, machine, versions

FORMAT = "circuitfind.run"
MANIFEST = "manifest.json"
LOCK = "run.lock"

Status = Literal["running", "finished", "failed", "interrupted"]

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
        for file, entry in record["files"].items():
            path = self.path / file
            try:
                intact = file_sha256(path) == entry["sha256"]
            except OSError:
                intact = False
            if not intact:
                if warn and name not in self._warned:
                    logger.warning(
                        "%s: %s is missing or was changed; stage '%s' has to run again", self.name, file, name
                    )
                    self._warned.add(name)
                return None
            files[file] = path
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
                "versions": versions(),
            }
            self._save()
        stored = {file: self.path / file for file in files}
        return Stage(name, key, MappingProxyType(stored), MappingProxyType(plain(facts or {})))

    # Files that belong to no stage, such as pictures drawn later.

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
        """Put facts into the manifest: ``seeds``, ``hashes``, ``device``, ``dtype``, ``task_file``. Mappings are merged."""
        known = {"seeds", "hashes", "device", "dtype", "task_file"}
        if not facts.keys() <= known:
            raise TypeError(f"a manifest holds no {sorted(facts.keys() - known)}")
        with self._locked():
            for key, value in facts.items():
                new = plain(value)
                self._manifest[key] = {**self._manifest[key], **new} if isinstance(new, dict) else new
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
        else:
            status = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
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
        self._manifest.update(
            status="running",
            started=now(),
            ended=None,
            error=None,
            command=list(sys.argv),
            versions=versions(),
            platform=machine(),
            git=git_state(),
        )
        self._save()

    def _end(self, status: Status, error: BaseException | None) -> None:
        told = None
        if status == "failed" and error is not None:
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

    def _inside(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        reserved = name in (MANIFEST, LOCK)
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name or reserved:
            raise ValueError(f"{name!r} is no name of a file inside a run folder")
        return self.path.joinpath(*parts)


def now() -> str:
    """The time in UTC, to the microsecond, so that runs sort by it."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def new_manifest(
    name: str, task: str, model: str, identity: str, config: Mapping[str, Any]
) -> dict[str, Any]:
    moment = now()
    return {
        "format": FORMAT,
        "version": SCHEMA_VERSION,
        "name": name,
        "id": identity,
        "task": task,
        "model": model,
        "status": "running",
        "created": moment,
        "started": moment,
        "ended": None,
        "error": None,
        "command": list(sys.argv),
        "config": plain(config),
        "seeds": {},
        "hashes": {},
        "device": None,
        "dtype": None,
        "task_file": None,
        "versions": versions(),
        "platform": machine(),
        "git": git_state(),
        "stages": {},
    }


_SHAPE: Sequence[tuple[str, type]] = (
    ("name", str),
    ("task", str),
    ("model", str),
    ("status", str),
    ("created", str),
    ("started", str),
    ("config", dict),
    ("seeds", dict),
    ("hashes", dict),
    ("stages", dict),
)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        RunError: It is missing, damaged, or of another version.
    """
    where = path / MANIFEST
    hint = "give the same discover command again (its stages are run anew), or delete the folder"
    try:
        found = json.loads(where.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"the manifest cannot be read: {error}", where=str(where), hint=hint) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RunError("this is no manifest of a run", where=str(where), hint=hint)
    if found.get("version") != SCHEMA_VERSION:
        told = f"the manifest has version {found.get('version')}; this program reads version {SCHEMA_VERSION}"
        raise RunError(told, where=str(where), hint=hint)
    wrong = next((key for key, kind in _SHAPE if not isinstance(found.get(key), kind)), None)
    if wrong is None and not all(_is_stage(record) for record in found["stages"].values()):
        wrong = "stages"
    if wrong is not None:
        raise RunError(f"the manifest is damaged at '{wrong}'", where=str(where), hint=hint)
    return found


def _is_stage(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("key"), str):
        return False
    files = record.get("files")
    if not isinstance(files, dict) or not isinstance(record.get("facts"), dict):
        return False
    return all(isinstance(entry, dict) and "sha256" in entry for entry in files.values())
