"""Neurons, features, errors and rests in pictures, their labels and hints, and what is counted."""

from __future__ import annotations

import re

import pytest

from circuitfind.circuit.counts import counted, parts_in_words
from circuitfind.circuit.graph import Circuit
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import Kind, parse_node
from circuitfind.output.dot import to_dot
from circuitfind.output.dot_caption import caption_lines
from circuitfind.output.dot_fewer import MOST, fewer_edges
from circuitfind.output.dot_style import FILL, LINE, NEGATIVE, POSITIVE
from circuitfind.output.dot_units import ROW, in_rows, members, shown_name, step
from circuitfind.output.words import Words
from tests.output.circuits import GPT2, make, random_circuit
from tests.output.test_dot import edge_lines, heights, needs_dot, parsed

PARTS = (("m0.n3", "m0.n17+99+120", "m0.rest"), ("t1.f88", "t1.err"), ())
ANATOMY = Anatomy(n_layers=3, n_heads=2, n_kv_heads=2, parts=PARTS)
EDGES = {
    "input->a0.h0<v>": 1.0,
    "a0.h0->m0.n3": 0.5,
    "a0.h0->m0.n17+99+120": 0.4,
    "input->m0.rest": 0.1,
    "m0.n3->t1.f88": 0.6,
    "m0.n17+99+120->t1.f88": -0.2,
    "m0.rest->a1.h1<k>": 0.3,
    "a1.h1->m2": 0.2,
    "t1.f88->m2": 0.7,
    "t1.err->logits": -0.1,
    "m2->logits": 0.9,
}


def circuit(**changes: object) -> Circuit:
    return make(EDGES, ANATOMY, **changes)  # type: ignore[arg-type]


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f'  "{name}" ['))


def test_every_edge_and_node_is_there() -> None:
    text = to_dot(circuit())
    assert set(edge_lines(text)) == set(EDGES)
    for node in circuit().nodes:
        assert line_of(text, str(node))


def test_kinds_look_apart_from_each_other_and_from_edges() -> None:
    kinds = (Kind.HEAD, Kind.MLP, Kind.NEURON, Kind.FEATURE, Kind.REST)
    assert len({FILL[kind] for kind in kinds}) == len(kinds)
    assert len({LINE[kind] for kind in kinds}) == len(kinds)
    assert not {POSITIVE, NEGATIVE} & {*FILL.values(), *LINE.values()}
    text = to_dot(circuit())
    looks = set()
    for name in ("a0.h0", "m2", "m0.n3", "t1.f88", "m0.rest", "t1.err"):
        found = re.findall(r'STYLE="([\w,]+)" COLOR="(#\w+)" BGCOLOR="(#\w+)"', line_of(text, name))
        looks.add(found[0])
    assert len(looks) == 6
    assert 'STYLE="DASHED"' in line_of(text, "t1.err")
    assert 'class="feature"' in line_of(text, "t1.f88")


def test_units_that_act_together_are_one_stacked_node_that_lists_them() -> None:
    text = to_dot(circuit(), words=Words({"m0.n99": "digits"}))
    line = line_of(text, "m0.n17+99+120")
    assert "m0.n17 +2" in line
    assert line.count("<TABLE") == 2, "two frames"
    assert "3 together: m0.n17, m0.n99 (digits), m0.n120" in line
    assert line_of(text, "m0.n3").count("<TABLE") == 1
    assert shown_name(parse_node("t1.f5")) == "t1.f5"
    wide = parse_node("m0.n" + "+".join(map(str, range(20))))
    assert members(wide, Words()).endswith("8 more")


def test_labels_stand_below_the_name_and_hints_where_there_is_none() -> None:
    words = Words({"m0.n3": "the second name", "a0.h0": "a head"}, {"m0.n3": "' x'", "t1.f88": "' Mary'"})
    text = to_dot(circuit(), words=words)
    assert "the second name" in line_of(text, "m0.n3")
    assert "' x'" not in line_of(text, "m0.n3")
    assert "a head" in line_of(text, "a0.h0")
    hinted = line_of(text, "t1.f88")
    assert "→ &#x27; Mary&#x27;" in hinted
    assert "promotes ' Mary'" in hinted
    assert to_dot(circuit(), words=Words()) == to_dot(circuit())
    long = to_dot(circuit(), words=Words({"m0.n3": "word " * 60}))
    assert line_of(long, "m0.n3").count("<BR/>") == 2


@needs_dot
def test_text_from_people_is_shown_as_it_is() -> None:
    nasty = 'a "b" <i>&amp; \\N {|} é 日本'
    svg = parsed(to_dot(circuit(), words=Words({"m0.n3": nasty}, {"t1.f88": nasty})), "svg")
    assert "&lt;i&gt;&amp;amp;" in svg
    assert "日本" in svg


@needs_dot
def test_units_stand_in_the_rank_of_their_mlp() -> None:
    at = heights(to_dot(circuit()))
    assert at["input"] < at["a0.h0"] < at["m0.n3"] == at["m0.n17+99+120"] == at["m0.rest"] < at["a1.h1"]
    assert at["a1.h1"] < at["t1.f88"] == at["t1.err"] < at["m2"] < at["logits"]


@needs_dot
def test_parallel_blocks_have_heads_and_units_side_by_side() -> None:
    anatomy = Anatomy(2, 2, 2, parallel=True, parts=(("m0.n3", "m0.n4"), ()))
    at = heights(
        to_dot(
            make(
                [
                    "input->m0.n3",
                    "input->a0.h0<q>",
                    "m0.n3->logits",
                    "a0.h0->logits",
                    "input->m1",
                    "m1->logits",
                ],
                anatomy,
            )
        )
    )
    assert at["m0.n3"] == at["a0.h0"] < at["m1"]


def test_parts_of_a_layer_stand_in_the_order_of_the_pass() -> None:
    names = ("si0.f1", "sa0.f1", "sh0.f1", "m0.n1", "sm0.f1", "s0.f1")
    steps = [step(parse_node(name), parallel=False) for name in names]
    assert steps == sorted(set(steps))
    assert step(parse_node("t0.f1"), parallel=False) == step(parse_node("m0"), parallel=False)


@pytest.mark.parametrize("count", [1, ROW, ROW + 1, 60])
def test_many_units_stand_in_rows(count: int) -> None:
    nodes = [parse_node(f"m0.n{i}") for i in range(count)]
    rows = in_rows(nodes)
    assert [n for row in rows for n in row] == nodes
    assert max(map(len, rows)) <= ROW
    assert len(rows) == -(-count // ROW)
    heads = [parse_node(f"a0.h{i}") for i in range(30)]
    assert in_rows(heads) == [heads]
    assert in_rows([*heads, *nodes])[0][:30] == heads


@needs_dot
def test_rows_of_a_layer_lie_between_its_heads_and_the_next_layer() -> None:
    units = tuple(f"m0.n{i}" for i in range(30))
    anatomy = Anatomy(2, 2, 2, parts=(units, ()))
    edges = [
        *(f"a0.h0->{u}" for u in units),
        *(f"{u}->a1.h0<v>" for u in units),
        "input->a0.h0<v>",
        "a1.h0->logits",
    ]
    text = to_dot(make(edges, anatomy))
    at = heights(text)
    assert len({at[unit] for unit in units}) == 3
    assert all(at["a0.h0"] < at[unit] < at["a1.h0"] for unit in units)
    assert text.count('label="MLP 0"') == 1


def test_caption_and_legend_say_what_there_is() -> None:
    text = " ".join(caption_lines(circuit()))
    assert "2 heads, 1 MLP, 4 neurons (1 group), 1 feature, 1 error, 1 rest" in text
    dot = to_dot(circuit())
    for words in (
        "neuron of an MLP",
        "feature of a dictionary",
        "what a dictionary misses",
        "units that act together",
    ):
        assert words in dot
    plain = to_dot(make({"input->m0": 1.0, "m0->logits": 0.5}))
    assert "neuron" not in plain
    assert "dictionary" not in plain


def test_a_circuit_that_is_too_large_is_drawn_with_its_strongest_edges() -> None:
    large = random_circuit(GPT2, 1000, seed=0)
    shown = fewer_edges(large, 400)
    assert {str(n) for n in shown.nodes} == {str(n) for n in large.nodes}
    into = {edge.receiver for edge in large.edges}
    assert {edge.receiver for edge in shown.edges} == into
    assert {edge.sender for edge in shown.edges} == {edge.sender for edge in large.edges}
    scores = large.edge_scores
    for edge in large.edges:  # what is left out is weaker than something that both of its ends keep
        if edge not in shown.edges:
            for end in ("sender", "receiver"):
                kept = [e for e in shown.edges if getattr(e, end) == getattr(edge, end)]
                assert max(abs(scores[str(e)]) for e in kept) >= abs(scores[str(edge)])
    assert len(shown.edges) == 400
    strongest = sorted(large.edges, key=lambda e: -abs(scores[str(e)]))[:50]
    assert set(strongest) <= set(shown.edges)
    small = random_circuit(GPT2, MOST, seed=0)
    assert fewer_edges(small) is small
    text = to_dot(large)
    assert f"Drawn: the {len(fewer_edges(large).edges)} strongest of these edges" in text.replace(
        "<BR/>", " "
    )
    assert "Kept: 1,000 of" in text
    assert "Drawn:" not in to_dot(small)


def test_counts_in_words() -> None:
    assert parts_in_words(make({"input->m0": 1.0, "m0->logits": 0.5})) == "0 heads, 1 MLP"
    assert parts_in_words(make(["input->logits"])) == "0 heads, 0 MLPs"
    only = make(["input->m0.n3", "m0.n3->logits"], ANATOMY)
    assert parts_in_words(only) == "0 heads, 1 neuron"
    assert counted(1024, "neuron") == "1,024 neurons"
    assert circuit().as_dict()["counts"]["units"] == 3
