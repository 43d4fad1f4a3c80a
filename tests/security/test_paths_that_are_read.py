"""Files that a task file or a sweep file names: its own, and others only where the user says so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from circuitfind import allowing
from circuitfind.errors import TaskError
from circuitfind.session import prompt_files
from circuitfind.sweep.spec import load_sweep
from circuitfind.task.outside import named_file
from circuitfind.task.rows import rows_files
from circuitfind.task.spec import TaskSpec, find_tasks, load_task
from tests.cli.helpers import Cli
from tests.security.conftest import SECRET

FLAG = "--read-outside"
ROW = {"clean": f"{SECRET} a", "corrupted": f"{SECRET} b", "answer": "a", "wrong": "b"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that somebody sent, beside files that are none of its business."""
    for folder in (tmp_path / "mine", tmp_path / "sent" / "below"):
        folder.mkdir(parents=True)
        for name in ("pairs.jsonl", "train.jsonl"):
            (folder / name).write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    (tmp_path / "mine" / "token.csv").write_text(f"{SECRET},b\n1,2\n", encoding="utf-8")
    (tmp_path / "mine" / "key.yaml").write_text(f"{SECRET}: {SECRET}\n", encoding="utf-8")
    return tmp_path / "sent"


def task(place: Path, **prompts: Any) -> Path:
    """A task file among those that were sent."""
    path = place / "task.yaml"
    data = {"name": "small", "model": "mini", "prompts": prompts}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def dataset(folder: str) -> dict[str, Any]:
    keys: dict[str, Any] = {"name": "own/rows", "folder": folder, "clean": "{clean}", "answer": "{answer}"}
    return {**keys, "corrupted": {"one": "{corrupted}"}, "wrong": "{wrong}"}


def link(place: Path, name: str, target: str) -> None:
    (place / name).symlink_to(target)


OUTSIDE = [
    "../mine/pairs.jsonl",
    "below/../../mine/pairs.jsonl",
    "~/pairs.jsonl",
    "/etc/passwd",
    "link.jsonl",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_prompt_files_lie_beside_the_task_or_below(
    place: Path, cli: Cli, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place.parent / "mine"))
    link(place, "link.jsonl", "../mine/pairs.jsonl")
    path = task(place, file=name)
    for words in (("discover", path), ("prompts", "show", path)):
        told = cli.fails_loosely(2, *words, says=["task.yaml:1 (prompts.file)", f"'{name}'", FLAG])
        assert SECRET not in told.out + told.err
    assert not cli.outputs.exists()


@pytest.mark.parametrize("name", ["below/pairs.jsonl", "./below/../below/pairs.jsonl", "near.jsonl"])
def test_its_own_files_are_read(place: Path, name: str) -> None:
    link(place, "near.jsonl", "below/pairs.jsonl")
    spec = load_task(task(place, file=name))
    assert len(prompt_files(spec)) == 1


def test_a_task_behind_a_link_has_the_files_of_both_places(place: Path, tmp_path: Path) -> None:
    real = task(place, file="below/pairs.jsonl")
    shelf = tmp_path / "shelf"
    (shelf / "below").mkdir(parents=True)
    (shelf / "task.yaml").symlink_to(real)
    (shelf / "below" / "pairs.jsonl").symlink_to(place / "below" / "pairs.jsonl")
    assert len(prompt_files(load_task(shelf / "task.yaml"))) == 1


@pytest.mark.parametrize("name", OUTSIDE[:2] + OUTSIDE[4:])
def test_with_the_flag_others_are_read(place: Path, name: str) -> None:
    link(place, "link.jsonl", "../mine/pairs.jsonl")
    spec = load_task(task(place, file=name))
    with allowing(read_outside=True):
        assert len(prompt_files(spec)) == 1


def test_the_flag_reaches_the_task(place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    path = task(place, file="../mine/token.csv")
    says = ["mine/token.csv:1: 'clean' is missing"]
    cli.fails_loosely(2, "prompts", "show", path, FLAG, says=says)
    monkeypatch.setenv("CIRCUITFIND_READ_OUTSIDE", "1")
    cli.fails_loosely(2, "prompts", "show", path, says=says)
    cli.fails_loosely(2, "prompts", "show", path, "--no-read-outside", says=[FLAG])


@pytest.mark.parametrize("folder", ["../mine", "/etc", "below/../../mine", "linked"])
def test_rows_lie_beside_the_task_or_below(place: Path, folder: str) -> None:
    link(place, "linked", "../mine")
    spec = load_task(task(place, dataset=dataset(folder)))
    with pytest.raises(TaskError, match=r"outside of the folder|is a link out of") as told:
        prompt_files(spec)
    assert FLAG in told.value.hint


def test_a_file_of_rows_that_is_a_link_out(place: Path) -> None:
    spec = load_task(task(place, dataset=dataset("below")))
    assert len(prompt_files(spec)) == 1
    (place / "below" / "train.jsonl").unlink()
    (place / "below" / "train.jsonl").symlink_to("../../mine/train.jsonl")
    with pytest.raises(TaskError, match=r"'train\.jsonl' is a link out of the folder"):
        prompt_files(spec)
    with allowing(read_outside=True):
        assert len(prompt_files(spec)) == 1


@pytest.mark.parametrize("name", ["..", "../..", "own/..", ".hidden", "a/../b", "/etc"])
def test_names_of_data_sets_are_names(place: Path, name: str) -> None:
    with pytest.raises(TaskError, match="characters that a name may not have"):
        load_task(task(place, dataset=dataset("below") | {"name": name}))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_not_waited_for(place: Path) -> None:
    os.mkfifo(place / "pipe.csv")
    with pytest.raises(TaskError, match="is a device or a pipe"):
        prompt_files(load_task(task(place, file="pipe.csv")))


def test_rings_of_links_and_impossible_names_are_outside(place: Path) -> None:
    link(place, "ring.csv", "ring.csv")
    for name in ("ring.csv", "x\0y.csv"):
        with pytest.raises(TaskError, match="the folder of the file that names it"):
            named_file(place / "task.yaml", name, "here")


def test_a_task_made_in_python_names_what_it_likes(place: Path) -> None:
    rows = TaskSpec.model_validate(
        {"name": "small", "prompts": {"dataset": dataset(str(place.parent / "mine"))}}
    )
    assert rows.path is None
    assert rows.prompts.dataset is not None
    assert len(rows_files(rows.prompts.dataset, None)) == 1


def test_every_task_of_the_repository_names_its_own_files() -> None:
    repository = Path(__file__).resolve().parents[2]
    found = find_tasks([repository / "tasks"])
    assert len(found) > 40
    for path in found.values():
        spec = load_task(path)
        if spec.prompts.file is not None:
            prompt_files(spec)


# --- sweeps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../mine/key.yaml", "link.yaml", "{}/mine/key.yaml"])
def test_tasks_of_a_sweep_lie_beside_it_or_below(place: Path, cli: Cli, name: str) -> None:
    name = name.format(place.parent)
    link(place, "link.yaml", "../mine/key.yaml")
    (place / "sweep.yaml").write_text(json.dumps({"tasks": [name]}), encoding="utf-8")
    told = cli.fails_loosely(2, "sweep", place / "sweep.yaml", says=["sweep.yaml:1 (tasks[0])", FLAG])
    assert SECRET not in told.out + told.err
    cli.fails_loosely(
        2, "sweep", place / "sweep.yaml", FLAG, says=["key.yaml:1", "the key 'name' is missing"]
    )


def test_tasks_of_a_sweep_may_lie_where_tasks_are_looked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = place.parent / "shelf"
    shelf.mkdir()
    text = "name: mine\nmodel: planted/and-gate\nprompts: {zoo: {count: 8}}\n"
    (shelf / "mine.yaml").write_text(text, encoding="utf-8")
    sweep = {"tasks": [str(shelf / "mine.yaml"), "ioi"], "methods": "eap"}
    (place / "sweep.yaml").write_text(json.dumps(sweep), encoding="utf-8")
    with pytest.raises(TaskError, match="lies outside of the folder"):
        load_sweep(place / "sweep.yaml")
    monkeypatch.setenv("CIRCUITFIND_TASKS", str(shelf))
    assert [one.name for one in load_sweep(place / "sweep.yaml").task_specs] == ["mine", "ioi"]
