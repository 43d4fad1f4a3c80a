"""Files of other versions of their formats are refused by name, with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.backups.report import BackupReport
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.scores import Scores
from circuitfind.errors import CircuitfindError
from circuitfind.evidence.report import Evidence
from circuitfind.output.manifest import read_manifest
from circuitfind.views.report import Views


def _backups(path: Path) -> BackupReport:
    return BackupReport.from_dict(json.loads(path.read_text()), where=str(path))


def _manifest(path: Path) -> dict[str, Any]:
    return read_manifest(path.parent)


READERS: dict[str, Callable[[Path], Any]] = {
    "manifest.json": _manifest,
    "circuit.json": Circuit.load,
    "pruned.json": Circuit.load,
    "backups.json": _backups,
    "evidence.json": Evidence.load,
    "views.json": Views.load,
    "scores.npz": Scores.load,
}


@pytest.mark.parametrize("version", [0, 2, None])
@pytest.mark.parametrize("name", list(READERS))
def test_another_version_is_refused_by_name(
    one_run: Path, tmp_path: Path, name: str, version: object
) -> None:
    (run,) = (one_run / "outputs").glob("small-*")
    source, path = run / name, tmp_path / name
    if name.endswith(".npz"):
        with np.load(source) as data:
            arrays = {key: data[key] for key in data.files}
        header = json.loads(str(arrays.pop("header")))
        np.savez(path, header=np.array(json.dumps({**header, "version": version})), **arrays)
    else:
        path.write_text(json.dumps({**json.loads(source.read_text()), "version": version}))
    READERS[name](source)
    with pytest.raises(CircuitfindError) as caught:
        READERS[name](path)
    said = str(caught.value)
    assert str(path) in said
    assert f"version {version}" in said
    assert "version 1" in said
    assert caught.value.hint
    if version == 2:
        assert "update circuitfind" in caught.value.hint
