"""What planted models are made of: a residual stream dealt out in pieces, and heads written into it.

Every piece of the residual stream is a few rows of one random orthogonal matrix, so a direction means
something but no coordinate does. A head is given as four small matrices of residual directions (what its
query and its key compare, what its value reads, what it writes) and is spread over ``d_head`` by a random
rotation of its own.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Relative size of the noise on written weights: no edge is exactly without effect, and none of these matters.
JITTER = 3e-4
# Entries of a noise head's value and output matrices; queries and keys are larger, so that its attention is
# not uniform.
NOISE_VALUE = 0.012
NOISE_SCORE = 0.8


def sources(name: str, seed: int) -> tuple[random.Random, torch.Generator]:
    """The two random streams of a model: sizes and places, weights."""
    key = f"{name}/{seed}"
    return random.Random(key), torch.Generator().manual_seed(zlib.crc32(key.encode()))


def sharpness(probability: float, rivals: int) -> float:
    """The score at which one position gets ``probability`` against ``rivals`` positions whose score is 0."""
    return math.log(probability * rivals / (1 - probability))


def gaussian(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal numbers in double precision."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def frame(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows [rows, width]."""
    q, r = torch.linalg.qr(gaussian((width, rows), generator))
    basis: Tensor = (q * r.diagonal().sign()).T
    return basis


class Residual:
    """A random orthonormal basis of the residual stream, dealt out piece by piece.

    ``centred`` leaves out the all-ones direction, so that the centring of a LayerNorm changes nothing.
    """

    def __init__(self, d_model: int, generator: torch.Generator, centred: bool = False) -> None:
        self._basis: Tensor
        if centred:
            random_columns = gaussian((d_model, d_model - 1), generator)
            ones = torch.ones(d_model, 1, dtype=random_columns.dtype)
            q, _ = torch.linalg.qr(torch.cat([ones, random_columns], dim=1))
            self._basis = q.T[1:]
        else:
            self._basis = frame(d_model, d_model, generator)
        self._used = 0

    def take(self, size: int) -> Tensor:
        """The next ``size`` directions [size, d_model]."""
        start, self._used = self._used, self._used + size
        if self._used > len(self._basis):
            raise ValueError(
                f"the residual stream has {len(self._basis)} directions, {self._used} were asked for"
            )
        return self._basis[start : self._used]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, and the configuration that says them."""

    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    d_vocab: int
    n_ctx: int
    attn_only: bool
    d_mlp: int = 0
    act_fn: str = "relu"
    # None: a piece of the stream keeps its meaning whatever the other pieces hold.
    normalization: str | None = None
    # An MLP of TransformerLens that is gated has no biases.
    gated: bool = False

    def config(self) -> dict[str, Any]:
        """As TransformerLens writes it."""
        return {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_ctx": self.n_ctx,
            "d_head": self.d_head,
            "n_heads": self.n_heads,
            # An attention-only model has no MLP, but readers of the format expect a width.
            "d_mlp": self.d_mlp or 4 * self.d_model,
            "act_fn": self.act_fn,
            "d_vocab": self.d_vocab,
            "d_vocab_out": self.d_vocab,
            "normalization_type": self.normalization,
            "attn_only": self.attn_only,
            "attention_dir": "causal",
            "positional_embedding_type": "standard",
            "attn_scale": math.sqrt(self.d_head),
            "use_attn_scale": True,
            "eps": 1e-5,
            "gated_mlp": self.gated,
        }


class Weights:
    """A state dict under construction, in double precision; all zero at the start."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        self.shape = shape
        self._generator = generator
        heads, d_head, d_model = shape.n_heads, shape.d_head, shape.d_model
        sizes: dict[str, tuple[int, ...]] = {
            "embed.W_E": (shape.d_vocab, d_model),
            "pos_embed.W_pos": (shape.n_ctx, d_model),
            "unembed.W_U": (d_model, shape.d_vocab),
            "unembed.b_U": (shape.d_vocab,),
        }
        for layer in range(shape.n_layers):
            for letter in "QKV":
                sizes[f"blocks.{layer}.attn.W_{letter}"] = (heads, d_model, d_head)
                sizes[f"blocks.{layer}.attn.b_{letter}"] = (heads, d_head)
            sizes[f"blocks.{layer}.attn.W_O"] = (heads, d_head, d_model)
            sizes[f"blocks.{layer}.attn.b_O"] = (d_model,)
            if not shape.attn_only:
                sizes[f"blocks.{layer}.mlp.W_in"] = (d_model, shape.d_mlp)
                sizes[f"blocks.{layer}.mlp.W_out"] = (shape.d_mlp, d_model)
                if shape.gated:
                    sizes[f"blocks.{layer}.mlp.W_gate"] = (d_model, shape.d_mlp)
                else:
                    sizes[f"blocks.{layer}.mlp.b_in"] = (shape.d_mlp,)
                    sizes[f"blocks.{layer}.mlp.b_out"] = (d_model,)
        self._state = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
        # A normalised stream is longer than the embedding that random weights are scaled for.
        self._shrink = 1.0
        if shape.normalization:
            self._shrink = math.sqrt(2 / d_model)
            blocks = range(shape.n_layers)
            norms = [
                f"blocks.{layer}.ln{i}" for layer in blocks for i in ((1,) if shape.attn_only else (1, 2))
            ]
            for name in [*norms, "ln_final"]:
                self._state[f"{name}.w"] = torch.ones(d_model, dtype=torch.float64)
                if shape.normalization == "LN":
                    self._state[f"{name}.b"] = torch.zeros(d_model, dtype=torch.float64)

    def _noise(self, shape: Sequence[int], scale: float) -> Tensor:
        return scale * gaussian(shape, self._generator)

    def _set(self, name: str, value: Tensor, head: int | None = None) -> None:
        """Store a written matrix with its jitter."""
        value = value + self._noise(value.shape, JITTER * float(value.abs().amax()))
        target = self._state[name] if head is None else self._state[name][head]
        target.copy_(value)

    def embed(self, token: Tensor, position: Tensor) -> None:
        """Set both embeddings: token [d_vocab, d_model], position [n_ctx, d_model]."""
        self._set("embed.W_E", token)
        self._set("pos_embed.W_pos", position)

    def unembed(self, read: Tensor, tokens: Sequence[int], scale: float) -> None:
        """The logit of ``tokens[i]`` is ``scale`` times what lies along row i of read [n, d_model]."""
        matrix = torch.zeros_like(self._state["unembed.W_U"])
        matrix[:, list(tokens)] = scale * read.T
        self._set("unembed.W_U", matrix)

    def logit_bias(self, token: int, value: float) -> None:
        """A constant logit."""
        self._state["unembed.b_U"][token] = value

    def head(
        self,
        place: tuple[int, int],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        sharp: float = 1.0,
    ) -> None:
        """Write a head at (layer, head).

        The score of key position j for query position i is ``sharp * sum_r (query_r . x_i) (key_r . x_j)``;
        what is attended to goes from ``value_s`` to ``out_s``. query, key [r, d_model]; value, out [s,
        d_model].
        """
        layer, head = place
        name, d_head = f"blocks.{layer}.attn.W_", self.shape.d_head
        inner = frame(len(query), d_head, self._generator)
        carry = frame(len(value), d_head, self._generator)
        # The two factors share the sharpness and undo the division by sqrt(d_head).
        gain = math.sqrt(sharp * math.sqrt(d_head))
        self._set(f"{name}Q", gain * query.T @ inner, head)
        self._set(f"{name}K", gain * key.T @ inner, head)
        self._set(f"{name}V", value.T @ carry, head)
        self._set(f"{name}O", carry.T @ out, head)

    def noise_head(self, place: tuple[int, int]) -> None:
        """Small random weights: it attends somewhere and writes a little of everything."""
        layer, head = place
        d_model, d_head = self.shape.d_model, self.shape.d_head
        name = f"blocks.{layer}.attn.W_"
        self._state[f"{name}Q"][head] = self._noise((d_model, d_head), self._shrink * NOISE_SCORE)
        self._state[f"{name}K"][head] = self._noise((d_model, d_head), self._shrink * NOISE_SCORE)
        self._state[f"{name}V"][head] = self._noise((d_model, d_head), self._shrink * NOISE_VALUE)
        self._state[f"{name}O"][head] = self._noise((d_head, d_model), NOISE_VALUE)

    def uniform_head(self, place: tuple[int, int]) -> None:
        """Attends to everything alike and writes nothing: its values are real, its output matrix is zero."""
        layer, head = place
        self._state[f"blocks.{layer}.attn.W_V"][head] = self._noise(
            (self.shape.d_model, self.shape.d_head), 0.2
        )

    def noise_mlp(self, layer: int) -> None:
        """Small random weights in every neuron that is not written."""
        name = f"blocks.{layer}.mlp."
        d_model, d_mlp = self.shape.d_model, self.shape.d_mlp
        self._state[f"{name}W_in"] = self._noise((d_model, d_mlp), self._shrink * 0.1)
        if self.shape.gated:
            self._state[f"{name}W_gate"] = self._noise((d_model, d_mlp), self._shrink * 0.8)
        else:
            self._state[f"{name}b_in"] = self._noise((d_mlp,), 0.1)
        self._state[f"{name}W_out"] = self._noise((d_mlp, d_model), NOISE_VALUE / 4)
        if not self.shape.gated:
            self._state[f"{name}b_out"] = self._noise((d_model,), NOISE_VALUE / 10)

    def neurons(self, layer: int, read: Tensor, bias: Tensor, write: Tensor, constant: Tensor) -> None:
        """Write neurons at random places of a layer's MLP.

        read, write [n, d_model]; bias [n]; constant [d_model].
        """
        name = f"blocks.{layer}.mlp."
        places = torch.randperm(self.shape.d_mlp, generator=self._generator)[: len(read)]
        self._state[f"{name}W_in"][:, places] = read.T
        self._state[f"{name}b_in"][places] = bias
        self._state[f"{name}W_out"][places] = write
        self._state[f"{name}b_out"] += constant

    def neuron(
        self,
        layer: int,
        place: int,
        read: Tensor,
        write: Tensor,
        *,
        bias: float = 0.0,
        gate: Tensor | None = None,
    ) -> None:
        """Write one neuron. read, write, gate [d_model]; ``gate`` and no ``bias`` where the MLP is gated."""
        name = f"blocks.{layer}.mlp."
        self._state[f"{name}W_in"][:, place] = read
        self._state[f"{name}W_out"][place] = write
        if gate is None:
            self._state[f"{name}b_in"][place] = bias
        else:
            self._state[f"{name}W_gate"][:, place] = gate

    def b_out(self, layer: int) -> Tensor:
        """What an MLP adds whatever it reads [d_model], in single precision."""
        found = self._state.get(f"blocks.{layer}.mlp.b_out")
        return torch.zeros(self.shape.d_model) if found is None else found.float()

    def finish(self) -> dict[str, Tensor]:
        """The state dict in single precision."""
        return {name: value.float().contiguous() for name, value in self._state.items()}


def fill(weights: Weights, roles: dict[str, str], rng: random.Random) -> dict[str, str]:
    """Give every head and MLP without a role something harmless to do; returns all the roles, in model order.

    There is always at least one noise head and one idle one, the rest is drawn.
    """
    shape = weights.shape
    names = [f"a{layer}.h{head}" for layer in range(shape.n_layers) for head in range(shape.n_heads)]
    free = [name for name in names if name not in roles]
    kinds = ["noise", "idle"] + [rng.choice(("noise", "noise", "idle", "uniform")) for _ in free[2:]]
    rng.shuffle(kinds)
    drawn = dict(zip(free, kinds, strict=True))
    complete: dict[str, str] = {}
    for layer in range(shape.n_layers):
        for head in range(shape.n_heads):
            name = f"a{layer}.h{head}"
            complete[name] = roles.get(name) or drawn[name]
            if drawn.get(name) == "noise":
                weights.noise_head((layer, head))
            elif drawn.get(name) == "uniform":
                weights.uniform_head((layer, head))
        if not shape.attn_only:
            complete[f"m{layer}"] = roles.get(f"m{layer}", "noise")
    return complete


def stages(rng: random.Random, shape: Shape, counts: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Places for groups of heads: all of a group in earlier layers than all of the next one."""
    cuts = sorted(rng.sample(range(1, shape.n_layers), len(counts) - 1))
    found = []
    for count, low, high in zip(counts, [0, *cuts], [*cuts, shape.n_layers], strict=True):
        cells = [(layer, head) for layer in range(low, high) for head in range(shape.n_heads)]
        found.append(sorted(rng.sample(cells, count)))
    return found


def scored(*terms: tuple[float, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Query and key rows for a score that is the sum of ``factor * (query . x_i) (key . x_j)``.

    Both sides share a factor, so that neither is so large that its jitter would drown the other terms.
    """
    queries = [math.copysign(math.sqrt(abs(factor)), factor) * query for factor, query, _ in terms]
    keys = [math.sqrt(abs(factor)) * key for factor, _, key in terms]
    return torch.cat(queries), torch.cat(keys)


def name_of(place: tuple[int, int]) -> str:
    """``(3, 1)`` is head ``a3.h1``."""
    return f"a{place[0]}.h{place[1]}"


def edge_set(*chains: str) -> frozenset[str]:
    """Edges from lines of one writer and one head, ``"input -> a0.h1<q><v>"``, or MLP or logits."""
    found: list[str] = []
    for chain in chains:
        writer, _, rest = chain.partition(" -> ")
        reader, *letters = rest.replace("<", " <").split()
        found += [f"{writer}->{reader}{letter}" for letter in letters or [""]]
    return frozenset(found)


def one_hot(index: int | Iterable[int], rows: Tensor) -> Tensor:
    """The sum of some rows, as one row [1, d_model]."""
    chosen = [index] if isinstance(index, int) else list(index)
    return rows[chosen].sum(dim=0, keepdim=True)
