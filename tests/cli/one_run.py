"""One finished run that many tests look at, so that it is found once."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuitfind.cli import run

TASK = """\
name: small
model: planted/and-gate
prompts:
  zoo: {count: 8}
expect:
  planted/and-gate: {faithfulness: {min: 0.5}}
"""


@pytest.fixture(scope="session")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task ``small.yaml`` and its run below ``outputs``. Tests leave both as they are."""
    folder = tmp_path_factory.mktemp("one-run")
    (folder / "small.yaml").write_text(TASK, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("CIRCUITFIND_OUTPUTS", raising=False)
        assert run(["discover", "small.yaml", "-q"]) == 0
    return folder
