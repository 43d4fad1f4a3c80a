"""DOT text: what is in it, and that Graphviz reads it where it is installed."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest

from circuitfind.model.anatomy import Anatomy
from circuitfind.names import Kind
from circuitfind.output.dot import to_dot
from circuitfind.output.dot_caption import caption_lines
from circuitfind.output.dot_style import NEGATIVE, POSITIVE, UNSCORED, Scale, quoted, wrapped
from tests.output.circuits import GPT2, GROUPED, SMALL, conditions, make, random_circuit

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")

INDUCTION = {
    "input->a0.h0<k>": 0.4,
    "input->a1.h0<v>": 0.9,
    "a0.h0->a1.h0<k>": 1.6,
    "a0.h0->m0": 0.1,
    "m0->a1.h0<q>": -0.4,
    "a1.h0->logits": 2.0,
}


def edge_lines(text: str) -> dict[str, dict[str, str]]:
    """Attributes of every edge that has a class (the invisible ones have none), by sender, receiver and slot."""
    found = {}
    pattern = r'^  "([^"]+)":n -> "([^"]+)"(?::([qkv]))?:s \[(.*)\];$'
    for sender, receiver, slot, attributes in re.findall(pattern, text, flags=re.MULTILINE):
        pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^,\]]+)', attributes)
        found[f"{sender}->{receiver}" + (f"<{slot}>" if slot else "")] = {k: v.strip('"') for k, v in pairs}
    return found


def parsed(text: str, output: str = "dot") -> str:
    done = subprocess.run(
        ["dot", f"-T{output}"], input=text.encode(), capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr, done.stderr.decode()
    return done.stdout.decode()


def heights(text: str) -> dict[str, float]:
    """Height of every node's centre in the picture."""
    lines = [line.split() for line in parsed(text, "plain").splitlines() if line.startswith("node ")]
    return {words[1].strip('"'): float(words[3]) for words in lines}


def test_every_edge_enters_its_port_and_every_node_is_there() -> None:
    circuit = make(INDUCTION)
    text = to_dot(circuit)
    assert set(edge_lines(text)) == set(INDUCTION)
    for node in circuit.nodes:
        assert f'\n  "{node}" [label=<' in text


def test_the_same_circuit_gives_the_same_text_whatever_the_order() -> None:
    names = list(INDUCTION.items())
    assert to_dot(make(dict(names))) == to_dot(make(dict(reversed(names))))


def test_importing_it_needs_no_graphviz_and_no_torch() -> None:
    code = "import circuitfind.output.dot, sys; assert not {'graphviz', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_width_grows_with_the_size_of_the_score() -> None:
    lines = edge_lines(to_dot(make(INDUCTION)))
    by_size = sorted(INDUCTION, key=lambda name: abs(INDUCTION[name]))
    widths = [float(lines[name]["penwidth"]) for name in by_size]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    assert lines["input->a0.h0<k>"]["penwidth"] == lines["m0->a1.h0<q>"]["penwidth"], (
        "the sign does not matter"
    )


def test_colour_tells_the_sign_and_grey_what_was_not_scored() -> None:
    edges = {**INDUCTION, "input->m0": math.nan, "input->logits": 0.0}
    lines = edge_lines(to_dot(make(edges)))
    for name, score in edges.items():
        expected = UNSCORED if math.isnan(score) or score == 0 else POSITIVE if score > 0 else NEGATIVE
        assert lines[name]["color"].startswith(expected), name
    assert "not scored" in lines["input->m0"]["tooltip"]


def test_weak_edges_are_fainter_and_drawn_first() -> None:
    text = to_dot(make(INDUCTION))
    lines = edge_lines(text)
    drawn = [abs(INDUCTION[name]) for name in lines]
    assert drawn == sorted(drawn)
    faint, strong = (int(lines[name]["color"][7:], 16) for name in ("a0.h0->m0", "a1.h0->logits"))
    assert faint < strong


@pytest.mark.parametrize("scores", [[], [math.nan], [0.0], [math.inf], [math.inf, 1.0], [1e-300, 1e300]])
def test_odd_scores_have_a_finite_width(scores: list[float]) -> None:
    scale = Scale(scores)
    for score in [*scores, 0.0, math.nan]:
        assert math.isfinite(scale.width(score))
        assert re.fullmatch(r"#[0-9A-F]{8}", scale.colour(score))
        assert scale.weight(score) >= 1


def test_used_and_unused_inputs_of_a_head_look_different() -> None:
    text = to_dot(make(["input->a0.h0<k>", "a0.h0->logits"]))
    used = re.findall(r'<TD PORT="(\w)"[^>]*>(?:<FONT[^>]*>)(<B>)?', text)
    assert dict(used) == {"q": "", "k": "<B>", "v": ""}


def test_roles_stand_below_the_name() -> None:
    text = to_dot(make(INDUCTION, roles={"a1.h0": "induction head"}))
    assert "induction head" in next(line for line in text.splitlines() if line.startswith('  "a1.h0" ['))


def test_the_caption_names_every_condition_and_never_the_circuit() -> None:
    circuit = make(INDUCTION)
    text = " ".join(caption_lines(circuit))
    conditions = vars(circuit.conditions)
    for key in ("metric", "ablation", "direction", "counterfactual", "method", "rule"):
        assert str(conditions[key]) in text
    assert "0.913 [0.881, 0.940]" in text
    assert f"{len(circuit.edges)} of {circuit.anatomy.n_edges} edges" in text
    assert "A circuit under these conditions" in text
    dot = to_dot(circuit)
    assert "A circuit for ioi in gpt2" in dot
    assert "the circuit" not in dot.lower()


def test_title_caption_and_legend_can_be_left_out() -> None:
    circuit = make(INDUCTION)
    bare = to_dot(circuit, caption=False, legend=False, layer_labels=False)
    assert "conditions" not in bare
    assert "attention head" not in bare
    assert "attn 0" not in bare
    assert 'label=""' in bare
    assert "<B>My title</B>" in to_dot(circuit, title="My title")


def test_the_legend_explains_what_occurs_and_nothing_else() -> None:
    text = to_dot(make({"input->m0": 1.0, "m0->logits": 0.5}))
    assert "positive score" in text
    assert "negative score" not in text
    assert "attention head" not in text
    assert "MLP" in text
    grouped = to_dot(make({"input->a0.kv0<k>": 1.0, "a0.h0->logits": -0.5}, GROUPED))
    assert "key/value head" in grouped
    assert "negative score" in grouped


def test_grouped_query_attention_draws_the_keys_apart_and_dots_to_the_heads_served() -> None:
    circuit = make(
        ["input->a0.kv0<k>", "input->a0.h0<q>", "a0.h0->logits", "a0.h1->logits", "a0.h3->logits"], GROUPED
    )
    text = to_dot(circuit)
    dotted = re.findall(r'"([^"]+)":n -> "([^"]+)":s \[style=dotted', text)
    assert dotted == [("a0.kv0", "a0.h0"), ("a0.kv0", "a0.h1")]
    head = next(line for line in text.splitlines() if line.startswith('  "a0.h0" ['))
    assert 'PORT="q"' in head
    assert 'PORT="k"' not in head


def test_node_kinds_are_told_apart() -> None:
    text = to_dot(make([*INDUCTION, "input->a0.h1<q>"]))
    looks = {}
    for kind, name in ((Kind.INPUT, "input"), (Kind.HEAD, "a0.h0"), (Kind.MLP, "m0")):
        line = next(line for line in text.splitlines() if line.startswith(f'  "{name}" ['))
        looks[kind] = re.search(r'STYLE="(\w+)" COLOR="(#\w+)" BGCOLOR="(#\w+)"', line).groups()  # type: ignore[union-attr]
    assert len(set(looks.values())) == 3


NASTY = 'a "b" <i>&amp; \\N \\G {|} -> [x=1]; \x00\x07\n\t // é 日本 ' + "long" * 40


@needs_dot
def test_text_from_users_is_shown_as_it_is() -> None:
    named = conditions(task=NASTY, model=NASTY, counterfactual=NASTY, method=NASTY, rule=NASTY)
    circuit = make(INDUCTION, roles={"a1.h0": NASTY}, conditions=named)
    svg = parsed(to_dot(circuit, title=NASTY), "svg")
    assert "&lt;i&gt;&amp;amp;" in svg
    assert svg.count("\\N \\G") >= 4, "in the title, the caption and the tooltips"
    assert "日本" in svg


def test_quoting_is_reversible() -> None:
    text = 'back\\slash "quote" & end\\'
    inside = quoted(text)[1:-1]
    assert inside.replace('\\"', '"').replace("\\" * 4, "\\").replace("&amp;", "&") == text


def test_wrapping_cuts_what_is_too_long() -> None:
    assert wrapped("", 10) == [""]
    assert all(len(line) <= 10 for line in wrapped("x" * 95, 10))
    cut = wrapped("one two three four five", 9, most=2)
    assert len(cut) == 2
    assert cut[-1].endswith("…")


@needs_dot
@pytest.mark.parametrize(
    "anatomy", [SMALL, GPT2, GROUPED, Anatomy(3, 4, 4, parallel=True), Anatomy(3, 4, 4, has_mlp=False)]
)
@pytest.mark.parametrize("n_edges", [1, 6, 60])
def test_graphviz_reads_every_circuit(anatomy: Anatomy, n_edges: int) -> None:
    circuit = random_circuit(anatomy, n_edges, seed=n_edges)
    text = parsed(to_dot(circuit))
    for node in circuit.nodes:
        assert str(node) in text


@needs_dot
def test_an_empty_circuit_can_be_drawn() -> None:
    parsed(to_dot(make([])))


@needs_dot
def test_layers_go_up_from_the_input_to_the_logits() -> None:
    at = heights(to_dot(make(INDUCTION)))
    assert at["input"] < at["a0.h0"] < at["m0"] < at["a1.h0"] < at["logits"]


@needs_dot
def test_parallel_blocks_have_attention_and_mlp_side_by_side() -> None:
    edges = ["input->m0", "input->a0.h0<q>", "m0->logits", "a0.h0->logits"]
    at = heights(to_dot(make(edges, Anatomy(2, 2, 2, parallel=True))))
    assert at["m0"] == at["a0.h0"]
    apart = heights(to_dot(make(edges)))
    assert apart["m0"] > apart["a0.h0"]


POSITIONED = [
    "input@S1->m0@S1",
    "input@S2->m0@S2",
    "m0@S1->a1.h0<k>@S1",
    "m0@S2->a1.h1<q>@S2",
    "m0@S1->a1.h1<v>@S1",
    "a1.h1@S2->logits@END",
    "a1.h0@END->logits@END",
]


@needs_dot
@pytest.mark.parametrize("order", [("S1", "S2", "END"), ("S2", "END", "S1"), ("END",)])
def test_positions_are_columns_in_the_order_given(order: tuple[str, ...]) -> None:
    circuit = make(POSITIONED)
    text = to_dot(circuit, positions=order)
    lines = [line.split() for line in parsed(text, "plain").splitlines() if line.startswith("node ")]
    across = {words[1].strip('"'): float(words[2]) for words in lines}
    whole = [*order, *sorted({"S1", "S2", "END"}.difference(order))]
    columns = [[across[str(n)] for n in circuit.nodes if n.position == position] for position in whole]
    for left, right in pairwise(columns):
        assert max(left) < min(right)
    named = [across[f"position:{position}"] for position in whole]
    assert named == sorted(named)


def test_a_head_is_joined_across_positions_from_its_keys_to_where_it_writes() -> None:
    dotted = re.findall(r'"([^"]+)":n -> "([^"]+)":s \[style=dotted', to_dot(make(POSITIONED)))
    assert set(dotted) == {("a1.h0@S1", "a1.h0@END"), ("a1.h1@S1", "a1.h1@S2")}
