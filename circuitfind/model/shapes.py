"""The sizes of a model, and what follows from them alone: weights, bytes of a token, operations of a pass. No torch here.

So that a model that is not loaded, and may never fit this machine, can be planned for like one that is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from circuitfind.model.anatomy import Anatomy

LONGEST = 32768
"""Positions that rotations are prepared for, and so the most that a prompt may have."""


@dataclass(frozen=True)
class Widths:
    """What the bytes of a token depend on.

    Attributes:
        n_layers: Blocks.
        d_model: Width of the stream.
        qkv: Width of queries, keys and values side by side.
        heads: Width of all heads' values.
        d_mlp: Neurons of an MLP; 0 without MLPs.
        has_mlp, gated: Whether blocks have MLPs, and gates in them.
        writers: Of the whole model.
        readers: Of one block.
        units: What split MLPs keep of a token in a finished run, in numbers.
        split, held: How many MLPs are split, and the most numbers that one of them holds besides.
    """

    n_layers: int
    d_model: int
    qkv: int
    heads: int
    d_mlp: int
    has_mlp: bool
    gated: bool
    writers: int
    readers: int
    units: int = 0
    split: int = 0
    held: int = 0

    def token_bytes(self, size: int, *, edges: bool = True) -> dict[str, int]:
        """Bytes for each token: of a finished run, of what its backward pass needs, of a pass over nodes or edges.

        Args:
            size: Bytes of a number.
            edges: Whether a table of what each writer adds is made (``gap``).
        """
        d, gates = self.d_model, 2 if self.gated else 1
        run = self.n_layers * (2 * d + self.qkv + self.heads + d * int(self.has_mlp)) + self.units
        return {
            "run": run * size,
            "kept": (self.n_layers * (gates * self.d_mlp + self.qkv) + self.split * self.held) * size,
            "node": (6 * d + 2 * self.qkv + self.heads + (2 + gates) * self.d_mlp + 4 * self.held) * size,
            "edge": ((self.writers + 3 * self.readers) * d + (2 + gates) * self.d_mlp) * size,
            "gap": self.writers * d * size if edges else 0,
        }


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, as its configuration gives them.

    Attributes:
        family: The model type of its configuration, such as ``llama``.
        n_layers, n_heads, n_kv_heads, d_model, d_head: Of its blocks.
        d_mlp: Neurons of an MLP; 0 without MLPs.
        d_vocab, d_vocab_out: Tokens that it reads, and those that it has logits for.
        n_ctx: The longest prompt.
        gated: Whether an MLP has a gate.
        parallel: Whether an MLP reads beside attention, not behind it.
        causal: False where attention looks ahead.
        tied: Whether the unembedding is the embedding.
        positions: Rows of a learned table of positions; 0 without one.
        qkv_bias, o_bias, mlp_bias: Which layers have biases.
        mlp_norm: Whether a LayerNorm stands between the activation and the way out of an MLP.
        norms: Norms of a block with weights of width ``d_model``.
        norm_vectors: Vectors of each: 1 of RMSNorm, 2 of LayerNorm, 0 of a norm without weights.
        final_vectors: The same of the final norm.
        head_norms: Whether queries and keys are normalised head by head.
        post_norms: Whether there is a norm between attention and the stream.
        fused: Whether the file holds queries, keys and values as one matrix, which is held apart besides.
        o_shared: Whether the output matrix is used as it is stored.
    """

    family: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    gated: bool = False
    parallel: bool = False
    causal: bool = True
    tied: bool = False
    positions: int = 0
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    mlp_norm: bool = False
    norms: int = 2
    norm_vectors: int = 1
    final_vectors: int = 1
    head_norms: bool = False
    post_norms: bool = False
    fused: bool = False
    o_shared: bool = False

    @cached_property
    def anatomy(self) -> Anatomy:
        """Its writers and readers."""
        return Anatomy(
            self.n_layers, self.n_heads, self.n_kv_heads, has_mlp=self.d_mlp > 0, parallel=self.parallel
        )

    @property
    def heads(self) -> int:
        """Width of all heads' values."""
        return self.n_heads * self.d_head

    @property
    def qkv(self) -> int:
        """Width of queries, keys and values side by side."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.d_head

    @property
    def matrices(self) -> int:
        """Matrices of an MLP."""
        return 0 if not self.d_mlp else 3 if self.gated else 2

    @cached_property
    def widths(self) -> Widths:
        """What the bytes of a token depend on."""
        return Widths(
            n_layers=self.n_layers,
            d_model=self.d_model,
            qkv=self.qkv,
            heads=self.heads,
            d_mlp=self.d_mlp,
            has_mlp=self.d_mlp > 0,
            gated=self.gated,
            writers=1 + self.n_layers * (self.n_heads + (self.d_mlp > 0)),
            readers=self.n_heads + 2 * self.n_kv_heads + int(self.d_mlp > 0),
        )

    @property
    def n_edges(self) -> int:
        """Edges from a writer to a reader above it, as ``Anatomy`` counts them."""
        heads, mlp = self.n_heads, int(self.d_mlp > 0)
        slots, layers = heads + 2 * self.n_kv_heads, self.n_layers
        below = layers + (heads + mlp) * layers * (layers - 1) // 2  # the input, and what lower layers write
        beside = 0 if self.parallel else mlp * heads * layers
        return (slots + mlp) * below + beside + self.widths.writers

    @property
    def _projections(self) -> int:
        """Numbers of the queries', keys' and values' matrices of a block, biases included."""
        return self.qkv * (self.d_model + self.qkv_bias)

    @property
    def block_parameters(self) -> int:
        """Parameters of one block."""
        d = self.d_model
        mlp = self.matrices * d * self.d_mlp
        if self.mlp_bias and self.d_mlp:
            mlp += (self.matrices - 1) * self.d_mlp + d
        mlp += 2 * self.d_mlp * self.mlp_norm
        norms = self.norms * self.norm_vectors * d + 2 * self.d_head * self.head_norms
        return self._projections + (self.heads + self.o_bias) * d + mlp + norms

    @property
    def parameters(self) -> int:
        """Parameters of the model, each counted once: what its file of weights holds."""
        d = self.d_model
        ends = (self.d_vocab + self.positions + self.final_vectors) * d
        if not self.tied:
            ends += self.d_vocab_out * d
        return self.n_layers * self.block_parameters + ends

    @property
    def weights(self) -> int:
        """Numbers that TransformerLens holds: the parameters, and parts of a fused matrix besides."""
        return self.parameters + self.n_layers * self._projections * self.fused

    @property
    def copies(self) -> int:
        """Numbers that passes hold besides: queries, keys and values side by side, and the output matrix head by head."""
        block = self._projections
        block += self.heads * self.d_model * ((not self.o_shared) + self.post_norms)
        return self.n_layers * block

    def flops(self, length: float) -> float:
        """Operations of a forward pass for each token in a prompt of so many tokens, the unembedding left out.

        A multiplication and an addition are two: ``2 * weights of all matrices``, and in each block
        ``4 * length * heads`` for scores and their sums of values, hidden ones computed too.
        """
        block = 2 * self.d_model * (self.qkv + self.heads + self.matrices * self.d_mlp)
        return self.n_layers * (block + 4 * length * self.heads)

    @property
    def unembed_flops(self) -> float:
        """Operations of the logits of one prompt, which are computed at its answer alone."""
        return 2.0 * self.d_model * self.d_vocab_out

    def as_dict(self) -> dict[str, Any]:
        """All sizes, and what a reader counts."""
        return {**asdict(self), "parameters": self.parameters, "writers": self.widths.writers}
