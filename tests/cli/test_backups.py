"""``backups``, ``show --backups`` and what ``discover`` says of what stands in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import circuitfind
from circuitfind.backups.report import BackupReport
from circuitfind.circuit.graph import Circuit
from tests.cli.helpers import Cli

COUNT = ("--count", "12")


def planted_task(folder: Path, kind: str) -> Path:
    """A task on a planted model, with few prompts."""
    path = folder / f"{kind}.yaml"
    path.write_text(
        f"name: {kind}\nmodel: planted/{kind}\nprompts:\n  zoo: {{count: 12}}\n", encoding="utf-8"
    )
    return path


@pytest.fixture
def gated(cli: Cli) -> Cli:
    """A finished run on the model with one backup."""
    cli.good("discover", planted_task(cli.folder, "gated-backup"), "-q")
    return cli


# --- of a task ----------------------------------------------------------------------------------------------


def test_a_backup_is_found_and_told(cli: Cli) -> None:
    found = cli.good("backups", "gated-backup", *COUNT)
    assert cli.states(found) == {"prompts": "finished", "backups": "finished"}
    lines = found.out.splitlines()
    assert lines[0].startswith("gated-backup on planted/gated-backup: a1.h0 stands in for a0.h1 (repair ")
    for part in (
        "resample, mean and zero ablation",
        "logits: a0.h1",
        "redundant group: a0.h1 and a1.h0",
        "backups.json",
    ):
        assert part in found.out
    bars = [line for line in lines if line.startswith(("  resample ", "  mean ", "  zero "))]
    assert len(bars) == 3
    assert all("█" in bar and "▓" in bar and len(bar) <= 80 for bar in bars)
    again = cli.good("backups", "gated-backup", *COUNT)
    assert cli.states(again) == {"prompts": "reused", "backups": "reused"}
    assert again.out == found.out


def test_json_is_the_report(cli: Cli) -> None:
    data = cli.good("backups", "gated-backup", *COUNT, "--json").json
    assert data["version"] == 1
    report = BackupReport.from_dict(data)
    assert [f.name for f in report.backups] == ["a1.h0"]
    assert report.conditions["ablations"] == ["resample", "mean", "zero"]
    assert report.conditions["n_prompts"] == 12
    assert report.conditions["circuit"] is False
    assert json.loads(Path(data["file"]).read_text(encoding="utf-8"))["findings"] == data["findings"]


def test_relief_is_told_apart(cli: Cli) -> None:
    out = cli.good("backups", "relief", *COUNT).out
    assert "no backup; a1.h1 works less against the answer when a0.h2 is gone" in out


def test_nothing_is_said_in_one_true_sentence(cli: Cli) -> None:
    out = cli.good("backups", "co-workers", *COUNT).out
    first = out.splitlines()[0]
    assert "no backup: without " in first
    assert "is lost under" in first


def test_other_ablations(cli: Cli) -> None:
    data = cli.good("backups", "gated-backup", *COUNT, "--ablation", "zero", "--json").json
    assert data["conditions"]["ablations"] == ["zero", "resample", "mean"]
    data = cli.good("backups", "gated-backup", "--count", "1", "--json").json
    assert data["conditions"]["ablations"] == ["resample", "zero"], "a single prompt has no mean"


def test_names_in_any_spelling(cli: Cli) -> None:
    words = ["backups", "gated-backup", *COUNT, "--reader", "logits", "--json", "--primaries"]
    found = [cli.good(*words, name).json for name in ("a0.h1", "0.1", "L0H1")]
    assert {tuple(data["conditions"]["options"]["primaries"]) for data in found} == {("a0.h1",)}
    assert all([f["name"] for f in data["findings"] if f["kind"] == "backup"] == ["a1.h0"] for data in found)


def test_an_mlp_can_be_removed(cli: Cli) -> None:
    data = cli.good("backups", "gated-backup", *COUNT, "--primaries", "m0,a0.h1", "--json").json
    assert {"m0"} in [set(s["members"]) for s in data["sets"]]


def test_a_reader_that_nothing_writes_to(cli: Cli) -> None:
    out = cli.good("backups", "gated-backup", *COUNT, "--reader", "a0.h0<q>").out
    assert "no backup: nothing that could be removed writes to a0.h0<q> for sure" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--primaries", "a9.h9"], ["no 'a9.h9'", "the nearest name is"]),
        (["--primaries", "zzz"], ["'zzz' is not the name of a node"]),
        (["--primaries", " , "], ["names no component"]),
        (["--primaries", "input"], ["the input cannot be removed"]),
        (["--primaries", "logits"], ["has no 'logits'"]),
        (["--primaries", "a1.h0", "--reader", "m0"], ["a1.h0 does not write to m0"]),
        (["--reader", "a1.h0"], ["has several inputs", "'a1.h0<q>'"]),
        (["--reader", "a9.h0<q>"], ["no 'a9.h0<q>'", "the nearest name is"]),
        (["--reader", "input"], ["nothing writes to the input"]),
        (["--rate", "0"], ["false-discovery rate of 0.0"]),
        (["--min-share", "2"], ["a share of 2.0 does not exist"]),
        (["--ablation", "zeroo"], ["did you mean 'zero'?"]),
        (["--count", "0"], ["give at least 1"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_wrong_input(cli: Cli, words: list[str], says: list[str]) -> None:
    cli.fails(2, "backups", "gated-backup", *words, says=says)
    assert not cli.outputs.exists()


def test_neither_task_nor_run(cli: Cli) -> None:
    cli.fails(2, "backups", "gated-bakup", says=["neither a task nor a run", "did you mean 'gated-backup'?"])
    cli.fails(2, "backups", "latest", says=["no runs in"])
    cli.fails(2, "backups", "no.yaml", says=["no.yaml"])


# --- of a run -----------------------------------------------------------------------------------------------


def test_show_is_the_same(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    said = cli.good("backups", "gated-backup", *COUNT).out
    monkeypatch.setattr("circuitfind.model.load.load_model", None)
    assert cli.good("show", "--backups").out == said
    assert cli.good("show").out == said, "a run without a circuit has nothing else to show"
    assert cli.good("show", "--backups", "--json").json["findings"]
    cli.fails(3, "show", "--nodes", says=["looked for backups alone", "circuitfind discover"])
    cli.fails(3, "render", says=["looked for backups alone"])


def test_a_run_is_searched_with_its_circuit(gated: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    before = gated.good("show", "--backups", "--json").json
    assert before["conditions"]["circuit"] is True
    with monkeypatch.context() as patch:
        patch.setattr("circuitfind.model.load.load_model", None)
        assert gated.good("backups", "latest", "--json").json == before, "the same search is there already"
    found = gated.good(
        "backups", gated.run_folder(), "--primaries", "a0.h2", "--reader", "logits", "--json"
    ).json
    assert [s["members"] for s in found["sets"]] == [["a0.h2"]]
    assert gated.good("show", "--json").json["backups"]["found"] == []
    assert gated.good("show", "--json").json["conditions"]["task"] == "gated-backup"
    gated.tidy()
    again = gated.good("discover", "gated-backup.yaml")
    assert gated.states(again)["circuit"] == "reused"
    assert gated.good("show", "--backups", "--json").json["findings"] == before["findings"]


def test_a_run_has_its_own_settings(gated: Cli) -> None:
    gated.fails(2, "backups", "latest", "--count", "3", says=["--count cannot be changed in a finished run"])
    gated.fails(2, "backups", "latest", "--primaries", "a9.h9", says=["the nearest name is"])
    assert gated.good("list", "runs", "--json").json["runs"][0]["status"] == "finished"


def test_a_task_that_changed_is_no_longer_the_runs(gated: Cli) -> None:
    (gated.folder / "gated-backup.yaml").write_text(
        "name: gated-backup\nmodel: planted/gated-backup\nprompts:\n  zoo: {count: 11}\n", encoding="utf-8"
    )
    gated.fails(
        2, "backups", "latest", "--rate", "0.01", says=["the task gated-backup has changed since the run"]
    )


def test_a_run_without_circuit(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **keys: Any) -> None:
        raise KeyboardInterrupt

    path = planted_task(cli.folder, "gated-backup")
    with monkeypatch.context() as keyboard:
        keyboard.setattr("circuitfind.circuit.prune.prune", interrupt)
        assert cli("discover", path).code == 130
    cli.fails(3, "backups", "latest", says=["no finished stage 'circuit'", "circuitfind backups TASK"])
    cli.fails(3, "show", "--backups", says=["has not been searched for backups"])


# --- in discover --------------------------------------------------------------------------------------------


def test_discover_tells_of_backups(gated: Cli) -> None:
    data = gated.good("show", "--json").json
    (found,) = data["backups"]["found"]
    assert (found["name"], found["kind"], found["covers"], found["reader"]) == (
        "a1.h0",
        "backup",
        ["a0.h1"],
        "logits",
    )
    complete = data["completeness"]
    assert complete["without_circuit"]["low"] > 0.4, "the backup answers when the circuit cannot"
    assert abs(complete["without_circuit_and_backups"]["value"]) < 0.01
    assert data["redundant"] == []
    out = gated.good("show").out
    assert "  backups       a1.h0 stands in for a0.h1 (repair " in out
    assert "  completeness  0.4" in out
    circuit = Circuit.load(gated.run_folder() / "circuit.json")
    assert [str(b.node) for b in circuit.backups] == ["a1.h0"]
    assert "a1.h0" not in {str(n) for n in circuit.nodes}
    assert '"a1.h0" [label' in (gated.run_folder() / "circuit.dot").read_text(encoding="utf-8")


def test_without_backups_scores_are_reused(gated: Cli) -> None:
    path = gated.folder / "gated-backup.yaml"
    off = gated.good("discover", path, "--no-backups")
    states = dict.fromkeys(("prompts", "scores", "circuit"), "reused")
    assert gated.states(off) == {**states, **dict.fromkeys(("evidence", "views", "pictures"), "finished")}
    assert "  backups       not looked for" in off.out
    assert "  next          circuitfind " in off.out
    assert "circuitfind backups gated-backup-" in off.out
    data = gated.good("show", "--json").json
    assert data["backups"] is data["completeness"] is None
    planned = gated.good("discover", path, "--no-backups", "--dry-run", "--json").json
    assert [stage["name"] for stage in planned["stages"]] == [
        "prompts",
        "scores",
        "circuit",
        "evidence",
        "views",
        "pictures",
    ]
    on = gated.good("discover", path)
    assert set(gated.states(on).values()) == {"reused"}
    gated.tidy()


def test_backups_after_none(cli: Cli) -> None:
    path = planted_task(cli.folder, "gated-backup")
    cli.good("discover", path, "--no-backups", "-q")
    states = cli.states(cli.good("discover", path))
    assert states == {
        "prompts": "reused",
        "scores": "reused",
        "circuit": "reused",
        "backups": "finished",
        "evidence": "finished",
        "views": "finished",
        "pictures": "finished",
    }


def test_a_run_without_the_stage_can_be_searched_later(cli: Cli) -> None:
    path = planted_task(cli.folder, "gated-backup")
    cli.good("discover", path, "--no-backups", "-q")
    cli.fails(3, "show", "--backups", says=["has not been searched", "circuitfind backups gated-backup-"])
    cli.good("backups", "latest", "-q")
    assert cli.good("show", "--json").json["backups"]["found"]
    again = cli.good("discover", path, "--no-backups")
    assert set(cli.states(again).values()) <= {"reused", "finished"}
    assert "note: " not in cli.good("show").err, "its circuit.json was left alone"


def test_included_backups_join_the_circuit(gated: Cli) -> None:
    path = gated.folder / "gated-backup.yaml"
    found = gated.good("discover", path, "--include-backups", "--json")
    assert gated.states(found)["circuit"] == "reused"
    data = found.json
    assert data["conditions"]["rule"] == "faithfulness 0.9, and 1 backup included"
    assert data["backups"]["included"] is True
    (without,) = [e for e in data["backups"]["faithfulness_without"] if e["ablation"] == "resample"]
    assert data["evaluations"][0]["circuit"] != without["circuit"]
    assert data["minimal"] is False
    circuit = Circuit.load(Path(data["folder"]) / "circuit.json")
    assert {"a1.h0->logits", "a0.h1->a1.h0<q>"} <= {str(e) for e in circuit.edges}
    assert len(circuit.edges) == data["counts"]["edges"]
    gated.fails(2, "discover", path, "--include-backups", "--no-backups", says=["leave out --no-backups"])


def test_a_refusal_is_a_note(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **keys: Any) -> None:
        raise circuitfind.CircuitfindError("this cannot be searched", hint="none")

    path = planted_task(cli.folder, "gated-backup")
    with monkeypatch.context() as patch:
        patch.setattr("circuitfind.backups.search.find_backups", refuse)
        found = cli.good("discover", path)
    assert "note: not searched for backups: this cannot be searched" in found.err
    assert "  backups       not searched: this cannot be searched" in found.out
    cli.fails(3, "show", "--backups", says=["has not been searched for backups: this cannot be searched"])
    assert set(cli.states(cli.good("discover", path)).values()) == {"reused"}
    assert cli.states(cli.good("discover", path, "--force"))["backups"] == "finished"


def test_memory_that_runs_out_is_tried_again(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **keys: Any) -> None:
        raise MemoryError

    path = planted_task(cli.folder, "gated-backup")
    with monkeypatch.context() as patch:
        patch.setattr("circuitfind.backups.search.find_backups", full)
        found = cli.good("discover", path)
    assert "note: not searched for backups: memory ran out" in found.err
    assert (cli.run_folder() / "circuit.json").is_file()
    assert cli.states(cli.good("discover", path))["backups"] == "finished"


def test_another_metric_is_searched_in_logit_difference(cli: Cli) -> None:
    path = planted_task(cli.folder, "gated-backup")
    data = cli.good("discover", path, "--metric", "prob-diff", "--json").json
    assert [b["name"] for b in data["backups"]["found"]] == ["a1.h0"]
    assert cli.good("show", "--backups", "--json").json["conditions"]["metric"] == "logit-diff"


# --- from Python --------------------------------------------------------------------------------------------


def test_python_says_the_same(cli: Cli) -> None:
    report = circuitfind.find_backups("gated-backup", count=12, primaries="a0.h1", readers=["logits"])
    words = ["backups", "gated-backup", *COUNT, "--primaries", "a0.h1", "--reader", "logits", "--json"]
    assert cli.states(found := cli.good(*words)) == {"prompts": "reused", "backups": "reused"}
    assert BackupReport.from_dict(found.json).findings == report.findings
