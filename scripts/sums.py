"""A model that adds modulo p: all its sums, its neurons replaced, and their frequencies. For scripts/modular_addition.py."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from circuitfind.config import Ablation
from circuitfind.errors import UnsupportedError
from circuitfind.model.bridge import Model
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs
from circuitfind.model.split import split_neurons
from circuitfind.names import Kind
from circuitfind.task.metrics import Metric, get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs
from circuitfind.units.circuits import NodeCircuits

KEY = 0.05
"""A frequency is a key one if it is that of at least this share of all neurons."""
PARTS = ("a", "b", "a+b", "a-b")
"""At one frequency k: cos and sin of ka, of kb, of k(a+b) and of k(a-b); the last two are the products of the first two."""

TOP_1 = Metric(
    "top-1",
    lambda logits, answers, _: (logits.argmax(-1) == answers.answer[:, 0]).to(logits.dtype),
    differentiable=False,
)
"""1 where the answer is the likeliest of all tokens, else 0."""
DRAWS = 20
"""Random sets of neurons behind a null."""

Grid = Float[np.ndarray, "a b neuron"]


# --- prompts ----------------------------------------------------------------------------------------------------------


def read_pairs(folder: Path) -> PromptPairs:
    """The prompts of the folder."""
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = [pair_of(row["clean"], row["corrupted"], row["answer"], row["wrong"]) for row in rows]
    return PromptPairs(tuple(pairs), "prompts.jsonl")


def every_sum(p: int, seed: int = 0) -> PromptPairs:
    """All ``a b p``, in the order of a and then b; each with another b as its corrupted prompt."""
    others = np.random.default_rng(seed).integers(1, p, (p, p))
    pairs = []
    for a, b in np.ndindex(p, p):
        other = (b + int(others[a, b])) % p
        pairs.append(pair_of((a, b, p), (a, other, p), (a + b) % p, (a + other) % p))
    return PromptPairs(tuple(pairs), "every sum")


def pair_of(clean: Iterable[int], corrupted: Iterable[int], answer: int, wrong: int) -> PromptPair:
    tokens = tuple(clean)
    return PromptPair(tokens, tuple(corrupted), (answer,), (wrong,), len(tokens) - 1, {}, "", "", "", "sum")


# --- frequencies ------------------------------------------------------------------------------------------------------


def bins(p: int, frequencies: Iterable[int], parts: Collection[str] = PARTS) -> Bool[np.ndarray, "p p"]:
    """Where the waves of some frequencies are in the discrete Fourier transform over a and b."""
    found = np.zeros((p, p), dtype=bool)
    steps = {"a": (1, 0), "b": (0, 1), "a+b": (1, 1), "a-b": (1, -1)}
    for k in frequencies:
        for u, v in (steps[part] for part in parts):
            found[k * u % p, k * v % p] = found[-k * u % p, -k * v % p] = True
    return found


def shares(values: Grid) -> Float[np.ndarray, "frequency neuron"]:
    """The share of the variance of each neuron over all a and b that its waves at each frequency explain.

    Row k is that of frequency k, from 0 (always 0) to (p-1)/2: R² of the regression on a constant, cos and sin of 2πka/p
    and of 2πkb/p, and their four products (Nanda et al. 2023, "Progress measures for grokking via mechanistic
    interpretability"), which are orthogonal. 0 for a neuron that does not vary.
    """
    p = len(values)
    power = np.abs(np.fft.fft2(values, axes=(0, 1))) ** 2
    power[0, 0] = 0.0
    total = power.sum((0, 1))
    found = np.stack([power[bins(p, [k] if k else [])].sum(0) for k in range((p + 1) // 2)])
    varies = total > 1e-9 * total.max(initial=0.0)
    return np.asarray(np.divide(found, total, out=np.zeros_like(found), where=varies))


def filtered(values: Grid, kept: Bool[np.ndarray, "p p"]) -> Grid:
    """The neurons with their mean and the waves of some bins, and without all others."""
    waves = np.fft.fft2(values, axes=(0, 1))
    waves[~kept & (np.arange(kept.size).reshape(kept.shape) > 0)] = 0.0
    return np.asarray(np.fft.ifft2(waves, axes=(0, 1)).real)


def held_by(values: Grid, kept: Bool[np.ndarray, "p p"]) -> float:
    """The share of the variance of all neurons together that some bins hold."""
    power = (np.abs(np.fft.fft2(values, axes=(0, 1))) ** 2).sum(-1)
    power[0, 0] = 0.0
    return float(power[kept].sum() / power.sum())


# --- the model --------------------------------------------------------------------------------------------------------


class Addition:
    """A model of one layer on all sums, its neurons kept or replaced.

    Attributes:
        model: With every neuron as a node.
        p: The modulus; its token stands for the equals sign.
        pairs: All sums.

    Raises:
        UnsupportedError: The model has several layers, or no neurons.
    """

    def __init__(self, model: Model) -> None:
        self.model = split_neurons(model)
        if len(model.layers) != 1:
            raise UnsupportedError(
                f"{model.name} has {len(model.layers)} layers", hint="give a model of one layer"
            )
        self.p = model.n_vocab - 1
        self.pairs = every_sum(self.p)
        self.n_neurons = model.d_mlp
        self._right = Runs(self.model, self.pairs, TOP_1, mean_over="clean")

    @cached_property
    def clean(self) -> float:
        """Accuracy of the untouched model."""
        return float(self._right.clean.mean())

    def kept(self, neurons: Collection[int]) -> Bool[np.ndarray, " writer"]:
        """These neurons, and all that is no neuron."""
        wanted = set(neurons)
        nodes = self.model.anatomy.writers
        return np.array([node.kind is not Kind.NEURON or node.index in wanted for node in nodes])

    def accuracy(self, sets: Sequence[Collection[int]], ablation: Ablation) -> Float[np.ndarray, " set"]:
        """The share of all sums answered rightly when all neurons outside a set are replaced."""
        patches = [Patch(nodes=~self.kept(neurons)) for neurons in sets]
        return np.asarray(self._right.patched(patches, ablation=ablation).mean(1))

    def faithfulness(self, sets: Sequence[Collection[int]], ablation: Ablation) -> Float[np.ndarray, " set"]:
        """Of sets of neurons with all heads, by the logit difference, over all sums."""
        runs = Runs(self.model, self.pairs, get_metric("logit-diff"), mean_over="clean")
        return NodeCircuits(runs, ablation).faithfulness([self.kept(neurons) for neurons in sets])

    @cached_property
    def activations(self) -> Grid:
        """Of all neurons at the equals sign."""
        found = np.empty((len(self.pairs), self.n_neurons))
        for number, batch in enumerate(self._right.batches):
            parts = self._right.trace(number, "clean").blocks[0].parts
            assert parts is not None
            found[batch.index] = parts.values[:, 0].double().cpu().numpy()
        return found.reshape(self.p, self.p, -1)

    def accuracy_with(self, activations: Grid) -> float:
        """The share of all sums answered rightly when the neurons have these activations."""
        given = torch.from_numpy(activations.reshape(len(self.pairs), -1))
        right = 0
        for number, batch in enumerate(self._right.batches):
            trace = self._right.trace(number, "clean")
            seen, parts = trace.blocks[0].parts, self.model.layers[0].parts
            assert seen is not None
            assert parts is not None
            change = given[batch.index].to(trace.final) - seen.values[:, 0]
            logits = self.model.head(trace.final + change @ parts.w_out)
            right += int((logits.argmax(-1) == batch.answers.answer[:, 0]).sum())
        return right / len(self.pairs)

    @cached_property
    def shares(self) -> Float[np.ndarray, "frequency neuron"]:
        return shares(self.activations)

    @property
    def best(self) -> np.ndarray:
        """The frequency of each neuron: the one that explains most of its variance."""
        return np.asarray(self.shares.argmax(0))

    @property
    def key(self) -> list[int]:
        """Frequencies of many neurons, those of most first."""
        count = np.bincount(self.best, minlength=len(self.shares))
        return [int(k) for k in np.argsort(-count, kind="stable") if count[k] >= KEY * self.n_neurons]

    def frequencies(self, neurons: Collection[int]) -> dict[int, int]:
        """How many of some neurons have each frequency, for those that any has."""
        values, counts = np.unique(self.best[sorted(neurons)], return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def random_sets(self, neurons: Collection[int], *, alike: bool = False, seed: int = 0) -> list[set[int]]:
        """As many neurons at random; ``alike``: as many of each frequency."""
        rng = np.random.default_rng(seed)
        pools = [(np.arange(self.n_neurons), len(neurons))]
        if alike:
            pools = [(np.flatnonzero(self.best == k), n) for k, n in self.frequencies(neurons).items()]
        return [
            {int(i) for pool, size in pools for i in rng.choice(pool, size, replace=False)}
            for _ in range(DRAWS)
        ]
