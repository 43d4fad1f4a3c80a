"""``figures``: the charts of a finished run as files for a paper. Loads no model."""

from __future__ import annotations

from typing import cast

import click

from circuitfind.cli.common import Screen, common_options
from circuitfind.cli.options import complete_runs, outputs_option
from circuitfind.reading import expanded

FORMATS = ("pdf", "svg", "png")
WIDTHS = ("column", "page")


@click.command()
@click.argument("run", default="latest", shell_complete=complete_runs)
@click.option(
    "--format",
    "formats",
    metavar="NAME",
    type=click.Choice(FORMATS),
    multiple=True,
    default=("pdf",),
    show_default=True,
    help="pdf, svg or png; may be repeated.",
)
@click.option("--out", metavar="FOLDER", help="Write there.  [default: figures in the run folder]")
@click.option(
    "--only",
    metavar="NAMES",
    help="Some of circuit, heatmap, curve, patterns, backups, repair, units, with commas between.",
)
@click.option(
    "--head", "heads", metavar="NAME", multiple=True, help="Whose attention is drawn; may be repeated."
)
@click.option(
    "--prompt",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="On which of the report's prompts attention is drawn.",
)
@click.option(
    "--width",
    type=click.Choice(WIDTHS),
    default="page",
    show_default=True,
    help="Of one column of a two-column page, or of both.",
)
@click.option(
    "--titles/--no-titles", default=False, show_default=True, help="Say above each figure what it is of."
)
@outputs_option
@common_options
def figures(
    screen: Screen,
    run: str,
    formats: tuple[str, ...],
    out: str | None,
    only: str | None,
    heads: tuple[str, ...],
    prompt: int,
    width: str,
    titles: bool,
    outputs: str | None,
) -> None:
    """Draw the charts of RUN as figures for a paper.

    \b
    circuitfind figures latest                               # all of them, as PDF, into the run folder
    circuitfind figures latest --only heatmap,curve --width column
    circuitfind figures latest --only patterns --head a0.h2 --prompt 2
    circuitfind figures ioi-mini --format svg --format png --out paper/figures

    RUN is a run's name, the beginning of it, its folder, or `latest`. PDF and SVG are vector files; fonts are in the
    PDF. The same run gives the same bytes. A figure that the run has nothing for is named with the reason.
    """
    from circuitfind.errors import RunError
    from circuitfind.output.figures import draw_figures, wanted
    from circuitfind.output.figures.style import Width
    from circuitfind.output.store import Store

    names = wanted(only)
    found = Store(outputs).find(run)
    folder = expanded(out) if out else found.place("figures")
    drawn, left_out = draw_figures(
        found,
        folder,
        names=names,
        formats=formats,
        width=cast(Width, width),
        titles=titles,
        heads=heads,
        prompt=prompt,
    )
    if not drawn:
        raise RunError(
            "the run has nothing for " + ("these figures" if len(names) > 1 else "this figure"),
            where=str(found.path),
            hint="leave out --only to draw all that the run has"
            if only
            else f"see what it holds with `circuitfind show {found.name}`",
            details=[f"{one.name}: {one.why}" for one in left_out],
        )
    data = {
        "version": 1,
        "figures": [{"name": one.name, "files": [str(path) for path in one.files]} for one in drawn],
        "not_drawn": [{"name": one.name, "why": one.why} for one in left_out],
    }
    lines = "\n".join(str(path) for one in drawn for path in one.files)
    screen.result(data, lambda: screen.out.print(lines, markup=False))
    for one in left_out:
        screen.note(f"no figure '{one.name}': {one.why}")
