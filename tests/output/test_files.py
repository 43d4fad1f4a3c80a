"""Whole files or none, and hashes that do not wobble."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.errors import CircuitfindError, RunError, UsageError
from circuitfind.output.files import stage_key, write_atomic


class Colour(Enum):
    RED = "red"


def failing(code: int) -> Any:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_content_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    assert write_atomic(path, "first é") == path
    assert write_atomic(path, b"second").read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert write_atomic(tmp_path / "ours", "x").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("place", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failure_keeps_the_old_content_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, code: int
) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    monkeypatch.setattr(place, failing(code))
    with pytest.raises(RunError) as caught:
        write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
    assert "MB free" in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", failing(errno.ENOSPC))
    with pytest.raises(RunError, match="no space left") as caught:
        write_atomic(tmp_path / "scores.npz", b"x")
    assert "make room" in caught.value.hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_really_full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", **more: real(Path("/dev/full"), "wb"))
    with pytest.raises(RunError, match="no space left"):
        write_atomic(tmp_path / "file", b"x" * 100_000)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def stop(*args: Any) -> None:
        raise error

    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(error):
        write_atomic(tmp_path / "file", "x")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("I am a file")
    with pytest.raises(UsageError, match="cannot be written to") as caught:
        write_atomic(tmp_path / "outputs" / "run" / "file", "x")
    assert "CIRCUITFIND_OUTPUTS" in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is denied to root")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="cannot be written to"):
            write_atomic(tmp_path / "file", "x")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_denied_folder_is_the_users_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(Path, "open", failing(code))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UsageError, match="cannot be written to"):
        write_atomic(tmp_path / "file", "x")


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(CircuitfindError):
        write_atomic(tmp_path / "file", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# Hashes.


def test_equal_values_have_equal_keys() -> None:
    first = stage_key(
        {"b": 1.5, "a": (1, 2)}, Path("tasks/ioi.yaml"), np.float64(0.25), np.bool_(True), Colour.RED
    )
    second = stage_key({"a": [1, 2], "b": 1.5}, "tasks/ioi.yaml", 0.25, True, "red")
    assert first == second
    assert stage_key({"x", "y", "z"}) == stage_key({"z", "y", "x"})


def test_different_values_have_different_keys() -> None:
    values = [
        0,
        1,
        -1,
        0.5,
        1.0,
        "1",
        None,
        True,
        [],
        {},
        [1],
        {"a": 1},
        "",
        math.nan,
        math.inf,
        -math.inf,
        "NaN",
    ]
    assert len({stage_key(value) for value in values}) == len(values)
    assert stage_key("a", "b") != stage_key("ab")
    assert stage_key(["a"], "b") != stage_key("a", ["b"])


def test_keys_are_the_same_in_another_process() -> None:
    code = "from circuitfind.output.files import stage_key; print(stage_key({'x', 'y'}, 0.1, {'é': None}))"
    env = {**os.environ, "PYTHONHASHSEED": "17"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True, timeout=60
    )
    assert found.stdout.strip() == stage_key({"x", "y"}, 0.1, {"é": None})


@pytest.mark.parametrize("value", [object(), b"bytes", np.zeros(2), {1: "x"}, 1j, lambda: None])
def test_what_has_no_stable_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        stage_key({"deep": [value]})
