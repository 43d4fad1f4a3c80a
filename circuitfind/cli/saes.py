"""``circuitfind saes``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from circuitfind.cli.common import Screen, common_options, duration, number, share, table
from circuitfind.cli.discover import complete_models, complete_tasks
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
@click.option(
    "--model",
    metavar="NAME",
    shell_complete=complete_models,
    help="Zoo name, folder or hub name.  [default: the task's]",
)
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
@click.option(
    "--counterfactual", metavar="NAME", help="Which corrupted prompts.  [default: the task's first]"
)
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
@click.option("--count", type=int, metavar="N", help="Prompt pairs to draw.  [default: the task's]")
@click.option(
    "--seed", type=int, metavar="N", help="Seed that templates are filled from.  [default: the task's]"
)
@click.option(
    "--min-accuracy", type=float, metavar="SHARE", help="Refuse a model below it.  [default: the task's]"
)
@click.option("--drop-bad-pairs", is_flag=True, help="Go on without pairs that do not line up.")
@click.option("--memory", metavar="SIZE", help="Plan for it, such as 8GB.  [default: most of what is free]")
@click.option("--device", metavar="NAME", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option(
    "--outputs", metavar="FOLDER", help="Folder of run folders.  [default: $CIRCUITFIND_OUTPUTS or outputs]"
)
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="The run folder itself, in place of one in there.",
)
@click.option(
    "--format",
    "formats",
    metavar="NAME",
    type=click.Choice(("svg", "png", "pdf")),
    multiple=True,
    default=("svg",),
    show_default=True,
    help="svg, png or pdf; may be repeated.",
)
@click.option("--force", is_flag=True, help="Run finished stages again.")
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
    wanted = _layers(layers)
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
    screen.result({"version": 1, **found.summary}, lambda: _show(screen, found.summary))


def _layers(text: str) -> list[int] | None:
    if text.strip() == "all":
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"'{text}' names no layers", hint="write numbers and commas, such as --layers 0,1, or all"
        ) from error


def _show(screen: Screen, summary: dict[str, Any]) -> None:
    out, conditions, counts = screen.out, summary["conditions"], summary["counts"]
    out.print(
        f"[bold]{conditions['task']}[/bold] on [bold]{conditions['model']}[/bold]: features of "
        f"{number(len(summary['sources']), 'SAE')}, by {conditions['method']}"
    )
    out.print(
        f"  under         {conditions['ablation']} ablation, counterfactual {conditions['counterfactual']}, "
        f"metric {conditions['metric']}, pruned to {conditions['rule']}"
    )
    for i, found in enumerate(summary["evaluations"]):
        out.print(
            f"  {'' if i else 'faithfulness':<13} {_interval(found['faithfulness'])} under {found['ablation']} ablation "
            f"({found['metric']} {found['circuit']:.3f}; model {found['full']:.3f}, empty {found['empty']:.3f}; "
            f"{found['n_prompts']} prompts)",
            markup=False,
        )
        if i and found["faithfulness"]["value"] < 0.5:
            out.print(f"{'':<16}(there, what clean and corrupted prompts have in common is ablated as well)")
    minimal = ", none of which can be dropped alone" if summary["minimal"] else ""
    out.print(
        f"  kept          {number(counts['features'], 'feature')} of {counts['active_features']:,} that fire, "
        f"{number(counts['errors'], 'error')}, {number(counts['edges'], 'edge')}{minimal}"
    )
    errors = summary["errors"]
    out.print(
        f"  errors        {share(errors['by_score'])} of the summed |score|; faithfulness "
        f"{_interval(errors['without_errors'])} without any error, {_interval(errors['errors_alone'])} with errors alone",
        markup=False,
    )
    prompts = summary["prompts"]
    wrong = (
        f" ({prompts['answered_wrongly']} answered wrongly left out)" if prompts["answered_wrongly"] else ""
    )
    out.print(f"  prompts       {prompts['used']} used{wrong}, accuracy {share(prompts['accuracy'])}")
    strongest = ", ".join(f"{node['name']} {node['score']:+.2g}" for node in summary["strongest"][:6])
    out.print(f"  strongest     {strongest}", markup=False)
    out.print(
        f"  cost          {duration(summary['seconds'])}, {summary['forward_passes']} forward and "
        f"{summary['backward_passes']} backward passes, {number(summary['sets_tried'], 'set')} of nodes tried"
    )
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
    out.print(shown, markup=False)
    out.print(f"  run           {summary['folder']}", markup=False)
    out.print(f"  graph         {summary['graph']}", markup=False)
    for picture in summary["pictures"]:
        out.print(f"  picture       {picture}", markup=False)


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
