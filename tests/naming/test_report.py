"""What is told of a unit: the pieces together, as plain data, and tokens as people read them."""

from __future__ import annotations

import json

import pytest

from circuitfind.model.load import load_model, planted
from circuitfind.names import parse_node
from circuitfind.naming.banks import Banks, index_of
from circuitfind.naming.contexts import find_contexts, shares
from circuitfind.naming.evidence import answer_direction, answer_write, head_writes
from circuitfind.naming.lens import promoted
from circuitfind.naming.report import HEADS, TOKENS, describe
from circuitfind.naming.tokens import reader
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.pairs import VocabTokenizer
from circuitfind.task.spec import load_task
from tests import families
from tests.dictionaries.synthetic import random_texts
from tests.naming.cases import banks, nodes_of


def piece(token: int) -> str:
    return f"<{token}>"


@pytest.mark.parametrize("family", ["rms-gated", "gemma2", "neox"])
def test_a_report_is_what_its_parts_say(family: str) -> None:
    model = families.model(family)
    held, nodes, texts, pairs = (
        banks(model),
        nodes_of(model),
        random_texts(model, count=8),
        families.pairs_for(model),
    )
    found = describe(held, nodes, texts.items, piece, pairs=pairs, top=2)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [n["name"] for n in found["nodes"]] == [str(n) for n in nodes]
    activities, direction = find_contexts(held, nodes, texts.items, top=2), answer_direction(model, pairs)
    heads = head_writes(held, nodes)
    assert found["answer"] == {"pairs": len(pairs), "agreement": direction.agreement}
    for node, told in zip(nodes, found["nodes"], strict=True):
        own = activities[node]
        parts = shares(own, len(node.units))
        write = parts @ held[node].writes(index_of(node, model.device))
        (lens,) = promoted(model, write[None], TOKENS)
        assert [(one["token"], one["value"]) for one in told["promotes"]] == [
            (piece(t), pytest.approx(v)) for t, v in lens.promotes
        ]
        strongest = (lens.suppresses if own.bottom else lens.promotes)[0][0]
        assert told["hint"] == f"'{piece(strongest)}'"
        assert [c["value"] for c in told["contexts"]] == [c.value for c in own.top]
        assert [c["value"] for c in told["negative_contexts"]] == [c.value for c in own.bottom]
        assert told["answer"]["inner"] == pytest.approx(answer_write(held, node, direction, parts).inner)
        assert {e: [h["head"] for h in some] for e, some in told["heads"].items()} == {
            e: [str(h.head) for h in some[:HEADS]] for e, some in heads[node].items()
        }
        assert [one["unit"] for one in told["units"]] == list(node.units)


def test_hints_follow_the_side_that_is_stronger() -> None:
    model = families.model("rms-gated")
    nodes = [parse_node(f"m0.n{i}") for i in range(model.d_mlp)]
    found = describe(Banks(model), nodes, random_texts(model).items, piece)
    sides = {bool(n["negative_contexts"]) for n in found["nodes"]}
    assert sides == {True, False}
    for node in found["nodes"]:
        side = node["suppresses"] if node["negative_contexts"] else node["promotes"]
        assert node["hint"] == f"'{side[0]['token']}'"
    assert found["answer"] is None
    assert all(n["answer"] is None for n in found["nodes"])


def test_tokens_are_read_as_text() -> None:
    tokenizer = load_model("mini", device="cpu").tokenizer
    assert tokenizer is not None
    read = reader(tokenizer)
    text = "When Mary left,\nJohn's 17 books\tfell."
    ids = [token for token, _, _ in tokenizer.encode(text)]
    assert "".join(map(read, ids)) == text
    assert read(ids[1]) == " Mary"
    assert read(0) == "<|endoftext|>"
    apart = [read(token) for token, _, _ in tokenizer.encode("é")]
    assert set(apart) <= {"é", "\ufffd"}


def test_other_vocabularies() -> None:
    assert reader(None)(7) == "7"
    named = reader(None, ["a", "b"])
    assert [named(0), named(1), named(2)] == ["a", "b", "2"]

    class Pieces(VocabTokenizer):
        """As SentencePiece spells them."""

    assert reader(Pieces(["<s>", "▁Once", "upon"]))(1) == " Once"
    assert reader(Pieces(["Ġbig", "Ċ", "Ã©", "<s>"]))(0) == " big"
    assert reader(Pieces(["Ġbig", "Ċ", "Ã©", "<s>"]))(1) == "\n"
    assert reader(Pieces(["Ġbig", "Ċ", "Ã©", "<日>"]))(2) == "é"
    assert reader(Pieces(["Ġbig", "Ċ", "Ã©", "<日>"]))(3) == "<日>"


@pytest.mark.parametrize("name", ["neuron-lookup", "neuron-lookup:3"])
def test_planted_neurons_are_what_they_were_written_for(name: str) -> None:
    """Each unit fires where the answer is asked for, writes one answer, and reads the head that carries the key."""
    made, model = planted(f"planted/{name}"), load_model(f"planted/{name}", device="cpu")
    assert made.units is not None
    spec = load_task("neuron-lookup")
    pairs = Session(spec, resolve(spec, model=f"planted/{name}")).all_pairs
    texts = list(dict.fromkeys(prompt for pair in pairs for prompt in (pair.clean, pair.corrupted)))
    nodes = [parse_node(unit) for unit in made.units.names]
    found = describe(Banks(model), nodes, texts, str, pairs=pairs)
    (mover,) = (node for node, role in made.roles.items() if role == "key-mover")
    answers = {str(token) for pair in pairs for token in pair.answer}
    written = [node["promotes"][0]["token"] for node in found["nodes"]]
    assert set(written) <= answers
    assert len(set(written)) == len(written)
    assert found["answer"]["agreement"] < 0.01, "every class is asked for as often"
    for node in found["nodes"]:
        assert all(c["at"] == len(c["tokens"]) - 1 for c in node["contexts"]), (
            "at the query, which comes last"
        )
        first, second = (one["value"] for one in node["promotes"][:2])
        assert first > 50 * second
        assert node["answer"]["spread_percentile"] > 95
        assert node["heads"]["in"][0]["head"] == mover
    others = [n for n in range(model.d_mlp) if f"m0.n{n}" not in made.units.roles][:5]
    for node in describe(Banks(model), [parse_node(f"m0.n{n}") for n in others], texts, str, pairs=pairs)[
        "nodes"
    ]:
        assert node["answer"]["spread_percentile"] < 95
