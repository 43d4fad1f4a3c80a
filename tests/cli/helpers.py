"""What the tests of commands share: a command run in this process, a small model in a folder, task files for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from circuitfind.cli import run


@dataclass(frozen=True)
class Result:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout as JSON."""
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass
class Cli:
    """Runs commands in this process."""

    capsys: pytest.CaptureFixture[str]
    folder: Path

    def __call__(self, *words: str | Path) -> Result:
        self.capsys.readouterr()
        code = run([str(word) for word in words])
        captured = self.capsys.readouterr()
        return Result(code, captured.out, captured.err)

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    def good(self, *words: str | Path) -> Result:
        """A command that must succeed."""
        found = self(*words)
        assert found.code == 0, found.err + found.out
        return found

    def fails(self, code: int, *words: str | Path, says: Sequence[str] = ()) -> Result:
        """A command that must fail as a command should: in plain words, as JSON with --json, leaving no rubbish.

        Returns:
            The result without --json.
        """
        found = self.fails_loosely(code, *words, says=says)
        self.tidy()
        as_json = self(*words, "--json")
        assert as_json.code == code
        data = as_json.json
        assert data["version"] == 1
        assert data["exit_code"] == code
        assert all(data[key] for key in ("error", "what", "hint"))
        assert "error: " not in as_json.err
        self.tidy()
        return found

    def fails_loosely(self, code: int, *words: str | Path, says: Sequence[str] = ()) -> Result:
        """The same, where damaged files lie about already."""
        found = self(*words)
        assert found.code == code, found.err + found.out
        assert found.out == ""
        text = found.err[found.err.index("error: ") :]
        assert "\nhint: " in text, text
        assert "Traceback" not in found.err
        assert "should not happen" not in text, text
        for part in says:
            assert part in text, text
        return found

    def tidy(self) -> None:
        """No temporary or half-written file is in the outputs folder, and no lock."""
        if not self.outputs.is_dir():
            return
        for path in self.outputs.rglob("*"):
            assert not path.name.startswith("."), path
            assert path.suffix not in (".tmp", ".lock"), path
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.is_file():
                assert path.stat().st_size > 0, path

    def run_folder(self) -> Path:
        """The only run."""
        (found,) = (path for path in self.outputs.iterdir() if path.is_dir())
        return found

    def states(self, result: Result) -> dict[str, str]:
        """State of each stage, from what a run said on stderr."""
        lines = [line.split() for line in result.err.splitlines() if line[:2] in ("+ ", "= ")]
        return {words[1]: words[2].rstrip(",") for words in lines}


@dataclass
class Toy:
    """A planted model in a folder, whose tokens are the words w0, w1, ..., and task files for it."""

    folder: Path
    model: Path
    vocab: list[str]
    pairs: list[dict[str, Any]] = field(default_factory=list)

    def text(self, **keys: Any) -> dict[str, Any]:
        """A good task as data, with some keys replaced; a key that is None is left out."""
        data: dict[str, Any] = {
            "name": "toy",
            "model": str(self.model),
            "vocab": self.vocab,
            "prompts": {"pairs": self.pairs},
        }
        return {key: value for key, value in {**data, **keys}.items() if value is not None}

    def task(self, name: str = "toy.yaml", **keys: Any) -> Path:
        """Write ``text`` as a file (JSON is YAML)."""
        path = self.folder / name
        path.write_text(json.dumps(self.text(**keys), indent=1), encoding="utf-8")
        return path

    def with_pair(self, name: str = "toy.yaml", **keys: Any) -> Path:
        """A task whose first pair is changed."""
        first = {**self.pairs[0], **keys}
        return self.task(name, prompts={"pairs": [first, *self.pairs[1:]]})
