"""The tasks that come with the project: they load, fit the schema, and line up under real tokenizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import circuitfind
from circuitfind.config import MODELS_VARIABLE
from circuitfind.task.prompts import make_pairs
from circuitfind.task.spec import find_tasks, json_schema, load_task, template

FOLDER = Path(__file__).parents[2] / "tasks"
TASKS = find_tasks([FOLDER])
KINDS = {name: load_task(name, [FOLDER]).prompts.kind for name in TASKS}
TEXT_TASKS = [name for name, kind in KINDS.items() if kind == "templates"]
"""Those that make their prompts; rows of data sets are tested in test_rows.py."""
OWN_TOKENS = [name for name, kind in KINDS.items() if kind == "pairs"]
"""Those whose prompts are token ids, or words of their own vocabulary."""
MINI = Path(circuitfind.__file__).parent / "zoo" / "mini" / "weights" / "tokenizer.json"


class FileTokenizer:
    """A tokenizer.json behind our protocol."""

    bos = None

    def __init__(self, path: Path) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        self.n_vocab: int = self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[tuple[int, int, int]]:
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return [(token, start, end) for token, (start, end) in zip(found.ids, found.offsets, strict=True)]

    def piece(self, token: int) -> str:
        return str(self._tokenizer.id_to_token(token))


def test_all_are_there() -> None:
    behaviours = "capitals coloured-objects docstring gendered-pronoun greater-than induction ioi"
    behaviours += " subject-verb-agreement successor planted-induction ioi-planted and-gate or-gate"
    behaviours += (
        " acronyms copy-suppression sentiment sports bracket-classifier modular-addition interpbench-ioi"
    )
    behaviours += (
        " arithmetic-addition arithmetic-subtraction arithmetic-division tracr-reverse tracr-xproportion"
    )
    assert set(behaviours.split()) <= set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_loads_and_fits_the_schema(name: str) -> None:
    spec = load_task(TASKS[name])
    assert spec.name == name
    assert spec.description
    assert spec.model in spec.expect
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(TASKS[name].read_text()), json_schema())


def test_schema_refuses_an_unknown_key() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    data = yaml.safe_load(template())
    jsonschema.validate(data, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "modle": "mini"}, json_schema())


def check_pairs(name: str, tokenizer: FileTokenizer | None) -> dict[str, tuple[str, ...]]:
    """Every counterfactual lines up in full; gives what was left out."""
    spec = load_task(TASKS[name])
    left_out: dict[str, tuple[str, ...]] = {}
    for counterfactual in spec.counterfactuals:
        pairs = make_pairs(spec, tokenizer, counterfactual=counterfactual)
        assert len(pairs) == (spec.count or len(spec.prompts.pairs or ()))
        assert not pairs.dropped
        for pair in pairs:
            assert len(pair.clean) == len(pair.corrupted)
            assert pair.clean != pair.corrupted
            assert pair.answer
            assert pair.wrong
            assert not set(pair.answer) & set(pair.wrong)
        left_out |= pairs.left_out
    return left_out


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_pairs_under_the_tokenizer_of_gpt2(name: str) -> None:
    folder = os.environ.get(MODELS_VARIABLE)
    if not folder:
        pytest.skip(f"{MODELS_VARIABLE} is not set")
    left_out = check_pairs(name, FileTokenizer(Path(folder) / "gpt2-tokenizer" / "tokenizer.json"))
    # Some years of GPT-2 are one token (1901), or are cut elsewhere than between century and year.
    assert set(left_out) <= ({"C", "C+YY", "C+ZZ"} if name == "greater-than" else set())


@pytest.mark.parametrize("name", OWN_TOKENS)
def test_pairs_of_models_without_a_tokenizer(name: str) -> None:
    assert check_pairs(name, None) == {}


@pytest.mark.parametrize("name", [name for name in TEXT_TASKS if load_task(TASKS[name]).model == "mini"])
def test_pairs_under_the_tokenizer_of_mini(name: str) -> None:
    assert MINI.is_file(), "the tokenizer of mini belongs to the package"
    assert check_pairs(name, FileTokenizer(MINI)) == {}


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind == "zoo"])
def test_pairs_of_planted_models(name: str) -> None:
    planted = pytest.importorskip("circuitfind.zoo.planted")
    spec = load_task(TASKS[name])
    model, _, seed = spec.model.removeprefix("planted/").partition(":")
    built = planted.build(model, int(seed or 0))
    pairs = make_pairs(spec, None, zoo_pairs=built.pairs(spec.count, spec.seed))
    assert len(pairs) == spec.count
    assert spec.direction == built.direction
    assert all(pair.positions["END"] == len(pair.clean) - 1 for pair in pairs)
