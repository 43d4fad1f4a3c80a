"""The embedded model: its corpus, its weights and its figures."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from circuitfind.zoo import mini
from circuitfind.zoo.mini import corpus
from circuitfind.zoo.mini import words as w
from circuitfind.zoo.mini.examples import is_held_out

BARS = dict.fromkeys(corpus.BEHAVIOURS, 0.95) | {"greater-than": 0.90, "coloured-objects": 0.90}
SAMPLE = 100
# A sample of a hundred strays from the full figure; the card is held to the bars themselves.
SAMPLE_SLACK = 0.03
MAX_BYTES = 8_000_000


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = mini.weights_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert next(model.parameters()).dtype == torch.float32
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((mini.weights_folder() / "card.json").read_text())
    return facts


def test_import_is_light() -> None:
    code = "import sys, circuitfind.zoo.mini.corpus; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "WEIGHTS", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"circuitfind\.zoo\.mini\.train"):
        mini.weights_folder()


def test_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in mini.weights_folder().iterdir()) <= MAX_BYTES


def test_model_has_no_dropout(loaded: tuple[Any, Any]) -> None:
    config = loaded[0].config
    assert config.embd_pdrop == config.resid_pdrop == config.attn_pdrop == 0
    assert config.tie_word_embeddings


def test_slot_words_are_one_token(loaded: tuple[Any, Any]) -> None:
    from circuitfind.zoo.mini.tokenizer import slot_words

    _, tokenizer = loaded
    pieces = tokenizer([" " + word for word in slot_words()])["input_ids"]
    assert [word for word, ids in zip(slot_words(), pieces, strict=True) if len(ids) != 1] == []


def test_descriptions_days_and_months_are_one_token_without_a_space(loaded: tuple[Any, Any]) -> None:
    words = [*w.DESCRIPTIONS, *w.DAYS, *w.MONTHS, *w.YEARS]
    assert {len(ids) for ids in loaded[1](words)["input_ids"]} == {1}


def test_year_is_two_pairs_of_digits(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    ids = tokenizer("The year 1732, isn't")["input_ids"]
    assert [tokenizer.decode([each]) for each in ids] == [
        "The",
        " year",
        " 17",
        "32",
        ",",
        " isn",
        "'t",
    ]


def test_tokenizer_matches_the_corpus(loaded: tuple[Any, Any]) -> None:
    from circuitfind.zoo.mini.tokenizer import build_tokenizer

    assert build_tokenizer(loaded[0].config.n_positions).get_vocab() == loaded[1].get_vocab()


# The others hold lists of any length.
@pytest.mark.parametrize(
    "behaviour", [name for name in corpus.BEHAVIOURS if name not in ("induction", "docstring", "successor")]
)
def test_prompts_of_a_template_are_aligned(loaded: tuple[Any, Any], behaviour: str) -> None:
    examples = itertools.islice(corpus.examples(behaviour, random.Random(1)), 400)
    lengths: dict[int, set[int]] = {}
    for example in examples:
        lengths.setdefault(example.template, set()).add(len(loaded[1](example.prompt)["input_ids"]))
    assert all(len(each) == 1 for each in lengths.values())


@pytest.mark.parametrize("behaviour", corpus.BEHAVIOURS)
def test_examples_are_seeded_and_sound(behaviour: str) -> None:
    first, again, other = (
        list(itertools.islice(corpus.examples(behaviour, random.Random(seed)), 200)) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    for example in first:
        assert example.behaviour == behaviour
        assert example.answer not in example.wrong
        assert example.wrong
        document = example.document()
        assert document.text.startswith(example.prompt + example.answer)
        assert len(set(document.answers)) == len(document.answers)


def test_documents_are_seeded() -> None:
    first, again = (list(itertools.islice(corpus.documents(random.Random(5)), 500)) for _ in range(2))
    assert first == again
    assert {document.behaviour for document in first} == {*corpus.BEHAVIOURS, "filler"}


def test_training_shows_nothing_held_out() -> None:
    # Of greater-than no year at all may follow, of the others not the answer.
    prefixes = tuple(
        example.prompt + ("" if name == "greater-than" else example.answer)
        for name in corpus.BEHAVIOURS
        for example in corpus.held_out_examples(name, SAMPLE)
    )
    for document in itertools.islice(corpus.documents(random.Random(0)), 5000):
        assert not is_held_out(document.key)
        assert not document.text.startswith(prefixes)


def test_held_out_examples_are_distinct() -> None:
    for behaviour in corpus.BEHAVIOURS:
        found = corpus.held_out_examples(behaviour, SAMPLE)
        assert len({example.prompt for example in found}) == len(found) == SAMPLE
        assert all(example.held_out for example in found)


@pytest.mark.parametrize("behaviour", corpus.BEHAVIOURS)
def test_held_out_accuracy(loaded: tuple[Any, Any], behaviour: str) -> None:
    from circuitfind.zoo.mini.evaluate import score

    examples = corpus.held_out_examples(behaviour, SAMPLE, seed=1)
    for bos in (False, True):
        figures = score(*loaded, examples, bos=bos)
        assert figures.prompts == SAMPLE
        assert min(figures.beats_wrong, figures.top1) >= BARS[behaviour] - SAMPLE_SLACK


def test_card_meets_the_bars(card: dict[str, Any]) -> None:
    for by_behaviour in card["accuracy"].values():
        assert set(by_behaviour) == set(corpus.BEHAVIOURS)
        for behaviour, figures in by_behaviour.items():
            assert figures["prompts"] >= 500
            assert min(figures["beats_wrong"], figures["top1"]) >= BARS[behaviour], behaviour


def test_card_is_of_this_corpus_and_model(card: dict[str, Any], loaded: tuple[Any, Any]) -> None:
    from circuitfind.zoo.mini.card import corpus_hash

    assert card["corpus"]["sha256_of_first_documents"] == corpus_hash()
    assert card["corpus"]["shares"] == corpus.WEIGHTS
    assert card["parameters"] == loaded[0].num_parameters()


def test_readme_holds_the_table(card: dict[str, Any]) -> None:
    from circuitfind.zoo.mini.card import table

    assert table(card) in (Path(mini.__file__).parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_short_training_writes_the_folder(tmp_path: Path) -> None:
    import torch
    from click.testing import CliRunner
    from transformers import AutoModelForCausalLM

    from circuitfind.zoo.mini import train

    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch before 2.9 has no Muon")
    out = tmp_path / "weights"
    readme = tmp_path / "README.md"
    readme.write_text("<!-- accuracy: written by the trainer -->\n<!-- end of accuracy -->\n")
    arguments = [
        "--out",
        str(out),
        "--steps",
        "2",
        "--prompts",
        "4",
        "--device",
        "cpu",
        "--readme",
        str(readme),
    ]
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 0, result.output
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} >= expected | {"generation_config.json", "card.json"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert "| ioi | 4 |" in readme.read_text()
    assert AutoModelForCausalLM.from_pretrained(out).config.activation_function == "gelu_new"
