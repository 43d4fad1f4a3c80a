"""Completeness, incompleteness and minimality: identities, plain references, and planted circuits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.intervals import BOOTSTRAP
from circuitfind.config import Ablation, Level
from circuitfind.errors import UsageError
from circuitfind.evidence.knockouts import NOISE, completeness, cut, incompleteness, minimality, parts_of
from circuitfind.model.node_pass import Patch
from tests import families
from tests.evidence.measured import planted_case, turned_case

LEVELS: tuple[Level, ...] = ("node", "edge")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def random_case(family: str = "ln", ablation: Ablation = "resample") -> tuple[Evaluator, np.ndarray]:
    model = families.model(family)
    evaluator = turned_case(model, families.pairs_for(model, count=9), ablation)
    return evaluator, families.random_mask(model.anatomy.edge_mask, 0.3, 0)


def strict(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


def f(evaluator: Evaluator, mask: np.ndarray) -> float:
    """Faithfulness with one pass of its own."""
    every = evaluator.runs.model.anatomy.edge_mask
    values = evaluator.runs.patched([Patch(edges=every & ~mask)], ablation=evaluator.ablation)[0]
    empty = evaluator.runs.patched([Patch(edges=every.copy())], ablation=evaluator.ablation)[0]
    return float((values.mean() - empty.mean()) / (evaluator.runs.clean.mean() - empty.mean()))


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_nothing_is_left_without_the_whole_model_and_all_without_nothing(ablation: Ablation) -> None:
    evaluator, mask = random_case(ablation=ablation)
    every = evaluator.runs.model.anatomy.edge_mask
    all_gone, none_gone = completeness(evaluator, every), completeness(evaluator, np.zeros_like(mask))
    assert (all_gone.left.value, all_gone.left.low, all_gone.left.high) == (0, 0, 0)
    assert (none_gone.left.value, none_gone.left.low, none_gone.left.high) == (1, 1, 1)
    assert (none_gone.ablation, none_gone.metric, none_gone.n_prompts) == (ablation, "logit-diff", 9)


@pytest.mark.parametrize("level", LEVELS)
def test_the_whole_model_answers_to_every_knock_out_as_itself(level: Level) -> None:
    evaluator, mask = random_case()
    every = evaluator.runs.model.anatomy.edge_mask
    found = incompleteness(evaluator, every, level=level, draws=8)
    assert all(k.circuit == k.model for k in found.knock_outs)
    assert (found.mean.value, found.mean.low, found.mean.high) == (0, 0, 0)
    assert found.worst.incompleteness == 0
    assert incompleteness(evaluator, mask, level=level, draws=8).mean.value > 0.01, "nothing differs here"


# --- plain references -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["ln", "llama", "neox"])
def test_completeness_by_hand(family: str) -> None:
    evaluator, mask = random_case(family)
    every = evaluator.runs.model.anatomy.edge_mask
    found = completeness(evaluator, mask)
    assert found.left.value == pytest.approx(f(evaluator, every & ~mask), abs=1e-5)
    assert found.left.low < found.left.value < found.left.high
    assert found.evaluations == 2  # the empty one, and this


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", ["ln", "llama"])
def test_incompleteness_by_hand(family: str, level: Level) -> None:
    evaluator, mask = random_case(family)
    anatomy = evaluator.runs.model.anatomy
    found = incompleteness(evaluator, mask, level=level, draws=6, seed=3)
    assert len(found.knock_outs) == 6
    for knock_out in found.knock_outs:
        left = {}
        for name, start in (("circuit", mask), ("model", anatomy.edge_mask)):
            left[name] = start.copy()
            for part in knock_out.parts:
                if level == "edge":
                    left[name][anatomy.index_of(part)] = False
                else:
                    left[name][anatomy.row_of(part)] = False
        assert knock_out.circuit == pytest.approx(f(evaluator, left["circuit"]), abs=1e-5)
        assert knock_out.model == pytest.approx(f(evaluator, left["model"]), abs=1e-5)
    sizes = [k.incompleteness for k in found.knock_outs]
    assert found.mean.value == pytest.approx(np.mean(sizes))
    assert found.worst.incompleteness == max(sizes)
    assert abs(found.worst_difference.value) == pytest.approx(max(sizes))
    assert found.evaluations <= 1 + 2 * 6


def test_cutting_what_reaches_a_knocked_out_node_changes_nothing() -> None:
    evaluator, _ = random_case("gpt2")
    anatomy = evaluator.runs.model.anatomy
    row = anatomy.row_of("a1.h2")
    out = cut(anatomy.edge_mask, [(row,)])
    both = out.copy()
    both[:, [anatomy.reader_index[name] for name in anatomy.readers_of(anatomy.writers[row])]] = False
    assert out.sum() > both.sum()
    assert f(evaluator, out) == pytest.approx(f(evaluator, both), abs=1e-6)


def test_each_part_is_in_half_of_the_sets() -> None:
    evaluator, mask = random_case()
    found = incompleteness(evaluator, mask, draws=60, seed=1)
    names = [name for name, _ in parts_of(evaluator.runs.model.anatomy, mask, "node")]
    shares = [sum(name in k.parts for k in found.knock_outs) / 60 for name in names]
    assert 0.3 < min(shares) < 0.5 < max(shares) < 0.7
    again = incompleteness(evaluator, mask, draws=60, seed=1)
    assert again.knock_outs == found.knock_outs
    assert incompleteness(evaluator, mask, draws=60, seed=2).knock_outs != found.knock_outs


def test_the_interval_of_incompleteness_is_a_plain_bootstrap() -> None:
    evaluator, mask = random_case()
    anatomy = evaluator.runs.model.anatomy
    found = incompleteness(evaluator, mask, draws=4, seed=5, kind="percentile")
    gaps = []
    for knock_out in found.knock_outs:
        places = [(anatomy.row_of(name),) for name in knock_out.parts]
        pair = evaluator.values([cut(mask, places), cut(anatomy.edge_mask, places)])
        gaps.append(pair[0] - pair[1])
    scale = evaluator.full - evaluator.empty
    slow = []
    for row in np.random.default_rng(5).integers(0, 9, size=(BOOTSTRAP, 9)):
        below = scale[row].mean()
        slow.append(np.mean([abs(gap[row].mean()) for gap in gaps]) / below)
    low, high = np.quantile(slow, [0.025, 0.975])
    assert scale.min() > 0, "every draw has something to explain"
    assert (found.mean.low, found.mean.high) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", ["ln", "llama"])
def test_minimality_by_hand(family: str, level: Level) -> None:
    evaluator, mask = random_case(family)
    anatomy = evaluator.runs.model.anatomy
    found = minimality(evaluator, mask, level=level)
    assert found.faithfulness == pytest.approx(f(evaluator, mask), abs=1e-5)
    names = {part.part for part in found.parts}
    if level == "edge":
        assert names == {str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(mask)}
    else:
        assert names == {anatomy.writer_names[w] for w in np.flatnonzero(mask.any(1))} - {"input"}
    values = [part.share.value for part in found.parts]
    assert values == sorted(values, reverse=True)
    for part in found.parts[:3] + found.parts[-3:]:
        left = mask.copy()
        left[anatomy.index_of(part.part) if level == "edge" else anatomy.row_of(part.part)] = False
        wanted = f(evaluator, mask) - f(evaluator, left)
        assert part.share.value == pytest.approx(wanted, abs=1e-5)
        assert part.superfluous == (part.share.low <= NOISE and part.share.high >= -NOISE)
    assert found.evaluations <= 2 + len(found.parts)
    assert found.superfluous_share == len(found.superfluous) / len(found.parts)


# --- planted circuits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["planted/induction:0", "planted/ioi-planted:0", "planted/and-gate:0"])
def test_a_true_circuit_is_complete_and_minimal(name: str) -> None:
    evaluator, mask = planted_case(name)
    assert abs(completeness(evaluator, mask).left.value) < 0.05
    found = incompleteness(evaluator, mask, draws=12)
    assert found.mean.value < 0.05
    for level in LEVELS:
        minimal = minimality(evaluator, mask, level=level)
        assert minimal.faithfulness == pytest.approx(1, abs=0.05)
        assert not minimal.superfluous
        assert minimal.parts[-1].share.low > 0.3


def test_edges_that_do_nothing_are_superfluous() -> None:
    evaluator, true = planted_case("planted/ioi-planted:0")
    anatomy = evaluator.runs.model.anatomy
    rng = np.random.default_rng(0)
    spare = np.argwhere(anatomy.edge_mask & ~true)
    mask = true.copy()
    for w, r in rng.permutation(spare)[:12]:
        mask[w, r] = True
    found = minimality(evaluator, mask)
    needed = {part.part for part in found.parts if part.share.value > 0.05}
    assert needed == {str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(true)}
    assert not needed & set(found.superfluous)
    assert len(found.superfluous) >= 10, "about one of twenty looks needed by chance"
    assert found.evaluations == 2 + int(mask.sum())


def test_half_of_an_or_is_incomplete() -> None:
    """Either arm is enough, so a circuit of one is faithful and nothing is left without it, since it holds what the arms
    write to; only where that arm is knocked out does the model go on, and the circuit not.
    """
    evaluator, mask = planted_case("planted/or-gate:0")
    anatomy = evaluator.runs.model.anatomy
    arms = [int(row) for row in np.flatnonzero(mask.any(1)) if anatomy.writer_names[row].startswith("a")]
    assert len(arms) == 2
    half = cut(mask, [(arms[0],)])
    assert f(evaluator, half) > 0.99
    assert completeness(evaluator, half).left.value < 0.01
    found = incompleteness(evaluator, half, draws=30)
    assert found.worst.parts == (anatomy.writer_names[arms[1]],)
    assert found.worst_difference.low < -0.99
    assert found.worst_difference.high < -0.99
    assert found.mean.value > 0.1
    assert incompleteness(evaluator, mask, draws=30).worst.incompleteness < 0.01
    # In the whole, neither arm adds anything to speak of.
    shares = {part.part: part.share.value for part in minimality(evaluator, mask, level="node").parts}
    assert max(shares[anatomy.writer_names[row]] for row in arms) < 0.01


# --- the rest -------------------------------------------------------------------------------------------------------


def test_results_are_plain_data() -> None:
    evaluator, mask = random_case()
    assert set(strict(completeness(evaluator, mask).as_dict())) == {
        "left",
        "ablation",
        "metric",
        "n_prompts",
        "evaluations",
    }
    data = strict(incompleteness(evaluator, mask, draws=2).as_dict())
    assert set(data["worst"]) == {"parts", "circuit", "model", "incompleteness"}
    assert len(data["knock_outs"]) == 2
    parts = strict(minimality(evaluator, mask).as_dict())["parts"]
    assert set(parts[0]) == {"part", "contribution", "superfluous", "harmful"}


def test_a_circuit_of_nothing() -> None:
    evaluator, mask = random_case()
    none = np.zeros_like(mask)
    found = minimality(evaluator, none)
    assert (found.parts, found.superfluous_share, found.faithfulness) == ((), 0, 0)
    with pytest.raises(UsageError, match="no node of the circuit to knock out"):
        incompleteness(evaluator, none)
    with pytest.raises(UsageError, match="0 sets knock out nothing"):
        incompleteness(evaluator, mask, draws=0)
