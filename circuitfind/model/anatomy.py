"""Writers and readers: the shape of a model as its residual stream sees it. No torch here.

Every component writes a vector to the residual stream and reads it through a linear map (after a normalisation). An
``Anatomy`` lists the writers and the readers in the order of the forward pass and says which writer can feed which
reader; every array of scores or masks in the project is indexed by these two lists.

An MLP is one component, or it is split into parts: neurons, or features of the dictionary that stands for it, its error, and
a rest. Parts read what their MLP reads, and write where it writes.

With grouped-query attention a key/value head serves several query heads, so its ``<k>`` and ``<v>`` readers belong to
``a3.kv1`` (one computation, one name); the heads that it serves are ``served_by``. See docs/decisions/grouped-query-attention.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Bool

from circuitfind.errors import UsageError, nearest
from circuitfind.names import INPUT, LOGITS, Edge, Kind, Node, parse_edge, parse_node, reader_name

MAX_PLACES = 2_000_000_000
"""Writers times readers, of which a table takes a byte each; a model of 96 layers of 96 heads has 260 million."""


@dataclass(frozen=True)
class Anatomy:
    """What a model is made of.

    Attributes:
        n_layers: Blocks.
        n_heads: Query heads in each block.
        n_kv_heads: Key/value heads in each block; equal to ``n_heads`` without grouped-query attention.
        has_mlp: False for attention-only models.
        parallel: True when the MLP of a block does not read its attention (Pythia, GPT-J).
        parts: By layer, the names of what stands for its MLP; none for a whole MLP, empty where all are whole.
        live_errors: Whether what dictionaries miss is computed anew in patched passes, and so reads the stream.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    has_mlp: bool = True
    parallel: bool = False
    parts: tuple[tuple[str, ...], ...] = ()
    live_errors: bool = False

    def __post_init__(self) -> None:
        if self.parts and (len(self.parts) != self.n_layers or not self.has_mlp):
            raise ValueError("parts are listed for every layer of a model with MLPs")
        for layer, nodes in enumerate(self._mlps):
            if any(node.layer != layer or node.kind in (Kind.HEAD, Kind.KV) for node in nodes):
                raise ValueError(f"not parts of the MLP of layer {layer}: {self.parts[layer]}")

    @cached_property
    def _mlps(self) -> tuple[tuple[Node, ...], ...]:
        """By layer: the MLP, what stands for it, or nothing."""
        if not self.has_mlp:
            return ((),) * self.n_layers
        whole = [(Node(Kind.MLP, layer),) for layer in range(self.n_layers)]
        if not self.parts:
            return tuple(whole)
        named = [tuple(parse_node(name) for name in names) for names in self.parts]
        return tuple(own or one for own, one in zip(named, whole, strict=True))

    @property
    def split(self) -> bool:
        """Whether an MLP is split into parts."""
        return any(self.parts)

    @property
    def whole(self) -> Anatomy:
        """The same model with its MLPs whole."""
        return replace(self, parts=(), live_errors=False)

    def mlp_nodes(self, layer: int) -> tuple[Node, ...]:
        """The MLP of a layer, or its parts; nothing in models without MLPs."""
        return self._mlps[layer]

    @cached_property
    def _mlp_readers(self) -> tuple[tuple[Node, ...], ...]:
        """Those of them that read the stream."""
        if self.live_errors:
            return self._mlps
        return tuple(tuple(n for n in nodes if n.kind is not Kind.ERROR) for nodes in self._mlps)

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a key/value head."""
        return self.n_kv_heads != self.n_heads

    @cached_property
    def writers(self) -> tuple[Node, ...]:
        """Nodes that write to the stream, in the order of the forward pass: ``input``, then heads and MLP by layer."""
        nodes = [INPUT]
        for layer in range(self.n_layers):
            nodes += [Node(Kind.HEAD, layer, h) for h in range(self.n_heads)]
            nodes += self._mlps[layer]
        return tuple(nodes)

    @cached_property
    def readers(self) -> tuple[tuple[Node, str | None], ...]:
        """(node, slot) of every reader: by layer all ``<q>``, all ``<k>``, all ``<v>``, the MLP; ``logits`` last."""
        kv_kind = Kind.KV if self.grouped else Kind.HEAD
        found: list[tuple[Node, str | None]] = []
        for layer in range(self.n_layers):
            found += [(Node(Kind.HEAD, layer, h), "q") for h in range(self.n_heads)]
            for slot in ("k", "v"):
                found += [(Node(kv_kind, layer, h), slot) for h in range(self.n_kv_heads)]
            found += [(node, None) for node in self._mlp_readers[layer]]
        return (*found, (LOGITS, None))

    @cached_property
    def writer_names(self) -> tuple[str, ...]:
        return tuple(str(node) for node in self.writers)

    @cached_property
    def reader_names(self) -> tuple[str, ...]:
        return tuple(reader_name(node, slot) for node, slot in self.readers)

    @cached_property
    def writer_index(self) -> Mapping[str, int]:
        return {name: i for i, name in enumerate(self.writer_names)}

    @cached_property
    def reader_index(self) -> Mapping[str, int]:
        return {name: i for i, name in enumerate(self.reader_names)}

    @cached_property
    def edge_mask(self) -> Bool[np.ndarray, "writer reader"]:
        """True where an edge exists: the writer comes before the reader on the stream."""
        written = np.array([self._stage(node) for node in self.writers])
        read = np.array([self._stage(node, reads=True) for node, _ in self.readers])
        mask: Bool[np.ndarray, "writer reader"] = written[:, None] < read[None]
        mask.flags.writeable = False
        return mask

    @property
    def n_edges(self) -> int:
        return int(self.edge_mask.sum())

    def _stage(self, node: Node, *, reads: bool = False) -> int:
        """Where on the stream a node writes, or reads what was written at lower stages."""
        if node.kind is Kind.INPUT:
            return -1
        if node.kind is Kind.LOGITS:
            return 2 * self.n_layers
        beside = node.kind in (Kind.HEAD, Kind.KV) or (self.parallel and reads)
        return 2 * node.layer + (0 if beside else 1)

    # Where the readers of a layer sit in the list of readers.

    @cached_property
    def _first_readers(self) -> tuple[int, ...]:
        """Where the readers of each layer begin."""
        heads = self.n_heads + 2 * self.n_kv_heads
        return tuple(accumulate((heads + len(nodes) for nodes in self._mlp_readers), initial=0))

    @cached_property
    def _first_writers(self) -> tuple[int, ...]:
        """Where the writers of each layer begin."""
        return tuple(accumulate((self.n_heads + len(nodes) for nodes in self._mlps), initial=1))

    def reader_slice(self, layer: int, slot: str) -> slice:
        """Columns of a layer's readers: ``slot`` is ``q``, ``k``, ``v`` or ``mlp``."""
        start = self._first_readers[layer]
        widths = {
            "q": self.n_heads,
            "k": self.n_kv_heads,
            "v": self.n_kv_heads,
            "mlp": len(self._mlp_readers[layer]),
        }
        for name, width in widths.items():
            if name == slot:
                return slice(start, start + width)
            start += width
        raise KeyError(slot)

    def head_slice(self, layer: int) -> slice:
        """Rows of a layer's heads in the list of writers."""
        start = self._first_writers[layer]
        return slice(start, start + self.n_heads)

    def mlp_slice(self, layer: int) -> slice:
        """Rows of a layer's MLP, or of its parts, in the list of writers."""
        return slice(self._first_writers[layer] + self.n_heads, self._first_writers[layer + 1])

    @cached_property
    def head_rows(self) -> tuple[int, ...]:
        """Rows of all heads in the list of writers."""
        return tuple(row for row, node in enumerate(self.writers) if node.kind is Kind.HEAD)

    @cached_property
    def source_rows(self) -> tuple[int, ...]:
        """Rows of the writers that read nothing: the input, and errors that stay those of the base run."""
        return tuple(
            row
            for row, node in enumerate(self.writers)
            if node.kind is Kind.INPUT or (node.kind is Kind.ERROR and not self.live_errors)
        )

    def mlp_row(self, layer: int) -> int:
        """Row of a layer's MLP, which is whole, in the list of writers."""
        rows = self.mlp_slice(layer)
        if self._mlps[layer][0].kind is not Kind.MLP:
            raise ValueError(f"the MLP of layer {layer} is split")
        return int(rows.start)

    def rows_before(self, layer: int, slot: str) -> int:
        """How many writers (a prefix of the list) can feed the readers of this layer: all rows below this number."""
        start = self.head_slice(layer).start
        return int(start + self.n_heads if slot == "mlp" and not self.parallel else start)

    # Names to indices and back.

    def kv_of(self, head: int) -> int:
        """The key/value head that serves this query head."""
        return head // (self.n_heads // self.n_kv_heads)

    def served_by(self, node: Node) -> tuple[Node, ...]:
        """The writers whose output a reader's node feeds: a key/value head serves its group of query heads."""
        if node.kind is not Kind.KV:
            return (node,)
        return tuple(
            Node(Kind.HEAD, node.layer, h) for h in range(self.n_heads) if self.kv_of(h) == node.index
        )

    def readers_of(self, node: Node) -> tuple[str, ...]:
        """The names of the readers whose values this writer's output depends on."""
        if node.kind is Kind.HEAD:
            kv = Node(Kind.KV, node.layer, self.kv_of(node.index)) if self.grouped else node
            return (reader_name(node, "q"), reader_name(kv, "k"), reader_name(kv, "v"))
        if node.kind is Kind.ERROR and not self.live_errors:
            return ()
        return () if node.kind is Kind.INPUT else (str(node),)

    def edge_at(self, writer: int, reader: int) -> Edge:
        node, slot = self.readers[reader]
        return Edge(self.writers[writer], node, slot)

    def index_of(self, edge: Edge | str) -> tuple[int, int]:
        """(writer, reader) indices of an edge.

        A ``<k>`` or ``<v>`` input named for a query head is read as that of the key/value head that serves it.

        Raises:
            UsageError: This model has no such edge.
        """
        edge = parse_edge(edge) if isinstance(edge, str) else edge
        receiver = edge.receiver.bare
        if self.grouped and receiver.kind is Kind.HEAD and edge.slot in ("k", "v"):
            receiver = Node(Kind.KV, receiver.layer, self.kv_of(receiver.index))
        w, r = str(edge.sender.bare), reader_name(receiver, edge.slot)
        if w not in self.writer_index:
            raise self._no_such(w, self.writer_index)
        if r not in self.reader_index:
            raise self._no_such(r, self.reader_index)
        i, j = self.writer_index[w], self.reader_index[r]
        if not self.edge_mask[i, j]:
            raise UsageError(
                f"this model has no edge {w}->{r}", hint="an edge runs from a writer to a reader above it"
            )
        return i, j

    def row_of(self, node: Node | str) -> int:
        """Row of a writer.

        Raises:
            UsageError: This model has no such writer.
        """
        node = parse_node(node) if isinstance(node, str) else node
        name = str(node.bare)
        if name not in self.writer_index:
            raise self._no_such(name, self.writer_index)
        return self.writer_index[name]

    def _no_such(self, name: str, known: Mapping[str, int]) -> UsageError:
        near = nearest(name, known)
        size = f"{self.n_layers} layers of {self.n_heads} heads" + ("" if self.has_mlp else ", no MLPs")
        return UsageError(
            f"this model ({size}) has no '{name}'",
            hint=f"the nearest name is '{near}'" if near else "see `circuitfind show`",
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Anatomy:
        """Read what ``as_dict`` wrote, from JSON too.

        Raises:
            TypeError, ValueError: It is incomplete, or names parts that no model has.
        """
        parts = tuple(tuple(names) for names in data.get("parts", ()))
        if not all(isinstance(name, str) for names in parts for name in names):
            raise TypeError("'parts' holds what is no name")
        for key in ("n_layers", "n_heads", "n_kv_heads"):
            if type(data[key]) is not int or data[key] < 1:
                raise ValueError(f"'{key}' is {str(data[key])[:40]}, not a whole number above 0")
        for key in ("has_mlp", "parallel", "live_errors"):
            if not isinstance(data.get(key, False), bool):
                raise ValueError(f"'{key}' is {str(data[key])[:40]}, not true or false")
        layers, heads, shared = data["n_layers"], data["n_heads"], data["n_kv_heads"]
        if heads % shared:
            raise ValueError(f"{heads} heads cannot share {shared} key/value heads")
        inside = sum(map(len, parts))
        # Before it is unfolded: two numbers in a file can stand for a table of any size.
        if (layers * (heads + 1) + inside) * (layers * (heads + 2 * shared + 1) + inside) > MAX_PLACES:
            raise ValueError(f"{layers} layers of {heads} heads are more than any model has")
        return cls(**{**data, "parts": parts})

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        if not self.split:  # as before MLPs could be split
            del found["parts"], found["live_errors"]
        return found
