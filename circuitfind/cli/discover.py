"""``circuitfind discover``."""

from __future__ import annotations

import time
from typing import Any

import click
from click.shell_completion import CompletionItem

from circuitfind.cli.common import Screen, common_options, duration, number, share, size, table
from circuitfind.config import ABLATIONS, DEFAULT_TARGET, DIRECTIONS


def complete_tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of tasks, for the shell."""
    from circuitfind.task.spec import find_tasks

    return [CompletionItem(name) for name in find_tasks() if name.startswith(incomplete)]


def complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of models of the zoo, for the shell."""
    from circuitfind.zoo import ZOO

    return [CompletionItem(name, help=text) for name, text in ZOO.items() if name.startswith(incomplete)]


@click.command()
@click.argument("task", shell_complete=complete_tasks)
@click.option(
    "--model",
    metavar="NAME",
    shell_complete=complete_models,
    help="Zoo name, folder or hub name.  [default: the task's]",
)
@click.option(
    "--method",
    metavar="NAME",
    help="How nodes or edges are scored; see `circuitfind list methods`.  [default: eap]",
)
@click.option(
    "--metric", metavar="NAME", help="logit-diff, prob-diff, log-prob, kl or accuracy.  [default: the task's]"
)
@click.option(
    "--ablation", metavar="NAME", help=f"{', '.join(ABLATIONS)}: what cut edges carry.  [default: the task's]"
)
@click.option("--direction", metavar="NAME", help=f"{' or '.join(DIRECTIONS)}.  [default: the task's]")
@click.option(
    "--counterfactual", metavar="NAME", help="Which corrupted prompts.  [default: the task's first]"
)
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
    default=2000,
    show_default=True,
    help="Circuits to try at the most.",
)
@click.option("--count", type=int, metavar="N", help="Prompt pairs to draw.  [default: the task's]")
@click.option(
    "--seed", type=int, metavar="N", help="Seed that templates are filled from.  [default: the task's]"
)
@click.option(
    "--min-accuracy", type=float, metavar="SHARE", help="Refuse a model below it.  [default: the task's]"
)
@click.option("--drop-bad-pairs", is_flag=True, help="Go on without pairs that do not line up.")
@click.option("--device", metavar="NAME", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option(
    "--outputs", metavar="FOLDER", help="Folder of run folders.  [default: $CIRCUITFIND_OUTPUTS or outputs]"
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
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@common_options
def discover(
    screen: Screen,
    task: str,
    device: str,
    outputs: str | None,
    formats: tuple[str, ...],
    force: bool,
    dry_run: bool,
    **flags: Any,
) -> None:
    """Find a small circuit for TASK (a name or a YAML file), and measure it.

    \b
    circuitfind discover ioi
    circuitfind discover ioi --model gpt2 --faithfulness 0.85
    circuitfind discover my-task.yaml --model ./my-model --method activation-patching
    """
    from circuitfind.pipeline import discover_task
    from circuitfind.session import Session
    from circuitfind.settings import resolve
    from circuitfind.task.spec import load_task

    spec = load_task(task)
    settings = resolve(spec, **flags)
    if dry_run:
        from circuitfind.plan import make_plan

        plan = make_plan(Session(spec, settings, device), outputs, force=force, formats=formats)
        screen.result({"version": 1, **plan.as_dict()}, lambda: _show_plan(screen, plan))
        return
    with _Progress(screen) as progress:
        found = discover_task(
            spec, settings, outputs=outputs, device=device, force=force, formats=formats, reporter=progress
        )
    screen.result({"version": 1, **found.summary}, lambda: show_summary(screen, found.summary, found.circuit))


class _Progress:
    """Stages and a running line on stderr; one line for each stage where stderr is no terminal."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._rows = 0
        self._start = time.monotonic()
        self._text = ""
        self._status: Any = None

    def __enter__(self) -> _Progress:
        if not self._screen.quiet and self._screen.err.is_terminal:
            self._status = self._screen.err.status("")
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._status.stop()

    def stage(self, name: str, state: str, detail: str = "") -> None:
        if self._screen.quiet:
            return
        text = f"{name}: {detail}" if detail else name
        if state == "running":
            self._text = text
            self._update()
            if detail and self._screen.verbose:
                self._screen.err.print(f"  {text}", markup=False)
        else:
            self._screen.err.print(
                f"{'=' if state == 'reused' else '+'} {name:<9} {state}{', ' + detail if detail else ''}",
                markup=False,
            )

    def progress(self, rows: int) -> None:
        self._rows += rows
        self._update()

    def note(self, text: str) -> None:
        self._screen.note(text)

    def _update(self) -> None:
        if self._status is not None:
            self._status.update(
                f"{self._text}  ({self._rows} patched prompts, {duration(time.monotonic() - self._start)})"
            )


def show_summary(screen: Screen, summary: Any, circuit: Any) -> None:
    """A run's verdict in a few lines."""
    out, conditions, counts, prompts = (
        screen.out,
        summary["conditions"],
        summary["counts"],
        summary["prompts"],
    )
    out.print(
        f"[bold]{conditions['task']}[/bold] on [bold]{conditions['model']}[/bold]: a circuit found by {conditions['method']}"
    )
    out.print(
        f"  under         {conditions['ablation']} ablation, counterfactual {conditions['counterfactual']}, "
        f"metric {conditions['metric']}, {conditions['direction']}, pruned to {conditions['rule']}"
    )
    for i, found in enumerate(summary["evaluations"]):
        f = found["faithfulness"]
        out.print(
            f"  {'faithfulness' if i == 0 else '':<13} [bold]{f['value']:.3f}[/bold] \\[{f['low']:.3f}, {f['high']:.3f}] "
            f"under {found['ablation']} ablation ({found['metric']} {found['circuit']:.3f}; "
            f"model {found['full']:.3f}, empty {found['empty']:.3f}; {found['n_prompts']} prompts)"
        )
        if i and f["value"] < 0.5:
            out.print(f"{'':<16}(there, what clean and corrupted prompts have in common is cut as well)")
    minimal = ", none of which can be dropped alone" if summary["minimal"] else ""
    out.print(
        f"  kept          {counts['nodes']} nodes ({number(counts['heads'], 'head')}, "
        f"{number(counts['mlps'], 'MLP')}), {counts['edges']} of {counts['edges_in_model']} edges "
        f"({share(counts['share_of_edges'])}){minimal}"
    )
    left = [f"{prompts['answered_wrongly']} answered wrongly"] if prompts["answered_wrongly"] else []
    left += [f"{prompts['dropped_unaligned']} not aligned"] if prompts["dropped_unaligned"] else []
    split = sum(prompts["left_out"].values())
    words = f"; {number(split, 'slot value')} left out, not one token here" if split else ""
    out.print(
        f"  prompts       {prompts['used']} used{' (left out: ' + ', '.join(left) + ')' if left else ''}, "
        f"accuracy {share(prompts['accuracy'])}{words}"
    )
    if summary["known"]:
        known = summary["known"]
        out.print(
            f"  known circuit precision {known['precision']:.2f}, recall {known['recall']:.2f} over its {known['level']}"
        )
    scored = {name: s for name, s in circuit.edge_scores.items() if _size(s) > 0}
    scored = scored or {name: s for name, s in circuit.node_scores.items() if _size(s) > 0}  # node methods
    strongest = sorted(scored, key=lambda name: -_size(scored[name]))[:5]
    if strongest:
        shown = ", ".join(f"{name} {scored[name]:+.2g}" for name in strongest)
        out.print(f"  strongest     {shown}", markup=False)
    out.print(
        f"  cost          {duration(summary['seconds'])}, {summary['forward_passes']} forward and "
        f"{summary['backward_passes']} backward passes, {summary['circuits_tried']} circuits tried"
    )
    out.print(f"  run           {summary['folder']}", markup=False)
    for picture in summary["pictures"]:
        out.print(f"  picture       {picture}", markup=False)


def _size(score: float | None) -> float:
    return abs(score) if score is not None and score == score else 0.0


def _show_plan(screen: Screen, plan: Any) -> None:
    rows = table("stage", "state", "forward", "backward", "time", "", right=("forward", "backward", "time"))
    for stage in plan.stages:
        time_text = duration(stage.seconds) if stage.seconds else ""
        rows.add_row(
            stage.name,
            stage.state,
            str(stage.forward or ""),
            str(stage.backward or ""),
            time_text,
            stage.note,
        )
    screen.out.print(f"plan for {plan.run}", markup=False)
    screen.out.print(rows)
    if plan.memory_bytes is not None:
        screen.out.print(
            f"{plan.prompts} prompt pairs, {plan.tokens} tokens a pass; about {duration(plan.seconds)} and "
            f"at most about {size(plan.memory_bytes)} of memory. A pass is one over all prompts; nothing was written."
        )
    elif all(stage.state == "cached" for stage in plan.stages):
        screen.out.print("everything is cached: the model would not be loaded")
    else:
        screen.out.print("only the pictures are to be drawn: the model would not be loaded")
