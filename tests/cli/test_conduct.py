"""How every command behaves: exit codes, streams, JSON, volume, colour."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from circuitfind.cli import COMMANDS, group
from circuitfind.errors import CircuitfindError, UsageError
from circuitfind.pipeline import STAGES
from tests.cli.helpers import Cli, Toy

REPOSITORY = Path(__file__).resolve().parents[2]
ESCAPE = "\x1b["

TASK = """\
name: small
model: planted/and-gate
prompts:
  zoo: {count: 8}
"""


@pytest.fixture
def finished(cli: Cli) -> Cli:
    """A folder with a task and a finished run."""
    (cli.folder / "small.yaml").write_text(TASK, encoding="utf-8")
    cli.good("discover", "small.yaml", "-q")
    return cli


def process(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "circuitfind", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)


# --- help ---------------------------------------------------------------------------------------------------


def test_help(cli: Cli) -> None:
    found = cli.good("--help")
    assert found.err == ""
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in found.out
        assert text in found.out
    assert cli.good("-h") == found
    assert cli.good() == found, "no command is a question for help, not an error"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(cli: Cli, name: str) -> None:
    found = cli.good(name, "--help")
    assert found.out.startswith(f"Usage: circuitfind {name}")
    for flag in ("--json", "-q, --quiet", "-v, --verbose", "--debug"):
        assert flag in found.out
    command = group.get_command(click.Context(group), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} says nothing"
            assert all(option == option.lower() and "_" not in option for option in parameter.opts)


def test_one_line_of_help_agrees_with_the_command(cli: Cli) -> None:
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert command.help
        assert command.help.strip()[0].isupper()


def test_version(cli: Cli) -> None:
    import circuitfind

    assert cli.good("--version").out == f"circuitfind {circuitfind.__version__}\n"


# --- exit codes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rendr"], ["there is no command 'rendr'", "did you mean 'render'?"]),
        (["discover"], ["Missing argument 'TASK'", "circuitfind discover --help"]),
        (["show", "--top"], ["--top"]),
        (["show", "--tpo", "3"], ["--tpo", "--top"]),
        (["list", "things"], ["'things'", "'tasks'"]),
        (["completion", "tcsh"], ["'tcsh'", "'bash'"]),
        (["show", "one", "two"], ["unexpected extra argument", "circuitfind show --help"]),
        (["--loud"], ["--loud"]),
    ],
    ids=" ".join,
)
def test_bad_usage_is_2(cli: Cli, words: list[str], says: list[str]) -> None:
    cli.fails(2, *words, says=says)
    assert cli(*words, "--json").json["error"] == "UsageError"


def test_unforeseen_is_3(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*args: Any, **keys: Any) -> None:
        raise ZeroDivisionError("by zero\nand more")

    monkeypatch.setattr("circuitfind.task.spec.load_task", boom)
    found = cli("validate", "or-gate")
    assert (found.code, found.out) == (3, "")
    assert found.err.startswith(
        "error: ZeroDivisionError: by zero\nhint: this should not happen; please report"
    )
    assert "Traceback" not in found.err
    assert cli("validate", "or-gate", "--json").json["exit_code"] == 3
    with pytest.raises(ZeroDivisionError):
        cli("validate", "or-gate", "--debug")


def test_out_of_memory_says_what_to_do(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def boom(*args: Any, **keys: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("circuitfind.model.load.load_model", boom)
    found = cli("validate", "or-gate")
    assert found.code == 3
    assert "out of memory" in found.err
    assert "--count" in found.err


def test_debug_raises(cli: Cli) -> None:
    with pytest.raises(UsageError) as caught:
        cli("discover", "or-gate", "--method", "epa", "--debug")
    assert isinstance(caught.value, CircuitfindError)


def test_debug_keeps_the_exit_code(cli: Cli) -> None:
    found = process(cli.folder, "discover", "or-gate", "--method", "epa", "--debug")
    assert found.returncode == 2, "a traceback alone would end with 1, which means that a check differs"
    assert "Traceback" in found.stderr
    assert "did you mean 'eap'?" in found.stderr
    assert found.stdout == ""


def test_a_reader_that_goes_is_no_error(finished: Cli) -> None:
    code = "import sys\nfrom circuitfind.cli import main\nsys.argv[1:] = ['show', '--edges', '--nodes', '--top', '40']\nmain()"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = ["sh", "-c", '"$0" -c "$1" | true', sys.executable, code]
    found = subprocess.run(command, capture_output=True, text=True, cwd=finished.folder, env=env, check=False)
    assert "Traceback" not in found.stderr
    assert "BrokenPipe" not in found.stderr


# --- JSON ---------------------------------------------------------------------------------------------------

FEW = "--controls none --no-views"
GOOD_COMMANDS = [
    "discover small.yaml",
    f"discover small.yaml --force {FEW}",
    "discover small.yaml --dry-run",
    "show",
    "show latest --nodes --edges --top 3",
    f"discover small.yaml --method activation-patching -o both=yes --positions all --precision bf16 {FEW}",
    "list tasks",
    "list models",
    "list methods",
    "list runs",
    "render",
    "render --format dot --format svg",
    "validate small.yaml",
    "validate small.yaml --no-model",
    "init other.yaml",
    "schema",
    "completion bash",
]


@pytest.mark.parametrize("words", GOOD_COMMANDS)
def test_json_of_every_command(finished: Cli, words: str) -> None:
    found = finished.good(*words.split(), "--json")
    assert found.json["version"] == 1
    assert found.out.startswith("{")
    assert found.out.endswith("}\n")
    json.loads(found.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_json_of_doctor(cli: Cli) -> None:
    found = cli("doctor", "--json")
    assert found.json["version"] == 1
    assert found.code == (0 if found.json["ok"] else 1)


def test_json_of_a_result_that_is_bad_news(cli: Cli, toy: Toy) -> None:
    """One document on stdout, although the command fails after its result."""
    turned = [{**pair, "answer": pair["wrong"], "wrong": pair["answer"]} for pair in toy.pairs]
    found = cli("validate", toy.task(prompts={"pairs": turned}), "--json")
    assert found.code == 2
    assert found.json["ok"] is False
    assert found.json["checked"][0]["accuracy"] == 0.0
    assert "error: " in found.err


# --- streams ------------------------------------------------------------------------------------------------


def test_progress_on_stderr_result_on_stdout(finished: Cli) -> None:
    found = finished.good("discover", "small.yaml", "--force")
    assert [line.split()[:2] for line in found.err.splitlines()] == [["+", name] for name in STAGES]
    assert found.out.startswith("small on planted/and-gate: a circuit found by hybrid\n")
    assert "finished," not in found.out


def test_quiet(finished: Cli) -> None:
    found = finished.good("discover", "small.yaml", "--force", "--controls", "none", "-q")
    assert found.err == ""
    assert "faithfulness" in found.out
    finished.run_folder().joinpath("scores.npz").unlink()
    assert finished.good("discover", "small.yaml", "--quiet").err == "", "notes are silent as well"
    assert finished("show", "nothing", "-q").err.startswith("error: "), "errors are not"


def test_verbose_says_more(finished: Cli) -> None:
    found = finished.good("discover", "small.yaml", "--force", "-v")
    assert "edges reach 0.9; dropping what is not needed" in found.err
    assert "dropping" not in found.out


def test_no_escape_codes_off_a_terminal(finished: Cli) -> None:
    for words in (
        "discover small.yaml --force",
        "show --edges",
        "list runs",
        "discover small.yaml --dry-run",
    ):
        found = finished.good(*words.split())
        assert ESCAPE not in found.out + found.err
    assert ESCAPE not in finished("show", "nothing").err


def test_no_color(finished: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert ESCAPE in finished.good("show").out, "colour where it is forced"
    monkeypatch.setenv("NO_COLOR", "1")
    found = finished.good("show", "--edges")
    # NO_COLOR is about colour: bold may stay, as rich reads it.
    assert not any(f"{ESCAPE}{code}" in found.out for code in range(30, 50))
    monkeypatch.delenv("FORCE_COLOR")
    assert ESCAPE not in finished.good("show", "--edges").out


def test_rows_keep_their_lines_in_a_pipe(finished: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = finished.good("list", "tasks").out.splitlines()
    assert len(lines) == 2 + len(finished.good("list", "tasks", "--json").json["tasks"])


def test_in_a_process(finished: Cli) -> None:
    found = process(finished.folder, "show", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout)["conditions"]["task"] == "small"
