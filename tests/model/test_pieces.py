"""Pieces: pure functions that give the same wherever, whenever and in whatever order they are done."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from circuitfind.config import Ablation
from circuitfind.methods import get_method
from circuitfind.methods.redrawn import redrawn_scores
from circuitfind.model import runs as runs_module
from circuitfind.model.node_pass import Patch
from circuitfind.model.pieces import Found, Piece, digest, done, key_of
from circuitfind.model.runs import Runs
from tests import families
from tests.families import pairs_for, random_mask, runs_of

ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero", "optimal")


class Strangers:
    """Do each piece on runs of their own, made anew, from a copy that was sent as bytes; give them back in any order."""

    def __init__(self, fresh: Callable[[Runs], Runs], seed: int) -> None:
        self._fresh, self._random = fresh, random.Random(seed)
        self.keys: list[str] = []

    def do(self, runs: Runs, pieces: Iterable[Piece]) -> Iterator[tuple[int, Found]]:
        found, own = [], self._fresh(runs)
        for number, piece in enumerate(pieces):
            sent: Piece = pickle.loads(pickle.dumps(piece))
            assert key_of(sent) == key_of(piece)
            self.keys.append(key_of(piece))
            found.append((number, done(own, sent)))
        self._random.shuffle(found)
        yield from found


def fresh(runs: Runs) -> Runs:
    found = Runs(runs.model, runs.pairs, runs.metric, mean_over=runs.mean_over, plan=runs.plan)
    found.constants = runs.constants
    return found


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "CPU_PIECE", 1.0)


def both(family: str = "ln", metric: str = "logit-diff") -> tuple[Runs, Runs, Strangers]:
    model = families.model(family)
    pairs = pairs_for(model, count=6, lengths=(5, 7))
    sizes: Any = {"batch_tokens": 15, "pass_tokens": 40, "edge_tokens": 40}
    here, there = (runs_of(model, pairs, metric, sizes=sizes) for _ in range(2))
    strangers = Strangers(fresh, seed=1)
    there.hands = strangers
    assert len(here.batches) > 2
    return here, there, strangers


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_patches(ablation: Ablation) -> None:
    here, there, strangers = both()
    writers, edges = len(here.model.anatomy.writers), here.model.anatomy.edge_mask
    where = np.zeros((len(here), 7), dtype=bool)
    where[:, 3] = True
    single = tuple(int(x) for x in np.argwhere(edges)[5])
    patches = [
        *(Patch(nodes=row) for row in np.eye(writers, dtype=bool)),
        *(Patch(nodes=row, where=where) for row in np.eye(writers, dtype=bool)[:4]),
        *(Patch(edges=random_mask(edges, 0.5, seed)) for seed in range(3)),
        Patch(edge=(single[0], single[1])),
        Patch(nodes=np.eye(writers, dtype=bool)[0], held=np.eye(writers, dtype=bool)[2]),
    ]
    # Learned once: in the tests of the engines what was learned is sent along.
    there.constants = here.constants = None if ablation != "optimal" else _constants(here)
    np.testing.assert_array_equal(
        here.patched(patches, ablation=ablation), there.patched(patches, ablation=ablation)
    )
    assert len(strangers.keys) == len(set(strangers.keys)) > len(here.batches)


def _constants(runs: Runs) -> Any:
    runs.ablated(0, "optimal")
    return runs.constants


@pytest.mark.parametrize("metric", ["logit-diff", "kl"])
def test_untouched_prompts(metric: str) -> None:
    here, there, strangers = both(metric=metric)
    np.testing.assert_array_equal(here.clean, there.clean)
    np.testing.assert_array_equal(here.corrupted, there.corrupted)
    np.testing.assert_array_equal(here.answered_rightly, there.answered_rightly)
    assert len(set(strangers.keys)) == 2 * len(here.batches)
    patch = [Patch(nodes=np.eye(len(here.model.anatomy.writers), dtype=bool)[1])]
    np.testing.assert_array_equal(here.patched(patch), there.patched(patch))


@pytest.mark.parametrize("name", ["eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "hybrid"])
def test_methods(name: str) -> None:
    here, there, _ = both()
    found = [
        get_method(name, {}).run(runs, ablation="resample", direction="noising") for runs in (here, there)
    ]
    np.testing.assert_array_equal(found[0].values, found[1].values)
    np.testing.assert_array_equal(found[0].node_values, found[1].node_values)


def test_positions_and_draws() -> None:
    here, there, _ = both()
    method = get_method("eap", {})
    found = [method.run(r, ablation="resample", direction="noising", positions="all") for r in (here, there)]
    np.testing.assert_array_equal(found[0].by_position, found[1].by_position)
    weights = np.random.default_rng(0).dirichlet(np.ones(6), size=3)
    drawn = [
        redrawn_scores(r, method, weights, ablation="resample", direction="noising") for r in (here, there)
    ]
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


def test_pieces_are_cut_by_the_work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call gives the same pieces; a larger piece is made of whole passes, so that there are as many of these."""
    counts, keys = [], []
    for size in (1.0, 1.0, 1e12):
        monkeypatch.setattr(runs_module, "CPU_PIECE", size)
        here, there, strangers = both()
        before = here.model.passes["forward"]
        here.patched([Patch(nodes=row) for row in np.eye(len(here.model.anatomy.writers), dtype=bool)])
        counts.append(here.model.passes["forward"] - before)
        there.patched([Patch(nodes=row) for row in np.eye(len(here.model.anatomy.writers), dtype=bool)])
        keys.append(strangers.keys)
    assert keys[0] == keys[1]
    assert len(keys[2]) == len(here.batches) < len(keys[0])
    assert counts[0] == counts[2]


def test_runs_that_have_other_batches_do_not_take_a_piece() -> None:
    here = both()[0]
    other = Runs(here.model, here.pairs, here.metric, plan=replace(here.plan, batch_tokens=1))
    piece = runs_module.Measure(here.batches[0].index, "clean")
    with pytest.raises(KeyError):
        done(other, piece)


def test_a_digest_is_of_everything() -> None:
    nodes = np.eye(3, dtype=bool)
    piece = runs_module.Patched(np.arange(2), (Patch(nodes=nodes[0]),), "clean", "resample")
    others = [
        replace(piece, index=np.arange(1, 3)),
        replace(piece, patches=(Patch(nodes=nodes[1]),)),
        replace(piece, patches=(Patch(held=nodes[0], nodes=nodes[1]),)),
        replace(piece, patches=(Patch(edges=nodes),)),
        replace(piece, patches=piece.patches * 2),
        replace(piece, base="corrupted"),
        replace(piece, ablation="zero"),
    ]
    assert len({key_of(one) for one in (piece, *others)}) == 1 + len(others)
    assert digest(1) != digest(1.0) != digest("1.0") != digest(b"1.0")
    assert digest([1, [2]]) != digest([[1], 2])
    assert digest(np.zeros(4, dtype=bool)) != digest(np.zeros(5, dtype=bool))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(TypeError, match="object has no digest"):
        digest(object())
