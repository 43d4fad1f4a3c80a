"""On a GPU: the same scores as on a CPU, no waiting inside a pass, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.config import Precision
from circuitfind.errors import UnsupportedError
from circuitfind.methods import get_method
from circuitfind.model import runs as runs_module
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model
from circuitfind.model.memory import free_bytes, make_plan
from circuitfind.model.node_pass import Patch
from circuitfind.model.precision import using
from circuitfind.model.runs import Runs
from circuitfind.model.transfer import index_of, to_host, upload
from circuitfind.task.metrics import get_metric
from tests import families
from tests.families import pairs_for

SAME = 2e-5
"""Of passes in fp32 on two kinds of device, as a share of the largest value: sums are taken in other orders."""
LOW: dict[Precision, float] = {"tf32": 0.01, "bf16": 0.1}
"""Of scores in fewer bits, as a share of their norm, on trained weights."""


@pytest.fixture(scope="module")
def gpu() -> Model:
    return load_model("mini", device="cuda")


@pytest.fixture(scope="module")
def cpu() -> Model:
    return load_model("mini", device="cpu")


def runs_of(model: Model, count: int = 8, budget: int = 10**9) -> Runs:
    pairs = pairs_for(model, count=count, lengths=(9, 7), same=2)
    return Runs(model, pairs, get_metric("logit-diff"), plan=make_plan(model, budget))


def patches_of(model: Model) -> dict[str, list[Patch]]:
    anatomy, rng = model.anatomy, np.random.default_rng(0)
    every = [(int(w), int(r)) for w, r in np.argwhere(anatomy.edge_mask)]
    drawn = rng.random((12, *anatomy.edge_mask.shape)) < 0.5
    return {
        "nodes": [Patch(nodes=row) for row in np.eye(len(anatomy.writers), dtype=bool)],
        "edges": [Patch(edges=one & anatomy.edge_mask) for one in drawn],
        "single edges": [Patch(edge=edge) for edge in every[::25]],
    }


def close(found: np.ndarray, wanted: np.ndarray, share: float) -> bool:
    there = np.isfinite(wanted)
    assert (there == np.isfinite(found)).all()
    return float(np.abs(found[there] - wanted[there]).max()) <= share * float(np.abs(wanted[there]).max())


@pytest.mark.gpu
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_patched_values_are_those_of_a_cpu(gpu: Model, cpu: Model, ablation: Any) -> None:
    for name, patches in patches_of(cpu).items():
        wanted = runs_of(cpu).patched(patches, ablation=ablation)
        assert close(runs_of(gpu).patched(patches, ablation=ablation), wanted, SAME), name


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["eap", "eap-ig", "relp", "gim", "atp", "atp-star", "ifr"])
def test_scores_are_those_of_a_cpu(gpu: Model, cpu: Model, method: str) -> None:
    wanted, found = (
        get_method(method).run(runs_of(model), ablation="resample", direction="noising").values
        for model in (cpu, gpu)
    )
    assert close(found, wanted, 10 * SAME)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_fewer_bits_agree_and_are_switched_back(gpu: Model, precision: Precision) -> None:
    method = get_method("eap-ig")

    def scores() -> np.ndarray:
        found = method.run(runs_of(gpu), ablation="resample", direction="noising").values
        return found[np.isfinite(found)]

    ambient, wanted = torch.get_float32_matmul_precision(), scores()
    try:
        with using(gpu, precision):
            low = scores()
    except UnsupportedError:
        pytest.skip(f"this GPU has no {precision}")
    assert 0 < np.linalg.norm(low - wanted) <= LOW[precision] * np.linalg.norm(wanted)
    assert torch.get_float32_matmul_precision() == ambient
    np.testing.assert_array_equal(scores(), wanted, err_msg="not switched back")


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Within the block whatever makes the host wait for the GPU raises, but for ``to_host``."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
def test_patched_passes_wait_in_one_place(gpu: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With both runs there, and the indices sent that are sent once, only the values of a pass are waited for."""
    waits: list[int] = []

    def told(*tensors: torch.Tensor) -> tuple[np.ndarray, ...]:
        waits.append(len(tensors))
        torch.cuda.set_sync_debug_mode("default")
        try:
            return to_host(*tensors)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    for name, patches in patches_of(gpu).items():
        runs = runs_of(gpu)
        _ = runs.clean, runs.corrupted
        runs.patched(patches)
        monkeypatch.setattr(runs_module, "to_host", told)
        waits.clear()
        before = gpu.passes["forward"]
        with waiting_is_an_error():
            runs.patched(patches)
        monkeypatch.undo()
        assert len(waits) <= gpu.passes["forward"] - before, name


@pytest.mark.gpu
def test_memory_that_runs_out_halves_the_work_and_changes_nothing(gpu: Model) -> None:
    """A GPU that has room for little beside the weights gives the same values in more passes, and says so once."""
    patches, told = patches_of(gpu)["nodes"], list[str]()
    wanted = runs_of(gpu, 64).patched(patches)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    held = total - free
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + 96 * 2**20) / total))
    try:
        pairs = pairs_for(gpu, count=64, lengths=(9, 7), same=2)
        plan = make_plan(gpu, 20 * 10**9)
        runs = Runs(gpu, pairs, get_metric("logit-diff"), plan=plan, note=told.append)
        found = runs.fitted(lambda: runs.patched(patches))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert close(found, wanted, SAME)
    if runs.plan != plan:
        assert sum("memory ran out" in text for text in told) == 1


@pytest.mark.gpu
def test_what_is_free(gpu: Model) -> None:
    device = torch.device("cuda")
    before = free_bytes(device)
    assert 0 < before <= torch.cuda.get_device_properties(0).total_memory
    held = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    assert free_bytes(device) <= before
    del held


@pytest.mark.gpu
def test_transfers(gpu: Model) -> None:
    device = torch.device("cuda")
    with waiting_is_an_error():
        table = upload(np.arange(6, dtype=np.float64).reshape(2, 3), device, torch.float32)
        rows = index_of([1, 0, 1], device)
        chosen = table[rows]
    first, second = to_host(chosen, rows)
    np.testing.assert_array_equal(first, np.arange(6).reshape(2, 3)[[1, 0, 1]])
    np.testing.assert_array_equal(second, [1, 0, 1])


# What can be held against a stand-in where there is no GPU.


def fails_above(limit: int) -> Callable[..., Any]:
    """A share whose passes of more than so many patches run out of memory."""
    whole = runs_module.Share.run

    def run(
        self: runs_module.Share, patches: Sequence[Patch], some: Sequence[int], *rest: Any
    ) -> torch.Tensor:
        if len(some) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, patches, some, *rest)

    return run


@pytest.mark.parametrize("limit", [1, 3])
def test_passes_are_halved_until_they_fit(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model("gpt2")
    patches, told = patches_of(model)["nodes"], list[str]()
    wanted = runs_of(model).patched(patches)
    monkeypatch.setattr(runs_module.Share, "run", fails_above(limit))
    runs = runs_of(model)
    runs._note = told.append
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    assert close(runs.patched(patches), wanted, SAME)
    assert len(told) == 1
    assert not emptied, "only a GPU has a cache to empty"


def test_free_bytes_of_a_gpu_asks_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert free_bytes(torch.device("cuda", 0)) == 123
