"""Running a sweep: cell after cell in this process, its results written after each. Torch is imported with a model."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from circuitfind.check.run import NoModel, Shelf
from circuitfind.engine.base import Bench, Engine, Failed, Needs
from circuitfind.engine.room import whole_run
from circuitfind.errors import CircuitfindError
from circuitfind.output.files import make_folder, write_atomic
from circuitfind.output.links import below
from circuitfind.output.store import slug
from circuitfind.pipeline import discover_task
from circuitfind.session import Reporter, Silent
from circuitfind.summary import report_file
from circuitfind.sweep.cells import Cell, Sweep
from circuitfind.sweep.outcome import FILE, Outcome, Results, State, earlier, of_summary

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model

TABLE, PAGE = "sweep.csv", "sweep.html"


@dataclass(frozen=True)
class Place:
    """Where and how cells run.

    Attributes:
        outputs: Folder of run folders.
        device: Where models run.
        memory: Bytes to plan for; what is free if None.
        formats: Pictures to draw of each run.
        force: Run finished stages again.
    """

    outputs: Path
    device: str = "auto"
    memory: int | None = None
    formats: tuple[str, ...] = ("svg",)
    force: bool = False

    def folder(self, sweep: Sweep) -> Path:
        """Where the results of a sweep lie: ``sweep-NAME-HASH``. It has no manifest, so that it is no run."""
        name = slug(sweep.title)
        return below(
            self.outputs, "-".join(["sweep", *([] if name == "sweep" else [name]), sweep.key]), folder=True
        )


class Listener(Protocol):
    """Hears which cells run."""

    def started(self, index: int, cell: Cell) -> Reporter | None:
        """A cell begins; what hears of its stages."""

    def ended(self, index: int, outcome: Outcome) -> None: ...


class Lender:
    """Lends the model that was loaded last, and counts the passes of a cell."""

    def __init__(self, device: str, bench: Bench | None = None) -> None:
        self._shelf = Shelf(device) if bench is None else Shelf(device, bench)
        self._lent: Model | None = None

    def begin(self) -> None:
        """A cell begins."""
        self._lent = None

    def lend(self, name: str) -> Model:
        """The model of a name, with no passes counted.

        Raises:
            NoModel: There is none.
        """
        model = self._shelf.get(name)
        model.passes.update(dict.fromkeys(model.passes, 0))
        self._lent = model
        return model

    @property
    def passes(self) -> dict[str, int]:
        """Those of the cell so far."""
        return {"forward": 0, "backward": 0} if self._lent is None else dict(self._lent.passes)


class _Heard:
    """Passes on what a run tells, and knows whether it did anything."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.worked = reporter, False

    def stage(self, name: str, state: str, detail: str = "") -> None:
        self.worked |= state == "finished"
        self.reporter.stage(name, state, detail)

    def progress(self, rows: int) -> None:
        self.reporter.progress(rows)

    def note(self, text: str) -> None:
        self.reporter.note(text)


@dataclass(frozen=True)
class CellJob:
    """A cell from the beginning to its outcome."""

    cell: Cell
    place: Place

    @property
    def needs(self) -> Needs:
        return whole_run(self.cell.model, self.place.device, self.place.memory)

    @property
    def label(self) -> str:
        return f"the run {self.cell.label}"

    def run(self, bench: Bench) -> Outcome:
        return _run(self.cell, self.place, Lender(self.place.device, bench), Silent())


def run_sweep(
    sweep: Sweep,
    chosen: Sequence[Cell],
    command: str,
    place: Place,
    listener: Listener,
    engine: Engine | None = None,
) -> tuple[Results, bool]:
    """Run cells, those of one model after each other; side by side where an engine is given for several.

    What an earlier call recorded of cells that are not chosen is kept. ``sweep.json``, ``sweep.csv`` and ``sweep.html`` are
    written after each cell.

    Returns:
        The results, and whether all were run: an interruption (Ctrl-C) ends it early.
    """
    folder = place.folder(sweep)
    make_folder(folder)
    before = earlier(folder, sweep.cells)
    found = {
        cell.label: before.get(cell.label, Outcome(cell.label, cell.told, "not run"))
        for cell in sweep.cells
        if cell not in chosen
    }
    for cell in chosen:
        found[cell.label] = Outcome(cell.label, cell.told, "not run")

    def results() -> Results:
        return Results(sweep, command, tuple(found[cell.label] for cell in sweep.cells))

    models = list(dict.fromkeys(cell.model for cell in chosen))
    order = sorted(range(len(chosen)), key=lambda i: models.index(chosen[i].model))
    running: set[int] = set()
    if engine is None or len(chosen) < 2:
        work = _here(chosen, order, place, listener, running)
    else:
        work = _apart(chosen, order, place, listener, running, engine)
    finished = True
    with closing(work) as outcomes:
        try:
            for number, made in outcomes:
                running.discard(number)
                found[chosen[number].label] = made
                listener.ended(number, made)
                write_results(results(), place)
        except KeyboardInterrupt:
            finished = False
    for number in running:
        found[chosen[number].label] = replace(found[chosen[number].label], state="interrupted")
    write_results(results(), place)
    return results(), finished


_Outcomes = Generator[tuple[int, Outcome], None, None]


def _here(
    chosen: Sequence[Cell], order: Sequence[int], place: Place, listener: Listener, running: set[int]
) -> _Outcomes:
    lender = Lender(place.device)
    for number in order:
        running.add(number)
        yield (
            number,
            _run(chosen[number], place, lender, listener.started(number, chosen[number]) or Silent()),
        )


def _apart(
    chosen: Sequence[Cell],
    order: Sequence[int],
    place: Place,
    listener: Listener,
    running: set[int],
    engine: Engine,
) -> _Outcomes:
    def begun(at: int) -> None:
        if order[at] not in running:  # not once more after a worker died
            running.add(order[at])
            listener.started(order[at], chosen[order[at]])

    jobs = [CellJob(chosen[number], place) for number in order]
    with closing(engine.each(jobs, begun)) as results:
        for at, found in results:
            cell = chosen[order[at]]
            if isinstance(found, Failed):
                told = refusal(found.error)
                found = Outcome(cell.label, dict(cell.told), "failed", **told)  # noqa: PLW2901
            yield order[at], found


def _run(cell: Cell, place: Place, lender: Lender, reporter: Reporter) -> Outcome:
    """One cell; never raises but for an interruption."""
    heard, start = _Heard(reporter), time.perf_counter()
    lender.begin()
    told: dict[str, Any] = {}
    state: State = "failed"
    try:
        summary = _discover(cell, place, lender, heard)
        told = of_summary(cell, summary)
        told["report"] = report_file(Path(summary["folder"])) is not None
        state = "finished" if heard.worked else "reused"
    except (CircuitfindError, NoModel) as error:
        told = refusal(error)
    except Exception as error:  # noqa: BLE001  # one cell that breaks must not take the others with it
        first = str(error).splitlines()[0] if str(error) else "no message"
        told = {
            "problem": f"{type(error).__name__}: {first}",
            "hint": "the same run alone tells more: --debug",
        }
    if state == "failed":
        told["seconds"] = round(time.perf_counter() - start, 3)
    passes = lender.passes
    return Outcome(
        cell.label,
        dict(cell.told),
        state,
        forward_passes=passes["forward"],
        backward_passes=passes["backward"],
        **told,
    )


def _discover(cell: Cell, place: Place, lender: Lender, reporter: Reporter) -> dict[str, Any]:
    """The same as ``circuitfind discover`` does, with the model lent."""
    settings = cell.settings()
    shared: dict[str, Any] = {
        "outputs": place.outputs,
        "device": place.device,
        "force": place.force,
        "formats": place.formats,
        "memory": place.memory,
        "reporter": reporter,
        "lend": lender.lend,
    }
    if settings.nodes == "features":
        from circuitfind.feature_runs import discover_features

        return discover_features(cell.spec, settings, **shared).summary
    found = discover_task(cell.spec, settings, controls=cell.controls, views=cell.views, **shared)
    return dict(found.summary)


def refusal(error: Exception) -> dict[str, Any]:
    """Why a cell was refused, and what to do."""
    cause = error if isinstance(error, CircuitfindError) else error.__cause__
    if not isinstance(cause, CircuitfindError):
        return {"problem": str(error)}
    error = cause
    return {"problem": f"{error.where}: {error.what}" if error.where else error.what, "hint": error.hint}


def write_results(results: Results, place: Place) -> Path:
    """Write the table in every form.

    Returns:
        The folder.
    """
    from circuitfind.output.report.sweep import sweep_page

    folder = place.folder(results.sweep)
    write_atomic(folder / FILE, results.text())
    write_atomic(folder / TABLE, results.csv())
    write_atomic(folder / PAGE, sweep_page(results.as_dict()))
    return folder
