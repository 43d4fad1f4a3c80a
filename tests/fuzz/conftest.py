"""Good files of every kind, made once, and commands run in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import cli, one_thread, own_folder
from tests.finished import plainly
from tests.fuzz.targets import NAMES, Target, targets

__all__ = ["cli", "one_thread", "own_folder"]


@pytest.fixture(scope="session")
def good(one_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Good files of every kind, by name."""
    (run,) = (path for path in (one_run / "outputs").iterdir() if path.is_dir())
    folder = tmp_path_factory.mktemp("good")
    with plainly(folder):
        found = {one.name: one for one in targets(folder, run)}
    assert tuple(found) == NAMES
    return found
