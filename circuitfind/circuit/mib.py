"""Circuits and scores in the JSON of EAP-IG, which the MIB benchmark (Mueller et al. 2025, arXiv 2504.13151) reads.

Such a file lists every node and every edge of a model, with a score and whether the circuit has it (``in_graph``). Its
names are ours, with one difference: every query head has keys and values of its own, also where heads share them
(docs/mib.md). NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from circuitfind.circuit.graph import FORMAT, Circuit
from circuitfind.circuit.json_form import read_object
from circuitfind.circuit.mib_read import (
    COORDINATES,
    SCORED_BY,
    UNKNOWN,
    edge_names,
    fit,
    from_eap_ig,
    sharing,
)
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UnsupportedError, UsageError

VERSION = 1
"""Of what stands under ``circuitfind`` in a file; EAP-IG does not look there."""
_PICKLES = (".pt", ".pth", ".pkl", ".bin")

__all__ = ["edge_names", "fit", "from_eap_ig", "is_eap_ig", "read_circuit", "to_eap_ig"]


def is_eap_ig(data: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the three keys of EAP-IG's graphs."""
    return all(isinstance(data.get(key), dict) for key in ("cfg", "nodes", "edges"))


def read_circuit(path: Path) -> tuple[Circuit, Scores | None]:
    """Read a ``circuit.json`` or an EAP-IG graph, whichever it is.

    Returns:
        The circuit, and the scores of all nodes or edges: None in a ``circuit.json`` and in a file of membership alone.

    Raises:
        UsageError: The file cannot be read, is neither of the two, or does not fit together.
    """
    if path.suffix in _PICKLES:
        raise UsageError(
            "the file is a pickle, which can run code when it is read; refused",
            where=str(path),
            hint="write it as JSON where you trust it: Graph.from_pt(FILE).to_json('circuit.json') with EAP-IG",
        )
    return circuit_of(read_any(path), path)


def read_any(path: Path) -> dict[str, Any]:
    """The JSON object of a circuit in any form; NaN stands for a number in EAP-IG's alone.

    Raises:
        UsageError: The file cannot be read.
    """
    names: dict[str, Any] = {"file": "circuit.json", "otherwise": " or a JSON graph of EAP-IG"}
    try:
        return read_object(path, "circuit", **names)
    except UsageError:
        data = read_object(path, "circuit", **names, words=True)
        if is_eap_ig(data):
            return data
        raise


def circuit_of(data: Mapping[str, Any], path: Path) -> tuple[Circuit, Scores | None]:
    """The circuit of what ``read_any`` gave; see ``read_circuit``."""
    if data.get("format") == FORMAT:
        return Circuit.from_dict(data, where=str(path)), None
    if is_eap_ig(data):
        return from_eap_ig(data, where=str(path))
    found = f"its format is {data['format']}" if "format" in data else f"its keys are {', '.join(data)[:200]}"
    raise UsageError(
        f"neither a circuit.json nor a graph of EAP-IG ({found})",
        where=str(path),
        hint="give a circuit.json of a run, or a JSON file with cfg, nodes and edges",
    )


def to_eap_ig(circuit: Circuit, scores: Scores | None, d_model: int) -> dict[str, Any]:
    """The JSON form of a circuit and the scores that it comes from.

    What was not scored is written as 0 (edges, marked ``"scored": false``) or without a score (nodes). The score of a
    key/value head's edge is divided among its query heads, so that their sum is the score.

    Args:
        circuit: What is in the graph.
        scores: Of all edges, or of all nodes; without them those that the circuit holds.
        d_model: Width of the residual stream, which EAP-IG wants to know.

    Raises:
        UnsupportedError: Neurons or features are nodes, positions are kept apart, or a score is infinite.
    """
    anatomy = circuit.anatomy
    _check_writable(circuit, scores)
    values = np.full(anatomy.edge_mask.shape, np.nan)
    for edge in circuit.edges:
        values[anatomy.index_of(edge)] = circuit.edge_scores.get(str(edge), math.nan)
    level = "edge" if scores is None else scores.level
    if scores is not None:
        values = scores.values if level == "edge" else np.full_like(values, np.nan)
    values = values / sharing(anatomy)
    edges = {}
    for name, row, column in edge_names(anatomy):
        value = float(values[row, column])
        scored = not math.isnan(value)
        edges[name] = {"score": value if scored else 0.0, "in_graph": bool(circuit.mask[row, column])}
        if not scored and level == "edge":
            edges[name]["scored"] = False
    cfg: dict[str, Any] = {
        "n_layers": anatomy.n_layers,
        "n_heads": anatomy.n_heads,
        "parallel_attn_mlp": anatomy.parallel,
        "d_model": d_model,
    }
    cfg |= {"n_key_value_heads": anatomy.n_kv_heads} if anatomy.grouped else {}
    cfg |= {} if anatomy.has_mlp else {"attn_only": True}
    told = {key: getattr(scores, key) for key in SCORED_BY} if scores is not None else {}
    told = {key: value for key, value in told.items() if value != UNKNOWN}
    return {
        "cfg": cfg,
        "nodes": _nodes(circuit, scores),
        "edges": edges,
        "circuitfind": {
            "version": VERSION,
            "level": level,
            "conditions": vars(circuit.conditions).copy(),
            "scores": told,
            "node_scores": {
                name: circuit.node_scores[name]
                for name in anatomy.writer_names
                if math.isfinite(circuit.node_scores.get(name, math.nan))
            },
        },
    }


def _nodes(circuit: Circuit, scores: Scores | None) -> dict[str, Any]:
    """Every node: whether an edge of the circuit touches it, and in node-level files its score."""
    anatomy = circuit.anatomy
    used = {str(node.bare) for node in circuit.nodes}
    by_node = scores is not None and scores.level == "node"
    coordinates = scores.extra.get(COORDINATES) if scores is not None else None
    found: dict[str, Any] = {}
    for row, name in enumerate(anatomy.writer_names):
        found[name] = {"in_graph": name in used}
        if scores is not None and by_node and not math.isnan(scores.values[row]):
            found[name]["score"] = float(scores.values[row])
        if coordinates is not None and not np.isnan(coordinates[row]).any():
            found[name]["neurons"] = [name in used] * coordinates.shape[1]
            found[name]["neurons_scores"] = coordinates[row].tolist()
    return found | {"logits": {"in_graph": True}}


def _check_writable(circuit: Circuit, scores: Scores | None) -> None:
    if circuit.anatomy.split:
        raise UnsupportedError(
            "EAP-IG's graphs have whole MLPs, and here neurons or features are nodes of their own",
            hint="export a run of `discover` without --nodes; what EAP-IG calls neurons are dimensions of a "
            "writer's output",
        )
    if any(edge.receiver.position or edge.sender.position for edge in circuit.edges):
        raise UnsupportedError(
            "EAP-IG's graphs have no positions, and edges of this circuit are kept at one alone",
            hint="leave the positions out of its names",
        )
    if scores is not None and scores.anatomy != circuit.anatomy:
        raise UnsupportedError("the scores are of another model than the circuit", hint="run discover again")
    if scores is not None and np.isinf(scores.values).any():
        raise UnsupportedError("a score is infinite, which JSON cannot hold", hint="choose another method")
