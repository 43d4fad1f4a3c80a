"""Stability: circuits that do not move, edges that hang on one prompt, seeds and counterfactuals that say nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.prune import prune
from circuitfind.circuit.rule import Rule
from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction
from circuitfind.errors import PromptError, RunError, UsageError
from circuitfind.evidence.counterfactuals import CounterfactualStability, over_counterfactuals
from circuitfind.evidence.search import runs_over
from circuitfind.evidence.seeds import SeedStability, over_seeds
from circuitfind.evidence.stability import Overlap, PromptStability, draw_prompts, over_prompts
from circuitfind.methods import get_method
from circuitfind.model.load import load_model, planted
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs
from tests import families
from tests.families import pairs_for, runs_of

HOW: dict[str, Any] = {"ablation": "resample", "direction": "noising"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def planted_pairs(name: str, count: int = 16, seed: int = 0) -> PromptPairs:
    pairs = planted(name).pairs(count, seed)
    return PromptPairs(
        tuple(
            PromptPair(
                p.clean, p.corrupted, (p.answer,), (p.wrong,), len(p.clean) - 1, p.positions, "", "", "x", "g"
            )
            for p in pairs
        ),
        "planted",
    )


def planted_runs(name: str, pairs: PromptPairs | None = None, **options: Any) -> Runs:
    model = load_model(name, device="cpu")
    return Runs(model, pairs or planted_pairs(name, **options), get_metric("logit-diff"))


def random_runs(count: int = 8) -> Runs:
    model = families.model("gpt2")
    return runs_of(model, pairs_for(model, count=count, lengths=(5, 7)))


def true_mask(name: str, ablation: str = "resample") -> np.ndarray:
    anatomy = load_model(name, device="cpu").anatomy
    mask = np.zeros_like(anatomy.edge_mask)
    for edge in planted(name).edges[ablation]:
        mask[anatomy.index_of(edge)] = True
    return mask


def one_cue(pairs: PromptPairs, which: int) -> PromptPairs:
    """Pairs of a gate in which only one of the two cues differs."""
    changed = []
    for pair in pairs:
        places = [i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupted, strict=True)) if a != b]
        assert len(places) == 2
        tokens = list(pair.clean)
        tokens[places[which]] = pair.corrupted[places[which]]
        changed.append(replace(pair, corrupted=tuple(tokens)))
    return replace(pairs, pairs=tuple(changed))


# --- prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "direction"),
    [("induction:1", "noising"), ("ioi-planted:2", "noising"), ("or-gate:0", "denoising")],
)
@pytest.mark.parametrize("how", ["count", "rule"])
def test_a_written_circuit_does_not_move(name: str, direction: Direction, how: Any) -> None:
    name = f"planted/{name}"
    truth, runs = true_mask(name), planted_runs(name)
    found = over_prompts(
        runs,
        get_method("eap"),
        ablation="resample",
        direction=direction,
        rule=Rule(faithfulness=0.9),
        circuit=truth,
        prune=how,
        draws=6,
    )
    assert found.edges == found.nodes == Overlap(1, 1, 1, 1, 15)
    assert found.edges_with_circuit == found.nodes_with_circuit == Overlap(1, 1, 1, 1, 6)
    assert found.whole_with_circuit == 1
    assert {one.name for one in found.circuit_edges} == planted(name).edges["resample"]
    assert all(one.frequency == 1 for one in (*found.circuit_edges, *found.circuit_nodes))
    assert found.other_edges == ()
    assert set(found.sizes) == {int(truth.sum())}
    assert min(found.faithfulness) > 0.85
    assert found.says_something
    assert found.different == 6
    assert not found.reached, "16 prompts are few"
    assert "short of 100 prompts (there are 16)" in found.text


def test_an_edge_that_hangs_on_one_prompt() -> None:
    """It is found in the draws that have the prompt: 1 - (1 - 1/n)^n of them."""
    name, n = "planted/and-gate:0", 8
    pairs = planted_pairs(name, n)
    lone = 5
    mixed = replace(
        pairs,
        pairs=tuple(one_cue(pairs, 1)[i] if i == lone else one_cue(pairs, 0)[i] for i in range(n)),
    )
    runs = planted_runs(name, mixed)
    draws = 400
    found = over_prompts(
        runs,
        get_method("eap"),
        **HOW,
        rule=Rule(threshold=0.05),
        prune="rule",
        draws=draws,
        seed=3,
        measure=False,
    )
    with_it = (draw_prompts(mixed, draws, 3) == lone).any(1).mean()
    expected = 1 - (1 - 1 / n) ** n
    assert with_it == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / draws))
    frequency = {one.name: one.frequency for one in found.circuit_edges}
    arms = [
        next(edge for edge in frequency if edge.startswith("input->") and head in edge)
        for head in sorted({e.split("->")[0] for e in frequency} - {"input"})
        if head.startswith("a")
    ]
    assert len(arms) == 2
    assert sorted(frequency[edge] for edge in arms)[0] == with_it
    assert max(frequency.values()) == 1
    assert found.sizes.count(min(found.sizes)) == round((1 - with_it) * draws)
    assert 0.5 < found.edges.mean < 1
    assert not found.reached


@pytest.mark.parametrize(
    ("name", "how"),
    [("eap-ig", "count"), ("eap-ig", "rule"), ("hybrid", "count"), ("atp", "count"), ("ensemble", "count")],
)
def test_one_run_gives_what_running_again_gives(name: str, how: Any) -> None:
    runs = random_runs()
    options = {"hybrid": {"verify": 10}, "eap-ig": {"steps": 2}, "ensemble": {"of": "eap,relp"}}
    method = get_method(name, options.get(name))
    rule = Rule(edges=25) if how == "count" else Rule(faithfulness=0.7, evaluations=300)
    given: dict[str, Any] = {**HOW, "rule": rule, "prune": how, "draws": 3, "seed": 1}
    fast = over_prompts(runs, method, **given)
    slow = over_prompts(runs, method, **given, rerun=True)
    assert (fast.reran, slow.reran) == (False, True)
    assert fast.edges.mean < 1, "prompts at random: circuits differ, so something is compared"
    assert slow.backward > fast.backward
    same = replace(
        slow, reran=False, forward=fast.forward, backward=fast.backward, faithfulness=fast.faithfulness
    )
    assert same == fast
    assert slow.faithfulness == pytest.approx(fast.faithfulness, abs=1e-5)


def test_drawn_runs_are_of_the_same_kind_and_know_nothing_of_the_others() -> None:
    class Doubled(Runs):
        """As runs across models: what is ablated comes from elsewhere."""

        def ablated(self, number: int, ablation: Any) -> Any:
            return super().ablated(number, ablation).zeros()

    plain = random_runs()
    runs = Doubled(plain.model, plain.pairs, plain.metric, plan=plain.plan)
    before = runs.clean.copy(), get_method("eap").run(runs, **HOW).values
    drawn = runs_over(runs, runs.pairs.subset([3, 3, 1]))
    assert type(drawn) is Doubled
    np.testing.assert_allclose(drawn.clean, before[0][[3, 3, 1]], atol=1e-5)
    fresh = Doubled(plain.model, plain.pairs.subset([3, 3, 1]), plain.metric, plan=plain.plan)
    ours, theirs = (get_method("eap").run(one, **HOW).values for one in (drawn, fresh))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(runs.clean, before[0])
    np.testing.assert_array_equal(get_method("eap").run(runs, **HOW).values, before[1])


def test_against_a_bootstrap_by_hand() -> None:
    """Sets, frequencies and indices, from nothing but the method and the pruning."""
    runs, method, rule = random_runs(), get_method("eap"), Rule(edges=20)
    found = over_prompts(runs, method, **HOW, rule=rule, draws=5, seed=7)
    anatomy, sets = runs.model.anatomy, []
    for draw in np.random.default_rng(7).integers(0, 8, size=(5, 8)):
        again = runs_of(runs.model, runs.pairs.subset(draw.tolist()))
        mask = prune(method.run(again, **HOW), rule, Evaluator(again, "resample")).mask
        sets.append({str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(mask)})
    pairs = [len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
    assert found.edges.mean == pytest.approx(np.mean(pairs))
    assert found.edges.least == pytest.approx(min(pairs))
    assert found.sizes == tuple(map(len, sets))
    for one in (*found.circuit_edges, *found.other_edges):
        assert one.frequency == pytest.approx(np.mean([one.name in s for s in sets]))
    outside = [one.frequency for one in found.other_edges]
    assert outside == sorted(outside, reverse=True)
    assert len(outside) <= 20
    assert not {one.name for one in found.other_edges} & {one.name for one in found.circuit_edges}


def test_the_draws_take_no_more_passes() -> None:
    runs = random_runs()
    few, many = (
        over_prompts(runs, get_method("eap-ig"), **HOW, rule=Rule(edges=20), draws=draws, measure=False)
        for draws in (2, 40)
    )
    assert few.backward == many.backward == 5 * len(runs.batches)
    assert many.forward <= few.forward
    assert len(few.sizes) == 2
    assert len(many.sizes) == 40
    assert few.faithfulness == ()


def test_mean_ablation_draws_within_templates_and_runs_again() -> None:
    runs = random_runs(12)
    found = over_prompts(
        runs, get_method("eap"), ablation="mean", direction="noising", rule=Rule(edges=20), draws=3
    )
    assert found.reran
    assert found.within_groups
    keys = np.array([len(p.clean) for p in runs.pairs])
    drawn = draw_prompts(runs.pairs, 50, 0, within_groups=True)
    assert (keys[drawn] == keys[None]).all()
    assert {int(i) for i in drawn.ravel()} == set(range(12))
    assert not (np.sort(drawn, axis=1) == np.arange(12)).all(1).any(), "with replacement"


def test_positions_kept_apart_are_run_again() -> None:
    runs = random_runs()
    found = over_prompts(runs, get_method("eap"), **HOW, rule=Rule(edges=20), draws=2, positions="all")
    assert found.reran


def test_draws_that_change_nothing_say_nothing() -> None:
    name = "planted/induction:1"
    one = planted_pairs(name, 1)
    same = replace(one, pairs=one.pairs * 120)
    found = over_prompts(
        planted_runs(name, same), get_method("eap"), **HOW, rule=Rule(faithfulness=0.9), prune="rule", draws=3
    )
    assert found.edges.mean == 1
    assert found.different == 1
    assert not found.says_something
    assert not found.reached
    assert "changes nothing" in found.text


def test_draws_without_a_circuit_are_empty() -> None:
    """All prompts but one are their own corrupted prompts: draws without that one have nothing to find."""
    name = "planted/induction:1"
    pairs = planted_pairs(name, 4)
    idle = [replace(p, corrupted=p.clean) for p in pairs.pairs[1:]]
    runs = planted_runs(name, replace(pairs, pairs=(pairs[0], *idle)))
    found = over_prompts(runs, get_method("eap"), **HOW, rule=Rule(edges=3), draws=30, measure=False)
    has = (draw_prompts(runs.pairs, 30, 0) == 0).any(1)
    assert [size > 0 for size in found.sizes] == has.tolist()
    assert 0 < has.mean() < 1
    assert {one.frequency for one in found.circuit_edges} == {has.mean()}


def test_the_same_answer_whatever_the_task_is_not_specific() -> None:
    runs = random_runs()
    rule = Rule(edges=20)
    mask = prune(get_method("eap").run(runs, **HOW), rule, Evaluator(runs, "resample")).mask
    found = over_prompts(
        runs, get_method("eap"), **HOW, rule=rule, circuit=mask, draws=3, others={"shuffled pairs": mask}
    )
    assert found.specificity is not None
    assert found.specificity.nearest == ("shuffled pairs", 1.0)
    assert "With shuffled pairs the circuit shares no less: 1.00" in found.text


def test_what_is_told() -> None:
    base = over_prompts(random_runs(), get_method("eap"), **HOW, rule=Rule(edges=20), draws=2)
    good = replace(base, prompts=100, edges=Overlap(0.81, 0.7, 0.9, 0.6, 190))
    assert good.reached
    assert "0.81" in good.text
    assert "; enough (Meloux et al. 2025)" in good.text
    short = replace(good, edges=Overlap(0.8, 0.7, 0.9, 0.6, 190), prompts=99)
    assert not short.reached
    assert "short of an index above 0.8 and 100 prompts (there are 99)" in short.text
    assert not replace(good, prompts=99).reached
    again = PromptStability.from_dict(json.loads(json.dumps(good.as_dict())))
    assert again == good
    assert good.as_dict()["reached"] is True


def test_wrong_calls() -> None:
    runs = random_runs()
    with pytest.raises(UsageError, match="cannot be compared"):
        over_prompts(runs, get_method("eap"), **HOW, rule=Rule(edges=20), draws=1)
    with pytest.raises(UsageError, match="how many edges"):
        over_prompts(runs, get_method("eap"), **HOW, rule=Rule(faithfulness=0.9))
    pairs = planted_pairs("planted/induction:1", 3)
    idle = replace(pairs, pairs=tuple(replace(p, corrupted=p.clean) for p in pairs))
    with pytest.raises(RunError):
        over_prompts(planted_runs("planted/induction:1", idle), get_method("eap"), **HOW, rule=Rule(edges=3))


# --- counterfactuals ------------------------------------------------------------------------------------------


def gate_runs(counterfactual: str) -> Runs:
    name = "planted/and-gate:0"
    pairs = planted_pairs(name)
    if counterfactual == "broken":
        raise PromptError("no pair lines up", hint="write others")
    if counterfactual in ("first", "second"):
        pairs = one_cue(pairs, int(counterfactual == "second"))
    return planted_runs(name, pairs)


def test_what_a_counterfactual_does_not_show() -> None:
    """A cue that stays on hides its head: each counterfactual shows one arm of the gate, the third both."""
    truth = planted("planted/and-gate:0")
    arms = {role: head for head, role in truth.roles.items()}
    found = over_counterfactuals(
        gate_runs, ("both", "first", "second"), get_method("eap"), **HOW, rule=Rule(threshold=0.05)
    )
    assert found.names == ("both", "first", "second")
    assert set(found.edges) == truth.edges["resample"]
    by_head = {head: set(found.nodes[head]) for head in (arms["arm-a"], arms["arm-b"])}
    assert sorted(map(sorted, by_head.values())) == [["both", "first"], ["both", "second"]]
    assert set(found.under_all(found.nodes)) == {"input", arms["gate"], "logits"}
    assert set(found.under_some(found.nodes)) == set(by_head)
    assert found.under_one(found.nodes) == ()
    hidden = {head: found.not_visible(head) for head in by_head}
    assert set(hidden.values()) == {("first",), ("second",)}
    assert found.not_visible("logits") == ()
    assert len(found.disagreements) == 2
    assert all("not visible under" in line and "absent" not in line for line in found.disagreements)
    assert found.sizes == {"both": 5, "first": 3, "second": 3}
    assert {pair[:2]: pair[2] for pair in found.pairs} == {
        ("both", "first"): pytest.approx(3 / 5),
        ("both", "second"): pytest.approx(3 / 5),
        ("first", "second"): pytest.approx(1 / 5),
    }
    assert found.edge_overlap.mean == pytest.approx((3 / 5 + 3 / 5 + 1 / 5) / 3)
    assert found.text.startswith("3 of 5 nodes and 1 of 5 edges are found under all 3 counterfactuals")
    assert CounterfactualStability.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_found_under_one_alone() -> None:
    found = over_counterfactuals(
        gate_runs, ("first", "second"), get_method("eap"), **HOW, rule=Rule(threshold=0.05)
    )
    assert len(found.under_one(found.nodes)) == 2
    assert found.under_some(found.nodes) == ()
    assert "found under both counterfactuals" in found.text


def test_counterfactuals_that_cannot_be_run_are_told() -> None:
    found = over_counterfactuals(
        gate_runs, ("both", "broken"), get_method("eap"), **HOW, rule=Rule(threshold=0.05)
    )
    assert found.names == ("both",)
    assert found.failed == {"broken": "no pair lines up"}
    assert not found.says_something
    assert found.under_one(found.nodes) == ()
    assert "says nothing of counterfactuals: a circuit under both alone" in found.text
    assert "none under broken: no pair lines up" in found.text
    with pytest.raises(PromptError, match="no pair lines up"):
        over_counterfactuals(gate_runs, ("broken",), get_method("eap"), **HOW, rule=Rule(edges=3))
    with pytest.raises(UsageError, match="no counterfactuals"):
        over_counterfactuals(gate_runs, (), get_method("eap"), **HOW, rule=Rule(edges=3))


def test_a_circuit_that_is_known_is_not_looked_for_again() -> None:
    truth = true_mask("planted/and-gate:0")
    found = over_counterfactuals(
        gate_runs, ("both",), get_method("eap"), **HOW, rule=Rule(edges=3), known={"both": truth}
    )
    assert (found.forward, found.backward) == (0, 0)
    assert found.sizes == {"both": int(truth.sum())}


# --- seeds ----------------------------------------------------------------------------------------------------


def seeded(seed: int) -> Runs:
    model = families.model("gpt2")
    return runs_of(model, pairs_for(model, count=6, lengths=(6,), seed=seed))


@dataclass(frozen=True)
class Fixed:
    """A method with a seed that it makes no use of: always the same scores."""

    seed: int = 0

    name = "fixed"
    level = "edge"

    def run(self, runs: Runs, *, ablation: Ablation, direction: Direction, positions: str = "none") -> Scores:
        mask = runs.model.anatomy.edge_mask
        values = np.where(mask, np.random.default_rng(0).random(mask.shape), np.nan)
        return Scores(runs.model.anatomy, "edge", values, "fixed", direction, "logit-diff", ablation)


def test_seeds_of_prompts() -> None:
    found = over_seeds(seeded, get_method("eap"), **HOW, rule=Rule(edges=20), seeds=(0, 1, 2, 1))
    assert not found.method_has_seed
    (axis,) = found.axes
    assert (axis.name, axis.seeds, axis.different) == ("prompts", (0, 1, 2), 3)
    assert axis.in_common == 0
    assert axis.edges.pairs == 3
    assert 0 < axis.edges.mean < 1
    assert found.text.endswith("the method has no seed")
    assert found.backward == 3, "one pass for each seed"
    assert SeedStability.from_dict(json.loads(json.dumps(found.as_dict()))).as_dict() == found.as_dict()


def test_a_seed_of_prompts_that_changes_nothing() -> None:
    """Prompts that are written down come in another order at most."""
    pairs = seeded(0).pairs

    def dealt(seed: int) -> Runs:
        order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
        return runs_of(families.model("gpt2"), pairs.subset(order))

    found = over_seeds(dealt, get_method("eap"), **HOW, rule=Rule(edges=20))
    (axis,) = found.axes
    assert axis.different == 1
    assert not axis.says_something
    assert np.isnan(axis.edges.mean), "it is not counted as stability"
    assert "changes nothing (3 tried)" in axis.text
    assert found.as_dict()["axes"][0]["edges"]["mean"] is None


def test_some_seeds_that_give_the_same() -> None:
    found = over_seeds(
        lambda seed: seeded(seed % 2), get_method("eap"), **HOW, rule=Rule(edges=20), seeds=(0, 1, 2, 3)
    )
    (axis,) = found.axes
    assert axis.different == 2
    assert axis.edges.pairs == 1
    assert "circuits of 2 different seeds (2 more gave the same again)" in axis.text


def test_seeds_of_a_method() -> None:
    hybrid = get_method("hybrid", {"propose": "eap", "verify": 8})
    found = over_seeds(seeded, hybrid, **HOW, rule=Rule(edges=20))
    assert found.method_has_seed
    prompts, method = found.axes
    assert (prompts.name, method.name) == ("prompts", "method")
    assert method.different == 3, "other edges are verified"
    assert method.edges.mean > prompts.edges.mean
    assert np.isnan(method.in_common)
    assert "the seed of the method: circuits of 3 different seeds share" in method.text


def test_a_seed_of_a_method_that_changes_nothing() -> None:
    found = over_seeds(seeded, Fixed(), **HOW, rule=Rule(edges=20))  # type: ignore[arg-type]
    prompts, method = found.axes
    assert prompts.edges.mean == 1, "it always returns the same, and no draw of prompts can fail it"
    assert method.different == 1
    assert "the seed of the method changes nothing" in method.text
    assert method.as_dict()["says_something"] is False


def test_one_seed_compares_nothing() -> None:
    with pytest.raises(UsageError, match="1 seeds cannot be compared"):
        over_seeds(seeded, get_method("eap"), **HOW, rule=Rule(edges=20), seeds=(3, 3))
