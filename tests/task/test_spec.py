"""Task files: what is read, and what is said about files that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from circuitfind.errors import TaskError
from circuitfind.task.spec import TaskSpec, find_tasks, json_schema, load_task, template

Write = Callable[..., Path]

GOOD = """\
name: good
model: mini
prompts:
  templates:
    - clean: "When {A} and {B} met, {B} spoke to"
      corrupted: "When {A} and {B} met, {A} spoke to"
      answer: " {A}"
      wrong: " {B}"
  slots:
    A: [Mary, John, Anna]
    B: [Mary, John, Anna]
  distinct: [[A, B]]
  count: 3
positions:
  S2: {slot: B, occurrence: 2}
metric: logit-diff
"""


def replaced(old: str, new: str) -> str:
    """The good task with one thing changed."""
    assert old in GOOD
    return GOOD.replace(old, new)


def test_good_task_is_read(write: Write) -> None:
    spec = load_task(write(GOOD))
    assert spec.name == "good"
    assert (spec.count, spec.seed, spec.counterfactuals) == (3, 0, ("corrupted",))
    assert (spec.ablation, spec.direction, spec.mean_over, spec.min_accuracy) == (
        "resample",
        "noising",
        "both",
        0.75,
    )
    assert spec.where("prompts", "count").endswith("task.yaml:13 (prompts.count)")
    assert spec.place("prompts", "templates", 0).endswith("task.yaml:5")


# name: (file, line, key path, what it says, hint)
BAD = {
    "unknown key": (replaced("model: mini", "modle: mini"), 2, "modle", "unknown key 'modle'", "'model'"),
    "unknown nested key": (
        replaced("  count: 3", "  cuont: 3"),
        13,
        "prompts.cuont",
        "unknown key 'cuont'",
        "'count'",
    ),
    "unknown key in a list": (
        replaced('      wrong: " {B}"', '      wrong: " {B}"\n      weigth: 2'),
        9,
        "prompts.templates[0].weigth",
        "unknown key 'weigth'",
        "'weight'",
    ),
    "underscore for hyphen": (
        GOOD + "min_accuracy: 0.5\n",
        17,
        "min_accuracy",
        "unknown key",
        "'min-accuracy'",
    ),
    "missing name": (replaced("name: good\n", ""), 1, "", "the key 'name' is missing", "name: ..."),
    "missing nested key": (
        replaced('      answer: " {A}"\n', ""),
        5,
        "prompts.templates[0]",
        "the key 'answer' is missing in 'prompts.templates[0]'",
        "answer: ...",
    ),
    "number for text": (
        replaced("model: mini", "model: 7"),
        2,
        "model",
        "should be text, is a number (7)",
        '"7"',
    ),
    "octal trap": (
        replaced("A: [Mary, John", "A: [010, John"),
        10,
        "prompts.slots.A[0]",
        "should be text, is a number (010)",
        '"010"',
    ),
    "text for number": (
        replaced("count: 3", 'count: "3"'),
        13,
        "prompts.count",
        "a whole number, is text",
        "whole",
    ),
    "zero count": (replaced("count: 3", "count: 0"), 13, "prompts.count", "is 0, must be >= 1", ">= 1"),
    "list for mapping": (
        replaced("  S2: {slot: B, occurrence: 2}", "  []"),
        14,
        "positions",
        "should be a mapping of keys to values, is a list",
        "mapping",
    ),
    "empty templates": (
        replaced(GOOD[GOOD.index("    - clean") : GOOD.index("  slots")], "    []\n"),
        4,
        "prompts.templates",
        "is empty",
        "write something",
    ),
    "unknown metric": (
        replaced("logit-diff", "logitdiff"),
        16,
        "metric",
        "'logitdiff' is none of logit-diff, prob-diff, log-prob, kl, accuracy",
        "'logit-diff'",
    ),
    "accuracy out of range": (GOOD + "min-accuracy: 75\n", 17, "min-accuracy", "is 75, must be <= 1", "<= 1"),
    "name with blanks": (
        replaced("name: good", "name: my task"),
        1,
        "name",
        "'my task' has characters",
        "match",
    ),
    "unknown slot": (
        replaced('answer: " {A}"', 'answer: " {AA}"'),
        7,
        "prompts.templates[0].answer",
        "no slot is named 'AA'",
        "'A'",
    ),
    "open brace": (
        replaced("met, {B} spoke", "met, {B spoke"),
        5,
        "prompts.templates[0].clean",
        "belongs to no slot",
        "{{",
    ),
    "unknown distinct": (
        replaced("[[A, B]]", "[[A, C]]"),
        12,
        "prompts.distinct[0]",
        "no slot is named 'C'",
        "known: A, B",
    ),
    "position of unknown slot": (
        replaced("{slot: B, occ", "{slot: BB, occ"),
        15,
        "positions.S2",
        "template 1 has no slot 'BB'",
        "'B'",
    ),
    "position past the last": (
        replaced("occurrence: 2", "occurrence: 3"),
        15,
        "positions.S2",
        "has the slot 'B' 2 times",
        "1 to 2",
    ),
    "unknown answer position": (
        GOOD + "answer-position: S3\n",
        17,
        "answer-position",
        "no position is named 'S3'",
        "'S2'",
    ),
    "value twice": (
        replaced("A: [Mary, John, Anna]", "A: [Mary, John, Mary]"),
        10,
        "prompts.slots.A",
        "lists 'Mary' more than once",
        "once",
    ),
    "two sources": (
        replaced("  count: 3", "  count: 3\n  file: x.csv"),
        3,
        "prompts",
        "needs exactly one of templates, pairs, file, dataset and zoo, has templates and file",
        "",
    ),
    "no source": (
        "name: x\nprompts: {count: 3}\n",
        2,
        "prompts",
        "needs exactly one of templates, pairs, file, dataset and zoo, has none",
        "",
    ),
    "slots beside a file": (
        "name: x\nprompts:\n  file: a.csv\n  seed: 3\n",
        2,
        "prompts",
        "'seed' mean nothing beside 'file'",
        "",
    ),
    "not a head": (
        GOOD + "known:\n  gpt2:\n    heads: [a9.h9, m4]\n",
        19,
        "known.gpt2.heads[1]",
        "'m4' is not an attention head",
        "a9.h6",
    ),
    "head as a number": (
        GOOD + "known: {gpt2: {heads: [9.9]}}\n",
        17,
        "known.gpt2.heads[0]",
        "should be text, is a number (9.9)",
        '"9.9"',
    ),
    "not an edge": (
        GOOD + "known: {gpt2: {edges: [a9.h9->a10.h0]}}\n",
        17,
        "known.gpt2.edges[0]",
        "'a9.h9->a10.h0' is not the name of an edge",
        "<q>",
    ),
    "empty range": (
        GOOD + "expect: {mini: {edges: {min: 3, max: 1}}}\n",
        17,
        "expect.mini.edges",
        "min is greater than max",
        "",
    ),
    "boolean word": (
        replaced("A: [Mary, John, Anna]", "A: [Mary, no, Anna]"),
        10,
        "prompts.slots.A[1]",
        "YAML reads the word no as false",
        '"no"',
    ),
    "boolean key": (
        replaced("  slots:\n", "  slots:\n    on: [x]\n"),
        10,
        "prompts.slots.on",
        "YAML reads the word on as true",
        '"on"',
    ),
    "duplicate key": (
        GOOD + "model: gpt2\n",
        17,
        "model",
        "the key 'model' is given twice, on lines 2 and 17",
        "one of them",
    ),
    "broken yaml": (
        replaced("[Mary, John, Anna]\n    B", "[Mary, John, Anna\n    B"),
        11,
        "",
        "broken YAML",
        "quotes",
    ),
    "tab": (replaced("model: mini", "\tmodel: mini"), 2, "", "broken YAML", "tabs"),
    "empty file": ("", 1, "", "is empty", "circuitfind init"),
    "a list": ("- a\n- b\n", 1, "", "this is none", "circuitfind init"),
    "refers to itself": ("name: x\nprompts: &p\n  pairs: [*p]\n", None, "", "refers to itself", "alias"),
    "different counterfactuals": (
        (
            "name: x\nprompts:\n  pairs:\n"
            "    - {clean: a b, corrupted: {flip: b b}, answer: a, wrong: b}\n"
            "    - {clean: a b, corrupted: {flop: b b}, answer: a, wrong: b}\n"
        ),
        5,
        "prompts.pairs[1].corrupted",
        "has the counterfactuals flop, but the first has flip",
        "same names",
    ),
    "slot position without templates": (
        (
            "name: x\nprompts:\n  pairs: [{clean: a, corrupted: b, answer: a, wrong: b}]\n"
            "positions:\n  S: {slot: A}\n"
        ),
        5,
        "positions.S",
        "only templates have slots",
        "index",
    ),
    "empty inline prompt": (
        'name: x\nprompts:\n  pairs:\n    - {clean: "", corrupted: b, answer: a, wrong: b}\n',
        4,
        "prompts.pairs[0].clean",
        "is empty",
        "",
    ),
    "negative token id": (
        "name: x\nprompts:\n  pairs:\n    - {clean: [1, -2], corrupted: [1, 2], answer: 1, wrong: 2}\n",
        4,
        "prompts.pairs[0].clean[1]",
        "is -2, must be >= 0",
        "",
    ),
    "comparison with words": (
        replaced('answer: " {A}"', "answer: {from: A, above: B}"),
        7,
        "prompts.templates[0].answer.above",
        "compares numbers, and 'A' has 'Mary', 'John', 'Anna'",
        "numbers",
    ),
    "rule without comparison": (
        replaced('answer: " {A}"', "answer: {from: A}"),
        7,
        "prompts.templates[0].answer",
        "not what",
        "",
    ),
    "rows of different keys": (
        replaced("  count: 3", "  count: 3\n  rows:\n    - {X: a, Y: b}\n    - {X: a}"),
        16,
        "prompts.rows[1]",
        "has the keys X, but the first row has X, Y",
        "same keys",
    ),
    "slot name with a blank": (
        replaced("  slots:\n", "  slots:\n    A B: [x]\n"),
        10,
        "prompts.slots.A B",
        "'A B' has characters that a name may not have",
        "match",
    ),
    "number as a name": (
        replaced("  S2: {", "  2: {"),
        15,
        "positions.2",
        "should be text, is a number (2)",
        "",
    ),
    "word twice in vocab": (GOOD + "vocab: [a, b, a]\n", 1, "", "'vocab' lists a word twice", ""),
}


@pytest.mark.parametrize(("text", "line", "key", "what", "hint"), BAD.values(), ids=list(BAD))
def test_bad_file(write: Write, text: str, line: int | None, key: str, what: str, hint: str) -> None:
    path = write(text)
    with pytest.raises(TaskError) as caught:
        load_task(path)
    error = caught.value
    assert what in error.what
    assert hint in error.hint
    assert error.where is not None
    if line is not None:
        assert error.where.startswith(f"{path}:{line}")
    assert (f"({key})" if key else "task.yaml") in error.where
    assert error.exit_code == 2


def test_all_problems_are_listed_in_the_order_of_the_file(write: Write) -> None:
    path = write(
        replaced("model: mini", "modle: 3")
        .replace("logit-diff", "lodit-diff")
        .replace("count: 3", "count: x")
    )
    with pytest.raises(TaskError) as caught:
        load_task(path)
    error = caught.value
    places = [str(error.where), *error.details]
    assert [int(place.removeprefix(f"{path}:").split()[0].rstrip(":")) for place in places] == [2, 13, 16]


def test_missing_file_names_the_nearest(write: Write) -> None:
    write(GOOD, "greater.yaml")
    path = write(GOOD).parent / "graeter.yaml"
    with pytest.raises(TaskError, match=r"no task file at .*graeter\.yaml") as caught:
        load_task(path)
    assert "greater.yaml" in caught.value.hint


def test_binary_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(TaskError, match="no UTF-8"):
        load_task(tmp_path / "x.yaml")
    (tmp_path / "y.yaml").mkdir()
    with pytest.raises(TaskError, match="cannot read"):
        load_task(tmp_path / "y.yaml")


def test_a_name_with_an_ending_that_is_no_file(write: Write) -> None:
    folder = write(GOOD, "mine.yaml").parent
    with pytest.raises(TaskError, match=r"no task file at 'mine\.yaml'") as caught:
        load_task("mine.yaml", [folder])
    assert "write 'mine'" in caught.value.hint


def test_a_task_survives_json(write: Write) -> None:
    for text in (GOOD, template()):
        spec = load_task(write(text))
        dumped = spec.model_dump_json(by_alias=True)
        assert TaskSpec.model_validate_json(dumped).model_dump_json(by_alias=True) == dumped


def test_aliases_cannot_blow_up(write: Write) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(TaskError, match="nested too deeply or refers to itself"):
        load_task(write("\n".join(lines)))


def test_unknown_task_names_the_nearest(write: Write) -> None:
    folder = write(GOOD, "greater-than.yaml").parent
    with pytest.raises(TaskError, match="no task is named 'greater-then'") as caught:
        load_task("greater-then", [folder])
    assert "'greater-than'" in caught.value.hint
    assert str(folder) in caught.value.details[0]


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, model in (("env", "a"), ("here/tasks", "b")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "mine.yaml").write_text(GOOD.replace("model: mini", f"model: {model}"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CIRCUITFIND_TASKS", str(tmp_path / "env"))
    assert load_task("mine").model == "a"
    monkeypatch.delenv("CIRCUITFIND_TASKS")
    assert load_task("mine").model == "b"
    found = find_tasks()
    assert "ioi" in found, "tasks that come with the package are found from anywhere"
    assert list(found) == sorted(found)


def test_template_for_init_loads(write: Write) -> None:
    spec = load_task(write(template(), "my-task.yaml"))
    assert spec.name == "my-task"
    assert spec.counterfactuals == ("flip", "other-names")


def test_names_of_known_heads_are_normalised(write: Write) -> None:
    spec = load_task(write(GOOD + 'known: {gpt2: {heads: ["9.9", L10H0], roles: {mover: ["9.9"]}}}\n'))
    assert spec.known["gpt2"].heads == ("a9.h9", "a10.h0")


def test_schema_describes_every_key() -> None:
    schema = json_schema()
    assert schema["title"] == "circuitfind task"
    assert "answer-position" in schema["properties"]
    for model in [schema, *schema["$defs"].values()]:
        for key, field in model.get("properties", {}).items():
            assert field.get("description"), f"{model['title']}.{key} has no description"
    json.dumps(schema)
