"""A small sweep that several tests look at, run once for all: two planted models by two methods, and a run that is refused.

A plugin: ``tests/conftest.py`` names it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from circuitfind.cli import run
from tests.cli.helpers import Result
from tests.finished import Once

SMALL = """\
name: small
model: planted/and-gate
prompts:
  zoo: {count: 8}
"""
TEXT = """\
name: text
model: planted/and-gate
prompts:
  pairs: [{clean: "I met a girl.", corrupted: "I met a boy.", answer: " She", wrong: " He"}]
"""
SWEEP = """\
tasks: [small.yaml, text.yaml]
models: [planted/and-gate, planted/or-gate]
methods: [eap, activation-patching]
settings: {backups: false, controls: none, views: false}
leave-out:
  - {task: text, model: planted/or-gate}
  - {task: text, method: eap}
"""

SAID = "said.json"


class Paper(io.TextIOWrapper):
    """A stream in memory; with all that a file has, since types are checked."""

    mode, name = "w", "paper"

    def __init__(self, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def text(self) -> str:
        """What was written."""
        return bytes(self.buffer.getvalue()).decode("utf-8")  # type: ignore[attr-defined]  # it is a BytesIO


def said(*words: str | Path, terminal: bool = False) -> Result:
    """Run a command in this process."""
    out, err = Paper(terminal), Paper(terminal=False)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(word) for word in words])
    return Result(code, out.text(), err.text())


@dataclass(frozen=True)
class Swept:
    """A sweep that was run.

    Attributes:
        folder: With the sweep file and its tasks.
        result: Of the command, with --json.
    """

    folder: Path
    result: Result

    @property
    def file(self) -> Path:
        return self.folder / "sweep.yaml"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    @property
    def results(self) -> Path:
        """The folder of its results."""
        (found,) = self.outputs.glob("sweep-*")
        return found

    def cell(self, **told: str) -> dict[str, Any]:
        """The cell that is told by these."""
        (found,) = (c for c in self.result.json["cells"] if all(c["told"][k] == v for k, v in told.items()))
        return dict(found)

    @property
    def runs(self) -> list[str]:
        """Names of the runs that have a circuit, in the order of the file."""
        return [c["run"] for c in self.result.json["cells"] if c["state"] == "finished"]


def write_files(folder: Path) -> Path:
    """The sweep file with its tasks beside it."""
    for name, text in (("small.yaml", SMALL), ("text.yaml", TEXT), ("sweep.yaml", SWEEP)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "sweep.yaml"


def sweep(file: Path, *words: str) -> Result:
    """Run a sweep beside its file, without pictures of Graphviz's speed."""
    return said("sweep", file, "--outputs", file.parent / "outputs", "--json", "--quiet", *words)


@pytest.fixture(scope="session")
def swept(once: Once) -> Swept:
    """The sweep, run; tests leave it as it is."""

    def make(folder: Path) -> None:
        result = sweep(write_files(folder))
        assert result.code == 1, result.out + result.err
        (folder / SAID).write_text(json.dumps(asdict(result)), encoding="utf-8")

    folder = once("sweep", make)
    return Swept(folder, Result(**json.loads((folder / SAID).read_text(encoding="utf-8"))))


def names(rows: Sequence[dict[str, Any]], key: str = "state") -> list[Any]:
    """One value of each row."""
    return [row[key] for row in rows]
