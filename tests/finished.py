"""Finished runs that many tests look at, each made once for all workers. A plugin: ``tests/conftest.py`` names it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import pytest
import torch
from filelock import FileLock

from circuitfind.summary import Discovery

ONE = """\
name: small
model: planted/and-gate
prompts:
  zoo: {count: 8}
expect:
  planted/and-gate: {faithfulness: {min: 0.5}}
"""
QUICK = """\
name: small
model: planted/induction
prompts:
  zoo: {count: 8}
"""
QUICKLY = "discover small.yaml --method eap --no-backups --controls none --outputs outputs -q"

Once = Callable[[str, Callable[[Path], None]], Path]
"""A name, and what fills the folder of that name; gives the folder."""
QuickRun = Callable[[Path], Path]


@contextmanager
def plainly(folder: Path) -> Iterator[None]:
    """In that folder, with none of the user's settings, in one thread, and without checks of shapes."""
    checked, threads = jaxtyping.config.jaxtyping_disable, torch.get_num_threads()
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("CIRCUITFIND_OUTPUTS", "CIRCUITFIND_TASKS", "CIRCUITFIND_CONFIG"):
                patch.delenv(name, raising=False)
            patch.chdir(folder)
            yield
    finally:
        torch.set_num_threads(threads)
        jaxtyping.config.update("jaxtyping_disable", checked)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder unless another worker has made it, or is making it. Tests leave it as it is."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared / f"finished-{name}", shared / f"finished-{name}.done"
        with FileLock(shared / f"finished-{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a worker left that failed
                folder.mkdir()
                with plainly(folder):
                    make(folder)
                done.touch()
        return folder

    return made


def _discover(task: str, words: str) -> Callable[[Path], None]:
    from circuitfind.cli import run

    def make(folder: Path) -> None:
        (folder / "small.yaml").write_text(task, encoding="utf-8")
        assert run(words.split()) == 0

    return make


@pytest.fixture(scope="session")
def one_run(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task ``small.yaml`` and its run, which has every part, below ``outputs``. Tests leave both so."""
    made = once("one", _discover(ONE, "discover small.yaml -q"))
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("one") / "run"))


@pytest.fixture(scope="session")
def quick_run(once: Once) -> QuickRun:
    """Copies a quick run with a measured curve below ``folder/outputs``, and its task to ``folder/small.yaml``."""
    made = once("quick", _discover(QUICK, QUICKLY))
    (found,) = (made / "outputs").glob("small-*")

    def copy(folder: Path) -> Path:
        shutil.copy(made / "small.yaml", folder)
        return Path(shutil.copytree(found, folder / "outputs" / found.name))

    return copy


@pytest.fixture(scope="session")
def small_run(once: Once) -> Discovery:
    """A run of a model that has a head and a backup for it; with evidence, without pictures and views. Tests leave it so."""
    from circuitfind.api import discover
    from circuitfind.output.store import Store
    from circuitfind.summary import stored

    def make(folder: Path) -> None:
        discover("gated-backup", outputs=folder, count=8, formats=(), views=False)

    found = stored(Store(once("small", make)).find("latest"))
    return Discovery(found.circuit, found.folder, found.summary)
