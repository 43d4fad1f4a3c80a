"""The file of labels: whose they are, edits that keep what people wrote, and damage that is told with its line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from circuitfind.errors import UsageError
from circuitfind.names import parse_node
from circuitfind.output.labels import FILE, Labels, Owner

OWN = Owner("mini", "a" * 64, "/some where/transcoders", "c" * 64)
OTHER_SET = Owner("mini", "a" * 64, "others", "d" * 64)
OTHER_MODEL = Owner("mini", "b" * 64, "transcoders", "c" * 64)
PLAIN = Owner("mini", "a" * 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE


def put(path: Path, name: str, text: str, owner: Owner = OWN) -> Labels:
    return Labels(path).set(owner, parse_node(name), text)


def drop(path: Path, name: str, owner: Owner = OWN) -> Labels:
    return Labels(path).remove(owner, parse_node(name))


def test_labels_come_back_in_the_order_of_the_model(path: Path) -> None:
    put(path, "m1.n203", "the second name")
    put(path, "9.6", "name mover")
    put(path, "t2.f88", "months")
    put(path, "m1.n3+17", "digits together")
    wanted = {
        "m1.n3+17": "digits together",
        "m1.n203": "the second name",
        "t2.f88": "months",
        "a9.h6": "name mover",
    }
    assert list(Labels(path).of(OWN).items()) == list(wanted.items())
    assert yaml.safe_load(path.read_text())["mini@aaaaaaaaaaaa transcoders@cccccccccccc"] == {
        "t2.f88": "months"
    }


def test_a_label_is_never_shown_for_another_model_or_set(path: Path) -> None:
    put(path, "t2.f88", "months")
    put(path, "t2.err", "what is missed")
    put(path, "m1.n203", "the second name")
    assert set(Labels(path).of(OWN)) == {"t2.f88", "t2.err", "m1.n203"}
    assert Labels(path).of(OTHER_MODEL) == {}, "the same dictionaries of other weights are others"
    assert Labels(path).of(OTHER_SET) == {"m1.n203": "the second name"}
    assert Labels(path).of(PLAIN) == {"m1.n203": "the second name"}
    put(path, "t2.f88", "another", OTHER_SET)
    assert Labels(path).of(OWN)["t2.f88"] == "months"
    with pytest.raises(UsageError, match="says of none") as caught:
        put(path, "t2.f88", "months", PLAIN)
    assert "--dictionaries" in caught.value.hint


def test_the_name_of_a_model_does_not_matter_its_hash_does(path: Path) -> None:
    put(path, "m1.n3", "digits")
    renamed = Owner("my copy of it", "a" * 64)
    assert Labels(path).of(renamed) == {"m1.n3": "digits"}
    put(path, "m1.n4", "months", renamed)
    assert len(yaml.safe_load(path.read_text())) == 1


BY_HAND = """\
# my notes

mini@aaaaaaaaaaaa0123:   # of the paper
    # all found by hand
    m1.n3: digits        # sure
    m1.n5: >
      a label
      over lines
    # the next one is doubtful
    L0H2: 'it''s a head'

other@eeeeeeeeeeee:
    a0.h0: untouched
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m1.n3", "new words"),
        ("m1.n5", "one line now"),
        ("m1.n7", "a new one"),
        ("a0.h2", "yes"),
        ("m1.n9", "# no comment: 'quoted' [x] é"),
    ],
)
def test_an_edit_keeps_what_people_wrote(path: Path, name: str, text: str) -> None:
    path.write_text(BY_HAND)
    before = Labels(path).of(OWN)
    assert before == {"a0.h2": "it's a head", "m1.n3": "digits", "m1.n5": "a label over lines"}
    after = put(path, name, text).of(OWN)
    assert after == {**before, name: text}
    written = path.read_text()
    for comment in (
        "# my notes",
        "# of the paper",
        "# all found by hand",
        "# sure",
        "# the next one is doubtful",
    ):
        assert comment in written
    kept = [line for line in BY_HAND.splitlines() if line.strip() and name not in line and "L0H2" not in line]
    inside = ("a label", "over lines")
    assert all(line in written for line in kept if name != "m1.n5" or line.strip() not in inside)
    assert Labels(path).of(Owner("x", "e" * 64)) == {"a0.h0": "untouched"}


@pytest.mark.parametrize("name", ["m1.n3", "m1.n5", "a0.h2"])
def test_a_label_is_taken_away_alone(path: Path, name: str) -> None:
    path.write_text(BY_HAND)
    before = Labels(path).of(OWN)
    after = drop(path, name).of(OWN)
    assert after == {key: value for key, value in before.items() if key != name}
    written = path.read_text()
    assert "# my notes" in written
    assert "a0.h0: untouched" in written


def test_the_last_label_of_a_section_takes_its_heading_along(path: Path) -> None:
    put(path, "m1.n3", "digits")
    put(path, "t2.f88", "months")
    drop(path, "m1.n3")
    assert list(yaml.safe_load(path.read_text())) == ["mini@aaaaaaaaaaaa transcoders@cccccccccccc"]
    drop(path, "t2.f88")
    assert Labels(path).of(OWN) == {}
    put(path, "m1.n3", "digits again")
    assert Labels(path).of(OWN) == {"m1.n3": "digits again"}


@pytest.mark.parametrize(
    "text",
    [
        "mini@aaaaaaaaaaaa: {m1.n3: digits, m1.n4: months}\n",
        "{mini@aaaaaaaaaaaa: {m1.n3: digits, m1.n4: months}}\n",
        "'mini@aaaaaaaaaaaa':\n  'm1.n3': digits\n  m1.n4: months",
        "mini@aaaaaaaaaaaa:\r\n  m1.n3: digits\r\n  m1.n4: months\r\n",
        "\ufeffmini@aaaaaaaaaaaa:\n  m1.n3: digits\n  m1.n4: months\n",
        "---\nmini@aaaaaaaaaaaa:\n  m1.n3: digits\n\nmini@aaaaaaaaaaaa:\n  m1.n4: months\n",
        "mini@aaaaaaaaaaaa:\n  m1.n3: &x digits\n  m1.n4: months\n",
    ],
    ids=["flow", "all-flow", "quoted-no-end", "crlf", "bom", "twice", "anchor"],
)
def test_other_ways_to_write_it_are_edited_too(path: Path, text: str) -> None:
    path.write_bytes(text.encode())
    assert Labels(path).of(OWN) == {"m1.n3": "digits", "m1.n4": "months"}
    assert put(path, "m1.n5", "names").of(OWN) == {"m1.n3": "digits", "m1.n4": "months", "m1.n5": "names"}
    assert put(path, "m1.n3", "numbers").of(OWN)["m1.n3"] == "numbers"
    assert drop(path, "m1.n4").of(OWN) == {"m1.n3": "numbers", "m1.n5": "names"}


@pytest.mark.parametrize(
    "text", ["", "# nothing yet\n", "mini@aaaaaaaaaaaa:\n", "mini@aaaaaaaaaaaa: {}\n", "~\n"]
)
def test_empty_files_and_sections_are_filled(path: Path, text: str) -> None:
    path.write_text(text)
    assert Labels(path).of(OWN) == {}
    assert put(path, "m1.n3", "digits").of(OWN) == {"m1.n3": "digits"}
    assert yaml.safe_load(path.read_text()) == {"mini@aaaaaaaaaaaa": {"m1.n3": "digits"}}
    if "#" in text:
        assert "# nothing yet" in path.read_text()


def test_whatever_is_set_and_removed_the_file_says_it(path: Path) -> None:
    """Random edits, beside a plain mapping."""
    rng = random.Random(0)
    names = ["a0.h1", "m1.n3", "m1.n3+17", "t2.f88", "t2.err", "m2"]
    words = [
        "yes",
        "null",
        "1984",
        "a: b",
        "- x",
        "'",
        '"',
        "# c",
        "é 日本",
        "{x}",
        "back\\slash",
        "x" * 150,
        "@a",
        "m1.n3: y",
    ]
    truth: dict[str, str] = {}
    for step in range(60):
        name = rng.choice(names)
        if name in truth and rng.random() < 0.4:
            drop(path, name)
            del truth[name]
        else:
            truth[name] = rng.choice(words)
            put(path, name, truth[name])
        if step % 7 == 0:  # by hand
            path.write_text(path.read_text() + f"# note {step}\n")
        assert Labels(path).of(OWN) == truth
    assert "# note 56" in path.read_text()


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("mini@aaaaaaaaaaaa:\n  m1.n3: [x\n", 2, "no YAML"),
        ("mini@aaaaaaaaaaaa:\n  m1.n3: a\n m1.n4: b\n", 3, "no YAML"),
        ("mini@aaaaaaaaaaaa:\n\tm1.n3: a\n", 2, "no YAML"),
        ("- a\n", 1, "sections"),
        ("mini:\n  m1.n3: a\n", 1, "names no model"),
        ("mini@xyz:\n  m1.n3: a\n", 1, "names no model"),
        ("\nmini@aaaaaaaaaaaa: words\n", 2, "lines such as"),
        ("mini@aaaaaaaaaaaa:\n  a0.h1: a\n  m1.nx: b\n", 3, "'m1.nx' is not the name of a node"),
        ("mini@aaaaaaaaaaaa:\n  m1.n3: a\n  m1.n3: b\n", 3, "has a label already, on line 2"),
        ("mini@aaaaaaaaaaaa:\n  m1.n3:\n    x: y\n", 2, "one line of text"),
    ],
)
def test_damage_is_told_with_its_line(path: Path, text: str, line: int, says: str) -> None:
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        Labels(path)
    assert caught.value.where == f"{path}:{line}"
    assert caught.value.hint
    assert path.read_text() == text


def test_what_is_no_text_is_told(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no UTF-8"):
        Labels(path)


def test_empty_labels_and_missing_ones_are_told(path: Path) -> None:
    for text in ("", "  \n ", "\x07"):
        with pytest.raises(UsageError, match=r"empty|control characters"):
            put(path, "m1.n3", text)
    with pytest.raises(UsageError, match="has no label"):
        drop(path, "m1.n3")
    assert not path.exists()


def test_a_label_without_words_counts_as_none(path: Path) -> None:
    path.write_text("mini@aaaaaaaaaaaa:\n  m1.n3:\n  m1.n4: months\n")
    assert Labels(path).of(OWN) == {"m1.n4": "months"}
    assert put(path, "m1.n3", "digits").of(OWN) == {"m1.n3": "digits", "m1.n4": "months"}
    assert path.read_text() == "mini@aaaaaaaaaaaa:\n  m1.n3: digits\n  m1.n4: months\n"


def test_nothing_is_left_half_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, "m1.n3", "digits")
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(Exception, match="no space left"):
        put(path, "m1.n3", "numbers")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [FILE]
