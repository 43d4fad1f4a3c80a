"""Units that were written are found exactly, and every number on the way is what running the model by hand gives."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations
from math import factorial

import numpy as np
import pytest

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.prune import prune
from circuitfind.circuit.rule import Rule
from circuitfind.dictionaries.planted import planted_dictionaries
from circuitfind.errors import RunError, UnsupportedError
from circuitfind.methods import get_method
from circuitfind.methods.node_gradients import node_scores
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model, planted
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs
from circuitfind.names import UNITS, Kind
from circuitfind.task.pairs import PromptPair, PromptPairs
from circuitfind.unit_stage import among
from circuitfind.units.circuits import NodeCircuits
from circuitfind.units.dictionaries import hold
from circuitfind.units.find import DictionaryFeatures, Found, Neurons, Split, UnitOptions, find, verified
from circuitfind.units.groups import Effects, find_groups
from circuitfind.zoo.planted import NEURONS
from tests import families
from tests.families import runs_of
from tests.neurons import encode, lab, members

TARGET = 0.95
COUNT = 24
"""As many prompts as tests/neurons.py draws."""
SEEDS = [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))]
every_seed = pytest.mark.parametrize("seed", SEEDS)
every_kind = pytest.mark.parametrize("kind", NEURONS)
either = pytest.mark.parametrize("what", ["neurons", "features"])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@cache
def pairs_of(kind: str, seed: int) -> PromptPairs:
    drawn = [
        PromptPair(
            p.clean, p.corrupted, (p.answer,), (p.wrong,), len(p.clean) - 1, p.positions, "", "", "x", "g"
        )
        for p in planted(f"planted/{kind}:{seed}").pairs(COUNT, 0)
    ]
    return PromptPairs(tuple(drawn), "planted")


def split_of(kind: str, seed: int, what: str, *, live_errors: bool = False) -> Split:
    model = load_model(f"planted/{kind}:{seed}", device="cpu")
    if what == "neurons":
        return Neurons(model)
    dictionaries = planted_dictionaries(planted(f"planted/{kind}:{seed}"))
    return DictionaryFeatures(model, hold(runs_of(model, pairs_of(kind, seed)), dictionaries), live_errors)


def all_units(kind: str, seed: int, what: str) -> Runs:
    """In the model with every unit as a node."""
    return runs_of(split_of(kind, seed, what)(None), pairs_of(kind, seed))


@cache
def found_in(kind: str, seed: int, what: str) -> Found:
    pairs = pairs_of(kind, seed)
    return find(
        split_of(kind, seed, what), lambda model: runs_of(model, pairs), ablation="resample", target=TARGET
    )


def true_units(kind: str, seed: int, what: str) -> set[str]:
    units = lab(kind, seed).units
    return {name if what == "neurons" else units.features[name] for name in units.names}


def rows(model: Model, names: list[str]) -> np.ndarray:
    return np.isin(model.anatomy.writer_names, names)


# --- what is found ------------------------------------------------------------------------------------------


@every_kind
@either
@every_seed
def test_the_units_that_do_the_work_are_kept_and_no_others(kind: str, what: str, seed: int) -> None:
    found, truth = found_in(kind, seed, what), planted(f"planted/{kind}:{seed}")
    (mover,) = [name for name, role in truth.roles.items() if role == "key-mover"]
    assert {str(node) for node in found.kept} == {"input", mover, *true_units(kind, seed, what)}
    assert found.facts["node_minimal"]
    assert TARGET <= found.faithfulness < 1.05
    assert found.facts["explained"] > 0.99
    nodes = {str(node) for node in found.model.anatomy.writers if node.kind in UNITS}
    assert nodes == true_units(kind, seed, what)
    units = lab(kind, seed).units
    if what == "neurons":
        assert units.group in found.groups
        assert units.group not in found.exact
        # A pair that takes away from each other is one node as well; nothing else is.
        assert set(found.groups) == {name for name in units.names if "+" in name}
        group = found.groups[units.group]
        assert group.largest < 0.5 * group.effect
        rounding = [one for name, one in found.groups.items() if name != units.group]
        assert all(one.effect < one.largest for one in rounding)
        assert len(rounding) == (kind == "saturated-lookup")
    else:
        assert not found.groups


@every_kind
@either
@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 20))]
)
def test_the_edges_among_them_are_found(kind: str, what: str, seed: int) -> None:
    found, units = found_in(kind, seed, what), lab(kind, seed).units
    runs = runs_of(found.model, pairs_of(kind, seed))
    scores = get_method("eap", {}).run(runs, ablation="resample", direction="noising", positions="none")
    pruned = prune(
        among(scores, found.kept), Rule(faithfulness=0.9), Evaluator(runs, "resample"), direction="noising"
    )
    anatomy = runs.model.anatomy
    edges = {str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(pruned.mask)}
    assert edges == (units.edges if what == "neurons" else units.feature_edges)["resample"]


@every_kind
def test_no_member_of_a_group_shows_alone(kind: str) -> None:
    """What groups are for."""
    found, units = found_in(kind, 0, "neurons"), lab(kind, 0).units
    gap = NodeCircuits(all_units(kind, 0, "neurons"), "resample").gap
    alone = [abs(found.exact.get(f"m{at}.n{place}", 0.0)) for at, place in members(units.group)]
    assert max(alone) < (0.02 if kind == "saturated-lookup" else 0.1) * gap
    assert found.groups[units.group].effect > 0.25 * gap


# --- effects, against the model run by hand -----------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("seed", range(3))
def test_effects_are_those_of_a_manual_patch(kind: str, seed: int) -> None:
    found, by_hand = found_in(kind, seed, "neurons"), lab(kind, seed)

    def lost(name: str) -> float:
        return by_hand.whole - by_hand.metric(by_hand.without(members(name)))

    single = [name for name in found.exact if name.startswith("m")]
    assert len(single) > 50
    for name in single[:20] + single[-5:]:
        assert found.exact[name] == pytest.approx(lost(name), abs=2e-3)
    for name, group in found.groups.items():
        assert group.effect == pytest.approx(lost(name), abs=2e-3)
        layer = name.partition(".")[0]
        alone = [lost(f"{layer}.n{place}") for _, place in members(name)]
        assert group.largest == pytest.approx(max(map(abs, alone)), abs=2e-3)


@either
def test_verified_effects_are_patches_one_by_one(what: str) -> None:
    runs = all_units("gated-lookup", 1, what)
    scores = node_scores(runs, "atp", ablation="resample", direction="noising", positions="none")
    circuits = NodeCircuits(runs, "resample")
    exact = verified(circuits, scores.values, 10)
    assert circuits.evaluations == len(exact) == 10
    writers = runs.model.anatomy.writers
    strongest = [row for row in np.argsort(-np.abs(scores.values)) if writers[row].kind is not Kind.INPUT]
    assert list(exact) == [row for row in strongest if writers[row].kind is not Kind.REST][:10]
    for row, effect in exact.items():
        one = np.eye(len(writers), dtype=bool)[row]
        alone = runs.patched([Patch(nodes=one)], ablation="resample")[0]
        assert effect == pytest.approx(float((runs.clean - alone).mean()), abs=1e-5)


@either
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_everything_is_whole_and_nothing_is_empty(what: str, ablation: str) -> None:
    runs = all_units("neuron-lookup", 2, what)
    circuits = NodeCircuits(runs, ablation)  # type: ignore[arg-type]
    size = len(runs.model.anatomy.writers)
    some = np.random.default_rng(0).random(size) < 0.7
    faithfulness, explained = circuits.measured([np.ones(size, bool), np.zeros(size, bool), some])
    assert faithfulness[:2] == pytest.approx([1, 0], abs=1e-5)
    assert explained[:2] == pytest.approx([1, 0], abs=1e-5)
    assert circuits.faithfulness([some])[0] == pytest.approx(faithfulness[2])
    patches = [Patch(nodes=~some), Patch(nodes=np.ones(size, bool))]
    left, empty = runs.patched(patches, ablation=ablation)  # type: ignore[arg-type]
    lost, gap = runs.clean - left, runs.clean - empty
    assert faithfulness[2] == pytest.approx(1 - lost.mean() / gap.mean())
    assert explained[2] == pytest.approx(1 - (lost**2).mean() / (gap**2).mean())


@every_kind
@pytest.mark.parametrize("live", [False, True])
def test_with_errors_everything_is_the_model(kind: str, live: bool) -> None:
    pairs = pairs_of(kind, 3)
    split = split_of(kind, 3, "features", live_errors=live)
    plain, whole = runs_of(load_model(f"planted/{kind}:3", device="cpu"), pairs), runs_of(split(None), pairs)
    assert np.abs(plain.clean - whole.clean).max() < 1e-4
    # Replaced by itself: the input alone, as in the corrupted run, makes everything else what it is there.
    if live:
        source = Patch(nodes=rows(whole.model, ["input"]))
        assert np.abs(whole.patched([source])[0] - plain.corrupted).max() < 1e-3


@every_kind
@pytest.mark.parametrize("seed", range(3))
def test_the_share_through_errors_is_that_of_a_manual_patch(kind: str, seed: int) -> None:
    found, by_hand = found_in(kind, seed, "features"), lab(kind, seed)
    corrupted, dictionaries = by_hand.corrupted, by_hand.units.dictionaries

    def patched(layer: int, normed, out):  # type: ignore[no-untyped-def]
        one = dictionaries[layer]
        now, then = (encode(one, x) @ one.w_dec.double() for x in (normed, corrupted.normed[layer]))
        return now + corrupted.out[layer] - then  # its features as they are, and the error of the other run

    left = by_hand.metric(by_hand.run(by_hand.batch[0], mlp=patched).logits)
    gap = NodeCircuits(all_units(kind, seed, "features"), "resample").gap
    assert found.facts["share_through_errors"] == pytest.approx((by_hand.whole - left) / gap, abs=2e-3)
    assert "share_through_errors" not in found_in(kind, seed, "neurons").facts


def test_every_set_that_is_run_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    patched = Runs.patched

    def spy(self: Runs, patches, **options):  # type: ignore[no-untyped-def]
        ran.append(len(patches))
        return patched(self, patches, **options)

    monkeypatch.setattr(Runs, "patched", spy)
    kind, pairs = "saturated-lookup", pairs_of("saturated-lookup", 3)
    found = find(
        split_of(kind, 3, "neurons"), lambda m: runs_of(m, pairs), ablation="resample", target=TARGET
    )
    assert found.facts["node_evaluations"] == sum(ran)
    assert found.facts["verified"] == len(found.exact) <= UnitOptions().verify


# --- what there is not --------------------------------------------------------------------------------------


def groups_in(runs: Runs) -> list[object]:
    circuits = NodeCircuits(runs, "resample")
    assert circuits.gap > 0
    scores = node_scores(runs, "atp", ablation="resample", direction="noising", positions="none")
    return list(find_groups(circuits, np.array(scores.values), verified(circuits, scores.values, 20)))


def test_no_group_carries_answers_that_were_shuffled() -> None:
    """Answers are dealt out anew, so the metric falls by accident where it falls."""
    tried = 0
    for seed in range(5):
        pairs = list(pairs_of("neuron-lookup", seed))
        order = np.random.default_rng(seed).permutation(len(pairs))
        dealt = [
            PromptPair(
                p.clean,
                p.corrupted,
                pairs[at].answer,
                pairs[at].wrong,
                p.answer_position,
                {},
                "",
                "",
                "x",
                "g",
            )
            for p, at in zip(pairs, order, strict=True)
        ]
        model = split_of("neuron-lookup", seed, "neurons")(None)
        runs = runs_of(model, PromptPairs(tuple(dealt), "shuffled"))
        try:
            assert groups_in(runs) == []
        except RunError:  # there is no behaviour at all
            continue
        tried += 1
    assert tried >= 2


@pytest.mark.parametrize("family", ["gpt2", "llama", "ln", "no-norm"])
def test_no_group_is_found_with_random_weights(family: str) -> None:
    model = families.model(family)
    tried = 0
    for seed in range(4):
        runs = runs_of(Neurons(model)(None), families.pairs_for(model, count=24, seed=seed))
        try:
            assert groups_in(runs) == []
        except RunError:
            continue
        tried += 1
    assert tried


def test_what_cannot_be_done_is_refused() -> None:
    split, pairs = split_of("neuron-lookup", 0, "neurons"), pairs_of("neuron-lookup", 0)
    with pytest.raises(UnsupportedError, match="optimal"):
        find(split, lambda m: runs_of(m, pairs), ablation="optimal", target=0.9)
    with pytest.raises(UnsupportedError, match="no gradient"):
        find(split, lambda m: runs_of(m, pairs, "accuracy"), ablation="resample", target=0.9)
    alike = PromptPairs(
        tuple(
            PromptPair(p.clean, p.clean, p.answer, p.wrong, p.answer_position, {}, "", "", "x", "g")
            for p in pairs
        ),
        "same",
    )
    with pytest.raises(RunError, match="there is no behaviour to explain"):
        find(split, lambda m: runs_of(m, alike), ablation="resample", target=0.9)
    bare = Neurons(families.model("attn-only"))
    with pytest.raises(UnsupportedError, match="no MLPs"):
        find(
            bare,
            lambda m: runs_of(m, families.pairs_for(bare.model)),
            ablation="resample",
            target=0.9,
        )


# --- Shapley values of a set in a model ---------------------------------------------------------------------


def exact_shapley(effects: Effects, size: int) -> np.ndarray:
    """By enumeration of all subsets."""
    subsets = [set(some) for n in range(size + 1) for some in combinations(range(size), n)]
    values = effects([np.isin(np.arange(size), list(some)) for some in subsets])
    known = {frozenset(some): value for some, value in zip(subsets, values, strict=True)}
    found = np.zeros(size)
    for some in known:
        for member in set(range(size)) - some:
            weight = factorial(len(some)) * factorial(size - len(some) - 1) / factorial(size)
            found[member] += weight * (known[some | {member}] - known[some])
    return found


@pytest.mark.parametrize("kind", ["neuron-lookup", "saturated-lookup"])
@pytest.mark.parametrize("seed", range(2))
def test_shares_of_a_group_are_shapley_values(kind: str, seed: int) -> None:
    found, units = found_in(kind, seed, "neurons"), lab(kind, seed).units
    circuits = NodeCircuits(all_units(kind, seed, "neurons"), "resample")
    names = [f"m{at}.n{place}" for at, place in sorted(members(units.group))]

    def effects(removed: list[np.ndarray]) -> np.ndarray:
        return circuits.effects(
            [
                rows(circuits.runs.model, [n for n, out in zip(names, some, strict=True) if out])
                for some in removed
            ]
        )

    group = found.groups[units.group]
    writers = circuits.runs.model.anatomy.writer_names
    assert [writers[row] for row in group.rows] == names
    exact = exact_shapley(effects, len(names))
    assert exact.sum() == pytest.approx(group.effect, abs=1e-3)
    # Sampled in a larger set, whose other members do little: four standard errors of 0.15 equal parts.
    assert np.abs(np.array(group.shares) - exact).max() < 4 * 0.15 * group.effect / len(names)
    assert exact.min() > 0
