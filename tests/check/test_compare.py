"""What counts as a difference from a baseline, on made-up ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuitfind.check.baseline import Baseline, Metric, Prompts, begun, settings_of, task_hash
from circuitfind.check.compare import compare
from circuitfind.check.reasons import ORDER, Reason, in_order
from circuitfind.errors import UsageError
from circuitfind.settings import resolve
from circuitfind.task.findings import Tolerance
from circuitfind.task.spec import TaskSpec, load_task

EDGES: dict[str, float | None] = {f"a0.h{i}->logits": 10.0 - i for i in range(10)}


def baseline(**keys: Any) -> Baseline:
    prompts = Prompts(
        aligned=32,
        accuracy=1.0,
        content="c",
        texts="t",
        tokens="k",
        answers="a",
        answer_positions="p",
        positions="n",
        pairs="s",
        clean_prompts="l",
        corrupted_prompts="r",
        first={"clean": "A B", "answer_position": 1},
    )
    found = Baseline(
        program="1",
        task="toy",
        model="mini",
        case=None,
        task_hash="h",
        model_hash="m",
        settings={"count": 32},
        weights={"a0.h0": (2.0, 0.5), "m0": (3.0, -0.5), "a9.h9": (0.0, 0.0)},
        prompts=prompts,
        metric=Metric("logit-diff", 4.0, -4.0, {"resample": -4.0, "mean": 0.0}),
        used=32,
        edges=dict(EDGES),
        nodes={"a0.h0": 10.0, "a0.h1": -9.0},
        faithfulness={"resample": 0.9, "mean": 0.8},
        backups={"a1.h1": "backup"},
    )
    return replace(found, **keys)


def found(now: Baseline, *, planted: bool = False, **tolerance: Any) -> list[Reason]:
    return compare(baseline(), now, Tolerance(**tolerance), planted=planted, score_of=lambda name: 0.25)


def prompts(**keys: Any) -> Baseline:
    """Other prompts; the hash of everything changes with any part."""
    before = baseline().prompts
    assert before is not None
    return baseline(prompts=replace(before, **{"content": "other", **keys}))


def metric(**keys: Any) -> Baseline:
    before = baseline().metric
    assert before is not None
    return baseline(metric=replace(before, **keys))


def test_nothing_differs_from_itself() -> None:
    assert found(baseline(), planted=True) == []


def test_rounding_is_no_difference() -> None:
    off = 1 + 1e-4
    now = baseline(
        edges={name: score * off for name, score in EDGES.items() if score is not None},
        nodes={"a0.h0": 10.0 * off, "a0.h1": -9.0},
        faithfulness={"resample": 0.9 * off, "mean": 0.8},
        metric=Metric("logit-diff", 4.0 * off, -4.0 * off, {"resample": -4.0 * off, "mean": 1e-4}),
        weights={"a0.h0": (2.0 * (1 + 1e-6), 0.5), "m0": (3.0, -0.5 + 1e-6), "a9.h9": (0.0, 0.0)},
    )
    assert found(now, planted=True) == []


CHANGES: list[tuple[Baseline, str, str]] = [
    (baseline(model="gpt2"), "model", "the baseline is of model mini, this is gpt2"),
    (
        baseline(weights={"a0.h0": (0.0, 0.0), "m0": (3.0, -0.5), "a9.h9": (0.0, 0.0)}),
        "model",
        "the model's weights are others: a0.h0",
    ),
    (
        baseline(weights={"a0.h0": (2.0, -0.5), "m0": (3.0, -0.5), "a9.h9": (0.0, 0.0)}),
        "model",
        "the model's weights are others: a0.h0",
    ),
    (
        baseline(weights={"a0.h0": (2.0, 0.5), "m0": (3.0, -0.5)}),
        "model",
        "the model's weights are others: a9.h9",
    ),
    (baseline(model_hash="other"), "files", "the files of the model are others than those of the baseline"),
    (baseline(task_hash="other"), "task", "the baseline was made of another task file: look at"),
    (
        baseline(settings={"count": 16, "seed": 1}),
        "settings",
        "the baseline was made with other settings (count 16, was 32, seed 1, was default)",
    ),
    (prompts(aligned=31), "prompts", "there are 31 prompt pairs, were 32"),
    (prompts(answer_positions="x"), "prompts", "the prompts differ: answers are read at another position"),
    (prompts(answers="x"), "prompts", "the prompts differ: the answers or wrong answers are others"),
    (prompts(positions="x"), "prompts", "the prompts differ: the named positions are others"),
    (prompts(tokens="x"), "prompts", "the prompts differ: they come in another order"),
    (prompts(tokens="x", pairs="x"), "prompts", "the prompts differ: they are the same, but clean and"),
    (
        prompts(tokens="x", pairs="x", clean_prompts="x", corrupted_prompts="x"),
        "prompts",
        "the prompts' tokens differ for the same texts: the tokenizer is another",
    ),
    (
        prompts(tokens="x", texts="x", pairs="x", corrupted_prompts="x"),
        "prompts",
        "the prompts differ: the corrupted ones are others",
    ),
    (
        prompts(tokens="x", texts="x", pairs="x", clean_prompts="x"),
        "prompts",
        "the prompts differ: the clean ones are others",
    ),
    (
        prompts(tokens="x", texts="x", pairs="x", clean_prompts="x", corrupted_prompts="x"),
        "prompts",
        "the prompts differ: other ones are drawn or written",
    ),
    (prompts(content="c", accuracy=0.9), "metric", "the model answers 90.0% of the prompts rightly"),
    (metric(clean=-4.0), "metric", "the mean metric of the clean prompts is -4, was 4"),
    (metric(corrupted=0.0), "metric", "the mean metric of the corrupted prompts is 0, was -4"),
    (metric(name="kl"), "metric", "the metric is kl, was logit-diff"),
    (
        metric(empty={"resample": 0.0, "mean": 0.0}),
        "metric",
        "the mean metric of the empty circuit under resample ablation is 0, was -4: what cut edges carry",
    ),
    (metric(empty={"resample": -4.0}), "metric", "nothing was measured under mean ablation"),
    (
        baseline(edges={**EDGES, "a0.h3->logits": -7.0}),
        "scores",
        "scores of edges differ by up to 1.4 of the greatest (10): 1 of 10",
    ),
    (baseline(edges={**EDGES, "a0.h3->logits": None}), "scores", "scores of edges differ some are none"),
    (baseline(nodes={"a0.h0": 10.0, "a0.h1": -8.0}), "scores", "scores of nodes differ by up to 0.1 of"),
    (
        baseline(faithfulness={"resample": 0.85, "mean": 0.8}),
        "faithfulness",
        "the faithfulness under resample ablation is 0.85, was 0.9",
    ),
    (
        baseline(faithfulness={"resample": 0.9}),
        "faithfulness",
        "the faithfulness under mean ablation is none, was 0.8",
    ),
    (baseline(backups={}), "backups", "the search for backups differs: lost a1.h1"),
    (
        baseline(backups={"a1.h1": "relief"}),
        "backups",
        "the search for backups differs: a1.h1 is relief, was backup",
    ),
]


@pytest.mark.parametrize(("now", "kind", "text"), CHANGES, ids=[text for _, _, text in CHANGES])
def test_each_change_is_told(now: Baseline, kind: str, text: str) -> None:
    (reason,) = found(now)
    assert (reason.kind, reason.source) == (kind, "baseline")
    assert reason.text.startswith(text)


def without(*names: str, **more: float) -> Baseline:
    return baseline(edges={name: score for name, score in {**EDGES, **more}.items() if name not in names})


def test_edges_of_a_planted_model_are_these() -> None:
    (reason,) = found(without("a0.h9->logits"), planted=True)
    assert reason.text == "the circuit lost a0.h9->logits (Jaccard index 0.900)"
    assert reason.lines == ("- a0.h9->logits  0.25, was 1",)
    (reason,) = found(without(**{"a1.h0->logits": 0.1}), planted=True)
    assert reason.text == "the circuit gained a1.h0->logits (Jaccard index 0.909)"
    assert reason.lines == ("+ a1.h0->logits  0.1",)


def test_weak_edges_of_a_trained_model_may_come_and_go() -> None:
    assert not found(without("a0.h9->logits"))
    assert not found(without(**{"a1.h0->logits": 0.1}))
    assert found(without("a0.h9->logits", "a0.h8->logits")), "Jaccard index 0.8"
    assert not found(without("a0.h9->logits", "a0.h8->logits"), edges=0.75)
    assert found(without("a0.h9->logits"), edges=0.95)


def test_strong_edges_may_not() -> None:
    (reason,) = found(without("a0.h0->logits"))
    assert reason.lines == ("- a0.h0->logits  0.25, was 10",)
    (reason,) = found(without(**{"a1.h0->logits": -6.0}))
    assert reason.lines == ("+ a1.h0->logits  -6",)


@pytest.mark.parametrize(
    ("now", "name", "enough"),
    [
        (prompts(content="c", accuracy=0.9), "accuracy", 0.1),
        (metric(clean=3.2), "metric", 0.1),
        (baseline(nodes={"a0.h0": 10.0, "a0.h1": -8.0}), "scores", 0.1),
        (baseline(faithfulness={"resample": 0.8, "mean": 0.8}), "faithfulness", 0.11),
        (baseline(backups={}), "backups", 1),
    ],
)
def test_tolerances(now: Baseline, name: str, enough: float) -> None:
    assert found(now)
    assert not found(now, **{name: enough})


def test_one_pair_more_or_less_is_no_difference() -> None:
    assert not found(prompts(content="c", accuracy=31 / 32))
    assert found(prompts(content="c", accuracy=30 / 32))


def test_a_refused_run_is_compared_as_far_as_it_came() -> None:
    now = replace(metric(clean=0.0, empty={}), edges=None, nodes=None, faithfulness=None, backups=None)
    assert [reason.kind for reason in found(now)] == ["metric"]


def test_causes_come_before_consequences() -> None:
    reasons = [Reason(kind, "expectation", kind) for kind in reversed(ORDER)]
    reasons += [Reason("edges", "baseline", "changed")]
    told = [reason.text for reason in in_order(reasons)]
    causes = ["model", "task", "prompts", "settings", "metric", "refused"]
    assert told[: len(causes) + 1] == [*causes, "changed"]
    assert told[len(causes) + 1 :] == ["scores", "edges", "faithfulness", "backups", "evidence", "files"]


def test_a_file_holds_a_baseline(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    one = baseline(edges={"a0.h0->logits": 1 / 3, "a0.h1->logits": None})
    path.write_text(one.text(), encoding="utf-8")
    again = Baseline.load(path)
    assert again == one.rounded()
    assert again.edges == {"a0.h0->logits": 0.333333, "a0.h1->logits": None}
    assert again.text() == one.text()
    lines = one.text().splitlines()
    assert '  "a0.h0->logits": 0.333333,' in lines, "an edge is a line of a diff"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 99}, "no baseline of version 1"),
        ({"prompts": None}, "incomplete"),
        ({"weights": {"a": 1}}, "incomplete"),
    ],
)
def test_a_damaged_baseline(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps({**baseline().as_dict(), **change}))
    with pytest.raises(UsageError, match=says):
        Baseline.load(path)


def test_what_the_hash_of_a_task_is_of() -> None:
    spec = load_task("ioi")

    def hashed(**keys: Any) -> str:
        return task_hash(spec.model_copy(update=keys))

    assert hashed(description="other", known={}, expect={}) == task_hash(spec)
    data = json.loads(spec.model_dump_json(by_alias=True, exclude_defaults=True))
    other = {**data, "answer-position": -2}
    assert task_hash(TaskSpec.model_validate(data)) == task_hash(spec)
    assert task_hash(TaskSpec.model_validate(other)) != task_hash(spec)


def test_settings_are_those_not_as_by_default() -> None:
    spec = load_task("ioi")
    usual, other = resolve(spec), resolve(spec, backups=False, count=7)
    assert "backups" not in settings_of(usual)
    assert settings_of(other) == {**settings_of(usual), "backups": False, "count": 7}
    assert begun(spec, usual, None, "f" * 64).model_hash == "f" * 16
