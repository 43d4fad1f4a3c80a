"""Names: what is printed is read back, every spelling of the field is read, and nothing else is."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from circuitfind.errors import UsageError
from circuitfind.names import (
    FAMILIES,
    INPUT,
    LOGITS,
    SLOTS,
    Edge,
    Kind,
    Node,
    parse_edge,
    parse_node,
    parse_reader,
    reader_name,
    unit,
)

POSITIONS = (None, "END", "S1", "S1+1", "my-place", "7")
DRAWS = 300


def draw_node(rng: random.Random, kinds: tuple[Kind, ...] = tuple(Kind)) -> Node:
    """Any node; layer and index are 0 where they have no meaning."""
    kind = rng.choice(kinds)
    if kind in (Kind.NEURON, Kind.FEATURE, Kind.REST, Kind.ERROR):
        return draw_part(rng, kind)
    layer = rng.choice([0, 1, 9, 10, 123]) if kind not in (Kind.INPUT, Kind.LOGITS) else 0
    index = rng.choice([0, 2, 11, 4096]) if kind in (Kind.HEAD, Kind.KV) else 0
    return Node(kind, layer, index, rng.choice(POSITIONS))


def draw_part(rng: random.Random, kind: Kind) -> Node:
    """A neuron, a feature, several of a layer as one node, an error or a rest."""
    layer, position = rng.choice([0, 1, 9, 123]), rng.choice(POSITIONS)
    families = {Kind.NEURON: ("m",), Kind.REST: FAMILIES}.get(kind, FAMILIES[1:])
    family = rng.choice(families)
    if kind not in (Kind.NEURON, Kind.FEATURE):
        return Node(kind, layer, position=position, family=family)
    some = rng.sample([0, 2, 11, 4096, 24575], rng.choice([1, 1, 2, 4]))
    return replace(unit(kind, family, layer, some), position=position)


def draw_edge(rng: random.Random) -> Edge:
    """Any edge that a transformer can have."""
    while True:
        parts = (Kind.NEURON, Kind.FEATURE, Kind.REST, Kind.ERROR)
        sender = draw_node(rng, (Kind.INPUT, Kind.HEAD, Kind.MLP, *parts))
        receiver = draw_node(rng, (Kind.HEAD, Kind.KV, Kind.MLP, Kind.LOGITS, *parts))
        if sender.layer_rank < receiver.layer_rank:
            slots = {Kind.HEAD: SLOTS, Kind.KV: SLOTS[1:]}.get(receiver.kind, (None,))
            return Edge(sender, receiver, rng.choice(slots))


# --- round trips --------------------------------------------------------------------------------------------


def test_nodes_are_read_as_they_are_printed() -> None:
    rng = random.Random(0)
    for _ in range(DRAWS):
        node = draw_node(rng)
        assert parse_node(str(node)) == node
        assert str(parse_node(str(node))) == str(node)
        assert parse_node(f"  {node}\n") == node


def test_edges_are_read_as_they_are_printed() -> None:
    rng = random.Random(1)
    for _ in range(DRAWS):
        edge = draw_edge(rng)
        assert parse_edge(str(edge)) == edge
        assert parse_edge(str(edge).replace("->", " -> ")) == edge


def test_readers_are_read_as_they_are_printed() -> None:
    rng = random.Random(2)
    for _ in range(DRAWS):
        edge = draw_edge(rng)
        assert parse_reader(edge.reader) == (edge.receiver, edge.slot)
        assert reader_name(edge.receiver, edge.slot) == edge.reader
        assert str(edge) == f"{edge.sender}->{edge.reader}"


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (INPUT, "input"),
        (LOGITS, "logits"),
        (Node(Kind.HEAD, 9, 6), "a9.h6"),
        (Node(Kind.KV, 9, 2), "a9.kv2"),
        (Node(Kind.MLP, 5), "m5"),
        (Node(Kind.HEAD, 9, 6, "END"), "a9.h6@END"),
        (Node(Kind.LOGITS, position="END"), "logits@END"),
    ],
)
def test_printed_forms(node: Node, text: str) -> None:
    assert str(node) == text
    assert str(node.bare) == text.partition("@")[0]


@pytest.mark.parametrize(
    ("edge", "text"),
    [
        (Edge(Node(Kind.HEAD, 0, 0), Node(Kind.HEAD, 1, 0), "k"), "a0.h0->a1.h0<k>"),
        (Edge(INPUT, LOGITS), "input->logits"),
        (Edge(Node(Kind.HEAD, 3, 1), Node(Kind.MLP, 3)), "a3.h1->m3"),
        (
            Edge(Node(Kind.MLP, 0, position="S1"), Node(Kind.HEAD, 1, 0, "END"), "q"),
            "m0@S1->a1.h0<q>@END",
        ),
    ],
)
def test_printed_edges(edge: Edge, text: str) -> None:
    assert str(edge) == text
    assert parse_edge(text) == edge


# --- spellings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("9.6", "a9.h6"),
        ("L9H6", "a9.h6"),
        ("l9h6", "a9.h6"),
        ("A9.H6", "a9.h6"),
        ("9.6@END", "a9.h6@END"),
        ("L10H11@S2", "a10.h11@S2"),
        ("a9.KV2", "a9.kv2"),
        ("MLP5", "m5"),
        ("mlp5", "m5"),
        ("M5", "m5"),
        ("embed", "input"),
        ("Input", "input"),
        ("out", "logits"),
        ("output", "logits"),
        ("LOGITS", "logits"),
    ],
)
def test_spellings_of_nodes(text: str, printed: str) -> None:
    assert str(parse_node(text)) == printed


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("9.6->10.0<q>", "a9.h6->a10.h0<q>"),
        ("L9H6->L10H0<v>", "a9.h6->a10.h0<v>"),
        ("embed->MLP0", "input->m0"),
        ("MLP3->out", "m3->logits"),
    ],
)
def test_spellings_of_edges(text: str, printed: str) -> None:
    assert str(parse_edge(text)) == printed


# --- order --------------------------------------------------------------------------------------------------


def test_order_is_from_the_input_to_the_logits() -> None:
    rng = random.Random(3)
    names = ["input", "a0.h0", "a0.h1", "a0.h10", "a0.kv0", "m0", "a1.h0", "m1", "a10.h0", "m10", "logits"]
    nodes = [parse_node(name) for name in names]
    shuffled = rng.sample(nodes, len(nodes))
    assert sorted(shuffled, key=lambda node: node.order) == nodes
    ranks = [node.layer_rank for node in nodes]
    assert ranks == sorted(ranks)


def test_order_is_total() -> None:
    rng = random.Random(4)
    nodes = {draw_node(rng) for _ in range(DRAWS)}
    assert len({node.order for node in nodes}) == len(nodes)
    edges = {draw_edge(rng) for _ in range(DRAWS)}
    assert len({edge.order for edge in edges}) == len(edges)
    for one, other in pairwise(sorted(edges, key=lambda edge: edge.order)):
        assert one.receiver.order <= other.receiver.order


def test_every_drawn_edge_runs_up() -> None:
    rng = random.Random(5)
    for _ in range(DRAWS):
        edge = draw_edge(rng)
        turned = f"{edge.receiver}->{edge.sender}" + ("<q>" if edge.sender.kind is Kind.HEAD else "")
        with pytest.raises(UsageError):
            parse_edge(turned)


# --- bad names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a9",
        "h6",
        "a9h6",
        "a9.h",
        "a.h6",
        "a-1.h0",
        "9.6.1",
        "9,6",
        "L9",
        "m",
        "m5.f3",
        "m5.err",
        "t5.n3",
        "m5.n3+",
        "mlp",
        "logit",
        "inputs",
        "a9.h6@",
        "a9.h6@two words",
        "a9.h6@END@END",
        "a9.h6<q",
        "a9.h6<x>",
        "a9.h6<qk>",
        "m5<q>",
        "logits<v>",
        "input<q>",
        "a9.h6->m9",
        "a9.h6\nm5",
    ],
)
def test_bad_nodes(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reader(text)
    assert caught.value.what == f"'{text}' is not the name of a node"
    assert "a9.h6" in caught.value.hint


def test_an_input_of_a_head_is_no_node() -> None:
    with pytest.raises(UsageError, match="names an input of a head, not a node") as caught:
        parse_node("L9H6<q>")
    assert caught.value.hint == "write 'a9.h6'"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a9.h6", "is not the name of an edge"),
        ("a9.h6-a10.h0<q>", "is not the name of an edge"),
        ("a9.h6=>a10.h0<q>", "is not the name of an edge"),
        ("a9.h6->a10.h0", "'a10.h0' needs its input in angle brackets: <q>, <k> or <v>"),
        ("a9.h6->", "'' is not the name of a node"),
        ("->logits", "'' is not the name of a node"),
        ("a0.h0->a1.h0<q>->logits", "is not the name of a node"),
        ("a0.h0<q>->a1.h0<q>", "names an input of a head"),
        ("a1.h0->a0.h0<q>", "no edge runs from a1.h0 to a0.h0"),
        ("a1.h0->a1.h1<q>", "no edge runs"),
        ("m1->a1.h0<v>", "no edge runs"),
        ("m1->m1", "no edge runs"),
        ("m1->input", "no edge runs"),
        ("logits->logits", "no edge runs"),
        ("logits->m1", "no edge runs"),
        ("a0.kv0->logits", "no edge runs"),
    ],
)
def test_bad_edges(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_edge(text)
    assert says in str(caught.value)


def test_a_key_head_reads_no_query() -> None:
    with pytest.raises(UsageError):
        parse_edge("a0.h0->a1.kv0<q>")
