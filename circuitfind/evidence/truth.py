"""The true edges of a model in a folder: ``edges.json`` beside its config.json and model.safetensors.

So a model whose circuit is known by how it was made (compiled, or trained to have it, as InterpBench's are) scores a method.
The file holds one of

    ["input->m0", "m0->a1.h1<v>", ...]                          true under every ablation
    {"ablation": "resample", "edges": [...]}                    true under one
    {"resample": [...], "zero": [...]}                          a list for each
    {"cfg": ..., "nodes": ..., "edges": ...}                    a graph of EAP-IG: what is in_graph

NumPy only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from circuitfind.circuit.mib import from_eap_ig, is_eap_ig
from circuitfind.config import ABLATIONS
from circuitfind.errors import ModelError, UsageError, did_you_mean
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import Kind, parse_edge
from circuitfind.reading import read_json
from circuitfind.task.findings import Known

EDGES = "edges.json"
"""The file's name."""
_PICKLE = "edges.pkl"
_HINT = f'{EDGES} is a list of names, {{"ablation": ..., "edges": [...]}}, or a list for each ablation (docs/mib.md)'


def truth_of_folder(folder: Path, ablation: str) -> Known | None:
    """The circuit that a model folder says it has, under an ablation.

    Args:
        folder: Of the model.
        ablation: What takes the place of what is cut out.

    Returns:
        Its edges, heads and MLPs; None where the folder has no truth, or none under this ablation.

    Raises:
        ModelError: The file is a pickle, cannot be read, or names what this model does not have.
    """
    path = folder / EDGES
    if not path.is_file():
        if (folder / _PICKLE).is_file():
            raise ModelError(
                f"the true edges are a pickle ({_PICKLE}), which can run code when it is read; refused",
                where=str(folder),
                hint=f"load it where you trust it, and write the names of the edges as a JSON list to {EDGES} "
                "(a1.h0->a2.h1<q>; an edge into a whole head is three, <q>, <k> and <v>)",
            )
        return None
    try:
        data = read_json(path, words=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"the true edges cannot be read: {error}", where=str(path), hint=_HINT) from error
    given, under = _edges(data, ablation, path)
    if given is None:
        return None
    names = _checked(given, _anatomy(folder), path)
    if not names:
        raise ModelError("the list of true edges is empty", where=str(path), hint=_HINT)
    edges = [parse_edge(name) for name in names]
    nodes = sorted({n for e in edges for n in (e.sender, e.receiver)}, key=lambda n: n.order)
    return Known(
        name="truth",
        source=str(path),
        heads=tuple(str(n) for n in nodes if n.kind is Kind.HEAD),
        mlps=tuple(str(n) for n in nodes if n.kind is Kind.MLP),
        edges=tuple(names),
        ablation=under,
    )


def _edges(data: Any, ablation: str, path: Path) -> tuple[list[Any] | None, str | None]:
    """The list that is true under an ablation, and the ablation that the file ties it to."""
    if isinstance(data, list):
        return data, None
    if not isinstance(data, dict):
        raise ModelError(f"the true edges are {json.dumps(data)[:60]}", where=str(path), hint=_HINT)
    if is_eap_ig(data):
        circuit, _ = from_eap_ig(data, where=str(path))
        return [str(edge) for edge in circuit.edges], None
    if "edges" in data:
        under = data.get("ablation")
        _known_ablations([under] if under is not None else [], path)
        extra = sorted(set(data) - {"ablation", "edges"})
        if extra or not isinstance(data["edges"], list):
            what = f"has the key '{extra[0]}' beside 'edges'" if extra else "has no list under 'edges'"
            raise ModelError(f"the file {what}", where=str(path), hint=_HINT)
        return (data["edges"] if under in (None, ablation) else None), under
    _known_ablations(data, path)
    for key, value in data.items():
        if not isinstance(value, list):
            raise ModelError(f"'{key}' holds no list of edges", where=str(path), hint=_HINT)
    return data.get(ablation), ablation


def _known_ablations(names: Iterable[Any], path: Path) -> None:
    for name in names:
        if name not in ABLATIONS:
            raise ModelError(
                f"there is no ablation {json.dumps(name)}",
                where=str(path),
                hint=did_you_mean(str(name), ABLATIONS),
            )


def _checked(given: list[Any], anatomy: Anatomy | None, path: Path) -> list[str]:
    """The edges by their own names, each once, in the order of the file."""
    found: dict[str, None] = {}
    for number, name in enumerate(given, 1):
        where = f"{path} (edge {number})"
        if not isinstance(name, str):
            raise ModelError(f"{json.dumps(name)[:60]} is no name of an edge", where=where, hint=_HINT)
        try:
            edge = parse_edge(name)
            if anatomy is not None:
                edge = anatomy.edge_at(*anatomy.index_of(edge))
        except UsageError as error:
            raise ModelError(error.what, where=where, hint=error.hint) from None
        found[str(edge)] = None
    return list(found)


def _anatomy(folder: Path) -> Anatomy | None:
    """The shape that a TransformerLens-format config.json gives; None where it is another or damaged."""
    try:
        config: Any = read_json(folder / "config.json", words=True)["config"]
        return Anatomy(
            int(config["n_layers"]),
            int(config["n_heads"]),
            int(config.get("n_key_value_heads") or config["n_heads"]),
            has_mlp=not config.get("attn_only", False),
            parallel=bool(config.get("parallel_attn_mlp", False)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # loading the model says what is wrong with it
