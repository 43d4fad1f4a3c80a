"""Commands run in a folder of their own, with none of the user's settings and nothing allowed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.helpers import Cli

SECRET = "hunter2-the-secret"
"""Stands in files that nobody asked for; it may turn up nowhere."""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CIRCUITFIND_") and name != "CIRCUITFIND_MODELS":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs commands."""
    return Cli(capsys, tmp_path)


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A copy of ``mini`` in a folder of its own."""
    from circuitfind.zoo import trained_folder

    return Path(shutil.copytree(trained_folder("mini"), tmp_path / "own-model"))
