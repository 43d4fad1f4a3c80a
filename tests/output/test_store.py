"""Run folders: resume, damage, locks, finding."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from circuitfind.errors import RunError, UsageError
from circuitfind.output.manifest import LOCK, MANIFEST
from circuitfind.output.provenance import git_state, versions, without_credentials
from circuitfind.output.run import Run
from circuitfind.output.store import Store, run_name, stage_key

CONFIG = {"task": "ioi", "target": 0.9, "ablation": "resample"}
KEY = stage_key("scores", 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "outputs")


def finished(store: Store, task: str = "ioi", model: str = "gpt2", **config: Any) -> Run:
    with store.open(task, model, {**CONFIG, **config}) as run:
        run.finish_stage("scores", KEY, {"scores.json": "{}", "deep/note.txt": b"hello"}, {"seconds": 1.5})
    return run


# Where runs are.


def test_the_same_configuration_finds_the_same_folder(store: Store) -> None:
    run = finished(store)
    assert run.name.startswith("ioi-gpt2-")
    assert store.open("ioi", "gpt2", dict(reversed(CONFIG.items()))).path == run.path
    assert store.open("ioi", "gpt2", {**CONFIG, "target": 0.8}).path != run.path


@pytest.mark.parametrize(
    ("model", "start"),
    [
        ("EleutherAI/pythia-70m", "ioi-pythia-70m-"),
        ("../../etc/passwd", "ioi-passwd-"),
        ("C:\\models\\my model\\", "ioi-my-model-"),
        ("..", "ioi-unnamed-"),
        ("ü/é", "ioi-unnamed-"),
    ],
)
def test_names_are_made_safe_for_files(store: Store, model: str, start: str) -> None:
    name, identity = run_name("ioi", model, CONFIG)
    assert name == f"{start}{identity}"
    assert store.open("ioi", model, CONFIG).path.parent == store.root


def test_models_of_the_same_last_name_do_not_share_a_folder() -> None:
    assert run_name("ioi", "a/model", CONFIG) != run_name("ioi", "b/model", CONFIG)


def test_the_root_is_the_argument_then_the_variable_then_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Store().root == Path("outputs")
    monkeypatch.setenv("CIRCUITFIND_OUTPUTS", str(tmp_path / "elsewhere"))
    assert Store().root == tmp_path / "elsewhere"
    assert Store(tmp_path).root == tmp_path


def test_looking_for_a_run_makes_nothing(store: Store) -> None:
    assert store.existing("ioi", "gpt2", CONFIG) is None
    assert store.runs() == []
    assert not store.root.exists()
    finished(store)
    existing = store.existing("ioi", "gpt2", CONFIG)
    assert existing is not None
    assert existing.stage("scores", KEY) is not None


def test_an_output_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written to"):
        Store(tmp_path / "file").open("ioi", "gpt2", CONFIG)


# Stages.


def test_a_finished_stage_is_found_again(store: Store) -> None:
    finished(store)
    stage = store.open("ioi", "gpt2", CONFIG).stage("scores", KEY)
    assert stage is not None
    assert stage.read("deep/note.txt") == b"hello"
    assert stage.facts["seconds"] == 1.5
    assert store.open("ioi", "gpt2", CONFIG).stage("scores", stage_key("scores", 2)) is None
    assert store.open("ioi", "gpt2", CONFIG).stage("prune", KEY) is None


@pytest.mark.parametrize("damage", ["change", "delete", "truncate"])
def test_a_damaged_file_makes_the_stage_run_again(
    store: Store, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    run = finished(store)
    path = run.path / "deep" / "note.txt"
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(b"hellx" if damage == "change" else b"")
    with caplog.at_level(logging.WARNING), store.open("ioi", "gpt2", CONFIG) as again:
        assert again.stage("scores", KEY) is None
        assert "deep/note.txt is missing or was changed" in caplog.text
        again.finish_stage("scores", KEY, {"deep/note.txt": b"hello"})
        assert again.stage("scores", KEY) is not None


def test_a_stage_that_could_not_be_written_is_not_finished(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    finished(store)
    run = store.open("ioi", "gpt2", CONFIG)
    with run:
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(RunError, match="no space left"):
            run.finish_stage("prune", "k", {"circuit.json": "{}"})
        monkeypatch.undo()
    assert calls
    again = store.open("ioi", "gpt2", CONFIG)
    assert again.stage("prune", "k") is None
    assert again.stage("scores", KEY) is not None
    assert not (run.path / LOCK).exists()
    assert not list(run.path.glob(".*"))


def test_an_interruption_between_files_and_manifest_leaves_the_old_stage_invalid(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(store)

    def stop(self: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            run.finish_stage("scores", "other", {"scores.json": "new"})
    again = store.open("ioi", "gpt2", CONFIG)
    assert again.stage("scores", KEY) is None
    assert again.stage("scores", "other") is None


@pytest.mark.parametrize("name", ["", "../out", "/etc/x", "a/../../b", MANIFEST, LOCK, "a\\b"])
def test_files_stay_inside_the_run_folder(store: Store, name: str) -> None:
    run = finished(store)
    with pytest.raises(ValueError, match="no name of a file"):
        run.write(name, "x")


def test_other_files_can_be_written_and_read(store: Store) -> None:
    run = store.find(finished(store).name)
    run.write("circuit.svg", "<svg/>")
    assert run.read("circuit.svg") == b"<svg/>"
    with pytest.raises(RunError, match=r"no readable missing\.json"):
        run.read("missing.json")


# The manifest and the end of a run.


def test_the_manifest_says_where_a_result_comes_from(store: Store) -> None:
    with store.open("ioi", "EleutherAI/pythia-70m", {**CONFIG, "path": Path("a/b"), "odd": math.nan}) as run:
        assert run.status == "running"
        run.record(device="cpu", dtype="float32", seeds={"prompts": 0})
        run.record(hashes={"task": "ab"}, seeds={"bootstrap": 1})
        run.finish_stage(
            "scores", KEY, {"a.txt": "x"}, {"seconds": 0.5, "forward_passes": 2, "backward_passes": 1}
        )
    found = json.loads((run.path / MANIFEST).read_text(encoding="utf-8"))
    assert found == run.manifest
    assert (found["format"], found["version"], found["model"]) == (
        "circuitfind.run",
        1,
        "EleutherAI/pythia-70m",
    )
    assert found["config"] == {**CONFIG, "path": "a/b", "odd": {"float": "nan"}}
    assert found["seeds"] == {"prompts": 0, "bootstrap": 1}
    assert found["hashes"] == {"task": "ab"}
    assert found["device"] == "cpu"
    assert found["status"] == "finished"
    assert found["started"] <= found["stages"]["scores"]["finished"] <= found["ended"]
    assert found["stages"]["scores"]["facts"]["forward_passes"] == 2
    assert found["stages"]["scores"]["files"]["a.txt"]["bytes"] == 1
    assert {"python", "numpy", "torch", "networkx"} <= found["versions"].keys()
    with pytest.raises(TypeError):
        run.record(colour="red")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (RunError("broke", hint="mend it"), "failed"),
        (UsageError("that is none", hint="choose another"), "refused"),
        (ValueError("x"), "failed"),
    ],
)
def test_what_is_finished_stays_when_a_run_ends_early(
    store: Store, error: BaseException, status: str
) -> None:
    run = store.open("ioi", "gpt2", CONFIG)
    run.finish_stage("scores", KEY, {"scores.json": "{}"})
    with pytest.raises(type(error)), run:
        raise error
    again = store.open("ioi", "gpt2", CONFIG)
    assert again.status == status
    assert again.stage("scores", KEY) is not None
    assert (again.manifest["error"] is None) == (status == "interrupted")
    with again:
        pass
    assert store.find(again.name).status == "finished"
    assert store.find(again.name).manifest["error"] is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": "other"}',
        '{"format": "circuitfind.run", "version": 1}',
        "\ud800",
    ],
)
def test_a_damaged_manifest_is_listed_and_set_aside(
    store: Store, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    good = finished(store, target=0.5)
    run = finished(store)
    (run.path / MANIFEST).write_bytes(text.encode("utf-8", errors="surrogatepass"))
    listed = {info.name: info for info in store.runs()}
    assert listed[run.name].status == "damaged"
    assert listed[run.name].problem
    assert store.find("latest").name == good.name
    with pytest.raises(RunError):
        store.find(run.name)
    with caplog.at_level(logging.WARNING), store.open("ioi", "gpt2", CONFIG) as again:
        assert again.stage("scores", KEY) is None
    assert "begins anew" in caplog.text
    assert (run.path / f"{MANIFEST}.damaged").exists()
    assert store.find(run.name).status == "finished"


def test_damaged_stages_are_damage(store: Store) -> None:
    run = finished(store)
    manifest = run.manifest
    manifest["stages"]["scores"]["files"] = {"scores.json": None}
    (run.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="damaged at 'stages'"):
        store.find(run.name)


# One writer at a time.


def write_lock(run: Run, **owner: Any) -> None:
    (run.path / LOCK).write_text(json.dumps(owner))


def test_two_runs_cannot_write_to_one_folder(store: Store) -> None:
    with store.open("ioi", "gpt2", CONFIG):
        second = store.open("ioi", "gpt2", CONFIG)
        with pytest.raises(RunError, match=f"process {os.getpid()}") as caught, second:
            pass
        assert LOCK in caught.value.hint
        assert second.status == "running"
    with second:
        pass


def test_a_living_process_keeps_its_lock(store: Store) -> None:
    run = finished(store)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        write_lock(run, pid=sleeper.pid, host=socket.gethostname())
        with pytest.raises(RunError, match=f"process {sleeper.pid}"), run:
            pass
    finally:
        sleeper.kill()
        sleeper.wait()
    with run:
        pass


@pytest.mark.parametrize("owner", [{"pid": "x"}, {"pid": -1}, {"pid": os.getpid()}, {"pid": 2**22 + 1}])
def test_a_stale_lock_is_taken_over(store: Store, owner: dict[str, Any]) -> None:
    run = finished(store)
    write_lock(run, host=socket.gethostname(), **owner)
    with run:
        pass
    assert not (run.path / LOCK).exists()


def test_a_lock_that_cannot_be_read_is_stale(store: Store) -> None:
    run = finished(store)
    (run.path / LOCK).write_text("{")
    with run:
        pass


def test_a_lock_of_another_machine_is_kept(store: Store) -> None:
    run = finished(store)
    write_lock(run, pid=1, host="elsewhere")
    with pytest.raises(RunError, match="on elsewhere"):
        run.finish_stage("prune", "k", {"x": "y"})
    assert (run.path / LOCK).exists()


def test_a_killed_run_shows_as_interrupted(store: Store) -> None:
    code = (
        "import os, sys; from circuitfind.output.store import Store\n"
        "run = Store(sys.argv[1]).open('ioi', 'gpt2', {'a': 1}); run.__enter__()\n"
        "run.finish_stage('scores', 'k', {'x': 'y'}); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.root)], check=False, timeout=60)
    assert done.returncode == 9
    (info,) = store.runs()
    assert info.status == "interrupted"
    with store.open("ioi", "gpt2", {"a": 1}) as run:
        assert run.stage("scores", "k") is not None


def test_only_one_of_many_processes_gets_the_lock(store: Store) -> None:
    run = finished(store)
    write_lock(run, pid=2**22 + 1, host=socket.gethostname())
    code = (
        "import sys; from circuitfind.output.lock import FolderLock; from pathlib import Path\n"
        "from circuitfind.errors import RunError\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: FolderLock(Path(sys.argv[1])).acquire(); print('got', flush=True)\n"
        "except RunError: print('no', flush=True)\n"
        "sys.stdin.read()"  # the lock is held until all have answered
    )
    command = [sys.executable, "-c", code, str(run.path / LOCK)]
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    ends = [(racer.stdin, racer.stdout) for racer in racers]
    assert all(out is not None and out.readline() == "ready\n" for _, out in ends)
    for go, _ in ends:
        assert go is not None
        go.write("\n")
        go.flush()
    said = [out.readline().strip() for _, out in ends if out is not None]
    for racer in racers:
        racer.communicate(timeout=60)
    assert sorted(said) == ["got", "no", "no", "no"]


# Finding.


def test_runs_are_listed_newest_first(store: Store) -> None:
    names = [finished(store, target=target).name for target in (0.1, 0.2, 0.3)]
    assert [info.name for info in store.runs()] == names[::-1]
    info = store.runs()[0]
    assert (info.task, info.model, info.status, info.stages) == ("ioi", "gpt2", "finished", ("scores",))
    (store.root / "not-a-run").mkdir()
    (store.root / "file").write_text("")
    assert len(store.runs()) == 3


def test_a_run_is_found_by_name_prefix_path_or_latest(store: Store) -> None:
    first = finished(store)
    second = finished(store, task="greater-than")
    for name in (first.name, "ioi", first.name[:-3], str(first.path)):
        assert store.find(name).path == first.path
    assert store.find("latest").path == second.path


def test_an_ambiguous_or_unknown_name_says_what_there_is(store: Store) -> None:
    with pytest.raises(UsageError, match="no runs") as caught:
        store.find("latest")
    assert "discover" in caught.value.hint
    with pytest.raises(UsageError, match="no run 'ioi'"):
        store.find("ioi")
    first, second = finished(store), finished(store, target=0.2)
    with pytest.raises(UsageError, match="beginning of 2 runs") as caught:
        store.find("ioi")
    assert set(caught.value.details) == {first.name, second.name}
    wrong = first.name.replace("gpt2", "gpt3")
    with pytest.raises(UsageError, match=wrong) as caught:
        store.find(wrong)
    assert first.name in caught.value.hint
    for name in ("", "..", "/nowhere"):
        with pytest.raises(UsageError):
            store.find(name)


# Provenance.


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://me:secret@host/a/b.git", "https://host/a/b.git"),
        ("https://token@host:8443/a", "https://host:8443/a"),
        ("https://a@b:p@ss@host/x@y", "https://host/x@y"),
        ("https://host/a?access_token=1#x", "https://host/a"),
        ("ssh://git@host/a", "ssh://host/a"),
        ("git@host:org/repo.git", "git@host:org/repo.git"),
        ("/srv/repo", "/srv/repo"),
    ],
)
def test_credentials_are_left_out(url: str, clean: str) -> None:
    assert without_credentials(url) == clean


def test_git_state_of_a_repository_and_of_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True, timeout=60
        )

    git("init")
    assert git_state(tmp_path) is None, "no commit yet"
    git("commit", "--allow-empty", "-m", "first")
    git("remote", "add", "origin", "https://me:secret@example.org/repo.git")
    state = git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert (state["dirty"], state["origin"]) == (False, "https://example.org/repo.git")
    (tmp_path / "new").write_text("")
    assert git_state(tmp_path) == {**state, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def test_versions_import_nothing_heavy() -> None:
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))
    code = "import sys, circuitfind.output.store; assert not {'torch', 'transformers', 'networkx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_example_in_the_documentation_has_the_keys_of_a_manifest(store: Store) -> None:
    page = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text(encoding="utf-8")
    example = json.loads(page.split("```json")[1].split("```")[0])
    manifest = finished(store).manifest
    assert list(example) == list(manifest)
    assert example["stages"]["scores"].keys() == manifest["stages"]["scores"].keys()
    assert example["versions"].keys() == manifest["versions"].keys()
    assert example["platform"].keys() == manifest["platform"].keys()


def test_a_folder_that_is_no_run(store: Store, tmp_path: Path) -> None:
    finished(store)
    (tmp_path / "figures").mkdir()
    with pytest.raises(UsageError, match=r"figures' is a folder without a manifest\.json"):
        store.find(str(tmp_path / "figures"))
