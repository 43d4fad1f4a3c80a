"""``circuitfind attribute``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.common import Screen, common_options, number, share, table
from circuitfind.cli.options import complete_tasks, device_option, model_option, picture_option
from circuitfind.cli.placing import placed, placing_options
from circuitfind.cli.progress import Progress
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.output.attribution import Attributed

SHOWN = 15
"""Rows of a table."""


@click.command()
@click.argument("source", required=False, shell_complete=complete_tasks)
@click.option("--text", metavar="TEXT", help="The prompt.")
@click.option("--tokens", metavar="IDS", help="The prompt as token ids, such as 3,17,8.")
@model_option("the task's, or mini")
@click.option(
    "--dictionaries",
    metavar="FOLDER",
    help="Its transcoders, or a cross-layer transcoder: a folder or hub name.  [default for mini: its own]",
)
@click.option(
    "--bos/--no-bos",
    default=None,
    help="Put the token that begins a text in front of it.  [default: as the tokenizer does]",
)
@click.option("--count", type=int, metavar="N", help="Prompts of the task.  [default: 8]")
@click.option("--positions", is_flag=True, help="Keep the positions that the task names apart.")
@click.option(
    "--max-features",
    type=int,
    metavar="N",
    default=7500,
    show_default=True,
    help="Trace so many features at the most, the most influential.",
)
@click.option(
    "--max-logits",
    type=int,
    metavar="N",
    default=10,
    show_default=True,
    help="Trace so many logits at the most.",
)
@click.option(
    "--logit-probability",
    type=float,
    metavar="SHARE",
    default=0.95,
    show_default=True,
    help="Trace the likeliest logits until they have it.",
)
@click.option(
    "--node-threshold",
    type=float,
    metavar="SHARE",
    default=0.8,
    show_default=True,
    help="Keep the most influential nodes that have this share of influence.",
)
@click.option(
    "--edge-threshold",
    type=float,
    metavar="SHARE",
    default=0.98,
    show_default=True,
    help="Keep the edges between them that have this share of it.",
)
@click.option(
    "--draw", type=int, metavar="N", default=30, show_default=True, help="Features and errors in the picture."
)
@picture_option
@click.option("--slug", metavar="NAME", help="Name of the exported graph and its file.  [default: graph]")
@click.option("--scan", metavar="NAME", help="Model name in the exported graph.  [default: the model's]")
@device_option
@placing_options
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where files are written.  [default: attribution-MODEL-HASH in $CIRCUITFIND_OUTPUTS or outputs]",
)
@common_options
@placed
def attribute(
    screen: Screen,
    source: str | None,
    text: str | None,
    tokens: str | None,
    **flags: Any,
) -> None:
    """Trace which transcoder features build up the next token, with attention frozen.

    Of a prompt (--text, --tokens), or of the clean prompts of SOURCE, a task, averaged. Where SOURCE is a folder that this
    command wrote, its graphs are pruned and drawn anew, without the model.

    \b
    circuitfind attribute --text "When Mary and John went to the store, John gave a drink to"
    circuitfind attribute ioi --count 16
    circuitfind attribute outputs/attribution-mini-1a2b3c4d --node-threshold 0.6
    """
    from circuitfind.attribution_runs import (
        DEFAULT_MODEL,
        attribute_prompt,
        attribute_task,
        is_saved,
        reprune,
    )
    from circuitfind.output.attribution import Look

    prompts = [name for name, given in (("--text", text), ("--tokens", tokens)) if given is not None]
    if len(prompts) + (source is not None) != 1:
        given = ", ".join([*(["SOURCE"] if source else []), *prompts]) or "nothing"
        raise UsageError(
            f"attribute needs one thing to trace, and was given {given}",
            hint='give --text "A prompt", --tokens 3,17,8, a task, or a folder of finished graphs',
        )
    look = Look(
        node_threshold=flags["node_threshold"],
        edge_threshold=flags["edge_threshold"],
        draw=flags["draw"],
        formats=tuple(dict.fromkeys(flags["formats"])),
        slug=flags["slug"],
        scan=flags["scan"],
        positions=flags["positions"],
    )
    saved = source is not None and is_saved(source)
    _check(source, saved, flags)
    with Progress(screen) as progress:
        if source is not None and saved:
            found = reprune(source, look=look, out=flags["out"], reporter=progress)
        else:
            from circuitfind.attribution.build import Options

            common = {
                "dictionaries": flags["dictionaries"],
                "options": Options(flags["max_features"], flags["max_logits"], flags["logit_probability"]),
                "look": look,
                "out": flags["out"],
                "device": flags["device"],
                "reporter": progress,
            }
            if source is not None:
                found = attribute_task(source, model=flags["model"], count=flags["count"], **common)
            else:
                found = attribute_prompt(
                    text=text,
                    tokens=None if tokens is None else _ids(tokens),
                    model=flags["model"] or DEFAULT_MODEL,
                    bos=flags["bos"],
                    **common,
                )
    screen.result(found.as_dict(), lambda: _show(screen, found))


def _check(source: str | None, saved: bool, flags: dict[str, Any]) -> None:
    """Refuse flags that would be passed over."""
    if source is None:
        for name in ("count", "positions"):
            if flags[name]:
                raise UsageError(f"--{name} is of a task's prompts", hint="give a task")
    elif flags["bos"] is not None:
        raise UsageError("--bos is of a prompt; a task says so itself (prepend-bos)", hint="leave it out")
    if saved:
        for name in ("model", "dictionaries", "count"):
            if flags[name] is not None:
                raise UsageError(
                    f"--{name} cannot change a finished graph", hint="leave it out, or trace the prompt again"
                )
    if flags["count"] is not None and flags["count"] < 1:
        raise UsageError(f"{flags['count']} prompts are none", hint="give at least 1")


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError as error:
        raise UsageError(f"'{text}' is no list of token ids", hint="such as --tokens 3,17,8") from error


def _show(screen: Screen, found: Attributed) -> None:
    out = screen.out
    if found.average is not None:
        _show_average(screen, found)
    else:
        _show_prompt(screen, found)
    rows = found.facts["prompts"]
    left = sum(row["features_without_row"] for row in rows)
    if left:
        out.print(
            f"{number(left, 'active feature')} beyond --max-features: sources only, their inputs were not computed",
            markup=False,
        )
    exported = rows[0]["file"] if found.average is None else rows[0]["file"].replace("-000", "-*")
    files = [f"{exported} (for circuit-tracer's frontend and Neuronpedia)", *(p.name for p in found.pictures)]
    out.print(f"{found.folder}: {', '.join(files)}", markup=False)


def _show_prompt(screen: Screen, found: Attributed) -> None:
    from circuitfind.attribution.graph import NodeKind

    pruned = found.pruned
    assert pruned is not None
    graph, (row,) = pruned.graph, found.facts["prompts"]
    logits = ", ".join(f"{one['token']!r} {share(one['probability'])}" for one in row["logits"][:5])
    screen.out.print(f"{graph.model}, {row['prompt']!r}: {logits}", markup=False)
    screen.out.print(
        f"kept {row['kept_features']:,} of {row['active_features']:,} active features, "
        f"{number(row['kept_errors'], 'error')}, {number(row['kept_edges'], 'edge')}",
        markup=False,
    )
    _show_scores(screen, row["replacement"], row["completeness"])
    shown = table("node", "token", "influence", "activation", right=("influence", "activation"))
    kinds = graph.nodes.kind
    inner = [i for i in pruned.nodes if kinds[i] in (NodeKind.FEATURE, NodeKind.ERROR)]
    for node in sorted(inner, key=lambda i: -pruned.influence[i])[:SHOWN]:
        shown.add_row(
            graph.nodes.name(int(node)),
            repr(graph.pieces[graph.nodes.position[node]]),
            f"{pruned.influence[node]:.3f}",
            f"{graph.nodes.value[node]:.2f}" if kinds[node] == NodeKind.FEATURE else "",
        )
    screen.out.print(shown, markup=False)


def _show_average(screen: Screen, found: Attributed) -> None:
    mean = found.average
    assert mean is not None
    screen.out.print(
        f"{found.facts['task']} in {found.facts['model']}: averages over {number(mean.n_prompts, 'prompt')}; "
        f"replacement score {mean.replacement:.2f}, completeness {mean.completeness:.2f}",
        markup=False,
    )
    shown = table("node", "influence", "active", "kept", right=("influence", "active", "kept"))
    inner = [node for node in mean.nodes if node.name.partition("@")[0] not in ("input", "logits")]
    for node in inner[:SHOWN]:
        shown.add_row(node.name, f"{node.influence:.3f}", share(node.active), share(node.kept))
    screen.out.print(shown, markup=False)


def _show_scores(screen: Screen, replacement: dict[str, float], completeness: dict[str, float]) -> None:
    shown = table("score", "whole graph", "kept", right=("whole graph", "kept"))
    for name, values in (("replacement", replacement), ("completeness", completeness)):
        shown.add_row(name, f"{values['whole']:.3f}", f"{values['pruned']:.3f}")
    screen.out.print(shown, markup=False)
