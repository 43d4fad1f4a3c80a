"""The embedded models that were trained: their corpus, their weights and their figures."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from circuitfind import zoo
from circuitfind.errors import ModelError
from circuitfind.model.identity import identity
from circuitfind.model.load import load_model
from circuitfind.zoo import mini, mini_redundant
from circuitfind.zoo.mini import corpus
from circuitfind.zoo.mini import words as w
from circuitfind.zoo.mini.examples import is_held_out

BARS = dict.fromkeys(corpus.BEHAVIOURS, 0.95) | {"greater-than": 0.90, "coloured-objects": 0.90}
SAMPLE = 100
# A sample of a hundred strays from the full figure; the card is held to the bars themselves.
SAMPLE_SLACK = 0.03
MAX_BYTES = 5_000_000  # of a folder
MAX_WEIGHTS = 15_000_000  # of all safetensors in the package


@pytest.fixture(scope="module", params=[*zoo.TRAINED])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(name: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = zoo.trained_folder(name)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert next(model.parameters()).dtype == torch.float32
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def card(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((zoo.trained_folder(name) / "card.json").read_text())
    return facts


def test_import_is_light() -> None:
    code = "import sys, circuitfind.zoo.mini.corpus; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "weights_path", lambda name: tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"circuitfind\.zoo\.mini\.train --out"):
        mini.weights_folder()
    with pytest.raises(FileNotFoundError, match=r"circuitfind\.zoo\.mini\.train --drop-attention"):
        mini_redundant.weights_folder()
    with pytest.raises(ModelError, match="the weights of mini-redundant are not at"):
        load_model("mini-redundant", device="cpu")


def test_the_folder_is_in_its_package() -> None:
    for package, name in ((mini, "mini"), (mini_redundant, "mini-redundant")):
        assert name in zoo.ZOO
        assert package.weights_folder() == package.WEIGHTS == zoo.trained_folder(name)
        assert package.WEIGHTS.parent == Path(package.__file__).parent


def test_folder_is_small_and_without_pickles(name: str) -> None:
    files = [*zoo.trained_folder(name).iterdir()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_all_weights_are_small() -> None:
    found = Path(zoo.__file__).parent.parent.rglob("*.safetensors")
    assert sum(path.stat().st_size for path in found) <= MAX_WEIGHTS


def test_load_model_knows_it(name: str) -> None:
    model = load_model(name, device="cpu")
    assert (model.name, model.source) == (name, f"zoo: {name}")
    assert model.fingerprint == identity(name)
    assert len({identity(each) for each in zoo.TRAINED}) == len(zoo.TRAINED)


def test_is_zoo() -> None:
    assert all(map(zoo.is_zoo, zoo.ZOO))
    assert [each for each in zoo.ZOO if not zoo.is_planted(each)] == [*zoo.TRAINED]
    assert not zoo.is_zoo("mini-other")


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


def test_tokenizer_matches_the_corpus() -> None:
    from transformers import AutoTokenizer

    from circuitfind.zoo.mini.tokenizer import build_tokenizer

    shipped = AutoTokenizer.from_pretrained(mini.weights_folder(), local_files_only=True)
    assert build_tokenizer(shipped.model_max_length).get_vocab() == shipped.get_vocab()


def test_all_have_the_tokenizer_of_mini(name: str) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (zoo.trained_folder(name) / file).read_bytes() == (mini.WEIGHTS / file).read_bytes()


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
def test_held_out_accuracy_is_that_of_the_card(
    loaded: tuple[Any, Any], card: dict[str, Any], behaviour: str
) -> None:
    from circuitfind.zoo.mini.evaluate import score

    examples = corpus.held_out_examples(behaviour, SAMPLE, seed=1)
    for opening, bos in (("plain", False), ("bos", True)):
        figures, said = score(*loaded, examples, bos=bos), card["accuracy"][opening][behaviour]
        assert figures.prompts == SAMPLE
        assert figures.beats_wrong == pytest.approx(said["beats_wrong"], abs=SAMPLE_SLACK)
        assert figures.top1 == pytest.approx(said["top1"], abs=SAMPLE_SLACK)


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


def test_readme_holds_the_table(name: str, card: dict[str, Any]) -> None:
    from circuitfind.zoo.mini.card import table

    assert table(card) in (zoo.weights_path(name).parent / "README.md").read_text(encoding="utf-8")


def test_card_tells_how_it_was_trained(name: str, card: dict[str, Any]) -> None:
    from circuitfind.zoo.mini.card import table

    share = card["training"].get("drop_attention", 0.0)
    assert zoo.TRAINED[name] == (f" --drop-attention {share}" if share else "")
    assert (f"attention layer left out of {share:.0%} of them" in table(card)) == bool(share)
    plain = json.loads((mini.WEIGHTS / "card.json").read_text())["training"]
    assert {key: card["training"][key] for key in plain} == plain


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
        "--drop-attention",
        "0.5",
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
