"""``circuitfind view``: a run's report, or the index of all runs, in the browser."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from circuitfind.cli.common import Screen, common_options
from circuitfind.cli.options import complete_runs, outputs_option
from circuitfind.errors import CircuitfindError, UsageError

if TYPE_CHECKING:
    from circuitfind.output.report.serve import Shelf
    from circuitfind.output.store import Run, Store


@click.command()
@click.argument("run", required=False, shell_complete=complete_runs)
@click.option("--all", "everything", is_flag=True, help="The index of all runs, as without RUN.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    default=0,
    help="Where to listen.  [default: a free one]",
)
@click.option("--open/--no-open", "open_it", default=True, show_default=True, help="Open it in the browser.")
@outputs_option
@common_options
def view(
    screen: Screen, run: str | None, everything: bool, port: int, open_it: bool, outputs: str | None
) -> None:
    """Look at the report of RUN in the browser, or at the index of all runs; Ctrl-C ends it.

    It is served on this machine alone (127.0.0.1), at an address that nobody can guess. RUN is a run as for `show`, or a
    sweep. A report that is missing or older than its run is written first.

    \b
    circuitfind view latest
    circuitfind view
    circuitfind view ioi-mini-1a2b --no-open --port 8800
    """
    from circuitfind.output.report.serve import INDEX, Server
    from circuitfind.output.store import Store
    from circuitfind.summary import REPORT

    if run is not None and everything:
        raise UsageError("--all shows every run", hint="leave out the run, or --all")
    store = Store(outputs)
    sweep = None if run is None else _sweep(store, run)
    if run is None or sweep is not None:
        shelf, start, what = _of_all(screen, store), sweep or INDEX, str(store.root)
    else:
        found = store.find(run)
        shelf, start, what = _of_run(screen, store, found), REPORT, found.name
    with Server(shelf, start=start, port=port) as server:
        if screen.as_json:
            click.echo(json.dumps({"version": 1, "url": server.url, "port": server.port, "shows": what}))
        else:
            click.echo(server.url)
        sys.stdout.flush()
        if not screen.quiet and not screen.as_json:
            screen.err.print(f"serving {what} on this machine alone; Ctrl-C ends it", markup=False)
        door = _open(screen, server.url, store.root) if open_it else None
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            if not screen.quiet:
                screen.err.print("ended", markup=False)
        finally:
            if door is not None:
                door.unlink(missing_ok=True)


def _sweep(store: Store, name: str) -> str | None:
    """The page of a sweep, by its folder's name, the beginning of that, or its path; None where no single one is meant."""
    pages = sorted(store.root.glob("sweep-*/sweep.html"))
    found = [page for page in pages if page.parent.name == name]
    found = found or [page for page in pages if page.parent.resolve() == Path(name).resolve()]
    if not found and name.startswith("sweep-"):
        found = [page for page in pages if page.parent.name.startswith(name)]
    return f"{found[0].parent.name}/{found[0].name}" if len(found) == 1 else None


def _of_run(screen: Screen, store: Store, run: Run) -> Shelf:
    """The files of a run; its report is written now, so that what is wrong with it is told here."""
    from circuitfind.output.report.fresh import fresh_report, report_of
    from circuitfind.output.report.serve import Shelf

    def make(name: str) -> str | None:
        try:
            fresh_report(store.find(str(run.path)))
        except CircuitfindError:
            if not report_of(run).is_file():
                raise
        return None

    _written(screen, run)
    return Shelf(run.path, runs=False, make=make)


def _written(screen: Screen, run: Run) -> None:
    """Write the report where it is missing or old; an old one that cannot be written again is shown as it is."""
    from circuitfind.output.report.fresh import fresh_report, is_fresh, report_of

    if is_fresh(run):
        return
    try:
        fresh_report(run)
    except CircuitfindError as error:
        if not report_of(run).is_file():
            raise
        screen.note(f"the report is an older one: {error.what}")


def _of_all(screen: Screen, store: Store) -> Shelf:
    """The index, with the reports of all runs behind it."""
    from circuitfind.output.report.fresh import fresh_report
    from circuitfind.output.report.index import index_page
    from circuitfind.output.report.serve import INDEX, Shelf

    if not store.root.is_dir():
        raise UsageError(f"no runs in {store.root}", hint="make one with `circuitfind discover ioi`")

    def make(name: str) -> str | None:
        if name == INDEX:
            return index_page(store, served=True)
        fresh_report(store.find(name.rpartition("/")[0]))
        return None

    return Shelf(store.root, runs=True, make=make)


def _open(screen: Screen, url: str, folder: Path) -> Path | None:
    """Open a browser beside the server; one in the terminal would stand in its way. Returns the page that it is given."""
    import webbrowser

    graphical = os.name == "nt" or sys.platform == "darwin"
    if not graphical and not any(os.environ.get(v) for v in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        screen.note(
            "no browser was opened: there is no screen here; open the address in one that reaches this machine"
        )
        return None
    door = _door(url, folder)

    def work() -> None:
        try:
            opened = webbrowser.open(door.as_uri())
        except (webbrowser.Error, OSError):
            opened = False
        if not opened:
            screen.note("no browser could be opened: open the address yourself")

    threading.Thread(target=work, daemon=True).start()
    return door


def _door(url: str, folder: Path) -> Path:
    """A page for this user alone that leads to the address: the words of a command that starts a browser are for all to see.

    It lies in the outputs folder where it can, since some browsers see no temporary files of others.
    """
    import tempfile

    where = folder.resolve() if os.access(folder, os.W_OK) else None
    handle, name = tempfile.mkstemp(prefix="view-", suffix=".html", dir=where)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(
            f'<!DOCTYPE html><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
            f'<meta http-equiv="refresh" content="0; url={url}"><title>circuitfind</title><a href="{url}">the runs</a>'
        )
    return Path(name)
