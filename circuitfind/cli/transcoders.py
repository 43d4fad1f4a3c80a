"""``circuitfind transcoders train`` and ``circuitfind transcoders eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.common import Screen, common_options, duration, number, table
from circuitfind.cli.options import complete_models, complete_tasks, device_option, in_order, layer_list
from circuitfind.cli.progress import Progress
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.dictionaries.train import Told
    from circuitfind.transcoder_runs import Measured, Trained


@click.group(
    invoke_without_command=True,
    epilog="Both take --json, -q, --quiet, -v, --verbose and --debug.",
)
@click.pass_context
def transcoders(ctx: click.Context) -> None:
    """Train transcoders for a model's MLPs, and measure them.

    \b
    circuitfind transcoders train mini --width 512 --k 16 --out my-transcoders
    circuitfind transcoders eval my-transcoders --model mini
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


source_options = in_order(
    click.option(
        "--text",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Plain text, texts apart by empty lines; or .jsonl with a text in each line.  "
        "[default for mini: its corpus]",
    ),
    click.option("--task", metavar="TASK", shell_complete=complete_tasks, help="Read its prompts."),
    click.option(
        "--count",
        type=int,
        metavar="N",
        help="Prompt pairs to draw from the task.  [default: the task's]",
    ),
)
"""--text, --task and --count."""


@transcoders.command()
@click.argument("model", shell_complete=complete_models)
@click.option("--layers", metavar="LIST", default="all", show_default=True, help="Such as 0,1,5, or all.")
@click.option(
    "--site",
    metavar="NAME",
    help="Train SAEs of it instead: resid_post, attn_out or mlp_out.",
)
@click.option("--width", type=int, metavar="N", required=True, help="Features of each layer.")
@click.option(
    "--activation", metavar="NAME", default="topk", show_default=True, help="topk, relu or jumprelu."
)
@click.option("--k", type=int, metavar="N", help="Features that topk keeps on a token.  [default: 16]")
@click.option(
    "--l0",
    type=float,
    metavar="N",
    help="Features that should fire on a token, of relu and jumprelu.  [default: 16]",
)
@click.option("--l1", type=float, metavar="X", help="Weight of relu's penalty, in place of --l0.")
@click.option("--penalty", metavar="NAME", default="l1", show_default=True, help="Of relu: l1 or tanh.")
@click.option("--skip/--no-skip", default=False, show_default=True, help="A linear map beside the features.")
@source_options
@click.option("--steps", type=int, metavar="N", default=2000, show_default=True, help="Updates.")
@click.option(
    "--batch", type=int, metavar="N", default=1024, show_default=True, help="Tokens in each update."
)
@click.option("--lr", type=float, metavar="X", help="Highest rate of Adam.  [default: by the width]")
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Of weights and order.")
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    required=True,
    help="Where they are written. A stopped training goes on when it is given again.",
)
@click.option("--force", is_flag=True, help="Replace a folder that is there, and begin anew.")
@device_option
@common_options
def train(
    screen: Screen,
    model: str,
    layers: str,
    text: Path | None,
    task: str | None,
    count: int | None,
    out: Path,
    force: bool,
    device: str,
    **chosen: Any,
) -> None:
    """Train a transcoder, or with --site an SAE, for each layer of MODEL.

    \b
    circuitfind transcoders train mini --width 512 --out my-transcoders
    circuitfind transcoders train ./my-model --text corpus.txt --width 4096 --activation jumprelu --out jumps
    circuitfind transcoders train mini --site resid_post --layers 1,2 --width 512 --out my-saes
    """
    from circuitfind.dictionaries.settings import TranscoderSettings
    from circuitfind.transcoder_runs import Source, train_transcoders

    settings = TranscoderSettings(**chosen)
    wanted, source = layer_list(layers), Source(text, task, count)
    with Progress(screen) as progress:
        progress.stage("train", "running", f"{model}, {source.label}")
        found = train_transcoders(
            model,
            settings,
            source,
            out,
            layers=wanted,
            device=device,
            force=force,
            progress=lambda told: progress.stage("train", "running", _how_far(told)),
        )
        progress.stage("train", "finished", duration(found.seconds))
    screen.result({"version": 1, **found.as_dict()}, lambda: _print_trained(screen, found))


def _how_far(told: Told) -> str:
    fvu = " ".join(f"{figures['fvu']:.3f}" for figures in told.layers.values())
    return f"step {told.step} of {told.steps}, unexplained by layer {fvu}"


def _print_trained(screen: Screen, found: Trained) -> None:
    facts = found.result.facts
    settings, count = facts["settings"], len(facts["layers"])
    site = settings.get("site")
    what = number(count, "transcoder") if site is None else f"{number(count, 'SAE')} of {site}"
    screen.out.print(
        f"{what} of {facts['model_name']}: {settings['activation']}, "
        f"{settings['width']} features each, {number(settings['steps'], 'step')} of {settings['batch']} tokens",
        markup=False,
    )
    columns = ("layer", "unexplained", "L0", "dead")
    shown = table(*columns, right=columns)
    for layer, last in facts["last"].items():
        shown.add_row(layer, f"{last['fvu']:.3f}", f"{last['l0']:.1f}", f"{last['dead']:.1%}")
    screen.out.print(shown, markup=False)
    use = f"circuitfind transcoders eval {found.folder} --model {facts['model_name']}"
    if site is not None:
        use = f"circuitfind saes TASK --model {facts['model_name']} --dictionaries {found.folder}"
    screen.out.print(f"{found.folder}: {'measure' if site is None else 'use'} them with: {use}", markup=False)


@transcoders.command("eval")
@click.argument("folder")
@click.option(
    "--model", metavar="NAME", required=True, shell_complete=complete_models, help="What they are of."
)
@source_options
@click.option(
    "--tokens", type=int, metavar="N", default=20_000, show_default=True, help="Of a text, at most."
)
@device_option
@common_options
def evaluate(
    screen: Screen,
    folder: str,
    model: str,
    text: Path | None,
    task: str | None,
    count: int | None,
    tokens: int,
    device: str,
) -> None:
    """Measure the dictionaries in FOLDER: unexplained variance, L0, dead features, and the model that runs on them.

    The metric is of the model with MLPs replaced, without errors: each layer alone, then all. Beside it stands the metric
    with the same MLPs at zero or at their mean; recovered is the share of what the latter costs that is kept.

    \b
    circuitfind transcoders eval my-transcoders --model mini
    circuitfind transcoders eval my-transcoders --model mini --task ioi
    """
    from circuitfind.transcoder_runs import Source, measure_transcoders

    if tokens < 2:
        raise UsageError(f"{tokens} tokens are too few", hint="give at least 2")
    source = Source(text, task, count)
    with Progress(screen) as progress:
        progress.stage("evaluate", "running", f"{folder} in {model}, {source.label}")
        found = measure_transcoders(folder, model, source, device=device, tokens=tokens)
        progress.stage("evaluate", "finished", duration(found.seconds))
    screen.result({"version": 1, **found.as_dict()}, lambda: _print_measured(screen, found))


def _print_measured(screen: Screen, found: Measured) -> None:
    quality = found.quality
    right = "" if quality.accuracy is None else f", accuracy {quality.accuracy:.1%}"
    screen.out.print(
        f"{found.folder} in {found.model}, on {found.data}: {number(quality.prompts, 'text')} of "
        f"{number(quality.tokens, 'token')}; the model's own {quality.metric} is {quality.base:.4f}{right}",
        markup=False,
    )
    titles, rows = quality.table()
    shown = table(*titles, right=titles)
    for row in rows:
        shown.add_row(*row)
    screen.out.print(shown, markup=False)
