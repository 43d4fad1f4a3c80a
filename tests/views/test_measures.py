"""Effects, curves and attention on small models, against slow references: hooks on the library's own modules."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.circuit.curve import SHARES, circuits, edge_order, edge_strengths
from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.scores import Scores
from circuitfind.errors import RunError, UnsupportedError
from circuitfind.evidence.knockouts import completeness
from circuitfind.methods.activation_patching import ActivationPatching
from circuitfind.model.bridge import Model
from circuitfind.model.effects import DirectEffects
from circuitfind.model.runs import Runs
from circuitfind.names import LOGITS, Kind, parse_node
from circuitfind.views.curve import curve, nested, shares, sizes
from circuitfind.views.effects import direct_effects, means, patched_effects, scored_effects
from circuitfind.views.patterns import attention, packed, patterns, within
from circuitfind.views.prompts import choose
from circuitfind.views.report import Bounds, Point, Views
from tests import families
from tests.evidence.measured import turned_case

FAMILIES = ("ln", "attn-only", "gpt2", "kv-groups", "neox", "gemma2", "bidirectional")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@cache
def case(family: str, ablation: Any = "resample") -> Evaluator:
    model = families.model(family)
    return turned_case(model, families.pairs_for(model, count=6), ablation)


def scores_of(evaluator: Evaluator, seed: int = 0) -> Scores:
    anatomy = evaluator.runs.model.anatomy
    values = np.random.default_rng(seed).normal(size=anatomy.edge_mask.shape)
    masked = np.where(anatomy.edge_mask, values, np.nan)
    return Scores(anatomy, "edge", masked, "made", "noising", "logit-diff", "resample")


# --- effects --------------------------------------------------------------------------------------------------------


def by_hooks(runs: Runs, side: str) -> np.ndarray:
    """The metric of each prompt in the run of one side, with one writer at a time as in the other side's run."""
    bridge, anatomy = runs.model.bridge, runs.model.anatomy
    pairs = runs.pairs
    at = torch.tensor([pair.answer_position for pair in pairs])
    clean, corrupted = (torch.tensor([getattr(p, name) for p in pairs]) for name in ("clean", "corrupted"))
    base, other = (clean, corrupted) if side == "clean" else (corrupted, clean)
    names = {"input": runs.model.layers[0].sites["resid"].name}
    for index, layer in enumerate(runs.model.layers):
        names[f"z{index}"] = layer.sites["z"].name
        if anatomy.has_mlp:
            names[f"m{index}"] = layer.sites["mlp_out"].name
    with torch.no_grad():
        _, cache = bridge.run_with_cache(other, names_filter=list(names.values()))
    found = np.zeros((len(anatomy.writers), len(pairs)))
    for row, node in enumerate(anatomy.writers):
        key = "input" if row == 0 else f"z{node.layer}" if node.kind is Kind.HEAD else f"m{node.layer}"

        def hook(value: torch.Tensor, hook: Any, node: Any = node, key: str = key) -> torch.Tensor:
            wanted = cache[names[key]]
            if node.kind is not Kind.HEAD:
                return wanted
            out = value.clone().unflatten(-1, (anatomy.n_heads, -1)) if value.ndim == 3 else value.clone()
            given = wanted.unflatten(-1, (anatomy.n_heads, -1)) if wanted.ndim == 3 else wanted
            out[:, :, node.index] = given[:, :, node.index]
            return out.reshape(value.shape)

        with torch.no_grad():
            logits = bridge.run_with_hooks(base, fwd_hooks=[(names[key], hook)])[torch.arange(len(pairs)), at]
        for i, pair in enumerate(pairs):
            found[row, i] = float(logits[i, pair.answer[0]] - logits[i, pair.wrong[0]])
    return found


@pytest.mark.parametrize("family", ["gpt2", "ln", "attn-only"])
def test_patched_effects_are_those_of_hooks(family: str) -> None:
    runs = case(family).runs
    noised, denoised = by_hooks(runs, "clean"), by_hooks(runs, "corrupted")
    np.testing.assert_allclose(
        patched_effects(runs, "noising", "resample"), runs.clean - noised, atol=2e-4, rtol=1e-4
    )
    np.testing.assert_allclose(
        patched_effects(runs, "denoising", "resample"), denoised - runs.corrupted, atol=2e-4, rtol=1e-4
    )
    assert np.abs(runs.clean - noised).mean(1).min() > 1e-3, "every writer does something"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_input_is_everything(family: str) -> None:
    evaluator = case(family)
    for direction in ("noising", "denoising"):
        found = patched_effects(evaluator.runs, direction, "resample")[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(found, evaluator.full - evaluator.empty, atol=2e-4)


def test_denoising_needs_a_corrupted_run() -> None:
    with pytest.raises(UnsupportedError, match="mean ablation does not have"):
        patched_effects(case("ln").runs, "denoising", "mean")


def test_scores_that_are_these_effects_are_taken() -> None:
    runs = case("ln").runs
    own = ActivationPatching().run(runs, ablation="resample", direction="noising")
    found = scored_effects(own, runs, "noising", "resample")
    assert found is not None
    np.testing.assert_allclose(found, patched_effects(runs, "noising", "resample"), atol=1e-5)
    assert scored_effects(own, runs, "denoising", "resample") is None
    assert scored_effects(own, runs, "noising", "zero") is None
    both = ActivationPatching(both=True).run(runs, ablation="resample", direction="noising")
    assert scored_effects(both, runs, "noising", "resample") is None
    assert scored_effects(scores_of(case("ln")), runs, "noising", "resample") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_direct_effects_and_biases_add_up_to_the_metric(family: str) -> None:
    runs = case(family).runs
    model, found = runs.model, direct_effects(runs)
    np.testing.assert_allclose(found, DirectEffects(runs, [(LOGITS, None)]).clean[0], atol=1e-4)
    if family == "gemma2":  # caps its logits: no metric of them is linear
        return
    biases = np.zeros(len(runs))
    for number, batch in enumerate(runs.batches):
        trace = runs.trace(number, "clean")
        answers = batch.answers
        unembed = (model.w_u[:, answers.answer[:, 0]] - model.w_u[:, answers.wrong[:, 0]]).T
        final = model.final_norm
        here = torch.zeros(len(batch.index))
        constant = sum(
            (layer.b_o for layer in model.layers if layer.b_o is not None), torch.zeros(model.d_model)
        )
        if final.kind == "ln":
            constant = constant - constant.mean()
        if final.kind != "none":
            scale = final.inverse_scale(trace.final)
            weight = 1.0 if final.weight is None else final.weight
            here += ((constant * weight) * unembed).sum(-1) * scale.reshape(-1)
        else:
            here += (constant * unembed).sum(-1)
        if final.bias is not None:
            here += unembed @ final.bias
        if model.b_u is not None:
            here += model.b_u[answers.answer[:, 0]] - model.b_u[answers.wrong[:, 0]]
        biases[batch.index] = here.detach().numpy()
    np.testing.assert_allclose(found.sum(0) + biases, runs.clean, atol=3e-4)


def test_intervals_are_of_means_over_prompts() -> None:
    values = np.random.default_rng(0).normal(1, 1, size=(3, 40))
    found = means(values)
    for interval, row in zip(found, values, strict=True):
        assert interval.value == pytest.approx(row.mean())
        assert interval.low < interval.value < interval.high
        half = 1.96 * row.std() / np.sqrt(40)
        assert interval.high - interval.low == pytest.approx(2 * half, rel=0.15)


# --- the curve ------------------------------------------------------------------------------------------------------


def test_sizes_rise_by_equal_factors_to_all_edges() -> None:
    found = sizes(32491, 300, 25)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (1, 32491)
    assert 300 in found
    assert 22 <= len(found) <= 26
    assert sizes(7, 0, 25) == [1, 2, 3, 4, 5, 6, 7]


def test_circuits_are_those_of_the_benchmark() -> None:
    scores = scores_of(case("gpt2"))
    anatomy = scores.anatomy
    counts = [int(share * anatomy.n_edges + 1e-9) for share in SHARES]
    wanted = circuits(anatomy, edge_order(anatomy, edge_strengths(scores)), SHARES)
    for found, mask in zip(nested(scores, counts), wanted, strict=True):
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize(
    ("family", "ablation"), [("ln", "resample"), ("kv-groups", "zero"), ("attn-only", "mean")]
)
def test_curve_point_by_point(family: str, ablation: str) -> None:
    evaluator = case(family, ablation)
    scores, every = scores_of(evaluator), evaluator.runs.model.anatomy.edge_mask
    edges = sizes(int(every.sum()), 9, 6)
    own = nested(scores, [9])[0]
    faithful, left = shares(evaluator, evaluator.each_once([own, every & ~own]))
    point = Point(int(own.sum()), len(evaluator.runs), faithful, left)
    found = curve(evaluator, scores, edges, point, None)
    assert found.edges == tuple(edges)
    assert vars(found.faithfulness[-1]) == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert vars(found.completeness[-1]) == {"value": 0.0, "low": 0.0, "high": 0.0}
    for mask, f, k, size in zip(
        nested(scores, edges), found.faithfulness, found.completeness, found.connected, strict=True
    ):
        assert size == mask.sum()
        assert f.value == pytest.approx(float(evaluator.faithfulness([mask])[0]), abs=1e-4)
        assert k.value == pytest.approx(completeness(evaluator, mask).left.value, abs=1e-4)
    i = edges.index(9)
    assert found.faithfulness[i].value == pytest.approx(faithful.value, abs=1e-5)
    assert found.completeness[i].value == pytest.approx(left.value, abs=1e-5)
    assert found.circuit == point


def test_no_curve_without_a_behaviour() -> None:
    runs = case("ln").runs
    pairs = families.pairs_for(runs.model, count=4)
    same = type(pairs)(tuple(type(p)(**{**vars(p), "corrupted": p.clean}) for p in pairs), "none")
    evaluator = Evaluator(families.runs_of(runs.model, same), "resample")
    with pytest.raises(RunError, match="no behaviour"):
        curve(evaluator, scores_of(evaluator), [1], Point(0, 4, *[Bounds(0.0, 0.0, 0.0)] * 2), None)


# --- attention ------------------------------------------------------------------------------------------------------


def library_attention(model: Model, tokens: tuple[int, ...]) -> np.ndarray:
    with torch.no_grad():
        _, seen = model.bridge.run_with_cache(torch.tensor([tokens]))
    return np.stack(
        [seen[f"blocks.{i}.attn.hook_pattern"][0].float().numpy() for i in range(len(model.layers))]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_are_the_librarys_own(family: str) -> None:
    model = families.model(family)
    pairs = families.pairs_for(model, count=2, lengths=(7, 5), last=False)
    heads = [parse_node("a1.h1"), parse_node("a0.h0")]
    chosen: Any = [(0, "clean", "typical"), (0, "corrupted", "typical"), (1, "clean", "best")]
    found, note = patterns(model, dict(enumerate(pairs)), chosen, heads, str)
    assert found is not None
    assert not note
    assert list(found.heads) == ["a1.h1", "a0.h0"]
    for number, (pair, side, why) in enumerate(chosen):
        tokens = getattr(pairs[pair], side)
        wanted, shown = library_attention(model, tokens), found.prompts[number]
        length = pairs[pair].answer_position + 1 if model.causal else len(tokens)
        assert (shown.pair, shown.side, shown.why) == (pair, side, why)
        assert shown.tokens == tuple(map(str, tokens[:length]))
        for head in heads:
            np.testing.assert_allclose(
                found.matrix(str(head), number),
                wanted[head.layer, head.index, :length, :length],
                atol=1 / 255,
            )
        assert attention(model, tokens).std() > 1e-2


def test_packed_is_row_by_row() -> None:
    pattern = np.array([[1.0, 0.0], [0.25, 0.75]])
    assert packed(pattern) == "/wBAvw=="


def test_long_prompts_leave_prompts_and_then_heads_out() -> None:
    assert within([10, 10, 10], 4, 10_000) == (3, 4)
    assert within([10, 10, 10], 4, 900) == (2, 4)
    assert within([10, 10], 4, 250) == (1, 2)
    assert within([100], 4, 900) == (0, 0)
    assert within([], 4, 900) == (0, 0)
    model = families.model("ln")
    pairs = dict(enumerate(families.pairs_for(model, count=1)))
    assert patterns(model, pairs, [(0, "clean", "best")], [], str)[0] is None


# --- prompts --------------------------------------------------------------------------------------------------------


def test_pairs_worth_a_look() -> None:
    values = np.array([5.0, 1.0, 9.0, 4.0, 6.0, 5.5, 5.2])
    groups = ["a", "a", "a", "a", "b", "c", "a"]
    assert choose(values, groups, [3, 1]) == [
        (6, "typical"),
        (2, "best"),
        (1, "worst"),
        (3, "outlier"),
        (4, "template b"),
        (5, "template c"),
    ]
    assert choose(values, groups, [], most=2) == [(6, "typical"), (2, "best")]
    assert choose(np.zeros(3), ["a"] * 3, []) == [(0, "typical")]


def test_views_without_anything() -> None:
    empty = Views({}, None, None, None, None, {"effects": "why"})
    assert Views.from_dict(empty.as_dict()) == empty
