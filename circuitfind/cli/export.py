"""``export``: a circuit in the form of another program. Loads no model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from circuitfind.cli.common import Screen, common_options
from circuitfind.cli.options import complete_runs, outputs_option
from circuitfind.errors import UsageError, did_you_mean
from circuitfind.reading import expanded

if TYPE_CHECKING:
    from circuitfind.given import Given
    from circuitfind.output.exports import Exported

FORMATS = (
    "dot",
    "svg",
    "png",
    "pdf",
    "graphml",
    "gexf",
    "cytoscape",
    "node-link",
    "eap-ig",
    "neuronpedia",
    "csv",
    "python",
    "json",
)


def _forms(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Names of forms, each word one or several with commas; ``all`` stays as it is."""
    names = [part.strip().lower() for word in given for part in word.split(",") if part.strip()]
    for name in names:
        if name not in (*FORMATS, "all"):
            raise click.BadParameter(
                f"there is no form '{name}': {did_you_mean(name, (*FORMATS, 'all'))}", ctx, param
            )
    return tuple(dict.fromkeys(names))


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in (*FORMATS, "all") if name.startswith(incomplete)]


@click.command()
@click.argument("run", metavar="RUN|CIRCUIT", default="latest", shell_complete=complete_runs)
@click.option(
    "--to",
    "forms",
    metavar="FORM",
    multiple=True,
    callback=_forms,
    shell_complete=_complete,
    required=True,
    help=f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}; may be repeated, or `all`.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write there: a file, or a folder; - is stdout.  [default: circuit.FORM beside circuit.json]",
)
@click.option(
    "--d-model",
    type=click.IntRange(min=1),
    metavar="N",
    help="Width of the residual stream, for eap-ig where the model's config.json is not at hand.",
)
@outputs_option
@common_options
def export(
    screen: Screen,
    run: str,
    forms: tuple[str, ...],
    output: str | None,
    d_model: int | None,
    outputs: str | None,
) -> None:
    """Write the circuit and the scores of RUN in the form of another program.

    \b
    circuitfind export latest --to graphml                  # into the run folder
    circuitfind export latest --to svg,pdf --to csv -o figures/
    circuitfind export latest --to python -o circuit.py     # then: python circuit.py
    circuitfind export latest --to node-link -o -

    RUN is a run's name, the beginning of it, its folder, or `latest`. CIRCUIT is a file: a circuit.json, a feature graph, a
    JSON graph of EAP-IG (MIB), or one of circuit-tracer (Neuronpedia). So `--to json` imports what others wrote.

    docs/exports.md says which program reads which form, and what a form cannot hold.
    """
    from circuitfind.given import given
    from circuitfind.output.exports import Source

    found = given(run, outputs)
    source = Source(
        found.what, found.scores, found.words, found.prompts, found.tracer, d_model or found.d_model
    )
    made = _made(screen, FORMATS if "all" in forms else forms, source, every="all" in forms)
    if output == "-":
        _to_stdout(screen, made)
        return
    places = _places(made, found, output)
    _write(screen, made, places)


def _made(screen: Screen, forms: tuple[str, ...], source: Any, *, every: bool) -> dict[str, Exported]:
    """All of it before anything is written; of ``all``, what cannot be made is told and left out."""
    from circuitfind.errors import CircuitfindError
    from circuitfind.output.exports import FORMS

    made = {}
    for form in forms:
        try:
            made[form] = FORMS[form].make(source)
        except CircuitfindError as error:
            if not every:
                raise
            screen.note(f"not as {form}: {error.what}")
    return made


def _places(made: Mapping[str, Exported], found: Given, output: str | None) -> dict[str, dict[str, Path]]:
    """Where each file of each form goes.

    Raises:
        UsageError: One name for several forms, or the file that was read.
    """
    from circuitfind.output.exports import stem

    base = found.file.with_name(f"{stem(found.file.name)}.json")
    if output is not None:
        target = expanded(output)
        folder = target.is_dir() or output.endswith(("/", "\\"))
        if not folder and len(made) > 1:
            raise UsageError(
                f"'{output}' is one file, and {len(made)} forms are asked for",
                hint=f"name a folder: --output {target.with_suffix('')}/",
            )
        if not folder:
            (form,) = made
            files = made[form].files
            # A form of several files puts what tells them apart before the ending.
            places = {e: target if len(files) == 1 else target.with_suffix(e) for e in files}
            return _checked({form: places}, found.file)
        base = target / base.name
    return _checked(
        {form: {e: base.with_suffix(e) for e in one.files} for form, one in made.items()}, found.file
    )


def _checked(places: dict[str, dict[str, Path]], read: Path) -> dict[str, dict[str, Path]]:
    for path in (path for files in places.values() for path in files.values()):
        if path.exists() and path.samefile(read):
            raise UsageError(
                f"'{path}' is the file that is read", hint="name another one with --output", where=str(path)
            )
    return places


def _to_stdout(screen: Screen, made: Mapping[str, Exported]) -> None:
    files = [content for one in made.values() for content in one.files.values()]
    if screen.as_json:
        raise UsageError(
            "--json and --output - both want stdout", hint="leave one out, or name a file with --output"
        )
    if len(files) != 1:
        raise UsageError(
            f"stdout takes one file, and these are {len(files)}", hint="name a folder with --output"
        )
    (content,) = files
    if isinstance(content, bytes):
        if sys.stdout.isatty():
            raise UsageError("a picture is no text for a terminal", hint="name a file with --output")
        sys.stdout.buffer.write(content)
    else:
        sys.stdout.write(content)
    for one in made.values():
        for note in one.notes:
            screen.note(note)


def _write(screen: Screen, made: Mapping[str, Exported], places: Mapping[str, Mapping[str, Path]]) -> None:
    from circuitfind.output.files import write_atomic

    rows: list[dict[str, Any]] = []
    for form, one in made.items():
        paths = [write_atomic(places[form][ending], content) for ending, content in one.files.items()]
        named = {"file": str(paths[0])} if len(paths) == 1 else {"files": [str(path) for path in paths]}
        rows.append({"to": form, **named, **one.counts, "notes": list(one.notes)})

    def show() -> None:
        for row in rows:
            for path in row.get("files") or [row["file"]]:
                screen.out.print(f"{path}: {_said(row)}", markup=False)

    screen.result({"version": 1, **rows[0]} if len(rows) == 1 else {"version": 1, "exports": rows}, show)
    for note in dict.fromkeys(note for row in rows for note in row["notes"]):
        screen.note(note)


def _said(row: Mapping[str, Any]) -> str:
    if "edges_in_graph" in row:
        return (
            f"{row['edges']:,} edges, {row['edges_in_graph']:,} of them in the graph, "
            f"and {row['nodes']:,} nodes, {row['nodes_in_graph']:,} of them in the graph"
        )
    prompts = f", {row['prompts']:,} prompts" if "prompts" in row else ""
    return f"{row['nodes']:,} nodes, {row['edges']:,} edges{prompts}"
