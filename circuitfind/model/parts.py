"""What stands for an MLP that is split: neurons, or features of a dictionary, with what they leave.

Units (neurons or features) have an activation and write it times a row of ``w_out``. Some of them are nodes, alone or several
together; all others are the ``rest``, which also writes the biases. Where a dictionary stands for the MLP there is an
``err`` too: what the MLP writes less what the dictionary makes of it. In a run of the model everything adds up to what the
MLP wrote. In a patched pass the error stays that of the base run (``frozen``) or is taken at the present input (``live``).

TopK mixes features. Here a feature of TopK fires where it is above the level that the base run has at that token, halfway
between the k-th and the next feature, so that features can be computed apart, each from its own input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.errors import UnsupportedError
from circuitfind.model.mlp import MLP, Saved
from circuitfind.model.norms import Norm
from circuitfind.model.rules import PLAIN, Rules
from circuitfind.model.transfer import index_of, to_host
from circuitfind.names import Kind, Node


@dataclass(frozen=True)
class PartRun:
    """What the parts of an MLP did.

    Attributes:
        values: Activations of the units that are nodes, such that ``values @ w_out`` is what these add to the stream.
        error: What the dictionary missed, if one stands for the MLP.
        level: What features of TopK must be above.
        pre: Features before the activation, all that are held, where a backward pass asked for them.
    """

    values: Float[Tensor, "*row unit"]
    error: Float[Tensor, "*row d_model"] | None = None
    level: Float[Tensor, "*row 1"] | None = None
    pre: Float[Tensor, "*row held"] | None = None

    def since(self, gap: int) -> PartRun:
        """Without the first ``gap`` positions."""
        error, level, pre = (None if x is None else x[:, gap:] for x in self.tensors[1:])
        return PartRun(self.values[:, gap:], error, level, pre)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (self.values, self.error, self.level, self.pre)

    def lightened(self) -> PartRun:
        """Without what only a backward pass needs."""
        return replace(self, pre=None)

    def repeated(self, times: int) -> Fixed:
        """What patched rows take over, for rows of several patches."""
        error, level = (
            None if x is None else x.repeat(times, *[1] * (x.ndim - 1)) for x in (self.error, self.level)
        )
        return Fixed(error, level)

    @property
    def flat(self) -> Fixed:
        """What patched tokens take over."""
        error, level = (None if x is None else x.flatten(0, -2) for x in (self.error, self.level))
        return Fixed(error, level)


@dataclass(frozen=True)
class Fixed:
    """What a patched pass takes from the base run, row by row: errors that are frozen, and levels of TopK."""

    error: Float[Tensor, "*row d_model"] | None = None
    level: Float[Tensor, "*row 1"] | None = None

    def over(self, patches: int) -> Fixed:
        """The same for each of several patches."""
        error, level = (None if x is None else x.expand(patches, *x.shape) for x in (self.error, self.level))
        return Fixed(error, level)


@dataclass(frozen=True)
class PartGradients:
    """Gradients in a split MLP; positions are those of queries.

    Attributes:
        hidden: At the activations of all held units.
        channels: At what each unit that is a node reads, before its activation: one of plain units, two of gated ones.
        normed: At the normalised input, through all held units (and a skip connection).
        own: At the normalised input of the MLP itself, where live errors read it.
    """

    hidden: Float[Tensor, "cut row query held"]
    channels: list[Float[Tensor, "cut row query unit"]]
    normed: Float[Tensor, "cut row query d_model"]
    own: Float[Tensor, "cut row query d_model"] | None = None


@dataclass(frozen=True)
class Parts(ABC):
    """The parts of one MLP.

    Attributes:
        nodes: Units in order, then ``rest``, then ``err`` where a dictionary stands for the MLP.
        units: Which of the held units are nodes, node by node.
        owner: The node of each of them.
    """

    nodes: tuple[Node, ...]
    units: Int[Tensor, " unit"]
    owner: Int[Tensor, " unit"]

    @property
    @abstractmethod
    def norm(self) -> Norm:
        """The norm that units read behind."""

    @property
    @abstractmethod
    def n_held(self) -> int:
        """Units that there are, nodes or not."""

    @property
    @abstractmethod
    def w_out(self) -> Float[Tensor, "unit d_model"]:
        """What units that are nodes write, with the weight of a post-norm multiplied in."""

    @property
    @abstractmethod
    def reads(self) -> list[tuple[Float[Tensor, "d_model unit"], Float[Tensor, " unit"] | None]]:
        """Weights and biases through which they read, channel by channel."""

    @property
    def together(self) -> bool:
        """Whether what one part adds depends on all others (a norm behind the MLP)."""
        return False

    @property
    def live(self) -> bool:
        """Whether errors are taken at the present input."""
        return False

    @property
    def rest(self) -> int:
        """Which node is the rest."""
        return next(i for i, node in enumerate(self.nodes) if node.kind is Kind.REST)

    @property
    def error(self) -> int | None:
        """Which node is the error, if there is one."""
        return next((i for i, node in enumerate(self.nodes) if node.kind is Kind.ERROR), None)

    @property
    def n_readers(self) -> int:
        """Nodes that read; they come first."""
        return len(self.nodes) - int(self.error is not None and not self.live)

    @cached_property
    def alone(self) -> bool:
        """Whether every unit is a node of its own."""
        return len(self.units) == self.rest

    @cached_property
    def owners(self) -> Int[np.ndarray, " unit"]:
        """``owner`` on the host, where it is asked which units a node has."""
        return to_host(self.owner)[0]

    def of_nodes(self, nodes: Sequence[int]) -> list[int]:
        """The units of some nodes, node by node."""
        return [int(unit) for node in nodes for unit in np.flatnonzero(self.owners == node)]

    @cached_property
    def all_held(self) -> bool:
        """Whether all held units are nodes, in their order."""
        return len(self.units) == self.n_held and bool(
            (self.units == torch.arange(self.n_held, device=self.units.device)).all()
        )

    def pick(self, x: Float[Tensor, "*row held"]) -> Float[Tensor, "*row unit"]:
        """The units that are nodes."""
        return x if self.all_held else x[..., self.units]

    def by_node(self, x: Float[Tensor, "*row unit"]) -> Float[Tensor, "*row node"]:
        """Sums over the units of each node; rest and error are zero."""
        out = x.new_zeros((*x.shape[:-1], len(self.nodes)))
        if self.alone:
            out[..., : self.rest] = x
            return out
        return out.index_add_(-1, self.owner, x)

    def added(
        self, values: Float[Tensor, "*row some"], which: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, "*row d_model"]:
        """What units that are nodes, or some of them, add to the stream together."""
        return values @ (self.w_out if which is None else self.w_out[which])

    def left(
        self,
        out: Float[Tensor, "*#row d_model"],
        values: Float[Tensor, "*#row unit"],
        error: Float[Tensor, "*#row d_model"] | None,
    ) -> Float[Tensor, "*row d_model"]:
        """What the rest adds, of what all parts add."""
        found = out - self.added(values)
        return found if error is None else found - error

    def written(
        self,
        out: Float[Tensor, "token d_model"],
        values: Float[Tensor, "token unit"],
        error: Float[Tensor, "token d_model"] | None,
        into: Float[Tensor, "node token d_model"],
    ) -> None:
        """Put what every part adds into a tensor. Linear, so differences may be given."""
        each = values.T[:, :, None] * self.w_out[:, None]
        if self.alone:
            into[: self.rest] = each
        else:
            into.zero_().index_add_(0, self.owner, each)
        into[self.rest] = self.left(out, values, error)
        if self.error is not None and error is not None:
            into[self.error] = error

    @abstractmethod
    def observe(
        self,
        read: Float[Tensor, "*row d_model"],
        out: Float[Tensor, "*row d_model"],
        saved: Saved,
        *,
        keep: bool,
    ) -> PartRun:
        """What the parts did in a run of the model, which read ``read`` from the stream and wrote ``out``."""

    @abstractmethod
    def again(
        self, read: Float[Tensor, "*row d_model"], fixed: Fixed
    ) -> tuple[Float[Tensor, "*row d_model"], PartRun]:
        """All parts at another input: what they add together, and what each does."""

    @abstractmethod
    def some(
        self, read: Float[Tensor, "*row d_model"], which: Sequence[int], level: Float[Tensor, "*row 1"] | None
    ) -> Float[Tensor, "*row some"]:
        """Activations of some units that are nodes, before what a post-norm multiplies by."""

    @abstractmethod
    def before(self, saved: Saved | None, run: PartRun) -> list[Float[Tensor, "*row unit"]]:
        """What units that are nodes read, channel by channel, in a run that kept it."""

    @abstractmethod
    def backward(
        self, grad: Float[Tensor, "cut *row d_model"], saved: Saved, run: PartRun, rules: Rules = PLAIN
    ) -> PartGradients:
        """Gradients from that at what the MLP adds to the stream."""


@dataclass(frozen=True)
class NeuronParts(Parts):
    """Neurons of an MLP.

    Raises:
        UnsupportedError: Its activation mixes neurons.
    """

    mlp: MLP
    mlp_norm: Norm

    def __post_init__(self) -> None:
        if not self.mlp.elementwise:
            raise UnsupportedError(
                "the activation of this model mixes the neurons of an MLP, so they are no parts of it",
                hint="use --nodes heads,mlps",
            )

    @property
    def norm(self) -> Norm:
        return self.mlp_norm

    @property
    def n_held(self) -> int:
        return self.mlp.d_mlp

    @cached_property
    def w_out_raw(self) -> Float[Tensor, "unit d_model"]:
        """Before a post-norm."""
        return self.mlp.w_out if self.all_held else self.mlp.w_out[self.units]

    @cached_property
    def w_out(self) -> Float[Tensor, "unit d_model"]:
        post = self.mlp.post_norm
        raw = self.w_out_raw
        return raw if post is None or post.weight is None else raw * post.weight

    @cached_property
    def reads(self) -> list[tuple[Tensor, Tensor | None]]:
        mlp = self.mlp
        first = (mlp.w_in, mlp.b_in) if mlp.w_gate is None else (mlp.w_gate, mlp.b_gate)
        channels = [first] if mlp.w_gate is None else [first, (mlp.w_in, mlp.b_in)]
        return [(self.pick(weight), None if bias is None else self.pick(bias)) for weight, bias in channels]

    @property
    def together(self) -> bool:
        return self.mlp.post_norm is not None

    def scale(self, raw: Float[Tensor, "*row d_model"] | None) -> Float[Tensor, "*row 1"] | float:
        """What a post-norm multiplies by, from the sum of all parts before it."""
        post = self.mlp.post_norm
        if post is None or raw is None:
            return 1.0
        return post.inverse_scale(raw)

    def observe(self, read: Tensor, out: Tensor, saved: Saved, *, keep: bool) -> PartRun:
        return PartRun(self.pick(self.mlp.hidden(saved.pre, saved.up)) * self.scale(saved.raw))

    def again(self, read: Tensor, fixed: Fixed) -> tuple[Tensor, PartRun]:
        out, saved = self.mlp.run(self.mlp_norm(read))
        return out, self.observe(read, out, saved, keep=False)

    def some(self, read: Tensor, which: Sequence[int], level: Tensor | None) -> Tensor:
        normed, chosen = self.mlp_norm(read), index_of(which, read.device)
        found = [
            normed @ weight[:, chosen] + (0.0 if bias is None else bias[chosen])
            for weight, bias in self.reads
        ]
        return self.mlp.hidden(found[0], found[1] if len(found) > 1 else None)

    def scaled(
        self, raw: Float[Tensor, "*row unit"], rest: Float[Tensor, "*row d_model"]
    ) -> tuple[Float[Tensor, "*row unit"], Float[Tensor, "*row d_model"]]:
        """All parts behind a post-norm, from their values before it."""
        post = self.mlp.post_norm
        assert post is not None
        scale = post.inverse_scale(raw @ self.w_out_raw + rest)
        return raw * scale, (rest if post.weight is None else rest * post.weight) * scale

    def raw_rest(self, read: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What the rest adds before a post-norm."""
        plain = replace(self.mlp, post_norm=None)
        out, saved = plain.run(self.mlp_norm(read))
        return out - self.pick(self.mlp.hidden(saved.pre, saved.up)) @ self.w_out_raw

    def before(self, saved: Saved | None, run: PartRun) -> list[Tensor]:
        assert saved is not None
        return [self.pick(x) for x in (saved.pre, saved.up) if x is not None]

    def backward(self, grad: Tensor, saved: Saved, run: PartRun, rules: Rules = PLAIN) -> PartGradients:
        hidden = self.mlp.backward_hidden(grad, saved, rules)
        channels = self.mlp.backward_pre(hidden, saved, rules)
        return PartGradients(hidden, [self.pick(found) for found, _ in channels], self.mlp.joined(channels))
