"""Feature graphs as they lie in run folders. No model is loaded, and no task read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.output.run import Run, Stage
from circuitfind.summary import finished_stages, report_file, unfinished

GRAPH, SCORES, PICTURE = "graph.json", "scores.json", "graph"
STRONGEST = 10
"""Nodes that a summary names."""
TOLD = ("prefix", "share_through_errors")
"""Facts of the stage that a summary gives where the search knows them."""


@dataclass(frozen=True)
class FoundFeatures:
    """A finished run.

    Attributes:
        graph: What was found.
        folder: The run folder; every file is in it.
        summary: The numbers that the command prints, as plain data.
    """

    graph: FeatureGraph
    folder: Path
    summary: dict[str, Any]


def stored_features(run: Run) -> FoundFeatures:
    """What a run of ``saes`` or of ``discover --nodes features`` found, as it lies on disk.

    Raises:
        RunError: It found nothing yet, or its files were changed.
    """
    stages = finished_stages(run)
    missing = next((name for name in ("prompts", "features") if name not in stages), None)
    if missing is not None:
        raise unfinished(run, missing)
    found = stages["features"]
    graph = FeatureGraph.load(found.files[GRAPH])
    drawn, text = stages.get("pictures"), run.path / f"{PICTURE}.dot"
    if drawn is not None:
        pictures = [path for path in drawn.files.values() if path.suffix != ".dot"]
    else:  # without Graphviz there is the text alone, which no stage owns
        pictures = [text] if text.is_file() else []
    return FoundFeatures(graph, run.path, graph_summary(graph, stages["prompts"], found, pictures, run.path))


def stored_scores(run: Run) -> dict[str, float]:
    """The score of every node that a finished run's graph was chosen from, by name; without those that have none.

    Raises:
        RunError: It has none yet, or its files were changed.
    """
    found = finished_stages(run).get("features")
    if found is None:
        raise unfinished(run, "features")
    scores = json.loads(found.read(SCORES))["scores"]
    return {name: float(score) for name, score in scores.items() if score is not None}


def graph_summary(
    graph: FeatureGraph, prompts: Stage, found: Stage, pictures: list[Path], folder: Path
) -> dict[str, Any]:
    """What a command prints of a graph, the same when it was found and when it is read again."""
    data = graph.as_dict()
    strongest = sorted(graph.node_scores.items(), key=lambda item: -abs(item[1]))[:STRONGEST]
    stages = (prompts.facts, found.facts)
    return {
        "run": folder.name,
        "folder": str(folder),
        "graph": str(found.files[GRAPH]),
        **{key: data[key] for key in ("conditions", "counts", "minimal", "evaluations", "errors", "sources")},
        "strongest": [{"name": name, "score": score} for name, score in strongest],
        "prompts": {
            "used": len(prompts.facts["kept"]),
            "accuracy": prompts.facts["accuracy"],
            "answered_wrongly": prompts.facts["answered_wrongly"],
            "dropped_unaligned": prompts.facts["dropped_unaligned"],
        },
        "sets_tried": found.facts["evaluations"],
        "notes": found.facts["notes"],
        **{name: found.facts[name] for name in TOLD if name in found.facts},
        "seconds": round(sum(facts["seconds"] for facts in stages), 2),
        "forward_passes": sum(facts["forward_passes"] for facts in stages),
        "backward_passes": sum(facts["backward_passes"] for facts in stages),
        "pictures": [str(path) for path in pictures],
        "report": report_file(folder),
    }
