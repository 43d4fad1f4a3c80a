"""Doses of a patch: what it replaces goes only a part of the way, alpha, to the value that a full patch puts there.

A node's output becomes ``current + alpha (ablated - current)``, where ``current`` is what it computes in the patched run: the
value of the base run where nothing below it is patched. An edge carries the same mixture to its reader alone. At 0 that is
the base run, at 1 the full patch of model/node_pass.py and model/edge_pass.py; between them a straight line in activations
(the mask of model/masked.py is 1 - alpha). The slope of the metric in alpha at the base run is what attribution patching
says of the nodes together, and EAP of edges: (ablated - base) . dm/dnode.

The doses are rows of one pass, as patches are; a second forward pass is run for nobody. Slopes are the gradient of that pass
in each row's alpha, one backward pass for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitfind.errors import RunError, UnsupportedError
from circuitfind.model.batch_runs import Carried
from circuitfind.model.batches import Side
from circuitfind.model.contrast import Contrast
from circuitfind.model.forward import Trace
from circuitfind.model.masked import MaskedPass, graph_bytes
from circuitfind.model.memory import out_of_memory, token_bytes
from circuitfind.model.node_pass import NodePass, first_stage
from circuitfind.model.precision import advice
from circuitfind.model.runs import Runs
from circuitfind.model.transfer import to_host, upload
from circuitfind.task.metrics import correct


@dataclass(frozen=True)
class Target:
    """What is patched together.

    Attributes:
        nodes: Writers, for every reader.
        edges: Edges beside them, or None for none.
    """

    nodes: Bool[np.ndarray, " writer"]
    edges: Bool[np.ndarray, "writer reader"] | None = None


@dataclass(frozen=True)
class Doses:
    """What doses did.

    Attributes:
        values: The metric.
        right: Whether the clean prompt's answer is likelier than the wrong one.
        slopes: The derivative of the metric in alpha; None where none was asked for.
    """

    values: Float[np.ndarray, "target alpha prompt"]
    right: Bool[np.ndarray, "target alpha prompt"]
    slopes: Float[np.ndarray, "target alpha prompt"] | None


Row = tuple[int, int]
"""A target and an alpha, by their places."""
GRAPH = 4
"""What a pass that is differentiated holds for each token, in finished runs of it; on the high side."""


def measure_doses(
    runs: Runs,
    targets: Sequence[Target],
    alphas: Sequence[float],
    *,
    base: Side = "clean",
    ablation: Carried = "resample",
    where: Bool[np.ndarray, "prompt pos"] | None = None,
    slopes: bool = True,
) -> Doses:
    """The metric of every prompt under every dose of every target.

    Args:
        runs: The prompts.
        targets: What is patched, each by itself.
        alphas: How far it goes.
        base: Which prompt runs.
        ablation: What a full dose carries; ``clean`` with ``base="corrupted"`` is denoising.
        where: The tokens at which nodes are patched, from the start of the prompt; None for all.
        slopes: Take derivatives too.

    Raises:
        UnsupportedError: Edges at some positions, edges of a model whose MLPs are split, or a metric without gradient.
    """
    if slopes and not runs.metric.differentiable:
        raise UnsupportedError(
            f"the metric '{runs.metric.name}' has no gradient", hint="leave the slopes out, or use logit-diff"
        )
    edges = [i for i, target in enumerate(targets) if target.edges is not None]
    if edges and (where is not None or runs.model.anatomy.split):
        raise UnsupportedError(
            "edges are patched at all positions, between heads and whole MLPs",
            hint="leave out --positions and the names of neurons and features, or patch nodes alone",
        )
    shape = (len(targets), len(alphas), len(runs))
    out = Doses(
        np.full(shape, np.nan), np.zeros(shape, dtype=bool), np.full(shape, np.nan) if slopes else None
    )
    stages = [first_stage(runs.model.anatomy, target.nodes) for target in targets]
    nodes = sorted(set(range(len(targets))) - set(edges), key=stages.__getitem__)
    for number, batch in enumerate(runs.batches):
        contrast = runs.contrast(number, ablation, base)
        here = None if where is None else where[batch.index]
        for members, kind in ((nodes, _NodeRows), (edges, _EdgeRows)):
            if members:
                made = kind(contrast, targets, stages, here)
                rows = [(i, a) for i in members for a in range(len(alphas))]
                _fill(out, runs, number, made, rows, np.asarray(alphas, dtype=float))
    return out


class _Rows(Protocol):
    """Makes passes over one batch."""

    def most(self, runs: Runs, *, graph: bool) -> int:
        """How many rows fit into a pass."""

    def run(
        self, targets: Sequence[int], amounts: Float[Tensor, "row prompt"]
    ) -> Float[Tensor, "row prompt d_model"]:
        """What the final norm reads under doses of some targets."""


class _NodeRows:
    """Doses of nodes: rows of model/node_pass.py."""

    def __init__(
        self,
        contrast: Contrast,
        targets: Sequence[Target],
        stages: Sequence[int],
        where: Bool[np.ndarray, "row pos"] | None,
    ) -> None:
        self._contrast, self._targets, self._stages = contrast, targets, stages
        self._where: Bool[np.ndarray, "row pos"] | None = None
        if where is not None:
            place = contrast.base.place
            mine = where[:, place.start : place.stop]
            self._where = np.zeros((contrast.n_rows, contrast.length), dtype=bool)
            self._where[:, : mine.shape[1]] = mine

    def most(self, runs: Runs, *, graph: bool) -> int:
        tokens, cost = runs.plan.pass_tokens, token_bytes(runs.model, edges=False)
        if graph:
            tokens = min(tokens, runs.plan.budget // (4 * GRAPH * (cost["run"] + cost["kept"])))
        return tokens // (self._contrast.n_rows * self._contrast.length)

    def run(
        self, targets: Sequence[int], amounts: Float[Tensor, "row prompt"]
    ) -> Float[Tensor, "row prompt d_model"]:
        nodes = np.stack([self._targets[i].nodes for i in targets])
        where = None if self._where is None else [self._where] * len(targets)
        stages = [self._stages[i] for i in targets]
        return NodePass(self._contrast, nodes, where, stages, amounts=amounts).run()


class _EdgeRows:
    """Doses of edges: rows of model/masked.py, whose masks are 1 - alpha."""

    def __init__(
        self,
        contrast: Contrast,
        targets: Sequence[Target],
        stages: Sequence[int],
        where: Bool[np.ndarray, "row pos"] | None,
    ) -> None:
        self._contrast, self._targets = contrast, targets

    def most(self, runs: Runs, *, graph: bool) -> int:
        room = runs.plan.budget // (4 * graph_bytes(runs.model))  # gaps of every writer are held either way
        return min(runs.plan.pass_tokens, room) // (self._contrast.n_rows * self._contrast.length)

    def run(
        self, targets: Sequence[int], amounts: Float[Tensor, "row prompt"]
    ) -> Float[Tensor, "row prompt d_model"]:
        cut = upload(np.stack([self._cut(self._targets[i]) for i in targets]), amounts.device, amounts.dtype)
        mask = 1 - amounts[..., None, None] * cut[:, None]
        found = MaskedPass(_repeated(self._contrast, len(targets))).final(mask.flatten(0, 1))
        rows: Tensor = found.unflatten(0, (len(targets), -1))
        return rows

    @staticmethod
    def _cut(target: Target) -> Bool[np.ndarray, "writer reader"]:
        assert target.edges is not None
        return np.asarray(target.edges | target.nodes[:, None])


@dataclass(frozen=True)
class _Repeated(Contrast):
    """The same prompts several times over, as far as a masked pass reads them: nothing of the base run's blocks."""

    keys: list[tuple[Tensor, Tensor]] | None = None

    @cached_property
    def before(self) -> list[tuple[Tensor, Tensor]] | None:
        return self.keys


def _repeated(contrast: Contrast, times: int) -> Contrast:
    def again(x: Tensor) -> Tensor:
        return x.repeat(times, *[1] * (x.ndim - 1))

    base = contrast.base
    trace = Trace(base.place.repeated(times), again(base.input), [], again(base.final))
    keys = None if contrast.before is None else [(again(k), again(v)) for k, v in contrast.before]
    return _Repeated(contrast.model, trace, contrast.cut.map(again), contrast.cut_is_run, keys)


def _fill(
    out: Doses, runs: Runs, number: int, made: _Rows, rows: Sequence[Row], alphas: Float[np.ndarray, " alpha"]
) -> None:
    """Run rows over a batch, as many in a pass as fit; half as many as long as memory runs out."""
    index, slopes = runs.batches[number].index, out.slopes is not None
    most, done = max(1, made.most(runs, graph=slopes)), 0
    while done < len(rows):
        some = np.array(rows[done : done + most])
        try:
            values, right, gradient = _measure(runs, number, made, some, alphas, slopes=slopes)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(some) == 1:
                raise
            most = len(some) // 2
            continue
        places = (some[:, :1], some[:, 1:], index[None])
        out.values[places], out.right[places] = values, right
        if out.slopes is not None:
            out.slopes[places] = gradient
        done += len(some)


def _measure(
    runs: Runs,
    number: int,
    made: _Rows,
    some: Int[np.ndarray, "row 2"],
    alphas: Float[np.ndarray, " alpha"],
    *,
    slopes: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Metric, right answers and slopes of some rows, [row, prompt]."""
    model, batch = runs.model, runs.batches[number]
    tokens, answers = batch.answers.narrowed()
    amounts = upload(alphas[some[:, 1]], model.device, model.dtype)[:, None]
    amounts = amounts.repeat(1, len(batch.index)).requires_grad_(slopes)
    with torch.set_grad_enabled(slopes), model.learning():
        final = made.run([int(i) for i in some[:, 0]], amounts)
        found, right = [], []
        for row in final:
            logits = model.head(row, tokens if runs.metric.answers_only else None)
            own = answers if runs.metric.answers_only else batch.answers
            narrow = runs.metric.answers_only
            found.append(runs.metric(logits, own) if narrow else runs.metric_of(number, logits))
            right.append(correct(logits.detach(), own))
        values = torch.stack(found)
        gradient = None
        if slopes:
            (slope,) = torch.autograd.grad(values.sum(), amounts)
            model.passes["backward"] += 1
            gradient = slope
    parts = (values, torch.stack(right), *(() if gradient is None else (gradient,)))
    measured, answered, *steep = to_host(*parts)
    if not np.isfinite(measured).all():
        raise RunError(
            f"{model.name} gives NaN or infinite values between the two ends of a patch", hint=advice(model)
        )
    return measured, answered, steep[0] if steep else None
