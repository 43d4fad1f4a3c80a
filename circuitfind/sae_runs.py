"""Circuits of SAE features that are asked for by name: a task, a model, a folder of dictionaries; each in a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from circuitfind.backup_stage import Made
from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Conditions
from circuitfind.errors import UsageError
from circuitfind.feature_store import GRAPH, PICTURE, SCORES, FoundFeatures, graph_summary
from circuitfind.output.dot_features import feature_dot
from circuitfind.output.draw import dot_binary, install_hint, render
from circuitfind.output.files import make_folder
from circuitfind.output.manifest import MANIFEST, new_manifest, read_manifest
from circuitfind.output.report.write import renew_report
from circuitfind.output.run import Run, Stage
from circuitfind.output.store import Store, run_name, stage_key
from circuitfind.output.words import picture_key, words_or_none
from circuitfind.pipeline import Stages
from circuitfind.session import Reporter, Session, Silent, configuration, stage_keys
from circuitfind.settings import Settings
from circuitfind.sparse.options import SparseOptions
from circuitfind.summary import report_file
from circuitfind.task.spec import TaskSpec
from circuitfind.transcoder_runs import check_model


def find_features(
    spec: TaskSpec,
    settings: Settings,
    dictionaries: str,
    options: SparseOptions,
    *,
    layers: Sequence[int] | None = None,
    outputs: Path | str | None = None,
    out: Path | None = None,
    device: str = "auto",
    force: bool = False,
    formats: tuple[str, ...] = ("svg",),
    memory: int | None = None,
    reporter: Reporter | None = None,
) -> FoundFeatures:
    """Find few SAE features that carry a task, or read what the same command found before.

    Args:
        spec: The task.
        settings: Of its prompts, the metric and the ablation.
        dictionaries: A folder, file or hub name of SAEs.
        options: How far it goes.
        layers: Only SAEs that read in these layers.
        outputs: Folder of run folders.
        out: The run folder itself, in place of one in ``outputs``.
        device: Where the model runs.
        force: Run finished stages again.
        formats: Pictures to draw; empty for none.
        memory: Bytes to plan for; what is free if None.
        reporter: Hears of progress.

    Raises:
        CircuitfindError: Whatever the command would print.
    """
    from circuitfind.dictionaries.identity import dictionaries_identity

    session = Session(spec, settings, device, reporter or Silent(), memory=memory)
    digest = dictionaries_identity(dictionaries)
    chosen = {
        "dictionaries_hash": digest,
        "layers": None if layers is None else sorted(layers),
        **asdict(options),
    }
    config = {**configuration(session), "saes": {"dictionaries": dictionaries, **chosen}}
    store = Store(outputs)
    run = (
        store.open(spec.name, settings.model, config) if out is None else _run_at(out, spec, settings, config)
    )
    with run:
        stages = GraphStages(session, store, run, force=force)
        prompts_key = stage_keys(session)["prompts"]
        prompts = stages.prompts(prompts_key)
        run.record(hashes={"dictionaries": digest})
        key = stage_key(prompts_key, settings.ablation, settings.mean_over, chosen)
        work = partial(_search, session, dictionaries, layers, options, str(prompts.facts["counterfactual"]))
        found = stages.finish(key, work, prompts, formats)
    return reported(found, run, session)


def reported(found: FoundFeatures, run: Run, session: Session) -> FoundFeatures:
    """A finished run with its report."""
    renew_report(run, session.reporter.note)
    return replace(found, summary={**found.summary, "report": report_file(run.path)})


def _run_at(folder: Path, spec: TaskSpec, settings: Settings, config: dict[str, Any]) -> Run:
    """A run in a folder that the user names.

    Raises:
        UsageError: It holds another run, or other files.
    """
    name, identity = run_name(spec.name, settings.model, config)
    if folder.exists() and not folder.is_dir():
        raise UsageError("this is a file, not a folder", where=str(folder), hint="choose another --out")
    if (folder / MANIFEST).exists():
        found = Run(folder, read_manifest(folder))
        if found.manifest["id"] != identity:
            raise UsageError(
                "the folder holds a run of another command",
                where=str(folder),
                hint="choose another --out, or leave it out: each command has a folder of its own in the outputs folder",
            )
        return found
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError("the folder holds other files", where=str(folder), hint="choose another --out")
    make_folder(folder)
    return Run(folder, new_manifest(name, spec.name, settings.model, identity, config))


class GraphStages(Stages):
    """The stages of a run that ends in a feature graph."""

    def finish(
        self,
        key: str,
        work: Callable[[], Made],
        prompts: Stage,
        formats: tuple[str, ...],
    ) -> FoundFeatures:
        """Find the graph, draw it, and sum it up.

        Args:
            key: Of everything that the graph depends on.
            work: Scores, prunes, weighs edges; gives ``graph_files``.
            prompts: The stage before.
            formats: Pictures to draw; empty for none.
        """
        found = self.stage("features", key, work)
        graph = FeatureGraph.load(found.files[GRAPH])
        pictures = self.draw(graph, formats, stage_key(key, formats))
        self.record_device()
        summary = graph_summary(graph, prompts, found, pictures, self.run.path)
        return FoundFeatures(graph, self.run.path, summary)

    def draw(self, graph: FeatureGraph, formats: tuple[str, ...], key: str) -> list[Path]:
        """Draw a graph; without Graphviz, its DOT text."""
        if not formats:
            return []
        words, problem = words_or_none(self.run)
        if problem is not None:
            self.reporter.note(problem)
        text = feature_dot(graph, labels=words.texts)
        if dot_binary() is None:
            path = self.run.write(f"{PICTURE}.dot", text)
            self.reporter.note(f"no picture drawn: Graphviz's 'dot' is missing ({install_hint()})")
            return [path]

        def work() -> Made:
            files: dict[str, bytes | str] = {f"{PICTURE}.dot": text}
            for path in render(text, self.run.path / PICTURE, formats):
                files[path.name] = path.read_bytes()
            return files, {}

        stage = self.stage("pictures", picture_key(key, words), work)
        return [stage.files[f"{PICTURE}.{name}"] for name in formats]


def _search(
    session: Session,
    dictionaries: str,
    layers: Sequence[int] | None,
    options: SparseOptions,
    counterfactual: str,
) -> Made:
    from circuitfind.dictionaries.load import load_dictionaries
    from circuitfind.sparse.search import find_circuit

    settings, reporter = session.settings, session.reporter
    reporter.stage("features", "running", f"reading {dictionaries}")
    saes = load_dictionaries(dictionaries, layers=layers)
    check_model(dictionaries, session.model)
    conditions = Conditions(
        task=session.spec.name,
        model=settings.model,
        method=options.method,
        metric=settings.metric,
        ablation=settings.ablation,
        direction="noising",
        counterfactual=counterfactual,
        rule=options.rule,
        nodes="features",
        dictionaries=dictionaries,
        errors="recomputed",
    )
    found = find_circuit(
        session.runs,
        saes,
        conditions,
        options,
        report=lambda text: reporter.stage("features", "running", text),
        progress=reporter.progress,
    )
    for note in found.facts["notes"]:
        reporter.note(f"no second ablation: {note}")
    return graph_files(found.graph, found.scores), found.facts


def graph_files(graph: FeatureGraph, scores: Mapping[str, float | None]) -> dict[str, bytes | str]:
    """What a run keeps of a graph: itself, and the score of every node that it was chosen from."""
    data = {"format": "circuitfind.node-scores", "version": 1, "scores": dict(scores)}
    return {GRAPH: graph.text(), SCORES: json.dumps(data, indent=1, allow_nan=False) + "\n"}
