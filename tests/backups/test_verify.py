"""Freezing and interaction against one patched run after the other, and where they must be zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from circuitfind.backups.verify import Candidate, Verified, removed_values
from circuitfind.backups.verify import verify as verify_all
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs
from circuitfind.names import Kind
from tests import families
from tests.backups.cases import WITH_BACKUPS, case
from tests.families import FAMILIES, pairs_for, runs_of
from tests.model.slow_effects import Slow, assert_near, slow_case

FEW = ("ln", "gpt2", "neox", "gemma2", "kv-groups", "bidirectional")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def mask(runs: Runs, rows: Any) -> np.ndarray:
    return np.isin(np.arange(len(runs.model.anatomy.writers)), list(rows))


def alone(runs: Runs, removed: Any, ablation: Any, where: Any, held: Any = ()) -> np.ndarray:
    """The metric of one patch, run by itself."""
    frozen = mask(runs, held) if held else None
    return np.asarray(
        runs.patched([Patch(nodes=mask(runs, removed), where=where, held=frozen)], ablation=ablation)[0]
    )


def verify(runs: Runs, candidates: list[Candidate], ablation: Any, where: Any) -> list[Verified]:
    """With the metric of each set from a run of its own."""
    without = [alone(runs, c.removed, ablation, where) for c in candidates]
    return verify_all(runs, candidates, without, ablation, where)


def answers(runs: Runs) -> np.ndarray:
    longest = max(len(pair.clean) for pair in runs.pairs)
    return np.array([[at == pair.answer_position for at in range(longest)] for pair in runs.pairs])


def some(runs: Runs, seed: int, count: int = 6) -> list[Candidate]:
    """Random candidates and sets, heads and MLPs, some sets shared."""
    rng, n = np.random.default_rng(seed), len(runs.model.anatomy.writers)
    found = []
    for i in range(count):
        rows = [int(r) for r in rng.choice(np.arange(1, n), 1 + i % 3, replace=False)]
        others = [r for r in range(1, n) if r not in rows]
        found += [Candidate(int(r), tuple(rows)) for r in rng.choice(others, 2, replace=False)]
    return found


def assert_brute(runs: Runs, candidates: list[Candidate], ablation: Any, where: Any) -> None:
    clean = runs.clean
    for c, found in zip(candidates, verify(runs, candidates, ablation, where), strict=True):
        without = alone(runs, c.removed, ablation, where)
        single = clean - alone(runs, [c.row], ablation, where)
        both = alone(runs, [*c.removed, c.row], ablation, where)
        near = {"atol": 2e-5 * max(1.0, float(np.abs(clean).max())), "rtol": 0}
        frozen = alone(runs, c.removed, ablation, where, held=[c.row])
        np.testing.assert_allclose(found.freeze, without - frozen, **near)
        np.testing.assert_allclose(found.single, single, **near)
        np.testing.assert_allclose(found.interaction, (without - both) - single, **near)


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
@pytest.mark.parametrize("name", WITH_BACKUPS)
def test_planted_backups_by_brute_force(name: str, ablation: Any) -> None:
    """And both numbers are far above zero for each of them, when what it covers is gone."""
    runs, truth = case(name, 1).runs, case(name, 1).truth
    rows = runs.model.anatomy.row_of
    candidates = [
        Candidate(rows(backup), tuple(rows(head) for head in covered))
        for backup, covered in truth.covers.items()
    ]
    where = answers(runs)
    assert_brute(runs, [*candidates, *some(runs, 0, 2)], ablation, where)
    for found in verify(runs, candidates, ablation, where):
        assert found.freeze.mean() > 0.05 * runs.clean.mean()
        assert found.interaction.mean() > 0.05 * runs.clean.mean()


@pytest.mark.parametrize(("family", "everywhere"), families.thinned(FAMILIES, [True, False], 2))
def test_random_candidates_by_brute_force(family: str, everywhere: bool) -> None:
    model = families.model(family)
    runs = runs_of(model, pairs_for(model, last=False, same=1))
    ablation = "mean" if everywhere else "resample"
    assert_brute(runs, some(runs, 1, 3), ablation, None if everywhere else answers(runs))


@pytest.mark.parametrize("family", FEW)
def test_random_candidates_by_the_reference(family: str) -> None:
    """The definitions, with tests/methods/slow in place of ``patched``."""
    model = families.model(family)
    pairs = pairs_for(model, last=False)
    runs, slow = runs_of(model, pairs), slow_case(family, pairs, "zero")
    candidates, clean = some(runs, 2, 3), slow.given.measure(slow.given.clean).numpy()

    def value(slow: Slow, removed: Any, held: Any = ()) -> np.ndarray:
        return slow.run(Patch(nodes=mask(runs, removed), held=mask(runs, held)))[0].numpy()

    for c, found in zip(candidates, verify(runs, candidates, "zero", None), strict=True):
        without, single = value(slow, c.removed), clean - value(slow, [c.row])
        size = float(np.abs(clean - without).max()) + float(np.abs(single).max())
        assert_near(found.freeze, without - value(slow, c.removed, [c.row]), size)
        assert_near(found.interaction, without - value(slow, [*c.removed, c.row]) - single, size)


@pytest.mark.parametrize("family", FEW)
def test_what_nothing_reaches_has_nothing_to_freeze(family: str) -> None:
    """Heads beside and below the removed one."""
    model = families.model(family)
    runs, anatomy = runs_of(model, pairs_for(model, last=False)), model.anatomy
    gone = anatomy.head_slice(1).start
    below = [row for row in range(1, anatomy.head_slice(1).stop) if row != gone]
    found = verify(runs, [Candidate(row, (gone,)) for row in below], "resample", None)
    assert max(float(np.abs(v.freeze).max()) for v in found) < 1e-5
    above = range(anatomy.head_slice(1).start, len(anatomy.writers))
    found = verify(runs, [Candidate(row, (1,)) for row in above], "resample", None)
    assert max(float(np.abs(v.freeze).max()) for v in found) > 1e-3


@pytest.mark.parametrize("family", FEW)
def test_nothing_removed_is_nothing_repaired(family: str) -> None:
    model = families.model(family)
    runs = runs_of(model, pairs_for(model))
    for found in verify(runs, [Candidate(row, ()) for row in (1, 2, 6)], "zero", None):
        assert float(np.abs(found.freeze).max()) < 1e-5
        assert float(np.abs(found.interaction).max()) < 1e-5
        assert float(np.abs(found.single).max()) > 1e-3


@pytest.mark.parametrize("family", FEW)
def test_interaction_is_symmetric(family: str) -> None:
    model = families.model(family)
    runs = runs_of(model, pairs_for(model))
    one, two = verify(runs, [Candidate(2, (7,)), Candidate(7, (2,))], "mean", None)
    np.testing.assert_allclose(one.interaction, two.interaction, atol=1e-5)
    assert float(np.abs(one.interaction).max()) > 1e-3


def test_heads_that_only_add_up_do_not_interact() -> None:
    """The last block of a model of attention alone and without norms."""
    model = families.model("attn-only-no-norm")
    runs, last = runs_of(model, pairs_for(model)), model.anatomy.head_slice(1)
    rows = range(last.start, last.stop)
    for found in verify(runs, [Candidate(rows[0], tuple(rows[1:]))], "resample", None):
        assert float(np.abs(found.interaction).max()) < 1e-5
        assert float(np.abs(found.single).max()) > 1e-2


@pytest.mark.parametrize("sizes", [{"batch_tokens": 1}, {"pass_tokens": 1}])
def test_sizes_change_nothing(sizes: dict[str, int]) -> None:
    model = families.model("ln")
    pairs = pairs_for(model, last=False, lengths=(5, 7))
    runs, small = runs_of(model, pairs), runs_of(model, pairs, sizes=sizes)
    candidates = some(runs, 5)
    found = zip(*(verify(r, candidates, "resample", answers(r)) for r in (runs, small)), strict=True)
    for one, two in found:
        np.testing.assert_allclose(one.freeze, two.freeze, atol=2e-5)
        np.testing.assert_allclose(one.interaction, two.interaction, atol=2e-5)


@pytest.mark.parametrize("name", ["gated-backup", "single-blind"])
def test_sets_that_are_removed(name: str) -> None:
    runs, truth = case(name, 0).runs, case(name, 0).truth
    row, where = runs.model.anatomy.row_of, answers(runs)
    gone, backups = [row(p) for p in truth.primaries], [row(b) for b in truth.covers]
    heads = [r for r, node in enumerate(runs.model.anatomy.writers) if node.kind is Kind.HEAD]
    sets = [gone, [*gone, *backups], heads]
    held: list[list[int]] = [backups, [], []]
    found = removed_values(runs, sets, "resample", where, held=held)
    for values, rows, frozen in zip(found, sets, held, strict=True):
        np.testing.assert_allclose(values, alone(runs, rows, "resample", where, frozen), atol=1e-4)
    plain = removed_values(runs, sets[:1], "resample", where)[0]
    assert plain.mean() > found[0].mean() + 0.1 * runs.clean.mean(), "the backups had repaired that"
