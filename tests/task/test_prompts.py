"""From a task to pairs: drawing, counterfactuals, values left out, positions, pairs that do not line up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from circuitfind.errors import PromptError, TaskError
from circuitfind.task.prompts import PromptPairs, make_pairs
from circuitfind.task.spec import TaskSpec, load_task

Write = Callable[..., Path]
Make = Callable[..., PromptPairs]

IOI = """\
name: small
prompts:
  templates:
    - clean: "When {A} and {B} met, {B} spoke to"
      corrupted:
        flip: "When {A} and {B} met, {A} spoke to"
        abc: "When {C} and {D} met, {E} spoke to"
      answer: " {A}"
      wrong: " {B}"
    - name: reversed
      clean: "Then {B} and {A} met, and {B} spoke to"
      corrupted:
        abc: "Then {D} and {C} met, and {E} spoke to"
        flip: "Then {B} and {A} met, and {A} spoke to"
      answer: " {A}"
      wrong: " {B}"
      weight: 3
  slots:
    A: &names [Mary, John, Anna, Tom, Sue, Bartholomew]
    B: *names
    C: *names
    D: *names
    E: *names
  distinct: [[A, B, C, D, E]]
  count: 30
  seed: 5
positions:
  IO: {slot: A}
  S2: {slot: B, occurrence: 2}
  VERB: {token: " spoke"}
  START: 0
"""

INLINE = """\
name: inline
prompts:
  pairs:
    - {clean: "A girl came.", corrupted: "A boy came.", answer: " She", wrong: " He"}
    - {clean: "A boy came.", corrupted: "A girl came.", answer: " He", wrong: " She", group: boys}
"""


@pytest.fixture
def task(write: Write) -> Callable[[str], TaskSpec]:
    """Loads a task from its text."""
    return lambda text: load_task(write(text))


Task = Callable[[str], TaskSpec]


def test_pairs_are_drawn_and_line_up(task: Task, fake: Any) -> None:
    pairs = make_pairs(task(IOI), fake())
    assert len(pairs) == 30
    assert pairs.counterfactual == "flip"
    assert len({(pair.clean, pair.corrupted) for pair in pairs}) == 30
    assert pairs.notes == ()
    groups = [pair.group for pair in pairs]
    assert set(groups) == {"1", "reversed"}
    assert groups.count("reversed") > groups.count("1"), "weights count"
    for pair in pairs:
        assert len(pair.clean) == len(pair.corrupted)
        first, second = (1, 3) if pair.group == "1" else (3, 1)
        assert pair.positions["IO"] == first
        assert pair.positions["END"] == pair.answer_position == len(pair.clean) - 1
        assert pair.clean[pair.positions["S2"]] == pair.clean[second] != pair.corrupted[pair.positions["S2"]]
        assert (pair.clean[pair.positions["IO"]],) == pair.answer
        assert (pair.clean[second],) == pair.wrong
        assert pair.positions["START"] == 0
        assert pair.clean_text.split()[-2] == "spoke"


def test_where_names_file_line_template_and_pair(task: Task, fake: Any) -> None:
    pair = make_pairs(task(IOI), fake(), count=1)[0]
    template = 1 if pair.group == "1" else 2
    assert pair.where.endswith(f"task.yaml:{4 if template == 1 else 10}, template {template}, pair 1")


def test_the_same_seed_draws_the_same_pairs(task: Task, fake: Any) -> None:
    spec = task(IOI)
    pairs = make_pairs(spec, fake())
    assert make_pairs(spec, fake()).content_hash() == pairs.content_hash()
    assert make_pairs(spec, fake(), seed=6).content_hash() != pairs.content_hash()
    few = make_pairs(spec, fake(), count=10)
    assert [pair.clean_text for pair in few] == [pair.clean_text for pair in pairs][:10]


def test_pairs_do_not_depend_on_the_hash_seed(write: Write) -> None:
    path = write(IOI)
    code = (
        "import sys; from circuitfind.task.prompts import make_pairs, VocabTokenizer\n"
        "from circuitfind.task.spec import load_task\n"
        "words = 'When Then and met, met spoke to Mary John Anna Tom Sue Bartholomew'.split()\n"
        "class Words(VocabTokenizer):\n"
        "    def encode(self, text): return super().encode(text.replace(',', ' '))\n"
        "print(make_pairs(load_task(sys.argv[1]), Words(words)).content_hash())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_counterfactuals_share_their_clean_prompts(task: Task, fake: Any) -> None:
    spec = task(IOI)
    flip, abc = (make_pairs(spec, fake(), counterfactual=name) for name in ("flip", "abc"))
    assert [pair.clean_text for pair in flip] == [pair.clean_text for pair in abc]
    for one, other in zip(flip, abc, strict=True):
        assert (one.answer, one.wrong) == (other.answer, other.wrong)
        assert not set(one.answer + one.wrong) & set(other.corrupted)
    with pytest.raises(TaskError, match="no counterfactual 'flop'") as caught:
        make_pairs(spec, fake(), counterfactual="flop")
    assert "'flip'" in caught.value.hint


def test_values_that_the_tokenizer_splits_are_left_out(task: Task, fake: Any) -> None:
    pairs = make_pairs(task(IOI), fake(split=(" Bartholomew",)))
    assert pairs.left_out == dict.fromkeys("ABCDE", ("Bartholomew",))
    assert not any("Bartholomew" in pair.clean_text + pair.corrupted_text for pair in pairs)
    assert "1 values of A left out" in pairs.notes[0]


def test_too_few_values_are_left_for_distinct(task: Task, fake: Any) -> None:
    with pytest.raises(PromptError, match="must differ, but only 4 values are left") as caught:
        make_pairs(task(IOI), fake(split=(" Bartholomew", " Mary")))
    assert "(prompts.distinct[0])" in str(caught.value.where)


def test_no_value_is_left(task: Task, fake: Any) -> None:
    text = IOI.replace("    C: *names", "    C: [Maximilian, Bartholomew]")
    with pytest.raises(PromptError, match="splits every value of slot C") as caught:
        make_pairs(task(text), fake(split=(" Bartholomew", " Maximilian")))
    assert "task.yaml:21 (prompts.slots.C)" in str(caught.value.where)


def test_any_number_of_tokens_may_be_allowed(task: Task, fake: Any) -> None:
    text = """\
name: cities
prompts:
  templates:
    - {clean: "In {CITY} it is {X}", corrupted: "In {CITY} it is {Y}", answer: " hot", wrong: " cold"}
  slots:
    CITY: {values: [Rome, Marrakesh], tokens: any}
    X: [sunny, bright]
    Y: [grey, dull]
"""
    pairs = make_pairs(task(text), fake(split=(" Marrakesh",)))
    assert {len(pair.clean) for pair in pairs} == {5, 6}
    assert len(pairs) == 8 == len({(pair.clean, pair.corrupted) for pair in pairs})
    assert pairs.asked == 64
    assert pairs.notes == ("64 pairs asked for, only 8 different ones found",)


def test_rows_and_a_second_row(task: Task, fake: Any) -> None:
    text = """\
name: capitals
prompts:
  templates:
    - clean: "The capital of {LAND} is"
      corrupted: "The capital of {LAND.2} is"
      answer: " {CITY}"
      wrong: " {CITY.2}"
  rows:
    - {LAND: France, CITY: Paris}
    - {LAND: Italy, CITY: Rome}
    - {LAND: Spain, CITY: Madrid}
    - {LAND: Australia, CITY: Canberra}
positions: {LAND: {slot: LAND}}
"""
    tokenizer = fake(split=(" Canberra",))
    pairs = make_pairs(task(text), tokenizer)
    assert pairs.left_out == {"CITY": ("Canberra",)}
    assert len(pairs) == 6, "every ordered couple of three rows"
    capital = {"France": " Paris", "Italy": " Rome", "Spain": " Madrid"}
    for pair in pairs:
        clean, corrupted = (text.split()[3] for text in (pair.clean_text, pair.corrupted_text))
        assert clean != corrupted
        assert [tokenizer.piece(token) for token in pair.answer + pair.wrong] == [
            capital[clean],
            capital[corrupted],
        ]
        assert pair.positions["LAND"] == 3
    with pytest.raises(PromptError, match="a pair needs 2 rows, but 1 of 4 are left"):
        make_pairs(task(text), fake(split=(" Canberra", " Rome", " Madrid")))


YEARS = """\
name: years
prompts:
  templates:
    - clean: "It lasted from {C}{YY} to {C}"
      corrupted: "It lasted from {C}01 to {C}"
      answer: {from: YEARS, above: YY}
      wrong: {from: YEARS, up-to: YY}
  slots:
    C: ["17", "18"]
    YY: ["20", "40", "99"]
    YEARS: ["01", "20", "30", "40", "41", "99"]
"""


def test_answers_by_comparison(task: Task, fake: Any) -> None:
    tokenizer = fake()
    pairs = make_pairs(task(YEARS), tokenizer)
    assert len(pairs) == 4, "nothing lies above 99"
    pieces = {
        pair.clean_text.split()[3][2:]: [[tokenizer.piece(t) for t in s] for s in (pair.answer, pair.wrong)]
        for pair in pairs
    }
    assert pieces == {
        "20": [["30", "40", "41", "99"], ["01", "20"]],
        "40": [["41", "99"], ["01", "20", "30", "40"]],
    }


def test_slots_that_touch_are_checked_together(task: Task, fake: Any) -> None:
    pairs = make_pairs(task(YEARS), fake(merge=(" 1740",)))
    assert {pair.clean_text.split()[3] for pair in pairs} == {"1720", "1820", "1840"}
    assert pairs.left_out == {"C+YY": ("17+40",)}


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        ("below: YY", {"01", "20", "30"}),
        ("at-least: YY", {"40", "41"}),
        ("other-than: YY", {"01", "20", "30", "41"}),
    ],
)
def test_other_comparisons(task: Task, fake: Any, rule: str, numbers: set[str]) -> None:
    text = YEARS.replace("above: YY", rule).replace("{from: YEARS, up-to: YY}", '"99"')
    text = text.replace('["20", "40", "99"]', '["40"]').replace(', "99"]', "]")
    tokenizer = fake()
    pair = make_pairs(task(text), tokenizer)[0]
    assert {tokenizer.piece(token) for token in pair.answer} == numbers


def test_beginning_of_text_shifts_positions(task: Task, fake: Any) -> None:
    plain, shifted = (make_pairs(task(IOI), fake(bos=bos), count=1)[0] for bos in (None, 7))
    assert shifted.clean == (7, *plain.clean)
    assert shifted.corrupted[0] == 7
    assert shifted.positions == {name: place + 1 for name, place in plain.positions.items()}
    assert shifted.answer_position == plain.answer_position + 1
    without = make_pairs(task(IOI + "prepend-bos: false\n"), fake(bos=7), count=1)[0]
    assert without.clean == plain.clean


def test_beginning_of_text_on_demand(task: Task, fake: Any) -> None:
    spec = task(IOI + "prepend-bos: true\n")
    with pytest.raises(PromptError, match="no beginning-of-text token") as caught:
        make_pairs(spec, fake())
    assert "(prepend-bos)" in str(caught.value.where)
    tokenizer = fake()
    tokenizer.bos_id = 9
    assert make_pairs(spec, tokenizer, count=1)[0].clean[0] == 9


def test_inline_pairs(task: Task, fake: Any) -> None:
    pairs = make_pairs(task(INLINE), fake())
    assert [pair.group for pair in pairs] == ["", "boys"]
    assert pairs[1].where.endswith("task.yaml:5, pair 2")
    assert pairs.asked is None
    assert len(make_pairs(task(INLINE), fake(), count=1)) == 1


def test_answer_position_by_index(task: Task, fake: Any) -> None:
    assert make_pairs(task(INLINE + "answer-position: 1\n"), fake())[0].answer_position == 1
    assert make_pairs(task(INLINE + "answer-position: -2\n"), fake())[0].answer_position == 2


def test_token_ids_without_tokenizer(task: Task) -> None:
    spec = task(
        "name: ids\nprompts:\n  pairs:\n    - {clean: [1, 2, 0], corrupted: [1, 3, 0], answer: [2, 4], wrong: 3}\n"
    )
    pair = make_pairs(spec, None, n_vocab=5)[0]
    assert (pair.clean, pair.corrupted, pair.answer, pair.wrong) == ((1, 2, 0), (1, 3, 0), (2, 4), (3,))
    assert pair.clean_text == "1 2 0"
    with pytest.raises(PromptError) as caught:
        make_pairs(spec, None, n_vocab=4)
    assert "token id 4 is not in the vocabulary (ids go from 0 to 3)" in str(caught.value)


def test_token_ids_get_no_beginning_of_text(task: Task, fake: Any) -> None:
    spec = task(
        "name: ids\nprompts:\n  pairs:\n    - {clean: [1, 2], corrupted: [1, 3], answer: 2, wrong: 3}\n"
    )
    assert make_pairs(spec, fake(bos=7))[0].clean == (1, 2)


VOCAB = """\
name: letters
vocab: [A, B, C, "="]
prompts:
  pairs:
    - {clean: "C A =", corrupted: "C B =", answer: A, wrong: [B, C]}
"""


def test_words_of_a_vocab(task: Task) -> None:
    pair = make_pairs(task(VOCAB), None)[0]
    assert (pair.clean, pair.corrupted, pair.answer, pair.wrong) == ((2, 0, 3), (2, 1, 3), (0,), (1, 2))
    with pytest.raises(PromptError) as caught:
        make_pairs(task(VOCAB.replace("C A =", "C a =")), None)
    assert "'a' is no word of the vocab; did you mean 'A'?" in str(caught.value)


def test_templates_over_a_vocab(task: Task) -> None:
    text = """\
name: letters
vocab: [A, B, C, "="]
prompts:
  templates: [{clean: "{X} {Y} =", corrupted: "{Y} {X} =", answer: "{X}", wrong: "{Y}"}]
  slots: {X: [A, B, D], Y: [A, B, C]}
  distinct: [[X, Y]]
"""
    pairs = make_pairs(task(text), None)
    assert len(pairs) == 4
    assert pairs.left_out == {"X": ("D",)}
    with pytest.raises(PromptError) as caught:
        make_pairs(task(text.replace('"{X} {Y} ="', '"{X} {Y} +"')), None)
    assert "'+' is no word of the vocab" in str(caught.value)


def test_text_without_tokenizer(task: Task) -> None:
    with pytest.raises(PromptError, match="the model has no tokenizer") as caught:
        make_pairs(task(INLINE), None)
    assert "vocab" in caught.value.hint


@dataclass(frozen=True)
class Zoo:
    """A pair of a zoo model."""

    clean: tuple[int, ...] = (1, 2, 3)
    corrupted: tuple[int, ...] = (1, 4, 3)
    answer: int = 2
    wrong: int = 4
    positions: dict[str, int] = field(default_factory=lambda: {"X": 1})


def test_zoo_prompts(task: Task) -> None:
    spec = task("name: z\nmodel: planted/induction\nprompts: {zoo: {count: 1}}\nanswer-position: X\n")
    pairs = make_pairs(spec, None, zoo_pairs=[Zoo(), Zoo((5, 2, 3))])
    assert len(pairs) == 1
    assert pairs[0].positions == {"END": 2, "X": 1}
    assert pairs[0].answer_position == 1
    with pytest.raises(PromptError, match="this model brings none") as caught:
        make_pairs(spec, None)
    assert "planted/induction" in caught.value.hint


# name: (line of the first pair, reason)
BAD_PAIRS = {
    "unequal lengths": (
        '{clean: "A girl came.", corrupted: "A small boy came.", answer: " She", wrong: " He"}',
        "the clean prompt has 4 tokens, the corrupted one 5",
    ),
    "identical prompts": (
        '{clean: "A girl came.", corrupted: "A girl came.", answer: " She", wrong: " He"}',
        "the clean and the corrupted prompt are the same",
    ),
    "multi-token answer": (
        '{clean: "A girl came.", corrupted: "A boy came.", answer: " Sheila", wrong: " He"}',
        'answer " Sheila" is 2 tokens: [" She", "ila"]; did you mean "Sheila"?',
    ),
    "multi-token wrong answer": (
        '{clean: "A girl came.", corrupted: "A boy came.", answer: " She", wrong: " He is"}',
        'wrong answer " He is" is 2 tokens: [" He", " is"]',
    ),
    "answer is wrong answer": (
        '{clean: "A girl came.", corrupted: "A boy came.", answer: [" She", " He"], wrong: " He"}',
        '" He" is both answer and wrong answer',
    ),
    "id out of vocabulary": (
        '{clean: [1, 5000], corrupted: [1, 2], answer: " She", wrong: " He"}',
        "token id 5000 is not in the vocabulary (ids go from 0 to 4999)",
    ),
    "blank prompt is no prompt": (
        '{clean: "A girl came.", corrupted: "A boy came.", answer: " She", wrong: [" He", 5001]}',
        "token id 5001 is not in the vocabulary",
    ),
}


@pytest.mark.parametrize(("pair", "reason"), BAD_PAIRS.values(), ids=list(BAD_PAIRS))
def test_bad_pair(task: Task, fake: Any, pair: str, reason: str) -> None:
    spec = task(INLINE + f"    - {pair}\n")
    tokenizer = fake(split=(" Sheila",))
    with pytest.raises(PromptError, match="1 of 3 prompt pairs cannot be used") as caught:
        make_pairs(spec, tokenizer)
    error = caught.value
    assert error.details[0].endswith(f"task.yaml:6, pair 3: {error.details[0].split(': ', 1)[1]}")
    assert reason in error.details[0]
    assert "--drop-bad-pairs" in error.hint
    pairs = make_pairs(spec, tokenizer, drop_bad_pairs=True)
    assert len(pairs) == 2
    assert reason in pairs.dropped[0].reason
    assert "1 of 3 pairs dropped" in pairs.notes[0]


def test_tokens_are_shown_side_by_side(task: Task, fake: Any) -> None:
    spec = task(
        INLINE
        + '    - {clean: "A girl came.", corrupted: "A small boy came.", answer: " She", wrong: " He"}\n'
    )
    shown = make_pairs(spec, fake(), drop_bad_pairs=True).dropped[0].shown
    assert shown == (
        'clean      "A" " girl"  " came" "."',
        'corrupted  "A" " small" " boy"  " came" "."',
        "               ^ first difference",
    )


def test_long_prompts_are_wrapped(task: Task, fake: Any) -> None:
    clean = " ".join(f"word{'abcdefghij'[i]}" for i in range(10)) * 3
    spec = task(
        f'name: x\nprompts:\n  pairs: [{{clean: "{clean}", corrupted: "{clean} b", answer: a, wrong: b}}]\n'
    )
    with pytest.raises(PromptError, match="none of 1 prompt pairs can be used") as caught:
        make_pairs(spec, fake(), drop_bad_pairs=True)
    assert max(len(line) for line in caught.value.details[1:]) <= 102
    assert sum("first difference" in line for line in caught.value.details) == 1
    assert sum(line.strip().startswith("clean") for line in caught.value.details) == 1


def test_only_the_first_bad_pairs_are_listed(task: Task, fake: Any) -> None:
    bad = '    - {clean: "A girl.", corrupted: "A girl.", answer: " She", wrong: " He"}\n'
    with pytest.raises(PromptError, match="8 of 10 prompt pairs") as caught:
        make_pairs(task(INLINE + bad * 8), fake())
    assert sum("are the same" in line for line in caught.value.details) == 5
    assert caught.value.details[-1] == "and 3 more"


def test_slots_must_stand_at_the_same_tokens(task: Task, fake: Any) -> None:
    text = """\
name: moved
prompts:
  templates:
    - {clean: "So {A} left the old {P}", corrupted: "So old {B} left the {P}", answer: " x", wrong: " y"}
  slots: {A: [Mary], B: [John], P: [shop]}
"""
    with pytest.raises(PromptError) as caught:
        make_pairs(task(text), fake())
    assert "slot A is token 1 of the clean, but 2 of the corrupted prompt" in str(caught.value)
    fewer = text.replace('"So old {B} left the {P}"', '"So he left for {P} now"').replace("B: [John], ", "")
    with pytest.raises(PromptError) as caught:
        make_pairs(task(fewer), fake())
    assert "slot P is token 5 of the clean, but 4 of the corrupted prompt" in str(caught.value)


def test_position_of_a_token_that_is_not_there(task: Task, fake: Any) -> None:
    with pytest.raises(PromptError) as caught:
        make_pairs(task(INLINE + 'positions: {V: {token: " went"}}\n'), fake())
    assert 'position V: " went" stands in the prompt 0 times' in str(caught.value)
    with pytest.raises(PromptError) as caught:
        make_pairs(task(INLINE + "positions: {V: 4}\n"), fake())
    assert "position V is 4, but the prompt has 4 tokens" in str(caught.value)


def test_nothing_can_be_drawn(task: Task, fake: Any) -> None:
    text = YEARS.replace('["20", "40", "99"]', '["99"]')
    with pytest.raises(PromptError, match="there is no prompt pair"):
        make_pairs(task(text), fake())


def test_count_must_be_positive(task: Task, fake: Any) -> None:
    with pytest.raises(PromptError, match="0 pairs were asked for"):
        make_pairs(task(INLINE), fake(), count=0)


def test_subset_and_hash(task: Task, fake: Any) -> None:
    pairs = make_pairs(task(IOI), fake())
    again = pairs.subset([2, 0, 2])
    assert [pair.where for pair in again] == [pairs[2].where, pairs[0].where, pairs[2].where]
    assert again.content_hash() != pairs.content_hash()
    assert pairs[:3].content_hash() == pairs.subset(range(3)).content_hash()
