"""The neurons of planted lookups are what they are said to be, by brute force (features: tests/dictionaries/test_planted.py).

Shares are of the behaviour: the metric of clean prompts less that with every neuron as in the corrupted run. A unit is ablated
by setting its neurons, at every position, to what they are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

import circuitfind
from circuitfind.model.load import load_model
from circuitfind.names import parse_edge, parse_node
from circuitfind.zoo import ZOO
from circuitfind.zoo.planted import NEURONS, build
from tests import families
from tests.neurons import Lab, encode, lab, members
from tests.reference import (
    circuit_faithfulness,
    edges,
    forward,
    logit_diff,
    measure_planted,
    without_each,
    writers,
)

SEEDS = range(20)
SATURATED = "saturated-lookup"

every_model = pytest.mark.parametrize("name", NEURONS)
every_seed = pytest.mark.parametrize(
    "seed", [*SEEDS[:5], *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[5:])]
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def surroundings(found: Lab) -> set[tuple[int, int]]:
    """The neurons that were written and do no work."""
    return members(*found.units.roles) - members(*found.units.names)


# --- what such a model is -----------------------------------------------------------------------------------


@every_model
def test_same_seed_same_model(name: str) -> None:
    one, two = build(name, 3), build(name, 3)
    assert (one.config, one.edges, one.roles) == (two.config, two.edges, two.roles)
    assert all(torch.equal(one.state[key], two.state[key]) for key in one.state)
    assert one.units is not None
    assert two.units is not None
    assert (one.units.names, one.units.roles, one.units.features) == (
        two.units.names,
        two.units.roles,
        two.units.features,
    )
    for first, second in zip(one.units.dictionaries, two.units.dictionaries, strict=True):
        assert torch.equal(first.w_enc, second.w_enc)
        assert torch.equal(first.w_dec, second.w_dec)
    assert one.pairs(9)[:5] == two.pairs(5)


@every_model
def test_seeds_differ(name: str) -> None:
    models = [lab(name, seed).planted for seed in SEEDS]
    assert len({json.dumps(model.config, sort_keys=True) for model in models}) == len(SEEDS)
    assert {model.config["normalization_type"] for model in models} == {None, "LN", "RMS"}
    assert len({model.config["act_fn"] for model in models}) >= 3
    assert all(model.config["gated_mlp"] is (name == "gated-lookup") for model in models)
    places = [tuple(parse_node(u).layer for u in lab(name, seed).units.names) for seed in SEEDS]
    assert len(set(places)) > 3
    kinds = {lab(name, seed).units.dictionaries[0].threshold is None for seed in SEEDS}
    assert kinds == {True, False}


def test_they_are_in_the_zoo() -> None:
    assert {f"planted/{name}" for name in NEURONS} <= set(ZOO)
    assert build("and-gate").units is None


@every_model
@every_seed
def test_names(name: str, seed: int) -> None:
    found = lab(name, seed)
    planted, units = found.planted, found.units
    assert set(planted.roles) == set(writers(planted.config)) - {"input"}
    assert {"key-mover", "distractor-tag", "distractor-unread", "lookup", "idle", "noise"} <= set(
        planted.roles.values()
    )
    assert all(str(parse_node(n)) == n for n in [*units.names, *units.roles, *units.features.values()])
    assert list(units.names) == sorted(units.names, key=lambda n: parse_node(n).order)
    assert units.features.keys() == units.shares.keys() == set(units.names)
    assert members(*units.names) <= members(*units.roles) <= found.all_neurons
    assert 5 <= len(members(units.group)) <= 8
    assert sum(len(members(n)) == 1 for n in units.names) == 2
    counts = [d.w_enc.shape[1] for d in units.dictionaries]
    assert list(units.feature_roles) == [
        f"t{at}.f{i}" for at, count in enumerate(counts) for i in range(count)
    ]
    for unit, feature in units.features.items():
        (neuron, *_) = members(unit)
        assert units.feature_roles[feature] == units.roles[f"m{neuron[0]}.n{neuron[1]}"]
    for ablation, true in units.edges.items():
        assert all(str(parse_edge(edge)) == edge for edge in true | units.feature_edges[ablation])
        # The same circuit, whether units, features or whole MLPs stand for what the MLPs do.
        assert {_coarse(edge) for edge in true} == planted.edges[ablation]
        assert {_coarse(edge) for edge in units.feature_edges[ablation]} == planted.edges[ablation]


def _coarse(edge: str) -> str:
    """Whole MLPs for neurons and features."""
    ends = [end.partition(".")[0].replace("t", "m") if end[0] in "mt" else end for end in edge.split("->")]
    return "->".join(ends)


@every_model
@every_seed
def test_answers(name: str, seed: int) -> None:
    found = lab(name, seed)
    _, _, answer, wrong = found.batch
    good, bad = (logit_diff(run.logits, answer, wrong) for run in (found.clean, found.corrupted))
    assert torch.equal(found.clean.logits[:, -1].argmax(-1), answer)
    assert torch.equal(found.corrupted.logits[:, -1].argmax(-1), wrong)
    assert good.min() > 3.0
    assert bad.max() < -3.0
    effect = good - bad
    assert effect.max() - effect.min() < 0.2 * effect.mean()
    # Nothing but neurons tells the two runs apart: heads write no answer themselves.
    assert found.empty == pytest.approx(found.metric(found.corrupted.logits), rel=0.05)


# --- the units ----------------------------------------------------------------------------------------------


@every_model
@every_seed
def test_units_do_all_of_the_work(name: str, seed: int) -> None:
    found = lab(name, seed)
    true = members(*found.units.names)
    assert found.lost(set()) == 0.0
    assert found.lost(found.all_neurons) == pytest.approx(1.0, abs=1e-12)
    assert found.lost(true) == pytest.approx(1.0, abs=0.05)
    assert found.lost(found.all_neurons - true) == pytest.approx(0.0, abs=0.05)
    assert found.lost(surroundings(found)) == pytest.approx(0.0, abs=0.05)
    assert found.lost(found.all_neurons - true - surroundings(found)) == pytest.approx(0.0, abs=0.03)


@every_model
@every_seed
def test_each_unit_has_its_share(name: str, seed: int) -> None:
    found = lab(name, seed)
    shares = found.units.shares
    for unit, share in shares.items():
        assert 0.28 < share < 0.39
        assert found.lost(members(unit)) == pytest.approx(share, abs=0.03)
    rounding = [unit for unit in shares if found.units.roles[_first(unit)] == "rounding"]
    assert len(rounding) == (name == SATURATED)
    assert sum(share for unit, share in shares.items() if unit not in rounding) == pytest.approx(1)
    if rounding:
        assert shares[rounding[0]] == shares[found.units.group]


def _first(unit: str) -> str:
    """The first neuron of a unit."""
    node = parse_node(unit)
    return f"m{node.layer}.n{node.units[0]}"


@every_model
@every_seed
def test_no_member_of_the_group_shows_alone(name: str, seed: int) -> None:
    found = lab(name, seed)
    alone = [found.lost({neuron}) for neuron in members(found.units.group)]
    assert found.units.member_share == (
        0.0 if name == SATURATED else found.units.shares[found.units.group] / len(alone)
    )
    assert max(abs(lost - found.units.member_share) for lost in alone) < 0.015
    # Each is below neurons that come to nothing, all of which undo each other.
    opposed = members(*found.units.with_role("opposed"))
    assert min(abs(found.lost({neuron})) for neuron in opposed) > max(alone)
    assert abs(found.lost(opposed)) < 0.01
    # Together they are as much as a neuron that does it alone.
    single = min(found.lost(members(unit)) for unit in found.units.names if len(members(unit)) == 1)
    assert found.lost(members(found.units.group)) > 0.75 * single > 3 * max(alone)


@every_seed
def test_four_fifths_of_a_saturated_group_are_enough(seed: int) -> None:
    found = lab(SATURATED, seed)
    group = sorted(members(found.units.group))
    keep = -(-4 * len(group) // 5)
    assert found.lost(group[keep:]) < 0.03
    assert found.lost(group[: len(group) - 1]) > 0.9 * found.units.shares[found.units.group]


@every_model
@every_seed
def test_the_group_is_in_superposition(name: str, seed: int) -> None:
    found = lab(name, seed)
    group = sorted(members(found.units.group))
    layer, places = group[0][0], [place for _, place in group]
    topics = [int(f.rpartition("f")[2]) for f, role in found.units.feature_roles.items() if role == "topic"]
    assert len(topics) > len(group)
    for matrices in (("W_in", "W_gate"), ("W_out",)):
        cosines = []
        for matrix in matrices:
            weight = found.state.get(f"blocks.{layer}.mlp.{matrix}")
            if weight is not None:
                rows = torch.nn.functional.normalize(
                    (weight if matrix == "W_out" else weight.T)[places], dim=1
                )
                cosines.append((rows @ rows.T).fill_diagonal_(-1.0))
        assert torch.stack(cosines).amin(0).max() < 0.9
    # Where a topic stands, two of them fire and the model says the topic's own token.
    dictionary = found.units.dictionaries[layer]
    active = encode(dictionary, found.clean.normed[layer])[..., topics]
    on = active > 0.5 * active.flatten(0, 1).amax(0)
    echoes = (dictionary.w_dec[topics].double() @ found.state["unembed.W_U"]).argmax(1)
    assert len(set(echoes.tolist())) == len(topics)
    hidden = found.clean.hidden[layer][..., places]
    fires = hidden > 0.3 * hidden[:, -1].amax(0)
    assert on.any(0).any(0).all()
    for row, at, topic in on.nonzero().tolist():
        assert found.clean.logits[row, at].argmax() == echoes[topic]
        assert fires[row, at].sum() == 2


@every_model
@every_seed
def test_neurons_beside_them(name: str, seed: int) -> None:
    found = lab(name, seed)

    def end(role: str, run: str = "clean") -> torch.Tensor:
        hidden = getattr(found, run).hidden
        return torch.stack([hidden[at][:, -1, n] for at, n in members(*found.units.with_role(role))])

    work = torch.cat([end(role) for role in ("unit-a", "unit-b", "group")]).amax()
    assert torch.cat([end("loud"), end("loud", "corrupted")], 1).amax(1).min() > 1.4 * work
    differs = (end("loud") - end("loud", "corrupted")).abs().amax(0) > work
    assert differs.double().mean() > 0.5
    assert (end("even").amax(1) > 0.5 * end("unit-a").amax()).all()
    assert end("silent").abs().max() < 0.02 * end("unit-a").amax()
    for role, most in (("loud", 0.04), ("even", 0.04), ("silent", 0.005), ("weak", 0.02)):
        for neuron in members(*found.units.with_role(role)):
            assert abs(found.lost({neuron})) < most, role
    # A silent neuron would change the answer if it fired.
    (layer, place) = min(members(*found.units.with_role("silent")))
    answers = torch.tensor(sorted({*found.batch[2].tolist()}))
    written = found.state[f"blocks.{layer}.mlp.W_out"][place] @ found.state["unembed.W_U"][:, answers]
    assert (written.amax() - written.amin()) * end("unit-a").amax() > 1.0


# --- edges --------------------------------------------------------------------------------------------------


@every_model
@every_seed
def test_true_edges_between_units(name: str, seed: int) -> None:
    found = lab(name, seed)
    exact = name != "gated-lookup" and found.planted.config["normalization_type"] is None
    assert set(found.units.edges) == ({"resample", "zero"} if exact else {"resample"})
    for ablation, true in found.units.edges.items():
        assert found.carried(set(), ablation) == 0.0
        assert found.carried(true, ablation) == pytest.approx(1.0, abs=0.05)
        for edge in true:
            assert found.carried(true - {edge}, ablation) < 0.75


@every_model
@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 20))]
)
def test_true_edges_between_mlps(name: str, seed: int) -> None:
    planted = lab(name, seed).planted
    everything = {f"{writer}->{reader}" for writer, reader in edges(planted.config)}
    for ablation, true in planted.edges.items():
        measured = measure_planted(planted, planted.pairs(12), ablation)
        assert circuit_faithfulness(measured, true) == pytest.approx(1.0, abs=0.05)
        assert circuit_faithfulness(measured, everything - true) == pytest.approx(0.0, abs=0.05)
        assert max(without_each(measured, everything, true).values()) < 0.75
        false = without_each(measured, everything, everything - true)
        assert max(abs(value - 1) for value in false.values()) < 0.05


# --- the bench, and the tool --------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("seed", range(4))
def test_the_lab_runs_the_model(name: str, seed: int) -> None:
    found = lab(name, seed)
    tokens = found.batch[0]
    ours = found.clean.logits
    reference, _ = forward(found.planted.config, found.state, tokens)
    torch.testing.assert_close(ours, reference, atol=1e-10, rtol=0)
    model = load_model(f"planted/{name}:{seed}", device="cpu")
    bridge = model.bridge_logits(tokens, torch.full((len(tokens),), tokens.shape[1] - 1))
    torch.testing.assert_close(ours[:, -1].float(), bridge, atol=2e-4, rtol=1e-4)


@every_model
def test_discover_finds_the_head_and_the_mlps(name: str) -> None:
    found = circuitfind.discover(name, count=24, formats=())
    known = found.summary["known"]
    assert known["level"] == "edges"
    assert known["missing"] == known["extra"] == []
    assert found.summary["prompts"]["accuracy"] == 1.0
    assert found.summary["evaluations"][0]["faithfulness"]["value"] == pytest.approx(1.0, abs=0.05)
