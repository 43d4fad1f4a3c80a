"""Runs whose pieces an engine does: the same numbers as in this process, to the last bit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.prune import prune
from circuitfind.circuit.rule import Rule
from circuitfind.config import Ablation
from circuitfind.engine.base import Engine, Job, PieceJob, raising
from circuitfind.engine.bench import KEPT_RUNS, WorkBench
from circuitfind.engine.hands import EngineHands
from circuitfind.engine.local import LocalEngine
from circuitfind.engine.processes import processes
from circuitfind.engine.recipe import constants_of, constants_on, needs_of, recipe_of, why_not
from circuitfind.engine.room import Room
from circuitfind.engine.work import answer
from circuitfind.errors import ModelError, TaskError
from circuitfind.methods import get_method
from circuitfind.model import runs as runs_module
from circuitfind.model.cross import CrossRuns
from circuitfind.model.node_pass import Patch
from circuitfind.model.pieces import Own, key_of
from circuitfind.model.runs import Measure, Runs
from circuitfind.model.shuffle import shuffled
from circuitfind.model.split import split_neurons
from tests import families
from tests.families import pairs_for, random_mask, runs_of

SIZES: dict[str, int] = {"batch_tokens": 15, "pass_tokens": 160, "edge_tokens": 160}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Many pieces, in one thread here and in every worker: then numbers are the same to the last bit."""
    monkeypatch.setattr(runs_module, "CPU_PIECE", 1.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with families.one_thread():
        yield


def made(family: str = "ln", metric: str = "logit-diff", **options: Any) -> Runs:
    """Three batches; the answers are such that the model is better with all of its edges than with none."""
    model = families.model(family)
    pairs = pairs_for(model, count=6, lengths=(5, 7))
    turned = tuple(replace(pair, answer=pair.wrong, wrong=pair.answer) for pair in pairs)
    return runs_of(model, replace(pairs, pairs=turned), metric, sizes=SIZES, **options)


def by(engine: Engine, runs: Runs, **options: Any) -> Runs:
    """The same, whose pieces the engine does, every one of them."""
    runs.hands = EngineHands(engine, "cpu", **{"to_start": 0.0, "to_send": 0.0, **options})
    return runs


class Backwards(LocalEngine):
    """The local engine, which gives its results in another order, and keeps a list of what it did."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def each(
        self, jobs: Iterable[Job], begun: Callable[[int], None] | None = None
    ) -> Generator[tuple[int, Any], None, None]:
        found = []
        for number, job in enumerate(jobs):
            assert isinstance(job, PieceJob)
            self.keys.append(f"{job.recipe.key} {key_of(job.piece)}")
            found.append((number, answer(job, self._bench).result()))
        yield from reversed(found)


def scores(name: str, direction: Any = "noising", ablation: Ablation = "resample") -> Callable[[Runs], Any]:
    def work(runs: Runs) -> Any:
        return get_method(name, {}).run(runs, ablation=ablation, direction=direction).values

    return work


def evaluated(ablation: Ablation) -> Callable[[Runs], Any]:
    def work(runs: Runs) -> Any:
        every = runs.model.anatomy.edge_mask
        masks = [every & random_mask(every, 0.5, seed) for seed in range(4)]
        return Evaluator(runs, ablation).values(masks)

    return work


def pruned(runs: Runs) -> Any:
    found = get_method("eap", {}).run(runs, ablation="resample", direction="noising")
    return prune(
        found, Rule(faithfulness=0.6, evaluations=40), Evaluator(runs, "resample"), direction="noising"
    ).mask


WORK: dict[str, Callable[[Runs], Any]] = {
    "eap-ig": scores("eap-ig"),
    "noising": scores("activation-patching"),
    "denoising": scores("activation-patching", "denoising"),
    "edges": scores("edge-patching"),
    "hybrid": scores("hybrid"),
    "pruning": pruned,
    "mean": evaluated("mean"),
    "optimal": evaluated("optimal"),
    "gradients with constants": scores("eap", ablation="optimal"),
}


SLOWLY = ("eap-ig", "denoising", "edges", "hybrid", "pruning", "optimal", "gradients with constants")


@pytest.mark.parametrize(
    "work",
    [pytest.param(work, marks=[pytest.mark.slow] * (name in SLOWLY), id=name) for name, work in WORK.items()],
)
def test_the_same_numbers(work: Callable[[Runs], Any]) -> None:
    engine = Backwards()
    np.testing.assert_array_equal(work(made()), work(by(engine, made())))
    assert len(engine.keys) == len(set(engine.keys)) >= 3


def test_the_pieces_do_not_depend_on_the_workers() -> None:
    keys = []
    for workers in (1, 2, 7):
        engine = Backwards()
        engine.workers = workers
        evaluated("resample")(by(engine, made()))
        keys.append(engine.keys)
    assert keys[0] == keys[1] == keys[2]


def test_passes_and_progress_are_counted() -> None:
    rows: list[list[int]] = [[], []]
    here, there = (made(progress=one.append) for one in rows)
    counts = []
    for runs in (here, by(LocalEngine(), there)):
        before = dict(runs.model.passes)
        scores("activation-patching")(runs)
        counts.append({name: runs.model.passes[name] - before[name] for name in before})
    assert sum(rows[0]) == sum(rows[1]) > 0
    # Another model makes the runs that patches start from once more.
    assert all(
        0 <= counts[1][name] - counts[0][name] <= 3 * len(here.batches) for name in ("forward", "backward")
    )


def test_a_single_piece_is_done_here() -> None:
    engine = Backwards()
    runs = by(engine, made())
    patch = [Patch(nodes=np.eye(len(runs.model.anatomy.writers), dtype=bool)[1])]
    one = by(
        engine, Runs(runs.model, runs.pairs[:2], runs.metric, plan=replace(runs.plan, batch_tokens=4096))
    )
    one.patched(patch)
    assert not engine.keys
    runs.patched(patch)
    assert engine.keys


def test_little_work_is_done_here() -> None:
    engine = Backwards()
    work = evaluated("resample")
    np.testing.assert_array_equal(work(made()), work(by(engine, made(), to_start=60.0)))
    assert not engine.keys


@dataclass(frozen=True)
class Bound(Measure):
    """A piece that needs something of this process."""

    portable = False


def test_pieces_that_stay() -> None:
    engine, runs = Backwards(), made()
    pieces = [
        (Bound if number % 2 else Measure)(batch.index, "clean") for number, batch in enumerate(runs.batches)
    ]
    found = dict(by(engine, runs).hands.do(runs, pieces))
    assert len(engine.keys) == -(-len(pieces) // 2)
    for number, piece in enumerate(pieces):
        np.testing.assert_array_equal(found[number].arrays["values"], piece.run(made())["values"])


def strangers() -> Iterator[tuple[str, Runs]]:
    one, other = families.model("ln"), families.model("ln")
    pairs = pairs_for(one, count=3)
    yield "two models", CrossRuns(one, shuffled(other, 1), pairs, made().metric, plan=families.PLAN)
    yield "whose weights were changed", runs_of(shuffled(one, 0), pairs, sizes=SIZES)
    yield "neurons or features are nodes", runs_of(split_neurons(one, {0: [(0,)]}), pairs, sizes=SIZES)


def test_what_has_no_recipe_is_done_here_and_says_so() -> None:
    for says, runs in strangers():
        engine, said = Backwards(), list[str]()
        by(engine, runs, note=said.append)
        assert len(runs.patched([Patch(nodes=np.eye(len(runs.model.anatomy.writers), dtype=bool)[1])]))
        assert not engine.keys
        assert says in said[0]
        assert says in str(why_not(runs))
    assert why_not(made()) is None


def test_an_engine_that_is_busy() -> None:
    engine, runs = Backwards(), made()
    engine.busy = True
    np.testing.assert_array_equal(evaluated("resample")(by(engine, runs)), evaluated("resample")(made()))
    assert not engine.keys


class Full(Backwards):
    """Has no memory, at first."""

    def each(
        self, jobs: Iterable[Job], begun: Callable[[int], None] | None = None
    ) -> Generator[tuple[int, Any], None, None]:
        if not self.keys:
            self.keys.append("none")
            raise MemoryError("all gone")
        yield from super().each(jobs, begun)


def test_memory_that_runs_out_elsewhere_makes_batches_smaller() -> None:
    said: list[str] = []
    runs = by(Full(), made(note=said.append))
    before, right = len(runs.batches), scores("eap")(made())
    np.testing.assert_allclose(scores("eap")(runs), right, atol=1e-6)
    assert len(runs.batches) > before
    assert "memory ran out" in said[0]


# Recipes and benches.


def test_a_recipe_is_of_everything() -> None:
    runs = made()
    recipe = recipe_of(runs, "cpu")
    assert recipe is recipe_of(runs, "cpu"), "made once"
    assert recipe.key == recipe_of(made(), "cpu").key
    others = [
        made(metric="prob-diff"),
        made(mean_over="clean"),
        made("rms-gated"),
        runs_of(runs.model, runs.pairs[:5], sizes=SIZES),
        runs_of(runs.model, runs.pairs, sizes={**SIZES, "batch_tokens": 10}),
    ]
    keys = {recipe.key, *(recipe_of(other, "cpu").key for other in others)}
    runs.constants = runs.trace(0, "clean").writes
    keys |= {recipe_of(runs, "cpu").key, recipe_of(made(), "cuda").key}
    assert len(keys) == 3 + len(others)


def test_constants_are_sent_as_they_are() -> None:
    runs = made()
    runs.constants = runs.trace(0, "clean").writes
    again = constants_on(constants_of(runs.constants), runs.model)
    assert again is not None
    for one, other in zip([again.input, *again.z, *(again.mlp or [])], _tensors(runs.constants), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def _tensors(writes: Any) -> list[Any]:
    return [writes.input, *writes.z, *(writes.mlp or [])]


def test_a_bench_keeps_its_model_and_the_latest_runs() -> None:
    bench, runs = WorkBench(), made()
    recipes = [recipe_of(runs_of(runs.model, runs.pairs[:n], sizes=SIZES), "cpu") for n in (2, 3, 4)]
    first = bench.runs(recipes[0])
    assert bench.runs(recipes[0]) is first
    second = bench.runs(recipes[1])
    assert second.model is first.model is not runs.model
    assert KEPT_RUNS == 2
    assert bench.runs(recipes[0]) is first, "asked for, so the latest"
    bench.runs(recipes[2])
    assert bench.runs(recipes[0]) is first
    assert bench.runs(recipes[1]) is not second
    bench.runs(recipe_of(made("rms-gated"), "cpu"))
    assert bench.runs(recipes[0]).model is not first.model


def test_other_weights_are_refused() -> None:
    recipe = replace(recipe_of(made(), "cpu"), fingerprint="another", key="another")
    with pytest.raises(ModelError, match="a worker has other weights"):
        WorkBench().runs(recipe)


def test_needs_grow_with_the_plan() -> None:
    small, large = made(), made()
    large.plan = replace(large.plan, pass_tokens=4096, edge_tokens=4096)
    needs = [needs_of(runs, recipe_of(runs, "cpu")) for runs in (small, large)]
    assert 0 < needs[0].memory < needs[1].memory < large.plan.budget
    assert needs[0].weights == sum(p.numel() * 4 for p in small.model.bridge.parameters())
    assert needs[0].gpus == 0
    assert needs[0].warm == needs[1].warm


def test_errors_of_pieces_come_through() -> None:
    class Refusing(Measure):
        def run(self, runs: Runs) -> Any:
            raise TaskError("no", hint="yes")

    runs = by(LocalEngine(), made())
    with pytest.raises(TaskError, match="no"):
        list(runs.hands.do(runs, [Refusing(batch.index, "clean") for batch in runs.batches]))


# In processes.


def test_a_process_gives_the_same() -> None:
    with processes(1, room=Room(lambda place: 10**15)) as engine:
        runs = by(engine, made())
        np.testing.assert_array_equal(WORK["noising"](runs), WORK["noising"](made()))
        assert runs.hands.sent > 3  # type: ignore[attr-defined]  # it is an engine's


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_processes_gives_the_same(workers: int) -> None:
    with processes(workers, room=Room(lambda place: 10**15)) as engine:
        for name, work in WORK.items():
            np.testing.assert_array_equal(work(by(engine, made())), work(made()), err_msg=name)
        assert engine.facts["workers"] == workers


@pytest.mark.slow
def test_workers_that_are_killed_cost_nothing() -> None:
    right, dead = WORK["edges"](made()), list[int]()
    with processes(2, room=Room(lambda place: 10**15)) as engine:
        WORK["noising"](by(engine, made()))  # so that both are there
        stop = threading.Event()

        def kill() -> None:
            while not stop.wait(0.15) and len(dead) < 2:
                victim = next(iter(engine._alive.values())).process
                dead.append(victim.pid or 0)
                os.kill(dead[-1], signal.SIGKILL)
                time.sleep(3)

        killer = threading.Thread(target=kill)
        killer.start()
        for _ in range(3):
            np.testing.assert_array_equal(WORK["edges"](by(engine, made())), right)
        stop.set()
        killer.join()
        assert engine.facts["deaths"] >= 1


def test_raising_closes_what_it_reads() -> None:
    closed: list[bool] = []

    def results() -> Generator[tuple[int, Any], None, None]:
        try:
            yield 0, 1
            yield 1, 2
        finally:
            closed.append(True)

    found = raising(results())
    assert next(found) == (0, 1)
    found.close()
    assert closed == [True]


def test_own_hands_are_the_reference() -> None:
    assert isinstance(made().hands, Own)
