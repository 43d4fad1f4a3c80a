"""Running a case: its model, its prompts, its circuit, and what all of that is held against."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from circuitfind.check.baseline import STRONGEST, Baseline, begun
from circuitfind.check.cases import Case
from circuitfind.check.compare import compare
from circuitfind.check.expectations import judge
from circuitfind.check.outcome import Outcome, of_case
from circuitfind.check.reasons import Reason, in_order
from circuitfind.circuit.json_form import finite
from circuitfind.config import DEFAULT_CONTROLS, Controls
from circuitfind.engine.base import Bench
from circuitfind.engine.bench import WorkBench
from circuitfind.errors import CircuitfindError, ModelError, UsageError
from circuitfind.model.identity import model_folder
from circuitfind.names import parse_edge
from circuitfind.output.store import Store
from circuitfind.pipeline import Stages
from circuitfind.session import Reporter, Session, Silent, configuration
from circuitfind.zoo import is_planted, is_zoo

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model
    from circuitfind.summary import Discovery


@dataclass(frozen=True)
class Where:
    """Where cases run, and where they write to.

    Attributes:
        outputs: Folder of run folders.
        device: Where models run.
        memory: Bytes to plan for; what is free if None.
        baselines: Folder of baselines; that beside each task if None.
    """

    outputs: Path
    device: str = "auto"
    memory: int | None = None
    baselines: Path | None = None


class NoModel(Exception):
    """The model of a case is not to be had here."""


@dataclass
class Shelf:
    """The model that was loaded last, since cases of one model follow each other.

    Attributes:
        device: Where it runs.
        bench: Holds it.
    """

    device: str
    bench: Bench = field(default_factory=WorkBench)

    def get(self, name: str) -> Model:
        """A model, loaded unless it was the last one.

        Raises:
            NoModel: It is neither of the zoo nor a folder here, and the hub does not give it.
            ModelError, UnsupportedError: It cannot be read.
        """
        try:
            return self.bench.model(name, self.device)
        except ModelError as error:
            if is_zoo(name) or model_folder(name).is_dir():
                raise
            raise NoModel(error.what) from error


def run_case(case: Case, where: Where, shelf: Shelf, reporter: Reporter | None = None) -> Outcome:
    """Run one case from the beginning, whatever was computed before; never raises but for an interruption."""
    start = time.perf_counter()
    try:
        found = _run(case, where, shelf, reporter or Silent())
    except NoModel as error:
        found = of_case(case, "skipped", problem=str(error))
    except Exception as error:  # noqa: BLE001  # one case that breaks must not take the others with it
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        found = of_case(case, "error", problem=text, trace=traceback.format_exc())
    return replace(found, seconds=time.perf_counter() - start)


def _run(case: Case, where: Where, shelf: Shelf, reporter: Reporter) -> Outcome:
    path = case.baseline(where.baselines)
    before, reasons = _stored(path)
    try:
        settings = case.settings()
        session = Session(case.spec, settings, where.device, reporter, memory=where.memory)
        session.__dict__["model"] = shelf.get(case.model)  # in place of the one that it would load itself
        now = begun(case.spec, settings, case.expect.name, _model_hash(session))
    except CircuitfindError as error:
        return of_case(case, "differs", reasons=(refusal(error), *reasons), baseline=path)
    measured = _Measured(now)
    folder: Path | None = None
    found: Discovery | None = None
    try:
        measured.first(session)
        store = Store(where.outputs)
        with store.open(case.spec.name, case.model, configuration(session)) as run:
            folder = run.path
            controls: Controls = "none" if case.expect.certified is None else DEFAULT_CONTROLS
            found = Stages(session, store, run, force=True).all((), controls)
        measured.rest(found)
        reasons += judge(case, session, found)
    except CircuitfindError as error:
        reasons.append(refusal(error))
    now = measured.now.rounded()
    if before is not None:
        reasons += compare(
            before,
            now,
            case.expect.tolerance,
            planted=is_planted(case.model),
            score_of=lambda name: _score_of(found, name),
        )
    return of_case(
        case,
        "differs" if reasons else "as expected",
        reasons=in_order(reasons),
        folder=folder,
        now=now,
        baseline=path,
        has_baseline=path.is_file(),
    )


def _stored(path: Path) -> tuple[Baseline | None, list[Reason]]:
    """A baseline, where there is one; or that it cannot be read, which another one mends."""
    try:
        return (Baseline.load(path) if path.is_file() else None), []
    except CircuitfindError as error:
        return None, [Reason("task", "baseline", f"{error.where}: {error.what}")]


def refusal(error: CircuitfindError) -> Reason:
    """That a run was refused, with its own words."""
    text = f"{error.where}: {error.what}" if error.where else error.what
    return Reason("refused", "refusal", text, error.details)


def _model_hash(session: Session) -> str | None:
    """Hash of a model's files; those of a written one are the program itself."""
    return None if is_planted(session.settings.model) else session.identity


@dataclass
class _Measured:
    """What is known of a case so far; of a refused run, all that came before the refusal."""

    now: Baseline

    def first(self, session: Session) -> None:
        """What decides a run: weights, prompts, and how the model does on them.

        Raises:
            CircuitfindError: There are no prompts, or the model gives no numbers for them.
        """
        from circuitfind.check.fingerprint import metric_of, prompts_of, weights_of

        self.now = replace(self.now, weights=weights_of(session.model))
        runs = session.runs_of(session.all_pairs)
        self.now = replace(self.now, prompts=prompts_of(session.all_pairs, runs))
        self.now = replace(self.now, metric=metric_of(runs))

    def rest(self, found: Discovery) -> None:
        """What came of it."""
        circuit, metric = found.circuit, self.now.metric
        assert metric is not None
        self.now = replace(
            self.now,
            metric=replace(metric, empty={e.ablation: e.empty for e in circuit.evaluations}),
            used=found.summary["prompts"]["used"],
            edges={str(e): finite(circuit.edge_scores.get(str(e))) for e in circuit.edges},
            nodes={str(node): score for node, score in found.scores.top_nodes(STRONGEST)},
            faithfulness={e.ablation: e.faithfulness.value for e in circuit.evaluations},
            backups={str(b.node): b.kind for b in circuit.backups},
        )


def _score_of(found: Discovery | None, name: str) -> float | None:
    """Score of an edge that may be in no circuit; None where it has none."""
    if found is None or found.scores.level != "edge":
        return None
    try:
        return finite(float(found.scores.values[found.scores.anatomy.index_of(parse_edge(name))]))
    except UsageError:
        return None
