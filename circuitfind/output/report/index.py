"""The index of a folder of runs: every run and sweep in one table, with links that also work without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from circuitfind.circuit.json_form import finite
from circuitfind.errors import shortened
from circuitfind.output.files import write_atomic
from circuitfind.output.manifest import MANIFEST
from circuitfind.output.report.page import page
from circuitfind.output.store import RunInfo, Store
from circuitfind.reading import read_json
from circuitfind.summary import REPORT

FILE = "index.html"
SWEEP = "sweep.json"
DRAWN = 80
"""Edges of a thumbnail at the most, the strongest."""
STAND_INS = ("backup", "second-order backup")
LAST = {
    "circuit": ("prompts", "scores", "circuit"),
    "features": ("prompts", "features"),
    "backups": ("prompts", "backups"),
}
"""What a run of each kind needs to have something to show."""


def index_page(store: Store, *, served: bool = False) -> str:
    """The index as HTML; it belongs into the folder itself, since its links begin there.

    Args:
        store: The runs.
        served: Whether reports that are not there are written when they are asked for, so that all may be linked.
    """
    rows = [_row(info, served=served) for info in store.runs()]
    sweeps = _sweeps(store.root)
    data = {
        "runs": rows or None,
        "sweeps": sweeps or None,
        "missing": {
            "runs": "There is no run here yet; make one with: circuitfind discover ioi",
            "sweeps": "There is no sweep here; `circuitfind sweep --template` prints a file to start from.",
        },
    }
    return page(f"Runs in {store.root.resolve().name}", data, ["tables.js", "listing.js", "index.js"])


def write_index(store: Store) -> Path:
    """Write ``index.html`` into the folder of runs.

    Raises:
        UsageError: The folder cannot be written to.
        RunError: The disk is full.
    """
    return write_atomic(store.root / FILE, index_page(store))


def _row(info: RunInfo, *, served: bool) -> dict[str, Any]:
    """One run; of a damaged one, what is wrong."""
    row: dict[str, Any] = {
        "name": info.name,
        "status": info.status,
        "task": info.task,
        "model": info.model,
        "started": info.started,
        "problem": info.problem or info.error,
        "link": None,
    }
    if info.problem is not None:
        return row
    try:
        manifest = read_json(info.path / MANIFEST)
        row |= _found(info, manifest)
        gone = _changed(info.path, manifest["stages"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        told = shortened(getattr(error, "strerror", None) or str(error), 200)
        return row | {"status": "damaged", "problem": f"it cannot be read: {told}"}
    if gone is not None:
        return row | {"status": "damaged", "problem": f"{gone} is missing or was changed"}
    whole = all(name in manifest["stages"] for name in LAST[row["kind"]])
    if (served and whole) or (info.path / REPORT).is_file():
        row["link"] = f"{quote(info.name)}/{REPORT}"
    return row


def _changed(folder: Path, stages: Mapping[str, Any]) -> str | None:
    """A file of a stage that is not as long as it was written; the commands that use it compare its hash too."""
    for stage in stages.values():
        for name, entry in stage["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry.get("bytes", path.stat().st_size):
                return str(name)
    return None


def _found(info: RunInfo, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says of itself, from its small files."""
    config, stages = manifest["config"], manifest["stages"]
    settings, kind = config.get("settings", {}), "circuit"
    if "saes" in config:
        kind = "features"
    elif "backups" in config:
        kind = "backups"
    row: dict[str, Any] = {
        "kind": kind,
        "seconds": sum(stage["facts"].get("seconds") or 0.0 for stage in stages.values()),
        "accuracy": stages.get("prompts", {}).get("facts", {}).get("accuracy"),
        "method": settings.get("method"),
        **_verdicts(stages),
    }
    name = {"circuit": "circuit.json", "features": "graph.json"}.get(kind)
    path = info.path / name if name is not None else None
    if path is None or not path.is_file():
        return row
    circuit = read_json(path)
    conditions, counts = circuit["conditions"], circuit["counts"]
    first = next(iter(circuit["evaluations"]), None)
    return row | {
        "method": conditions["method"],
        "conditions": {
            key: conditions[key] for key in ("metric", "ablation", "direction", "counterfactual", "rule")
        },
        "faithfulness": None if first is None else _interval(first["faithfulness"]),
        "edges": counts["edges"],
        "edges_in_model": counts.get("edges_in_model"),
        "nodes": counts.get("nodes", len(circuit["nodes"])),
        "thumbnail": _thumbnail(circuit),
    }


def _interval(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        key: None if found[key] is None else finite(float(found[key])) for key in ("value", "low", "high")
    }


def _verdicts(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the circuit as it is now is certified, and how many backups were found."""
    last = stages.get("backups") or stages.get("circuit") or {}
    made = [stages[name]["facts"] for name in ("evaluation", "evidence") if name in stages]
    evidence = next((facts for facts in made if facts.get("of") == last.get("key")), None)
    counts = stages.get("backups", {}).get("facts", {}).get("counts")
    return {
        "certified": None if evidence is None else bool(evidence["verdict"]["certified"]),
        "backups": None if counts is None else sum(counts.get(kind, 0) for kind in STAND_INS),
    }


def _thumbnail(circuit: Mapping[str, Any]) -> dict[str, Any]:
    """Nodes by depth, and the strongest edges between them, as numbers: a picture of a few hundred bytes."""

    def score(edge: Mapping[str, Any]) -> float:
        return float(edge.get("score") or edge.get("weight") or 0.0)

    def strength(edge: Mapping[str, Any]) -> float:
        return abs(score(edge))

    edges = sorted(circuit["edges"], key=strength, reverse=True)[:DRAWN]
    ends = {str(edge[side]) for edge in edges for side in ("sender", "receiver")}
    known = {str(node["name"]): node for node in circuit["nodes"]}
    rows = {name: _depth(name, known.get(name, {})) for name in ends}
    levels = sorted(set(rows.values()))
    order = {name: i for i, name in enumerate(sorted(ends, key=lambda name: (rows[name], name)))}
    most = max(map(strength, edges), default=0.0) or 1.0
    return {
        "levels": [levels.index(rows[name]) for name in order],
        "kinds": ["hlmoiu".find(_kind(name)) for name in order],
        "edges": [
            [order[str(e["sender"])], order[str(e["receiver"])], round(strength(e) / most, 2), score(e) < 0]
            for e in edges
        ],
    }


def _kind(name: str) -> str:
    if name.startswith(("input", "logits")):
        return name[0]
    return "h" if name.startswith("a") else "m" if name.startswith("m") and "." not in name else "u"


def _depth(name: str, node: Mapping[str, Any]) -> float:
    """How far up a node is; heads below the MLP of their layer."""
    if name.startswith("input"):
        return -1.0
    if name.startswith("logits"):
        return 1e9
    layer = node.get("layer")
    digits = "".join(c for c in name.partition(".")[0] if c.isdigit())
    return (float(layer) if layer is not None else float(digits or 0)) + (
        0.0 if name.startswith("a") else 0.5
    )


def _sweeps(root: Path) -> Sequence[dict[str, Any]]:
    """Folders of sweeps."""
    found = []
    for path in sorted(root.glob(f"sweep-*/{SWEEP}")) if root.is_dir() else []:
        name = path.parent.name
        row: dict[str, Any] = {"name": name, "link": None, "problem": None}
        try:
            data = read_json(path)
            row |= {
                "title": str(data["name"]),
                "file": str(data["file"]),
                "varied": ", ".join(data["varied"]),
            }
            row |= {
                "counts": {str(key): int(value) for key, value in data["counts"].items()},
                "runs": len(data["cells"]),
            }
            row["link"] = f"{quote(name)}/sweep.html" if path.with_name("sweep.html").is_file() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            row["problem"] = f"damaged: {error}"
        found.append(row)
    return found
