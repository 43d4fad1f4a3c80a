"""The first card of a report: what was found under which conditions, how sure that is, what it cost, and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuitfind.circuit.counts import parts_in_words
from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit
from circuitfind.evidence.certify import ENOUGH
from circuitfind.output.report.command import reproduce
from circuitfind.output.store import Stage

Data = dict[str, Any]

LITTLE = 0.5
"""Faithfulness under a second ablation below it is told in the warnings."""

FAITHFULNESS = (
    "(m(circuit) - m(empty)) / (m(model) - m(empty)), a ratio of means over prompts; 0 is empty, 1 the model"
)


def circuit_verdict(
    circuit: Circuit, summary: Mapping[str, Any], stages: Mapping[str, Stage], manifest: Mapping[str, Any]
) -> Data:
    """Of a run that ends in a circuit.

    Args:
        circuit: What was found.
        summary: As ``summary.summarise`` made it.
        stages: The finished ones.
        manifest: Of the run.
    """
    evidence = summary["evidence"]
    counts = summary["counts"]
    in_model = len(circuit.anatomy.writers) + 1
    backups = summary["backups"]
    return {
        **_common(summary, manifest),
        "what": "circuit",
        "parts": parts_in_words(circuit),
        "evaluations": [{**one, "on": "prompts it was pruned on"} for one in summary["evaluations"]],
        "held_out": []
        if evidence is None
        else [{**one, "on": _on(evidence)} for one in evidence["measured"]],
        "formula": FAITHFULNESS,
        "sizes": [
            {"what": "nodes", "kept": counts["nodes"], "of": in_model},
            {"what": "edges", "kept": counts["edges"], "of": counts["edges_in_model"]},
        ],
        "evidence": evidence,
        "minimal": summary["minimal"],
        "completeness": summary["completeness"],
        "backups": None
        if backups is None
        else (backups["skipped"] and f"not searched: {backups['skipped']}") or backups["verdict"],
        "known": summary["known"],
        "warnings": [*_warnings(summary, stages, manifest), *_cautions(summary, evidence)],
    }


def feature_verdict(
    graph: FeatureGraph, summary: Mapping[str, Any], stages: Mapping[str, Stage], manifest: Mapping[str, Any]
) -> Data:
    """Of a run that ends in a feature graph; the arguments are those of ``circuit_verdict``."""
    counts = summary["counts"]
    sizes = [
        {
            "what": "nodes",
            "kept": counts["nodes"],
            "of": counts["active_features"] or None,
            "whole": "features that fire",
        }
    ]
    return {
        **_common(summary, manifest),
        "what": "feature graph",
        "parts": f"{counts['features']} features, {counts['errors']} errors",
        "evaluations": [{**one, "on": "prompts it was pruned on"} for one in summary["evaluations"]],
        "held_out": [],
        "formula": FAITHFULNESS,
        "sizes": [*sizes, {"what": "edges", "kept": counts["edges"], "of": None}],
        "evidence": None,
        "minimal": summary["minimal"],
        "completeness": None,
        "backups": None,
        "known": None,
        "warnings": [
            *_warnings(summary, stages, manifest),
            "Nothing was held against controls: feature graphs have none yet.",
        ],
    }


def backups_verdict(
    searched: str, facts: Mapping[str, Any], conditions: Mapping[str, Any], manifest: Mapping[str, Any]
) -> Data:
    """Of a search for backups without a circuit.

    Args:
        searched: What it found, in a sentence.
        facts: Of its stage.
        conditions: Task, model, metric, ablations.
        manifest: Of the run.
    """
    cost = {key: facts.get(key) for key in ("seconds", "forward_passes", "backward_passes")}
    told = {"conditions": conditions, "prompts": None, **cost}
    return {
        **_common(told, manifest),
        "what": "search for backups",
        "parts": None,
        "evaluations": [],
        "held_out": [],
        "formula": None,
        "sizes": [],
        "evidence": None,
        "minimal": False,
        "completeness": None,
        "backups": searched,
        "known": None,
        "warnings": [*facts.get("notes", ()), *_of_manifest(manifest)],
    }


def _common(summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> Data:
    return {
        "run": manifest["name"],
        "task": manifest["task"],
        "model": manifest["model"],
        "created": manifest["created"],
        "status": manifest["status"],
        "device": manifest.get("device"),
        "dtype": manifest.get("dtype"),
        "conditions": dict(summary["conditions"]),
        "prompts": summary["prompts"],
        "cost": {key: summary[key] for key in ("seconds", "forward_passes", "backward_passes")},
        "command": reproduce(manifest),
    }


def _on(evidence: Mapping[str, Any]) -> str:
    return {True: "new prompts", False: "prompts it was pruned on: too few others"}.get(
        evidence["prompts"]["held_out"], "other prompts"
    )


def _warnings(
    summary: Mapping[str, Any], stages: Mapping[str, Stage], manifest: Mapping[str, Any]
) -> list[str]:
    """What the stages noted, and what the manifest tells against the run."""
    noted = [note for stage in stages.values() for note in stage.facts.get("notes") or ()]
    prompts = summary["prompts"]
    if prompts["answered_wrongly"]:
        noted.append(f"{prompts['answered_wrongly']} prompts that the model answers wrongly were left out.")
    if prompts["dropped_unaligned"]:
        noted.append(f"{prompts['dropped_unaligned']} pairs that do not line up were dropped.")
    return [*dict.fromkeys([*noted, *_of_manifest(manifest)])]


def _cautions(summary: Mapping[str, Any], evidence: Mapping[str, Any] | None) -> list[str]:
    """What a reader of the numbers should know."""
    found: list[str] = []
    if evidence is None:
        found.append(
            "Nothing was measured on new prompts or held against controls: run `circuitfind evaluate`."
        )
        used = summary["prompts"]["used"]
        if used < ENOUGH:
            found.append(f"Only {used} prompts; {ENOUGH} are the least that a verdict rests on.")
    else:
        found += evidence["notes"]
        # What it was not held against is told by the controls.
        found += [text for text in evidence.get("cautions", ()) if not text.startswith("not held against")]
        found += [
            f"No better than {one['name']}: {one['what']}"
            for one in evidence["controls"]
            if one["beaten"] is False
        ]
    common = (
        "ablation, which cuts what clean and corrupted prompts have in common as well, it carries little."
    )
    weak = [one for one in summary["evaluations"][1:] if one["faithfulness"]["value"] < LITTLE]
    found += [f"Under {one['ablation']} {common}" for one in weak]
    if summary["redundant"]:
        names = sorted({name for group in summary["redundant"] for name in group["nodes"]})
        found.append(f"Redundant, and so not in the circuit: {', '.join(names)}.")
    return found


def _of_manifest(manifest: Mapping[str, Any]) -> Sequence[str]:
    found = []
    if manifest["status"] not in ("finished", "running"):
        error = (manifest.get("error") or {}).get("what")
        found.append(f"The run is {manifest['status']}" + (f": {error}" if error else "."))
    if (manifest.get("git") or {}).get("dirty"):
        found.append("The working directory had uncommitted changes.")
    return found
