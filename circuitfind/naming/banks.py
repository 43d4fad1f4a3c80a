"""Where the weights of neurons and features are found: a bank holds all units of one layer and one kind.

A unit's activation is a number at each token; it writes that number times a vector to the stream, and reads the stream
through one vector, or through two in a gated MLP. Norms between are taken with their scale frozen at 1 (naming/directions.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitfind.dictionaries.dictionary import Dictionary, Site
from circuitfind.dictionaries.fit import check_fits
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.bridge import Model
from circuitfind.model.mlp import MLP
from circuitfind.model.norms import Norm
from circuitfind.names import UNITS, Kind, Node
from circuitfind.naming.blocks import Block
from circuitfind.naming.directions import read_through, written_through

Rows = Int[Tensor, " unit"] | None
"""Which units; all if None."""

FAMILY_OF = {"resid_post": "s", "attn_out": "sa", "mlp_out": "sm", "mid": "sh"}
"""The family of an SAE by its site; the stream into a block is the one behind the block before it, or ``si0``."""


@dataclass(frozen=True)
class Activations:
    """Of some units at some tokens; ``on`` where a feature fires, or a neuron's (or its gate's) pre-activation is positive."""

    values: Float[Tensor, "row pos unit"]
    on: Bool[Tensor, "row pos unit"]


class Bank(ABC):
    """All units of one layer and kind."""

    layer: int
    n_units: int

    @abstractmethod
    def writes(self, rows: Rows = None) -> Float[Tensor, "unit d_model"]:
        """What each writes to the stream at an activation of 1."""

    @abstractmethod
    def reads(self, rows: Rows = None) -> dict[str, Float[Tensor, "unit d_model"]]:
        """What each reads of the stream, by input (``in``, or ``gate`` and ``up``); empty where it reads no stream."""

    @abstractmethod
    def activations(self, block: Block, rows: Int[Tensor, " unit"]) -> Activations:
        """Of some units alone."""

    @abstractmethod
    def sees(self, head_layer: int) -> bool:
        """Whether heads of a layer write to what it reads."""

    def scale(self, block: Block) -> Float[Tensor, "row pos 1"] | None:
        """What is written is multiplied by this at each token; None for 1 everywhere."""
        return None


class Neurons(Bank):
    """The neurons of an MLP."""

    def __init__(self, model: Model, layer: int) -> None:
        mlp = model.layers[layer].mlp
        if mlp is None:
            raise UnsupportedError(
                f"{model.name} has no MLPs, so it has no neurons",
                hint="name features, or use a model with MLPs",
            )
        self.layer, self.n_units = layer, mlp.d_mlp
        self._mlp: MLP = mlp
        self._norm = model.layers[layer].mlp_norm
        self._parallel = model.anatomy.parallel

    def writes(self, rows: Rows = None) -> Float[Tensor, "unit d_model"]:
        return written_through(self._mlp.post_norm, _some(self._mlp.w_out, rows))

    def reads(self, rows: Rows = None) -> dict[str, Float[Tensor, "unit d_model"]]:
        mlp = self._mlp
        columns = {"in": mlp.w_in} if mlp.w_gate is None else {"gate": mlp.w_gate, "up": mlp.w_in}
        return {name: read_through(self._norm, _some(w.T, rows)) for name, w in columns.items()}

    def activations(self, block: Block, rows: Int[Tensor, " unit"]) -> Activations:
        mlp = self._mlp
        if not mlp.elementwise:  # every neuron depends on all
            saved = block.mlp_run[1]
            values = mlp.hidden(saved.pre, saved.up)[..., rows]
            return Activations(values, saved.pre[..., rows] > 0)
        up = _affine(block.normed, mlp.w_in, mlp.b_in, rows)
        if mlp.w_gate is None:
            return Activations(mlp.hidden(up, None), up > 0)
        gate = _affine(block.normed, mlp.w_gate, mlp.b_gate, rows)
        return Activations(mlp.hidden(gate, up), gate > 0)

    def sees(self, head_layer: int) -> bool:
        return head_layer < self.layer + (not self._parallel)

    def scale(self, block: Block) -> Float[Tensor, "row pos 1"] | None:
        if self._mlp.post_norm is None:
            return None
        raw = block.mlp_run[1].raw
        assert raw is not None
        return self._mlp.post_norm.inverse_scale(raw)


class Features(Bank):
    """The features of a dictionary.

    A cross-layer transcoder writes to its own layer and later ones: ``writes`` is their sum, which is what reaches the end.
    """

    def __init__(self, model: Model, dictionary: Dictionary) -> None:
        check_fits(dictionary, model)
        family, self.layer = place_of(dictionary)
        self.n_units = dictionary.n_features
        self._dictionary = dictionary.to(model.device)
        before = dictionary.site_in == "resid" and family == "s"
        self._site: Site = "resid_post" if before else dictionary.site_in
        norm = model.layers[self.layer].mlp_norm
        self._norms: dict[str, Norm | None] = {
            "mlp_normed": norm,
            "mlp_hat": Norm(norm.kind, None, None, norm.eps),
            **dict.fromkeys(("mlp_in", "resid", "mid", "resid_post")),
        }
        behind = self._site in ("resid_post", "mid") or not model.anatomy.parallel
        self._heads = self.layer + (behind and self._site != "resid")

    def writes(self, rows: Rows = None) -> Float[Tensor, "unit d_model"]:
        found = _some(self._dictionary.w_dec, rows)
        return (found.sum(1) if found.ndim == 3 else found) / self._dictionary.scale_out

    def reads(self, rows: Rows = None) -> dict[str, Float[Tensor, "unit d_model"]]:
        one = self._dictionary
        if self._site not in self._norms:
            return {}
        return {"in": read_through(self._norms[self._site], _some(one.w_enc.T, rows) * one.scale_in)}

    def activations(self, block: Block, rows: Int[Tensor, " unit"]) -> Activations:
        one = self._dictionary
        x = block.at(self._site)
        # Which features TopK keeps depends on all of them.
        values = one.encode(x)[..., rows] if one.activation == "topk" else one.features(rows).encode(x)
        return Activations(values, values > 0)

    def sees(self, head_layer: int) -> bool:
        return head_layer < self._heads


class Banks:
    """The banks of a model and its dictionaries, each made when first asked for.

    Args:
        model: The model.
        dictionaries: Transcoders, and SAEs of the stream or of what a layer's heads or MLP write to it.

    Raises:
        UnsupportedError: A dictionary of another site.
        UsageError: Two dictionaries of one family and layer.
    """

    def __init__(self, model: Model, dictionaries: Iterable[Dictionary] = ()) -> None:
        self.model = model
        self._dictionaries: dict[tuple[str, int], Dictionary] = {}
        for one in dictionaries:
            place = place_of(one)
            if place in self._dictionaries:
                raise UsageError(
                    f"two dictionaries are of {place[0]}{place[1]}",
                    hint="give a folder with one for each layer",
                    details=[self._dictionaries[place].source, one.source],
                )
            self._dictionaries[place] = one
        self._made: dict[tuple[str, int], Bank] = {}

    def __getitem__(self, node: Node) -> Bank:
        """The bank of a neuron or feature, which is there.

        Raises:
            UsageError: The model or the dictionaries have no such unit.
        """
        place = (node.family, node.layer)
        if place not in self._made:
            self._made[place] = self._make(node)
        bank = self._made[place]
        worst = max(node.units)
        if worst >= bank.n_units:
            near = f"{node.family}{node.layer}.{'n' if node.kind is Kind.NEURON else 'f'}{bank.n_units - 1}"
            raise UsageError(
                f"there is no '{node}': {_of(node)} has {bank.n_units} units",
                hint=f"the last one is '{near}'",
            )
        return bank

    def _make(self, node: Node) -> Bank:
        if node.kind not in UNITS:
            raise UsageError(
                f"'{node}' is no neuron and no feature",
                hint="name units such as m5.n1203, m5.n3+17 or t5.f88",
            )
        last = len(self.model.layers) - 1
        if node.layer > last:
            raise UsageError(
                f"{self.model.name} has no layer {node.layer}, so there is no '{node}'",
                hint=f"its layers are 0 to {last}",
            )
        if node.kind is Kind.NEURON:
            return Neurons(self.model, node.layer)
        found = self._dictionaries.get((node.family, node.layer))
        if found is None:
            have = sorted(f"{family}{layer}" for family, layer in self._dictionaries)
            raise UsageError(
                f"there is no dictionary for '{node}'",
                hint=f"the dictionaries are of {', '.join(have)}"
                if have
                else "name them with --dictionaries FOLDER",
            )
        return Features(self.model, found)


def place_of(dictionary: Dictionary) -> tuple[str, int]:
    """What nodes of a dictionary are named after: family (``t``, ``s``, ...) and layer.

    Raises:
        UnsupportedError: It writes to a site whose features have no name here.
    """
    layer, site = dictionary.layer, dictionary.site_out
    if dictionary.kind != "sae" and site == "mlp_out":
        return "t", layer
    if dictionary.kind == "sae" and site in FAMILY_OF:
        return FAMILY_OF[site], layer
    if dictionary.kind == "sae" and site == "resid":
        return ("s", layer - 1) if layer else ("si", 0)
    raise UnsupportedError(
        f"the features of a dictionary that reads {dictionary.site_in} and writes {site} cannot be named",
        where=dictionary.source or f"layer {layer}",
        hint="give transcoders, or SAEs of the stream or of what heads or MLPs write to it",
    )


def index_of(node: Node, device: torch.device) -> Int[Tensor, " unit"]:
    """The units of a node, as rows of its bank."""
    return torch.tensor(node.units, device=device)


def layers_of(nodes: Sequence[Node]) -> Mapping[int, list[Node]]:
    """Nodes by layer."""
    found: dict[int, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.layer, []).append(node)
    return found


def _of(node: Node) -> str:
    return (
        f"the MLP of layer {node.layer}"
        if node.kind is Kind.NEURON
        else f"its dictionary {node.family}{node.layer}"
    )


def _some(weight: Tensor, rows: Rows) -> Tensor:
    return weight if rows is None else weight[rows]


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Int[Tensor, " unit"]) -> Tensor:
    out = x @ weight[:, rows]
    return out if bias is None else out + bias[rows]
