"""The JSON of EAP-IG's graphs, and the width of a model, which it wants to know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from circuitfind import zoo
from circuitfind.config import offline
from circuitfind.errors import UsageError
from circuitfind.model.identity import model_folder
from circuitfind.output.exports.form import Exported, Source
from circuitfind.reading import read_json

_WIDTHS = ("d_model", "hidden_size", "n_embd")


def eap_ig(source: Source) -> Exported:
    """The JSON of EAP-IG's graphs, which the MIB benchmark evaluates (docs/mib.md).

    Raises:
        UsageError: The width of the residual stream is not known here.
        UnsupportedError: The form cannot hold the circuit.
    """
    circuit = source.circuit("eap-ig")
    from circuitfind.circuit.mib import to_eap_ig

    data = to_eap_ig(circuit, source.scores, source.d_model or width_of(circuit.conditions.model))
    edges = data["edges"].values()
    counts = {
        "nodes": len(data["nodes"]),
        "edges": len(edges),
        "nodes_in_graph": sum(node["in_graph"] for node in data["nodes"].values()),
        "edges_in_graph": sum(edge["in_graph"] for edge in edges),
    }
    unscored = sum(edge.get("scored") is False for edge in edges)
    notes = []
    if unscored:
        notes.append(f"{unscored:,} edges have no score; they are written with the score 0")
    if circuit.anatomy.grouped:
        heads, kv = circuit.anatomy.n_heads, circuit.anatomy.n_kv_heads
        notes.append(f"keys and values of {kv} heads are written for each of {heads}, their scores divided")
    if not circuit.anatomy.has_mlp:
        notes.append("the model has no MLPs: EAP-IG reads the file, but evaluates only models with MLPs")
    text = json.dumps(data, allow_nan=False, separators=(", ", ": "))
    return Exported({".eap-ig.json": text + "\n"}, counts, tuple(notes))


def width_of(model: str) -> int:
    """Width of a model's residual stream, from its configuration alone.

    Args:
        model: A zoo name, a folder, or a hub name whose config.json is in the cache or can be fetched.

    Raises:
        UsageError: It cannot be found out.
    """
    if zoo.is_planted(model):
        from circuitfind.model.load import planted

        return int(planted(model).config["d_model"])
    folder = zoo.trained_folder(model) if model in zoo.TRAINED else model_folder(model)
    path = folder / "config.json"
    try:
        config: Any = read_json(path if path.is_file() else _fetched(model), words=True)
    except (OSError, ValueError) as error:
        raise _no_width(model, str(error).splitlines()[0]) from error
    inside = config.get("config", config) if isinstance(config, dict) else None
    config = inside if isinstance(inside, dict) else {}  # TransformerLens format keeps it one level down
    found = next((config[key] for key in _WIDTHS if isinstance(config.get(key), int)), None)
    if found is None:
        raise _no_width(model, f"its config.json has none of {', '.join(_WIDTHS)}")
    return int(found)


def _fetched(model: str) -> Path:
    """The config.json of a hub model."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if not model or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise OSError("there is no such folder")
    cached = try_to_load_from_cache(model, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    if offline():
        raise OSError("it is not in the hub's cache, and the network is switched off")
    try:
        return Path(hf_hub_download(model, "config.json"))
    except Exception as error:  # the client raises errors of several libraries
        raise OSError(str(error)) from error


def _no_width(model: str, why: str) -> UsageError:
    return UsageError(
        f"the width of the residual stream of '{model}' is not known here",
        hint="give it with --d-model, such as --d-model 768",
        details=[why],
    )
