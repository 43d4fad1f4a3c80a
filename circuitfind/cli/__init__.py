"""The command line. Only names and one-line helps are here; a command's code is imported when it is called."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Any

import click

import circuitfind
from circuitfind.cli.command import Command, Group, dressed, known
from circuitfind.cli.common import wanted
from circuitfind.errors import (
    FAILURE,
    INTERRUPTED,
    OK,
    USAGE,
    CircuitfindError,
    Interrupted,
    UsageError,
    nearest,
    shortened,
)

COMMANDS: dict[str, tuple[str, str]] = {
    "discover": ("circuitfind.cli.discover:discover", "Find a small circuit for a task, and measure it."),
    "sweep": (
        "circuitfind.cli.sweep:sweep",
        "Run several tasks, models and methods from one file.",
    ),
    "backups": (
        "circuitfind.cli.backups:backups",
        "Find what stands in when heads are removed.",
    ),
    "patch": (
        "circuitfind.cli.patch:patch",
        "Patch nodes or edges by doses, and plot the answer.",
    ),
    "attribute": (
        "circuitfind.cli.attribute:attribute",
        "Trace the transcoder features that build up the next token.",
    ),
    "saes": ("circuitfind.cli.saes:saes", "Find the few SAE features that carry a task."),
    "evaluate": (
        "circuitfind.cli.evaluate:evaluate",
        "Measure a circuit on new prompts, against controls.",
    ),
    "certify": ("circuitfind.cli.evaluate:certify", "Certify a circuit, or refuse it with the reasons."),
    "check": (
        "circuitfind.cli.check:check",
        "Run tasks, and compare with what they expect and gave before.",
    ),
    "show": ("circuitfind.cli.results:show", "Show what a run found."),
    "report": ("circuitfind.cli.report:report", "Write a run's report as one HTML file, or compare two."),
    "view": ("circuitfind.cli.view:view", "Look at a run's report, or at all runs, in the browser."),
    "diff": ("circuitfind.cli.diff:diff", "Say what changed between two circuits."),
    "prune": (
        "circuitfind.cli.prune:prune",
        "Make a run's circuit smaller or larger, without the model.",
    ),
    "list": ("circuitfind.cli.results:list_things", "List tasks, models, methods or runs."),
    "figures": ("circuitfind.cli.figures:figures", "Draw a run's charts as figures for a paper."),
    "render": ("circuitfind.cli.results:render_run", "Draw a run's circuit as SVG, PNG, PDF or DOT."),
    "export": (
        "circuitfind.cli.export:export",
        "Write a run's circuit in other forms, or read theirs.",
    ),
    "name": (
        "circuitfind.cli.naming:name",
        "Say where neurons and features fire and what they write.",
    ),
    "label": (
        "circuitfind.cli.naming:label",
        "Give parts of a model labels.",
    ),
    "transcoders": (
        "circuitfind.cli.transcoders:transcoders",
        "Train transcoders for a model's MLPs, and measure them.",
    ),
    "validate": ("circuitfind.cli.tasks:validate", "Check a task file, and its prompts against a model."),
    "prompts": (
        "circuitfind.cli.prompts:prompts",
        "Check, show and suggest prompt pairs.",
    ),
    "init": ("circuitfind.cli.tasks:init", "Write a commented task file to start from."),
    "schema": ("circuitfind.cli.tasks:schema", "Print the JSON Schema of task files, for editors."),
    "doctor": (
        "circuitfind.cli.system:doctor",
        "Check the installation: versions, Graphviz, folders, devices.",
    ),
    "config": (
        "circuitfind.cli.config:config",
        "Say what options are when they are not given, and from where.",
    ),
    "completion": ("circuitfind.cli.system:completion", "Print a shell completion script."),
}
"""Name to (where the command is, one line of help), in the order of the help page."""


SECTIONS: dict[str, tuple[str, ...]] = {
    "Find": ("discover", "sweep", "backups", "attribute", "saes", "patch"),
    "Evidence": ("evaluate", "certify", "check"),
    "Look": ("show", "report", "view", "figures", "render", "diff", "name", "label"),
    "Files": ("list", "prune", "export", "transcoders"),
    "Tasks": ("init", "validate", "prompts", "schema"),
    "Set-up": ("config", "doctor", "completion"),
}
"""Headings of the help page, and what stands below them."""

_found: dict[str, Command | Group] = {}


def find(name: str) -> Command | Group:
    """A command by its name, imported when it is first asked for."""
    if name not in _found:
        import importlib

        module, _, attribute = COMMANDS[name][0].partition(":")
        _found[name] = dressed(getattr(importlib.import_module(module), attribute), (name,))
    return _found[name]


class LazyGroup(click.Group):
    """A group that knows its commands by name and loads one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return find(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        told = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in COMMANDS if name not in told)
        width = max(map(len, COMMANDS))
        for title, names in (*SECTIONS.items(), ("Others", others)):
            rows = [(f"{name:<{width}}", COMMANDS[name][1]) for name in names if name in COMMANDS]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-"):
            known(args[0], list(COMMANDS), ctx)
        return super().resolve_command(ctx, args)


def _remember(ctx: click.Context, _param: click.Parameter, given: str | None) -> None:
    if given:
        ctx.meta["circuitfind.config"] = given


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: circuitfind discover ioi",
)
@click.version_option(
    circuitfind.__version__, "-V", "--version", prog_name="circuitfind", message="%(prog)s %(version)s"
)
@click.option(
    "--config",
    metavar="FILE",
    expose_value=False,
    callback=_remember,
    help="Read what is not given from this file, in place of circuitfind.toml.",
)
def group() -> None:
    """Find the circuit behind a behaviour of a language model, and measure how much of it the circuit carries."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 fine, 1 a check differs, 2 bad usage, 3 failure, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    wanted.as_json, wanted.debug = _switched(words, "json"), _switched(words, "debug")
    wanted.words = tuple(words)
    try:
        # click gives back the code of its Exit, or what the command returned: None.
        code = group.main(args=words or ["--help"], prog_name="circuitfind", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except (click.Abort, KeyboardInterrupt):
        stopped = Interrupted(
            "interrupted", hint="finished stages are kept, the same command goes on from there"
        )
        if wanted.as_json:
            _tell(stopped)
        else:
            click.echo(f"{stopped.what}: {stopped.hint}", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        _tell(_of_click(error))
        return USAGE
    except CircuitfindError as error:
        if wanted.debug:
            raise
        _tell(error)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; the interpreter would complain of that at its end
        return OK
    except Exception as error:
        if wanted.debug:
            raise
        told = _of_name(error) or _unforeseen(error)
        _tell(told)
        return told.exit_code


def _switched(words: Sequence[str], name: str) -> bool:
    """Whether the last of the two forms of a switch is the first one."""
    forms = [word for word in words if word in (f"--{name}", f"--no-{name}")]
    return bool(forms) and forms[-1] == f"--{name}"


def main() -> None:
    """Entry point of the ``circuitfind`` command; with --debug a traceback, and the same exit codes."""
    try:
        code = run()
    except Exception as error:  # noqa: BLE001  # run lets them through under --debug only
        import traceback

        traceback.print_exception(error)
        code = error.exit_code if isinstance(error, CircuitfindError) else FAILURE
    sys.exit(code)


def _tell(error: CircuitfindError) -> None:
    if wanted.as_json:
        import json

        click.echo(json.dumps({"version": 1, **error.as_dict()}, indent=1, ensure_ascii=False))
    else:
        click.echo(f"error: {error}", err=True)


def _of_click(error: click.ClickException) -> CircuitfindError:
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "circuitfind"
    if isinstance(error, click.NoSuchOption):
        # Of both forms of a switch the first is meant, unless the other is spelt.
        mine = [name for name in error.possibilities or () if not name.startswith("--no-")]
        near = nearest(error.option_name, mine or error.possibilities or ())
        if near is not None:
            what = f"`{command}` has no option {error.option_name}"
            return UsageError(what, hint=f"did you mean {near}? See: {command} --help")
    return UsageError(error.format_message(), hint=f"see: {command} --help")


_NO_NAME = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


def _of_name(error: Exception) -> CircuitfindError | None:
    """The error of a name that no file can have, which the system refuses wherever it is first looked for."""
    named = isinstance(error, OSError) and error.errno in _NO_NAME
    if not (named or isinstance(error, UnicodeEncodeError) or "embedded null" in str(error)):
        return None
    name = getattr(error, "filename", None)
    why = getattr(error, "strerror", None) or str(error)
    what = "a name" if name is None else f"'{shortened(str(name), 120)}'"
    return UsageError(f"{what} can be no file: {why}", hint="check the names of files and folders")


def _unforeseen(error: Exception) -> CircuitfindError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return CircuitfindError(
            f"out of memory: {text}",
            hint="plan for less (--memory), use fewer prompts (--count), a smaller model, or another --device",
        )
    return CircuitfindError(
        f"{type(error).__name__}: {text}",
        hint="this should not happen; please report it with the output of --debug",
    )
