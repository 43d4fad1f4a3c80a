"""Options of commands that have much to do: who does it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from circuitfind.cli.common import Screen
from circuitfind.cli.options import in_order
from circuitfind.engine.base import ENGINES

F = TypeVar("F", bound=Callable[..., Any])


def complete_engines(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of engines, for the shell."""
    return [CompletionItem(name) for name in ENGINES if name.startswith(incomplete)]


engine_options = in_order(
    click.option(
        "--engine",
        metavar="NAME",
        shell_complete=complete_engines,
        help=f"{', '.join(ENGINES[:-1])} or {ENGINES[-1]}: who does the work. The results are the same.  "
        "[default: local; processes with --workers]",
    ),
    click.option(
        "--workers", type=int, metavar="N", help="How many work side by side.  [default: cores, or GPUs]"
    ),
    click.option(
        "--address",
        metavar="ADDRESS",
        help="A Ray cluster that runs already, such as auto or ray://head:10001.  [default: one on this machine]",
    ),
)
"""--engine, --workers and --address; for a command that is ``engined``."""


def engined(command: F) -> F:
    """A command whose work the engine does that ``engine_options`` name; it is not given them itself."""

    @wraps(command)
    def working(
        screen: Screen, *args: Any, engine: str | None, workers: int | None, address: str | None, **flags: Any
    ) -> Any:
        from circuitfind.engine.chosen import working_with

        with working_with(engine, workers, address, device=flags["device"], note=screen.note):
            return command(screen, *args, **flags)

    return working  # type: ignore[return-value]  # takes what it takes, and more
