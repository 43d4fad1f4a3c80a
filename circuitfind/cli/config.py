"""``circuitfind config``: what options are when no flag is given, and where that comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from circuitfind.cli.command import Command, key_of, variables_of
from circuitfind.cli.common import Screen, common_options, table
from circuitfind.cli.configuration import (
    DEFAULTS,
    FILE,
    GIVEN,
    SHARED,
    Configuration,
    Entry,
    find_file,
    leaves,
    options_of,
    places,
    read,
)
from circuitfind.errors import UsageError, did_you_mean


@click.group(invoke_without_command=True)
@click.pass_context
def config(ctx: click.Context) -> None:
    """Say what options are when they are not given: from a file, a variable, or by default.

    \b
    circuitfind config init                      # write circuitfind.toml, with everything commented out
    circuitfind config show discover --origin    # what holds, and where that comes from
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def complete_commands(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of commands, for the shell."""
    from circuitfind.cli import COMMANDS

    return [name for name in COMMANDS if name.startswith(incomplete)]


@config.command("show")
@click.argument("command", nargs=-1, metavar="[COMMAND]", shell_complete=complete_commands)
@click.option(
    "--origin", is_flag=True, help="Say where each value comes from: variable, file and line, or default."
)
@common_options
def show_config(screen: Screen, command: tuple[str, ...], origin: bool) -> None:
    """Show what each option of COMMAND is when no flag is given; without COMMAND, of all that a file or a variable changes.

    \b
    circuitfind config show
    circuitfind config show discover --origin
    circuitfind config show transcoders train --json
    """
    found = read(_file())
    if command:
        shown = {" ".join(one.path): settings_of(one, found) for one in leaves(_named(command))}
    else:
        every = {" ".join(one.path): settings_of(one, found) for one in leaves()}
        changed = {name: [s for s in some if s.origin != "default"] for name, some in every.items()}
        shown = {name: some for name, some in changed.items() if some}
    data = {
        "version": 1,
        "file": None if found.path is None else str(found.path),
        "commands": {name: {one.key: one.as_dict() for one in some} for name, some in shown.items()},
    }
    screen.result(data, lambda: _show(screen, found, shown, origin))


@config.command("path")
@common_options
def config_path(screen: Screen) -> None:
    """Print the configuration file that is read here.

    \b
    circuitfind config path
    """
    found, looked = _file(), places()

    def show() -> None:
        if found is not None:
            screen.out.print(str(found.resolve()), markup=False)
            return
        screen.out.print(f"there is no {FILE} here; looked for it in", markup=False)
        for path in looked:
            screen.out.print(f"  {path.parent}", markup=False)

    data = {
        "path": None if found is None else str(found.resolve()),
        "looked_in": [str(p.parent) for p in looked],
    }
    screen.result({"version": 1, **data}, show)


@config.command("init")
@click.argument("path", type=click.Path(path_type=Path), default=Path(FILE))
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@common_options
def init_config(screen: Screen, path: Path, force: bool) -> None:
    """Write a configuration file with every option of every command in it, commented out, at PATH (default circuitfind.toml).

    \b
    circuitfind config init
    circuitfind config init other.toml
    """
    from circuitfind.output.files import check_new, write_atomic

    if path.is_dir():
        raise UsageError(f"'{path}' is a folder", hint=f"write {path / FILE}")
    check_new(path, force=force)
    write_atomic(path, template())
    screen.result(
        {"version": 1, "file": str(path)},
        lambda: screen.out.print(
            f"{path}: take the # from what you want to set, then run: circuitfind config show --origin",
            markup=False,
        ),
    )


def _file() -> Path | None:
    return find_file(click.get_current_context().meta.get(GIVEN))


def _named(words: tuple[str, ...]) -> click.Command:
    from circuitfind.cli import COMMANDS, find

    if words[0] not in COMMANDS:
        raise UsageError(f"there is no command '{words[0]}'", hint=did_you_mean(words[0], COMMANDS))
    found: click.Command = find(words[0])
    for word in words[1:]:
        inner = found.commands if isinstance(found, click.Group) else {}
        if word not in inner:
            hint = did_you_mean(word, inner) if inner else f"leave it out: circuitfind config show {words[0]}"
            raise UsageError(f"there is no command '{' '.join(words)}'", hint=hint)
        found = inner[word]
    return found


def _show(screen: Screen, found: Configuration, shown: dict[str, list[Setting]], origin: bool) -> None:
    where = f"{found.path}" if found.path is not None else f"there is no {FILE} here"
    if not shown:
        screen.out.print(f"nothing is set by a file or a variable: {where}", markup=False)
        return
    screen.out.print(where, markup=False)
    of_all = {entry.key: entry for entry in found.entries if entry.section == (DEFAULTS,)}
    rows = table("command", "option", "value", *(["origin"] if origin else []))
    if len(shown) != 1:  # once, rather than in each command
        for entry in of_all.values():
            at = [_at(entry)] if origin else []
            rows.add_row(f"[{DEFAULTS}]", entry.key, _toml(entry.value), *at)
    for name, some in shown.items():
        title = name
        for one in some:
            if len(shown) != 1 and one.key in of_all and one.where == _at(of_all[one.key]):
                continue
            told = f"({one.told})" if one.value is None and one.told else _toml(one.value)
            rows.add_row(title, one.key, told, *([one.where or one.origin] if origin else []))
            title = ""
    screen.out.print(rows, markup=False)


def _at(entry: Entry) -> str:
    return str(entry.path) if entry.line is None else f"{entry.path}:{entry.line}"


@dataclass(frozen=True)
class Setting:
    """An option's value where no flag is given, and where it comes from.

    Attributes:
        origin: ``environment``, ``file`` or ``default``.
        where: The variable, or file and line; empty for a default.
        told: What its help says of a default that is found out later, such as ``the task's``.
    """

    key: str
    value: Any
    origin: str
    where: str = ""
    told: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"value": self.value, "origin": self.origin, "where": self.where or None}


def settings_of(command: Command, configuration: Configuration) -> list[Setting]:
    """Each option of a command as a call without flags would have it.

    Raises:
        UsageError: A variable holds what the option does not take.
    """
    ctx, found = click.Context(command, info_name=" ".join(command.path)), configuration.of(command)
    made = []
    for option in options_of(command):
        variable = next((name for name in variables_of(option) if os.environ.get(name)), None)
        key = key_of(option)
        if variable is not None:
            try:
                value = option.type_cast_value(ctx, option.value_from_envvar(ctx))
            except click.BadParameter as error:
                hint = f"what --{key} takes: {option.help}"
                raise UsageError(error.message.rstrip("."), where=f"${variable}", hint=hint) from error
            made.append(Setting(key, _plain(value), "environment", variable))
        elif option.name in found:
            value, entry = found[option.name]
            made.append(Setting(key, value, "file", _at(entry)))
        else:
            told = re.search(r"\[default[^:\]]*: (.*)\]", option.help or "")
            value = None if option.required else _default(option)
            text = "required" if option.required else told[1] if told else ""
            made.append(Setting(key, value, "default", told=text))
    return made


def _default(option: click.Option) -> Any:
    """Its default as JSON has it; None where it has none."""
    value = option.get_default(click.Context(click.Command("config")))
    return _plain(value) if isinstance(value, bool | int | float | str | tuple | list | Path) else None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _toml(value: Any) -> str:
    """A value as a file has it; nothing for None."""
    import json

    return "" if value is None else json.dumps(value, ensure_ascii=False)


# The template.

HEAD = f"""\
## {FILE}: values for options that are not given on the command line.
## Flags go before variables of the environment (CIRCUITFIND_DISCOVER_FAITHFULNESS=0.85), those before this
## file, and this file before the defaults. It is read in the folder that it lies in and in those below.
## A switch that is true here is turned off by its flag: --no-force.
"""


def template() -> str:
    """A file in which every option of every command stands, commented out, with what it is and its default."""
    every = list(leaves())
    shared: dict[str, click.Option] = {}
    for command in every:
        for option in options_of(command):
            if key_of(option) in SHARED:
                shared.setdefault(key_of(option), option)
    lines = [HEAD, "## In every command that has the option.", f"[{DEFAULTS}]"]
    for key in SHARED:
        lines += _commented(shared[key])
    for command in every:
        mine = [one for one in options_of(command) if key_of(one) not in SHARED]
        if mine:
            lines += ["", f"[{'.'.join(command.path)}]"]
            for option in mine:
                lines += _commented(option)
    return "\n".join(lines) + "\n"


def _commented(option: click.Option) -> Iterator[str]:
    import textwrap

    told = (option.help or "").replace("  [", " [")
    yield from textwrap.wrap(told, 96, initial_indent="## ", subsequent_indent="## ")
    value = _default(option)
    if value is None or value == []:
        value = _sample(option)
    yield f"# {key_of(option)} = {_toml(value)}"


def _sample(option: click.Option) -> Any:
    """A value of the kind that an option without a default takes."""
    if option.is_bool_flag:
        one: Any = True
    elif isinstance(option.type, click.Choice):
        one = str(option.type.choices[0])
    elif isinstance(option.type, click.types.IntParamType):
        one = 1
    elif isinstance(option.type, click.types.FloatParamType):
        one = 0.5
    else:
        one = option.metavar or "TEXT"
    return [one] if option.multiple else one
