"""Passes ask nothing of the device that they run on, and what comes back comes at once: counts, not seconds."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from circuitfind.errors import RunError
from circuitfind.methods import contraction, get_method
from circuitfind.methods import node_gradients as nodes_module
from circuitfind.model import forward, parts, transfer
from circuitfind.model.batch_runs import Carried
from circuitfind.model.bridge import Model
from circuitfind.model.dose import Target, measure_doses
from circuitfind.model.edge_pass import EdgePass
from circuitfind.model.gradients import backward
from circuitfind.model.masked import MaskedPass
from circuitfind.model.node_pass import NodePass, Patch, first_stage
from circuitfind.model.path_pass import Hop, PathPass, Paths
from circuitfind.model.readout import Effects, logits_readout
from circuitfind.model.runs import Runs
from circuitfind.model.single_edges import SingleEdges, edge_stage
from circuitfind.model.split import split_neurons
from circuitfind.model.transfer import index_of, to_host, upload
from circuitfind.task.metrics import get_metric
from tests import families
from tests.families import pairs_for
from tests.meta import META, model_on_meta


def some_slow(fast: Sequence[str], slow: Sequence[str]) -> list[Any]:
    """Cases of which those that show least that is new are slow."""
    return [*fast, *(pytest.param(name, marks=pytest.mark.slow) for name in slow)]


KINDS = some_slow(["gpt2", "gemma2"], ["neox", "llama", "qwen3", "kv-groups", "bidirectional", "attn-only"])
"""Families that differ in what a pass does."""

WAITS = {
    Tensor.cpu,
    Tensor.item,
    Tensor.tolist,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.nonzero,
    Tensor.unique,
    torch.nonzero,
    torch.unique,
    torch.masked_select,
}
"""What makes the host wait for a GPU."""


def _call_of(name: str) -> FrameType | None:
    """The call of a function that is going on, if there is one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame


class Waits(TorchFunctionMode):
    """Counts what would make the host wait for a GPU, tensors that come together once, and uploads that are not queued."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.lists = 0
        self._together: FrameType | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in WAITS:
            frame = _call_of("to_host")
            if frame is None or frame is not self._together:
                self.found[func.__name__ if frame is None else "to_host"] += 1
            self._together = frame
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            for index in args[1] if isinstance(args[1], tuple) else (args[1],):
                self.lists += isinstance(index, (list, np.ndarray))
                if isinstance(index, Tensor) and index.dtype == torch.bool:
                    self.found["mask"] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.found.values())


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def runs_of(model: Model, count: int = 4) -> Runs:
    return Runs(model, pairs_for(model, count=count, lengths=(7,), same=2), get_metric("logit-diff"))


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets zeros come back from the device in place of what is there; counts how many tensors come at once."""
    counts: list[int] = []

    def zeros(*tensors: Tensor) -> tuple[np.ndarray, ...]:
        counts.append(len(tensors))
        return tuple(torch.zeros_like(tensor, device="cpu").numpy() for tensor in tensors)

    for module in (contraction, nodes_module, forward, parts, transfer):
        monkeypatch.setattr(module, "to_host", zeros)
    return counts


def each_pass(model: Model, ablation: Carried) -> Iterator[tuple[str, Tensor]]:
    """Every kind of patched pass over one batch, with many rows."""
    runs, anatomy, rng = runs_of(model), model.anatomy, np.random.default_rng(0)
    contrast = runs.contrast(0, ablation)
    nodes = sorted(np.eye(len(anatomy.writers), dtype=bool), key=lambda row: first_stage(anatomy, row))
    held = np.stack([rng.random(len(row)) < 0.2 for row in nodes]) & ~np.stack(nodes)
    where = [rng.random((contrast.n_rows, contrast.length)) < 0.5 for _ in nodes]
    yield "nodes", NodePass(contrast, np.stack(nodes)).run()
    yield "nodes held", NodePass(contrast, np.stack(nodes), held=held).run()
    yield "nodes at positions", NodePass(contrast, np.stack(nodes), where).run()
    drawn = rng.random((5, *anatomy.edge_mask.shape))
    none = np.zeros((5, len(anatomy.writers)), dtype=bool)
    for share in (0.2, 0.5, 0.95):
        yield f"edges {share}", EdgePass(contrast, none, (drawn < share) & anatomy.edge_mask).run()
    edges = [(int(w), int(r)) for w, r in np.argwhere(anatomy.edge_mask)]
    edges.sort(key=lambda edge: edge_stage(anatomy, edge[1]))
    yield "single edges", SingleEdges(contrast, edges[::11]).run()
    slots = np.zeros((anatomy.n_layers, 3, anatomy.n_heads), dtype=bool)
    slots[-1, :, 0] = True
    mlp = np.zeros(anatomy.n_layers, dtype=bool)
    via = np.zeros(len(anatomy.writers), dtype=bool)
    hops = (Hop(slots, mlp), Hop(np.zeros_like(slots), mlp, logits=True))
    yield "paths", PathPass(contrast, np.stack(nodes[1:4]), Paths(hops, via)).run()


@pytest.mark.parametrize("family", KINDS)
def test_patched_passes_never_wait(family: str, arrays: list[int]) -> None:
    model = model_on_meta(families.model(family))
    for name, final in each_pass(model, "resample"):
        assert final.device == META, name
        assert final.shape[1:] == (4, model.d_model), name
    assert not arrays, "a pass asked for values"


@pytest.mark.parametrize("ablation", some_slow([], ["zero", "clean"]))
def test_nor_under_other_ablations(ablation: Carried, arrays: list[int]) -> None:
    for _ in each_pass(model_on_meta(families.model("gpt2")), ablation):
        pass
    assert not arrays


@pytest.mark.parametrize("family", some_slow(["gpt2"], ["gemma2", "neox"]))
def test_nor_do_passes_that_are_watched_dosed_or_masked(family: str, arrays: list[int]) -> None:
    model = model_on_meta(families.model(family))
    runs, anatomy = runs_of(model), model.anatomy
    nodes = np.stack(
        sorted(np.eye(len(anatomy.writers), dtype=bool), key=lambda row: first_stage(anatomy, row))
    )
    NodePass(runs.contrast(0, "mean"), nodes).run()
    contrast, trace = runs.contrast(0, "resample"), runs.trace(0, "clean")
    readout = logits_readout(model, trace, torch.empty(len(runs), model.d_model, device=META))
    watch = Effects(contrast, [readout], len(nodes))
    NodePass(contrast, nodes, watch=watch).run()
    assert watch.change.shape == (1, len(nodes), len(nodes), len(runs))
    NodePass(contrast, nodes, amounts=torch.empty(len(nodes), len(runs), device=META)).run()
    MaskedPass(contrast).run(torch.empty(1, *anatomy.edge_mask.shape, device=META))
    assert not arrays


def test_passes_over_parts_of_mlps_ask_once_who_owns_what(arrays: list[int]) -> None:
    model = model_on_meta(split_neurons(families.model("gpt2")))
    for layer in model.layers:
        assert layer.parts is not None
        vars(layer.parts)["all_held"] = True  # asked for once in the life of a model
    runs, anatomy = runs_of(model), model.anatomy
    contrast = runs.contrast(0, "resample")
    order = sorted(
        range(len(anatomy.writers)), key=lambda i: first_stage(anatomy, np.arange(len(anatomy.writers)) == i)
    )
    for some in (order[:20], order[-20:]):
        NodePass(contrast, np.eye(len(anatomy.writers), dtype=bool)[some]).run()
    drawn = np.random.default_rng(0).random((3, *anatomy.edge_mask.shape)) < 0.5
    none = np.zeros((3, len(anatomy.writers)), dtype=bool)
    EdgePass(contrast, none, drawn & anatomy.edge_mask).run()
    assert arrays == [1] * anatomy.n_layers, "once for each layer, whatever the passes"


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("drop", [False, True])
def test_gradients_never_wait_and_tables_come_at_once(drop: bool, positions: bool, arrays: list[int]) -> None:
    model = model_on_meta(families.model("gpt2"))
    runs = runs_of(model)
    trace = runs.trace(0, "clean", keep=True)
    into = contraction.ReaderGradients(model)
    final = torch.empty(len(runs), model.d_model, device=META)
    with torch.no_grad():
        behind = backward(model, trace, final, lambda block: into.add(trace, block), drop_each=drop)
        into.add_input(behind)
        assert not arrays, "the backward pass asked for values"
        other = runs.trace(0, "corrupted", whole=True)
        shape = trace.input.shape[:2]
        groups = torch.empty(shape, dtype=torch.int64, device=META) if positions else None
        found = contraction.attribute(into, model, trace.writes, other.writes, groups, 1)
    assert found.edges.shape == (1, *model.anatomy.edge_mask.shape)
    assert arrays == ([1, 2] if positions else [2]), "positions are asked for once, tables come together"


def counted(runs: Runs, work: Callable[[], Any]) -> tuple[Waits, Counter[str]]:
    """What a job waits for, and the passes that it takes; both runs of every batch are there already."""
    _ = runs.clean, runs.corrupted
    before = Counter(runs.model.passes)
    with Waits() as waits:
        work()
    passes = Counter(runs.model.passes)
    passes.subtract(before)
    return waits, passes


def test_waits_are_counted() -> None:
    """What the other tests rest on: every way to ask for a value is seen, and tensors that come together are one."""
    x = torch.arange(4)
    with Waits() as waits:
        if x[0] == 0:
            _ = x.nonzero(), x[x > 1], float(x[1]), x.tolist(), x.cpu(), x[[0, 1]]
        to_host(x, x + 1, x + 2)
        to_host(x)
    assert waits.found == Counter(__bool__=1, nonzero=1, mask=1, __float__=1, tolist=1, cpu=1, to_host=2)
    assert waits.lists == 1


@pytest.mark.parametrize("metric", ["logit-diff", "kl"])
@pytest.mark.parametrize("kind", ["nodes", "nodes at positions", "single edges", "edges"])
def test_a_patched_pass_waits_once(kind: str, metric: str) -> None:
    """For the metric of all its patches, and whether the logits were finite; however many patches there are."""
    model = families.model("gpt2")
    anatomy, rng = model.anatomy, np.random.default_rng(0)
    nodes = list(np.eye(len(anatomy.writers), dtype=bool))
    every = [(int(w), int(r)) for w, r in np.argwhere(anatomy.edge_mask)]
    where = rng.random((6, 7)) < 0.5
    drawn = (rng.random((9, *anatomy.edge_mask.shape)) < 0.5) & anatomy.edge_mask
    patches = {
        "nodes": [Patch(nodes=one) for one in nodes],
        "nodes at positions": [Patch(nodes=one, where=where) for one in nodes],
        "single edges": [Patch(edge=edge) for edge in every[::9]],
        "edges": [Patch(edges=one) for one in drawn],
    }[kind]
    runs = Runs(model, pairs_for(model, count=6, lengths=(7,), same=2), get_metric(metric))
    runs.plan = replace(runs.plan, pass_tokens=3 * 42, edge_tokens=3 * 42)  # three patches to a pass
    waits, passes = counted(runs, lambda: runs.patched(patches))
    assert passes["forward"] >= 2
    assert waits.found["to_host"] <= passes["forward"] + (
        kind == "nodes at positions"
    )  # where the answers are
    assert waits.total == waits.found["to_host"] + waits.found["unique"], waits.found
    assert waits.found["unique"] <= len(runs.batches), "which tokens a metric reads, once for a batch"
    assert waits.lists == 0, "indices that are sent as lists"


@pytest.mark.parametrize(
    "name", some_slow(["eap-ig", "atp"], ["eap", "relp", "gim", "clean-corrupted", "atp-star"])
)
def test_gradients_wait_once_for_a_backward_pass(name: str) -> None:
    """And once for the tables of a part of a method; where a run is made again, to embed its prompts."""
    runs = runs_of(families.model("gpt2"))
    method = get_method(name)
    waits, passes = counted(runs, lambda: method.run(runs, ablation="resample", direction="noising"))
    again = waits.found["__bool__"]
    assert again <= 2 * len(runs.batches), waits.found
    assert waits.found["to_host"] <= 2 * passes["backward"] + len(runs.batches), waits.found
    assert waits.total == waits.found["to_host"] + again, waits.found


@pytest.mark.parametrize("slopes", [False, True])
def test_doses_wait_once_for_a_pass(slopes: bool) -> None:
    model = families.model("gpt2")
    runs = runs_of(model)
    targets = [Target(np.arange(len(model.anatomy.writers)) == row) for row in (2, 5)]
    waits, passes = counted(runs, lambda: measure_doses(runs, targets, [0.0, 0.5, 1.0], slopes=slopes))
    assert waits.found["to_host"] == passes["forward"]
    assert waits.total == waits.found["to_host"] + waits.found["unique"], waits.found


def test_a_prompt_that_is_not_finite_is_named_though_values_come_late() -> None:
    model = families.model("gpt2")
    runs = runs_of(model)
    _ = runs.clean, runs.corrupted
    nodes = np.eye(len(model.anatomy.writers), dtype=bool)
    # The same prompt in every run, whatever the order of the rows in their batch.
    row = int(np.flatnonzero(runs.batches[0].index == 2)[0])
    runs.trace(0, "corrupted").writes.input[row] = torch.nan
    with pytest.raises(RunError, match="NaN or infinite logits") as caught:
        runs.patched([Patch(nodes=one) for one in nodes[:3]])
    assert str(list(runs.pairs[2].clean)) in caught.value.what


def test_upload_and_back() -> None:
    device = torch.device("cpu")
    table = np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2]
    assert torch.equal(upload(table, device), torch.tensor([[0, 2], [4, 6], [8, 10]]))
    assert upload(table > 3, device, torch.float32).dtype == torch.float32
    assert upload([3, 1], device).tolist() == [3, 1]
    assert upload([], device).dtype == torch.int64
    assert index_of(np.array([2, 0]), device) is index_of([2, 0], device), "the same numbers are sent once"
    assert torch.equal(index_of(range(1000), device), torch.arange(1000)), "many are not kept"
    grows = torch.ones(2, requires_grad=True)
    a, b = to_host(grows * 2, torch.tensor([True]))
    np.testing.assert_array_equal(a, [2, 2])
    np.testing.assert_array_equal(b, [True])
    assert to_host() == ()
