"""Activation patching against plain runs with one node put in: directions, positions, their interaction, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Positions
from circuitfind.errors import RunError, UnsupportedError, UsageError
from circuitfind.methods import METHODS, get_method
from circuitfind.methods.activation_patching import ActivationPatching
from circuitfind.methods.positions import group_positions
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model, planted
from circuitfind.model.memory import make_plan
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs
from tests import families
from tests.families import COSTLY, FAMILIES, pairs_for
from tests.methods.slow import nodes
from tests.methods.slow.problem import Problem, ablated, problem
from tests.model.oracle import ablated_writes, logit_diffs, oracle, tokens_of

WAYS = (("resample", "noising"), ("resample", "denoising"), ("mean", "noising"), ("zero", "noising"))
CLOSE = 1e-5
"""Single precision against double precision, in logits of size one."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def runs_of(model: Model, pairs: PromptPairs, **plan: int) -> Runs:
    return Runs(model, pairs, get_metric("logit-diff"), plan=replace(make_plan(model, None), **plan))


def patching(
    runs: Runs,
    direction: Direction = "noising",
    ablation: Ablation = "resample",
    positions: Positions = "none",
    both: bool = False,
) -> Scores:
    return ActivationPatching(both=both).run(
        runs, ablation=ablation, direction=direction, positions=positions
    )


def spent(model: Model, before: Mapping[str, int]) -> dict[str, int]:
    return {name: model.passes[name] - before[name] for name in before}


# Values.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_node_against_the_oracle(family: str, way: tuple[Ablation, Direction]) -> None:
    ablation, direction = way
    model, truth = families.model(family), oracle(family)
    pairs = pairs_for(model, count=3, last=False)
    scores = patching(runs_of(model, pairs), direction, ablation)
    base, towards = ("clean", ablation) if direction == "noising" else ("corrupted", "clean")
    tokens, wanted = tokens_of(pairs, base), ablated_writes(truth, pairs, towards)
    before = logit_diffs(truth.run(tokens), pairs)
    current = truth.written
    assert scores.per_prompt is not None
    for w, name in enumerate(model.anatomy.writer_names):
        after = logit_diffs(truth.run(tokens, moved={name: wanted[name] - current[name]}), pairs)
        effect = before - after if direction == "noising" else after - before
        # Under zero ablation an RMSNorm divides what little is left of the stream.
        np.testing.assert_allclose(scores.per_prompt[:, w], effect, atol=1e-4 if ablation == "zero" else 3e-5)
        assert scores.values[w] == pytest.approx(effect.mean(), abs=1e-4)
    assert scores.level == "node"


@pytest.mark.parametrize("family", COSTLY)
def test_both_directions_and_their_interaction(family: str) -> None:
    model = families.model(family)
    pairs = pairs_for(model, count=5, last=False, lengths=(5, 7) if model.causal else (6,), same=1)
    given = problem(family, pairs)
    scores = patching(runs_of(model, pairs, batch_tokens=14), both=True)
    assert scores.per_prompt is not None
    for w, name in enumerate(model.anatomy.writer_names):
        wanted = {
            "noising": nodes.noising(given, name),
            "denoising": nodes.denoising(given, name),
            "interaction": nodes.interaction(given, name),
        }
        for kind, values in wanted.items():
            assert scores.extra[kind][w] == pytest.approx(float(values.mean()), abs=CLOSE), (name, kind)
        error = float(wanted["interaction"].std() / len(pairs) ** 0.5)
        assert scores.extra["interaction_error"][w] == pytest.approx(error, abs=CLOSE)
        larger = max(("noising", "denoising"), key=lambda kind: abs(float(wanted[kind].mean())))
        assert abs(scores.values[w]) == pytest.approx(abs(float(wanted[larger].mean())), abs=CLOSE)
        assert scores.per_prompt[:, w].mean() == pytest.approx(scores.values[w], abs=1e-12)
    for told in scores.facts["interactions"]:
        assert told["low"] * told["high"] > 0


@pytest.mark.parametrize(
    ("family", "direction"), families.thinned(families.FAMILIES, ["noising", "denoising"], 2)
)
def test_every_position(family: str, direction: Direction) -> None:
    model = families.model(family)
    pairs = pairs_for(model, count=4, last=False, lengths=(5, 6) if model.causal else (6,), same=2)
    given = problem(family, pairs)
    scores = patching(runs_of(model, pairs, pass_tokens=60), direction, positions="all")
    slow = nodes.noising if direction == "noising" else nodes.denoising
    assert scores.by_position is not None
    assert scores.position_names == tuple(str(i) for i in range(6))
    for w, name in enumerate(model.anatomy.writer_names):
        wanted = [float(slow(given, name, position).mean()) for position in range(6)]
        np.testing.assert_allclose(scores.by_position[:, w], wanted, atol=CLOSE)
    np.testing.assert_allclose(scores.values, np.abs(scores.by_position).sum(0))
    if model.causal:
        assert (scores.by_position[:2] == 0).all(), "the prompts begin alike"


def named(pairs: PromptPairs) -> PromptPairs:
    """With a position that moves from prompt to prompt and one at the end."""
    return PromptPairs(
        tuple(
            replace(pair, positions={"S": 1 + i % 3, "END": pair.answer_position})
            for i, pair in enumerate(pairs)
        ),
        pairs.tokenizer if hasattr(pairs, "tokenizer") else "random",
    )


def put_at(given: Problem, name: str, where: np.ndarray) -> Tensor:
    """m(clean) - m(clean with the node corrupted at some tokens [prompt, pos])."""
    wanted = ablated(given, "resample")[name]
    mask = torch.from_numpy(where)[..., None]
    return given.measure(given.clean) - given.measure(
        given.clean, lambda site, x: torch.where(mask, wanted, x) if site == f"write {name}" else x
    )


@pytest.mark.parametrize("family", ["ln", "gemma2", "neox", "bidirectional"])
def test_named_positions_and_both_directions(family: str) -> None:
    model = families.model(family)
    pairs = named(pairs_for(model, count=5, last=False, lengths=(6,), same=1))
    given = problem(family, pairs)
    runs = runs_of(model, pairs, batch_tokens=12)
    scores = patching(runs, positions="named", both=True)
    assert scores.position_names == ("S", "END", "other")
    grouping = group_positions(runs, "named")
    assert grouping is not None
    groups = np.full((len(pairs), 6), 2)
    for batch, found in zip(runs.batches, grouping.batches, strict=True):
        groups[batch.index, : found.shape[1]] = found
    for g in range(3):
        for w, name in enumerate(model.anatomy.writer_names):
            # Behind the answer nothing counts, so what a group has there does not matter.
            forth = put_at(given, name, groups == g).mean()
            back = -put_at(given.swapped(), name, groups == g).mean()
            assert scores.extra["noising"][g, w] == pytest.approx(float(forth), abs=CLOSE)
            assert scores.extra["denoising"][g, w] == pytest.approx(float(back), abs=CLOSE)
            assert scores.extra["interaction"][g, w] == pytest.approx(float(forth - back), abs=2 * CLOSE)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_positions_under_other_ablations(ablation: Ablation) -> None:
    """The prompts' common beginning has effects too then."""
    model = families.model("ln")
    pairs = pairs_for(model, count=4, lengths=(6,), same=2)
    given = problem("ln", pairs)
    scores = patching(runs_of(model, pairs), "noising", ablation, positions="all")
    assert scores.by_position is not None
    wanted = ablated(given, ablation)
    for w, name in enumerate(model.anatomy.writer_names):
        for position in range(6):
            mask = (torch.arange(6) == position)[:, None]
            patch = lambda site, x, n=name, m=mask: (  # noqa: E731
                torch.where(m, wanted[n], x) if site == f"write {n}" else x
            )
            effect = given.measure(given.clean) - given.measure(given.clean, patch)
            assert scores.by_position[position, w] == pytest.approx(float(effect.mean()), abs=CLOSE)


@pytest.mark.parametrize("kind", ["or-gate", "and-gate"])
def test_gates_have_interactions_of_opposite_sign(kind: str) -> None:
    """An arm of an OR is seen by denoising alone, one of an AND by noising alone; with both, each ranks high."""
    for seed in range(3):
        name = f"planted/{kind}:{seed}"
        truth, model = planted(name), load_model(name, device="cpu")
        made = truth.pairs(32, 0)
        pairs = PromptPairs(
            tuple(
                PromptPair(
                    tuple(p.clean),
                    tuple(p.corrupted),
                    (p.answer,),
                    (p.wrong,),
                    len(p.clean) - 1,
                    {},
                    "",
                    "",
                    "",
                    "",
                )
                for p in made
            ),
            "planted",
        )
        scores = patching(Runs(model, pairs, get_metric("logit-diff")), both=True)
        arms = sorted(
            {
                sender
                for sender, _ in (e.split("->") for e in truth.edges["resample"])
                if sender.startswith("a")
            }
        )
        assert len(arms) == 2
        strong = np.abs(scores.values).max()
        for arm in arms:
            row = model.anatomy.row_of(arm)
            assert abs(scores.values[row]) > 0.5 * strong
            assert scores.extra["interaction"][row] * (-1 if kind == "or-gate" else 1) > 0.5 * strong
            assert arm in {told["node"] for told in scores.facts["interactions"]}
            silent = "noising" if kind == "or-gate" else "denoising"
            assert abs(scores.extra[silent][row]) < 0.1 * strong


# Cost.


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_passes(direction: Direction) -> None:
    """Clean, corrupted and one patched pass for as many rows as fit, whatever layers they begin in."""
    model = families.model("gpt2")
    n_writers = len(model.anatomy.writers)
    for per_pass in (1, 4, n_writers):
        runs = runs_of(model, pairs_for(model, count=2, lengths=(5,)), pass_tokens=10 * per_pass)
        before = dict(model.passes)
        patching(runs, direction)
        found = spent(model, before)
        assert (found["forward"], found["backward"]) == (2 + -(-n_writers // per_pass), 0)
    assert ActivationPatching().cost(model.anatomy).forward == 2 + n_writers
    assert ActivationPatching(both=True).cost(model.anatomy).forward == 2 + 2 * n_writers


@pytest.mark.parametrize("family", ["gpt2", "neox", "attn-only"])
@pytest.mark.parametrize("same", [0, 3])
def test_only_what_can_change_is_computed(family: str, same: int) -> None:
    """Layers above the patch, positions from the first difference on."""
    model = families.model(family)
    anatomy, n_tokens, n_pairs = model.anatomy, 6, 2
    pairs = pairs_for(model, count=n_pairs, lengths=(n_tokens,), same=same)
    runs = runs_of(model, pairs)
    _ = runs.clean, runs.corrupted
    rows = n_pairs * (n_tokens - same)
    for w, node in enumerate(anatomy.writers):
        before = dict(model.passes)
        runs.patched([Patch(nodes=np.arange(len(anatomy.writers)) == w)])
        above = anatomy.n_layers if w == 0 else anatomy.n_layers - 1 - node.layer
        assert spent(model, before) == {"forward": 1, "backward": 0, "work": above * rows}


def test_positions_begin_where_they_are_replaced() -> None:
    """A patch at a position computes what is from there on, and none in front of the first difference is run."""
    model = families.model("gpt2")
    n_layers, n_tokens, same = model.anatomy.n_layers, 6, 2
    runs = runs_of(model, pairs_for(model, count=32, lengths=(n_tokens,), same=same))
    _ = runs.clean, runs.corrupted
    only_input = np.arange(len(model.anatomy.writers)) == 0
    for position in range(n_tokens):
        where = np.tile(np.arange(n_tokens) == position, (32, 1))
        before = dict(model.passes)
        found = runs.patched([Patch(nodes=only_input, where=where)])
        if position < same:
            assert spent(model, before) == {"forward": 0, "backward": 0, "work": 0}
            np.testing.assert_array_equal(found[0], runs.clean)
        else:
            assert spent(model, before)["work"] == n_layers * 32 * (n_tokens - position)


def test_progress_counts_every_row() -> None:
    model = families.model("ln")
    done: list[int] = []
    pairs = pairs_for(model, count=4, same=2)
    runs = Runs(model, pairs, get_metric("logit-diff"), progress=done.append)
    patching(runs, positions="all")
    assert sum(done) == 4 * 6 * len(model.anatomy.writers)


def test_sweeps_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model("ln")
    pairs = pairs_for(model, count=3)
    wanted = patching(runs_of(model, pairs), positions="all", both=True)
    monkeypatch.setattr("circuitfind.methods.activation_patching.MOST_EFFECTS", 1)
    found = patching(runs_of(model, pairs), positions="all", both=True)
    np.testing.assert_allclose(found.values, wanted.values, atol=CLOSE)
    np.testing.assert_allclose(found.extra["interaction"], wanted.extra["interaction"], atol=CLOSE)


# Metrics and refusals.


def test_accuracy_and_kl_are_accepted() -> None:
    model = families.model("gpt2")
    pairs = pairs_for(model, count=8)
    for metric, low, high in (("accuracy", -1.0, 1.0), ("kl", 0.0, np.inf)):
        runs = Runs(model, pairs, get_metric(metric))
        scores = patching(runs)
        assert np.isfinite(scores.values).all()
        assert (scores.values >= low - 1e-6).all()
        assert (scores.values <= high).all()
        assert np.abs(scores.values).max() > 0


def test_refusals() -> None:
    model = families.model("gpt2")
    runs = Runs(model, pairs_for(model), get_metric("logit-diff"))
    for ablation in ("mean", "zero"):
        with pytest.raises(UnsupportedError, match="denoising"):
            patching(runs, "denoising", ablation)
        with pytest.raises(UnsupportedError, match="denoising"):
            patching(runs, "noising", ablation, both=True)
    with pytest.raises(ValueError, match="some positions"):
        Patch(edges=model.anatomy.edge_mask, where=np.ones((5, 6), dtype=bool))


@pytest.mark.parametrize("positions", ["none", "all"])
def test_a_sweep_of_zeros_is_an_error(positions: Positions) -> None:
    """The corrupted prompts differ behind the answer only, where nothing looks."""
    model = families.model("gpt2")
    pairs = PromptPairs(
        tuple(
            replace(
                pair, corrupted=(*pair.clean[:-1], (pair.clean[-1] + 1) % families.VOCAB), answer_position=3
            )
            for pair in pairs_for(model, count=3)
        ),
        "random",
    )
    with pytest.raises(RunError, match="zero") as caught:
        patching(Runs(model, pairs, get_metric("logit-diff")), positions=positions)
    assert "answer position" in (caught.value.hint or "")


def test_the_registry() -> None:
    for name in METHODS:
        method = get_method(name)
        assert (method.name, method.level) == (name, METHODS[name].level)
    with pytest.raises(UsageError) as caught:
        get_method("activation-patchin")
    assert "activation-patching" in caught.value.hint
    assert get_method("activation-patching", {"both": "yes"}) == ActivationPatching(both=True)
