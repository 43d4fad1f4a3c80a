"""Options of commands that load a model: where its weights lie when they do not fit one device."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from circuitfind.cli.options import in_order
from circuitfind.offload import STRATEGIES, offloaded

F = TypeVar("F", bound=Callable[..., Any])


def complete_maps(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of device maps, for the shell."""
    return [CompletionItem(name) for name in STRATEGIES if name.startswith(incomplete)]


placing_options = in_order(
    click.option(
        "--device-map",
        metavar="NAME",
        shell_complete=complete_maps,
        help=f"Where weights lie: {', '.join(STRATEGIES)} or a .json file.  "
        "[default: on --device, all of them]",
    ),
    click.option(
        "--max-memory",
        metavar="SIZES",
        help="What weights may take on each device, such as 0=20GB,cpu=64GB; --device-map auto without one.",
    ),
    click.option(
        "--offload-folder",
        metavar="FOLDER",
        help="Where weights and activations on disk are written.  [default: the temporary folder]",
    ),
    click.option(
        "--offload-activations",
        metavar="WHERE",
        default="auto",
        show_default=True,
        help="auto, none, cpu or disk: where finished runs go that --memory has no room for.",
    ),
)
"""--device-map, --max-memory, --offload-folder and --offload-activations; for a command that is ``placed``."""


def placed(command: F) -> F:
    """A command around whose work what ``placing_options`` were given holds; it is not given them itself."""

    @wraps(command)
    def placing(
        *args: Any,
        device_map: str | None,
        max_memory: str | None,
        offload_folder: str | None,
        offload_activations: str,
        **flags: Any,
    ) -> Any:
        with offloaded(device_map, max_memory, offload_folder, offload_activations):
            return command(*args, **flags)

    return placing  # type: ignore[return-value]  # takes what it takes, and more
