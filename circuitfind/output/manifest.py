"""``manifest.json``: the record of what a run is and of what is finished of it, its form and how it is read."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from circuitfind.config import SCHEMA_VERSION
from circuitfind.errors import RunError
from circuitfind.output.files import plain, stage_key
from circuitfind.output.provenance import git_state, machine, versions
from circuitfind.reading import read_json

FORMAT = "circuitfind.run"
MANIFEST = "manifest.json"
LOCK = "run.lock"


class NewerRun(RunError):
    """A run of a later version of this program: not to be written over."""


def now() -> str:
    """The time in UTC, to the microsecond, so that runs sort by it."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def order_of(manifest: Mapping[str, Any]) -> str:
    """By which runs are sorted: when a run began, or just behind the last one before it where the clock was set back."""
    order = manifest.get("order")
    return order if isinstance(order, str) else str(manifest["started"])


def behind(path: Path) -> str:
    """Just behind the runs that lie beside this one."""
    orders = []
    for other in path.parent.glob(f"*/{MANIFEST}"):
        if other.parent != path:
            with contextlib.suppress(RunError):
                orders.append(order_of(read_manifest(other.parent)))
    try:
        last = datetime.fromisoformat(max(orders, default=""))
        return (last + timedelta(microseconds=1)).astimezone(timezone.utc).isoformat(timespec="microseconds")
    except (ValueError, OverflowError):
        return ""


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
        "order": moment,
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
_MAYBE: Sequence[tuple[str, type]] = (("error", dict), ("ended", str), ("task_file", str), ("id", str))
"""What may also be null, or missing in older runs."""


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        RunError: It is missing, damaged, or of another version.
    """
    where = path / MANIFEST
    hint = "give the same discover command again (its stages are run anew), or delete the folder"
    try:
        found = read_json(where)
    except (OSError, ValueError) as error:
        raise RunError(f"the manifest cannot be read: {error}", where=str(where), hint=hint) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RunError("this is no manifest of a run", where=str(where), hint=hint)
    version = found.get("version")
    if version != SCHEMA_VERSION:
        told = f"the manifest has version {version}; this program reads version {SCHEMA_VERSION}"
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise NewerRun(
                told, where=str(where), hint="update circuitfind, or choose another folder with --outputs"
            )
        raise RunError(told, where=str(where), hint=hint)
    wrong = next((key for key, kind in _SHAPE if not isinstance(found.get(key), kind)), None)
    if wrong is None:
        wrong = next((key for key, kind in _MAYBE if not isinstance(found.get(key), kind | None)), None)
    if wrong is None and not all(_is_stage(record) for record in found["stages"].values()):
        wrong = "stages"
    if wrong is not None:
        raise RunError(f"the manifest is damaged at '{wrong}'", where=str(where), hint=hint)
    return found


def seal(facts: Mapping[str, Any]) -> str:
    """A hash of what a stage says of itself, by which it is seen when somebody changed it."""
    return stage_key(facts)


def is_inside(name: str) -> bool:
    """Whether a name is one of a file inside a run folder."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and not {"\\", "\0"} & set(name)
        and name not in (MANIFEST, LOCK)
    )


def _is_stage(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("key"), str):
        return False
    files = record.get("files")
    if not isinstance(files, dict) or not isinstance(record.get("facts"), dict):
        return False
    return all(
        is_inside(name) and isinstance(entry, dict) and "sha256" in entry for name, entry in files.items()
    )
