"""What the weights alone say of units: what they write to a task's answer, and what writes into them.

Three sizes, each beside those of the other units of the same layer and kind, since a number by itself says little:

* the **answer direction** of a task is the mean over its pairs of the unembedding of the answer less that of the wrong answer
  (means over sets of tokens), pulled back through the final norm. A unit's inner product with it is what its activation of 1
  adds to the mean logit difference, with the norm's scale frozen at 1;
* a **head writes into a unit** as far as ``W_V W_O`` carries anything to its reading: the norm of ``W_V W_O r / |r|``, with
  ``r`` the reading of the stream and ``W_V`` behind the head's own norm;
* a **unit writes into a unit** by the cosine between what one writes and what the other reads.

These are possibilities: they hold on every text, and say nothing of whether the units fire there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.model.bridge import Model
from circuitfind.names import Kind, Node
from circuitfind.naming.banks import Bank, Banks, index_of
from circuitfind.naming.directions import cosine, cosines, read_through
from circuitfind.task.pairs import PromptPairs

SAMPLE = 1024
"""Units of a layer that others are compared with: all of them, or so many at random."""
_NONE = 1e-10
"""An agreement below it is rounding: the pairs cancel."""


@dataclass(frozen=True)
class AnswerDirection:
    """What a task's answers read of the stream.

    Attributes:
        each: By pair.
        mean: Over pairs.
        agreement: Size of the mean to the mean size, squared: 1 where all pairs ask for the same tokens, about 1 / pairs where
            each asks for others. Where it is small the mean says little of any one pair.
    """

    each: Float[Tensor, "pair d_model"]
    mean: Float[Tensor, " d_model"]
    agreement: float


@dataclass(frozen=True)
class AnswerWrite:
    """What a node writes to the answer.

    Attributes:
        inner: With the mean direction.
        cosine: With it.
        percentile: How many per cent of the layer's units have a smaller inner product.
        spread: Root mean square over pairs of the inner product with each pair's own direction.
        spread_percentile: How many per cent of the layer's units have a smaller one.
    """

    inner: float
    cosine: float
    percentile: float
    spread: float
    spread_percentile: float


@dataclass(frozen=True)
class HeadWrite:
    """How far a head can write into a node.

    Attributes:
        size: ``|W_V W_O r| / |r|``; root mean square over units that are one node.
        z: Standard deviations above the mean over the layer's units; the mean of ``z`` over units that are one node.
        percentile: How many per cent of the layer's units have a smaller one; likewise.
    """

    head: Node
    size: float
    z: float
    percentile: float


@dataclass(frozen=True)
class UnitWrite:
    """How far a unit can write into another; ``z`` and ``percentile`` are among the units of the reader's layer."""

    sender: Node
    receiver: Node
    entry: str
    cosine: float
    z: float
    percentile: float


@torch.no_grad()
def answer_direction(model: Model, pairs: PromptPairs) -> AnswerDirection:
    """The answer direction of a task."""
    w_u, norm = model.w_u.T, model.final_norm
    rows = [
        w_u[list(p.answer)].mean(0) - w_u[list(p.wrong)].mean(0) if p.wrong else w_u[list(p.answer)].mean(0)
        for p in pairs
    ]
    each = read_through(norm, torch.stack(rows))
    mean = each.mean(0)
    sizes = float(each.square().sum(-1).mean())
    agreement = float(mean.square().sum()) / sizes if sizes > 0 else 0.0
    if agreement < _NONE:
        mean, agreement = torch.zeros_like(mean), 0.0
    return AnswerDirection(each, mean, agreement)


@torch.no_grad()
def answer_write(
    banks: Banks, node: Node, direction: AnswerDirection, shares: Float[Tensor, " unit"]
) -> AnswerWrite:
    """What a node writes to the answer, beside the other units of its layer.

    Args:
        banks: Where the weights are.
        node: The node.
        direction: Of the task.
        shares: How much of each unit is in what it writes.
    """
    bank = banks[node]
    index = index_of(node, banks.model.device)
    written = shares.to(direction.mean) @ bank.writes(index)
    rows = _others(bank, written.device)
    inners, spreads = [], []
    for part in rows.split(SAMPLE):
        others = bank.writes(part)
        inners.append(others @ direction.mean)
        spreads.append((others @ direction.each.T).square().mean(-1).sqrt())
    inner = float(written @ direction.mean)
    spread = float((direction.each @ written).square().mean().sqrt())
    return AnswerWrite(
        inner,
        float(cosine(written, direction.mean)),
        percentile(inner, torch.cat(inners)),
        spread,
        percentile(spread, torch.cat(spreads)),
    )


@torch.no_grad()
def head_writes(banks: Banks, nodes: Sequence[Node]) -> dict[Node, dict[str, list[HeadWrite]]]:
    """The heads that can write into each node, by its inputs (``in``, or ``gate`` and ``up``), the largest ``z`` first.

    All nodes of a layer and kind are done together, since what they are compared with is the same.
    """
    found: dict[Node, dict[str, list[HeadWrite]]] = {node: {} for node in nodes}
    places: dict[tuple[str, int], list[Node]] = {}
    for node in nodes:
        places.setdefault((node.family, node.layer), []).append(node)
    for together in places.values():
        bank = banks[together[0]]
        rows = _others(bank, banks.model.device)
        everyone = bank.reads(rows)
        for entry, others in everyone.items():
            readings = {n: bank.reads(index_of(n, banks.model.device))[entry] for n in together}
            for head, (own, rest) in _sizes(banks.model, bank, readings, others):
                for node, sizes in own.items():
                    found[node].setdefault(entry, []).append(_head_write(head, sizes, rest))
        for node in together:
            for listed in found[node].values():
                listed.sort(key=lambda one: (-one.z, one.head.order))
    return found


def _sizes(
    model: Model, bank: Bank, readings: dict[Node, Tensor], others: Tensor
) -> list[tuple[Node, tuple[dict[Node, Tensor], Tensor]]]:
    """Sizes by head: of each node's units, and of those that they are compared with."""
    listed = []
    for index, layer in enumerate(model.layers):
        if not bank.sees(index):
            break
        group = layer.n_heads // layer.n_kv_heads
        # Behind the head's own norm: what reads the stream before it.
        w_v = read_through(layer.norm, layer.w_v.transpose(1, 2))
        gram = w_v @ w_v.transpose(1, 2)
        for head in range(layer.n_heads):
            w_o, own = layer.w_o[head], gram[head // group]
            sizes = {node: _carried(w_o, own, reading) for node, reading in readings.items()}
            listed.append((Node(Kind.HEAD, index, head), (sizes, _carried(w_o, own, others))))
    return listed


def _carried(
    w_o: Float[Tensor, "d_head d_model"],
    gram: Float[Tensor, "d_head d_head"],
    reading: Float[Tensor, "unit d_model"],
) -> Float[Tensor, " unit"]:
    """|W_V W_O r| / |r| of each reading, from the Gram matrix of W_V."""
    through = reading @ w_o.T
    squares = ((through @ gram) * through).sum(-1).clamp_min(0)
    found: Tensor = squares.sqrt() / reading.norm(dim=-1).clamp_min(1e-30)
    return found


def _head_write(head: Node, sizes: Tensor, rest: Tensor) -> HeadWrite:
    z = [z_score(float(size), rest) for size in sizes]
    ranks = [percentile(float(size), rest) for size in sizes]
    return HeadWrite(head, float(sizes.square().mean().sqrt()), sum(z) / len(z), sum(ranks) / len(ranks))


@torch.no_grad()
def unit_writes(banks: Banks, nodes: Sequence[Node], shares: dict[Node, Tensor]) -> list[UnitWrite]:
    """How far each node can write into each later one, the largest size of ``z`` first."""
    device = banks.model.device
    written = {n: shares[n].to(device) @ banks[n].writes(index_of(n, device)) for n in nodes}
    found = []
    for receiver in nodes:
        bank = banks[receiver]
        senders = [n for n in nodes if _before(n, receiver)]
        if not senders:
            continue
        out = torch.stack([written[n] for n in senders])
        own, everyone = bank.reads(index_of(receiver, device)), bank.reads(_others(bank, device))
        for entry, reading in own.items():
            towards = cosine(out, shares[receiver].to(device) @ reading).tolist()
            rest = cosines(out, everyone[entry])
            found += [
                UnitWrite(sender, receiver, entry, value, z_score(value, among), percentile(value, among))
                for sender, value, among in zip(senders, towards, rest, strict=True)
            ]
    return sorted(found, key=lambda one: (-abs(one.z), one.sender.order, one.receiver.order, one.entry))


def _before(sender: Node, receiver: Node) -> bool:
    """Whether what one writes is on the stream that the other reads."""
    return sender.layer < receiver.layer


def z_score(value: float, among: Float[Tensor, " unit"]) -> float:
    """Standard deviations above the mean; 0 where all are equal."""
    spread = float(among.std(correction=0))
    return (value - float(among.mean())) / spread if spread > 1e-12 else 0.0


def percentile(value: float, among: Float[Tensor, " unit"]) -> float:
    """How many per cent are smaller; ties count half."""
    gap = 1e-6 * float(among.abs().max())  # the same unit, computed in another batch
    smaller = int((among < value - gap).sum())
    ties = int((among <= value + gap).sum()) - smaller
    return 100.0 * (smaller + ties / 2) / max(len(among), 1)


def _others(bank: Bank, device: torch.device) -> Tensor:
    if bank.n_units <= SAMPLE:
        return torch.arange(bank.n_units, device=device)
    generator = torch.Generator().manual_seed(bank.layer)
    return torch.randperm(bank.n_units, generator=generator)[:SAMPLE].sort().values.to(device)
