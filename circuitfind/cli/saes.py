"""``circuitfind saes``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from circuitfind.cli.common import Screen, common_options, number, share, table
from circuitfind.cli.lines import RunLines, interval, strongest_nodes
from circuitfind.cli.options import (
    complete_tasks,
    counterfactual_option,
    layer_list,
    model_option,
    picture_option,
    place_options,
    prompt_options,
    rerun_option,
)
from circuitfind.cli.progress import Progress
from circuitfind.config import DEFAULT_TARGET
from circuitfind.errors import UsageError

ABLATIONS = ("resample", "mean", "zero")


@click.command()
@click.argument("task", shell_complete=complete_tasks)
@click.option(
    "--dictionaries",
    metavar="FOLDER",
    required=True,
    help="SAEs of the model: a folder of some, or a hub name (owner/repo:folder).",
)
@click.option(
    "--layers",
    metavar="LIST",
    default="all",
    show_default=True,
    help="Those that read in them, such as 0,1,5.",
)
@model_option()
@click.option(
    "--steps",
    type=int,
    metavar="N",
    default=10,
    show_default=True,
    help="Gradients between ablated and clean, for each SAE; 1 is attribution patching.",
)
@click.option(
    "--ablation",
    metavar="NAME",
    help=f"{', '.join(ABLATIONS)}: what ablated features and errors carry.  [default: the task's]",
)
@click.option("--metric", metavar="NAME", help="logit-diff, prob-diff or log-prob.  [default: the task's]")
@counterfactual_option
@click.option(
    "--faithfulness",
    type=float,
    metavar="SHARE",
    help=f"Keep the fewest nodes that reach it.  [default: {DEFAULT_TARGET}]",
)
@click.option(
    "--node-threshold",
    type=float,
    metavar="SCORE",
    help="Keep nodes with at least this score instead, such as 0.1.",
)
@click.option(
    "--edge-threshold",
    type=float,
    metavar="WEIGHT",
    default=0.01,
    show_default=True,
    help="Keep edges with at least this weight.",
)
@click.option(
    "--evaluations",
    type=int,
    metavar="N",
    default=300,
    show_default=True,
    help="Sets of nodes to try at the most.",
)
@prompt_options
@place_options
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="The run folder itself, in place of one in there.",
)
@picture_option
@rerun_option
@common_options
def saes(
    screen: Screen,
    task: str,
    dictionaries: str,
    layers: str,
    steps: int,
    faithfulness: float | None,
    node_threshold: float | None,
    edge_threshold: float,
    evaluations: int,
    memory: str | None,
    device: str,
    outputs: str | None,
    out: Path | None,
    formats: tuple[str, ...],
    force: bool,
    **flags: Any,
) -> None:
    """Find the few features of SAEs, and errors of theirs, that carry TASK.

    Every SAE stands in its place with what it misses as a node of its own, so that the model is itself until nodes are ablated.
    Nodes are scored by integrated gradients and kept by really ablating all others.

    \b
    circuitfind saes ioi --model mini --dictionaries my-saes
    circuitfind saes ioi --model google/gemma-2-2b --dictionaries google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82
    circuitfind saes my-task.yaml --dictionaries my-saes --node-threshold 0.1 --ablation mean
    """
    from circuitfind.sae_runs import find_features
    from circuitfind.settings import memory_bytes, resolve
    from circuitfind.sparse.options import SparseOptions
    from circuitfind.task.spec import load_task

    if faithfulness is not None and node_threshold is not None:
        raise UsageError(
            "both a target faithfulness and a threshold are given",
            hint="give --faithfulness or --node-threshold",
        )
    if faithfulness is None and node_threshold is None:
        faithfulness = DEFAULT_TARGET
    options = SparseOptions(
        steps=steps,
        faithfulness=faithfulness,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        evaluations=evaluations,
    )
    wanted = layer_list(layers)
    spec = load_task(task)
    settings = resolve(spec, backups=False, **flags)
    if settings.ablation not in ABLATIONS:
        raise UsageError(
            f"features of SAEs have no {settings.ablation} ablation",
            hint=f"use --ablation {', '.join(ABLATIONS)}",
        )
    with Progress(screen) as progress:
        found = find_features(
            spec,
            settings,
            dictionaries,
            options,
            layers=wanted,
            outputs=outputs,
            out=out,
            device=device,
            force=force,
            formats=formats,
            memory=memory_bytes(memory),
            reporter=progress,
        )
    screen.result({"version": 1, **found.summary}, lambda: show_saes(screen, found.summary))


def show_saes(screen: Screen, summary: dict[str, Any]) -> None:
    """A run's verdict in a few lines, and a table of its SAEs."""
    told, counts, errors = RunLines(screen, summary), summary["counts"], summary["errors"]
    of = number(len(summary["sources"]), "SAE")
    told.heading(f"features of {of}, by {summary['conditions']['method']}")
    told.evaluations(low="there, what clean and corrupted prompts have in common is ablated as well")
    told.line(
        "kept",
        f"{number(counts['features'], 'feature')} of {counts['active_features']:,} that fire, "
        f"{number(counts['errors'], 'error')}, {number(counts['edges'], 'edge')}{told.minimal}",
    )
    told.line(
        "errors",
        f"{share(errors['by_score'])} of the summed |score|; faithfulness "
        f"{interval(errors['without_errors'])} without any error, {interval(errors['errors_alone'])} with errors alone",
    )
    told.prompts()
    told.strongest(strongest_nodes(summary))
    told.cost(f"{number(summary['sets_tried'], 'set')} of nodes")
    columns = ("SAE", "stands at", "features", "that fire", "score", "of its error", "measured")
    shown = table(*columns, right=columns[2:])
    for one in summary["sources"]:
        figures = (one["features"], one["errors"], one["effect"])
        shown.add_row(
            one["name"],
            one["hook"],
            f"{one['n_features']:,}",
            f"{one['n_active']:,}",
            *(f"{value:+.3f}" for value in figures),
        )
    screen.out.print(shown, markup=False)
    told.files(graph=True)
