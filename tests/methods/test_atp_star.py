"""AtP*'s Q fix, K fix and GradDrop: against brute force on every family, and on cases that plain AtP gets wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitfind.config import Ablation, Direction, Positions
from circuitfind.methods import get_method
from circuitfind.methods.atp_star import _key_changes
from circuitfind.model import attention
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model
from circuitfind.task.pairs import PromptPair, PromptPairs
from tests import families
from tests.families import FAMILIES, costly, native_config, native_state, pairs_for, write_native
from tests.methods.node_cases import (
    FEW,
    assert_near,
    mixed_pairs,
    named,
    runs_of,
    score,
    slots,
    turned,
    writers,
)
from tests.methods.slow import build, nodes
from tests.methods.slow.problem import Problem, problem, problem_for


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


# --- the references -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "direction"), [*(costly(f, "noising") for f in FAMILIES), *((f, "denoising") for f in FEW)]
)
def test_fixes_are_patterns_computed_again(family: str, direction: Direction) -> None:
    """The reference patches one key after the other and runs every softmax again."""
    model = families.model(family)
    pairs = mixed_pairs(model)
    given, sign = turned(problem(family, pairs), direction)
    linear, q, k = nodes.atp(given), nodes.q_fix(given), nodes.k_fix(given)
    runs = runs_of(model, pairs)
    for options, wanted in (
        ({}, linear | q | k),
        ({"k_fix": False}, linear | q),
        ({"q_fix": False}, linear | k),
        ({"q_fix": False, "k_fix": False}, linear),
    ):
        found = score(runs, "atp-star", direction=direction, grad_drop=False, **options)
        means = {name: sign * effect.sum(1).mean() for name, effect in wanted.items()}
        assert_near(found.extra["readers"], slots(model.anatomy, means))
        assert_near(found.values, writers(model.anatomy, means))


@pytest.mark.parametrize(
    ("family", "direction", "fixes"),
    [
        *(costly(f, "noising", True) for f in FAMILIES),
        *((f, "denoising", True) for f in FEW),
        *((f, "noising", False) for f in ("gpt2", "gemma2")),
    ],
)
def test_grad_drop(family: str, direction: Direction, fixes: bool) -> None:
    """The reference runs L backward passes, each with one block's writes detached."""
    model = families.model(family)
    pairs = mixed_pairs(model)
    given, sign = turned(problem(family, pairs), direction)
    for tokens in (None, 14):
        runs = runs_of(model, pairs, tokens=tokens)
        wanted = nodes.graddrop(given, fixes=fixes, by_position=False)
        found = score(runs, "atp-star", direction=direction, q_fix=fixes, k_fix=fixes)
        assert_near(found.values, writers(model.anatomy, wanted))
        assert_near(found.extra["readers"], slots(model.anatomy, wanted))
        assert found.per_prompt is not None
        assert_near(found.per_prompt.mean(0), found.values)
        plain = {name: sign * effect.sum(1).mean() for name, effect in nodes.atp(given).items()}
        assert_near(found.extra["signed"], writers(model.anatomy, plain))


@pytest.mark.parametrize(("family", "positions"), families.thinned(FEW, ["all", "named"], 2))
def test_grad_drop_by_position(family: str, positions: Positions) -> None:
    """Sizes are taken by prompt, pass and group of positions."""
    model = families.model(family)
    pairs = named(mixed_pairs(model))
    given = problem(family, pairs)
    passes = nodes.graddrop_passes(given, fixes=True)
    found = score(runs_of(model, pairs, tokens=14), "atp-star", positions=positions)
    assert found.position_names is not None
    length = given.clean.shape[1]
    group = np.tile(np.arange(length), (len(pairs), 1))
    if positions == "named":
        group[:] = found.position_names.index("other")
        for row, pair in enumerate(pairs):
            for name, at in pair.positions.items():
                group[row, at] = found.position_names.index(name)
    belongs = torch.from_numpy(np.eye(len(found.position_names))[group])  # [b, p, group]
    # [pass, b, p] -> [group]
    wanted = {
        name: torch.einsum("lbp,bpg->lbg", effect, belongs).abs().sum(0).mean(0) / (len(effect) - 1)
        for name, effect in passes.items()
    }
    assert found.by_position is not None
    assert_near(found.by_position, writers(model.anatomy, wanted))
    assert_near(found.values, writers(model.anatomy, wanted).sum(0))
    assert_near(found.extra["readers_by_position"], slots(model.anatomy, wanted))
    if positions == "all":
        same = nodes.graddrop(given, fixes=True, by_position=True)
        assert_near(found.by_position, writers(model.anatomy, same))


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_ablation(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node of the other run is silent: queries and keys are zero as their projections give them."""
    model = families.model(family)
    pairs = mixed_pairs(model)
    true_values = nodes.values

    def values(given: Problem, tokens: Tensor) -> dict[str, Tensor]:
        found = true_values(given, tokens)
        return {k: torch.zeros_like(v) for k, v in found.items()} if tokens is given.corrupted else found

    monkeypatch.setattr(nodes, "values", values)
    wanted = nodes.graddrop(problem(family, pairs), fixes=True, by_position=False)
    found = score(runs_of(model, pairs), "atp-star", "zero")
    assert_near(found.values, writers(model.anatomy, wanted))
    assert_near(found.extra["readers"], slots(model.anatomy, wanted))


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("positions", ["none", "all"])
def test_all_off_is_atp(ablation: Ablation, positions: Positions) -> None:
    model = families.model("gemma2")
    runs = runs_of(model, pairs_for(model, count=6, lengths=(6, 9)))
    off = {"q_fix": False, "k_fix": False, "grad_drop": False}
    found = score(runs, "atp-star", ablation, positions=positions, **off)
    wanted = score(runs, "atp", ablation, positions=positions)
    np.testing.assert_array_equal(found.values, wanted.values)
    np.testing.assert_array_equal(found.extra["readers"], wanted.extra["readers"])
    assert set(found.extra) == set(wanted.extra)
    if ablation == "mean":
        assert np.isnan(found.extra["readers"]).all()


@pytest.mark.parametrize("family", FEW)
def test_queries_in_chunks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model(family)
    runs = runs_of(model, mixed_pairs(model))
    wanted = score(runs, "atp-star")
    monkeypatch.setattr(attention, "SCORE_BYTES", 1)
    assert len(list(attention.query_chunks(torch.zeros(2, 3, 5, 4), 5))) == 5
    found = score(runs, "atp-star")
    assert_near(found.values, wanted.values)
    assert_near(found.extra["readers"], wanted.extra["readers"])


def test_passes() -> None:
    """One sweep: below each block one more gradient, of which there are 1, 2, ... L."""
    model = families.model("ln")
    layers = len(model.layers)
    for grad_drop, sweeps in ((True, layers * (layers + 1) // 2), (False, layers)):
        runs = runs_of(model, pairs_for(model, count=4, same=2))
        before = dict(model.passes)
        score(runs, "atp-star", grad_drop=grad_drop)
        after = {name: model.passes[name] - before[name] for name in before}
        assert after == {"forward": 2, "backward": 1, "work": 4 * (layers * (6 + 4) + sweeps * 4)}
        method = get_method("atp-star", {"grad_drop": grad_drop})
        assert method.cost(model.anatomy).backward == sweeps / layers


# --- one row of a softmax -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0.0, 3.0, 20.0, 60.0, 300.0])
@pytest.mark.parametrize("shift", [-300.0, -20.0, -1.0, 1e-3, 20.0, 300.0])
def test_one_key_at_a_time(gap: float, shift: float) -> None:
    """Against softmaxes in double precision, however saturated the row is and however far one score moves."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 4, 5, generator=generator)
    scores[..., 2] += gap
    scores[0, 0, 0, 1:] = -torch.inf  # a first query sees one key
    scores[0, 0, 1, 3:] = -torch.inf
    moved = scores + shift * (1 + torch.rand(scores.shape, generator=generator))
    values = torch.randn(2, 3, 5, 7, generator=generator)
    grad = torch.randn(6, 2, 3, 4, 7, generator=generator)
    found = _key_changes(scores, moved).effect(values, grad)
    row = scores.double().softmax(-1)
    at_pattern = grad.double() @ values.double().transpose(-1, -2)
    wanted = torch.zeros(6, 2, 3, 5, dtype=torch.float64)
    for t in range(5):
        patched = scores.double().clone()
        patched[..., t] = moved.double()[..., t]
        wanted[..., t] = ((patched.softmax(-1) - row) * at_pattern).sum((-1, -2))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-6)


# --- planted cases --------------------------------------------------------------------------------------------


def planted(path: Path, weights: dict[str, Tensor], **config: object) -> tuple[Model, build.Plain]:
    """A model without norms whose weights are all zero but for these."""
    settings = native_config(
        normalization_type=None,
        d_model=4,
        d_head=1,
        n_heads=1,
        d_mlp=1,
        attn_scale=1.0,
        act_fn="relu",
        **config,
    )
    state = {name: torch.zeros_like(tensor) for name, tensor in native_state(settings).items()}
    for name, tensor in weights.items():
        state[name].view(-1)[:] = tensor.flatten()
    return load_model(str(write_native(path, settings, state)), device="cpu"), build.from_native(
        settings, state
    )


def table(rows: int, cells: dict[tuple[int, int], float], columns: int = 4) -> Tensor:
    found = torch.zeros(rows, columns)
    for at, value in cells.items():
        found[at] = value
    return found


def one_pair(clean: tuple[int, ...], corrupted: tuple[int, ...]) -> PromptPairs:
    pair = PromptPair(clean, corrupted, (0,), (1,), len(clean) - 1, {}, "", "", "", "t")
    return PromptPairs((pair,), "planted")


def test_a_cancelled_effect(tmp_path: Path) -> None:
    """Head a0.h0 writes 1, or -1 when corrupted; m1 takes off what is positive. To first order nothing is left of it."""
    model, plain = planted(
        tmp_path / "m",
        {
            "embed.W_E": table(40, {(1, 0): 2.0, (2, 0): -2.0}),
            "blocks.0.attn.W_V": torch.tensor([1.0, 0, 0, 0]),
            "blocks.0.attn.W_O": torch.tensor([0, 1.0, 0, 0]),
            "blocks.1.mlp.W_in": torch.tensor([0, 1.0, 0, 0]),
            "blocks.1.mlp.W_out": torch.tensor([0, -1.0, 0, 0]),
            "unembed.W_U": table(4, {(1, 0): 1.0}, 40),
        },
    )
    pairs = one_pair((1, 3), (2, 3))
    given, row = problem_for(plain, pairs), model.anatomy.row_of("a0.h0")
    assert float(nodes.noising(given, "a0.h0")) == pytest.approx(1)
    runs = runs_of(model, pairs)
    assert score(runs, "atp").values[row] == pytest.approx(0)
    assert score(runs, "atp-star", grad_drop=False).values[row] == pytest.approx(0)
    # Without m1, 1 - (-1); the one other block of two is the only pass that counts.
    assert score(runs, "atp-star").values[row] == pytest.approx(2)
    assert score(runs, "atp-star").extra["signed"][row] == pytest.approx(0)
    dead = model.anatomy.row_of("a1.h0")
    assert score(runs, "atp-star").values[dead] == 0


@pytest.mark.parametrize("node", ["q", "k"])
def test_a_saturated_head(tmp_path: Path, node: str) -> None:
    """A head looks at X with a score of 30 and copies its +1; with the other prompt's query it looks at Y, which says -1.

    With the key at one position patched, X and Y look alike to it. The softmax's gradient is about exp(-30).
    """
    x, y, a, b = 1, 2, 3, 4
    embed = {(x, 0): 1.0, (x, 2): 1.0, (y, 0): -1.0, (y, 2): -1.0, (a, 3): 1.0, (b, 3): -1.0}
    model, plain = planted(
        tmp_path / "m",
        {
            "embed.W_E": table(40, embed),
            "blocks.0.attn.W_Q": torch.tensor([0, 0, 0, 30.0]),
            "blocks.0.attn.W_K": torch.tensor([1.0, 0, 0, 0]),
            "blocks.0.attn.W_V": torch.tensor([0, 0, 1.0, 0]),
            "blocks.0.attn.W_O": torch.tensor([0, 1.0, 0, 0]),
            "unembed.W_U": table(4, {(1, 0): 1.0}, 40),
        },
        n_layers=1,
        attn_only=True,
    )
    pairs = one_pair((x, y, a), (x, y, b) if node == "q" else (y, x, a))
    given, name = problem_for(plain, pairs), f"a0.h0<{node}>"
    exact = [float(nodes.noising(given, name, position)) for position in range(3)]
    assert sum(exact) == pytest.approx(2)
    column = model.anatomy.reader_index[name]
    runs = runs_of(model, pairs)
    assert abs(score(runs, "atp").extra["readers"][column]) < 1e-9
    # One block, linear behind the pattern: the fix is exact; and there is no other block to drop.
    for grad_drop in (True, False):
        found = score(runs, "atp-star", positions="all", grad_drop=grad_drop)
        np.testing.assert_allclose(found.extra["readers_by_position"][:, column], exact, atol=1e-6)
        off = score(runs, "atp-star", grad_drop=grad_drop, **{f"{node}_fix": False})
        assert abs(off.extra["readers"][column]) < 1e-9


def test_one_block(tmp_path: Path) -> None:
    """There is nothing to drop: plain attribution, each prompt's as a size."""
    config = native_config(n_layers=1)
    folder = write_native(tmp_path / "m", config, native_state(config))
    model = load_model(str(folder), device="cpu")
    runs = runs_of(model, mixed_pairs(model))
    signed, found = score(runs, "atp-star", grad_drop=False), score(runs, "atp-star")
    assert signed.per_prompt is not None
    assert_near(found.values, np.abs(signed.per_prompt).mean(0))
    assert_near(found.extra["signed"], signed.values)
