"""Reading the JSON of EAP-IG: every name is held against the model that its ``cfg`` gives, and every value against its kind."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.graph import Circuit, Conditions, from_mask
from circuitfind.circuit.json_form import filled
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UnsupportedError, UsageError, nearest
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import SLOTS, Kind

COORDINATES = "coordinates"
"""Name among ``Scores.extra`` of what a neuron-level file says of each dimension of each writer's output."""
SCORED_BY = ("method", "direction", "metric", "ablation")
UNKNOWN = "unknown"
"""The method of a file that does not tell it, and whatever else it does not say of its scores."""
_SIZES = ("n_layers", "n_heads")
_SHOWN = 5
_MOST_EDGES = 20_000_000
_MAKE = "write it again with Graph.to_json of EAP-IG, or `circuitfind export RUN --to eap-ig`"

Values = Float[np.ndarray, "writer reader"]
Mask = Bool[np.ndarray, "writer reader"]
Rows = Bool[np.ndarray, " writer"]
NodeValues = Float[np.ndarray, " writer"]
Coordinates = Float[np.ndarray, "writer d_model"]


def edge_names(anatomy: Anatomy) -> Iterator[tuple[str, int, int]]:
    """(name, writer, reader) of every edge that EAP-IG lists, in its order; shared keys once for each query head."""
    names = anatomy.writer_names
    for layer in range(anatomy.n_layers):
        before = anatomy.rows_before(layer, "q")
        starts = {slot: anatomy.reader_slice(layer, slot).start for slot in SLOTS}
        for row in range(before):
            for head in range(anatomy.n_heads):
                for slot in SLOTS:
                    own = head if slot == "q" else anatomy.kv_of(head)
                    yield f"{names[row]}->a{layer}.h{head}<{slot}>", row, starts[slot] + own
        if anatomy.has_mlp:
            column = anatomy.reader_slice(layer, "mlp").start
            for row in range(anatomy.rows_before(layer, "mlp")):
                yield f"{names[row]}->m{layer}", row, column
    for row, name in enumerate(names):
        yield f"{name}->logits", row, len(anatomy.readers) - 1


def sharing(anatomy: Anatomy) -> Float[np.ndarray, " reader"]:
    """How many edges of EAP-IG stand for one of ours, by reader."""
    group = anatomy.n_heads // anatomy.n_kv_heads
    return np.array([group if node.kind is Kind.KV else 1 for node, _ in anatomy.readers], dtype=float)


@dataclass(frozen=True)
class _File:
    """What a file says, before it is believed."""

    data: Mapping[str, Any]
    where: str | None

    def bad(self, what: str, hint: str = _MAKE, details: Collection[str] = ()) -> UsageError:
        return UsageError(what, where=self.where, hint=hint, details=tuple(details))


def from_eap_ig(data: Mapping[str, Any], *, where: str | None = None) -> tuple[Circuit, Scores | None]:
    """Read a graph of EAP-IG; see ``read_circuit``.

    A node-level file without edges in the graph holds the circuit of all edges between its nodes. Scores of dimensions
    of outputs (neuron-level files) are kept under ``coordinates``, and their sums are the scores of the nodes.

    Raises:
        UsageError: It has other nodes or edges than its ``cfg`` gives, or values that are none.
        UnsupportedError: It keeps some dimensions of an output only, or some heads only of a key/value group.
    """
    file = _File(data, where)
    anatomy, d_model = _anatomy(file)
    values, mask = _read_edges(file, anatomy)
    kept, node_values, coordinates = _read_nodes(file, anatomy, d_model, mask)
    if not mask.any() and kept.any():
        mask = _between(anatomy, kept)
    own = _mapping(data.get("circuitfind"))
    how: dict[str, Any] = {key: str(_mapping(own.get("scores")).get(key, UNKNOWN)) for key in SCORED_BY}
    # Graphs without scores of edges, and files of membership alone, have 0 for all of them.
    weighed = bool((np.nan_to_num(values) if own.get("level") != "edge" else ~np.isnan(values)).any())
    by_node = not np.isnan(node_values).all()
    extra = {} if coordinates is None else {COORDINATES: coordinates}
    scores: Scores | None = None
    if weighed:
        scores = Scores(anatomy, "edge", values, nodes=node_values if by_node else None, extra=extra, **how)
    elif by_node:
        scores = Scores(anatomy, "node", node_values, extra=extra, **how)
    listed, told = _mapping(own.get("node_scores")), node_values.copy()
    for row, name in enumerate(anatomy.writer_names):
        if name in listed:
            told[row] = _number(file, f"circuitfind.node_scores: '{name}'", listed[name])
    circuit = from_mask(
        anatomy,
        mask,
        _conditions(file, own),
        edge_values=values if weighed else None,
        node_values=told if by_node or listed else None,
    )
    n_kv_heads = data["cfg"].get("n_key_value_heads") or anatomy.n_heads
    if not _is_count(n_kv_heads) or anatomy.n_heads % n_kv_heads:
        raise file.bad(f"cfg: {anatomy.n_heads} heads cannot share {n_kv_heads} key/value heads")
    return fit(circuit, scores, replace(anatomy, n_kv_heads=n_kv_heads), where=where)


def fit(
    circuit: Circuit, scores: Scores | None, anatomy: Anatomy, *, where: str | None = None
) -> tuple[Circuit, Scores | None]:
    """The same circuit and scores for a model of another shape, where that only shares keys and values among heads.

    The score of a shared edge is the sum over its heads. It is in the circuit when it is for any head, provided that no
    edge leaves the others: keys that nobody reads make no difference.

    Args:
        circuit: Of the model as the file describes it.
        scores: Of the same.
        anatomy: Of the model that they are for.
        where: The file, for messages.

    Raises:
        UsageError: The shapes differ in anything else.
        UnsupportedError: The circuit keeps an edge for some heads only that share their keys.
    """
    own = circuit.anatomy
    if own == anatomy:
        return circuit, scores
    if own.grouped or anatomy.split or replace(own, n_kv_heads=anatomy.n_kv_heads) != anatomy:
        raise UsageError(
            "the circuit is of another model",
            where=where,
            hint="give the model that it was found in (--model)",
            details=[f"the circuit's: {_shape(own)}", f"the model's: {_shape(anatomy)}"],
        )
    mask = np.zeros_like(anatomy.edge_mask)
    values = np.full(anatomy.edge_mask.shape, np.nan)
    given = scores.values if scores is not None and scores.level == "edge" else None
    couples = list(zip(edge_names(own), edge_names(anatomy), strict=True))
    alive = np.asarray(circuit.mask.any(axis=1))
    for (_, row, column), (_, _, shared) in couples:
        if given is not None and not np.isnan(given[row, column]):
            values[row, shared] = np.nansum([values[row, shared], given[row, column]])
        mask[row, shared] |= circuit.mask[row, column]
    for (name, row, column), (_, _, shared) in couples:
        if mask[row, shared] and not circuit.mask[row, column] and alive[own.row_of(own.readers[column][0])]:
            raise UnsupportedError(
                f"the circuit lacks '{name}', and has the same edge for another head with the same keys and values",
                where=where,
                hint="in this model they are one edge: mark it for all heads of the group, or rank edges by score",
            )
    if scores is not None and given is not None:
        scores = replace(scores, anatomy=anatomy, values=values)
    elif scores is not None:
        scores = replace(scores, anatomy=anatomy)
    told = np.array([circuit.node_scores.get(name, np.nan) for name in own.writer_names])
    fitted = from_mask(
        anatomy,
        mask,
        circuit.conditions,
        edge_values=None if given is None else values,
        node_values=told if circuit.node_scores else None,
    )
    return fitted, scores


def _shape(anatomy: Anatomy) -> str:
    kv = f" ({anatomy.n_kv_heads} for keys and values)" if anatomy.grouped else ""
    mlps = "MLPs beside the heads" if anatomy.parallel else "MLPs" if anatomy.has_mlp else "no MLPs"
    return f"{anatomy.n_layers} layers of {anatomy.n_heads} heads{kv}, {mlps}" + (
        ", split into parts" if anatomy.split else ""
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _conditions(file: _File, own: Mapping[str, Any]) -> Conditions:
    empty = dict.fromkeys(("task", "model", "metric", "ablation", "direction", "counterfactual"), "")
    unknown = {**empty, "method": UNKNOWN, "rule": "in_graph of an EAP-IG file"}
    try:
        return filled(Conditions, {**unknown, **_mapping(own.get("conditions"))})
    except TypeError as error:
        raise file.bad(f"circuitfind.conditions: {error}") from error


def _anatomy(file: _File) -> tuple[Anatomy, int | None]:
    cfg = file.data["cfg"]
    for key in (*_SIZES, "parallel_attn_mlp"):
        if key not in cfg:
            raise file.bad(f"cfg lacks '{key}' (it has {', '.join(cfg) or 'nothing'})")
    for key in _SIZES:
        if not _is_count(cfg[key]):
            raise file.bad(f"cfg: {key} is {cfg[key]!r}, not a whole number above 0")
    for key in ("parallel_attn_mlp", "attn_only"):
        if not isinstance(cfg.get(key, False), bool):
            raise file.bad(f"cfg: {key} is {cfg[key]!r}, not true or false")
    layers, heads, d_model = cfg["n_layers"], cfg["n_heads"], cfg.get("d_model")
    if d_model is not None and not _is_count(d_model):
        raise file.bad(f"cfg: d_model is {d_model!r}, not a whole number above 0")
    if 3 * heads * (heads + 1) * layers * layers // 2 > _MOST_EDGES:
        raise file.bad(f"cfg: {layers} layers of {heads} heads have too many edges to list")
    has_mlp = not cfg.get("attn_only", False)
    return Anatomy(layers, heads, heads, has_mlp=has_mlp, parallel=cfg["parallel_attn_mlp"]), d_model


def _read_edges(file: _File, anatomy: Anatomy) -> tuple[Values, Mask]:
    """Scores and membership."""
    given = file.data["edges"]
    places = {name: (row, column) for name, row, column in edge_names(anatomy)}
    _check_names(file, "edge", given, places)
    values, mask = np.full(anatomy.edge_mask.shape, np.nan), np.zeros_like(anatomy.edge_mask)
    for name, place in places.items():
        one = given[name]
        if not isinstance(one, dict) or "in_graph" not in one:
            raise file.bad(f"edges: '{name}' has no in_graph")
        mask[place] = _flag(file, f"edges: '{name}': in_graph", one["in_graph"])
        if "score" in one and one.get("scored", True):
            values[place] = _number(file, f"edges: '{name}': score", one["score"])
    return values, mask


def _read_nodes(
    file: _File, anatomy: Anatomy, d_model: int | None, mask: Mask
) -> tuple[Rows, NodeValues, Coordinates | None]:
    """Which writers are kept, their scores, and those of the dimensions of their outputs."""
    given = {name: one for name, one in file.data["nodes"].items() if name != "logits"}
    names = anatomy.writer_names
    _check_names(file, "node", given, dict.fromkeys(names))
    kept, values = np.zeros(len(names), dtype=bool), np.full(len(names), np.nan)
    coordinates: Coordinates | None = None
    older = _mapping(file.data.get("neurons"))
    for row, name in enumerate(names):
        one = given[name]
        one = one if isinstance(one, dict) else {"in_graph": one}  # as older versions wrote it
        kept[row] = _flag(file, f"nodes: '{name}': in_graph", one.get("in_graph"))
        if one.get("score") is not None:
            values[row] = _number(file, f"nodes: '{name}': score", one["score"])
        inside = one.get("neurons", older.get(name))
        if inside is not None and (kept[row] or mask[row].any()):
            listed = _listed(file, f"nodes: '{name}': neurons", inside, d_model)
            if not all(listed):
                raise UnsupportedError(
                    f"the circuit keeps {sum(map(bool, listed))} of the {len(listed)} dimensions of what '{name}' "
                    "writes, and ours keep a writer whole or not at all",
                    where=file.where,
                    hint="have it evaluated by MIB's code, or rank nodes by the scores of such a file",
                )
        if one.get("neurons_scores") is not None:
            place = f"nodes: '{name}': neurons_scores"
            listed = _listed(file, place, one["neurons_scores"], d_model)
            if coordinates is None:
                coordinates = np.full((len(names), len(listed)), np.nan)
            coordinates[row] = [_number(file, place, value) for value in listed]
            if one.get("score") is None and not np.isnan(coordinates[row]).all():
                values[row] = np.nansum(coordinates[row])
    return kept, values, coordinates


def _between(anatomy: Anatomy, kept: Rows) -> Mask:
    """All edges between kept writers, and from them to the logits."""
    inside = {name for name, keep in zip(anatomy.writer_names, kept, strict=True) if keep} | {"logits"}
    read = np.array([str(node) in inside for node, _ in anatomy.readers])
    return np.asarray(anatomy.edge_mask & kept[:, None] & read[None, :])


def _check_names(file: _File, thing: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse names that the model lacks, and a file that lacks names of the model."""
    cfg = file.data["cfg"]
    shape = f"{cfg['n_layers']} layers of {cfg['n_heads']} heads"
    unknown = [name for name in given if name not in known]
    if unknown:
        near = nearest(unknown[0], _kin(unknown[0], known))
        raise file.bad(
            f"{len(unknown)} of its {len(given):,} {thing}s are none of a model of {shape}, such as '{unknown[0]}'",
            hint=(f"the nearest name is '{near}'; " if near else "") + _MAKE,
            details=unknown[:_SHOWN],
        )
    missing = [name for name in known if name not in given]
    if missing:
        raise file.bad(
            f"it lists {len(given):,} of the {len(known):,} {thing}s of a model of {shape}",
            details=[f"missing: {name}" for name in missing[:_SHOWN]],
        )


def _kin(name: str, known: Mapping[str, Any]) -> Collection[str]:
    """Known names that share the sender or the receiver with a name; all where they are few."""
    if len(known) < 2000:
        return known
    sender, _, receiver = name.partition("->")
    return [one for one in known if one.startswith(f"{sender}->") or one.endswith(f"->{receiver}")]


def _listed(file: _File, place: str, value: Any, d_model: int | None) -> list[Any]:
    if not isinstance(value, list) or len(value) != d_model:
        found = f"{len(value)} values" if isinstance(value, list) else repr(value)[:40]
        raise file.bad(f"{place} is {found}, and d_model of cfg is {d_model}")
    return value


def _number(file: _File, place: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise file.bad(f"{place} is {value!r}, not a number")
    if math.isinf(value):
        raise file.bad(f"{place} is infinite")
    return float(value)


def _flag(file: _File, place: str, value: Any) -> bool:
    if value not in (0, 1):  # 0, 1, 0.0, 1.0 and booleans
        raise file.bad(f"{place} is {value!r}, not true or false")
    return bool(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
