"""What a command is given as RUN or CIRCUIT: a run, or a file of any form that can be read. No model is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from circuitfind.circuit.feature_graph import FORMAT as GRAPH_FORMAT
from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.json_form import read_object, reading
from circuitfind.circuit.mib import circuit_of, read_any, read_circuit
from circuitfind.circuit.scores import Scores
from circuitfind.circuit.tracer_read import from_circuit_tracer, is_circuit_tracer
from circuitfind.errors import RunError, UsageError
from circuitfind.feature_store import GRAPH, stored_features
from circuitfind.output.manifest import MANIFEST, read_manifest
from circuitfind.output.run import Run
from circuitfind.output.store import Store
from circuitfind.output.words import Words, words_of
from circuitfind.summary import finished_stages, of_features, stored

PROMPTS = "prompts.jsonl"
_LISTED = "graph-metadata.json"


@dataclass(frozen=True)
class Given:
    """A circuit or a feature graph, and what is known of where it comes from.

    Attributes:
        what: It.
        file: That it was read from; what is made of it is written beside it.
        scores: Of all nodes or edges of the model, where they are known.
        run: The run that it is of, or in whose folder it lies.
        tracer: The file's own data, where it is a graph of circuit-tracer.
    """

    what: Circuit | FeatureGraph
    file: Path
    scores: Scores | None = None
    run: Run | None = None
    tracer: dict[str, Any] | None = field(default=None, repr=False)

    @cached_property
    def words(self) -> Words:
        """What people call its nodes.

        Raises:
            UsageError: The file of labels is damaged.
        """
        return Words() if self.run is None else words_of(self.run)

    @cached_property
    def d_model(self) -> int | None:
        """Width of the model's residual stream, where the run has written it down."""
        stage = None if self.run is None else finished_stages(self.run).get("scores")
        return None if stage is None else stage.facts.get("d_model")

    @cached_property
    def prompts(self) -> list[dict[str, Any]]:
        """The pairs of the run that were used, as its ``prompts.jsonl`` has them; none where there is no run.

        Raises:
            RunError: They are gone, or were changed.
        """
        if self.run is None:
            return []
        stage = finished_stages(self.run).get("prompts")
        if stage is None:
            raise RunError(
                "the run's prompts are gone or were changed",
                where=str(self.run.path / PROMPTS),
                hint="give the same discover command again",
            )
        rows = [json.loads(line) for line in stage.files[PROMPTS].read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row["kept"]]


def given(name: str, outputs: str | Path | None = None) -> Given:
    """What a name stands for.

    Args:
        name: A file (``circuit.json``, a JSON graph of EAP-IG, a feature graph, a graph of circuit-tracer), a folder that
            ``circuitfind attribute`` wrote, or a run: its name, the beginning of it, its folder, or ``latest``.
        outputs: Folder of run folders.

    Raises:
        CircuitfindError: There is no such thing, or it cannot be read.
    """
    path = Path(name)
    if path.is_file():
        return read_file(path)
    if path.suffix == ".json":
        raise UsageError(f"there is no file {name}", hint="give a circuit.json, or the name of a run")
    if (path / _LISTED).is_file():
        return read_file(_attributed(path))
    run = Store(outputs).find(name)
    if of_features(run):
        found = stored_features(run)
        return Given(found.graph, run.path / GRAPH, run=run)
    circuit = stored(run)
    return Given(circuit.circuit, circuit.folder / "circuit.json", circuit.scores, run)


def read_file(path: Path) -> Given:
    """A circuit or a feature graph from a file, whichever form it has.

    Raises:
        UsageError: It cannot be read, or is of no form that is known.
    """
    run = _run_of(path)
    if path.suffix == ".json":
        data = read_any(path)
        if data.get("format") == GRAPH_FORMAT:
            return Given(FeatureGraph.from_dict(data, where=str(path)), path, run=run)
        if is_circuit_tracer(data):
            return Given(from_circuit_tracer(data, where=str(path)), path, run=run, tracer=data)
        circuit, scores = circuit_of(data, path)
        return Given(circuit, path, scores, run)
    circuit, scores = read_circuit(path)
    return Given(circuit, path, scores, run)


def _run_of(path: Path) -> Run | None:
    """The run in whose folder a file lies, if its manifest can be read."""
    folder = path.absolute().parent
    if not (folder / MANIFEST).is_file():
        return None
    try:
        return Run(folder, read_manifest(folder))
    except RunError:
        return None


def _attributed(folder: Path) -> Path:
    """The graph of a folder of attribution graphs.

    Raises:
        UsageError: There are several.
    """
    listed = read_object(folder / _LISTED, "list of graphs", file=_LISTED)
    with reading("list of graphs", where=str(folder / _LISTED), hint="trace them again"):
        slugs = [str(one["slug"]) for one in listed["graphs"]]
        if any("/" in slug or "\\" in slug or "\0" in slug for slug in slugs):
            raise ValueError("a name leads out of the folder")
    names = [f"{slug}.json" for slug in slugs]
    if len(names) == 1:
        return folder / names[0]
    raise UsageError(
        f"the folder holds {len(names)} attribution graphs",
        where=str(folder),
        hint=f"give one of its files, such as {folder / names[0]}"
        if names
        else "trace one with `circuitfind attribute`",
        details=names[:10],
    )
