"""Models whose MLPs are split into parts: neurons, or features of the dictionaries that stand for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.bridge import Model
from circuitfind.model.features import FeatureParts, Features
from circuitfind.model.parts import NeuronParts, Parts
from circuitfind.names import UNITS, Kind, Node, parse_node, unit

Groups = Iterable[Sequence[int]]
"""Units that are nodes; several of them together are one."""


def split_neurons(model: Model, chosen: Mapping[int, Groups] | None = None) -> Model:
    """The model with neurons as nodes, by layer; every neuron on its own if None.

    Raises:
        UnsupportedError: It has no MLPs, or their activation mixes neurons.
        UsageError: An MLP has no such neuron, or one is in two nodes.
    """
    if not model.has_mlp:
        raise UnsupportedError(
            f"{model.name} has no MLPs, so it has no neurons", hint="use --nodes heads,mlps"
        )
    found: dict[int, Parts] = {}
    for index, layer in enumerate(model.layers):
        assert layer.mlp is not None
        groups = [(i,) for i in range(layer.mlp.d_mlp)] if chosen is None else chosen.get(index)
        if groups is not None:
            nodes = _nodes(Kind.NEURON, "m", index, groups)
            units, owner = _units(nodes, range(layer.mlp.d_mlp), model)
            rest = Node(Kind.REST, index, family="m")
            found[index] = NeuronParts((*nodes, rest), units, owner, layer.mlp, layer.mlp_norm)
    return model.with_parts(found)


def split_features(
    model: Model,
    features: Mapping[int, Features],
    chosen: Mapping[int, Groups] | None = None,
    *,
    live_errors: bool = False,
) -> Model:
    """The model with features of dictionaries as nodes, by layer; every one that is held on its own if None.

    Raises:
        UsageError: A dictionary holds no such feature, or one is in two nodes.
    """
    found: dict[int, Parts] = {}
    for index, one in features.items():
        layer, held = model.layers[index], one.ids.tolist()
        assert layer.mlp is not None
        nodes = _nodes(
            Kind.FEATURE, "t", index, [(i,) for i in held] if chosen is None else chosen.get(index, ())
        )
        units, owner = _units(nodes, held, model)
        ends = Node(Kind.REST, index, family="t"), Node(Kind.ERROR, index, family="t")
        found[index] = FeatureParts(
            (*nodes, *ends), units, owner, one, layer.mlp, layer.mlp_norm, live_errors
        )
    return model.with_parts(found)


def chosen_of(anatomy: Anatomy) -> dict[int, list[tuple[int, ...]]]:
    """The units that are nodes of an anatomy, by layer, for the functions above."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for layer, names in enumerate(anatomy.parts):
        if names:
            nodes = [parse_node(name) for name in names]
            found[layer] = [node.units for node in nodes if node.kind in UNITS]
    return found


def _nodes(kind: Kind, family: str, layer: int, groups: Groups) -> tuple[Node, ...]:
    return tuple(sorted((unit(kind, family, layer, one) for one in groups), key=lambda node: node.order))


def _units(nodes: Sequence[Node], held: Sequence[int], model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the units of some nodes stand among those that are held, and which node each of them is of."""
    at = {one: place for place, one in enumerate(held)}
    pairs = [(one, owner) for owner, node in enumerate(nodes) for one in node.units]
    seen: set[int] = set()
    for one, owner in pairs:
        if one not in at:
            raise UsageError(
                f"{nodes[owner]} is not there: layer {nodes[owner].layer} has no {nodes[owner].kind.name.lower()} {one}",
                hint=f"there are {len(held)}, up to {max(held, default=0)}",
            )
        if one in seen:
            raise UsageError(f"{nodes[owner]} shares {one} with another node", hint="name it once")
        seen.add(one)
    units = torch.tensor([at[one] for one, _ in pairs], dtype=torch.long, device=model.device)
    return units, torch.tensor([owner for _, owner in pairs], dtype=torch.long, device=model.device)
