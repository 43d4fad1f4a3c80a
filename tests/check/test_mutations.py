"""Ten things that go wrong, put into the real code, weights or files: the check of the shipped tasks finds each, and says what
it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.check.cases import find_cases
from circuitfind.circuit import prune
from circuitfind.model import load
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.norms import Norm
from circuitfind.model.rules import PLAIN
from circuitfind.model.runs import Runs
from circuitfind.task import prompts
from circuitfind.task.align import Aligner
from circuitfind.task.metrics import METRICS
from tests.cli.helpers import Cli

PLANTED, GRADIENTS = "planted-induction", "gendered-pronoun"
"""The smallest cases that find something: a model with known edges, and a trained one with scores as the gradient gives
them.
"""


@dataclass
class Checked:
    """Runs a shipped task against its shipped baseline."""

    cli: Cli

    def __call__(self, task: str, *words: str | Path) -> tuple[int, list[dict[str, Any]]]:
        named = ("--case", "gradients") if task == GRADIENTS else ()
        found = self.cli("check", task, *named, "--jobs", "1", "--json", "-q", *words)
        return found.code, found.json["cases"]

    def passes(self, task: str, *words: str | Path) -> None:
        """As it is, the case is as expected; so what is found later is the mutation."""
        code, cases = self(task, *words)
        assert code == 0, [case["reasons"] for case in cases]
        assert all(case["baseline"] for case in cases)

    def differs(self, task: str, *words: str | Path) -> list[dict[str, Any]]:
        """Its reasons, the likeliest cause first."""
        code, (case,) = self(task, *words)
        assert code == 1
        assert case["verdict"] == "differs"
        found: list[dict[str, Any]] = case["reasons"]
        return found


@pytest.fixture
def checked(cli: Cli) -> Checked:
    return Checked(cli)


def texts(reasons: Sequence[dict[str, Any]], kind: str) -> list[str]:
    return [reason["text"] for reason in reasons if reason["kind"] == kind]


def test_tier_1_has_these_cases() -> None:
    cases, damaged = find_cases(tier=1)
    assert not damaged
    names = [case.label for case in cases]
    assert {PLANTED, f"{GRADIENTS} (gradients)"} <= set(names)


def test_unchanged(checked: Checked) -> None:
    checked.passes(PLANTED)
    checked.passes(GRADIENTS)


# --- 1 ------------------------------------------------------------------------------------------------------


def test_a_flipped_sign_in_a_metric(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    right = METRICS["logit-diff"]
    wrong = replace(right, compute=lambda *given: -right.compute(*given))
    monkeypatch.setitem(METRICS, "logit-diff", wrong)
    reasons = checked.differs(PLANTED)
    assert reasons[0]["text"] == "the mean metric of the clean prompts is -4.1, was 4.1"


def test_a_flipped_sign_where_answers_are_judged(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    from circuitfind.task import metrics

    right = metrics.log_odds
    monkeypatch.setattr(metrics, "log_odds", lambda *given: -right(*given))
    reasons = checked.differs(PLANTED)
    assert reasons[0]["text"] == "the model answers 0.0% of the prompts rightly, was 100.0%"
    assert any("it does not do this task" in text for text in texts(reasons, "refused"))


# --- 2 ------------------------------------------------------------------------------------------------------


def zeroed(layer: int, head: int) -> Callable[..., Any]:
    right = load.load_model

    def wrong(*given: Any, **named: Any) -> Any:
        model = right(*given, **named)
        model.layers[layer].w_o[head] = 0
        model.layers[layer].w_o_raw[head] = 0
        return model

    return wrong


@pytest.mark.parametrize(("task", "layer", "head"), [(PLANTED, 0, 0), (GRADIENTS, 0, 6)])
def test_one_heads_weights_zeroed(
    checked: Checked, monkeypatch: pytest.MonkeyPatch, task: str, layer: int, head: int
) -> None:
    monkeypatch.setattr(load, "load_model", zeroed(layer, head))
    reasons = checked.differs(task)
    assert reasons[0]["text"] == f"the model's weights are others: a{layer}.h{head}"
    assert ", was " in reasons[0]["lines"][0]
    later = " ".join(reason["text"] for reason in reasons[1:])
    assert f"lost a{layer}.h{head}->" in later or "rightly, was" in later or "clean prompts" in later


# --- 3 ------------------------------------------------------------------------------------------------------


def test_one_extra_edge(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    right = prune.prune

    def wrong(scores: Any, *given: Any, **named: Any) -> Any:
        found = right(scores, *given, **named)
        mask = found.mask.copy()
        mask[scores.anatomy.row_of(scores.anatomy.writers[0]), -1] = True
        return replace(found, mask=mask)

    monkeypatch.setattr(prune, "prune", wrong)
    reasons = checked.differs(PLANTED)
    assert reasons[0]["text"] == "the circuit gained input->logits (Jaccard index 0.750)"


# --- 4 ------------------------------------------------------------------------------------------------------


def test_q_and_k_swapped(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Anatomy.readers.func

    def wrong(self: Anatomy) -> Any:
        other = {"q": "k", "k": "q"}
        return tuple((node, other.get(slot or "", slot)) for node, slot in right(self))

    swapped = cached_property(wrong)
    swapped.__set_name__(Anatomy, "readers")
    monkeypatch.setattr(Anatomy, "readers", swapped)
    reasons = checked.differs(PLANTED)
    assert "lost a0.h0->a1.h1<k> and gained a0.h0->a1.h1<q>" in reasons[0]["text"]
    lost, gained = reasons[0]["lines"]
    assert lost.startswith("- a0.h0->a1.h1<k>  ")
    assert lost.endswith(", was 8.242")
    assert gained == "+ a0.h0->a1.h1<q>  8.242"


# --- 5 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [PLANTED, pytest.param(GRADIENTS, marks=pytest.mark.slow)])
def test_off_by_one_answer_position(checked: Checked, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    right = Aligner.align

    def wrong(self: Aligner, raw: Any) -> Any:
        pair = right(self, raw)
        return replace(pair, answer_position=pair.answer_position - 1)

    monkeypatch.setattr(Aligner, "align", wrong)
    reasons = checked.differs(task)
    assert reasons[0]["text"] == "the prompts differ: answers are read at another position"
    line = next(line for line in reasons[0]["lines"] if "answer_position" in line)
    now, was = (int(part.split()[-1]) for part in line.split(", was"))
    assert now == was - 1


# --- 6 ------------------------------------------------------------------------------------------------------


def mean_for_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Runs.contrast

    def wrong(self: Runs, number: int, ablation: Any, *given: Any, **named: Any) -> Any:
        return right(self, number, "mean" if ablation == "resample" else ablation, *given, **named)

    monkeypatch.setattr(Runs, "contrast", wrong)


def test_mean_in_place_of_resample(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    mean_for_resample(monkeypatch)
    reasons = checked.differs(PLANTED)
    assert reasons[0]["text"].startswith("the mean metric of the empty circuit under resample ablation is ")
    assert reasons[0]["text"].endswith(": what cut edges carry is other than it was")


def test_mean_in_place_of_resample_where_there_is_none(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean_for_resample(monkeypatch)
    (reason,) = checked.differs(GRADIENTS)
    assert reason["kind"] == "refused"
    assert reason["text"].startswith("the mean ablation needs at least two prompts of a template and length")


# --- 7 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_jacobian() -> Iterator[None]:
    """Gradients that take the scale of every norm for a constant, wherever they are taken."""
    object.__setattr__(PLAIN, "freeze_norms", True)
    yield
    object.__setattr__(PLAIN, "freeze_norms", False)


@pytest.mark.usefixtures("without_jacobian")
def test_a_dropped_layernorm_jacobian(checked: Checked) -> None:
    reasons = checked.differs(GRADIENTS)
    assert reasons[0]["kind"] == "scores"
    assert reasons[0]["text"].startswith("scores of edges differ by up to ")
    assert all(", was " in line for line in reasons[0]["lines"][:-1])
    assert not texts(reasons, "metric"), "forward passes are as they were"


def test_a_layernorm_jacobian_dropped_in_one_place(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Norm.pullback

    def wrong(self: Norm, x: Any, v: Any, *, frozen: bool = False) -> Any:
        return right(self, x, v, frozen=True)

    monkeypatch.setattr(Norm, "pullback", wrong)
    (reason,) = checked.differs(GRADIENTS)
    assert reason["text"].startswith("the edges of a node do not sum to the node")
    assert reason["text"].endswith("the scores cannot be trusted")


# --- 8 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [PLANTED, pytest.param(GRADIENTS, marks=pytest.mark.slow)])
def test_prompts_shuffled(checked: Checked, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    right = prompts.make_pairs

    def wrong(*given: Any, **named: Any) -> Any:
        """Corrupted prompts dealt anew among those of one length."""
        pairs = right(*given, **named)
        lengths = np.array([len(pair.clean) for pair in pairs])
        dealt: list[Any] = [None] * len(pairs)
        for length in set(lengths.tolist()):
            places = np.flatnonzero(lengths == length)
            for place, other in zip(places, np.roll(places, 1), strict=True):
                one, from_other = pairs[int(place)], pairs[int(other)]
                texts = {"corrupted": from_other.corrupted, "corrupted_text": from_other.corrupted_text}
                dealt[place] = replace(one, **texts)
        return replace(pairs, pairs=tuple(dealt))

    monkeypatch.setattr(prompts, "make_pairs", wrong)
    reasons = checked.differs(task)
    text = "the prompts differ: they are the same, but clean and corrupted ones are paired otherwise"
    assert reasons[0]["text"] == text


def test_prompts_in_another_order(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    right = prompts.make_pairs

    def wrong(*given: Any, **named: Any) -> Any:
        pairs = right(*given, **named)
        return pairs.subset(range(len(pairs) - 1, -1, -1))

    monkeypatch.setattr(prompts, "make_pairs", wrong)
    reasons = checked.differs(PLANTED)
    assert [reason["text"] for reason in reasons] == ["the prompts differ: they come in another order"]


# --- 9 ------------------------------------------------------------------------------------------------------


def test_tokenizer_changed(checked: Checked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from circuitfind import zoo

    folder = tmp_path / "weights"
    shutil.copytree(zoo.weights_path("mini"), folder)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    words = data["model"]["vocab"]
    words["\u0120doctor"], words["\u0120teacher"] = words["\u0120teacher"], words["\u0120doctor"]
    path.write_text(json.dumps(data), encoding="utf-8")
    monkeypatch.setattr(zoo, "weights_path", lambda name: folder)
    reasons = checked.differs(GRADIENTS)
    text = "the prompts' tokens differ for the same texts: the tokenizer is another"
    assert reasons[0]["text"] == text
    assert not texts(reasons, "model"), "its weights are the same"
    assert any("files of the model" in found for found in texts(reasons, "files"))


# --- 10 -----------------------------------------------------------------------------------------------------


def stale(checked: Checked, folder: Path, task: str, **keys: Any) -> list[dict[str, Any]]:
    """Reasons against baselines in which some keys are others."""
    shutil.copytree(Path(find_cases([task])[0][0].baseline()).parent, folder)
    for path in folder.glob(f"{task}.*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **keys}))
    return checked.differs(task, "--baselines", folder)


def test_baseline_of_another_task_file(checked: Checked, tmp_path: Path) -> None:
    reasons = stale(checked, tmp_path / "other", PLANTED, task_hash="0" * 16)
    text = "the baseline was made of another task file: look at the difference, then `circuitfind check"
    assert [reason["text"] for reason in reasons] == [f"{text} {PLANTED} --update`"]


def test_baseline_of_other_settings(checked: Checked, tmp_path: Path) -> None:
    (case,) = find_cases([PLANTED])[0]
    settings = json.loads(case.baseline().read_text(encoding="utf-8"))["settings"]
    other = {**settings, "count": 48, "rule": {**settings["rule"], "faithfulness": 0.8}}
    (reason,) = stale(checked, tmp_path / "other", PLANTED, settings=other)
    assert "other settings (count 32, was 48, rule.faithfulness 0.9, was 0.8)" in reason["text"]
    assert reason["text"].endswith("--update`")


def test_baseline_of_another_model(checked: Checked, tmp_path: Path) -> None:
    reasons = stale(checked, tmp_path / "other", GRADIENTS, model_hash="0" * 16)
    assert "the files of the model are others" in reasons[0]["text"]
    assert reasons[0]["text"].endswith("--update`")
    reasons = stale(checked, tmp_path / "third", PLANTED, model="planted/induction:7")
    assert reasons[0]["text"] == "the baseline is of model planted/induction:7, this is planted/induction"
