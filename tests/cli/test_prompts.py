"""``circuitfind prompts``: check, show, suggest; on the trained model that is embedded, and on tokenizers alone."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from circuitfind.config import MODELS_VARIABLE
from tests.cli.helpers import Cli, Toy

TEXT = "When Mary and John went to the store, John gave a drink to"
FEW = ("--count", "8")


def models() -> Path:
    """The folder of local models."""
    named = os.environ.get(MODELS_VARIABLE)
    if not named or not Path(named).is_dir():
        pytest.skip(f"{MODELS_VARIABLE} is not set")
    return Path(named)


def bad_task(folder: Path) -> Path:
    """Two changes at once, an answer that never changes, a duplicate, and a pair of two lengths."""
    pairs = [
        {"clean": f"When {a} and {b} went to the {p}, {b} gave a drink to",
         "corrupted": f"When {a} and {b} went to the zoo, {a} gave a drink to", "answer": " Mary", "wrong": " John"}
        for a, b in (("Mary", "John"), ("Mary", "Tom"), ("Mary", "Paul"))
        for p in ("store", "park", "school")
    ]  # fmt: skip
    pairs += [pairs[0], {**pairs[1], "corrupted": pairs[1]["corrupted"] + " the"}]
    path = folder / "bad.yaml"
    path.write_text(json.dumps({"name": "bad", "prompts": {"pairs": pairs}}, indent=1), encoding="utf-8")
    return path


def test_good_prompts_pass_a_strict_check(cli: Cli) -> None:
    found = cli.good("prompts", "check", "ioi", *FEW, "--strict")
    assert "0 warnings" in found.out
    assert "one stretch of tokens in 8 of 8 pairs" in found.out
    assert "accuracy      100 %; the corrupted prompt turns the answer round in 100 %" in found.out
    data = cli.good("prompts", "check", "ioi", *FEW, "--json").json
    assert data["ok"]
    assert data["run"]
    assert [one["code"] for one in data["advice"]] == ["positions-before-the-change"]
    assert all(row["flips"] and len(row["differs"]) == 1 for row in data["pairs"])
    assert data["totals"]["flipped"] == 1
    assert 0 <= data["totals"]["without_context"] <= 1


def test_bad_prompts_are_told_with_lines_and_remedies(cli: Cli) -> None:
    path = bad_task(cli.folder)
    found = cli.good("prompts", "check", path)
    codes = [line.split(":")[0] for line in found.out.splitlines() if line.startswith(("warning ", "note "))]
    assert {"warning lengths", "warning several-changes", "warning duplicates", "warning one-answer"} <= set(
        codes
    )
    assert "bad.yaml:" in found.out
    assert "-> " in found.out
    strict = cli("prompts", "check", path, "--strict", "--json")
    assert strict.code == 1
    assert not strict.json["ok"]
    duplicates = next(one for one in strict.json["advice"] if one["code"] == "duplicates")
    assert duplicates["pairs"] == [9]
    assert duplicates["where"][0].startswith("bad.yaml:")


def test_a_counterfactual_that_does_nothing_and_an_answer_that_needs_no_context(cli: Cli) -> None:
    # The change is of a place that says nothing; the names stand behind it.
    pairs = [
        {
            "clean": f"At the {p}. {TEXT}",
            "corrupted": f"At the {q}. {TEXT}",
            "answer": " Mary",
            "wrong": " John",
        }
        for p, q in itertools.permutations(("store", "park", "school", "zoo"), 2)
    ]
    pairs += [
        {
            key: value.replace("Mary", "?").replace("John", "Mary").replace("?", "John")
            for key, value in pair.items()
        }
        for pair in pairs
    ]
    path = cli.folder / "idle.yaml"
    path.write_text(json.dumps({"name": "idle", "prompts": {"pairs": pairs}}), encoding="utf-8")
    data = cli.good("prompts", "check", path, "--json").json
    codes = {one["code"]: one for one in data["advice"]}
    assert {"same-answer", "no-effect", "low-accuracy", "leakage"} <= set(codes)
    assert data["totals"]["without_context"] == 1
    assert data["totals"]["flipped"] < 0.5
    for pair in pairs:
        place, other = (pair[side].split()[2].rstrip(".") for side in ("clean", "corrupted"))
        text = pair["clean"].split(". ")[1]
        pair |= {"clean": text.replace("store", place), "corrupted": text.replace("store", other)}
    path.write_text(json.dumps({"name": "idle", "prompts": {"pairs": pairs}}), encoding="utf-8")
    weak = {one["code"] for one in cli.good("prompts", "check", path, "--json").json["advice"]}
    assert "weak-counterfactual" in weak
    assert "low-accuracy" not in weak


def test_pairs_are_shown_token_under_token(cli: Cli) -> None:
    lines = cli.good("prompts", "show", "ioi", "--pair", "3", "--width", "200").out.splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("  clean"))
    names, clean, corrupted, marks = lines[row - 1 : row + 3]
    assert names.split() == ["S1", "IO", "S2", "END"]
    at = marks.index("^")
    assert clean.split()[1:11] == corrupted.split()[1:11]
    assert clean.split()[11] != corrupted.split()[11]
    assert clean.split()[12:] == corrupted.split()[12:]
    assert names[at:].startswith("S2")
    assert clean[at:].startswith("·")
    narrow = cli.good("prompts", "show", "ioi", "--pair", "3", "--width", "40").out.splitlines()
    assert max(len(line) for line in narrow if line.startswith("  ")) <= 42
    assert sum(line.startswith("  clean") for line in narrow) > 2
    data = cli.good("prompts", "show", "ioi", "--count", "2", "--json").json
    assert data["total"] == 64
    first = data["pairs"][0]
    assert [
        i for i, (a, b) in enumerate(zip(first["clean"], first["corrupted"], strict=True)) if a != b
    ] == first["differs"]
    assert first["answer"][0].startswith(" ")


def test_prompts_of_token_ids_and_vocab(cli: Cli, toy: Toy) -> None:
    found = cli.good("prompts", "show", toy.task())
    assert "w1" in found.out
    planted = cli.good("prompts", "check", "and-gate", *FEW)
    assert "and-gate for planted/and-gate" in planted.out


def test_suggestions_are_ranked_and_become_a_task(cli: Cli) -> None:
    data = cli.good(
        "prompts", "suggest", TEXT, "--change", "John", "--to", "mine.yaml", "--count", "4", "--json"
    ).json
    (prompt,) = data["prompts"]
    assert prompt["answer"] == " Mary"
    words = [one["word"] for one in prompt["suggestions"]]
    assert words[0] == "Mary", "swapping two words of the prompt goes first"
    for one in prompt["suggestions"]:
        assert one["tokens"] == prompt["tokens"] == 1
        assert one["text"] == TEXT.replace(", John", f", {one['word']}")
        assert one["turns"] is (one["clean"] > 0 > one["corrupted"])
    assert data["pairs"] == 8
    cli.good("validate", "mine.yaml", "-q")
    checked = cli.good("prompts", "check", "mine.yaml", "--json").json
    assert checked["totals"]["pairs"] == 8
    assert checked["totals"]["one_change"] == 8
    assert checked["totals"]["flipped"] == 1
    clean, swapped = checked["pairs"][:2]
    assert (clean["clean"], clean["corrupted"]) == (swapped["corrupted"], swapped["clean"])
    cli.fails(
        2, "prompts", "suggest", TEXT, "--change", "John", "--to", "mine.yaml", says=("is there already",)
    )


def test_suggestions_for_a_task_come_from_its_slot(cli: Cli) -> None:
    words = (
        "prompts",
        "suggest",
        "ioi",
        "--change",
        "B",
        "--prompts",
        "2",
        "--count",
        "3",
        "--to",
        "more.yaml",
    )
    data = cli.good(*words, "--json").json
    assert len(data["prompts"]) == 2
    sources = {one["from"] for prompt in data["prompts"] for one in prompt["suggestions"]}
    assert sources <= {"the prompt", "the slot"}
    assert data["pairs"] == 12
    assert "Mary" not in cli.good(*words, "--force").err


def test_suggestions_from_the_model_and_from_a_file(cli: Cli) -> None:
    (prompt,) = cli.good(
        "prompts", "suggest", TEXT, "--change", "store", "--from", "model", "--count", "5", "--json"
    ).json["prompts"]
    assert len(prompt["suggestions"]) == 5
    assert {one["from"] for one in prompt["suggestions"]} == {"the model"}
    assert all(one["word"].islower() for one in prompt["suggestions"])
    (cli.folder / "words.txt").write_text("castle\nMississippi river\n", encoding="utf-8")
    words = (
        "prompts",
        "suggest",
        "They went to the {store} to",
        "--words",
        "words.txt",
        "--from",
        "text",
        "--no-run",
    )
    (prompt,) = cli.good(*words, "--json").json["prompts"]
    assert [one["word"] for one in prompt["suggestions"]] == ["castle"]
    assert prompt["refused"] == 1
    assert prompt["suggestions"][0]["turns"] is None
    cli.fails(2, *words, "--to", "x.yaml", says=("answers to both prompts",))
    cli.good(*words, "--to", "x.yaml", "--answer", " Mary", "--wrong", " John")


@pytest.mark.parametrize("name", ["stories260k", "gpt2-tokenizer"])
def test_other_tokenizers(cli: Cli, name: str) -> None:
    model = models() / name
    found = cli.good(
        "prompts", "suggest", "One day {Tom} saw a", "--model", model, "--count", "3", "--json"
    ).json
    assert found["run"] is (name == "stories260k")
    (prompt,) = found["prompts"]
    assert prompt["suggestions"]
    assert all(one["tokens"] == prompt["tokens"] for one in prompt["suggestions"])
    if name == "stories260k":
        words = ("prompts", "suggest", "Once there was a {girl} named", "--model", model, "--from", "model")
        assert {
            one["tokens"] for p in cli.good(*words, "--json").json["prompts"] for one in p["suggestions"]
        } == {3}
        return
    checked = cli.good("prompts", "check", "ioi", "--model", model, *FEW)
    assert "not run: gpt2-tokenizer holds a tokenizer and no model" in checked.err
    cli.fails(2, "prompts", "check", "ioi", "--model", model, "--run", says=("cannot be run",))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("chek", "ioi"), ("did you mean 'check'",)),
        (("check", "ioix"), ("did you mean 'ioi'",)),
        (("check", "ioi", "--counterfactual", "s2flip"), ("did you mean 's2-flip'",)),
        (("check", "ioi", "--count", "0"), ("give at least 1",)),
        (("show", "ioi", "--pair", "99", "--model", "mini"), ("counted from 1 to 64",)),
        (("show", "ioi", "--width", "5"), ("--width 20",)),
        (("show", "ioi", "--count", "0"), ("--count 1",)),
        (("suggest", TEXT), ("nothing says which word",)),
        (("suggest", TEXT, "--change", "Jon"), ("did you mean 'John'",)),
        (("suggest", TEXT, "--change", "John", "--occurrence", "x"), ("--occurrence",)),
        (("suggest", TEXT, "--change", "John", "--to", "a.txt"), ("a.yaml",)),
        (("suggest", TEXT, "--change", "John", "--seed", "1"), ("--seed is for tasks",)),
        (("suggest", "ioi", "--change", "Q", "--no-run"), ("no slot",)),
        (("suggest", "and-gate", "--change", "A"), ("token ids",)),
        (("suggest", TEXT, "--change", "John", "--from", "model", "--no-run"), ("need the model",)),
        (("suggest", TEXT, "--change", "John", "--words", "none.txt"), ("no word list",)),
    ],
)
def test_wrong_words_are_told(cli: Cli, words: tuple[str, ...], says: tuple[str, ...]) -> None:
    cli.fails(2, "prompts", *words, says=says)


def test_a_broken_task_is_no_traceback(cli: Cli) -> None:
    path = cli.folder / "broken.yaml"
    path.write_text("name: x\nprompts: {pairs: []}\n", encoding="utf-8")
    for command in ("check", "show"):
        cli.fails(2, "prompts", command, path, says=("broken.yaml",))
