"""Pictures: through Graphviz where it is installed, and a clear error where it is not."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from circuitfind.errors import RunError, UsageError
from circuitfind.output.dot import to_dot
from circuitfind.output.draw import dot_binary, install_hint, render
from tests.output.circuits import make

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")

TEXT = to_dot(make({"input->m0": 1.0, "m0->logits": -0.5}, roles={"m0": "a role"}))


def fake_dot(folder: Path, script: str) -> None:
    path = folder / "dot"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@needs_dot
def test_every_format_is_written(tmp_path: Path) -> None:
    found = render(TEXT, tmp_path / "circuit.svg", ("svg", "png", "pdf"))
    assert [path.name for path in found] == ["circuit.svg", "circuit.png", "circuit.pdf"]
    starts = [path.read_bytes()[:5] for path in found]
    assert starts == [b"<?xml", b"\x89PNG\r", b"%PDF-"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circuit.pdf", "circuit.png", "circuit.svg"]


@needs_dot
def test_svg_stands_alone_and_has_tooltips(tmp_path: Path) -> None:
    (path,) = render(TEXT, tmp_path / "circuit")
    svg = path.read_text(encoding="utf-8")
    assert "<!DOCTYPE" not in svg
    assert "<image" not in svg
    assert "m0 (a role)" in svg
    assert "input&#45;&gt;m0: +1" in svg


@pytest.mark.parametrize("missing", ["", "/nowhere"])
def test_a_missing_dot_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setenv("PATH", missing)
    assert dot_binary() is None
    with pytest.raises(RunError, match="not installed") as caught:
        render(TEXT, tmp_path / "circuit")
    assert "graphviz" in caught.value.hint
    assert "everything but pictures works" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("platform", "tools", "command"),
    [
        ("linux", ("apt-get",), "apt-get install graphviz"),
        ("linux", ("dnf",), "dnf install graphviz"),
        ("linux", (), "conda install -c conda-forge graphviz"),
        ("darwin", (), "brew install graphviz"),
        ("win32", (), "choco install graphviz"),
    ],
)
def test_the_hint_names_the_command_of_the_platform(
    monkeypatch: pytest.MonkeyPatch, platform: str, tools: tuple[str, ...], command: str
) -> None:
    monkeypatch.setattr("circuitfind.output.draw.sys.platform", platform)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if name in tools else None)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    assert command in install_hint()


def test_an_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'pngg'") as caught:
        render(TEXT, tmp_path / "circuit", ("pngg",))
    assert "'png'" in caught.value.hint


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="needs a shell to stand in for dot")
class TestBrokenDot:
    def test_failure_shows_what_dot_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_dot(tmp_path, "cat > /dev/null; echo 'syntax error in line 3' >&2; exit 1")
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        with pytest.raises(RunError) as caught:
            render(TEXT, tmp_path / "out" / "circuit")
        assert caught.value.details == ("syntax error in line 3",)
        assert not (tmp_path / "out").exists()

    def test_curves_that_fail_are_drawn_as_straight_lines(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_dot(tmp_path, 'text=$(cat); case "$text" in *splines=true*) exit 1;; esac; echo "<svg/>" > "$3"')
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        (path,) = render(TEXT, tmp_path / "circuit")
        assert path.read_text() == "<svg/>\n"

    def test_a_dot_that_hangs_is_stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_dot(tmp_path, "exec sleep 30")
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        with pytest.raises(RunError, match="longer than"):
            render(TEXT, tmp_path / "circuit", timeout=0.2)

    def test_an_old_picture_stays_when_a_new_one_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_dot(tmp_path, "cat > /dev/null; exit 1")
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        (tmp_path / "circuit.svg").write_text("old")
        with pytest.raises(RunError):
            render(TEXT, tmp_path / "circuit")
        assert (tmp_path / "circuit.svg").read_text() == "old"
