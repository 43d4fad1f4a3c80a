"""A pruned graph as circuit-tracer's frontend and Neuronpedia read it. No torch here.

Nodes are named ``LAYER_FEATURE_POSITION``, tokens ``E_ID_POSITION``, errors ``LAYER_-1_POSITION``, logits ``L_ID_POSITION`` with
L one more than the number of layers. ``feature`` pairs layer and number into one integer (Cantor's pairing), by which
feature dashboards are asked for; ``influence`` is cumulative, so that the frontend's slider can prune further.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import circuitfind
from circuitfind.attribution.graph import NodeKind
from circuitfind.attribution.prune import PrunedGraph

SCHEMA_VERSION = 1
FEATURE_TYPES = {
    NodeKind.FEATURE: "cross layer transcoder",
    NodeKind.ERROR: "mlp reconstruction error",
    NodeKind.TOKEN: "embedding",
    NodeKind.LOGIT: "logit",
}
"""``cross layer transcoder`` is what the frontend calls every feature, whatever it is of."""


def pairing(x: int, y: int) -> int:
    """Cantor's pairing of two numbers into one."""
    return (x + y) * (x + y + 1) // 2 + y


def slug_of(text: str) -> str:
    """Text as a name in a URL."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "graph"


def shown(token: str) -> str:
    """A token's text with blanks that can be seen, as the frontend writes them."""
    return token.replace("\n", "⏎").replace("\t", "→").replace("\r", "↵")


def to_circuit_tracer(
    pruned: PrunedGraph,
    *,
    slug: str | None = None,
    scan: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The graph as JSON data.

    Args:
        pruned: What is kept.
        slug: Its name in URLs; made of the prompt if None.
        scan: What the frontend knows the model by; the model's name if None.
        labels: What people call features, by names such as ``t5.f88``.
    """
    graph = pruned.graph
    ids = {int(node): _id(pruned, int(node)) for node in pruned.nodes}
    made = slug_of(graph.prompt or " ".join(graph.pieces))
    return {
        "metadata": {
            "slug": slug or made,
            "scan": scan or PurePath(graph.model).name,
            "transcoder_list": [],
            "prompt_tokens": [shown(piece) for piece in graph.pieces],
            "prompt": graph.prompt or "".join(graph.pieces),
            "node_threshold": pruned.node_threshold,
            "schema_version": SCHEMA_VERSION,
            "info": {"generator": {"name": "circuitfind", "version": circuitfind.__version__}},
            "generation_settings": {
                "max_n_logits": graph.settings.get("max_logits"),
                "desired_logit_prob": graph.settings.get("logit_probability"),
                "max_feature_nodes": graph.settings.get("max_features"),
                "dictionaries": graph.dictionaries,
            },
            "pruning_settings": {
                "node_threshold": pruned.node_threshold,
                "edge_threshold": pruned.edge_threshold,
            },
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [_node(pruned, int(node), labels or {}) for node in pruned.nodes],
        "links": [
            {"source": ids[int(s)], "target": ids[int(t)], "weight": float(w)}
            for t, s, w in zip(pruned.targets, pruned.sources, pruned.weights, strict=True)
        ],
    }


def _layer(pruned: PrunedGraph, node: int) -> str:
    nodes = pruned.graph.nodes
    kind = nodes.kind[node]
    if kind == NodeKind.TOKEN:
        return "E"
    return str(pruned.graph.n_layers + 1 if kind == NodeKind.LOGIT else int(nodes.layer[node]))


def _id(pruned: PrunedGraph, node: int) -> str:
    nodes = pruned.graph.nodes
    return f"{_layer(pruned, node)}_{int(nodes.index[node])}_{int(nodes.position[node])}"


def _node(pruned: PrunedGraph, node: int, labels: Mapping[str, str]) -> dict[str, Any]:
    graph = pruned.graph
    nodes = graph.nodes
    kind = NodeKind(int(nodes.kind[node]))
    layer, index, position = _layer(pruned, node), int(nodes.index[node]), int(nodes.position[node])
    feature = {
        NodeKind.FEATURE: pairing(int(nodes.layer[node]), index),
        NodeKind.ERROR: -1,
        NodeKind.TOKEN: position,
        NodeKind.LOGIT: index,
    }[kind]
    name = {NodeKind.FEATURE: f"{layer}_{index}-0", NodeKind.LOGIT: f"L_{index}-{position}"}
    is_logit = kind is NodeKind.LOGIT
    rank = node - graph.n_sources
    probability = float(graph.probability[rank]) if is_logit else 0.0
    clerp = labels.get(nodes.name(node).partition("@")[0], "")
    if is_logit:
        clerp = f'Output "{shown(graph.logit_pieces[rank])}" (p={probability:.3f})'
    return {
        "node_id": _id(pruned, node),
        "feature": feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": FEATURE_TYPES[kind],
        "token_prob": probability,
        "is_target_logit": is_logit and rank == 0,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": name.get(kind, f"{layer}_{index}-{position}"),
        "clerp": clerp,
        "influence": None if is_logit else float(pruned.cumulative[node]),
        "activation": float(nodes.value[node]) if kind is NodeKind.FEATURE else None,
    }
