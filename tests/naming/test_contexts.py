"""Contexts are those of a full computation that looks at every token and sorts."""

from __future__ import annotations

import pytest
import torch

from circuitfind.dictionaries.texts import Sequences
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.mlp import MLP
from circuitfind.names import parse_node
from circuitfind.naming.banks import Banks
from circuitfind.naming.contexts import BEFORE, Activity, Context, find_contexts, shares
from tests import families
from tests.dictionaries.synthetic import random_dictionary, random_texts
from tests.naming.cases import NODES, WITH_MLPS, Fired, banks, dictionaries, nodes_of, reference

TOP = 4


def strongest(found: list[Fired], texts: Sequences, sign: int, *, causal: bool) -> list[Fired]:
    """One place of each text, one of those that begin alike, the first of equal ones."""
    kept: dict[object, Fired] = {}
    for number, text in enumerate(texts.items):
        here = [one for one in found if one.text == number and sign * one.value > 0]
        if not here:
            continue
        best = max(here, key=lambda one: sign * one.value)
        before = tuple(text[max(0, best.position - BEFORE) : best.position + 1])
        key = before if causal else (best.position, tuple(text))
        if key not in kept or sign * kept[key].value < sign * best.value:
            kept[key] = best
    return sorted(kept.values(), key=lambda one: -sign * one.value)[:TOP]


def same(ours: tuple[Context, ...], wanted: list[Fired], found: list[Fired]) -> None:
    """The same values, each at a place where a full computation has it (equal ones may stand at others)."""
    assert [c.value for c in ours] == pytest.approx([w.value for w in wanted], rel=1e-4, abs=1e-5)
    there = {(one.text, one.position): one.value for one in found}
    assert [c.value for c in ours] == pytest.approx(
        [there[c.text, c.position] for c in ours], rel=1e-4, abs=1e-5
    )


@pytest.mark.parametrize("family", [*map(families.costly, WITH_MLPS), "solu-ln"])
def test_contexts_are_those_of_a_full_computation(family: str) -> None:
    if family == "solu-ln":
        config = families.NATIVE_CONFIGS[family]
        path = families.root() / "solu-ln-naming"
        model = families.load_model(
            str(families.write_native(path, config, families.native_state(config))), device="cpu"
        )
    else:
        model = families.model(family)
    texts = random_texts(model, count=6, seed=3)
    texts = Sequences((*texts.items, texts.items[0], texts.items[1][:2]))
    nodes = nodes_of(model)
    ours = find_contexts(banks(model), nodes, texts.items, top=TOP, pass_tokens=40)
    given = dictionaries(model)
    negative = 0
    for node in nodes:
        found = reference(model, given, node, texts.items)
        values = [one.value for one in found]
        mine = ours[node]
        assert mine.tokens == texts.n_tokens == len(found)
        assert mine.fires == pytest.approx(sum(one.on for one in found) / len(found), abs=1e-9)
        assert mine.mean == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-5)
        assert mine.largest == pytest.approx(max(values), rel=1e-4, abs=1e-5)
        assert mine.smallest == pytest.approx(min(values), rel=1e-4, abs=1e-5)
        same(mine.top, strongest(found, texts, 1, causal=model.causal), found)
        wants_bottom = -min(values) > max(values)
        assert bool(mine.bottom) == wants_bottom
        if wants_bottom:
            negative += 1
            same(mine.bottom, strongest(found, texts, -1, causal=model.causal), found)
    assert negative < len(nodes)


def test_negative_sides_are_told_where_they_are_larger() -> None:
    """A gated neuron whose other branch is turned round fires below zero."""
    model = families.model("rms-gated")
    texts = random_texts(model, count=12)
    found = [find_contexts(Banks(model), [parse_node(f"m0.n{i}")], texts.items) for i in range(model.d_mlp)]
    sides = [one.side for each in found for one in each.values()]
    assert {-1, 1} == set(sides)
    for each in found:
        for one in each.values():
            assert all(c.value > 0 for c in one.top)
            assert all(c.value < 0 for c in one.bottom)
            if one.bottom:
                assert one.bottom[0].value == pytest.approx(one.smallest)
                assert -one.smallest > one.largest


def test_members_make_up_the_value_of_a_group() -> None:
    model = families.model("gpt2")
    held, group = banks(model), parse_node("m1.n2+5+11")
    found = find_contexts(held, [group], random_texts(model).items)[group]
    writes = held[group].writes(torch.tensor(group.units))
    for context in found.top:
        assert float((torch.tensor(context.members) @ writes).norm()) == pytest.approx(
            context.value, rel=1e-4
        )
    own = shares(found, 3)
    assert float(own.abs().max()) == pytest.approx(1.0)
    mean = torch.tensor([c.members for c in found.top]).mean(0)
    assert torch.allclose(own * mean.abs().max(), mean, atol=1e-6)


def test_the_token_that_fires_is_marked_in_its_window() -> None:
    model = families.model("gpt2")
    texts = random_texts(model)
    for activity in find_contexts(banks(model), NODES, texts.items).values():
        for c in activity.top:
            text = texts.items[c.text]
            assert c.tokens[c.at] == text[c.position]
            first = c.position - c.at
            assert tuple(text[first : first + len(c.tokens)]) == c.tokens


def test_texts_that_begin_alike_are_one_context() -> None:
    model = families.model("gpt2")
    base = random_texts(model, count=1).items[0]
    longer = [(*base, token) for token in range(6)]
    node = parse_node("t0.f4")
    found = find_contexts(banks(model), [node], [*longer, *longer], top=50)[node]
    starts = [c.tokens[: c.at + 1] for c in found.top]
    assert len(starts) == len(set(starts))


def test_only_the_units_asked_for_are_computed_and_only_the_blocks_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = families.model("gpt2")
    texts, widths, whole = random_texts(model, count=4), [], []
    hidden, run = MLP.hidden, MLP.run
    monkeypatch.setattr(
        MLP, "hidden", lambda self, pre, up: widths.append(pre.shape[-1]) or hidden(self, pre, up)
    )
    monkeypatch.setattr(MLP, "run", lambda self, x: whole.append(1) or run(self, x))
    before = dict(model.passes)
    find_contexts(Banks(model), [parse_node("m0.n3"), parse_node("m0.n1+7")], texts.items, pass_tokens=1000)
    assert not whole, "no MLP is run to look at neurons of the first layer"
    assert widths == [3], "both nodes at once"
    assert model.passes["forward"] - before["forward"] == 1
    longest = max(map(len, texts.items))
    assert model.passes["work"] - before["work"] == len(texts.items) * longest, "one block of two"


def test_a_node_that_never_fires_has_no_context() -> None:
    model = families.model("gpt2")
    off = random_dictionary(model, 0, b_enc=torch.full((10,), -1e4))
    node = parse_node("t0.f1")
    found = find_contexts(Banks(model, [off]), [node], random_texts(model).items)[node]
    assert found == Activity(found.tokens, 0.0, 0.0, 0.0, 0.0, (), ())
    assert shares(found, 1).tolist() == [1.0]


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("m0.n9999", "there is no 'm0.n9999'", "the last one is 'm0.n63'"),
        ("m7.n1", "no layer 7", "0 to 1"),
        ("t1.f10", "has 10 units", "t1.f9"),
        ("sa0.f1", "no dictionary for 'sa0.f1'", "s0, s1, sa1, sh0, si0, sm1, t0, t1"),
        ("a0.h1", "no neuron and no feature", "m5.n1203"),
        ("m0.rest", "no neuron and no feature", "m5.n1203"),
    ],
)
def test_wrong_nodes_are_told(name: str, says: str, hint: str) -> None:
    model = families.model("gpt2")
    with pytest.raises(UsageError, match=says) as caught:
        find_contexts(banks(model), [parse_node(name)], random_texts(model).items)
    assert hint in caught.value.hint


def test_wrong_texts_and_counts_are_told() -> None:
    model = families.model("gpt2")
    node = [parse_node("m0.n1")]
    with pytest.raises(UsageError, match="the 0 strongest"):
        find_contexts(Banks(model), node, [(1, 2)], top=0)
    with pytest.raises(UsageError, match="no text"):
        find_contexts(Banks(model), node, [])
    with pytest.raises(UsageError, match="at most 24"):
        find_contexts(Banks(model), node, [tuple(range(30))])
    assert find_contexts(Banks(model), [], [(1, 2)]) == {}


def test_models_without_mlps_have_no_neurons() -> None:
    model = families.model("attn-only")
    with pytest.raises(UnsupportedError, match="no MLPs"):
        find_contexts(Banks(model), [parse_node("m0.n1")], [(1, 2)])


def test_dictionaries_of_other_sites_and_twice_the_same_are_refused() -> None:
    model = families.model("gpt2")
    other = random_dictionary(model, 0, kind="sae", site_in="z", site_out="z")
    with pytest.raises(UnsupportedError, match="cannot be named"):
        Banks(model, [other])
    one = random_dictionary(model, 0)
    with pytest.raises(UsageError, match="two dictionaries are of t0"):
        Banks(model, [one, one])
