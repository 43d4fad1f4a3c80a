"""Backups in a picture."""

from __future__ import annotations

import re

from circuitfind.circuit.graph import Backup, Circuit
from circuitfind.names import parse_node
from circuitfind.output.dot import to_dot
from circuitfind.output.dot_caption import caption_lines
from circuitfind.output.dot_style import NEGATIVE
from tests.output.circuits import GPT2, make
from tests.output.test_dot import edge_lines, heights, needs_dot

EDGES = ["input->a0.h1<v>", "a0.h1->a9.h9<q>", "a9.h9->logits"]


def backup(
    name: str, kind: str = "backup", covers: tuple[str, ...] = ("a9.h6", "a9.h9"), reader: str = "logits"
) -> Backup:
    return Backup(parse_node(name), kind, tuple(map(parse_node, covers)), reader, 0.25)


def circuit(*backups: Backup) -> Circuit:
    return make(EDGES, GPT2, backups=backups)


def node_line(text: str, name: str) -> str:
    (found,) = re.findall(rf'^  "{re.escape(name)}" \[label=.*$', text, flags=re.MULTILINE)
    return str(found)


def test_none_changes_nothing() -> None:
    text = to_dot(circuit())
    assert "style=dashed" not in text
    assert "Dashed" not in text


def test_a_backup_is_dashed_and_says_what_it_backs_up() -> None:
    text = to_dot(circuit(backup("a10.h2")))
    line = node_line(text, "a10.h2")
    assert 'STYLE="ROUNDED,DASHED"' in line
    assert "backs up a9.h6, a9.h9" in line
    assert "PORT=" not in line, "nothing enters it"
    edge = edge_lines(text)["a10.h2->logits"]
    assert (edge["style"], edge["class"]) == ("dashed", "backup")
    assert 'STYLE="ROUNDED"' in node_line(text, "a9.h9")


def test_a_primary_that_was_left_out_is_a_redundant_group() -> None:
    line = node_line(to_dot(circuit(backup("a10.h2"))), "a9.h6")
    assert "redundant group" in line
    assert "backed up by a10.h2" in line
    assert "DASHED" in line


def test_dotted_lines_lead_to_what_is_covered() -> None:
    text = to_dot(circuit(backup("a10.h2")))
    lines = re.findall(
        r'^  "([^"]+)" -> "([^"]+)" \[style=dotted.*class=covers\];$', text, flags=re.MULTILINE
    )
    assert lines == [("a9.h6", "a10.h2"), ("a9.h9", "a10.h2")]
    many = to_dot(circuit(*(backup(f"a10.h{i}") for i in range(8))))
    assert many.count("class=covers") == 8, "one line each, where two would be clutter"


def test_relief_has_the_colour_of_what_hinders() -> None:
    text = to_dot(circuit(backup("a11.h10", "relief", ("a9.h9",))))
    line = node_line(text, "a11.h10")
    assert f'COLOR="{NEGATIVE}"' in line
    assert "lets go without a9.h9" in line
    assert edge_lines(text)["a11.h10->logits"]["color"].startswith(NEGATIVE)


def test_an_edge_of_the_circuit_is_not_drawn_twice() -> None:
    found = circuit(backup("a9.h9", covers=("a8.h0",)))
    assert to_dot(found).count('"a9.h9":n -> "logits":s') == 1


def test_a_reader_that_is_not_in_the_picture_has_no_edge() -> None:
    text = to_dot(circuit(backup("a8.h1", reader="a10.h0<q>", covers=("a7.h3",))))
    assert "class=backup" not in text


def test_the_caption_says_what_dashed_means() -> None:
    assert caption_lines(circuit(backup("a10.h2")))[-1].startswith(
        "Dashed: what stands in when others are removed (not counted in the faithfulness)"
    )
    inside = circuit(backup("a9.h9", covers=("a0.h1",)))
    assert "(counted in the faithfulness)" in caption_lines(inside)[-1]
    assert "lets go works against the answer" in caption_lines(circuit(backup("a11.h10", "relief")))[-1]


@needs_dot
def test_a_backup_stands_in_the_rank_of_its_layer() -> None:
    found = heights(to_dot(circuit(backup("a10.h2"), backup("m10", covers=("a9.h9",)))))
    assert found["a9.h6"] == found["a9.h9"] < found["a10.h2"] < found["m10"] < found["logits"]
