"""Attribution graphs as ``.npz``: all edges, so that thresholds can change without a model. No torch here.

Of each row only the edges from layers below its target are written; the others are zero.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from circuitfind.attribution.graph import AttributionGraph, Nodes
from circuitfind.errors import UsageError
from circuitfind.reading import one_line, parse_json, read_arrays

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
        return _unpacked(read_arrays(path))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UsageError(
            f"this is no attribution graph: {one_line(error)}",
            where=str(path),
            hint="give a folder or graph.npz that `circuitfind attribute` wrote",
        ) from error


def _unpacked(data: dict[str, Any]) -> AttributionGraph:
    facts = parse_json(bytes(data["facts"]).decode())
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
