"""Disks that are full, folders that go away, clocks that jump, files that are damaged: a run ends in plain words, and the
next one goes on.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitfind.cli import run as command
from circuitfind.errors import RunError, UsageError
from circuitfind.output import manifest as manifest_module
from circuitfind.output.lock import FolderLock
from circuitfind.output.manifest import LOCK, MANIFEST, read_manifest
from circuitfind.output.owner import began, host, is_alive, sweep, temporary_name
from circuitfind.output.store import Run, Store
from tests.finished import plainly
from tests.resilience.killing import contents, in_child, litter

TASK = "{name: small, model: planted/and-gate, prompts: {zoo: {count: 8}}}"
QUICK = ("--method", "eap", "--no-backups", "--controls", "none", "--no-views")
WHOLE = ("discover", "small.yaml", "--outputs", "outputs", *QUICK)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "small.yaml").write_text(TASK, encoding="utf-8")
    with plainly(folder):
        assert command([*WHOLE, "-q"]) == 0
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As many as the run that others are compared with: with more, the last bits differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path) -> Path:
    """A folder with the task, in which commands run."""
    for name in ("CIRCUITFIND_OUTPUTS", "CIRCUITFIND_TASKS", "CIRCUITFIND_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(whole / "small.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def done(here: Path, whole: Path) -> Path:
    """The folder of a finished run."""
    shutil.copytree(whole / "outputs", here / "outputs")
    return run_folder(here)


def run_folder(folder: Path) -> Path:
    (found,) = (path for path in (folder / "outputs").iterdir() if path.is_dir())
    return found


def plain(error: str) -> None:
    assert "error: " in error
    assert "\nhint: " in error
    assert "Traceback" not in error
    assert "should not happen" not in error


# --- Disks --------------------------------------------------------------------------------------------------


class Failing:
    """Makes the n-th call that changes a file fail, and all after it while the fault lasts."""

    def __init__(self, code: int, at: int) -> None:
        self.code, self.at, self.calls = code, at, 0

    def install(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self._folder = str(folder)
        patch.setattr(os, "fsync", self._around(os.fsync))
        patch.setattr(os, "write", self._around(os.write))
        patch.setattr(Path, "replace", self._around(Path.replace))
        patch.setattr(Path, "mkdir", self._around(Path.mkdir))

    def _around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **keys: Any) -> Any:
            self.calls += 1
            if self.calls > self.at:
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **keys)

        return wrapped


def fails_and_goes_on(
    here: Path, whole: Path, code: int, at: int, capsys: pytest.CaptureFixture[str]
) -> bool:
    """Whether the fault was met. The next run ends as if it had not been."""
    shutil.rmtree(here / "outputs", ignore_errors=True)
    fault = Failing(code, at)
    with pytest.MonkeyPatch.context() as patch:
        fault.install(patch, here)
        ended = command([*WHOLE])
    said = capsys.readouterr()
    if fault.calls <= at:
        assert ended == 0
        return False
    if ended != 0:  # a report that cannot be written is a note
        assert ended in (2, 3), said.err
        plain(said.err)
    # Locks and temporary files are taken away also on a full disk: that needs no room.
    assert [path for path in litter(here / "outputs") if path.suffix in (".tmp", ".lock")] == []
    assert command([*WHOLE, "-q"]) == 0
    assert contents(run_folder(here)) == contents(run_folder(whole))
    capsys.readouterr()
    return True


@pytest.mark.parametrize(("code", "at"), [(errno.ENOSPC, 22)])
def test_a_disk_that_fails(
    here: Path, whole: Path, code: int, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_and_goes_on(here, whole, code, at, capsys)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_at_any_write(
    here: Path, whole: Path, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    at = 0
    while fails_and_goes_on(here, whole, code, at, capsys):
        at += 1
    assert at > 50


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts")
def test_a_small_disk(here: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Really full, on a file system of a few kilobytes."""
    disk = here / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        words = ["discover", "small.yaml", "--outputs", str(disk), *QUICK]
        assert command(words) == 3
        said = capsys.readouterr().err
        plain(said)
        assert "no space left" in said
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert command(words) == 0
        assert "reused" in capsys.readouterr().err
        (found,) = disk.iterdir()
        assert litter(disk) == []
        assert (found / "scores.npz").read_bytes() == (run_folder(whole) / "scores.npz").read_bytes()
    finally:
        subprocess.run(["umount", str(disk)], check=False)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts")
def test_a_disk_that_may_only_be_read(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is finished is shown; what would write says so."""
    outputs = done.parent
    mounted = subprocess.run(
        ["mount", "--bind", str(outputs), str(outputs)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(outputs)], check=True)
        assert command(["show", "--outputs", "outputs"]) == 0
        assert command(["list", "runs", "--outputs", "outputs"]) == 0
        capsys.readouterr()
        assert command([*WHOLE]) == 2
        said = capsys.readouterr().err
        plain(said)
        assert "cannot be written to" in said
    finally:
        subprocess.run(["umount", str(outputs)], check=False)


def test_a_folder_that_is_removed_while_it_is_written_to(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Run.finish_stage

    def gone(self: Run, name: str, *args: Any, **keys: Any) -> Any:
        if name == "scores":
            shutil.rmtree(self.path)
        return real(self, name, *args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish_stage", gone)
        code = command([*WHOLE])
    said = capsys.readouterr().err
    if code:
        plain(said)
    assert litter(here / "outputs") == []
    assert command([*WHOLE, "-q"]) == 0
    assert contents(run_folder(here)).keys() == contents(run_folder(whole)).keys()


# --- Damage -------------------------------------------------------------------------------------------------


FEW = [("scores.npz", "flip")]
FILES = ("scores.npz", "pruned.json", "prompts.jsonl", "circuit.dot", "circuit.svg", "circuit.json")
MANY = [(name, damage) for name in FILES for damage in ("flip", "cut", "empty", "folder")]


@pytest.mark.parametrize(
    ("name", "damage"),
    [*FEW, *(pytest.param(*one, marks=pytest.mark.slow) for one in MANY if one not in FEW)],
)
def test_a_damaged_file_is_made_again(
    done: Path, whole: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = done / name
    data = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        half = len(data) // 2
        path.write_bytes(
            {
                "flip": bytes([*data[:half], data[half] ^ 4, *data[half + 1 :]]),
                "cut": data[:half],
                "empty": b"",
            }[damage]
        )
    code = command([*WHOLE])
    said = capsys.readouterr().err
    if damage == "folder":
        assert code in (0, 3), said
        if code:
            plain(said)
        return
    assert code == 0, said
    assert contents(done) == contents(run_folder(whole))
    if name != "circuit.json":  # it is of no stage here: a copy of pruned.json
        assert f"{name} is missing or was changed" in said


@pytest.mark.slow
def test_a_damaged_manifest_begins_anew(done: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = done / MANIFEST
    path.write_bytes(path.read_bytes()[:-100])
    assert command([*WHOLE]) == 0
    assert "begins anew" in capsys.readouterr().err
    (done / f"{MANIFEST}.damaged").unlink()
    assert contents(done) == contents(run_folder(whole))


# --- Versions -----------------------------------------------------------------------------------------------


def test_a_run_of_a_later_version_is_left_alone(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = done / MANIFEST
    data = {**json.loads(path.read_text()), "version": 2}
    path.write_text(json.dumps(data))
    before = {one: one.read_bytes() for one in done.iterdir() if one.is_file()}
    assert command([*WHOLE]) == 3
    said = capsys.readouterr().err
    plain(said)
    assert "has version 2; this program reads version 1" in said
    assert "update circuitfind" in said
    assert {one: one.read_bytes() for one in done.iterdir() if one.is_file()} == before
    assert command(["show", done.name, "--outputs", "outputs"]) == 3
    assert "version 2" in capsys.readouterr().err


# --- Clocks -------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock that runs are dated by forward, or back, by seconds."""
    offset = timedelta()

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + offset

    def jump(seconds: float) -> None:
        nonlocal offset
        offset = timedelta(seconds=seconds)

    monkeypatch.setattr(manifest_module, "datetime", Jumping)
    return jump


def test_runs_are_in_order_though_the_clock_jumps(tmp_path: Path, clock: Callable[[float], None]) -> None:
    store, names = Store(tmp_path), []
    for number, offset in enumerate([0, -3600, 7200, -86400, 0]):
        clock(offset)
        with store.open("task", "model", {"number": number}) as run:
            run.finish_stage("scores", "k", {"a.txt": "x"})
        names.append(run.name)
    assert [info.name for info in store.runs()] == names[::-1]
    assert store.find("latest").name == names[-1]
    with store.open("task", "model", {"number": 1}):
        pass
    assert store.find("latest").name == names[1]


@pytest.mark.slow
def test_a_clock_that_goes_back_within_a_run(
    here: Path, whole: Path, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, jumps = Run.finish_stage, iter(range(0, 100000, 5000))

    def back(self: Run, *args: Any, **keys: Any) -> Any:
        clock(-next(jumps))
        return real(self, *args, **keys)

    monkeypatch.setattr(Run, "finish_stage", back)
    assert command([*WHOLE, "-q"]) == 0
    found = json.loads((run_folder(here) / MANIFEST).read_text())
    assert found["ended"] < found["started"], "dates are the clock's"
    assert all(stage["facts"]["seconds"] >= 0 for stage in found["stages"].values())
    assert contents(run_folder(here)) == contents(run_folder(whole))
    assert command(["list", "runs", "--outputs", "outputs"]) == 0


# --- Two at once --------------------------------------------------------------------------------------------


def test_two_that_begin_in_the_same_second(here: Path, whole: Path) -> None:
    """One does the work, the other is refused or finds it done."""
    codes, start = [], time.time() + 0.3

    def work() -> int:
        sys.stdout = sys.stderr = (here / f"said-{os.getpid()}.txt").open("w", buffering=1)
        time.sleep(max(0.0, start - time.time()))
        return command([*WHOLE])

    def both() -> int:
        first = os.fork()
        if first == 0:
            os._exit(in_child(work))
        codes.append(in_child(work))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]))
        (here / "codes.json").write_text(json.dumps(codes))
        return 0

    assert in_child(both) == 0
    found = sorted(json.loads((here / "codes.json").read_text()))
    said = " ".join(path.read_text() for path in here.glob("said-*.txt"))
    assert found in ([0, 0], [0, 3]), said
    if found == [0, 3]:
        assert "another run is writing to this folder" in said
    assert litter(here / "outputs") == []
    assert contents(run_folder(here)) == contents(run_folder(whole))


def test_the_number_of_a_dead_process_may_be_given_again(tmp_path: Path) -> None:
    """A lock of a process that has our neighbour's number, but began at another time, is stale."""
    lock = FolderLock(tmp_path / LOCK)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        since = began(sleeper.pid)
        if since is None:
            pytest.skip("this system does not say when a process began")
        assert is_alive(sleeper.pid, since)
        assert not is_alive(sleeper.pid, since + "0")
        lock.path.write_text(json.dumps({"pid": sleeper.pid, "host": host(), "began": since}))
        with pytest.raises(RunError, match=f"process {sleeper.pid}"):
            lock.acquire()
        lock.path.write_text(json.dumps({"pid": sleeper.pid, "host": host(), "began": since + "0"}))
        lock.acquire()
        lock.release()
    finally:
        sleeper.send_signal(signal.SIGKILL)
        sleeper.wait()
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_the_living_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = temporary_name(tmp_path / "scores.npz")
    other = tmp_path / ".scores.npz.0000abcd-1-00000000-0123abcd.tmp"  # of another machine
    old = tmp_path / ".scores.npz.0000abcd-2-00000000-0123abcd.tmp"
    dead = tmp_path / mine.name.replace(f"-{os.getpid()}-", "-4194305-")
    foreign = tmp_path / ".something.tmp"
    for path in (mine, other, old, dead, foreign):
        path.write_text("x")
    os.utime(old, (0, 0))
    sweep(tmp_path)
    assert {path for path in (mine, other, old, dead, foreign) if path.exists()} == {mine, other, foreign}
    assert socket.gethostname() == host()


def test_a_newer_lock_is_understood(tmp_path: Path) -> None:
    """Locks of earlier versions say nothing of when a process began."""
    lock = FolderLock(tmp_path / LOCK)
    lock.path.write_text(json.dumps({"pid": os.getppid(), "host": host()}))
    with pytest.raises(RunError):
        lock.acquire()


def test_what_is_read_of_a_run_is_whole_or_refused(done: Path) -> None:
    assert read_manifest(done)["status"] == "finished"
    with pytest.raises((RunError, UsageError)):
        read_manifest(done.parent)
    assert datetime.fromisoformat(read_manifest(done)["order"]).tzinfo == timezone.utc
