"""Write the table of commands and the pages of their options from the code: README.md and docs/commands.md.

python scripts/commands_table.py            write
python scripts/commands_table.py --check    exit 1 if they are stale (the tests do this)
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from generated import ROOT, main

from circuitfind.cli import COMMANDS, group

START, END = "<!-- commands: made by scripts/commands_table.py -->", "<!-- /commands -->"


def table() -> str:
    """One row for each command."""
    rows = ["| command | what it does |", "| --- | --- |"]
    context = click.Context(group, info_name="circuitfind")
    for name, (_, text) in COMMANDS.items():
        for names, command in inside(context, name):
            words = [p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)]
            usage = " ".join(["circuitfind", *names, *words]).replace("|", "\\|")
            told = text if len(names) == 1 else command.get_short_help_str(200)
            rows.append(f"| `{usage}` | {told} |")
    return "\n".join(rows)


def inside(context: click.Context, name: str) -> list[tuple[list[str], click.Command]]:
    """A command, or those of a group of commands, under their words."""
    command = group.get_command(context, name)
    assert command is not None
    if not isinstance(command, click.Group):
        return [([name], command)]
    return [([name, inner], found) for inner, found in command.commands.items()]


def pages() -> str:
    """The help page of each command."""
    parts = ["# Commands", "", "What `--help` says of each command. Made by scripts/commands_table.py.", ""]
    context = click.Context(group, info_name="circuitfind", max_content_width=100, terminal_width=100)
    for name in COMMANDS:
        for names, command in inside(context, name):
            title = " ".join(names)
            inner = click.Context(
                command, info_name=title, parent=context, max_content_width=100, terminal_width=100
            )
            parts += [f"## {title}", "", "```", command.get_help(inner), "```", ""]
    return "\n".join(parts)


def wanted() -> dict[Path, str]:
    """What each file should hold."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, rest = text.split(START)
    return {
        readme: f"{head}{START}\n{table()}\n{END}{rest.split(END)[1]}",
        ROOT / "docs" / "commands.md": pages(),
    }


if __name__ == "__main__":
    sys.exit(main(wanted()))
