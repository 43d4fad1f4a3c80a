"""The script of ``export --to python``: what it measures is what circuitfind measures, on every family of models."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.graph import Circuit, connected, from_mask
from circuitfind.config import Ablation
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.load import load_model
from circuitfind.output.exports import Source
from circuitfind.output.exports.python import METRICS, python
from circuitfind.task.pairs import PromptPairs
from tests import families
from tests.output.circuits import conditions, evaluation, make


def rows_of(pairs: PromptPairs) -> list[dict[str, Any]]:
    """As prompts.jsonl holds them."""
    return [
        {
            "clean_tokens": list(pair.clean),
            "corrupted_tokens": list(pair.corrupted),
            "answer": list(pair.answer),
            "wrong": list(pair.wrong),
            "answer_position": pair.answer_position,
        }
        for pair in pairs
    ]


def script(source: Source) -> str:
    (text,) = python(source).files.values()
    assert isinstance(text, str)
    assert "@@" not in text
    return text


def ran(text: str) -> dict[str, float]:
    """What a script prints, run in this process."""
    out = io.StringIO()
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(text, "circuit.py", "exec"), names)
    lines = [line.split() for line in out.getvalue().splitlines()]
    return {
        words[0]: float(words[1])
        for words in lines
        if words[0] in ("model", "circuit", "empty", "faithfulness")
    }


def same(family: str, metric: str = "logit-diff", ablation: Ablation = "resample") -> None:
    """Run both ways, and hold the numbers against each other."""
    built = load_model(family, device="cpu") if family == "mini" else families.model(family)
    pairs = families.pairs_for(built)
    runs = families.runs_of(built, pairs, metric)
    evaluator = Evaluator(runs, ablation)
    mask = connected(built.anatomy, families.random_mask(built.anatomy.edge_mask, 0.5, 0))
    assert 5 < mask.sum() < built.anatomy.n_edges
    told = conditions(model=built.name, metric=metric, ablation=ablation)
    circuit = from_mask(built.anatomy, mask, told)
    found = ran(script(Source(circuit, prompts=rows_of(pairs))))
    values = {"model": evaluator.full, "circuit": evaluator.values([mask])[0], "empty": evaluator.empty}
    for name, wanted in values.items():
        assert found[name] == pytest.approx(float(wanted.mean()), abs=1e-4), name
    gap = found["model"] - found["empty"]
    assert found["faithfulness"] == pytest.approx(
        (found["circuit"] - found["empty"]) / gap, rel=1e-3, abs=1e-4
    )


USUAL = ("mini", "neox", "llama", "attn-only")
"""With a tokenizer, parallel, with shared keys and values, and a model of TransformerLens's own without MLPs."""


def others_later(family: str) -> Any:
    return pytest.param(family, marks=[] if family in USUAL else [pytest.mark.slow])


@pytest.mark.parametrize("family", [others_later(family) for family in ("mini", *families.FAMILIES)])
def test_it_measures_the_same(family: str) -> None:
    if family == "gemma2":
        with pytest.raises(SystemExit, match="norms behind attention"):
            same(family)
    else:
        same(family)


@pytest.mark.parametrize(
    ("metric", "ablation"),
    [
        ("prob-diff", "zero"),
        pytest.param("log-prob", "resample", marks=pytest.mark.slow),
        pytest.param("kl", "zero", marks=pytest.mark.slow),
    ],
)
def test_other_metrics_and_ablations(metric: str, ablation: Ablation) -> None:
    same("llama", metric, ablation)


SIMPLE = {
    "clean_tokens": [1, 2],
    "corrupted_tokens": [1, 3],
    "answer": [4],
    "wrong": [5],
    "answer_position": 1,
}

MEASURED = replace(evaluation(), metric="logit-diff")


def a_circuit(**changes: str) -> Circuit:
    return make(
        {"input->a0.h0<v>": 1.0, "a0.h0->logits": 2.0},
        conditions=conditions(**{"metric": "logit-diff", **changes}),
    )


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_makes_a_script(metric: str) -> None:
    circuit = make({"input->logits": 1.0}, conditions=conditions(metric=metric), evaluations=())
    compile(script(Source(circuit, prompts=[SIMPLE])), "circuit.py", "exec")


def test_odd_names_stay_texts() -> None:
    odd = 'a"""\n\\ task {x} @@MODEL@@'
    circuit = make(
        {"input->logits": 1.0},
        conditions=conditions(task=odd, model=odd, metric="logit-diff"),
        evaluations=(),
    )
    (text,) = python(Source(circuit, prompts=[SIMPLE])).files.values()
    names: dict[str, Any] = {"__name__": "script"}
    exec(compile(text, "circuit.py", "exec"), names)
    assert names["MODEL"] == odd


@pytest.mark.parametrize(
    ("circuit", "prompts", "error", "says"),
    [
        (a_circuit(), [], UsageError, "does not have them"),
        (a_circuit(model_b="other"), [SIMPLE], UnsupportedError, "another model"),
        (make(["input@S1->m0@S1", "m0@S1->logits"]), [SIMPLE], UnsupportedError, "positions"),
    ],
)
def test_what_it_cannot_run(
    circuit: Circuit, prompts: Sequence[dict[str, Any]], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        python(Source(circuit, prompts=prompts))


def test_an_ablation_that_needs_templates() -> None:
    told = conditions(metric="logit-diff", ablation="mean")
    both = make({"input->logits": 1.0}, conditions=told, evaluations=(MEASURED,))
    made = python(Source(both, prompts=[SIMPLE]))
    assert made.notes == ("the script ablates by resample: a mean ablation needs the task's templates",)
    with pytest.raises(UnsupportedError, match="cannot ablate by mean"):
        python(Source(make({"input->logits": 1.0}, conditions=told, evaluations=()), prompts=[SIMPLE]))


def test_what_was_measured_is_told_of_the_same_prompts_only() -> None:
    circuit = make(
        {"input->logits": 1.0}, conditions=conditions(metric="logit-diff"), evaluations=(MEASURED,)
    )
    (one,) = python(Source(circuit, prompts=[SIMPLE])).files.values()
    (many,) = python(Source(circuit, prompts=[SIMPLE] * 64)).files.values()
    assert "circuitfind measured" not in str(one)
    assert "circuitfind measured 0.913000" in str(many)


def test_models_are_loaded_as_they_are_kept(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"format": "transformer-lens"}))
    loads = {
        "planted/induction": "load_model(MODEL",
        "mini": "trained_folder(MODEL)",
        "nobody/gpt": "boot_transformers(MODEL",
        str(tmp_path): "load_model(MODEL",
    }
    for model, says in loads.items():
        circuit = make(
            {"input->logits": 1.0}, conditions=conditions(model=model, metric="logit-diff"), evaluations=()
        )
        text = script(Source(circuit, prompts=[SIMPLE]))
        assert says in text
        assert ("import load_model" in text) == ("load_model" in says)
