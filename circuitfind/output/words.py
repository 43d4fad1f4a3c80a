"""What is said of a run's nodes beside their names: labels that people gave, and hints from ``names.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from circuitfind.errors import RunError, UsageError
from circuitfind.output.files import stage_key
from circuitfind.output.labels import FILE, Labels, Owner
from circuitfind.output.run import Run
from circuitfind.reading import read_json

NAMES = "names.json"
FORMAT = "circuitfind.names"
VERSION = 1


@dataclass(frozen=True)
class Words:
    """By node's name.

    Attributes:
        labels: What people call it.
        hints: The token that it promotes most, for those without a label.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)

    @property
    def texts(self) -> dict[str, str]:
        """One text for each node: its label, or else its hint."""
        return {**{name: f"→ {hint}" for name, hint in self.hints.items()}, **self.labels}

    def as_dict(self) -> dict[str, Any]:
        return {"labels": dict(self.labels), "hints": dict(self.hints)}

    def __bool__(self) -> bool:
        return bool(self.labels or self.hints)


def owner_of(run: Run, *, dictionaries: str | None = None, dictionaries_hash: str | None = None) -> Owner:
    """What labels of a run's nodes are kept under: its model, and the dictionaries that it was made with or named with.

    Args:
        run: The run.
        dictionaries: Their name, in place of those.
        dictionaries_hash: Their hash, likewise.

    Raises:
        RunError: The run does not say which model it is of.
    """
    manifest = run.manifest
    model_hash = manifest["hashes"].get("model") or manifest["config"].get("model_hash")
    if not model_hash:
        raise RunError(
            "the run does not say which weights it is of",
            where=str(run.path),
            hint="give its discover command again",
        )
    if dictionaries_hash is None:
        dictionaries, dictionaries_hash = _dictionaries(run)
    return Owner(manifest["model"], model_hash, dictionaries, dictionaries_hash)


def _dictionaries(run: Run) -> tuple[str | None, str | None]:
    manifest = run.manifest
    digest = manifest["hashes"].get("dictionaries")
    if digest:
        chosen = (manifest["config"].get(part, {}) for part in ("settings", "saes"))
        return next((one["dictionaries"] for one in chosen if one.get("dictionaries")), None), digest
    named = read_names(run)
    return (None, None) if named is None else (named.get("dictionaries"), named.get("dictionaries_hash"))


def read_names(run: Run) -> dict[str, Any] | None:
    """The run's ``names.json``; None where there is none, or none that can be read."""
    try:
        data = read_json(run.path / NAMES)
    except (OSError, ValueError):
        return None
    good = isinstance(data, dict) and (data.get("format"), data.get("version")) == (FORMAT, VERSION)
    return data if good and isinstance(data.get("nodes"), list) else None


def words_of(run: Run) -> Words:
    """Labels and hints for a run's picture.

    Raises:
        UsageError: The file of labels is damaged.
    """
    labels: dict[str, str] = {}
    path = run.path.parent / FILE
    if path.is_file():
        labels = Labels(path).of(owner_of(run))
    named = read_names(run)
    hints = {} if named is None else {n["name"]: n["hint"] for n in named["nodes"] if n.get("hint")}
    return Words(labels, hints)


def words_or_none(run: Run) -> tuple[Words, str | None]:
    """The same, where a damaged file is told and not raised: a run that took hours is not to end at its picture."""
    try:
        return words_of(run), None
    except (UsageError, RunError) as error:
        return Words(), f"the labels are left out: {error.where}: {error.what}"


def picture_key(key: str, words: Words) -> str:
    """What a picture depends on: what it did before there were words, and these."""
    return stage_key(key, words.as_dict()) if words else key
