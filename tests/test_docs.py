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


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_is_one(line: str) -> None:
    """Its command, options and choices exist; it is parsed, not run."""
    words = shlex.split(line.split(">")[0])[1:]
    assert words[0] in COMMANDS
    command = group.get_command(click.Context(group), words[0])
    assert command is not None
    command.make_context(words[0], words[1:])


def test_the_example_of_a_backup_report_is_one() -> None:
    page = (ROOT / "docs" / "backups-json.md").read_text(encoding="utf-8")
    data = json.loads(page.split("```json")[1].split("```")[0])
    report = BackupReport.from_dict(data)
    assert json.loads(json.dumps(report.as_dict())) == data
    for kind, meaning in MEANING.items():
        assert f"| `{kind}` | {meaning}" in page
