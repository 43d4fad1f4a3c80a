"""Nobody is told anything: no request leaves the machine that the user did not ask for by naming a model or a data set."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.cli.helpers import Cli

SWITCHES = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_SAFETENSORS_CONVERSION")

GUARD = """\
import socket, sys

def refused(name):
    def connect(self, address, *more):
        if self.family == socket.AF_UNIX:
            return real[name](self, address, *more)
        sys.stderr.write(f"NETWORK {name} {address!r}\\n")
        raise OSError("no network in this test")
    return connect

real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto", "bind")}
for name in real:
    setattr(socket.socket, name, refused(name))

def looked_up(*words, **keys):
    sys.stderr.write(f"NETWORK name {words!r}\\n")
    raise OSError("no network in this test")

socket.getaddrinfo = looked_up
socket.gethostbyname = looked_up
"""
"""Run before anything else in a process: every address that is asked for is told, and refused."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address that is asked for, in this process, while the hub's client believes that it has a network."""
    from huggingface_hub import constants

    found: list[str] = []

    def refused(name: str) -> Any:
        def connect(self: socket.socket, address: object, *more: object) -> NoReturn:
            found.append(f"{name} {address!r}")
            raise OSError("no network in this test")

        return connect

    def looked_up(*words: object, **keys: object) -> NoReturn:
        found.append(f"name {words!r}")
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused(name))
    for name in ("getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, looked_up)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return found


QUICKLY = ("--method", "eap", "--edges", "20", "--no-backups", "--controls", "none", "--no-views", "-q")


def test_a_run_of_a_local_model_asks_nobody(cli: Cli, own_model: Path, asked: list[str]) -> None:
    (cli.folder / "small.yaml").write_text(
        "name: small\nmodel: planted/and-gate\nprompts:\n  zoo: {count: 8}\n", encoding="utf-8"
    )
    cli.good("discover", "small.yaml", *QUICKLY)
    cli.good("validate", "ioi", "--model", own_model)
    for words in (
        ("show", "latest"),
        ("report", "latest"),
        ("export", "latest", "--to", "graphml,csv,python"),
    ):
        cli.good(*words)
    assert asked == []


def test_the_guard_sees_a_request(asked: list[str]) -> None:
    from circuitfind.errors import ModelError
    from circuitfind.model.load import load_model

    with pytest.raises(ModelError, match="cannot find the model"):
        load_model("no-such-org/no-such-model", device="cpu")
    assert any("huggingface.co" in one for one in asked)


def test_switches_of_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set before any library reads them; what the user has set stays."""
    code = (
        "import os; os.environ['DO_NOT_TRACK'] = 'mine'; import circuitfind;"
        "from huggingface_hub import constants; from huggingface_hub.utils import build_hf_headers;"
        f"print([os.environ[name] for name in {SWITCHES!r}], os.environ['RAY_USAGE_STATS_ENABLED'],"
        "constants.HF_HUB_DISABLE_TELEMETRY, 'torch' in build_hf_headers()['user-agent'])"
    )
    clean = {k: v for k, v in os.environ.items() if k not in SWITCHES and k != "RAY_USAGE_STATS_ENABLED"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "['1', 'mine', '1'] 0 True False", done.stderr


def test_the_hub_is_not_asked_to_convert_weights() -> None:
    """transformers would ask the hub's bot to open a pull request for a model without safetensors."""
    from transformers import modeling_utils

    assert os.environ["DISABLE_SAFETENSORS_CONVERSION"] == "1"
    source = Path(modeling_utils.__file__).read_text(encoding="utf-8")
    assert "auto_conversion" not in source or "DISABLE_SAFETENSORS_CONVERSION" in source, (
        "it has another switch now"
    )


@pytest.mark.slow
def test_a_whole_run_of_mini_asks_nobody(tmp_path: Path) -> None:
    """In a process of its own, in which nothing has been imported and no network is switched off."""
    (tmp_path / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    repository = Path(__file__).resolve().parents[2]
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "CIRCUITFIND_")) and k not in SWITCHES
    }
    env |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{repository}", "HF_HOME": str(tmp_path / "empty-cache")}
    told = ""
    for words in (
        ("discover", "ioi"),
        ("attribute", "--text", "When Mary and John went to the shop, John gave a book to"),
        ("check", "or-gate", "--jobs", "2"),
        ("doctor",),
    ):
        command = [sys.executable, "-m", "circuitfind", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        told += done.stderr
    assert "NETWORK" not in told, told
    probe = subprocess.run(
        [sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "NETWORK" in probe.stderr, "the guard is not in force"
