"""Finished runs that go to CPU memory or to disk and come back: to the last bit what they were, at the price of no pass."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.errors import UsageError
from circuitfind.methods import get_method
from circuitfind.model import spill
from circuitfind.model.forward import Trace
from circuitfind.model.memory import make_plan
from circuitfind.model.runs import Runs
from circuitfind.model.spill import Spill
from circuitfind.offload import offloaded
from tests import families
from tests.families import model, pairs_for, runs_of

TIGHT = {"batch_tokens": 12, "cache_bytes": 1}
"""Two pairs to a batch; of finished runs the latest two are kept."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def tight(family: str, where: str) -> Runs:
    built = model(family)
    return runs_of(built, pairs_for(built, count=8), sizes={**TIGHT, "spill": where})


def tensors_of(trace: Trace) -> list[Any]:
    found: list[Any] = []
    spill.walked(trace, lambda tensor: found.append(tensor) or tensor)
    return found


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_run_comes_back_as_it_was(where: Any, keep: bool) -> None:
    runs = tight("gemma2", "none")
    trace = runs.trace(0, "corrupted", keep=keep)
    kept = Spill(where, torch.device("cpu"))
    kept.put((0, "corrupted"), trace, keep=keep)
    assert kept.put_bytes == trace.n_bytes, "what shares memory is written once"
    assert (kept.get((0, "corrupted"), keep=True) is not None) is keep
    back = kept.get((0, "corrupted"), keep=False)
    assert back is not None
    assert back[1] is keep
    ours, theirs = tensors_of(back[0]), tensors_of(trace)
    assert len(ours) == len(theirs) > 10
    for a, b in zip(ours, theirs, strict=True):
        assert a.stride() == b.stride()
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
    assert back[0].place is trace.place


@pytest.mark.parametrize(
    ("family", "where"), [("llama", "disk"), pytest.param("gpt2", "cpu", marks=pytest.mark.slow)]
)
def test_scores_are_the_same_with_fewer_passes(family: str, where: str) -> None:
    """Exactly the same scores as runs that compute again, and no more forward passes than runs that keep all."""
    built = model(family)
    found: list[Any] = []
    passes = []
    pairs = pairs_for(built, count=8)
    for sizes in ({}, TIGHT, {**TIGHT, "spill": where}):
        runs = runs_of(built, pairs, sizes={**sizes, "batch_tokens": 12})
        before = built.passes["forward"]
        found += [
            get_method(name).run(runs, ablation="mean", direction="noising").values
            for name in ("eap", "activation-patching")
        ]
        passes.append(built.passes["forward"] - before)
    kept, again, spilled = passes
    assert again > kept
    assert spilled == kept
    for values in (found[2:4], found[4:]):
        for one, other in zip(found[:2], values, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_run_without_a_backward_pass_gives_way_to_one_with_it() -> None:
    runs = tight("gpt2", "none")
    kept, key = Spill("disk", torch.device("cpu")), (0, "clean")
    kept.put(key, runs.trace(0, "clean"), keep=False)
    light = kept.put_bytes
    kept.put(key, runs.trace(0, "clean"), keep=False)
    assert kept.put_bytes == light, "what is there is not written again"
    kept.put(key, runs.trace(0, "clean", keep=True), keep=True)
    assert kept.put_bytes > light
    assert kept.get(key, keep=True) is not None


def test_the_oldest_make_room() -> None:
    runs = tight("gpt2", "none")
    traces = [runs.trace(i, "clean") for i in range(3)]
    kept = Spill("cpu", torch.device("cpu"), room=2 * traces[0].n_bytes)
    for number, trace in enumerate(traces):
        kept.put((number, "clean"), trace, keep=False)
    assert [kept.get((i, "clean"), keep=False) is not None for i in range(3)] == [False, True, True]
    small = Spill("cpu", torch.device("cpu"), room=1)
    small.put((0, "clean"), traces[0], keep=False)
    assert small.get((0, "clean"), keep=False) is None


def test_files_go_with_the_runs(tmp_path: Path) -> None:
    with offloaded("disk", offload_folder=tmp_path):
        runs = tight("gpt2", "disk")
        assert runs.clean.shape == runs.corrupted.shape
    (folder,) = tmp_path.iterdir()
    assert list(folder.glob("run-*"))
    runs._start()
    assert not list(folder.glob("run-*"))
    del runs
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_passes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    built = model("gpt2")
    pairs = pairs_for(built, count=8)
    wanted = runs_of(built, pairs).clean

    real = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode == "wb":
            raise OSError(28, "No space left on device")
        return real(self, mode, *args, **options)

    with offloaded("disk", offload_folder=tmp_path):
        runs = runs_of(built, pairs, sizes={**TIGHT, "spill": "disk"}, note=notes.append)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            np.testing.assert_allclose(runs.clean, wanted, atol=1e-5)
            assert runs.corrupted.shape == wanted.shape
    assert notes == [
        "finished runs are computed again: they cannot be written to disk (No space left on device)"
    ]


def test_the_plan_says_where_runs_go() -> None:
    built = model("gpt2")
    assert make_plan(built, 1 << 30).spill == "none"
    with offloaded(offload_activations="disk"):
        assert make_plan(built, 1 << 30).spill == "disk"
        assert make_plan(built, 1 << 30).halved().spill == "disk"
    with offloaded(offload_activations="cpu"), pytest.raises(UsageError, match="where they are already"):
        make_plan(built, 1 << 30)


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_runs_of_a_gpu_come_back(where: str) -> None:
    from circuitfind.model.load import load_model

    built = load_model(str(families.folder("llama")), device="cuda")
    pairs = pairs_for(built, count=8)
    found = []
    for sizes in (TIGHT, {**TIGHT, "spill": where}):
        runs = runs_of(built, pairs, sizes=sizes)
        found.append(get_method("eap").run(runs, ablation="mean", direction="noising").values)
    np.testing.assert_allclose(*found, atol=1e-6, rtol=0)
