"""What every command has, whoever wrote it: variables of the environment, both forms of each switch, choices that name the
nearest, examples that fit the screen. ``dressed`` gives it to a command when it is loaded.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import click

from circuitfind.errors import nearest
from circuitfind.reading import MAX_WHOLE

PREFIX = "CIRCUITFIND"
"""What names of variables begin with."""

NO_OTHER_FORM = ("help", "version")
"""Switches that end the command at once: there is nothing to turn off."""

NO_VARIABLE = ("trust-remote-code",)
"""Switches that are given on the command line alone."""

_TAKEN = (
    "name",
    "context_settings",
    "callback",
    "params",
    "help",
    "epilog",
    "short_help",
    "options_metavar",
    "add_help_option",
    "no_args_is_help",
    "hidden",
    "deprecated",
)


class Choice(click.Choice):  # type: ignore[type-arg]  # generic in newer releases of click alone
    """A choice whose refusal names the nearest of the words that it admits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            near = nearest(str(value), [str(one) for one in self.choices])
            if near is None:
                raise
            raise click.BadParameter(
                f"{error.message.rstrip('.')}. Did you mean '{near}'?", ctx, param
            ) from None


class _Told(click.Command):
    """How commands and groups say what they are. ``path`` holds the words, such as ``("transcoders", "train")``."""

    path: tuple[str, ...] = ()

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(folded(self.help or "", formatter.width - formatter.current_indent))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_options(self, ctx, formatter)


class Command(_Told):
    """A command as all are."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        left = super().parse_args(ctx, args)
        for parameter in self.params:
            given = ctx.params.get(str(parameter.name))
            for value in given if isinstance(given, tuple | list) else (given,):
                _check_value(value, parameter, ctx)
        return left


def _check_value(value: Any, parameter: click.Parameter, ctx: click.Context) -> None:
    """Refuse what no command can work with, wherever it comes from.

    Raises:
        click.BadParameter: Infinity, NaN, a whole number beyond 64 bits, or a text with a zero byte.
    """
    what = None
    if isinstance(value, float) and not math.isfinite(value):
        what = f"{value} is no finite number"
    elif isinstance(value, int) and not -MAX_WHOLE <= value < MAX_WHOLE:
        what = "this whole number is beyond 64 bits"
    elif isinstance(value, str) and "\0" in value:
        what = "the text holds a zero byte"
    if what is not None:
        raise click.BadParameter(what, ctx, parameter)


class Group(_Told, click.Group):
    """The same for a command that has commands of its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-"):
            known(args[0], self.list_commands(ctx), ctx)
        return super().resolve_command(ctx, args)


def known(word: str, names: Sequence[str], ctx: click.Context) -> None:
    """Refuse a word that names no command.

    Raises:
        click.UsageError: It does not; the nearest one is named.
    """
    if word in names:
        return
    near = nearest(word, names)
    told = f"did you mean '{near}'?" if near else f"there are {', '.join(names)}"
    of = f"`{ctx.command_path}` has no command" if ctx.parent is not None else "there is no command"
    raise click.UsageError(f"{of} '{word}': {told}", ctx)


def dressed(command: click.Command, path: tuple[str, ...]) -> Command | Group:
    """A command, and those inside it, with what all have; its parameters are changed in place.

    Args:
        command: As its module defines it.
        path: Its words on the command line.
    """
    taken = {name: getattr(command, name) for name in _TAKEN}
    made: Command | Group
    if isinstance(command, click.Group):
        inner: dict[str, click.Command] = {
            name: dressed(one, (*path, name)) for name, one in command.commands.items()
        }
        taken["epilog"] = command.epilog or "All take --json, -q, --quiet, -v, --verbose and --debug."
        made = Group(**taken, commands=inner, invoke_without_command=command.invoke_without_command)
    else:
        made = Command(**taken)
    made.path = path
    for parameter in made.params:
        if isinstance(parameter.type, click.Choice) and not isinstance(parameter.type, Choice):
            parameter.type = Choice(parameter.type.choices, case_sensitive=parameter.type.case_sensitive)
        if isinstance(parameter, click.Option):
            _name_variable(parameter, path)
            _add_other_form(parameter)
    return made


def key_of(option: click.Option) -> str:
    """What an option is called without its dashes, by its long name: ``min-accuracy``."""
    long = [name for name in option.opts if name.startswith("--")]
    return (long or option.opts)[0].lstrip("-")


def variable_of(option: click.Option, path: Sequence[str]) -> str:
    """The variable that sets an option: ``CIRCUITFIND_DISCOVER_MIN_ACCURACY``."""
    return "_".join((PREFIX, *path, key_of(option))).upper().replace("-", "_")


def variables_of(option: click.Option) -> tuple[str, ...]:
    """Every variable that sets an option, the first that is there before the others."""
    found = option.envvar or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _name_variable(option: click.Option, path: Sequence[str]) -> None:
    if option.expose_value and key_of(option) not in NO_VARIABLE:
        name = variable_of(option, path)
        option.envvar = [name, *(one for one in variables_of(option) if one != name)]


def _add_other_form(option: click.Option) -> None:
    if option.is_bool_flag and not option.secondary_opts and key_of(option) not in NO_OTHER_FORM:
        option.secondary_opts = [f"--no-{key_of(option)}"]


def _write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """The options; of switches that are off by default the first form alone, and a line on the other."""
    rows, short = [], False
    for parameter in command.get_params(ctx):
        row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
        if row is None:
            continue
        assert isinstance(parameter, click.Option)
        if parameter.is_bool_flag and parameter.secondary_opts and parameter.default is not True:
            whole = row[0].partition(" / ")[0]
            if parameter.default is not None:
                row, short = (whole, row[1]), True
        rows.append(row)
    with formatter.section("Options"):
        formatter.write_dl(rows)
        if short:
            formatter.write_paragraph()
            formatter.write_text("A switch is turned off by its --no- form, such as --no-json.")


def folded(text: str, width: int) -> str:
    r"""A help text whose examples, the paragraphs behind ``\b``, fit a width: long lines end in a backslash and go on below."""
    lines, plain = [], False
    for line in inspect.cleandoc(text).partition("\f")[0].splitlines():
        plain = line.strip() == "\b" or (plain and bool(line.strip()))
        lines += _fold(line, width) if plain and len(line) > width else [line]
    return "\n".join(lines)


def _fold(line: str, width: int) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()))
    words, mark, comment = line.strip().partition("  # ")
    above = (
        textwrap.wrap(f"{indent}# {comment.strip()}", width, subsequent_indent=f"{indent}# ") if mark else []
    )
    wrapped = textwrap.wrap(
        words.strip(),
        width - 2,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    if words.lstrip().startswith("circuitfind "):
        wrapped = [f"{one} \\" for one in wrapped[:-1]] + wrapped[-1:]
    return [*above, *wrapped]
