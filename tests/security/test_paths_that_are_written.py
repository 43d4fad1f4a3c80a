"""What is written lies where the user said: links in a folder that somebody sent lead nothing out of it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from circuitfind.check.baseline import Baseline
from circuitfind.check.cases import BASELINES
from circuitfind.check.outcome import Outcome
from circuitfind.check.update import update
from circuitfind.errors import RunError, UsageError
from circuitfind.given import given
from circuitfind.output.files import write_atomic
from circuitfind.output.journal import Record
from circuitfind.output.links import below
from circuitfind.output.lock import FolderLock
from circuitfind.output.manifest import LOCK, MANIFEST, read_manifest
from circuitfind.output.run import Run
from circuitfind.output.store import Store, run_name
from circuitfind.sweep.cells import cells_of
from circuitfind.sweep.run import Place
from circuitfind.sweep.spec import load_sweep
from tests.cli.helpers import Cli
from tests.finished import QuickRun

MINE = "export PATH=mine\n"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of the user's, with a file that nobody may touch."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / ".bashrc").write_text(MINE, encoding="utf-8")
    return folder


@pytest.fixture
def untouched(mine: Path) -> Iterator[Path]:
    """The same, which must be as it was when the test ends."""
    yield mine
    assert sorted(path.name for path in mine.iterdir()) == [".bashrc"]
    assert (mine / ".bashrc").read_text(encoding="utf-8") == MINE


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "outputs")


# --- files --------------------------------------------------------------------------------------------------


def test_a_link_is_replaced_and_not_written_through(untouched: Path, tmp_path: Path) -> None:
    link = tmp_path / "circuit.json"
    link.symlink_to(untouched / ".bashrc")
    write_atomic(link, "new")
    assert not link.is_symlink()
    assert link.read_text(encoding="utf-8") == "new"


def test_files_of_stages_that_are_links(untouched: Path, store: Store) -> None:
    with store.open("ioi", "mini", {}) as run:
        for name in ("scores.npz", "figures/curve.svg"):
            path = run.path / name
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(untouched / ".bashrc")
        (run.path / MANIFEST).unlink()
        (run.path / MANIFEST).symlink_to(untouched / ".bashrc")
        run.finish_stage("scores", "key", {"scores.npz": b"scores", "figures/curve.svg": b"picture"})
    assert not any(path.is_symlink() for path in run.path.rglob("*"))
    assert read_manifest(run.path)["status"] == "finished"


def test_temporary_files_have_names_that_nobody_guesses(
    untouched: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links under every name that was written to once, laid out before it is written to again, are never followed."""
    run = store.open("ioi", "mini", {})
    opened: list[str] = []
    real = Path.open

    def spy(path: Path, *words: object, **keys: object) -> object:
        if words and str(words[0])[:1] in "wx":
            opened.append(path.name)
        return real(path, *words, **keys)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", spy)
    for _ in range(2):
        with run:
            run.write("notes.txt", "once")
        for name in opened:
            if not (run.path / name).exists():
                (run.path / name).symlink_to(untouched / ".bashrc")
    assert len(opened) == len(set(opened)) > 4


@pytest.mark.parametrize("target", [".bashrc", "not-there-yet"])
def test_journals_that_are_links(untouched: Path, store: Store, target: str) -> None:
    """They are opened to be gone on with, not made anew; one that is a link is not."""
    record = Record({"x": 1}, {"y": np.ones(3)})
    with store.open("ioi", "mini", {}) as run:
        path = run.journal("scores", "00" * 32).path
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(untouched / target)
        journal = run.journal("scores", "00" * 32)
        assert not path.is_symlink()
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(untouched / target)  # and once more, behind its back
        journal.put("11" * 32, record)
        assert journal.problem is not None


def test_a_lock_that_is_a_link(untouched: Path, tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(untouched / ".bashrc")
    lock = FolderLock(tmp_path / LOCK)
    lock.acquire()
    lock.release()
    assert not (tmp_path / LOCK).exists()


def test_files_are_the_users_own_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        path = write_atomic(tmp_path / "made" / "private.json", "prompts")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# --- folders ------------------------------------------------------------------------------------------------


def test_a_folder_of_a_run_that_is_a_link(untouched: Path, store: Store) -> None:
    with store.open("ioi", "mini", {}) as run:
        (run.path / "figures").symlink_to(untouched)
        for write in (
            lambda: run.write("figures/curve.svg", "x"),
            lambda: run.finish_stage("views", "key", {"figures/curve.svg": "x"}),
            lambda: run.place("figures"),
        ):
            with pytest.raises(UsageError, match="is a link that leads out of"):
                write()
        with pytest.raises((RunError, UsageError)):
            run.read("figures/.bashrc")


def test_a_link_that_stays_inside(store: Store) -> None:
    with store.open("ioi", "mini", {}) as run:
        (run.path / "charts").mkdir()
        (run.path / "figures").symlink_to("charts")
        assert run.write("figures/curve.svg", "x").read_text() == "x"


def test_a_run_folder_that_is_a_link(untouched: Path, store: Store) -> None:
    name = run_name("ioi", "mini", {})[0]
    store.root.mkdir()
    (store.root / name).symlink_to(untouched)
    with pytest.raises(UsageError, match=r"is a link that leads out of.*nothing is written"):
        store.open("ioi", "mini", {})
    (store.root / name).unlink()
    (store.root / name).symlink_to(untouched / "not-there")
    with pytest.raises(UsageError, match="is a link that leads out of"):
        store.open("ioi", "mini", {})


def test_a_run_that_was_moved_to_another_disk(store: Store, tmp_path: Path) -> None:
    """A link to what is a run already is the user's own."""
    with store.open("ioi", "mini", {}) as run:
        pass
    (tmp_path / "disk").mkdir()
    run.path.rename(tmp_path / "disk" / run.name)
    run.path.symlink_to(tmp_path / "disk" / run.name)
    with store.open("ioi", "mini", {}) as again:
        again.write("notes.txt", "x")
    assert (tmp_path / "disk" / run.name / "notes.txt").is_file()


def test_outputs_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "outputs").symlink_to("disk")
    with Store(tmp_path / "outputs").open("ioi", "mini", {}) as run:
        run.write("figures/curve.svg", "x")
    assert (tmp_path / "disk" / run.name / "figures" / "curve.svg").is_file()


def test_rings_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UsageError, match="is a link that leads out of"):
        below(tmp_path, "a/file")


def test_commands_that_write_into_a_run(
    untouched: Path, cli: Cli, quick_run: QuickRun, tmp_path: Path
) -> None:
    run = quick_run(tmp_path)
    for name in ("figures", "doses"):
        (run / name).symlink_to(untouched)
    cli.fails_loosely(2, "figures", run.name, says=["figures' is a link that leads out of", "--out"])


def test_sweeps_are_named_by_a_slug(untouched: Path, tmp_path: Path) -> None:
    (tmp_path / "..odd..name.yaml").write_text('{"tasks": ["or-gate"]}', encoding="utf-8")
    place = Place(tmp_path / "outputs")
    found = place.folder(cells_of(load_sweep(tmp_path / "..odd..name.yaml")))
    assert found.parent == tmp_path / "outputs"
    found.parent.mkdir()
    found.symlink_to(untouched)
    with pytest.raises(UsageError, match="is a link that leads out of"):
        place.folder(cells_of(load_sweep(tmp_path / "..odd..name.yaml")))


def test_baselines_beside_a_task(untouched: Path, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.mkdir()
    now = Mock(spec=Baseline, complete=True, text=lambda: "{}")
    one = Mock(spec=Outcome, verdict="passes", now=now, baseline=sent / BASELINES / "small.json")
    one.configure_mock(meets_expectations=True, has_baseline=False, reasons=(), label="small")
    (sent / BASELINES).symlink_to(untouched)
    with pytest.raises(UsageError, match="is a link that leads out of"):
        update([one])
    (sent / BASELINES).unlink()
    assert update([one]).new == [one.baseline]
    assert one.baseline.read_text(encoding="utf-8") == "{}"


# --- names that a file gives --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../home/.bashrc", "/etc/passwd", "a/../../x", "..\\x", "", MANIFEST, LOCK])
def test_names_of_files_stay_inside(untouched: Path, store: Store, name: str) -> None:
    with store.open("ioi", "mini", {}) as run:
        for write in (lambda: run.write(name, "x"), lambda: run.finish_stage("s", "k", {name: "x"})):
            with pytest.raises(ValueError, match="no name of a file inside a run folder"):
                write()


@pytest.mark.parametrize("name", ["../../home/.bashrc", "{}/home/.bashrc"])
def test_a_manifest_that_names_files_elsewhere(
    untouched: Path, store: Store, tmp_path: Path, name: str
) -> None:
    """It comes with somebody's run, hashes and all; its stage is not taken, and nothing of it is copied or written."""
    from circuitfind.output.files import file_sha256

    name = name.format(tmp_path)
    with store.open("ioi", "mini", {}) as run:
        run.finish_stage("scores", "key", {"scores.npz": b"scores"})
    manifest = json.loads((run.path / MANIFEST).read_text(encoding="utf-8"))
    entry = {"sha256": file_sha256(untouched / ".bashrc"), "bytes": len(MINE)}
    manifest["stages"]["scores"]["files"] = {name: entry}
    (run.path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(RunError, match="the manifest is damaged at 'stages'"):
        read_manifest(run.path)
    assert store.finished("scores", "key") is None


def test_a_list_of_graphs_that_names_files_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    folder.mkdir()
    (folder / "graph-metadata.json").write_text('{"graphs": [{"slug": "../home/graph"}]}', encoding="utf-8")
    with pytest.raises(UsageError, match="a name leads out of the folder"):
        given(str(folder))


def test_what_a_run_keeps_is_not_what_it_is_called(store: Store, untouched: Path) -> None:
    """Names of tasks and models from anywhere become names of folders below the outputs folder."""
    for name in ("../../home", "/etc", "..", "a/b\\c", "\x00", "~", "CON", "-rf", "x" * 300):
        run = store.open(name, name, {"x": name})
        assert isinstance(run, Run)
        assert run.path.parent == store.root
        assert run.path.resolve().parent == store.root.resolve()
