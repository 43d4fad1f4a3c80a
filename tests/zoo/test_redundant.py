"""What stands in for what in the planted models with redundancy, by brute force.

Heads are ablated at the answer position alone: what they write there is replaced by what they write in the
corrupted run, by its mean over all prompts, or by nothing. What every head then says itself about the answer,
its direct effect, is read with the final LayerNorm frozen at its scale in the clean run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuitfind.zoo.planted import COMPILED, DESCRIPTIONS, INNER, NAMES, NEURONS, REDUNDANT, Planted, build
from circuitfind.zoo.planted.ioi_redundant import MAX_BACKUPS, SHARP_NOTE
from circuitfind.zoo.planted.ioi_redundant import build as build_ioi
from tests.reference import edges, forward, logit_diff, tensors, writers

N_PAIRS = 24
ABLATIONS = ("resample", "mean", "zero")
CLASSES = {"backup", "second-order backup", "relief", "LN rescale", "co-worker"}
IOI = "ioi-redundant"
WITH_BACKUPS = ("gated-backup", "three-way", "single-blind", "second-order", IOI)


def cases(*names: str) -> list[object]:
    """(name, seed): a few seeds of each at once, all of them in the slow tests."""
    found: list[object] = []
    for name in names:
        fast, count = (6, 100) if name == IOI else (4, 20)
        for seed in range(count):
            marks = () if seed < fast else pytest.mark.slow
            found.append(pytest.param(name, seed, marks=marks, id=f"{name}-{seed}"))
    return found


def every(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "seed"), cases(*names))


every_ablation = pytest.mark.parametrize("ablation", ABLATIONS)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are so small that a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- ablation at the answer position ------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """A model on its pairs, and what its writers write in both runs. [batch, pos, d_model]"""

    model: Planted
    clean: Tensor  # [batch, pos]
    answer: Tensor
    wrong: Tensor
    written: dict[str, Tensor]
    other: dict[str, Tensor]
    logits: Tensor  # [batch, pos, d_vocab], clean
    corrupted_logits: Tensor
    scale: Tensor  # [batch], that of the final LayerNorm at the end of the clean run


@dataclass(frozen=True)
class Outcome:
    """The metric, each writer's direct effect on it (both means over pairs), and what was written."""

    metric: float
    direct: dict[str, float]
    written: dict[str, Tensor]


@cache
def bench(name: str, seed: int) -> Bench:
    model = build(name, seed)
    clean, corrupted, answer, wrong = tensors(model.pairs(N_PAIRS))
    with torch.no_grad():
        logits, written = forward(model.config, model.state, clean)
        corrupted_logits, other = forward(model.config, model.state, corrupted)
    scale = final_scale(model, written)
    return Bench(model, clean, answer, wrong, written, other, logits, corrupted_logits, scale)


def final_scale(model: Planted, written: dict[str, Tensor]) -> Tensor:
    """What the final LayerNorm divides by at the end, 1 without one. [batch]"""
    if model.config["normalization_type"] is None:
        return torch.ones(N_PAIRS)
    end = torch.stack([output[:, -1] for output in written.values()]).sum(0)
    return (end.var(dim=-1, unbiased=False) + model.config["eps"]).sqrt()


def replacement(b: Bench, head: str, ablation: str) -> Tensor:
    """What stands in the place of the head's output at the end. [batch, d_model]"""
    own, other = b.written[head][:, -1], b.other[head][:, -1]
    if ablation == "resample":
        return other
    if ablation == "mean":
        return torch.cat([own, other]).mean(dim=0).expand_as(own)
    return torch.zeros_like(own)


@cache
def without(name: str, seed: int, gone: tuple[str, ...] = (), ablation: str = "zero") -> Outcome:
    """Run the model with some heads ablated at the end, for whoever reads them."""
    b = bench(name, seed)
    config, state = b.model.config, b.model.state
    replaced = {}
    for head in gone:
        output = b.written[head].clone()
        output[:, -1] = replacement(b, head, ablation)
        replaced |= {edge: output for edge in edges(config) if edge[0] == head}
    with torch.no_grad():
        logits, written = forward(config, state, b.clean, replaced)
    for head in gone:
        written[head] = replaced[head, "logits"]
    direction = (state["unembed.W_U"][:, b.answer] - state["unembed.W_U"][:, b.wrong]).T / b.scale[:, None]
    direct = {}
    for writer, output in written.items():
        end = output[:, -1]
        if config["normalization_type"]:
            end = end - end.mean(dim=-1, keepdim=True)
        direct[writer] = (end * direction).sum(dim=-1).mean().item()
    return Outcome(logit_diff(logits, b.answer, b.wrong).mean().item(), direct, written)


def primary_effect(name: str, seed: int) -> float:
    """The mean direct effect of a primary in the clean run."""
    b, intact = bench(name, seed), without(name, seed)
    return sum(intact.direct[head] for head in b.model.primaries) / len(b.model.primaries)


def layer(head: str) -> int:
    return int(head.partition(".")[0][1:])


def of_class(model: Planted, *wanted: str) -> list[str]:
    return [head for head, label in model.classes.items() if label in wanted]


# --- what a model is ----------------------------------------------------------------------------------------


def test_listing() -> None:
    assert len(REDUNDANT) == 8
    assert not set(NAMES) & set(REDUNDANT)
    assert {*NAMES, *REDUNDANT, *INNER, *NEURONS, *COMPILED} == set(DESCRIPTIONS)
    code = "import sys, circuitfind.zoo.planted as p; assert p.REDUNDANT; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    with pytest.raises(ValueError, match="did you mean 'gated-backup'"):
        build("gated-bakup")


@pytest.mark.parametrize("name", REDUNDANT)
def test_same_seed_same_model(name: str) -> None:
    one, two, other = build(name, 3), build(name, 3), build(name, 4)
    assert (one.config, one.roles) == (two.config, two.roles)
    assert (one.classes, one.covers, one.primaries) == (two.classes, two.covers, two.primaries)
    assert all(torch.equal(one.state[key], two.state[key]) for key in one.state)
    assert one.pairs(9)[:5] == two.pairs(5)
    assert (other.config, other.roles) != (one.config, one.roles)


@every(*REDUNDANT)
def test_shapes(name: str, seed: int) -> None:
    model = bench(name, seed).model
    config = model.config
    assert config["d_model"] <= 160
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in model.state.values())
    assert set(model.roles) == set(writers(config)) - {"input"}
    assert {"idle", "noise"} <= set(model.roles.values())
    for pair in model.pairs(N_PAIRS):
        assert pair.answer != pair.wrong
        assert sum(a != b for a, b in zip(pair.clean, pair.corrupted, strict=True)) == 1
        assert pair.positions["END"] == len(pair.clean) - 1 == config["n_ctx"] - 1


@every(*REDUNDANT)
def test_truth_is_well_formed(name: str, seed: int) -> None:
    model = bench(name, seed).model
    heads = {writer for writer in writers(model.config) if writer.startswith("a")}
    assert model.primaries
    assert {*model.primaries, *model.classes} <= heads
    assert set(model.classes.values()) <= CLASSES
    assert all(model.classes.get(head, "co-worker") == "co-worker" for head in model.primaries)
    assert set(model.covers) == set(of_class(model, "backup", "second-order backup"))
    for backup, covered in model.covers.items():
        first_order = of_class(model, "backup") if model.classes[backup] != "backup" else []
        assert covered == (*model.primaries, *first_order)
        assert all(layer(head) < layer(backup) for head in covered)
    for head in of_class(model, "relief"):
        assert all(layer(head) > layer(primary) for primary in model.primaries)


@every(*REDUNDANT)
def test_answers(name: str, seed: int) -> None:
    b = bench(name, seed)
    assert torch.equal(b.logits[:, -1].argmax(dim=-1), b.answer)
    assert torch.equal(b.corrupted_logits[:, -1].argmax(dim=-1), b.wrong)
    assert logit_diff(b.logits, b.answer, b.wrong).min() > 1.0


@pytest.mark.parametrize("name", REDUNDANT)
def test_transformer_lens_computes_the_same(name: str) -> None:
    pytest.importorskip("transformer_lens")
    from circuitfind.model.tl_format import boot_native

    b = bench(name, 0)
    model = boot_native(b.model.config, b.model.state, "test", torch.device("cpu"), "", source="test")
    with torch.no_grad():
        logits = model.bridge(b.clean, return_type="logits")
    torch.testing.assert_close(b.logits, logits, atol=1e-4, rtol=1e-4)


# --- the truth, by ablation ---------------------------------------------------------------------------------


@every(*REDUNDANT)
@every_ablation
def test_primaries_lose_their_effect(name: str, seed: int, ablation: str) -> None:
    model = bench(name, seed).model
    intact, gone = without(name, seed), without(name, seed, model.primaries, ablation)
    for head in model.primaries:
        assert intact.direct[head] > 0
        assert gone.direct[head] < 0.1 * intact.direct[head]


@every(*WITH_BACKUPS)
def test_backups_sleep(name: str, seed: int) -> None:
    model, intact = bench(name, seed).model, without(name, seed)
    for head in model.covers:
        assert abs(intact.direct[head]) <= 0.1 * primary_effect(name, seed)


@every(*WITH_BACKUPS)
@every_ablation
def test_backups_wake(name: str, seed: int, ablation: str) -> None:
    model, intact = bench(name, seed).model, without(name, seed)
    for head, covered in model.covers.items():
        rise = without(name, seed, covered, ablation).direct[head] - intact.direct[head]
        assert rise >= 0.25 * primary_effect(name, seed)
        # Wholly, whatever stands in the place of the notes.
        assert rise >= 0.85 * (without(name, seed, covered, "zero").direct[head] - intact.direct[head])


@every("three-way", "single-blind", "second-order", IOI)
@every_ablation
def test_backups_sleep_while_one_primary_is_left(name: str, seed: int, ablation: str) -> None:
    model, intact = bench(name, seed).model, without(name, seed)
    for head, covered in model.covers.items():
        for size in range(1, len(covered)):
            for gone in combinations(covered, size):
                rise = without(name, seed, gone, ablation).direct[head] - intact.direct[head]
                if name == IOI and model.note != SHARP_NOTE:
                    assert rise >= 0.1 * primary_effect(name, seed)
                else:
                    assert abs(rise) <= 0.1 * primary_effect(name, seed)


@every(*WITH_BACKUPS)
@every_ablation
def test_freezing_a_backup_makes_the_damage_worse(name: str, seed: int, ablation: str) -> None:
    """Its effect on the metric, not only on its own output."""
    b = bench(name, seed)
    assert b.model.covers or name == IOI
    for head, covered in b.model.covers.items():
        alone = without(name, seed, covered, ablation).metric
        assert without(name, seed, (*covered, head), ablation).metric < alone
        assert abs(without(name, seed, (head,), ablation).metric / without(name, seed).metric - 1) < 0.1


@every("relief", IOI)
@every_ablation
def test_relief(name: str, seed: int, ablation: str) -> None:
    model, intact = bench(name, seed).model, without(name, seed)
    gone = without(name, seed, model.primaries, ablation)
    assert name == IOI or of_class(model, "relief")
    for head in of_class(model, "relief"):
        assert intact.direct[head] < -0.1 * primary_effect(name, seed)
        assert gone.direct[head] > 0.3 * intact.direct[head]


@every("ln-repair")
@every_ablation
def test_ln_rescale(name: str, seed: int, ablation: str) -> None:
    b, intact = bench(name, seed), without(name, seed)
    (head,), (primary,) = of_class(b.model, "LN rescale"), b.model.primaries
    gone = without(name, seed, (primary,), ablation)
    # It writes the same ...
    moved = (gone.written[head] - intact.written[head])[:, -1].norm(dim=-1)
    assert (moved < 0.01 * intact.written[head][:, -1].norm(dim=-1)).all()
    assert gone.direct[head] == pytest.approx(intact.direct[head], rel=0.01)
    # ... and weighs more: the direct effects at the old scale no longer add up to the metric.
    assert sum(intact.direct.values()) == pytest.approx(intact.metric, rel=1e-3)
    scale = final_scale(b.model, gone.written)
    assert (b.scale / scale).min() >= 1.15
    # Under resampling what A writes against the answer grows as well, and the sum may be of either sign.
    assert abs(gone.metric) >= 1.15 * abs(sum(gone.direct.values()))


@every("co-workers")
@every_ablation
def test_co_workers_add_up(name: str, seed: int, ablation: str) -> None:
    model, intact = bench(name, seed).model, without(name, seed)
    a, c = model.primaries
    alone = [without(name, seed, (head,), ablation) for head in (a, c)]
    neither = without(name, seed, (a, c), ablation)
    assert intact.direct[a] == pytest.approx(intact.direct[c], rel=0.02)
    loss = sum(intact.metric - outcome.metric for outcome in alone)
    assert intact.metric - neither.metric == pytest.approx(loss, rel=0.01)
    for outcome, other in zip(alone, (c, a), strict=True):
        assert outcome.direct[other] == pytest.approx(intact.direct[other], rel=0.01)


@every(*REDUNDANT)
@every_ablation
def test_no_other_head_answers_to_the_loss(name: str, seed: int, ablation: str) -> None:
    model, intact = bench(name, seed).model, without(name, seed)
    gone = without(name, seed, model.primaries, ablation)
    lost = sum(intact.direct[head] - gone.direct[head] for head in model.primaries)
    involved = {*model.primaries, *model.classes}
    for writer in set(intact.direct) - involved:
        assert abs(gone.direct[writer] - intact.direct[writer]) < 0.03 * lost


# --- single cases -------------------------------------------------------------------------------------------


@every("single-blind")
def test_single_ablation_is_blind(name: str, seed: int) -> None:
    model, intact = bench(name, seed).model, without(name, seed)
    decoys = [head for head, role in model.roles.items() if role == "decoy"]
    assert min(len(model.covers), len(decoys) - 1) >= 2

    def effects(heads: list[str], ablation: str) -> list[float]:
        base = intact.metric
        return [abs(base - without(name, seed, (head,), ablation).metric) / base for head in heads]

    for ablation in ABLATIONS:
        found = max(effects(list(model.covers), ablation))
        # To zero is the one ablation that takes away even what the first position holds: jitter.
        assert found < (0.1 * min(effects(decoys, ablation)) if ablation == "zero" else 1e-6)
        assert min(effects(decoys, ablation)) > 0.01


@every("single-blind")
def test_gradients_are_blind(name: str, seed: int) -> None:
    """No gradient passes a sleeping backup's queries, and its output is the same in both runs."""
    b = bench(name, seed)
    for head in b.model.covers:
        assert torch.equal(b.written[head][:, -1], b.other[head][:, -1])
        added = {f"{head}<q>": torch.zeros_like(b.written[head]).requires_grad_()}
        logits, _ = forward(b.model.config, b.model.state, b.clean, added=added)
        (gradient,) = torch.autograd.grad(logit_diff(logits, b.answer, b.wrong).sum(), list(added.values()))
        assert not gradient.any()


def test_ioi_draws_what_it_should() -> None:
    models = [build_ioi(seed) for seed in range(100)]
    assert {len(model.covers) for model in models} == set(range(MAX_BACKUPS + 1))
    assert {len(model.primaries) for model in models} == {1, 2, 3}
    assert {len(of_class(model, "relief")) for model in models} == {0, 1, 2}
    assert {len({layer(head) for head in model.primaries}) for model in models} == {1, 2}
    assert {len({layer(head) for head in model.covers}) for model in models if model.covers} == {1, 2, 3}
    assert {model.config["n_layers"] for model in models} <= set(range(5, 9))
    assert {model.config["n_heads"] for model in models} == {3, 4, 5, 6}
    assert len({model.note for model in models}) == 2
    assert all(model.config["normalization_type"] == "LN" for model in models)


@pytest.mark.parametrize("seed", range(20))
def test_number_of_backups_moves_no_other_head(seed: int) -> None:
    none, all_of_them = build_ioi(seed, backups=0), build_ioi(seed, backups=MAX_BACKUPS)
    assert not none.covers
    assert set(none.classes.values()) <= {"relief"}
    assert len(all_of_them.covers) == MAX_BACKUPS
    assert (none.config, none.primaries) == (all_of_them.config, all_of_them.primaries)
    assert of_class(none, "relief") == of_class(all_of_them, "relief")
    clean, _, answer, _ = tensors(none.pairs(N_PAIRS))
    logits, _ = forward(none.config, none.state, clean)
    assert torch.equal(logits[:, -1].argmax(dim=-1), answer)


def test_number_of_backups_has_an_end() -> None:
    with pytest.raises(ValueError, match="0 to 8 backups, not 9"):
        build_ioi(0, backups=9)
