"""The model with some nodes alone: every other feature and error carries its ablated value, for real.

Site by site, in the order of the forward pass, what stands there is encoded anew; kept features and a kept error go on with what
they are now, all others with what they are when ablated:

    x' = x_ablated + sum over kept features of (f - f_ablated) * decoder + (e - e_ablated, where the error is kept)

Features that fire in no prompt that is compared are ablated too, to nothing. Attention, MLPs and norms are the model's own. With
every node kept nothing changes; with none, whatever the model does past its SAEs is all that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitfind.circuit.evaluate import measured
from circuitfind.circuit.graph import Evaluation
from circuitfind.errors import RunError
from circuitfind.sparse.baseline import Baseline, chunked
from circuitfind.sparse.passes import run_points
from circuitfind.sparse.sites import Point

Mask = Bool[np.ndarray, " node"]


class NodeEvaluator:
    """Runs the model with sets of nodes; counts what it ran.

    Attributes:
        n_evaluations: Sets run so far, each one ablated pass over all prompts.
    """

    def __init__(self, base: Baseline) -> None:
        self.base, self.runs = base, base.runs
        self.n_evaluations = 0

    @torch.no_grad()
    def values(self, masks: Sequence[Mask]) -> Float[np.ndarray, "set prompt"]:
        """The metric of each prompt when only the marked nodes carry what they are."""
        self.n_evaluations += len(masks)
        kept = np.stack(masks) if len(masks) else np.zeros((0, len(self.base.nodes)), dtype=bool)
        out = np.full((len(kept), len(self.runs)), np.nan)
        for number, batch in enumerate(self.runs.batches):
            size = int(batch.clean.numel())
            step = max(1, min(self.runs.plan.pass_tokens, self.base.at_once * 4) // size)
            for start in range(0, len(kept), step):
                some = kept[start : start + step]
                finals = _run(self.base, number, some).unflatten(0, (len(some), -1))
                found = torch.stack([self.base.metric(number, rows) for rows in finals])
                out[start : start + len(some), batch.index] = found.cpu().numpy()
        return out

    @property
    def full(self) -> Float[np.ndarray, " prompt"]:
        """The metric of each prompt in the untouched model."""
        return self.runs.clean

    @cached_property
    def empty(self) -> Float[np.ndarray, " prompt"]:
        """The metric of each prompt when every node is ablated."""
        return np.asarray(self.values([np.zeros(len(self.base.nodes), dtype=bool)])[0])

    @cached_property
    def gap(self) -> float:
        """``m(full) - m(empty)``: what there is to explain.

        Raises:
            RunError: There is nothing to explain.
        """
        full, empty = float(self.full.mean()), float(self.empty.mean())
        scale = float(np.abs(self.full).mean()) + float(np.abs(self.empty).mean())
        if not full - empty > 1e-4 * max(scale, 1e-6):
            raise RunError(
                f"the metric is {full:.4g} in the model and {empty:.4g} with every feature and error ablated "
                f"({self.base.ablation}): nothing of the behaviour passes through these SAEs",
                hint="give SAEs of later layers or of the stream, or another counterfactual, metric or ablation",
            )
        return full - empty

    def faithfulness(self, masks: Sequence[Mask]) -> Float[np.ndarray, " set"]:
        """``(m(C) - m(empty)) / (m(full) - m(empty))`` of each set, a ratio of means."""
        return np.asarray((self.values(masks).mean(1) - self.empty.mean()) / self.gap)

    def evaluate(self, mask: Mask, *, seed: int = 0) -> Evaluation:
        """One set with its interval."""
        _ = self.gap
        values = self.values([mask])[0]
        return measured(values, self.full, self.empty, self.base.ablation, self.runs.metric.name, seed=seed)


def _run(base: Baseline, number: int, kept: Bool[np.ndarray, "set node"]) -> Float[Tensor, "set_row d_model"]:
    """What the final norm reads, set by set."""
    held, model, sets = base.batch(number), base.model, len(kept)
    begin = base.sites[0].point[0]
    stream = held.entry[begin]
    numbers = {site.point: at for at, site in enumerate(base.sites)}

    def visit(point: Point, x: Tensor) -> Tensor:
        if point not in numbers:
            return x
        at = numbers[point]
        return _ablated(base, number, at, kept[:, base.nodes.span(at)], x)

    return run_points(model, held.place.repeated(sets), stream.repeat(sets, 1, 1), visit, begin=begin)


def _ablated(
    base: Baseline,
    number: int,
    at: int,
    kept: Bool[np.ndarray, "set own"],
    x: Float[Tensor, "set_row pos d_model"],
) -> Float[Tensor, "set_row pos d_model"]:
    """What stands at a site with some of its nodes alone; the error is the last of ``kept``."""
    site, held, sets = base.sites[at], base.batch(number), len(kept)
    used, whole = np.flatnonzero(kept[:, :-1].any(0)), kept[:, -1].any()
    if not len(used) and not whole:
        return held.cut[site.point].repeat(sets, 1, 1)
    index = torch.from_numpy(base.nodes.held[at][used]).to(x.device)

    def work(part: Tensor) -> Tensor:
        """Kept features and, where any set keeps it, the error, side by side."""
        if not whole:
            return site.encode_some(part, index)
        found = site.encode(part)
        return torch.cat((found[:, index], site.error(part, found)), 1)

    now = torch.unflatten(chunked(work, x, base.at_once), 0, (sets, -1))
    mask = torch.from_numpy(kept).to(x.device, x.dtype)
    features = now[..., : len(used)] - base.cut_features(number, site, index)
    out = held.cut[site.point] + (features * mask[:, used][:, None, None]) @ site.decoder[index]
    if whole:
        errors = now[..., len(used) :] - held.errors[site.point]
        out = out + errors * mask[:, -1, None, None, None]
    return out.flatten(0, 1)
