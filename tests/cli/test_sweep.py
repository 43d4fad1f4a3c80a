"""Sweeps: cells, files that are wrong, runs that are the same as alone, what is reused, refused, interrupted."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from circuitfind.cli.common import duration
from circuitfind.errors import TaskError, UsageError
from circuitfind.sweep.cells import cells_of
from circuitfind.sweep.spec import SETTINGS, load_sweep
from circuitfind.sweep.template import TEMPLATE
from tests.cli.helpers import Cli
from tests.sweeps import Swept, names, said, sweep, write_files


@pytest.fixture
def copy(swept: Swept, tmp_path: Path) -> Swept:
    """The same sweep with its runs, to change."""
    folder = tmp_path / "copy"
    shutil.copytree(swept.folder, folder)
    return Swept(folder, swept.result)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model can be loaded."""

    def boom(*args: Any, **keys: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("circuitfind.model.load.load_model", boom)


# --- the file ----------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    write_files(folder)
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_combination_is_a_cell(tmp_path: Path) -> None:
    text = "tasks: small.yaml\nmethods: [eap, {name: eap-ig, options: {steps: 2}}]\nsettings: {seed: [0, 1, 1], edges: 3}\n"
    found = cells_of(load_sweep(write(tmp_path, text)))
    assert found.varied == ("method", "seed")
    assert found.same == {"task": "small", "model": "planted/and-gate", "edges": "3"}
    labels = ["eap seed=0", "eap seed=1", "eap-ig (steps=2) seed=0", "eap-ig (steps=2) seed=1"]
    assert [cell.label for cell in found.cells] == labels, "a value that is listed twice is one cell"
    settings = found.cells[3].settings()
    assert (settings.method, dict(settings.options)) == ("eap-ig", {"steps": 2})
    assert (settings.seed, settings.rule.edges, settings.model) == (1, 3, "planted/and-gate")


def test_cells_that_are_left_out(tmp_path: Path) -> None:
    write_files(tmp_path)
    found = cells_of(load_sweep(tmp_path / "sweep.yaml"))
    assert len(found.cells) == 5, "2 x 2 x 2, less two, less one more"
    assert found.cells[-1].told["task"] == "text"


def test_only_chooses_cells(tmp_path: Path) -> None:
    write_files(tmp_path)
    found = cells_of(load_sweep(tmp_path / "sweep.yaml"))
    assert len(found.only([])) == 5
    assert len(found.only(["task=small"])) == 4
    assert len(found.only(["task=small", "method=eap"])) == 2
    assert len(found.only(["method=eap", "method=activation-patching"])) == 5
    for wanted, says in (
        (["task=smal"], "did you mean 'small'"),
        (["tsk=small"], "did you mean 'task'"),
        (["small"], "KEY=VALUE"),
        (["task=text", "model=planted/or-gate"], "--dry-run"),
    ):
        with pytest.raises(UsageError) as told:
            found.only(wanted)
        assert says in told.value.hint


def test_the_folder_changes_with_the_file_and_not_with_its_place(tmp_path: Path) -> None:
    keys = []
    for name, text in (
        ("a", "tasks: small.yaml\n"),
        ("b", "tasks: small.yaml\n"),
        ("c", "tasks: [small.yaml, text.yaml]\n"),
    ):
        (tmp_path / name).mkdir()
        keys.append(cells_of(load_sweep(write(tmp_path / name, text))).key)
    assert keys[0] == keys[1] != keys[2]


def test_the_template_is_a_sweep(cli: Cli, tmp_path: Path) -> None:
    assert cli.good("sweep", "--template").out == TEMPLATE
    assert cli.good("sweep", "--template", "--json").json["template"] == TEMPLATE
    path = tmp_path / "sweep.yaml"
    path.write_text(TEMPLATE, encoding="utf-8")
    found = cells_of(load_sweep(path))
    assert len(found.cells) == 7, "two tasks, two methods, two seeds, less one"
    for name in SETTINGS:
        assert f"{name}: " in TEMPLATE or f"{name}," in TEMPLATE or f"or {name}" in TEMPLATE, name
    bare = TEMPLATE.replace("  # counterfactual", "  counterfactual")
    path.write_text(bare.replace("flip, other-names", "s2-flip"), encoding="utf-8")
    assert "counterfactual" in cells_of(load_sweep(path)).same, "what is commented out can be taken in"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("tasks: smal.yaml\n", 1, ["(tasks)", "no task file at", "small.yaml"]),
        ("tasks: [small.yaml, ioii]\n", 1, ["(tasks[1])", "no task is named 'ioii'", "did you mean 'ioi'"]),
        ("tasks: small.yaml\nmethods:\n  - eapp\n", 3, ["(methods[0])", "did you mean 'eap'"]),
        ("tasks: small.yaml\nmethods:\n  - {name: gimm}\n", 3, ["(methods[0].name)", "did you mean 'gim'"]),
        ("tasks: small.yaml\nmethods:\n  - {nam: gim}\n", 3, ["unknown key 'nam'", "did you mean 'name'"]),
        ("tasks: small.yaml\nmodels: planted/and-gat\n", 2, ["(models)", "did you mean 'planted/and-gate'"]),
        ("tasks: small.yaml\nmodels:\n  - ./nowhere\n", 3, ["(models[0])", "no model folder './nowhere'"]),
        ("tasks: small.yaml\n\nmodel: mini\n", 3, ["unknown key 'model'", "did you mean 'models'"]),
        ("tasks: small.yaml\nsettings:\n  sed: 1\n", 3, ["(settings.sed)", "did you mean 'seed'"]),
        ("tasks: small.yaml\nsettings:\n  seed: [0, x]\n", 3, ["(settings.seed[1])", "whole number"]),
        ("tasks: small.yaml\nsettings:\n  ablation: meen\n", 3, ["'meen' is none of", "did you mean 'mean'"]),
        ("tasks: small.yaml\nsettings:\n  ablation: []\n", 3, ["(settings.ablation)", "is empty"]),
        ("tasks: small.yaml\nsettings:\n  edges: 3\n  threshold: 1\n", 4, ["not to both", "keep one of them"]),
        ("tasks: ioi\nsettings:\n  counterfactual: s2-flipp\n", 3, ["has a counterfactual", "did you mean 's2-flip'"]),
        ("tasks: small.yaml\nleave-out:\n  - {tsk: small}\n", 3, ["(leave-out[0].tsk)", "did you mean 'task'"]),
        ("tasks: small.yaml\nleave-out:\n  - {task: x}\n", 3, ["matches no run"]),
        ("tasks: small.yaml\nleave-out:\n  - {task: small}\n", 2, ["leaves nothing to run"]),
        ("tasks: []\n", 1, ["(tasks)", "is empty"]),
        ("methods: eap\n", 1, ["the key 'tasks' is missing"]),
        ("- tasks\n", 1, ["a sweep file is a mapping", "circuitfind sweep --template"]),
        ("tasks: small.yaml\nsettings:\n  backups: no\n", 3, ["YAML reads the word no as false"]),
        ("tasks: [small.yaml\n", 2, ["broken YAML"]),
    ],
)  # fmt: skip
def test_files_that_are_wrong(tmp_path: Path, text: str, line: int, says: list[str]) -> None:
    with pytest.raises(TaskError) as told:
        cells_of(load_sweep(write(tmp_path, text)))
    words = str(told.value)
    assert f"sweep.yaml:{line}" in words, words
    for part in says:
        assert part in words, words


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = "tasks: ioii\nmethods: eapp\nsettings: {edges: 1, threshold: 2}\n"
    with pytest.raises(TaskError) as told:
        load_sweep(write(tmp_path, text))
    assert len(told.value.details) == 2


def test_commands_that_are_wrong(cli: Cli, tmp_path: Path) -> None:
    cli.fails(2, "sweep", says=["no sweep file is given", "--template"])
    write_files(tmp_path)
    cli.fails(2, "sweep", "swep.yaml", says=["no sweep file at", "did you mean 'sweep.yaml'"])
    cli.fails(2, "sweep", "sweep.yaml", "--only", "method=epa", says=["did you mean 'eap'"])
    cli.fails(2, "sweep", "sweep.yaml", "--memory", "much", says=["hint"])


# --- the runs ----------------------------------------------------------------------------------------------


def test_one_that_is_refused_does_not_keep_the_others(swept: Swept) -> None:
    assert swept.result.code == 1
    data = swept.result.json
    assert names(data["cells"]) == ["finished"] * 4 + ["failed"]
    refused = data["cells"][-1]
    assert "the model has no tokenizer" in refused["problem"]
    assert refused["hint"]
    assert refused["faithfulness"] is None
    assert data["counts"] == {"finished": 4, "reused": 0, "failed": 1, "interrupted": 0, "not run": 0}
    assert data["finished"] is True


def test_a_cell_is_what_discover_makes(swept: Swept, tmp_path: Path) -> None:
    for method in ("eap", "activation-patching"):
        words = [swept.folder / "small.yaml", "--model", "planted/or-gate", "--method", method]
        alone = said(
            "discover",
            *words,
            "--no-backups",
            "--no-views",
            "--controls",
            "none",
            "--outputs",
            tmp_path,
            "--json",
            "-q",
        )
        one, cell = alone.json, swept.cell(task="small", model="planted/or-gate", method=method)
        assert cell["run"] == one["run"], "one configuration, one folder"
        assert cell["edges"] == one["counts"]["edges"]
        assert cell["faithfulness"] == one["evaluations"][0]["faithfulness"]
        passes = _passes(tmp_path / one["run"])
        shared = 0 if method == "eap" else passes["prompts"]  # of the run before it
        assert cell["forward_passes"] == sum(passes.values()) - shared
        for file in ("circuit.json", "prompts.jsonl"):
            mine = (swept.outputs / cell["run"] / file).read_bytes()
            assert mine == (tmp_path / one["run"] / file).read_bytes()


def _passes(folder: Path) -> dict[str, int]:
    """Forward passes of each stage of a run."""
    stages = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["stages"]
    return {name: int(stage["facts"].get("forward_passes", 0)) for name, stage in stages.items()}


@pytest.mark.usefixtures("no_model")
def test_what_is_finished_is_reused_without_a_model(copy: Swept) -> None:
    again = sweep(copy.file, "--only", "task=small")
    assert again.code == 0
    data = again.json
    assert names(data["cells"]) == ["reused"] * 4 + ["failed"], "what was not chosen stays as it was recorded"
    assert [c["forward_passes"] for c in data["cells"]] == [0] * 5
    for before, after in zip(copy.result.json["cells"][:4], data["cells"], strict=False):
        same = (
            "run",
            "faithfulness",
            "edges",
            "nodes",
            "certified",
            "backups",
            "accuracy",
            "seconds",
            "report",
        )
        assert {key: before[key] for key in same} == {key: after[key] for key in same}


def test_a_changed_file_reuses_the_runs_that_it_had(copy: Swept) -> None:
    changed = "tasks: small.yaml\nmethods: eap\nsettings: {backups: false, controls: none, views: false}\n"
    copy.file.write_text(changed.replace("views: false", "views: false, edges: [12]"), encoding="utf-8")
    (other,) = sweep(copy.file).json["cells"]
    assert other["state"] == "finished"
    alone = copy.cell(task="small", model="planted/and-gate", method="eap")
    assert other["run"] != alone["run"]
    assert other["forward_passes"] < alone["forward_passes"], "prompts and scores are those that were there"
    copy.file.write_text(changed, encoding="utf-8")
    (same,) = sweep(copy.file).json["cells"]
    assert (same["state"], same["run"]) == ("reused", alone["run"])
    assert len(list(copy.outputs.glob("sweep-*"))) == 3


def test_neighbours_share_a_model_and_count_their_own_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from circuitfind.model import load

    loaded, real = [], load.load_model

    def counted(name: str, **keys: Any) -> Any:
        loaded.append(name)
        return real(name, **keys)

    monkeypatch.setattr(load, "load_model", counted)
    text = (
        "tasks: small.yaml\nmodels: [planted/and-gate, planted/or-gate]\nmethods: [eap, eap-ig]\n"
        "settings: {backups: false, controls: none, views: false, edges: 12}\n"
    )
    found = sweep(write(tmp_path, text))
    assert found.code == 0
    assert loaded == ["planted/and-gate", "planted/or-gate"]
    for i, cell in enumerate(found.json["cells"]):
        passes = _passes(tmp_path / "outputs" / cell["run"])
        assert min(passes.values()) >= 0
        assert cell["forward_passes"] == sum(passes.values()) - (passes["prompts"] if i % 2 else 0)


def test_an_interruption_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from circuitfind.sweep import run

    real, calls = run.discover_task, []

    def stopped(*args: Any, **keys: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **keys)

    text = "tasks: small.yaml\nmethods: [eap, eap-ig, relp]\nsettings: {backups: false, controls: none, views: false}\n"
    file = write(tmp_path, text)
    monkeypatch.setattr(run, "discover_task", stopped)
    found = sweep(file)
    assert found.code == 130
    data = found.json
    assert data["finished"] is False
    assert names(data["cells"]) == ["finished", "interrupted", "not run"]
    (folder,) = (tmp_path / "outputs").glob("sweep-*")
    assert json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["cells"] == data["cells"]
    monkeypatch.setattr(run, "discover_task", real)
    again = sweep(file, "--only", "method=eap", "--only", "method=eap-ig")
    assert again.code == 0
    assert names(again.json["cells"]) == ["reused", "finished", "not run"]


def test_a_damaged_record_is_made_anew(copy: Swept) -> None:
    (copy.results / "sweep.json").write_text("{", encoding="utf-8")
    data = sweep(copy.file, "--only", "method=eap").json
    assert names(data["cells"]) == ["reused", "not run", "reused", "not run", "not run"]


def test_a_run_that_breaks_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from circuitfind.methods.eap import EAP

    def boom(*args: Any, **keys: Any) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(EAP, "run", boom)
    text = "tasks: small.yaml\nmethods: [eap, activation-patching]\nsettings: {backups: false, controls: none, views: false}\n"
    data = sweep(write(tmp_path, text)).json
    assert names(data["cells"]) == ["failed", "finished"]
    assert data["cells"][0]["problem"] == "ZeroDivisionError: by nought"


# --- what is shown -----------------------------------------------------------------------------------------


def test_dry_run_says_what_there_is_and_writes_nothing(copy: Swept, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.outputs.rglob("*")}
    cells = sweep(copy.file, "--dry-run").json["cells"]
    assert [c["state"] for c in cells] == ["cached"] * 4 + ["would fail"]
    assert [c["run"] for c in cells[:4]] == copy.runs
    assert "no tokenizer" in cells[-1]["problem"]
    fresh = said("sweep", copy.file, "--outputs", tmp_path / "none", "--dry-run", "--json", "-q").json[
        "cells"
    ]
    assert [c["state"] for c in fresh[:4]] == ["to run"] * 4
    assert all(c["forward"] > 0 for c in fresh[:4])
    assert fresh[0]["forward"] > fresh[0]["backward"] > 0
    assert not (tmp_path / "none").exists()
    assert before == {path: path.stat().st_mtime_ns for path in copy.outputs.rglob("*")}


@pytest.mark.usefixtures("no_model")
def test_the_table_fits_a_terminal(copy: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    words = ("sweep", copy.file, "--outputs", copy.outputs, "--only", "task=small")
    shown = said(*words, terminal=True)
    assert shown.code == 0
    table = shown.out[: shown.out.index("see them side by side")]
    assert max(map(len, table.splitlines())) <= 80
    assert "small planted/and-gate eap " in table, "in one column, since three do not fit"
    cell = copy.cell(task="small", model="planted/and-gate", method="eap")
    assert f"{cell['faithfulness']['value']:.2f} [" in table
    assert duration(cell["seconds"]) in table
    assert "text planted/and-gate activation-patching" in shown.out, "why the last one failed is said still"
    assert "4 reused, 1 failed" in shown.out


def test_the_results_as_files(swept: Swept) -> None:
    with (swept.results / "sweep.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert len(set(head)) == len(head), "no column has the name of another"
    assert len(rows) == 5
    for row, cell in zip(rows, swept.result.json["cells"], strict=True):
        found = dict(zip(head, row, strict=True))
        assert (found["task"], found["method"]) == (cell["told"]["task"], cell["told"]["method"])
        assert found["state"] == cell["state"]
        assert found["edges"] == ("" if cell["edges"] is None else str(cell["edges"]))
        if cell["faithfulness"]:
            assert float(found["faithfulness_low"]) == pytest.approx(cell["faithfulness"]["low"])
    kept = json.loads((swept.results / "sweep.json").read_text(encoding="utf-8"))
    assert kept["cells"] == swept.result.json["cells"]


def test_other_commands_do_not_stumble_over_a_sweep(swept: Swept) -> None:
    listed = said("list", "runs", "--outputs", swept.outputs, "--json").json["runs"]
    assert sorted(row["run"] for row in listed if row["status"] == "finished") == sorted(swept.runs)
    assert not [row for row in listed if row["run"].startswith("sweep-")]
    latest = said("show", "latest", "--outputs", swept.outputs, "--json")
    assert latest.code == 0
    assert latest.json["run"] == swept.runs[-1]
    none = said("show", swept.results.name, "--outputs", swept.outputs)
    assert none.code == 2
