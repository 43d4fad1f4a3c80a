"""The example notebook does what it says: its cells run, quickly on one small run, and slowly as a reader runs them."""

from __future__ import annotations

import ast
import re
from inspect import signature
from pathlib import Path
from typing import Any

import nbformat
import pytest

import circuitfind
from circuitfind.summary import Discovery

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "docs" / "notebooks").glob("*.ipynb"))


def ids(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_it_is_kept_small_and_clean(path: Path) -> None:
    book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    assert path.stat().st_size < 20_000
    for cell in book.cells:
        assert not cell.get("outputs"), f"{cell.id}: clear the outputs"
        assert cell.get("execution_count") is None
        assert re.fullmatch(r"[a-z-]+", cell.id), f"{cell.id}: a name that stays, not a random one"
    assert book.metadata.kernelspec.name == "python3"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """What a cell shows: the value of its last line."""
    tree = ast.parse(source)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_its_cells_run(
    path: Path, small_run: Discovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CIRCUITFIND_OUTPUTS", raising=False)
    monkeypatch.chdir(tmp_path)
    asked = []

    def discover(task: str, *args: Any, **keys: Any) -> Any:
        signature(real).bind(task, *args, **keys)
        asked.append(task)
        return small_run

    real = circuitfind.discover
    monkeypatch.setattr(circuitfind, "discover", discover, raising=False)
    names: dict[str, Any] = {}
    shown = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            value = run_cell(cell.source, names)
            if hasattr(value, "_repr_mimebundle_"):
                assert value._repr_mimebundle_()["text/html"].startswith('<div class="circuitfind">'), cell.id
                shown.append(type(value).__name__)
    assert {"Discovery", "Circuit", "Scores", "BackupReport", "TaskSpec", "Patched"} <= set(shown)
    assert len(asked) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_it_runs_as_a_reader_runs_it(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.delenv("CIRCUITFIND_OUTPUTS", raising=False)
    book = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, kernel_name="python3", timeout=240, resources=resources).execute()
    outputs = {cell.id: cell.outputs for cell in book.cells if cell.cell_type == "code"}
    html = outputs["discover"][0]["data"]["text/html"]
    assert "ioi on mini: a circuit found by hybrid" in html
    assert "held against" in html or "certified" in html
    assert "random circuits" in outputs["evidence"][0]["data"]["text/plain"]
    assert not [o for found in outputs.values() for o in found if o["output_type"] == "error"]
