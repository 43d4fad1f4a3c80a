"""Mixed precision: every pass in 16 bits is near the same pass in 32, leaves 32 bits behind, and is switched back."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import numpy as np
import pytest
import torch

from circuitfind.config import Precision
from circuitfind.errors import UnsupportedError
from circuitfind.methods import get_method
from circuitfind.methods.agreement import agreement, few
from circuitfind.model import precision as module
from circuitfind.model.bridge import Model
from circuitfind.model.node_pass import Patch
from circuitfind.model.precision import moved, raised, using
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from tests import families
from tests.families import pairs_for

ROUNDING: dict[Precision, tuple[float, float]] = {"bf16": (0.06, 0.15), "fp16": (0.01, 0.01)}
"""Largest error of passes, and of scores from gradients, as a share of the norm: random weights are harsh on 8 bits."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def runs_of(model: Model) -> Runs:
    return Runs(model, pairs_for(model, count=4, lengths=(7,), same=2), get_metric("logit-diff"))


def everything(model: Model) -> dict[str, np.ndarray]:
    """What each kind of pass gives: plain, backward, nodes, one edge, many edges."""
    runs, anatomy = runs_of(model), model.anatomy
    edges = np.argwhere(anatomy.edge_mask)
    single = []
    for w, r in edges:
        mask = np.zeros_like(anatomy.edge_mask)
        mask[w, r] = True
        single.append(Patch(edges=mask))
    half = np.random.default_rng(0).random((6, *anatomy.edge_mask.shape)) < 0.5
    for trace in (runs.trace(0, "clean", keep=True), runs.trace(0, "corrupted")):
        tensors = [trace.final, *trace.writes.z, *(block.k for block in trace.blocks)]
        assert {t.dtype for t in tensors} == {torch.float32}
    return {
        "plain": np.stack([runs.clean, runs.corrupted]),
        "gradients": get_method("eap-ig")
        .run(runs, ablation="resample", direction="noising")
        .values[anatomy.edge_mask],
        "nodes": runs.patched([Patch(nodes=row) for row in np.eye(len(anatomy.writers), dtype=bool)]),
        "edges": runs.patched(single),
        "many edges": runs.patched([Patch(edges=mask & anatomy.edge_mask) for mask in half]),
        "mean": runs.patched([Patch(edges=mask & anatomy.edge_mask) for mask in half], ablation="mean"),
    }


@pytest.mark.parametrize("family", families.COSTLY)
def test_every_pass_of_every_family(family: str) -> None:
    model = families.model(family)
    wanted = everything(model)
    for precision, (of_passes, of_gradients) in ROUNDING.items():
        with using(model, precision):
            found = everything(model)
        for name, values in wanted.items():
            error = np.linalg.norm(found[name] - values) / np.linalg.norm(values)
            assert error <= (of_gradients if name == "gradients" else of_passes), f"{precision} {name}"
        assert np.abs(found["plain"] - wanted["plain"]).max() > 0, f"{precision} did nothing"
    np.testing.assert_array_equal(everything(model)["plain"], wanted["plain"], err_msg="not switched back")


def test_it_is_switched_back_after_an_error() -> None:
    model = families.model("gpt2")
    with pytest.raises(ZeroDivisionError), using(model, "bf16"):
        raise ZeroDivisionError
    assert model.precision == "fp32"


def test_a_device_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an older torch, whose autocast on a CPU goes on in 32 bits."""
    monkeypatch.setitem(module.DTYPES, "fp16", torch.float64)
    with (
        pytest.raises(UnsupportedError, match="--precision fp16 does not work on cpu") as caught,
        using(families.model("gpt2"), "fp16"),
    ):
        pass
    assert "bf16 or fp32" in caught.value.hint


def test_raised() -> None:
    half = torch.ones(2, dtype=torch.bfloat16)
    found = raised([half, (half, None), torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.float64)])
    assert [found[0].dtype, found[1][0].dtype] == [torch.float32] * 2
    assert [found[2].dtype, found[3].dtype] == [torch.int64, torch.float64]
    assert found[1][1] is None


def test_agreement() -> None:
    runs = runs_of(families.model("gpt2"))
    scores = get_method("eap").run(runs, ablation="resample", direction="noising")
    assert agreement(scores, scores) == {"k": 20, "overlap": 1.0, "rank_correlation": pytest.approx(1.0)}
    assert few(pairs_for(families.model("gpt2"), count=30, lengths=(5, 6, 7))) == [0, 3, 6, 9, 12, 15, 18, 21]


def test_what_moves_is_exact_at_both_ends_whatever_the_types() -> None:
    start, end = torch.randn(3, 4, dtype=torch.bfloat16), torch.randn(3, 4)
    assert torch.equal(moved(start, end, torch.zeros(3, 1)), start.float())
    assert torch.equal(moved(start, end, torch.ones(3, 1, dtype=torch.bfloat16)), end)
    torch.testing.assert_close(moved(start, end, torch.full((3, 1), 0.25)), 0.75 * start.float() + 0.25 * end)


def test_tensor_float_is_refused_where_it_is_not() -> None:
    model = families.model("gpt2")
    with pytest.raises(UnsupportedError) as caught, using(model, "tf32"):
        pass
    assert "TensorFloat-32" in caught.value.what
    assert "on cpu" in caught.value.what
    assert "--precision fp32 or bf16" in (caught.value.hint or "")
    assert model.precision == "fp32"


@pytest.mark.parametrize("ambient", ["highest", "high", "newer switch"])
def test_tensor_float_is_on_inside_passes_alone(ambient: str) -> None:
    """The switch of the process is what the program set, whatever ends a pass; logits and metric are outside of it."""
    matmul, seen = torch.backends.cuda.matmul, []
    model = copy(families.model("gpt2"))
    model.precision = "tf32"

    def state() -> tuple[object, ...]:
        try:
            legacy = torch.get_float32_matmul_precision()
        except RuntimeError:
            legacy = "mixed"
        return legacy, *(
            getattr(b.matmul, "fp32_precision", None) for b in (torch.backends.cuda, torch.backends.mkldnn)
        )

    def look(*args: object) -> torch.Tensor:
        seen.append(getattr(matmul, "fp32_precision", None) == "tf32" or matmul.allow_tf32)
        return torch.ones(1)

    def fail(*args: object) -> torch.Tensor:
        raise ZeroDivisionError

    def with_head(given: Model) -> torch.Tensor:
        before = module.full(look)(given)
        module.seen_in_full(given, look)(before)
        return look()

    old, newer = torch.get_float32_matmul_precision(), getattr(matmul, "fp32_precision", None)
    if ambient != "newer switch":
        torch.set_float32_matmul_precision(ambient)
    elif newer is None:
        pytest.skip("this torch has no newer switch")
    else:
        matmul.fp32_precision = "tf32"
    before = state()
    try:
        module.lowered(with_head)(model)
        module.lowered_gradient(with_head)(model)
        assert seen == [False, False, True] * 2
        assert state() == before
        with pytest.raises(ZeroDivisionError):
            module.lowered(fail)(model)
        assert state() == before
    finally:
        torch.set_float32_matmul_precision(old)
        if newer is not None:
            matmul.fp32_precision = newer


def test_tensor_float_of_old_and_new_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for capability, there in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        if there:
            module._check_tensor_float(torch.device("cuda"))
        else:
            with pytest.raises(UnsupportedError, match=r"compute capability 8\.0"):
                module._check_tensor_float(torch.device("cuda"))


def test_advice_of_tensor_float_is_about_the_weights() -> None:
    model = copy(families.model("gpt2"))
    model.precision = "tf32"
    assert "weights" in module.advice(model)
