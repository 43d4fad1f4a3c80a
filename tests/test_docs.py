"""The README and the docs say what the program does."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from circuitfind.backups.report import MEANING, BackupReport
from circuitfind.cli import COMMANDS, group

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_commands_are_up_to_date() -> None:
    # In a process of its own: click keeps the help option of a command as it was first asked for.
    script = ROOT / "scripts" / "commands_table.py"
    told = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, f"{told.stdout}{told.stderr}run: python scripts/commands_table.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def command_lines() -> list[str]:
    """Every ``circuitfind ...`` line in a code block."""
    found = []
    for page in PAGES:
        if page.name == "commands.md":
            continue
        for block in re.findall(r"```[a-z]*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            found += [
                line.split("#")[0].strip() for line in block.splitlines() if line.startswith("circuitfind ")
            ]
    return sorted({line for line in found if line})


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words begin with, and the other words."""
    command: click.Command | None = group
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        context = click.Context(command)
        name, command, words = words[0], command.get_command(context, words[0]), words[1:]
        assert command is not None, f"there is no command {name}"
    assert command is not None
    return command, words


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_is_one(line: str) -> None:
    """Its command, options and choices exist; it is parsed, not run."""
    words = shlex.split(re.split(r"\s>+\s", line)[0])[1:]
    assert words[0] in COMMANDS
    command, rest = command_of(words)
    command.make_context(command.name, rest)


def mentioned() -> list[str]:
    """Every ``circuitfind ...`` in running text; it may leave out what a command needs."""
    found = set()
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        found |= {" ".join(span.split()) for span in re.findall(r"`(circuitfind [^`]+)`", text)}
    return sorted(found)


@pytest.mark.parametrize("span", mentioned())
def test_every_command_in_running_text_has_these_options(span: str) -> None:
    """Its command and options exist."""
    words = shlex.split(span.split(" > ")[0].replace("|", " "))[1:]
    words = [word.strip("[]").rstrip("…") for word in words]
    command, rest = command_of(words)
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    for word in rest:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{span}: no option {word}"


def test_the_example_of_a_backup_report_is_one() -> None:
    page = (ROOT / "docs" / "backups-json.md").read_text(encoding="utf-8")
    data = json.loads(page.split("```json")[1].split("```")[0])
    report = BackupReport.from_dict(data)
    assert json.loads(json.dumps(report.as_dict())) == data
    for kind, meaning in MEANING.items():
        assert f"| `{kind}` | {meaning}" in page
