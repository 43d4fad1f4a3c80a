"""What the charts show: heatmap, curve, attention patterns, backups, units. For the report's page and for figures alike.

Each collector takes what a run holds and gives plain data for JSON, or None where the run has nothing to show. Values are
passed on as they were measured: nothing is rescaled, and no interval is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from circuitfind.backups.report import MEANING, BackupReport, Finding, RemovedSet
from circuitfind.circuit.curve import SHARES
from circuitfind.names import Kind, parse_node
from circuitfind.output.backup_text import PARTS, TITLES, decisive, shares_of, telling, verdict

PANELS = {
    "noising": ("Noising", "what the metric loses when this writes its corrupted value into the clean run"),
    "denoising": (
        "Denoising",
        "what the metric gains when this writes its clean value into the corrupted run",
    ),
    "direct": ("Direct effect", "what this adds to the metric by itself, past no other part of the model"),
}
"""By name: title, and what a value means."""

Data = dict[str, Any]


# Effects of heads and MLPs.


def heatmap(views: Mapping[str, Any], inside: Sequence[str] = ()) -> Data | None:
    """Layers by heads, with the MLPs as one column more, for each kind of effect that was measured.

    Args:
        views: As in ``views.json``.
        inside: Names of the circuit's nodes.

    Returns:
        ``panels`` with ``cells`` (node, layer, column, value, low, high; ``column`` is None for an MLP), the largest size
        ``max`` of these, and ``others``: writers that have no place in the grid (input, neurons, features), the strongest
        first. ``missing``: by the title of a kind of effect, why it was not measured.
    """
    effects = views.get("effects")
    if effects is None:
        return None
    columns = {name: effects.get(name) for name in PANELS}
    panels = [_panel(name, effects, found) for name, found in columns.items() if found is not None]
    if not panels:
        return None
    grid = [n for n in map(parse_node, effects["nodes"]) if n.kind in (Kind.HEAD, Kind.MLP)]
    return {
        **{key: effects[key] for key in ("metric", "ablation", "n_prompts", "full", "empty")},
        "layers": 1 + max((n.layer for n in grid), default=-1),
        "heads": 1 + max((n.index for n in grid if n.kind is Kind.HEAD), default=-1),
        "mlps": any(n.kind is Kind.MLP for n in grid),
        "circuit": sorted({name.partition("@")[0] for name in inside}),
        "panels": panels,
        "missing": {
            PANELS[name][0]: views["missing"].get(name, "it was not measured")
            for name, found in columns.items()
            if found is None
        },
    }


def _panel(name: str, effects: Mapping[str, Any], measured: Mapping[str, Sequence[Any]]) -> Data:
    title, meaning = PANELS[name]
    cells: list[Data] = []
    others: list[Data] = []
    for node, value, low, high in zip(
        effects["nodes"], measured["value"], measured["low"], measured["high"], strict=True
    ):
        found = parse_node(node)
        row: Data = {"node": node, "value": value, "low": low, "high": high}
        if found.kind in (Kind.HEAD, Kind.MLP):
            column = found.index if found.kind is Kind.HEAD else None
            cells.append({**row, "layer": found.layer, "column": column})
        else:
            others.append(row)
    direct = name == "direct"
    return {
        "name": name,
        "title": title,
        "meaning": meaning,
        "metric": (effects.get("direct_metric") or effects["metric"]) if direct else effects["metric"],
        "rest": effects.get("direct_rest") if direct else None,
        "max": max((abs(cell["value"]) for cell in cells), default=0.0),
        "cells": cells,
        "others": sorted(others, key=lambda row: -abs(row["value"])),
    }


# Faithfulness and completeness over the number of edges.


def curve(views: Mapping[str, Any], metric: str = "") -> Data | None:
    """Faithfulness and completeness of the n strongest edges, beside random ones and the run's own circuit.

    Args:
        views: As in ``views.json``.
        metric: Of the circuit.

    Returns:
        ``points`` in the order of their size: ``asked`` (edges taken from the ranking), ``edges`` (of these, connected),
        ``faithfulness``, ``completeness`` and ``random``; ``shares`` are those of the MIB benchmark.
    """
    found = views.get("curve")
    if found is None or not found["edges"]:
        return None
    whole, random = max(found["edges"]), found["random"]
    points = [
        {
            "asked": asked,
            "edges": found["connected"][i],
            "faithfulness": found["faithfulness"][i],
            "completeness": found["completeness"][i],
            "random": None if random is None else {key: random[key][i] for key in ("mean", "low", "high")},
        }
        for i, asked in enumerate(found["edges"])
    ]
    return {
        "metric": metric,
        **{key: found[key] for key in ("ablation", "n_prompts")},
        "edges": whole,
        "points": sorted(points, key=lambda point: point["asked"]),
        "random": None if random is None else {key: random[key] for key in ("of", "count", "n_prompts")},
        "circuit": found["circuit"],
        "shares": [{"share": share, "edges": share * whole} for share in SHARES if share * whole >= 1],
        "missing": None if random is not None else views["missing"].get("random"),
    }


# Attention patterns.


def patterns(views: Mapping[str, Any], roles: Mapping[str, str] | None = None) -> Data | None:
    """Attention of the circuit's heads on chosen prompts, as base64 of one byte a weight.

    Args:
        views: As in ``views.json``.
        roles: By head, where a known circuit of the task names them.
    """
    found = views.get("patterns")
    if found is None or not found["heads"] or not found["prompts"]:
        return None
    return {
        "prompts": found["prompts"],
        "heads": [
            {"name": name, "role": (roles or {}).get(name), "data": list(data)}
            for name, data in found["heads"].items()
        ],
    }


# What stands in when heads are removed.


def backups(report: BackupReport) -> Data:
    """Who compensates for whom, and where the direct effect of each removed set went.

    Returns:
        ``rows``, the strongest claims first; ``sets`` with their accounts in units of the metric and as shares of the lost
        direct effect, those that say most first (``telling``).
    """
    most = telling(report)
    rest = [one for one in report.sets if one not in most]
    return {
        "verdict": verdict(report),
        "metric": report.conditions.get("metric", "logit-diff"),
        "ablations": list(report.conditions.get("ablations", ())),
        "n_prompts": report.conditions.get("n_prompts"),
        "rows": [_row(finding) for finding in report.findings],
        "sets": [_set(one, one in most) for one in (*most, *rest)],
        "parts": dict(TITLES),
        "notes": list(report.notes),
    }


def _row(finding: Finding) -> Data:
    """A finding; its share of what was lost with the interval that its compensation has."""
    found = decisive(finding)
    low = high = None
    if found is not None and found.share:
        whole = found.compensation.value / found.share
        low, high = sorted(end / whole for end in (found.compensation.low, found.compensation.high))
    return {
        "name": finding.name,
        "kind": finding.kind,
        "meaning": MEANING[finding.kind],
        "covers": list(finding.covers),
        "reader": finding.reader,
        "direct": vars(finding.direct).copy(),
        "share": finding.share,
        "low": low,
        "high": high,
        "ablation": None if found is None else found.ablation,
        "agree": [e.ablation for e in finding.evidence if e.sure],
        "dormant": finding.dormant,
        "reasons": list(finding.reasons),
        "evidence": [
            {
                "ablation": e.ablation,
                "after": e.direct_after,
                "compensation": vars(e.compensation).copy(),
                "share": e.share,
                "floor": e.floor,
                "p": e.p,
                "sure": e.sure,
                "freeze": None if e.freeze is None else vars(e.freeze).copy(),
                "interaction": None if e.interaction is None else vars(e.interaction).copy(),
                "single": e.single,
            }
            for e in finding.evidence
        ],
    }


def _set(one: RemovedSet, tells: bool) -> Data:
    return {
        "name": one.name,
        "members": list(one.members),
        "reader": one.reader,
        "found": list(one.found),
        "telling": tells,
        "accounts": [
            {
                "ablation": account.ablation,
                "lost_direct": account.lost_direct,
                "gap": account.gap,
                "parts": {part: getattr(account, part) for part in PARTS},
                "shares": shares_of(account) if account.lost_direct > 0 else None,
            }
            for account in one.accounts
        ],
    }


# Neurons and features.


def units(
    names: Mapping[str, Any] | None,
    *,
    inside: Sequence[str] = (),
    scores: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
) -> Data | None:
    """Neurons and features: where they fire, and what they write.

    Args:
        names: As in ``names.json``; None before ``circuitfind name``.
        inside: Names of the units in the circuit.
        scores: By name.
        labels: By name: what people call them.
        roles: By name, where a known circuit of the task names them.

    Returns:
        ``nodes``, the strongest first, and ``unnamed``: units of the circuit that were never looked at.
    """
    known = {node["name"]: node for node in names["nodes"]} if names is not None else {}
    bare = dict.fromkeys(name.partition("@")[0] for name in inside)
    if not known and not bare:
        return None
    scores, labels, roles = scores or {}, labels or {}, roles or {}

    def told(name: str) -> Data:
        score = scores.get(name)
        return {
            "name": name,
            "label": labels.get(name),
            "role": roles.get(name),
            "score": score if score is not None and math.isfinite(score) else None,
            "inside": name in bare,
        }

    def strength(row: Data) -> tuple[bool, float]:
        return (not row["inside"], -abs(row["score"] or 0.0))

    return {
        "source": None if names is None else names["source"],
        "joined_by": "" if names is None else names.get("joined_by", ""),
        "nodes": sorted(({**node, **told(name)} for name, node in known.items()), key=strength),
        "unnamed": sorted((told(name) for name in bare if name not in known), key=strength),
    }
