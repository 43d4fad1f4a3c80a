"""A quick run with a measured curve that several modules of tests read, made once a process. Copy it before you write into it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from circuitfind.cli import run

TASK = """\
name: small
model: planted/induction
prompts:
  zoo: {count: 8}
"""


@lru_cache(maxsize=1)
def _made() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="circuitfind-quick-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "small.yaml").write_text(TASK, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        words = "discover small.yaml --method eap --no-backups --controls none --outputs outputs -q"
        assert run(words.split()) == 0
    finally:
        os.chdir(before)
    return folder


def quick_run(folder: Path) -> Path:
    """A copy of the run below ``folder/outputs``, and of its task ``folder/small.yaml``."""
    made = _made()
    shutil.copy(made / "small.yaml", folder)
    (found,) = (made / "outputs").glob("small-*")
    return shutil.copytree(found, folder / "outputs" / found.name)
