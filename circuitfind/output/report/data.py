"""What a run's report shows, section by section, as plain data; with the reason for each section that has nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit
from circuitfind.errors import CircuitfindError
from circuitfind.output.report import charts
from circuitfind.output.report.circuit_graph import circuit_graph, feature_graph
from circuitfind.output.report.measured import views_of
from circuitfind.output.report.rows import prompt_rows
from circuitfind.output.report.verdict import backups_verdict, circuit_verdict, feature_verdict
from circuitfind.output.store import Run, Stage
from circuitfind.output.words import Words, read_names, words_or_none
from circuitfind.summary import (
    alone,
    evidence_stages,
    finished_stages,
    of_features,
    searched,
    stored,
    unfinished,
)

Data = dict[str, Any]

SECTIONS = (
    "verdict",
    "graph",
    "heatmap",
    "curve",
    "patterns",
    "backups",
    "units",
    "prompts",
    "tables",
    "manifest",
)
OF_A_CIRCUIT = "This is measured of circuits; {what} has none."


def collect(run: Run) -> Data:
    """Everything that a run's page shows: ``title``, a key for each of ``SECTIONS`` (None where there is nothing), and
    ``missing``: by section, why.

    Raises:
        RunError: The run has found nothing yet, or its files were changed.
    """
    made = _of_features(run) if of_features(run) else _of_backups(run) if alone(run) else _of_circuit(run)
    manifest = run.manifest
    missing = made.pop("missing")
    title = f"{manifest['task']} on {manifest['model']}: {made['verdict']['what']}"
    found = {"title": title, **dict.fromkeys(SECTIONS), **made, "manifest": manifest}
    found["tables"] = None if found["graph"] is None else True
    found["missing"] = {name: missing[name] for name in SECTIONS if found[name] is None and name in missing}
    return found


def _of_circuit(run: Run) -> Data:
    """A run that ends in a circuit."""
    found, stages, manifest = stored(run), finished_stages(run), run.manifest
    circuit = found.circuit
    views, no_views, damaged = views_of(run, stages)
    why = {} if views is None else views["missing"]
    words, problem = words_or_none(run)
    evaluation = _evaluation(stages)
    report, no_backups = _searched(run, stages)
    graph = circuit_graph(circuit, found.scores, words, views=views, evaluation=evaluation, backups=report)
    verdict = circuit_verdict(circuit, found.summary, stages, manifest)
    verdict["warnings"] += [text for text in (problem, no_views if damaged else "") if text]
    inside = [str(node) for node in circuit.nodes]
    charted = views or {}
    units = [str(node) for node in circuit.units]
    return {
        "verdict": verdict,
        "graph": graph,
        "heatmap": charts.heatmap(charted, inside),
        "curve": charts.curve(charted, circuit.conditions.metric),
        "patterns": charts.patterns(charted, circuit.roles),
        "backups": None if report is None else charts.backups(report),
        "units": _units(run, units, circuit, words),
        "prompts": prompt_rows(_text(stages["prompts"]), views, circuit.conditions.metric, damaged=damaged),
        "missing": {
            "heatmap": why.get("effects", no_views),
            "curve": why.get("curve", no_views),
            "patterns": why.get("patterns", no_views),
            "backups": no_backups,
            "units": "The circuit has no neurons or features: find one with `--nodes heads,neurons` or `--nodes heads,features`.",
        },
    }


def _of_features(run: Run) -> Data:
    """A run that ends in a feature graph."""
    stages, manifest = finished_stages(run), run.manifest
    missing = next((name for name in ("prompts", "features") if name not in stages), None)
    if missing is not None:
        raise unfinished(run, missing)
    graph = FeatureGraph.load(stages["features"].files["graph.json"])
    words, problem = words_or_none(run)
    data = graph.as_dict()
    prompts, found = stages["prompts"].facts, stages["features"].facts
    keys = ("seconds", "forward_passes", "backward_passes")
    summary = {
        **{key: data[key] for key in ("conditions", "counts", "minimal", "evaluations")},
        "prompts": {
            "used": len(prompts["kept"]),
            **{key: prompts[key] for key in ("accuracy", "answered_wrongly", "dropped_unaligned")},
        },
        **{key: prompts[key] + found[key] for key in keys},
    }
    verdict = feature_verdict(graph, summary, stages, manifest)
    verdict["warnings"] += [problem] if problem else []
    features = [str(node) for node in graph.features]
    none = OF_A_CIRCUIT.format(what="a feature graph")
    return {
        "verdict": verdict,
        "graph": feature_graph(graph, words),
        "units": charts.units(
            read_names(run),
            inside=features,
            scores=graph.node_scores,
            labels={**words.labels, **graph.labels},
        ),
        "prompts": prompt_rows(_text(stages["prompts"]), None, graph.conditions.metric),
        "missing": dict.fromkeys(("heatmap", "curve", "patterns", "backups"), none)
        | {"units": "The graph has no features."},
    }


def _of_backups(run: Run) -> Data:
    """A search for backups without a circuit."""
    stages = finished_stages(run)
    found = searched(run, stages.get("backups"))
    settings = run.manifest["config"]["settings"]
    conditions = {
        **{key: settings[key] for key in ("task", "model", "metric")},
        "ablation": ", ".join(found.report.conditions.get("ablations", ())),
    }
    data = charts.backups(found.report)
    none = OF_A_CIRCUIT.format(what="a search for backups")
    return {
        "verdict": backups_verdict(data["verdict"], found.facts, conditions, run.manifest),
        "backups": data,
        "prompts": prompt_rows(_text(stages["prompts"]), None, settings["metric"])
        if "prompts" in stages
        else None,
        "missing": dict.fromkeys(("graph", "heatmap", "curve", "patterns", "units"), none)
        | {"prompts": "The run has no finished stage 'prompts'."},
    }


def _evaluation(stages: Mapping[str, Stage]) -> Data | None:
    """What ``evaluate`` found of the circuit as it is now."""
    for stage in evidence_stages(stages):
        if "evaluation.json" in stage.files:
            found: Data = json.loads(stage.read("evaluation.json"))
            return found
    return None


def _searched(run: Run, stages: Mapping[str, Stage]) -> tuple[Any, str]:
    """What the search for backups found, or why there is nothing."""
    try:
        return searched(run, stages.get("backups")).report, ""
    except CircuitfindError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return None, f"{error.what[:1].upper()}{error.what[1:]}{hint}."


def _units(run: Run, inside: list[str], circuit: Circuit, words: Words) -> Data | None:
    names = read_names(run)
    if names is None and not inside:
        return None
    return charts.units(
        names, inside=inside, scores=circuit.node_scores, labels=words.labels, roles=circuit.roles
    )


def _text(stage: Stage) -> str | None:
    return stage.read("prompts.jsonl").decode("utf-8") if "prompts.jsonl" in stage.files else None
