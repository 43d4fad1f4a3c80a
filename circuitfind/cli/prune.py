"""``prune``: a finished run's circuit, smaller or larger, from what is stored. Loads no model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.common import Screen, common_options, number, share
from circuitfind.cli.lines import interval, print_line, print_title
from circuitfind.cli.options import PICTURES, complete_runs, outputs_option
from circuitfind.errors import UsageError
from circuitfind.reading import expanded

if TYPE_CHECKING:
    from circuitfind.given import Given
    from circuitfind.prune_runs import Pruned


@click.command()
@click.argument("run", metavar="RUN|CIRCUIT", default="latest", shell_complete=complete_runs)
@click.option("--edges", type=int, metavar="N", help="At most N of the strongest edges.")
@click.option(
    "--threshold", type=float, metavar="T", help="Edges whose |score| is at least T, in units of the metric."
)
@click.option(
    "--target",
    type=float,
    metavar="F",
    help="The smallest circuit of the measured curve whose faithfulness is at least F.",
)
@click.option(
    "-o", "--output", metavar="FILE", help="Write there.  [default: circuit-edges-N.json in the run folder]"
)
@click.option(
    "--format",
    "formats",
    metavar="NAME",
    type=click.Choice(PICTURES),
    multiple=True,
    help="Draw it too, beside the file: svg, png, pdf or dot; may be repeated.",
)
@outputs_option
@common_options
def prune(
    screen: Screen,
    run: str,
    edges: int | None,
    threshold: float | None,
    target: float | None,
    output: str | None,
    formats: tuple[str, ...],
    outputs: str | None,
) -> None:
    """Make the circuit of RUN smaller or larger at once, from its stored scores; the run itself stays as it is.

    \b
    circuitfind prune latest --edges 30
    circuitfind prune latest --threshold 0.05 --format svg
    circuitfind prune latest --target 0.95
    circuitfind prune importances.json --edges 100 -o small.json

    Edges are taken by |score|, and those on no way from the input to the logits go, as in `discover --edges` and
    `--threshold`. Nothing is run: how faithful the circuit is, is known only where exactly these edges were measured.
    `discover --faithfulness` tries circuits with the model, and finds smaller ones than --target.
    """
    from circuitfind.backup_stage import circuit_text
    from circuitfind.circuit.rule import Rule
    from circuitfind.given import given
    from circuitfind.output.files import write_atomic
    from circuitfind.prune_runs import place_of, prune_again

    if sum(one is not None for one in (edges, threshold, target)) != 1:
        raise UsageError(
            "give exactly one of --edges, --threshold and --target",
            hint="such as --edges 30, --threshold 0.05 or --target 0.9",
        )
    rule = Rule(target, edges, threshold)
    found = given(run, outputs)
    if output:
        _check(expanded(output), found)
    made = prune_again(found, rule)
    path = expanded(output) if output else place_of(found, made)
    pictures = _draw(made, found, path, formats)
    write_atomic(path, circuit_text(made.circuit))
    for picture, content in pictures.items():
        write_atomic(picture, content)
    data = _data(made, found, path, list(pictures))
    screen.result(data, lambda: _show(screen, made, data))


def _check(path: Path, found: Given) -> None:
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder", hint=f"name a file in it, such as {path / 'circuit.json'}")
    own = (
        found.run is not None
        and found.scores is not None
        and path.absolute().parent == found.run.path.absolute()
    )
    if (path.exists() and path.samefile(found.file)) or (
        own and path.name in ("circuit.json", "pruned.json")
    ):
        raise UsageError(
            f"'{path}' is the circuit that is pruned, and stays as it is",
            hint="name another file with --output",
        )


def _draw(made: Pruned, found: Given, path: Path, formats: tuple[str, ...]) -> dict[Path, str | bytes]:
    """Pictures by where they go; drawn before anything is written."""
    from circuitfind.output.exports import FORMS, Source

    pictures: dict[Path, str | bytes] = {}
    for name in formats:
        drawn = FORMS[name].make(Source(made.circuit, words=found.words))
        pictures |= {path.with_suffix(ending): content for ending, content in drawn.files.items()}
    return pictures


def _data(made: Pruned, found: Given, path: Path, pictures: list[Path]) -> dict[str, Any]:
    circuit, full = made.circuit, made.circuit.as_dict()
    return {
        "version": 1,
        "file": str(path),
        "of": found.run.name if found.run is not None else str(found.file),
        "rule": circuit.conditions.rule,
        "taken": made.prefix,
        "conditions": full["conditions"],
        "counts": {**full["counts"], "share_of_edges": circuit.share_of_edges},
        "measured": None if made.measured is None else json.loads(json.dumps(full["evaluations"][0])),
        "smaller": None if made.smaller is None else vars(made.smaller).copy(),
        "pictures": [str(picture) for picture in pictures],
        "next": _next(made, path),
    }


def _next(made: Pruned, path: Path) -> str:
    told = made.circuit.conditions
    model = ["--model", told.model] if told.model else []
    return shlex.join(["circuitfind", "evaluate", str(path), "--task", told.task or "TASK", *model])


def _show(screen: Screen, made: Pruned, data: dict[str, Any]) -> None:
    from circuitfind.circuit.counts import parts_in_words

    circuit, counts = made.circuit, data["counts"]
    size = f"{number(counts['edges'], 'edge')} ({share(circuit.share_of_edges)}), {parts_in_words(circuit)}"
    told = data["conditions"]
    print_title(screen, {"task": told["task"] or "a task", "model": told["model"] or "a model"}, size)
    left = made.prefix - counts["edges"]
    print_line(
        screen,
        "pruned to",
        f"{data['rule']}: the {made.prefix} strongest edges"
        + (f", less {left} on no way from input to logits" if left else ""),
    )
    if data["measured"] is None:
        print_line(screen, "faithfulness", "not measured of these edges")
    else:
        one = data["measured"]
        text = f"{interval(one['faithfulness'])} under {one['ablation']} ablation"
        print_line(screen, "faithfulness", f"{text}, measured when the run was made")
    if data["smaller"] is not None:
        one = data["smaller"]
        text = (
            f"{one['faithfulness']:.3f} with {one['edges']} edges, the next smaller circuit that was measured"
        )
        print_line(screen, "", text)
    print_line(screen, "file", data["file"])
    for picture in data["pictures"]:
        print_line(screen, "picture", picture)
    print_line(screen, "next", data["next"])
