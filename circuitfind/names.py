"""The names of circuit parts: parsing, spelling, order.

Writers and readers of the residual stream are named as in EAP-IG and the MIB benchmark:

    input           token (and position) embedding         writes
    a9.h6           attention head 6 of layer 9            writes; reads <q>, <k>, <v>
    a9.kv2          key/value head 2 of layer 9            reads <k>, <v> (grouped-query attention only)
    m5              MLP of layer 5                         writes and reads
    logits          final normalisation and unembedding    reads

``9.6``, ``L9H6`` and ``MLP5`` are read as well; only the forms above are printed. A position is a suffix (``a9.h6@END``).
An edge is ``writer->reader`` with the input of a head in angle brackets: ``a0.h0->a1.h0<k>``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import IntEnum

from circuitfind.errors import UsageError


class Kind(IntEnum):
    """What a node is; the numbers give the order inside a layer."""

    INPUT = 0
    HEAD = 1
    KV = 2
    MLP = 3
    LOGITS = 4


SLOTS = ("q", "k", "v")
READS = {Kind.HEAD: SLOTS, Kind.KV: SLOTS[1:]}
"""Inputs of what has more than one."""


@dataclass(frozen=True)
class Node:
    """A named part of the model. ``layer`` and ``index`` are 0 where they have no meaning."""

    kind: Kind
    layer: int = 0
    index: int = 0
    position: str | None = None

    def __str__(self) -> str:
        at = f"@{self.position}" if self.position else ""
        if self.kind is Kind.HEAD:
            return f"a{self.layer}.h{self.index}{at}"
        if self.kind is Kind.KV:
            return f"a{self.layer}.kv{self.index}{at}"
        if self.kind is Kind.MLP:
            return f"m{self.layer}{at}"
        return ("input" if self.kind is Kind.INPUT else "logits") + at

    @property
    def bare(self) -> Node:
        """The same node without its position."""
        return replace(self, position=None)

    @property
    def layer_rank(self) -> int:
        """Depth for what may feed what: heads of layer l are 2l, its MLP 2l + 1 (parallel blocks are told by the anatomy)."""
        if self.kind is Kind.INPUT:
            return -1
        if self.kind is Kind.LOGITS:
            return 1 << 30
        return 2 * self.layer + (self.kind is Kind.MLP)

    @property
    def order(self) -> tuple[int, int, int, str]:
        """Sort key: from the input to the logits, by layer, then kind, then index."""
        layer = {Kind.INPUT: -1, Kind.LOGITS: 1 << 30}.get(self.kind, self.layer)
        return (layer, int(self.kind), self.index, self.position or "")


@dataclass(frozen=True)
class Edge:
    """What ``sender`` writes, as read by ``receiver`` through ``slot`` (``q``, ``k``, ``v``, or None)."""

    sender: Node
    receiver: Node
    slot: str | None = None

    def __str__(self) -> str:
        at = f"@{self.receiver.position}" if self.receiver.position else ""
        slot = f"<{self.slot}>" if self.slot else ""
        return f"{self.sender}->{self.receiver.bare}{slot}{at}"

    @property
    def reader(self) -> str:
        """The reader's name, such as ``a1.h0<k>`` or ``m3``."""
        return reader_name(self.receiver, self.slot)

    @property
    def order(self) -> tuple[tuple[int, int, int, str], tuple[int, int, int, str], str]:
        """Sort key: by receiver from input to logits, then sender, then slot."""
        return (self.receiver.order, self.sender.order, self.slot or "")


def reader_name(receiver: Node, slot: str | None) -> str:
    """``a1.h0<k>`` for a head's input, ``m3`` or ``logits`` for the rest."""
    at = f"@{receiver.position}" if receiver.position else ""
    return f"{receiver.bare}<{slot}>{at}" if slot else str(receiver)


INPUT = Node(Kind.INPUT)
LOGITS = Node(Kind.LOGITS)

_HEAD = re.compile(r"^(?:a(\d+)\.h(\d+)|(\d+)\.(\d+)|L(\d+)H(\d+))$", re.IGNORECASE)
_KV = re.compile(r"^a(\d+)\.kv(\d+)$", re.IGNORECASE)
_MLP = re.compile(r"^(?:m|mlp)(\d+)$", re.IGNORECASE)
_READER = re.compile(r"^(?P<node>[^<>@]+)(?:<(?P<slot>[qkv])>)?(?:@(?P<position>[\w+\-]+))?$")


def parse_node(text: str) -> Node:
    """Read a node's name in any of the spellings that the field uses.

    Raises:
        UsageError: ``text`` names nothing.
    """
    node, slot = parse_reader(text)
    if slot is not None:
        raise UsageError(f"'{text}' names an input of a head, not a node", hint=f"write '{node}'")
    return node


def parse_reader(text: str) -> tuple[Node, str | None]:
    """Read ``a1.h0<k>``, ``m3``, ``logits`` or any node's name: the node and its slot."""
    match = _READER.match(text.strip())
    if match:
        name, slot, position = match["node"], match["slot"], match["position"]
        node = _parse_bare(name)
        if node is not None and (slot is None or slot in READS.get(node.kind, ())):
            return replace(node, position=position), slot
    raise UsageError(
        f"'{text}' is not the name of a node",
        hint="nodes are named like input, a9.h6, m5, logits (also 9.6, L9H6, MLP5)",
    )


def parse_edge(text: str) -> Edge:
    """Read an edge's name, such as ``a0.h0->a1.h0<k>``.

    Raises:
        UsageError: ``text`` is not an edge, or an edge that no transformer has.
    """
    sender, arrow, receiver = text.partition("->")
    if not arrow:
        raise UsageError(
            f"'{text}' is not the name of an edge", hint="edges are named like a9.h6->a10.h0<q> or m3->logits"
        )
    node, slot = parse_reader(receiver)
    edge = Edge(parse_node(sender), node, slot)
    if (node.kind in (Kind.HEAD, Kind.KV)) != (slot is not None):
        need = (
            "its input in angle brackets: <q>, <k> or <v>" if slot is None else "no input in angle brackets"
        )
        raise UsageError(f"'{text}' is not the name of an edge", hint=f"'{node}' needs {need}")
    if (
        edge.sender.kind in (Kind.LOGITS, Kind.KV)
        or node.kind is Kind.INPUT
        or edge.sender.layer_rank >= node.layer_rank
    ):
        raise UsageError(
            f"no edge runs from {edge.sender} to {node}", hint="edges run up the residual stream"
        )
    return edge


def _parse_bare(name: str) -> Node | None:
    lowered = name.lower()
    if lowered in ("input", "embed"):
        return INPUT
    if lowered in ("logits", "out", "output"):
        return LOGITS
    if match := _HEAD.match(name):
        layer, index = (int(g) for g in match.groups() if g is not None)
        return Node(Kind.HEAD, layer, index)
    if match := _KV.match(name):
        return Node(Kind.KV, int(match[1]), int(match[2]))
    if match := _MLP.match(name):
        return Node(Kind.MLP, int(match[1]))
    return None
