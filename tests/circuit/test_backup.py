"""Backups beside a circuit: written and read, joined to it, taken away with it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from circuitfind.circuit.backup import stand_ins, stood_in_for, with_backups, without
from circuitfind.circuit.graph import Backup, Circuit
from circuitfind.errors import UsageError
from circuitfind.names import parse_node
from tests.output.circuits import GPT2, GROUPED, make

EDGES = ["input->a0.h1<v>", "a0.h1->a9.h9<q>", "a9.h9->logits"]
HEADS = ("a9.h6", "a9.h9")


def backup(
    name: str, kind: str = "backup", reader: str = "logits", covers: tuple[str, ...] = HEADS
) -> Backup:
    return Backup(parse_node(name), kind, tuple(map(parse_node, covers)), reader, 0.25)


def circuit(*backups: Backup, edges: list[str] = EDGES) -> Circuit:
    return make(edges, GPT2, backups=backups, roles={"a10.h2": "backup name mover"})


def test_written_and_read() -> None:
    found = circuit(
        backup("a10.h2"), backup("a11.h10", "relief"), backup("a8.h1", reader="a9.h9<q>", covers=("a7.h3",))
    )
    data = json.loads(json.dumps(found.as_dict()))
    assert data["backups"][0] == {
        "name": "a10.h2",
        "kind": "backup",
        "covers": ["a9.h6", "a9.h9"],
        "reader": "logits",
        "share": 0.25,
        "role": "backup name mover",
    }
    again = Circuit.from_dict(data)
    assert again.backups == found.backups
    assert again.as_dict() == data
    assert again.roles == {"a10.h2": "backup name mover"}


def test_an_older_file_has_none() -> None:
    data = circuit(backup("a10.h2")).as_dict()
    del data["backups"]
    assert Circuit.from_dict(data).backups == ()


def test_they_are_no_part_of_the_circuit() -> None:
    plain, found = circuit(), circuit(backup("a10.h2"))
    assert found.nodes == plain.nodes
    assert found.edges == plain.edges
    assert np.array_equal(found.mask, plain.mask)


@pytest.mark.parametrize("wrong", [{"name": "a10.h99"}, {"covers": ["a99.h0"]}, {"covers": 3}, {"name": "x"}])
def test_a_wrong_one_is_refused(wrong: dict[str, object]) -> None:
    data = circuit(backup("a10.h2")).as_dict()
    data["backups"][0] |= wrong
    with pytest.raises(UsageError):
        Circuit.from_dict(data)


def test_what_is_stood_in_for() -> None:
    (group,) = stood_in_for(circuit(backup("a10.h2"), backup("a10.h6"), backup("a11.h10", "relief")))
    assert [str(n) for n in group.nodes] == ["a9.h6"], "a9.h9 is in the circuit"
    assert [str(n) for n in group.backups] == ["a10.h2", "a10.h6"]
    assert stood_in_for(circuit(backup("a11.h10", "relief"))) == ()


def test_they_join_the_circuit() -> None:
    found = circuit(backup("a10.h2"), backup("a11.h10", "relief"))
    assert [str(b.node) for b in stand_ins(found)] == ["a10.h2"]
    mask = with_backups(found)
    new = {str(GPT2.edge_at(int(w), int(r))) for w, r in np.argwhere(mask & ~found.mask)}
    assert "a10.h2->logits" in new
    assert {f"{w}->a10.h2<{slot}>" for w in ("input", "a0.h1", "a9.h9") for slot in "qkv"} == new - {
        "a10.h2->logits"
    }


def test_one_whose_reader_is_elsewhere_does_not_join() -> None:
    found = circuit(backup("a8.h1", reader="a10.h0<q>", covers=("a7.h3",)))
    assert np.array_equal(with_backups(found), found.mask)


def test_keys_of_grouped_heads() -> None:
    found = make(["input->logits"], GROUPED, backups=(backup("a1.h3", covers=("a0.h0",)),))
    mask = with_backups(found)
    assert mask[0, GROUPED.reader_index["a1.kv1<k>"]]


def test_without() -> None:
    found = circuit(backup("a10.h2"))
    rest, less = without(found), without(found, found.backups)
    assert not (rest & found.mask).any()
    assert rest.sum() == GPT2.n_edges - len(found.edges)
    assert not less[GPT2.row_of("a10.h2")].any()
    assert (rest & ~less).sum() == rest[GPT2.row_of("a10.h2")].sum()
