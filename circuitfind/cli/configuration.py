"""``circuitfind.toml``: values for options that are not given. Flags go before variables of the environment, those before the
file, and the file before the defaults.

    [defaults]             options that mean the same in every command
    device = "cpu"

    [discover]             a section for each command; keys are its options without dashes
    faithfulness = 0.85
    backups = false

    [transcoders.train]
    width = 512

The file is read when a command has been named, not for help, and checked as a whole.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from circuitfind.cli.command import Command, Group, key_of
from circuitfind.cli.config_limits import NEVER_BY_FILE, check_inside, check_key
from circuitfind.errors import UsageError, did_you_mean
from circuitfind.reading import MAX_TOML, Unreadable, check_values, expanded, one_line, read_text

FILE = "circuitfind.toml"
VARIABLE = "CIRCUITFIND_CONFIG"
DEFAULTS = "defaults"
GIVEN = "circuitfind.config"
"""Where a context holds the file that was named before the command."""

SHARED = ("device", "memory", "model", "outputs", "json", "quiet", "verbose", "debug")
"""Options that [defaults] may set: they mean the same in all commands that have them, but for those of ``APART``."""

APART: dict[str, tuple[str, ...]] = {
    "model": ("attribute", "backups", "certify", "check", "evaluate"),
    "outputs": ("check",),
}
"""Commands in which a shared option means something else: a finished run has its model, checks have a folder of their own."""

NEVER = ("config", "help", "version")
"""Options that no file sets."""

RIVALS = (
    ("faithfulness", "edges", "threshold"),
    ("target", "edges", "threshold"),
    ("faithfulness", "node-threshold"),
    ("l0", "l1"),
)
"""Options of which one is given: what comes from further up (flag, variable, file) puts the others out."""


@dataclass(frozen=True)
class Entry:
    """A value of the file, and where it stands."""

    path: Path
    section: tuple[str, ...]
    key: str
    value: Any
    line: int | None

    @property
    def where(self) -> str:
        """As errors name it: ``circuitfind.toml:3 (discover.model)``."""
        at = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{at} ({'.'.join((*self.section, self.key))})"


@dataclass(frozen=True)
class Configuration:
    """A file that has been read, with the values of each section; empty where there is none."""

    path: Path | None = None
    entries: tuple[Entry, ...] = ()

    def of(self, command: Command) -> dict[str, tuple[Any, Entry]]:
        """What the file says of a command's options: parameter to (its value, where it stands)."""
        found: dict[str, tuple[Any, Entry]] = {}
        mine = {key_of(option): option for option in options_of(command)}
        for section in ((DEFAULTS,), command.path):
            for entry in self.entries:
                option = mine.get(entry.key) if entry.section == section else None
                apart = section == (DEFAULTS,) and " ".join(command.path) in APART.get(entry.key, ())
                if option is not None and not apart:
                    found[str(option.name)] = (_value(option, entry), entry)
        return found


def options_of(command: click.Command) -> list[click.Option]:
    """The options that a file or a variable may set."""
    return [
        one
        for one in command.params
        if isinstance(one, click.Option) and one.expose_value and key_of(one) not in (*NEVER, *NEVER_BY_FILE)
    ]


def leaves(command: click.Command | None = None) -> Iterator[Command]:
    """Every command that does something, those inside groups one by one; of one command, where it is given."""
    if command is None:
        from circuitfind.cli import COMMANDS, find

        for name in COMMANDS:
            yield from leaves(find(name))
    elif isinstance(command, Group):
        for inner in command.commands.values():
            yield from leaves(inner)
    elif isinstance(command, Command):
        yield command


# Finding and reading.


def places(start: Path | None = None) -> list[Path]:
    """Where a file is looked for: the working directory and what it lies in, up to a repository's root or the home folder.

    Outside of both only the working directory, since others may write to what it lies in.
    """
    here = (start or Path.cwd()).resolve()
    try:
        home: Path | None = Path.home().resolve()
    except RuntimeError:  # nobody's
        home = None
    found: list[Path] = []
    for folder in (here, *here.parents):
        found.append(folder)
        if folder == home or (folder / ".git").exists():
            return [one / FILE for one in found]
    return [here / FILE]


def find_file(given: str | None) -> Path | None:
    """The file that is named, or the nearest one; None where there is none.

    Raises:
        UsageError: A file is named that is not there.
    """
    if given:
        path = expanded(given)
        if path.is_file():
            return path
        what = "is a folder" if path.is_dir() else "is not there"
        raise UsageError(
            f"the configuration file '{given}' {what}",
            hint=f"name a file by --config or {VARIABLE}, or write one with `circuitfind config init`",
        )
    found = next((path for path in places() if path.is_file()), None)
    return Path(FILE) if found is not None and found.parent == Path.cwd().resolve() else found


def read(path: Path | None) -> Configuration:
    """A file with every section, key and value of it checked.

    Raises:
        UsageError: It cannot be read, or says something that no command knows.
    """
    if path is None:
        return Configuration()
    data, lines = _parse(path)
    entries: list[Entry] = []
    for name, table in data.items():
        if not isinstance(table, dict):
            raise UsageError(
                f"'{name}' stands in no section",
                where=_where(path, lines, (name,)),
                hint=f"write it below [{DEFAULTS}] or the name of a command, such as [discover]",
            )
        entries += _section(path, lines, (name,), table)
    return Configuration(path, tuple(entries))


def _parse(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        text = read_text(path, MAX_TOML)
        found = tomllib.loads(text)
        check_values(found)
        return found, _lines(text)
    except (OSError, Unreadable) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot be read: {told}", where=str(path), hint="mend the file") from error
    except tomllib.TOMLDecodeError as error:
        told, _, at = str(error).partition(" (at line ")
        line = at.partition(",")[0]
        where = f"{path}:{line}" if line.isdigit() else str(path)
        hint = 'sections are written [discover], values key = "text", key = 3, key = true'
        raise UsageError(f"broken TOML: {told}", where=where, hint=hint) from error
    except (ValueError, RecursionError) as error:
        what = f"broken TOML: {one_line(error)}"
        raise UsageError(what, where=str(path), hint="look for long numbers and many brackets") from error


_HEADER = re.compile(r"^\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.\-\"' ]+?)\s*=")


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of each section and key, by their names; a key inside a text of several lines may be taken for one."""
    found: dict[tuple[str, ...], int] = {}
    section: tuple[str, ...] = ()
    for number, whole in enumerate(text.splitlines(), 1):
        line = whole[
            :400
        ].strip()  # names are short, and matching a line of blanks takes the square of its length
        if header := _HEADER.match(line):
            section = _names(header[1])
            found.setdefault(section, number)
        elif key := _KEY.match(line):
            found.setdefault((*section, *_names(key[1])), number)
    return found


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def _where(path: Path, lines: Mapping[tuple[str, ...], int], names: tuple[str, ...]) -> str:
    line = lines.get(names)
    return f"{path if line is None else f'{path}:{line}'} ({'.'.join(names)})"


def _section(
    path: Path, lines: Mapping[tuple[str, ...], int], names: tuple[str, ...], table: dict[str, Any]
) -> Iterator[Entry]:
    """The entries of a section and of those inside it."""
    command = None if names == (DEFAULTS,) else _command(path, lines, names)
    inner = list(command.commands) if isinstance(command, Group) else []
    for key, value in table.items():
        if isinstance(value, dict) and inner:
            yield from _section(path, lines, (*names, key), value)
            continue
        entry = Entry(path, names, key.replace("_", "-"), value, lines.get((*names, key)))
        check_key(entry.key, entry.where)
        if command is None:
            if entry.key not in SHARED:
                raise UsageError(
                    f"[{DEFAULTS}] has no key '{key}'",
                    where=entry.where,
                    hint=f"{did_you_mean(entry.key, SHARED)} Other options are set in the section of a command",
                )
            yield _checked_everywhere(entry)
            continue
        if inner:
            raise UsageError(
                f"`{' '.join(names)}` has no options of its own",
                where=entry.where,
                hint=f"write it below {' or '.join(f'[{names[0]}.{one}]' for one in inner)}",
            )
        mine = {key_of(option): option for option in options_of(command)}
        if entry.key not in mine:
            other = entry.key.removeprefix("no-")
            switch = other in mine and mine[other].is_bool_flag
            raise UsageError(
                f"`{' '.join(names)}` has no option '{key}'",
                where=entry.where,
                hint=f"write {other} = false" if switch else did_you_mean(entry.key, mine),
            )
        _value(mine[entry.key], entry)
        yield entry


def _command(path: Path, lines: Mapping[tuple[str, ...], int], names: tuple[str, ...]) -> click.Command:
    from circuitfind.cli import COMMANDS, find

    found: click.Command | None = None
    for depth, name in enumerate(names):
        known = list(COMMANDS) if found is None else list(found.commands) if isinstance(found, Group) else []
        if name not in known:
            told = did_you_mean(name, [*known, *([DEFAULTS] if depth == 0 else [])])
            raise UsageError(
                f"there is no command '{' '.join(names[: depth + 1])}'",
                where=_where(path, lines, names),
                hint=told,
            )
        found = found.commands[name] if isinstance(found, Group) else find(name)
    assert found is not None, "a section has a name"
    return found


def _checked_everywhere(entry: Entry) -> Entry:
    """A shared entry, tried on an option of its name; they are of one type everywhere."""
    from circuitfind.cli import find

    option = next(one for one in options_of(find("discover")) if key_of(one) == entry.key)
    _value(option, entry)
    return entry


# Values.


def _value(option: click.Option, entry: Entry) -> Any:
    """A value of the file as the option takes it.

    Raises:
        UsageError: It is of another type, or out of range.
    """
    value = entry.value
    if option.multiple and not isinstance(value, list):
        value = [value]
    for one in value if isinstance(value, list) else [value]:
        _check_type(option, one, entry)
    if isinstance(value, list) and not option.multiple:
        raise UsageError(
            f"'{entry.key}' takes one value", where=entry.where, hint="write it without brackets"
        )
    value = (
        [_placed(option, one, entry) for one in value] if option.multiple else _placed(option, value, entry)
    )
    try:
        option.type_cast_value(click.Context(click.Command("config")), value)
    except click.BadParameter as error:
        raise UsageError(
            error.message.rstrip("."), where=entry.where, hint=f"what --{entry.key} takes: {option.help}"
        ) from error
    return value


def _check_type(option: click.Option, value: Any, entry: Entry) -> None:
    """TOML has types; click would make 1 of 1.5 and of true."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    wanted = None
    if option.is_bool_flag:
        wanted = None if isinstance(value, bool) else "true or false"
    elif isinstance(option.type, click.types.IntParamType):
        wanted = None if number and isinstance(value, int) else "a whole number"
    elif isinstance(option.type, click.types.FloatParamType):
        wanted = None if number else "a number"
    elif not isinstance(value, str) or "\0" in value:
        wanted = 'a text in quotes, such as "..."'
    if wanted is not None:
        written = str(value).lower() if isinstance(value, bool) else repr(value)
        raise UsageError(
            f"{written} is not what '{entry.key}' takes",
            where=entry.where,
            hint=f"write {wanted} (--{entry.key}: {option.help})",
        )


def _placed(option: click.Option, value: Any, entry: Entry) -> Any:
    """A path as seen from the file: what is relative there, and names a file or a folder, is relative to the file's own."""
    if not isinstance(value, str) or entry.path.resolve().parent == Path.cwd().resolve():
        return value
    names_path = isinstance(option.type, click.Path) or option.metavar in ("FILE", "FOLDER")
    plain = entry.key != "dictionaries" and names_path  # a hub's name looks like a folder
    if (plain or value.startswith(("./", "../"))) and not expanded(value).is_absolute():
        return str(entry.path.parent / value)
    return value


# What commands do with it.


def load_defaults(ctx: click.Context, _param: click.Parameter, given: str | None) -> None:
    """Give a command the values of the file for options that are neither flags nor variables."""
    command = ctx.command
    if not isinstance(command, Command) or ctx.resilient_parsing:
        return
    if "config" in command.path:  # these look into the file themselves
        ctx.meta[GIVEN] = given or ctx.meta.get(GIVEN)
        return
    named = given or ctx.meta.get(GIVEN)
    found = read(find_file(named)).of(command)
    if not named:
        for value, entry in found.values():
            check_inside(entry.key, value, entry.path, entry.where)
    ctx.default_map = {name: value for name, (value, _) in found.items()}


def settle_rivals(ctx: click.Context, values: dict[str, Any]) -> None:
    """Where a flag and the file give two options that exclude each other, the flag goes before; likewise variables."""
    from click.core import ParameterSource

    rank = {ParameterSource.COMMANDLINE: 3, ParameterSource.ENVIRONMENT: 2, ParameterSource.DEFAULT_MAP: 1}
    named = {key_of(one): one.name for one in ctx.command.params if isinstance(one, click.Option)}
    for group in RIVALS:
        given = [named[key] for key in group if values.get(named.get(key) or "") is not None]
        ranks = {name: rank.get(ctx.get_parameter_source(str(name)), 0) for name in given}  # type: ignore[arg-type]
        for name, height in ranks.items():
            if height < max(ranks.values()):
                values[str(name)] = None
