"""The command line. Only names and one-line helps are here; a command's code is imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

import circuitfind
from circuitfind.errors import (
    FAILURE,
    INTERRUPTED,
    OK,
    USAGE,
    CircuitfindError,
    Interrupted,
    UsageError,
    did_you_mean,
)

COMMANDS: dict[str, tuple[str, str]] = {
    "discover": ("circuitfind.cli.discover:discover", "Find a small circuit for a task, and measure it."),
    "backups": (
        "circuitfind.cli.backups:backups",
        "Find what stands in when heads are removed.",
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
    "diff": ("circuitfind.cli.diff:diff", "Say what changed between two circuits."),
    "list": ("circuitfind.cli.results:list_things", "List tasks, models, methods or runs."),
    "render": ("circuitfind.cli.results:render_run", "Draw a run's circuit as SVG, PNG, PDF or DOT."),
    "export": (
        "circuitfind.cli.export:export",
        "Write a run's circuit in the form of another program.",
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
    "init": ("circuitfind.cli.tasks:init", "Write a commented task file to start from."),
    "schema": ("circuitfind.cli.tasks:schema", "Print the JSON Schema of task files, for editors."),
    "doctor": (
        "circuitfind.cli.system:doctor",
        "Check the installation: versions, Graphviz, folders, devices.",
    ),
    "completion": ("circuitfind.cli.system:completion", "Print a shell completion script."),
}
"""Name to (where the command is, one line of help), in the order of the help page."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and loads one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        import importlib

        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command '{args[0]}': {did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: circuitfind discover ioi",
)
@click.version_option(
    circuitfind.__version__, "-V", "--version", prog_name="circuitfind", message="%(prog)s %(version)s"
)
def group() -> None:
    """Find the circuit behind a behaviour of a language model, and measure how much of it the circuit carries."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 fine, 1 a check differs, 2 bad usage, 3 failure, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug, as_json = "--debug" in words, "--json" in words
    try:
        # click gives back the code of its Exit, or what the command returned: None.
        code = group.main(args=words or ["--help"], prog_name="circuitfind", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except (click.Abort, KeyboardInterrupt):
        stopped = Interrupted(
            "interrupted", hint="finished stages are kept, the same command goes on from there"
        )
        if as_json:
            _tell(stopped, as_json)
        else:
            click.echo(f"{stopped.what}: {stopped.hint}", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        _tell(_of_click(error), as_json)
        return USAGE
    except CircuitfindError as error:
        if debug:
            raise
        _tell(error, as_json)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; the interpreter would complain of that at its end
        return OK
    except Exception as error:
        if debug:
            raise
        _tell(_unforeseen(error), as_json)
        return FAILURE


def main() -> None:
    """Entry point of the ``circuitfind`` command; with --debug a traceback, and the same exit codes."""
    try:
        code = run()
    except Exception as error:  # noqa: BLE001  # run lets them through under --debug only
        import traceback

        traceback.print_exception(error)
        code = error.exit_code if isinstance(error, CircuitfindError) else FAILURE
    sys.exit(code)


def _tell(error: CircuitfindError, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps({"version": 1, **error.as_dict()}, indent=1, ensure_ascii=False))
    else:
        click.echo(f"error: {error}", err=True)


def _of_click(error: click.ClickException) -> CircuitfindError:
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "circuitfind"
    return UsageError(error.format_message(), hint=f"see: {command} --help")


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
