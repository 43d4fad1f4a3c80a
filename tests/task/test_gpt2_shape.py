"""Cases on GPT-2 and GPT-2 medium, on models of their shape: random weights, small width, GPT-2's own tokenizer.

The numbers mean nothing. What is tested is that every prompt goes through, that every name of a known circuit has a score, and
that a check comes to an end and says what does not hold.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from circuitfind.check.cases import Case
from circuitfind.check.run import Shelf, Where, run_case
from circuitfind.config import MODELS_VARIABLE
from circuitfind.methods.eap import EAP
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.spec import TaskSpec, find_tasks, load_task
from tests import families

FOLDER = Path(__file__).parents[2] / "tasks"
SPECS = {name: load_task(path) for name, path in find_tasks([FOLDER]).items()}
SHAPES = {"gpt2": (12, 12), "gpt2-medium": (24, 16)}
CASES = [
    (name, model)
    for name, spec in SPECS.items()
    for model in spec.expect
    if model in SHAPES and spec.prompts.kind == "templates"
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@cache
def shaped(model: str) -> Path:
    """The folder of a model of random weights; its first layer adds up all tokens, so that words in the prompt gain."""
    import transformers as hf

    named = os.environ.get(MODELS_VARIABLE)
    if not named:
        pytest.skip(f"{MODELS_VARIABLE} is not set")
    layers, n_heads = SHAPES[model]
    path, width = families.root() / f"shape-of-{model}", 4 * n_heads
    torch.manual_seed(0)
    config = hf.GPT2Config(n_embd=width, n_layer=layers, n_head=n_heads, n_positions=64)
    built = hf.GPT2LMHeadModel(config)
    first = built.transformer.h[0].attn
    first.c_attn.weight.data[:, 2 * width :] = torch.eye(width)
    first.c_proj.weight.data = torch.eye(width)
    built.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(named) / "gpt2-tokenizer" / name, path / name)
    return path


@cache
def loaded(model: str) -> Model:
    return load_model(str(shaped(model)), device="cpu")


def on_shape(task: str, model: str) -> TaskSpec:
    """The task with what is known and expected of a model said of the model of its shape."""
    spec, folder = SPECS[task], str(shaped(model))
    return spec.model_copy(
        update={
            "known": {folder: spec.known[model]} if model in spec.known else {},
            "expect": {folder: spec.expect[model]},
        }
    )


@pytest.mark.parametrize(("task", "model"), CASES, ids=str)
def test_every_known_name_has_a_score(task: str, model: str) -> None:
    spec, folder = on_shape(task, model), str(shaped(model))
    for expect in spec.expect_of(folder):
        asked = expect.settings.counterfactual
        session = Session(spec, resolve(spec, model=folder, count=2, counterfactual=asked), "cpu")
        session.__dict__["model"] = loaded(model)  # once for all tasks
        scores = EAP().run(session.runs_of(session.all_pairs), ablation="resample", direction="noising")
        where = scores.anatomy
        assert (where.n_layers, where.n_heads) == SHAPES[model]
        assert np.isfinite(scores.values[where.edge_mask]).all()
        for known in spec.known_of(folder):
            assert set(known.nodes) <= set(where.writer_names)
            assert all(where.edge_mask[where.index_of(edge)] for edge in known.edges)


def test_a_check_comes_to_an_end(tmp_path: Path) -> None:
    """Copying alone tells the answer here, and the heads that are known for it are not those that do it."""
    spec, folder = on_shape("copy-suppression", "gpt2"), str(shaped("gpt2"))
    (expect,) = spec.expect_of(folder)
    settings = expect.settings.model_copy(
        update={"method": "eap", "count": 16, "min_accuracy": 0.0, "backups": False}
    )
    case = Case(spec, folder, expect.model_copy(update={"settings": settings}))
    found = run_case(case, Where(outputs=tmp_path, baselines=tmp_path, device="cpu"), Shelf("cpu"))
    assert found.verdict == "differs", found.problem
    told = " ".join(map(str, found.reasons))
    assert all(word in told for word in ("accuracy", "20 strongest", "negative", "a10.h7", "a11.h10"))
