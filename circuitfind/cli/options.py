"""Options that several commands take, each worded once, and how the shell completes names."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from circuitfind.allowed import allowing
from circuitfind.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def complete_tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of tasks, for the shell."""
    from circuitfind.task.spec import find_tasks

    return [CompletionItem(name) for name in find_tasks() if name.startswith(incomplete)]


def complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of models of the zoo, for the shell."""
    from circuitfind.zoo import ZOO

    return [CompletionItem(name, help=text) for name, text in ZOO.items() if name.startswith(incomplete)]


def complete_runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of runs, for the shell."""
    from circuitfind.output.store import Store

    names = ["latest", *(info.name for info in Store(ctx.params.get("outputs")).runs())]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def in_order(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """One decorator of several, which help shows in this order."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def model_option(default: str = "the task's") -> Callable[[F], F]:
    """Add --model; ``default`` says which it is otherwise."""
    return click.option(
        "--model",
        metavar="NAME",
        shell_complete=complete_models,
        help=f"Zoo name, folder or hub name.  [default: {default}]",
    )


PICTURES = ("svg", "png", "pdf", "dot")
"""What a circuit is drawn as; DOT without Graphviz too."""


def format_option(*formats: str) -> Callable[[F], F]:
    """Add --format, with SVG as its default."""
    return click.option(
        "--format",
        "formats",
        metavar="NAME",
        type=click.Choice(formats),
        multiple=True,
        default=("svg",),
        show_default=True,
        help=f"{', '.join(formats[:-1])} or {formats[-1]}; may be repeated.",
    )


counterfactual_option = click.option(
    "--counterfactual", metavar="NAME", help="Which corrupted prompts.  [default: the task's first]"
)
memory_option = click.option(
    "--memory", metavar="SIZE", help="Plan for it, such as 8GB.  [default: most of what is free]"
)


def allow_options(command: F) -> F:
    """Add --trust-remote-code and --read-outside; what they allow holds while the command runs."""

    @click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run the Python code that a model brings along. Only this flag does.",
    )
    @click.option(
        "--read-outside",
        is_flag=True,
        envvar="CIRCUITFIND_READ_OUTSIDE",
        help="Let task files name files outside of their own folder.",
    )
    @wraps(command)
    def wrapped(*args: Any, trust_remote_code: bool, read_outside: bool, **kwargs: Any) -> Any:
        with allowing(trust_remote_code=trust_remote_code, read_outside=read_outside):
            return command(*args, **kwargs)

    return wrapped  # type: ignore[return-value]  # the same command with more options


device_option = in_order(
    click.option(
        "--device", metavar="NAME", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps."
    ),
    allow_options,
)
"""Where a model is loaded: with what that may do."""
outputs_option = click.option(
    "--outputs",
    metavar="FOLDER",
    envvar="CIRCUITFIND_OUTPUTS",
    help="Folder of run folders.  [default: $CIRCUITFIND_OUTPUTS or outputs]",
)
picture_option = format_option("svg", "png", "pdf")
rerun_option = click.option("--force", is_flag=True, help="Run finished stages again.")

draw_options = in_order(
    click.option("--count", type=int, metavar="N", help="Prompt pairs to draw.  [default: the task's]"),
    click.option(
        "--seed", type=int, metavar="N", help="Seed that templates are filled from.  [default: the task's]"
    ),
)
"""--count and --seed: which prompts of a task."""

prompt_options = in_order(
    draw_options,
    click.option(
        "--min-accuracy", type=float, metavar="SHARE", help="Refuse a model below it.  [default: the task's]"
    ),
    click.option("--drop-bad-pairs", is_flag=True, help="Go on without pairs that do not line up."),
)
"""The same, and what is asked of them."""

place_options = in_order(memory_option, device_option, outputs_option)
"""--memory, --device and --outputs: where it runs, and where to."""


def layer_list(text: str) -> list[int] | None:
    """What --layers names; None for all.

    Raises:
        UsageError: It is no list of numbers.
    """
    if text.strip() == "all":
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"'{text}' names no layers", hint="write numbers and commas, such as --layers 0,1, or all"
        ) from error
