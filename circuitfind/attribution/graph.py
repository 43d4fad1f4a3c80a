"""An attribution graph as arrays: nodes, the edges into those whose inputs were computed, and how they were. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int


class NodeKind(IntEnum):
    """What a node of an attribution graph is."""

    TOKEN = 0
    FEATURE = 1
    ERROR = 2
    LOGIT = 3


@dataclass(frozen=True)
class Nodes:
    """The nodes: sources first (tokens, then layer by layer features and errors), logits last, the likeliest first.

    Attributes:
        kind: A ``NodeKind``.
        layer: -1 of tokens, the number of layers of logits.
        position: Counted from the beginning of the prompt.
        index: The feature's number, the token's id (tokens and logits), -1 of errors.
        value: A feature's activation, the size (2-norm) of an error, a logit less the mean of all; 1 of tokens.
    """

    kind: Int[np.ndarray, " node"]
    layer: Int[np.ndarray, " node"]
    position: Int[np.ndarray, " node"]
    index: Int[np.ndarray, " node"]
    value: Float[np.ndarray, " node"]

    def __len__(self) -> int:
        return len(self.kind)

    def of(self, kind: NodeKind) -> Bool[np.ndarray, " node"]:
        return np.asarray(self.kind == kind)

    def name(self, node: int) -> str:
        """``input@0``, ``t5.f88@3``, ``t5.err@3``; a logit is ``logits:TOKEN``."""
        kind, layer, position = self.kind[node], int(self.layer[node]), int(self.position[node])
        if kind == NodeKind.FEATURE:
            return f"t{layer}.f{self.index[node]}@{position}"
        if kind == NodeKind.ERROR:
            return f"t{layer}.err@{position}"
        return f"input@{position}" if kind == NodeKind.TOKEN else f"logits:{self.index[node]}"


@dataclass(frozen=True)
class AttributionGraph:
    """All edges that were computed for one prompt.

    ``edges[r].sum() + bias[r] = inputs[r]`` for every row r: what a target reads is the sum of what sources write there.

    Attributes:
        model, dictionaries: As the user named them.
        prompt: Its text; empty where only ids were given.
        tokens: Its ids, up to the position that is read.
        pieces: Their text.
        n_layers: Blocks of the model.
        nodes: What there is.
        probability: Of each logit node's token.
        logit_pieces: The text of those tokens.
        row_nodes: Which node each row leads to: all logits, and features (all of them, or the most influential).
        edges: From every source (column) to each row's node.
        bias: What biases add to each row's node.
        inputs: The pre-activation of each row's feature, or the logit.
        settings: What else decides the result.
    """

    model: str
    dictionaries: str
    prompt: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    n_layers: int
    nodes: Nodes
    probability: Float[np.ndarray, " logit"]
    logit_pieces: tuple[str, ...]
    row_nodes: Int[np.ndarray, " row"]
    edges: Float[np.ndarray, "row source"]
    bias: Float[np.ndarray, " row"]
    inputs: Float[np.ndarray, " row"]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_sources(self) -> int:
        return int(self.edges.shape[1])

    @cached_property
    def weights(self) -> Float[np.ndarray, " node"]:
        """Probability of the logits, 0 of other nodes: what influence starts from."""
        out = np.zeros(len(self.nodes))
        out[self.n_sources :] = self.probability
        return out

    @cached_property
    def gap(self) -> float:
        """The largest difference between a row's sum and its input, relative to the sum of sizes in that row."""
        return sum_gap(self.edges, self.bias, self.inputs)

    @cached_property
    def without_row(self) -> Bool[np.ndarray, " node"]:
        """Active features whose inputs were not computed: they are sources only."""
        out = self.nodes.of(NodeKind.FEATURE)
        out[self.row_nodes] = False
        return out

    @property
    def n_features(self) -> int:
        """Active features, one for each position that they fire at."""
        return int(self.nodes.of(NodeKind.FEATURE).sum())


def sum_gap(
    edges: Float[np.ndarray, "row source"],
    bias: Float[np.ndarray, " row"],
    inputs: Float[np.ndarray, " row"],
) -> float:
    """How far rows are from adding up: the largest |sum of edges + bias - input| by the sum of sizes of that row."""
    if not len(edges):
        return 0.0
    size = np.abs(edges).sum(1, dtype=np.float64) + np.abs(bias) + np.abs(inputs)
    gap = np.abs(edges.sum(1, dtype=np.float64) + bias - inputs)
    return float((gap / np.maximum(size, 1e-30)).max())
