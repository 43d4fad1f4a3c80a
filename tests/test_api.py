"""The Python API: the words of the command line, the same result, few names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import circuitfind
from circuitfind.cli import run
from circuitfind.evidence.report import Evidence
from circuitfind.output.exports import FORMS
from circuitfind.summary import REPORT as FILE
from circuitfind.summary import Discovery

TASK = """\
name: small
model: planted/and-gate
prompts:
  zoo: {count: 8}
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are so small that a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small task in a folder of its own."""
    monkeypatch.delenv("CIRCUITFIND_OUTPUTS", raising=False)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(TASK, encoding="utf-8")
    return path


def test_few_names() -> None:
    assert circuitfind.__all__ == [
        "Circuit",
        "CircuitfindError",
        "Scores",
        "allowing",
        "discover",
        "evaluate",
        "export",
        "find_backups",
        "load_task",
        "offloaded",
        "open_run",
        "patch",
        "prune",
        "report",
    ]
    assert set(circuitfind.__all__) <= set(dir(circuitfind))
    for name in circuitfind.__all__:
        assert getattr(circuitfind, name).__doc__, f"{name} says nothing"
    with pytest.raises(AttributeError, match="has no attribute 'discovr'"):
        circuitfind.discovr  # noqa: B018


def test_importing_it_costs_nothing() -> None:
    code = "import circuitfind, sys; circuitfind.CircuitfindError; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_the_same_as_the_command(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = circuitfind.discover(task, outputs="one", faithfulness=0.8)
    assert run(["discover", str(task), "--outputs", "two", "--faithfulness", "0.8", "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    mine = json.loads(json.dumps(found.summary))
    for key in ("run", "conditions", "prompts", "evaluations", "counts", "circuits_tried", "known"):
        assert told[key] == mine[key], key
    assert found.folder == Path("one") / told["run"]
    other = Path("two") / told["run"] / "circuit.json"
    assert (found.folder / "circuit.json").read_bytes() == other.read_bytes()
    assert circuitfind.Circuit.load(other).as_dict() == found.circuit.as_dict()


def test_it_is_silent(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    circuitfind.discover(task)
    assert capfd.readouterr() == ("", "")


def test_what_it_returns(task: Path) -> None:
    found = circuitfind.discover(task, "planted/and-gate:1", formats=["svg", "png"])
    assert isinstance(found.circuit, circuitfind.Circuit)
    assert isinstance(found.scores, circuitfind.Scores)
    assert found.scores.level == "edge"
    assert found.scores.method == "hybrid"
    assert found.summary["verification"]["proposed_by"] == "eap-ig"
    mask = found.scores.anatomy.edge_mask
    assert np.isfinite(found.scores.values[mask]).all()
    assert np.isnan(found.scores.values[~mask]).all()
    assert found.scores.values.flags.writeable is False
    assert {"manifest.json", "circuit.svg", "circuit.png"} <= {path.name for path in found.folder.iterdir()}
    assert found.summary["conditions"]["model"] == "planted/and-gate:1"
    top = {str(edge) for edge, _ in found.scores.top_edges(5)}
    assert top == {str(edge) for edge in found.circuit.edges}


def test_a_task_as_an_object(task: Path) -> None:
    spec = circuitfind.load_task(task)
    found = circuitfind.discover(spec, formats=())
    assert found.summary["run"] == circuitfind.discover(str(task), formats=()).summary["run"]
    assert found.summary["pictures"] == []
    other = circuitfind.discover(spec.model_copy(update={"name": "renamed"}), formats=())
    assert other.folder.name.startswith("renamed-")


def test_second_call_loads_no_model(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = circuitfind.discover(task)

    def boom(*args: object, **keys: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("circuitfind.model.load.load_model", boom)
    second = circuitfind.discover(task)
    assert second.summary == first.summary
    with pytest.raises(AssertionError, match="loaded"):
        circuitfind.discover(task, force=True)


def test_unknown_words(task: Path) -> None:
    with pytest.raises(TypeError, match="methd"):
        circuitfind.discover(task, methd="eap")
    for keys, says in [
        ({"method": "epa"}, "did you mean 'eap'"),
        ({"options": {"stps": 3}}, "has no option 'stps'"),
        ({"memory": "much"}, "no amount of memory"),
        ({"memory": 0}, "is none"),
        ({"precision": "half"}, "no precision is named"),
        ({"positions": "every"}, "named 'every'"),
        ({"faithfulness": 2.0}, "above 0 and up to 1"),
        ({"faithfulness": 0.9, "edges": 3}, "exactly one"),
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"formats": ["svg", "gif"]}, "unknown picture format 'gif'"),
        ({"model": "planted/nothing"}, "the zoo has no model"),
    ]:
        with pytest.raises(circuitfind.CircuitfindError) as caught:
            circuitfind.discover(task, **keys)
        assert says in str(caught.value)
    with pytest.raises(circuitfind.CircuitfindError, match="no task is named"):
        circuitfind.discover("no-such-task")


def test_options_are_those_of_the_method(task: Path) -> None:
    found = circuitfind.discover(
        task, method="eap-ig", options={"steps": 2}, positions="all", memory="1GB", formats=()
    )
    assert found.summary["conditions"]["method"] == "eap-ig (steps=2, positions=all)"
    assert found.scores.by_position is not None
    assert found.summary["verification"] is None
    same = circuitfind.discover(
        task, method="eap-ig", options={"steps": "2"}, positions="all", memory=10**9, formats=()
    )
    assert same.folder == found.folder


def test_one_format_as_a_word(task: Path) -> None:
    found = circuitfind.discover(task, formats="png")
    assert [Path(name).name for name in found.summary["pictures"]] == ["circuit.png"]


def test_a_discovery_is_immutable(task: Path) -> None:
    found = circuitfind.discover(task, formats=())
    with pytest.raises(AttributeError):
        found.circuit = None  # type: ignore[misc]
    assert replace(found).circuit is found.circuit


# A run that exists.


@pytest.fixture
def folder(small_run: Discovery, tmp_path: Path) -> Path:
    """A copy of the small run, in a folder of runs of its own."""
    made = small_run.folder
    return Path(shutil.copytree(made, tmp_path / "outputs" / made.name))


def test_a_run_opens_as_it_was(small_run: Discovery, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitfind.model.load.load_model", None)
    made = small_run
    for name in ("latest", folder.name, folder.name[:12], folder):
        found = circuitfind.open_run(name, outputs=folder.parent)
        assert found.circuit.as_dict() == made.circuit.as_dict()
        assert found.folder == folder
        assert (
            (found.scores.values[made.scores.anatomy.edge_mask]).tobytes()
            == (made.scores.values[made.scores.anatomy.edge_mask]).tobytes()
        )
    assert found.backups.as_dict() == made.backups.as_dict()
    assert found.evidence is not None
    assert made.evidence is not None
    assert found.evidence.as_dict() == made.evidence.as_dict()
    assert {f.name for f in found.backups.backups} == {"a1.h0"}
    with pytest.raises(circuitfind.CircuitfindError) as caught:
        circuitfind.open_run("gated-backup-gated-backop", outputs=folder.parent)
    assert folder.name in str(caught.value.hint)


def test_a_run_without_evidence_has_none(task: Path) -> None:
    found = circuitfind.discover(task, controls="none", backups=False, views=False, formats=())
    assert found.evidence is None
    with pytest.raises(circuitfind.CircuitfindError, match="not been searched for backups"):
        found.backups  # noqa: B018


def test_evaluate_is_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {
        "parts": "completeness",
        "ablations": ["resample"],
        "controls": "none",
        "draws": 4,
    }
    found = circuitfind.evaluate(circuitfind.open_run(folder), **options)
    assert isinstance(found, Evidence)
    assert set(found.parts) >= {"completeness"}
    assert "minimality" not in found.parts
    again = circuitfind.open_run(folder).evidence
    assert again is not None
    assert again.as_dict() == found.as_dict(), "what was evaluated last comes first"
    words = ["--parts", "completeness", "--ablation", "resample", "--controls", "none", "--draws", "4"]
    assert run(["evaluate", str(folder), *words, "--outputs", str(folder.parent), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["measured"] == json.loads(json.dumps(found.as_dict()))["measured"]
    for keys, says in [
        ({"parts": "completness"}, "did you mean 'completeness'"),
        ({"ablations": "men"}, "did you mean 'mean'"),
        ({"controls": "all"}, "no controls are called 'all'"),
        ({"seed": 0}, "from 1"),
        ({"count": 0}, "from 1"),
    ]:
        with pytest.raises(circuitfind.CircuitfindError) as caught:
            circuitfind.evaluate(folder, **keys)
        assert says in f"{caught.value} {caught.value.hint}"


def test_prune_is_the_command(folder: Path, tmp_path: Path) -> None:
    found = circuitfind.open_run(folder)
    before = {path.name for path in folder.iterdir()}
    for keys, words in [({"edges": 3}, ["--edges", "3"]), ({"threshold": 0.05}, ["--threshold", "0.05"])]:
        mine = circuitfind.prune(found, **keys)
        to = tmp_path / "pruned.json"
        assert run(["prune", str(folder), *words, "-o", str(to), "-q"]) == 0
        assert circuitfind.Circuit.load(to).edges == mine.edges
    assert {path.name for path in folder.iterdir()} == before, "pruning writes nothing"
    for wrong in ({}, {"edges": 3, "threshold": 0.1}, {"edges": 0}, {"target": 0.9}):
        with pytest.raises(circuitfind.CircuitfindError):
            circuitfind.prune(folder, **wrong)


def test_export_writes_what_the_command_writes(folder: Path, tmp_path: Path) -> None:
    for form in ("graphml", "csv", "python"):
        mine = circuitfind.export(folder, form)
        assert {path.parent for path in mine} == {folder}
        texts = [path.read_bytes() for path in mine]
        assert run(["export", str(folder), "--to", form, "-q"]) == 0
        assert [path.read_bytes() for path in mine] == texts
        assert len(mine) == (2 if form == "csv" else 1)
    (named,) = circuitfind.export(folder, "dot", tmp_path / "own.gv")
    assert named == tmp_path / "own.gv"
    assert named.read_text(encoding="utf-8").startswith("digraph")
    with pytest.raises(circuitfind.CircuitfindError, match="did you mean 'graphml'") as caught:
        circuitfind.export(folder, "grafml")
    assert "graphml" in FORMS
    assert caught.value.exit_code == 2
    with pytest.raises(circuitfind.CircuitfindError, match="the file that is read"):
        circuitfind.export(folder, "json", folder / "circuit.json")


def test_a_report_is_one_file(folder: Path, tmp_path: Path) -> None:
    written = circuitfind.report(folder)
    assert written == folder / FILE
    assert "gated-backup" in written.read_text(encoding="utf-8")
    assert circuitfind.report(folder, tmp_path / "own.html").read_bytes() == written.read_bytes()


def test_patch_goes_by_doses(small_run: Discovery, folder: Path) -> None:
    found = circuitfind.patch(folder, ["a0.h1", "a1.h0"], alphas=[0.5], each=True)
    assert [reading.curve.label for reading in found.readings] == ["a0.h1", "a1.h0"]
    for reading in found.readings:
        assert reading.curve.alphas.tolist() == [0.0, 0.5, 1.0]
        full = small_run.circuit.evaluations[0].full
        assert reading.metric[0].value == pytest.approx(full, abs=1e-4)
    with pytest.raises(circuitfind.CircuitfindError, match="nothing is named to patch"):
        circuitfind.patch(folder)
