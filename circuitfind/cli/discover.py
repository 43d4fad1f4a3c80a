"""``circuitfind discover``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from circuitfind.cli.common import Screen, common_options
from circuitfind.cli.dry_run import dry_run_options, show_plan
from circuitfind.cli.ending import show_ending
from circuitfind.cli.engine_options import engine_options, engined
from circuitfind.cli.options import (
    complete_models,
    complete_tasks,
    counterfactual_option,
    model_option,
    picture_option,
    place_options,
    prompt_options,
    rerun_option,
)
from circuitfind.cli.placing import placed, placing_options
from circuitfind.cli.progress import Progress
from circuitfind.cli.verdict import show_summary
from circuitfind.config import (
    ABLATIONS,
    CONTROLS,
    DEFAULT_CONTROLS,
    DEFAULT_EVALUATIONS,
    DEFAULT_METHOD,
    DEFAULT_TARGET,
    DEFAULT_UNIT_METHOD,
    DIRECTIONS,
    POSITIONS,
    PRECISIONS,
    Controls,
)
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.plan import Asked


def complete_methods(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of methods, for the shell."""
    from circuitfind.methods import METHODS

    return [CompletionItem(n, help=e.summary) for n, e in METHODS.items() if n.startswith(incomplete)]


@click.command()
@click.argument("task", shell_complete=complete_tasks)
@model_option()
@click.option(
    "--model-b",
    metavar="NAME",
    shell_complete=complete_models,
    help="Another model of the same shape: cut edges carry its values, to find where the two differ.",
)
@click.option(
    "--method",
    metavar="NAME",
    shell_complete=complete_methods,
    help="How nodes or edges are scored; see `circuitfind list methods`.  "
    f"[default: {DEFAULT_METHOD}, with units {DEFAULT_UNIT_METHOD}]",
)
@click.option(
    "-o",
    "--option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    help="An option of the method, such as steps=10; may be repeated.",
)
@click.option(
    "--metric", metavar="NAME", help="logit-diff, prob-diff, log-prob, kl or accuracy.  [default: the task's]"
)
@click.option(
    "--ablation", metavar="NAME", help=f"{', '.join(ABLATIONS)}: what cut edges carry.  [default: the task's]"
)
@click.option("--direction", metavar="NAME", help=f"{' or '.join(DIRECTIONS)}.  [default: the task's]")
@counterfactual_option
@click.option(
    "--faithfulness",
    type=float,
    metavar="SHARE",
    help=f"Prune to the smallest circuit that reaches it.  [default: {DEFAULT_TARGET}]",
)
@click.option("--edges", type=int, metavar="N", help="Prune to the N strongest edges instead.")
@click.option(
    "--threshold", type=float, metavar="SCORE", help="Prune to edges with at least this score instead."
)
@click.option(
    "--evaluations",
    type=int,
    metavar="N",
    default=DEFAULT_EVALUATIONS,
    show_default=True,
    help="Circuits to try at the most.",
)
@click.option(
    "--nodes",
    metavar="KINDS",
    default="heads,mlps",
    show_default=True,
    help="What circuits are made of: heads,mlps; heads,neurons; heads,features; or features, with attention frozen.",
)
@click.option(
    "--dictionaries",
    metavar="PLACE",
    help="Transcoders whose features are nodes: a folder or a hub name.  [default: those that come with the model]",
)
@click.option(
    "--errors",
    metavar="NAME",
    default="frozen",
    show_default=True,
    help="frozen or recomputed: what dictionaries miss, when something else is replaced.",
)
@prompt_options
@click.option(
    "--positions",
    metavar="NAME",
    default="none",
    show_default=True,
    help=f"{', '.join(POSITIONS)}: which positions are scored apart.",
)
@click.option(
    "--precision",
    metavar="NAME",
    default="fp32",
    show_default=True,
    help=f"{', '.join(PRECISIONS)}: what scores and pruning are computed in.",
)
@click.option(
    "--backups/--no-backups",
    default=True,
    show_default=True,
    help="Whether to look for what stands in when heads are removed.",
)
@click.option("--include-backups", is_flag=True, help="Let what stands in join the circuit.")
@click.option(
    "--controls",
    type=click.Choice(CONTROLS),
    default=DEFAULT_CONTROLS,
    show_default=True,
    help="How thoroughly the circuit is held against controls, on prompts that it was not pruned on.",
)
@click.option(
    "--views/--no-views",
    default=True,
    show_default=True,
    help="Whether to compute what a report shows beside: effects of every node, curves, attention, every prompt.",
)
@click.option(
    "--names/--no-names",
    default=True,
    show_default=True,
    help="With neurons or features: whether to say what they are, as `circuitfind name` does.",
)
@place_options
@placing_options
@engine_options
@picture_option
@rerun_option
@dry_run_options
@common_options
@placed
@engined
def discover(
    screen: Screen,
    task: str,
    options: tuple[str, ...],
    memory: str | None,
    device: str,
    outputs: str | None,
    formats: tuple[str, ...],
    force: bool,
    dry_run: Asked | None,
    controls: Controls,
    views: bool,
    names: bool,
    **flags: Any,
) -> None:
    """Find a small circuit for TASK (a name or a YAML file), and measure it.

    The exit code is 1 where the circuit does no better than a control, or the model does not do the task on new prompts.

    \b
    circuitfind discover ioi
    circuitfind discover ioi --model gpt2 --faithfulness 0.85
    circuitfind discover gendered-pronoun --nodes heads,features
    circuitfind discover ioi --model ./before --model-b ./after
    circuitfind discover my-task.yaml --model ./my-model --method activation-patching
    """
    from circuitfind.pipeline import discover_task
    from circuitfind.session import Session
    from circuitfind.settings import memory_bytes, resolve
    from circuitfind.task.spec import load_task

    spec = load_task(task)
    settings = resolve(spec, options=_named(options), **flags)
    budget = memory_bytes(memory)
    if dry_run is not None and settings.nodes == "features":
        raise UsageError(
            "what --nodes features takes is not estimated",
            hint="leave out --dry-run, or give --nodes heads,features",
        )
    if dry_run is not None:
        from circuitfind.plan import make_plan

        plan = make_plan(
            Session(spec, settings, device, memory=budget),
            outputs,
            force=force,
            formats=formats,
            controls=controls,
            views=views,
            asked=dry_run,
        )
        screen.result({"version": 1, **plan.as_dict()}, lambda: show_plan(screen, plan))
        return
    shared: dict[str, Any] = {
        "outputs": outputs,
        "device": device,
        "force": force,
        "formats": formats,
        "memory": budget,
    }
    if settings.nodes == "features":
        from circuitfind.cli.features import show_features
        from circuitfind.feature_runs import discover_features

        with Progress(screen) as progress:
            graph = discover_features(spec, settings, reporter=progress, **shared)
        screen.result({"version": 1, **graph.summary}, lambda: show_features(screen, graph.summary))
        return
    with Progress(screen, controls) as progress:
        found = discover_task(spec, settings, reporter=progress, controls=controls, views=views, **shared)
        if names and settings.units:
            from circuitfind.naming_runs import name_found

            name_found(found, device=device, force=force, reporter=progress)
    tell = show_summary if screen.verbose else show_ending
    screen.result({"version": 1, **found.summary}, lambda: tell(screen, found.summary, found.circuit))
    if (found.summary["evidence"] or {}).get("refuted"):
        raise click.exceptions.Exit(1)


def _named(options: tuple[str, ...]) -> dict[str, str]:
    """``NAME=VALUE`` as a mapping."""
    for text in options:
        if "=" not in text.strip("="):
            raise UsageError(
                f"--option {text} gives no value", hint="write it as NAME=VALUE, such as --option steps=10"
            )
    return {name.strip(): value.strip() for name, _, value in (text.partition("=") for text in options)}
