"""A planted model run so that any neuron can be set, and any edge of one: as plain as tests/reference.py, and checked by it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import sqrt

import torch
from torch import Tensor

from circuitfind.zoo.planted import Planted, PlantedDictionary, PlantedUnits, build
from tests.reference import ACTIVATIONS, logit_diff, normalise, tensors

Unit = tuple[int, int]


def members(*names: str) -> set[Unit]:
    """(layer, index) of neurons or features by their names: ``m1.n3+17`` is two."""
    found = set()
    for name in names:
        layer, _, indices = name.partition(".")
        found |= {(int(layer[1:]), int(index)) for index in indices[1:].split("+")}
    return found


@dataclass
class Trace:
    """What a run held, [batch, pos, ...] each.

    ``streams`` are what the heads of layer 0 read, its MLP, the heads of layer 1, ..., the logits; ``heads`` what each
    writes; ``normed`` what each MLP reads, ``hidden`` its neurons, ``out`` what it adds.
    """

    streams: list[Tensor] = field(default_factory=list)
    heads: dict[str, Tensor] = field(default_factory=dict)
    normed: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    out: list[Tensor] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, eq=False)
class Lab:
    """A planted model in double precision with some of its pairs; a multiple of 6 is balanced."""

    planted: Planted
    count: int = 24

    @property
    def units(self) -> PlantedUnits:
        assert self.planted.units is not None
        return self.planted.units

    @cached_property
    def state(self) -> dict[str, Tensor]:
        return {name: value.double() for name, value in self.planted.state.items()}

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return tensors(self.planted.pairs(self.count))

    @cached_property
    def clean(self) -> Trace:
        return self.run(self.batch[0])

    @cached_property
    def corrupted(self) -> Trace:
        return self.run(self.batch[1])

    # The model.

    def norm(self, x: Tensor, name: str) -> Tensor:
        config = self.planted.config
        return normalise(x, config["normalization_type"], self.state, name, config["eps"])

    def heads(self, layer: int, read: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each head of a layer writes; ``read`` is the stream that each of its inputs q, k, v reads."""
        name, inner = f"blocks.{layer}", {}
        for letter, x in read.items():
            weight, bias = (self.state[f"{name}.attn.{kind}_{letter.upper()}"] for kind in "Wb")
            inner[letter] = self.norm(x, f"{name}.ln1")[:, None] @ weight + bias[:, None]
        scores = inner["q"] @ inner["k"].transpose(2, 3) / sqrt(self.planted.config["d_head"])
        visible = torch.ones(scores.shape[2:], dtype=torch.bool).tril()
        pattern = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        written = pattern @ inner["v"] @ self.state[f"{name}.attn.W_O"]
        return {f"a{layer}.h{head}": out for head, out in enumerate(written.unbind(1))}

    def neurons(self, layer: int, normed: Tensor) -> Tensor:
        """Neuron activations."""
        name, activation = f"blocks.{layer}.mlp.", ACTIVATIONS[self.planted.config["act_fn"]]
        if self.planted.config["gated_mlp"]:
            return activation(normed @ self.state[f"{name}W_gate"]) * (normed @ self.state[f"{name}W_in"])
        return activation(normed @ self.state[f"{name}W_in"] + self.state[f"{name}b_in"])

    def unembed(self, x: Tensor) -> Tensor:
        return self.norm(x, "ln_final") @ self.state["unembed.W_U"] + self.state["unembed.b_U"]

    def run(
        self,
        tokens: Tensor,
        neurons: Mapping[Unit, Tensor] | None = None,
        mlp: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    ) -> Trace:
        """``neurons[layer, index]`` [batch, pos] is what a neuron is set to; ``mlp(layer, normed, out)`` what an MLP adds."""
        config, state, trace = self.planted.config, self.state, Trace()
        x = state["embed.W_E"][tokens] + state["pos_embed.W_pos"][: tokens.shape[1]]
        for layer in range(config["n_layers"]):
            trace.streams.append(x)
            written = self.heads(layer, dict.fromkeys("qkv", x))
            trace.heads |= written
            x = x + sum(written.values()) + state[f"blocks.{layer}.attn.b_O"]
            trace.streams.append(x)
            normed = self.norm(x, f"blocks.{layer}.ln2")
            hidden = self.neurons(layer, normed)
            for (at, index), value in (neurons or {}).items():
                if at == layer:
                    hidden[..., index] = value
            out = hidden @ state[f"blocks.{layer}.mlp.W_out"]
            out = out + state.get(f"blocks.{layer}.mlp.b_out", torch.zeros(1).double())
            if mlp is not None:
                out = mlp(layer, normed, out)
            trace.normed.append(normed)
            trace.hidden.append(hidden)
            trace.out.append(out)
            x = x + out
        trace.streams.append(x)
        trace.logits = self.unembed(x)
        return trace

    # Ablation.

    def metric(self, logits: Tensor) -> float:
        _, _, answer, wrong = self.batch
        return logit_diff(logits, answer, wrong).mean().item()

    @cached_property
    def all_neurons(self) -> set[Unit]:
        config = self.planted.config
        return {(layer, index) for layer in range(config["n_layers"]) for index in range(config["d_mlp"])}

    @cached_property
    def whole(self) -> float:
        return self.metric(self.clean.logits)

    @cached_property
    def empty(self) -> float:
        """The metric with every neuron as in the corrupted run."""
        return self.metric(self.without(self.all_neurons))

    def without(self, neurons: Collection[Unit]) -> Tensor:
        """Logits of the clean prompts with some neurons as in the corrupted run."""
        values = {(layer, n): self.corrupted.hidden[layer][..., n] for layer, n in neurons}
        return self.run(self.batch[0], values).logits

    def lost(self, neurons: Collection[Unit]) -> float:
        """The share of the behaviour (clean metric less that with all neurons ablated) that goes with some neurons."""
        return (self.whole - self.metric(self.without(neurons))) / (self.whole - self.empty)

    def lost_features(self, features: Collection[Unit]) -> float:
        """The same for features of the planted dictionaries: their writing becomes that of the corrupted run."""

        def patched(layer: int, normed: Tensor, out: Tensor) -> Tensor:
            chosen = [index for at, index in features if at == layer]
            dictionary = self.units.dictionaries[layer]
            now = encode(dictionary, normed)[..., chosen]
            then = encode(dictionary, self.corrupted.normed[layer])[..., chosen]
            return out + (then - now) @ dictionary.w_dec[chosen].double()

        logits = self.run(self.batch[0], mlp=patched).logits
        return (self.whole - self.metric(logits)) / (self.whole - self.empty)

    # Circuits of units.

    def carried(self, edges: Collection[str], ablation: str) -> float:
        """Faithfulness of a circuit between input, heads, units and logits; whatever else there is carries ablated outputs."""
        full, empty = self.whole, self._circuit(set(), ablation)
        return (self._circuit(edges, ablation) - empty) / (full - empty)

    def _circuit(self, edges: Collection[str], ablation: str) -> float:
        """The metric where each reader's input is ablated but for what its edges in the circuit carry."""
        assert ablation in ("resample", "zero")
        into: dict[str, list[str]] = {}
        for edge in edges:
            writer, _, reader = edge.partition("->")
            into.setdefault(reader, []).append(writer)
        config, keep = self.planted.config, float(ablation == "resample")
        base = [keep * stream for stream in self.corrupted.streams]
        change = {"input": self.clean.streams[0] - base[0]}

        def read(reader: str, at: int) -> Tensor:
            # A writer that reads nothing of the circuit writes what it does when ablated.
            return sum((change[w] for w in into.pop(reader, []) if w in change), base[at])

        for layer in range(config["n_layers"]):
            for head in range(config["n_heads"]):
                name = f"a{layer}.h{head}"
                if any(f"{name}<{slot}>" in into for slot in "qkv"):
                    inputs = {slot: read(f"{name}<{slot}>", 2 * layer) for slot in "qkv"}
                    change[name] = self.heads(layer, inputs)[name] - keep * self.corrupted.heads[name]
            for unit in [name for name in into if name.startswith(f"m{layer}.")]:
                normed = self.norm(read(unit, 2 * layer + 1), f"blocks.{layer}.ln2")
                chosen = [index for _, index in members(unit)]
                then = keep * self.corrupted.hidden[layer][..., chosen]
                moved = self.neurons(layer, normed)[..., chosen] - then
                change[unit] = moved @ self.state[f"blocks.{layer}.mlp.W_out"][chosen]
        logits = self.unembed(read("logits", -1))
        assert not into, f"no such reader: {sorted(into)}"
        return self.metric(logits)


@cache
def lab(name: str, seed: int) -> Lab:
    """A planted model with balanced pairs."""
    return Lab(build(name, seed))


def encode(dictionary: PlantedDictionary, normed: Tensor) -> Tensor:
    """Feature activations. [batch, pos, d_model] -> [batch, pos, feature]."""
    pre = normed @ dictionary.w_enc.double() + dictionary.b_enc.double()
    if dictionary.threshold is None:
        return pre.relu()
    return pre * (pre > dictionary.threshold.double()) * (pre > 0)
