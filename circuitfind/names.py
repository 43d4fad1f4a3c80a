"""The names of circuit parts: parsing, spelling, order.

Writers and readers of the residual stream are named as in EAP-IG and the MIB benchmark:

    input           token (and position) embedding         writes
    a9.h6           attention head 6 of layer 9            writes; reads <q>, <k>, <v>
    a9.kv2          key/value head 2 of layer 9            reads <k>, <v> (grouped-query attention only)
    m5              MLP of layer 5                         writes and reads
    m5.n1203        neuron 1203 of that MLP                writes and reads
    t5.f8812        feature of a transcoder of layer 5     writes and reads
    s5.f91          feature of an SAE on the stream behind layer 5 (sa5: on what its heads write, sm5: its MLP;
                    sh5: on the stream between the two; si0: on the stream into layer 0)
    t5.err          what the dictionary misses             writes (and reads, where it is computed anew)
    m5.rest         what stands for no node of its own     writes and reads
    logits          final normalisation and unembedding    reads

Units that act together are one node that names its members: ``m5.n3+17+99``. A layer's MLP is a node either whole (``m5``) or
by its parts.

``9.6``, ``L9H6`` and ``MLP5`` are read as well; only the forms above are printed. A position is a suffix (``a9.h6@END``).
An edge is ``writer->reader`` with the input of a head in angle brackets: ``a0.h0->a1.h0<k>``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from circuitfind.errors import UsageError, nearest


class Kind(IntEnum):
    """What a node is; the numbers give the order inside a layer."""

    INPUT = 0
    HEAD = 1
    KV = 2
    MLP = 3
    LOGITS = 4
    NEURON = 5
    FEATURE = 6
    REST = 7
    ERROR = 8


UNITS = (Kind.NEURON, Kind.FEATURE)
"""What an MLP, or the dictionary that stands for it, is made of."""
FAMILIES = ("m", "t", "s", "sa", "sm", "sh", "si")
"""What units are of: an MLP, a transcoder, an SAE on the stream behind a layer, on what its heads write, on what its MLP does,
on the stream behind its heads, on the stream into it."""
_STEP = {"si": 0, "": 1, "sa": 2, "sh": 3, "m": 4, "t": 4, "sm": 4, "s": 5}

SLOTS = ("q", "k", "v")
READS = {Kind.HEAD: SLOTS, Kind.KV: SLOTS[1:]}
"""Inputs of what has more than one."""
_PARTS = (*UNITS, Kind.REST, Kind.ERROR)
Order = tuple[int, int, str, tuple[int, ...], str]


@dataclass(frozen=True)
class Node:
    """A named part of the model. ``layer`` and ``index`` are 0 where they have no meaning.

    Attributes:
        family: What units, errors and rests are of; one of ``FAMILIES``, empty for all else.
        members: The units that are this node together, in order; empty for a single one.
    """

    kind: Kind
    layer: int = 0
    index: int = 0
    position: str | None = None
    family: str = ""
    members: tuple[int, ...] = ()

    def __str__(self) -> str:
        at = f"@{self.position}" if self.position else ""
        if self.kind is Kind.HEAD:
            return f"a{self.layer}.h{self.index}{at}"
        if self.kind is Kind.KV:
            return f"a{self.layer}.kv{self.index}{at}"
        if self.kind is Kind.MLP:
            return f"m{self.layer}{at}"
        if self.kind in _PARTS:
            return f"{self.family}{self.layer}.{self._part}{at}"
        return ("input" if self.kind is Kind.INPUT else "logits") + at

    @property
    def _part(self) -> str:
        if self.kind in UNITS:
            letter = "n" if self.kind is Kind.NEURON else "f"
            return letter + "+".join(map(str, self.units))
        return "err" if self.kind is Kind.ERROR else "rest"

    @property
    def units(self) -> tuple[int, ...]:
        """The neurons or features that this node is made of; none for other nodes, for errors and for rests."""
        if self.kind not in UNITS:
            return ()
        return self.members or (self.index,)

    @property
    def bare(self) -> Node:
        """The same node without its position."""
        return replace(self, position=None)

    @property
    def layer_rank(self) -> int:
        """Depth for what may feed what: heads of a layer are below its MLP (parallel blocks are told by the anatomy)."""
        if self.kind is Kind.INPUT:
            return -1
        if self.kind is Kind.LOGITS:
            return 1 << 30
        step = _STEP["m"] if self.kind is Kind.MLP else _STEP[self.family]
        return 6 * self.layer + step

    @property
    def order(self) -> Order:
        """Sort key: from the input to the logits, by layer, then kind, then index."""
        layer = {Kind.INPUT: -1, Kind.LOGITS: 1 << 30}.get(self.kind, self.layer)
        return (layer, int(self.kind), self.family, self.units or (self.index,), self.position or "")


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
    def order(self) -> tuple[Order, Order, str]:
        """Sort key: by receiver from input to logits, then sender, then slot."""
        return (self.receiver.order, self.sender.order, self.slot or "")


def reader_name(receiver: Node, slot: str | None) -> str:
    """``a1.h0<k>`` for a head's input, ``m3`` or ``logits`` for the rest."""
    at = f"@{receiver.position}" if receiver.position else ""
    return f"{receiver.bare}<{slot}>{at}" if slot else str(receiver)


INPUT = Node(Kind.INPUT)
LOGITS = Node(Kind.LOGITS)

_N = "[0-9]{1,9}"  # longer ones number nothing, and take long to read
_HEAD = re.compile(rf"^(?:a({_N})\.h({_N})|({_N})\.({_N})|L({_N})H({_N}))$", re.IGNORECASE)
_KV = re.compile(rf"^a({_N})\.kv({_N})$", re.IGNORECASE)
_MLP = re.compile(rf"^(?:m|mlp)({_N})$", re.IGNORECASE)
_PART = re.compile(rf"^(m|t|s|sa|sm|sh|si)({_N})\.(?:([nf])({_N}(?:\+{_N})*)|(err)|(rest))$", re.IGNORECASE)
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
    near = nearest(text, ("input", "logits"))  # the only names that are words
    raise UsageError(
        f"'{text}' is not the name of a node",
        hint=(f"did you mean '{near}'? " if near else "")
        + "nodes are named like input, a9.h6, m5, m5.n1203, t5.f88, t5.err, logits (also 9.6, L9H6, MLP5)",
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
    return _parse_part(lowered)


def _parse_part(name: str) -> Node | None:
    match = _PART.match(name)
    if not match:
        return None
    family, layer, letter, units, error, _ = match.groups()
    if letter is None:
        return (
            None
            if error and family == "m"
            else Node(Kind.ERROR if error else Kind.REST, int(layer), family=family)
        )
    if (letter == "n") != (family == "m"):
        return None
    kind = Kind.NEURON if letter == "n" else Kind.FEATURE
    return unit(kind, family, int(layer), [int(one) for one in units.split("+")])


def unit(kind: Kind, family: str, layer: int, indices: Sequence[int]) -> Node:
    """A neuron or feature, or several of a layer that are one node."""
    members = tuple(sorted(set(indices)))
    return Node(kind, layer, members[0], family=family, members=members if len(members) > 1 else ())
