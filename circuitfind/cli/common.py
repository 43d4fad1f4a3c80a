"""What every command shares: its common options, its streams, its numbers.

Results go to stdout, progress and notes to stderr. Colour follows the terminal and NO_COLOR (rich knows both).
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from circuitfind.errors import CircuitfindError

if TYPE_CHECKING:
    from rich.table import Table

    from circuitfind.cli.console import Paper

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Screen:
    """Where a command writes, and how much."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    notes: list[str] = field(default_factory=list)

    @cached_property
    def out(self) -> Paper:
        """For results."""
        from circuitfind.cli.console import paper

        return paper()

    @cached_property
    def err(self) -> Paper:
        """For progress and notes."""
        from circuitfind.cli.console import paper

        return paper(stderr=True)

    def result(self, data: Any, show: Callable[[], None]) -> None:
        """Print the result: as JSON, or for people."""
        if self.as_json:
            click.echo(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))
        else:
            show()

    def fail(self, error: CircuitfindError) -> NoReturn:
        """End with an error after a result: with --json stdout holds that one document, and stderr says the rest."""
        if not self.as_json:
            raise error
        if not self.quiet:
            click.echo(f"error: {error}", err=True)
        raise click.exceptions.Exit(error.exit_code)

    def note(self, text: str) -> None:
        """Something that the user should know, also under --json; on stderr."""
        if not self.quiet:
            self.err.print(f"note: {text}", style="yellow", markup=False)


@dataclass
class Wanted:
    """How the command that runs tells of errors; --json and --debug may come from a file or a variable."""

    as_json: bool = False
    debug: bool = False
    words: tuple[str, ...] = ()
    """Of the command line, for advice to say them again with one thing changed."""


wanted = Wanted()
"""Set by ``run`` from the words of the command line, then by the command itself."""


def _load(ctx: click.Context, param: click.Parameter, given: str | None) -> None:
    from circuitfind.cli.configuration import load_defaults

    load_defaults(ctx, param, given)


config_option = click.option(
    "--config",
    metavar="FILE",
    envvar="CIRCUITFIND_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=_load,
    help="Read what is not given from this file.  [default: circuitfind.toml, here or further up]",
)


def common_options(command: F) -> F:
    """Add --config, --json, -q, -v and --debug, and hand the command a ``Screen`` as its first argument."""

    @config_option
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, errors too.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on stderr.")
    @click.option("-v", "--verbose", is_flag=True, help="Say more.")
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, verbose: bool, debug: bool, **kwargs: Any) -> Any:
        from circuitfind.cli.configuration import settle_rivals

        settle_rivals(click.get_current_context(), kwargs)
        wanted.as_json, wanted.debug = as_json, debug
        screen = Screen(as_json, quiet, verbose)
        with _libraries_quiet(screen, debug):
            return command(screen, *args, **kwargs)

    return wrapped  # type: ignore[return-value]  # the same command with more options


@contextmanager
def _libraries_quiet(screen: Screen, debug: bool) -> Iterator[None]:
    """Our own warnings become notes; those of libraries are for --debug."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            screen.note(record.getMessage())

    ours = logging.getLogger("circuitfind")
    handler = Notes(level=logging.WARNING)
    ours.addHandler(handler)
    before, ours.propagate = ours.propagate, debug
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        try:
            yield
        finally:
            ours.removeHandler(handler)
            ours.propagate = before


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A plain table; columns named in ``right`` hold numbers."""
    from rich.box import SIMPLE

    from circuitfind.cli.console import Rows

    made = Rows(box=SIMPLE, pad_edge=False, show_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def share(value: float) -> str:
    """A share as a percentage with as many digits as matter."""
    percent = 100 * value
    return (
        f"{percent:.0f} %"
        if percent >= 10 or percent == 0
        else f"{percent:.1f} %"
        if percent >= 1
        else f"{percent:.2g} %"
    )


def number(count: int, thing: str) -> str:
    """``1 head``, ``2 heads``."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
