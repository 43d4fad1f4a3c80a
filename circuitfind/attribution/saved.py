"""Attribution graphs as ``.npz``: all edges, so that thresholds can change without a model. No torch here.

Of each row only the edges from layers below its target are written; the others are zero.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from circuitfind.attribution.graph import AttributionGraph, Nodes
from circuitfind.errors import UsageError

FORMAT = "circuitfind.attribution"
VERSION = 1
_FACTS = ("model", "dictionaries", "prompt", "tokens", "pieces", "n_layers", "logit_pieces", "settings")
_ARRAYS = ("probability", "row_nodes", "bias", "inputs")
_NODES = ("kind", "layer", "position", "index", "value")


def to_bytes(graph: AttributionGraph) -> bytes:
    """The content of a file."""
    stops = _stops(graph.nodes, graph.row_nodes, graph.n_sources)
    packed = [row[:stop] for row, stop in zip(graph.edges, stops, strict=True)]
    facts = {"format": FORMAT, "version": VERSION, **{name: getattr(graph, name) for name in _FACTS}}
    arrays = {name: getattr(graph, name) for name in _ARRAYS}
    arrays |= {f"nodes_{name}": value for name, value in asdict(graph.nodes).items()}
    out = io.BytesIO()
    np.savez(
        out,
        facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
        edges=np.concatenate(packed),
        **arrays,
    )
    return out.getvalue()


def read_graph(path: Path) -> AttributionGraph:
    """The graph of a file.

    Raises:
        UsageError: It is no graph, or damaged.
    """
    try:
        # Opened here: NumPy leaves a file that is no archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return _unpacked({name: data[name] for name in data.files})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"this is no attribution graph: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=str(path),
            hint="give a folder or graph.npz that `circuitfind attribute` wrote",
        ) from error


def _unpacked(data: dict[str, Any]) -> AttributionGraph:
    facts = json.loads(bytes(data["facts"]))
    if facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise ValueError(f"it says {facts.get('format')!r} {facts.get('version')!r}")
    nodes = Nodes(**{name: data[f"nodes_{name}"] for name in _NODES})
    n_sources = len(nodes) - len(data["probability"])
    row_nodes = data["row_nodes"]
    stops = _stops(nodes, row_nodes, n_sources)
    if len(data["edges"]) != stops.sum():
        raise ValueError(f"{len(data['edges'])} edges for {stops.sum()} places")
    edges = np.zeros((len(row_nodes), n_sources), dtype=np.float32)
    at = 0
    for row, stop in enumerate(stops):
        edges[row, :stop] = data["edges"][at : at + stop]
        at += stop
    told = {name: facts[name] for name in _FACTS}
    told |= {name: tuple(told[name]) for name in ("tokens", "pieces", "logit_pieces")}
    return AttributionGraph(**told, nodes=nodes, edges=edges, **{name: data[name] for name in _ARRAYS})


def _stops(nodes: Nodes, row_nodes: np.ndarray, n_sources: int) -> np.ndarray:
    """Where the sources below each row's target end: they are in the order of layers."""
    return np.asarray(np.searchsorted(nodes.layer[:n_sources], nodes.layer[row_nodes]))
