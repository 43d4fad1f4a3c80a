"""Where units fire: the strongest contexts of each, and how often, streamed over texts.

A unit's value at a token is its activation. Of units that are one node together it is the size (norm) of what they write in
all. Only the units that are asked for are computed, and of the model only the blocks below them; what is kept is a few
contexts of each node, however long the texts are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitfind.dictionaries.activations import PASS_TOKENS, Rows, batched
from circuitfind.dictionaries.texts import Tokens
from circuitfind.errors import UsageError
from circuitfind.model.bridge import Model
from circuitfind.names import Node
from circuitfind.naming.banks import Banks, index_of, layers_of
from circuitfind.naming.blocks import Block, blocks

BEFORE, BEHIND = 16, 6
"""Tokens of a context around the one on which a unit fires."""


@dataclass(frozen=True)
class Context:
    """A place in a text.

    Attributes:
        value: Of the node at it.
        text: Which text, counted from 0.
        position: Which token of the text.
        tokens: That token with some before and behind it.
        at: Where it stands among them.
        members: Activations of the units that are the node together; of a single one its value.
    """

    value: float
    text: int
    position: int
    tokens: tuple[int, ...]
    at: int
    members: tuple[float, ...]


@dataclass(frozen=True)
class Activity:
    """When a node fires.

    Attributes:
        tokens: How many were looked at.
        fires: The share of them on which it fires: a feature is above 0; a neuron's pre-activation (its gate's, in a gated MLP)
            is positive; any of the units that are one node does.
        mean, largest, smallest: Of its values.
        top: The contexts with the largest values, above 0.
        bottom: Those with the smallest, below 0, where the smallest value is larger in size than the largest; else none.
    """

    tokens: int
    fires: float
    mean: float
    largest: float
    smallest: float
    top: tuple[Context, ...]
    bottom: tuple[Context, ...]

    @property
    def side(self) -> int:
        """1, or -1 where the node is strongest when it is negative."""
        return -1 if self.bottom else 1


class _Best:
    """The contexts with the largest ``sign * value``, one for each beginning; equal ones in the order of the texts."""

    def __init__(self, count: int, sign: int) -> None:
        self._count, self._sign = count, sign
        self._held: dict[tuple[int, ...], Context] = {}

    @property
    def floor(self) -> float:
        """What a value must reach to be kept."""
        if len(self._held) < self._count:
            return 0.0
        return min(self._sign * c.value for c in self._held.values())

    def add(self, key: tuple[int, ...], context: Context) -> None:
        there = self._held.get(key)
        if there is not None and self._rank(there) <= self._rank(context):
            return
        self._held[key] = context
        if len(self._held) > self._count:
            last = max(self._held, key=lambda k: self._rank(self._held[k]))
            del self._held[last]

    def _rank(self, context: Context) -> tuple[float, int, int]:
        return (-self._sign * context.value, context.text, context.position)

    def ordered(self) -> tuple[Context, ...]:
        return tuple(sorted(self._held.values(), key=self._rank))


@dataclass
class _Tally:
    """What is known of one node so far."""

    node: Node
    best: dict[int, _Best]
    tokens: int = 0
    on: int = 0
    total: float = 0.0
    largest: float = -float("inf")
    smallest: float = float("inf")

    def activity(self) -> Activity:
        top, bottom = self.best[1].ordered(), self.best[-1].ordered()
        n = max(self.tokens, 1)
        return Activity(
            self.tokens,
            self.on / n,
            self.total / n,
            self.largest,
            self.smallest,
            top,
            bottom if -self.smallest > self.largest else (),
        )


@dataclass
class _Search:
    model: Model
    banks: Banks
    sequences: Sequence[Tokens]
    top: int
    tallies: dict[Node, _Tally] = field(default_factory=dict)

    def look(self, rows: Rows, block: Block, nodes: Sequence[Node]) -> None:
        """The nodes of one layer in some rows; those of one kind are computed together."""
        kinds: dict[str, list[Node]] = {}
        for node in nodes:
            kinds.setdefault(node.family, []).append(node)
        for together in kinds.values():
            bank = self.banks[together[0]]
            index = torch.cat([index_of(node, self.model.device) for node in together])
            found = bank.activations(block, index)
            sizes = [len(node.units) for node in together]
            parts = zip(together, found.values.split(sizes, -1), found.on.split(sizes, -1), strict=True)
            for node, values, on in parts:
                self._count(node, self._value(node, values, block), on.any(-1), values.float(), rows)

    def _value(
        self, node: Node, values: Float[Tensor, "row pos unit"], block: Block
    ) -> Float[Tensor, "row pos"]:
        """Of the units of a node together."""
        if len(node.units) == 1:
            return values[..., 0].float()
        bank = self.banks[node]
        written = values @ bank.writes(index_of(node, self.model.device)).to(values.dtype)
        scale = bank.scale(block)
        size: Tensor = (written if scale is None else written * scale).float().norm(dim=-1)
        return size

    def _count(
        self,
        node: Node,
        values: Float[Tensor, "row pos"],
        on: Bool[Tensor, "row pos"],
        members: Float[Tensor, "row pos unit"],
        rows: Rows,
    ) -> None:
        tally = self.tallies[node]
        real = values[rows.real]
        tally.tokens += int(real.numel())
        tally.on += int(on[rows.real].sum())
        tally.total += float(real.double().sum())
        tally.largest = max(tally.largest, float(real.max()))
        tally.smallest = min(tally.smallest, float(real.min()))
        for sign, best in tally.best.items():
            signed = torch.where(rows.real, sign * values, -torch.inf)
            strongest, where = signed.max(1)
            floor = best.floor
            for row in torch.nonzero((strongest > 0) & (strongest >= floor)).flatten().tolist():
                at = int(where[row])
                best.add(
                    *self._context(node, rows.index[row], at, sign * float(strongest[row]), members[row, at])
                )

    def _context(
        self, node: Node, text: int, at: int, value: float, members: Float[Tensor, " unit"]
    ) -> tuple[tuple[int, ...], Context]:
        tokens = self.sequences[text]
        first, stop = max(0, at - BEFORE), min(len(tokens), at + 1 + BEHIND)
        window = tuple(int(t) for t in tokens[first:stop])
        # What stands behind does not matter to a model that does not look ahead.
        key = window[: at - first + 1] if self.model.causal else window
        found = Context(value, text, at, window, at - first, tuple(float(m) for m in members))
        return (key if self.model.causal else (at - first, *key)), found


@torch.no_grad()
def find_contexts(
    banks: Banks,
    nodes: Sequence[Node],
    sequences: Sequence[Tokens],
    *,
    top: int = 5,
    pass_tokens: int = PASS_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> dict[Node, Activity]:
    """When some neurons and features fire.

    A context is the strongest token of its text; of contexts that are alike up to it (the last ``BEFORE`` tokens) the strongest
    is kept.

    Args:
        banks: Where their weights are.
        nodes: Neurons, features, groups of them.
        sequences: Texts as tokens, none longer than the model's context.
        top: Contexts to keep of each.
        pass_tokens: Tokens of one forward pass.
        progress: Hears how many texts more are done.

    Raises:
        UsageError: A node that is not there, no context to keep, no text, or one that is too long.
    """
    model = banks.model
    if top < 1:
        raise UsageError(f"the {top} strongest contexts are none", hint="give at least 1")
    for node in nodes:
        banks[node]
    longest = max(map(len, sequences), default=0)
    if not longest:
        raise UsageError("there is no text to look at", hint="give texts with at least one token")
    if longest > model.n_ctx:
        raise UsageError(
            f"a text has {longest} tokens, but {model.name} reads at most {model.n_ctx}",
            hint="cut the text into shorter ones",
        )
    search = _Search(model, banks, sequences, top)
    search.tallies = {node: _Tally(node, {1: _Best(top, 1), -1: _Best(top, -1)}) for node in nodes}
    if not nodes:
        return {}
    by_layer = layers_of(nodes)
    for rows in batched(sequences, model.device, pass_tokens):
        for layer, block in enumerate(blocks(model, rows, max(by_layer))):
            if layer in by_layer:
                search.look(rows, block, by_layer[layer])
        if progress is not None:
            progress(len(rows.index))
    return {node: tally.activity() for node, tally in search.tallies.items()}


def shares(activity: Activity, units: int) -> Float[Tensor, " unit"]:
    """How much of each unit is in what a node writes: the members' mean activations over its contexts, longest first 1.

    A single unit has 1, and so have all where the node never fires.
    """
    contexts = activity.bottom or activity.top
    if units == 1 or not contexts:
        return torch.ones(units)
    mean = torch.tensor([c.members for c in contexts]).mean(0)
    size = float(mean.abs().max())
    return mean / size if size > 0 else torch.ones(units)
