"""Finished stages are reused by what they depend on, and by nothing else; a plan says so and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import Cli, Toy

ALL = ["prompts", "scores", "circuit", "backups", "evidence", "views", "pictures"]

TASK = """\
name: small
model: planted/and-gate
prompts:
  zoo: {count: 8}
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A small task in a file."""
    path = tmp_path / "small.yaml"
    path.write_text(TASK, encoding="utf-8")
    return path


@pytest.fixture
def without_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on no model can be loaded."""

    def forbid() -> None:
        def boom(*args: Any, **keys: Any) -> None:
            raise AssertionError("a model was loaded")

        monkeypatch.setattr("circuitfind.model.load.load_model", boom)

    return forbid


def reused(*names: str) -> dict[str, str]:
    """These stages reused, the others run."""
    return {name: "reused" if name in names else "finished" for name in ALL}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder with its time and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- the same command again ---------------------------------------------------------------------------------


def test_second_run_loads_no_model_and_says_the_same(
    cli: Cli, task: Path, without_model: Callable[[], None]
) -> None:
    first = cli.good("discover", task)
    assert cli.states(first) == reused()
    as_json = cli.good("discover", task, "--json")
    without_model()
    second = cli.good("discover", task)
    assert cli.states(second) == reused(*ALL)
    assert second.out == first.out
    assert cli.good("discover", task, "--json").out == as_json.out


def test_force_runs_everything(cli: Cli, task: Path) -> None:
    cli.good("discover", task)
    before = snapshot(cli.run_folder())
    assert cli.states(cli.good("discover", task, "--force")) == reused()
    after = snapshot(cli.run_folder())
    assert before.keys() == after.keys()
    for name in ("prompts.jsonl", "circuit.json", "circuit.svg"):
        assert before[name][0] < after[name][0], "written again"
        assert before[name][1] == after[name][1], "with the same content"


@pytest.mark.parametrize("change", ["missing", "flipped", "cut"])
def test_damaged_scores_are_made_again(cli: Cli, task: Path, change: str) -> None:
    first = cli.good("discover", task, "--json").json
    path = cli.run_folder() / "scores.npz"
    whole = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(
            whole[:-20] if change == "cut" else bytes([*whole[:99], whole[99] ^ 1, *whole[100:]])
        )
    damaged = cli.fails(3, "show", says=["no finished stage 'scores'", "same discover command again"])
    assert "scores.npz is missing or was changed" in damaged.err
    again = cli.good("discover", task)
    assert cli.states(again) == reused("prompts", "circuit", "backups", "evidence", "views", "pictures")
    assert "note: " in again.err
    assert "no finished stage" not in again.err
    assert "scores.npz is missing or was changed; stage 'scores' has to run again" in again.err
    assert "note: " not in cli.good("show").err
    last = cli.good("discover", task, "--json").json
    assert last["counts"] == first["counts"]


def test_damaged_manifest(cli: Cli, task: Path) -> None:
    cli.good("discover", task)
    manifest = cli.run_folder() / "manifest.json"
    manifest.write_text("{", encoding="utf-8")
    (listed,) = cli.good("list", "runs", "--json").json["runs"]
    assert listed["status"] == "damaged"
    assert "cannot be read" in listed["note"]
    assert "damaged" in cli.good("list", "runs").out
    cli.fails_loosely(2, "show", says=["no runs in"])
    cli.fails_loosely(3, "show", cli.run_folder().name, says=["manifest.json", "cannot be read"])
    again = cli.good("discover", task)
    assert "begins anew" in again.err
    assert cli.states(again) == reused()


# --- what a change makes run again --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--faithfulness", "0.5"], ["prompts", "scores"]),
        pytest.param(["--edges", "5"], ["prompts", "scores"], marks=pytest.mark.slow),
        (["--include-backups"], ["prompts", "scores", "circuit"]),
        (["--method", "activation-patching"], ["prompts"]),
        pytest.param(["--option", "verify=3"], ["prompts"], marks=pytest.mark.slow),
        (["--positions", "all"], ["prompts"]),
        pytest.param(["--precision", "bf16"], ["prompts"], marks=pytest.mark.slow),
        (["--ablation", "zero"], ["prompts"]),
        pytest.param(["--direction", "denoising"], ["prompts"], marks=pytest.mark.slow),
        pytest.param(["--metric", "prob-diff"], [], marks=pytest.mark.slow),
        (["--count", "7"], []),
        pytest.param(["--seed", "1"], [], marks=pytest.mark.slow),
        (["--model", "planted/and-gate:1"], []),
    ],
    ids=lambda value: value[0].strip("-") if value and value[0].startswith("--") else "",
)
def test_a_flag_runs_what_depends_on_it(cli: Cli, task: Path, flags: list[str], kept: list[str]) -> None:
    cli.good("discover", task)
    planned = cli.good("discover", task, *flags, "--dry-run", "--json").json
    assert [stage["name"] for stage in planned["stages"] if stage["state"] == "cached"] == kept
    assert cli.states(cli.good("discover", task, *flags)) == reused(*kept)
    assert len(list(cli.outputs.iterdir())) == 2, "another configuration, another folder"
    assert cli.states(cli.good("discover", task)) == reused(*ALL), "the first is still there"


def test_other_pictures_run_only_the_pictures(
    cli: Cli, task: Path, without_model: Callable[[], None]
) -> None:
    cli.good("discover", task)
    without_model()
    words = ["discover", task, "--format", "svg", "--format", "png"]
    planned = cli.good(*words, "--dry-run")
    assert "only the pictures" in planned.out
    assert cli.states(cli.good(*words)) == reused(
        "prompts", "scores", "circuit", "backups", "evidence", "views"
    )
    assert "everything is cached" in cli.good(*words, "--dry-run").out
    assert (cli.run_folder() / "circuit.png").is_file()


def test_another_content_of_the_task_is_another_run(cli: Cli, task: Path) -> None:
    cli.good("discover", task)
    task.write_text("# a comment changes nothing\n" + TASK, encoding="utf-8")
    assert cli.states(cli.good("discover", task)) == reused(*ALL)
    task.write_text(TASK.replace("count: 8", "count: 9"), encoding="utf-8")
    assert cli.states(cli.good("discover", task)) == reused()
    assert len(list(cli.outputs.iterdir())) == 2


def test_another_content_of_the_prompt_file_is_another_run(cli: Cli, toy: Toy) -> None:
    lines = ["clean,corrupted,answer,wrong"]
    lines += [",".join([p["clean"], p["corrupted"], p["answer"], p["wrong"]]) for p in toy.pairs]
    (toy.folder / "p.csv").write_text("\n".join(lines), encoding="utf-8")
    path = toy.task(prompts={"file": "p.csv"})
    cli.good("discover", path)
    assert cli.states(cli.good("discover", path)) == reused(*ALL)
    (toy.folder / "p.csv").write_text("\n".join(lines[:-1]), encoding="utf-8")
    assert cli.states(cli.good("discover", path)) == reused()


def test_other_weights_are_another_run(cli: Cli, toy: Toy) -> None:
    from safetensors.torch import load_file, save_file

    path = toy.task()
    cli.good("discover", path)
    weights = toy.model / "model.safetensors"
    state = load_file(weights)
    state["unembed.W_U"] = state["unembed.W_U"] * 1.5
    save_file(state, weights)
    assert cli.states(cli.good("discover", path)) == reused()
    assert len(list(cli.outputs.iterdir())) == 2


def test_run_folder_is_whole(cli: Cli, task: Path) -> None:
    import json

    cli.good("discover", task)
    folder = cli.run_folder()
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "prompts.jsonl",
        "scores.npz",
        "pruned.json",
        "backups.json",
        "evidence.json",
        "views.json",
        "circuit.json",
        "circuit.dot",
        "circuit.svg",
        "report.html",
    }
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "finished"
    assert manifest["device"] == "cpu"
    assert manifest["dtype"] == "float32"
    assert manifest["seeds"] == {"prompts": 0, "bootstrap": 0}
    assert manifest["hashes"].keys() == {"task", "model", "prompts"}
    settings = manifest["config"]["settings"]
    assert (settings["method"], settings["options"]) == ("hybrid", {})
    assert (settings["positions"], settings["precision"]) == ("none", "fp32")
    assert list(manifest["stages"]) == ALL
    for stage in manifest["stages"].values():
        assert {"seconds", "forward_passes", "backward_passes"} <= stage["facts"].keys()
    assert manifest["stages"]["scores"]["facts"]["backward_passes"] == 5
    prompts = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    assert len(prompts) == 8
    assert all(prompt["kept"] for prompt in prompts)


def test_outputs_by_flag_and_by_environment(cli: Cli, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.good("discover", task, "--outputs", "one")
    monkeypatch.setenv("CIRCUITFIND_OUTPUTS", "two")
    assert cli.states(cli.good("discover", task)) == reused()
    assert cli.states(cli.good("discover", task, "--outputs", "one")) == reused(*ALL)
    assert "run           two/" in cli.good("show").out
    assert not cli.outputs.exists()


# --- plans --------------------------------------------------------------------------------------------------


def test_dry_run_writes_nothing(cli: Cli, task: Path) -> None:
    before = sorted(cli.folder.rglob("*"))
    found = cli.good("discover", task, "--dry-run")
    assert sorted(cli.folder.rglob("*")) == before
    words = ("forward", "backward", "memory", "8 prompt pairs", "1 batch of at most 8 pairs", "all kept")
    for word in ("plan for small-and-gate-", *ALL, *words):
        assert word in found.out
    assert "nothing was written" in found.out
    assert "cached" not in found.out
    plan = cli.good("discover", task, "--dry-run", "--json").json
    assert plan["version"] == 1
    assert [stage["name"] for stage in plan["stages"]] == ALL
    assert {stage["state"] for stage in plan["stages"]} == {"run"}
    by_name = {stage["name"]: stage for stage in plan["stages"]}
    # Every edge of so small a model is patched: 46 of them, beside what EAP-IG takes.
    assert (by_name["scores"]["forward"], by_name["scores"]["backward"]) == (7 + 46, 5)
    assert plan["memory_bytes"] > 0
    assert plan["seconds"] > 0
    assert plan["prompts"] == 8
    assert sorted(cli.folder.rglob("*")) == before
    run = cli.good("discover", task, "--json").json
    assert run["run"] == plan["run"], "the plan is of the run that then is made"
    assert run["circuits_tried"] <= by_name["circuit"]["forward"]


def test_dry_run_of_a_finished_run(cli: Cli, task: Path, without_model: Callable[[], None]) -> None:
    cli.good("discover", task)
    before = snapshot(cli.outputs)
    without_model()
    found = cli.good("discover", task, "--dry-run")
    assert found.out.count("cached") == 8
    assert "the model would not be loaded" in found.out
    plan = cli.good("discover", task, "--dry-run", "--json").json
    assert {stage["state"] for stage in plan["stages"]} == {"cached"}
    assert snapshot(cli.outputs) == before


def test_dry_run_with_force(cli: Cli, task: Path) -> None:
    cli.good("discover", task)
    plan = cli.good("discover", task, "--dry-run", "--force", "--json").json
    assert {stage["state"] for stage in plan["stages"]} == {"run"}


def test_dry_run_refuses_what_the_run_refuses(cli: Cli, toy: Toy) -> None:
    cli.fails(2, "discover", toy.with_pair(answer="w12"), "--dry-run", says=["both answer and wrong answer"])
    assert not cli.outputs.exists()
