"""``circuitfind report``: a run as one HTML file, or two runs beside each other. No model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from circuitfind.cli.common import Screen, common_options, size
from circuitfind.cli.options import complete_runs, outputs_option
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.output.store import Store


@click.command()
@click.argument("runs", metavar="[RUN] [RUN]", nargs=-1, shell_complete=complete_runs)
@click.option(
    "-o",
    "--output",
    "to",
    metavar="FILE",
    help="Write there.  [default: report.html in the run's folder; of two, compare-FIRST.html in the second's]",
)
@click.option("--index", is_flag=True, help="Write index.html of all runs instead, into the outputs folder.")
@outputs_option
@common_options
def report(screen: Screen, runs: tuple[str, ...], to: str | None, index: bool, outputs: str | None) -> None:
    """Write the report of RUN (as for `show`; the latest if none is named), or of two runs beside each other.

    It is one HTML file that loads nothing: the verdict, the circuit to try out, effects, curves, attention, backups, prompts
    and where it all comes from. `circuitfind view` opens it in a browser.

    \b
    circuitfind report
    circuitfind report ioi-mini-1a2b -o ioi.html
    circuitfind report ioi-mini-1a2b latest
    circuitfind report --index
    """
    from circuitfind.output.store import Store

    if index:
        _index(screen, Store(outputs), runs, to)
        return

    if len(runs) > 2:
        raise UsageError(f"{len(runs)} runs do not fit side by side", hint="give one run, or two to compare")
    path = _file(to)
    store = Store(outputs)
    found = [store.find(name) for name in runs or ("latest",)]
    if len(found) == 2:
        from circuitfind.output.report.compare import write_comparison

        written = write_comparison(found[0], found[1], path)
    else:
        from circuitfind.output.report.write import write_report

        written = write_report(found[0], path)
    data = {
        "version": 1,
        "runs": [run.name for run in found],
        "report": str(written),
        "bytes": written.stat().st_size,
    }
    screen.result(data, lambda: screen.out.print(f"{written} ({size(written.stat().st_size)})", markup=False))


def _index(screen: Screen, store: Store, runs: tuple[str, ...], to: str | None) -> None:
    """A page of all runs; its links begin where it is, so that it has one place."""
    from circuitfind.output.report.index import write_index

    if runs or to is not None:
        what = "-o" if to is not None else "a run"
        raise UsageError(f"--index and {what} exclude each other", hint="leave one of them out")
    if not store.root.is_dir():
        raise UsageError(f"no runs in {store.root}", hint="make one with `circuitfind discover ioi`")
    written = write_index(store)
    data = {"version": 1, "index": str(written), "runs": len(store.runs())}
    screen.result(data, lambda: screen.out.print(str(written), markup=False))


def _file(name: str | None) -> Path | None:
    """Where --output points.

    Raises:
        UsageError: That is a folder, or no page.
    """
    if name is None:
        return None
    path = Path(name)
    if path.is_dir():
        raise UsageError(
            "this is a folder", where=name, hint=f"name a file in it, such as {path / 'report.html'}"
        )
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(
            f"'{name}' has no ending of a page",
            hint="write it as FILE.html; `circuitfind export` has other forms",
        )
    return path
