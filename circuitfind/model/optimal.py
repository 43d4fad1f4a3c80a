"""Optimal ablation: the constant for each writer that harms the model least when the writer is fixed to it.

Li and Janson 2024, arXiv 2409.09951, section 2: a* = argmin_a E KL(model(x) || model(x) with the writer's output replaced
by a), one vector for each writer, the same for all prompts and positions. What such an ablation still costs is what the
writer's changing output is needed for; a mean may cost more only because the layers above have never seen it. The
constants are learned one writer at a time, on the clean prompts, in the rest of an untouched model; a circuit then uses
them for all that is cut at once.

Adam from the mean over prompts and positions, in units of each writer's own deviation from it. A writer keeps its mean
where learning found nothing better over all prompts, so that the loss is never above that of its mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitfind.model.contrast import Contrast
from circuitfind.model.node_pass import NodePass
from circuitfind.model.precision import using
from circuitfind.model.stretch import State, adam_state, in_stretches, restore_adam
from circuitfind.model.writes import Writes
from circuitfind.task.metrics import get_metric

if TYPE_CHECKING:
    from circuitfind.model.batch_runs import BatchRuns
    from circuitfind.model.bridge import Model

KL = get_metric("kl")  # minus the divergence
STEPS, STEP_PROMPTS = 40, 8
AT_ONCE = 10
"""Steps that an interruption costs at the most."""
RATE = 0.2
"""Of Adam, in units of a writer's deviation from its mean; it falls to zero along a cosine."""


def learn_constants(runs: BatchRuns, *, steps: int = STEPS) -> Writes:
    """The optimal constants, with one position and no axis of prompts: ``[1, d_model]``, and ``[1, head, d_head]``.

    The same for the same prompts and model. Costs a patched pass of every writer, forward and back, over ``steps`` batches,
    and two more forward over all prompts.

    Args:
        runs: In small batches, one to a step.
        steps: Of Adam.
    """
    with using(runs.model, "fp32"):
        mean, spread = moments(runs)
        move = mean.map(lambda x: torch.zeros_like(x).requires_grad_())
        moves = [move.input, *move.z, *(move.mlp or [])]

        def work(state: State, first: int, last: int) -> State:
            with torch.no_grad():
                for number, tensor in enumerate(moves):
                    tensor.copy_(torch.from_numpy(state[f"move.{number}"].copy()))
            adam = torch.optim.Adam(moves, lr=RATE, betas=(0.9, 0.99))
            fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
            restore_adam(adam, state, first)
            if first:
                adam.param_groups[0]["lr"] = float(state["rate"])
                fall.load_state_dict({"last_epoch": first, "_step_count": first + 1})
            for step in range(first, last):
                adam.zero_grad()
                _losses(runs, step % len(runs.batches), _moved(mean, spread, move), learn=True)
                adam.step()
                fall.step()
            return {**_moves(moves), "rate": np.array(adam.param_groups[0]["lr"]), **adam_state(adam)}

        start: State = _moves(moves)
        end = in_stretches(runs.hands, runs, "optimal", (steps,), steps, AT_ONCE, start, work)
        with torch.no_grad():
            for number, tensor in enumerate(moves):
                tensor.copy_(torch.from_numpy(end[f"move.{number}"].copy()))
        learned = _moved(mean, spread, move).map(torch.Tensor.detach)
        return _better(runs.model, learned, mean, losses(runs, learned) < losses(runs, mean))


def _moves(moves: list[Tensor]) -> dict[str, np.ndarray]:
    return {f"move.{number}": tensor.detach().cpu().numpy().copy() for number, tensor in enumerate(moves)}


def losses(runs: BatchRuns, constants: Writes) -> Float[np.ndarray, " writer"]:
    """What fixing each writer to its constant costs: the mean divergence (nats) from the untouched model's next token."""
    total = sum(len(b.index) * _losses(runs, i, constants, learn=False) for i, b in enumerate(runs.batches))
    return np.asarray(total) / len(runs)


def _losses(runs: BatchRuns, number: int, constants: Writes, *, learn: bool) -> Float[np.ndarray, " writer"]:
    """The same for one batch; ``learn`` adds the gradient of their sum to the constants."""
    model, base = runs.model, runs.trace(number, "clean")
    with torch.no_grad():
        full = model.head(base.final).float().log_softmax(-1)
    every = np.eye(len(model.anatomy.writers), dtype=bool)
    tokens = base.input.shape[0] * base.input.shape[1]
    found, start = np.empty(len(every)), 0
    while start < len(every):
        rows = slice(start, start + max(1, runs.plan.batch_tokens // (2 * tokens)))
        with torch.set_grad_enabled(learn), model.learning():
            written = base.writes
            cut = constants.combined(written, lambda constant, like: constant.expand_as(like))
            logits = model.head(NodePass(Contrast(model, base, cut, cut_is_run=False), every[rows]).run())
            gap = torch.stack([-KL(row, runs.batches[number].answers, full).mean() for row in logits])
            if learn:
                gap.sum().backward(retain_graph=True)
                model.passes["backward"] += 1
        found[rows] = gap.detach().cpu().numpy()
        start = rows.stop
    return found


def _moved(mean: Writes, spread: Writes, move: Writes) -> Writes:
    return mean.combined(spread.combined(move, torch.mul), torch.add)


def _better(model: Model, learned: Writes, mean: Writes, better: Bool[np.ndarray, " writer"]) -> Writes:
    """Writer by writer, the learned constant where it is better and the mean where not."""
    anatomy, use = model.anatomy, torch.tensor(better, device=model.device)
    layers = range(anatomy.n_layers)
    z = [torch.where(use[anatomy.head_slice(i)][:, None], learned.z[i], mean.z[i]) for i in layers]
    mlp = None
    if learned.mlp is not None and mean.mlp is not None:
        mlp = [torch.where(use[anatomy.mlp_row(i)], learned.mlp[i], mean.mlp[i]) for i in layers]
    return Writes(torch.where(use[0], learned.input, mean.input), z, mlp)


def moments(runs: BatchRuns) -> tuple[Writes, Writes]:
    """The mean of what each writer writes at any position of any clean prompt, and its root mean square deviation.

    Positions behind the answer are left out; of the last block only the answer position counts, as nothing reads others.
    """
    total: Writes | None = None
    square: Writes | None = None
    counts: list[float] = [0.0, 0.0]
    end = runs.model.anatomy.n_layers - 1
    for number, batch in enumerate(runs.batches):
        place = batch.place(0)
        rows = torch.arange(len(batch.index), device=runs.model.device)
        whole = place.positions <= (batch.answer_positions[:, None] if place.key_mask is None else place.stop)
        if place.key_mask is not None:
            whole = whole & place.key_mask
        answer = torch.zeros_like(whole)
        answer[rows, batch.answer_positions] = True
        found = runs.trace(number, "clean").writes
        sums = [_summed(found, whole, answer, end, power) for power in (1, 2)]
        total = sums[0] if total is None else total.combined(sums[0], torch.add)
        square = sums[1] if square is None else square.combined(sums[1], torch.add)
        counts = [counts[0] + float(whole.sum()), counts[1] + float(answer.sum())]
    assert total is not None
    assert square is not None
    mean, power = (_divided(x, counts, end) for x in (total, square))

    def deviation(x: Tensor, m: Tensor) -> Tensor:
        of_writer = (x - m.square()).sum(-1, keepdim=True).clamp(min=0) / x.shape[-1]
        return of_writer.sqrt().expand_as(x)

    return mean, power.combined(mean, deviation)


def _summed(found: Writes, whole: Tensor, answer: Tensor, end: int, power: int) -> Writes:
    def total(x: Tensor, where: Tensor) -> Tensor:
        return x[where].double().pow(power).sum(0, keepdim=True)

    z = [total(x, answer if i == end else whole) for i, x in enumerate(found.z)]
    mlp = (
        None
        if found.mlp is None
        else [total(x, answer if i == end else whole) for i, x in enumerate(found.mlp)]
    )
    return Writes(total(found.input, whole), z, mlp)


def _divided(total: Writes, counts: list[float], end: int) -> Writes:
    z = [x / counts[int(i == end)] for i, x in enumerate(total.z)]
    mlp = None if total.mlp is None else [x / counts[int(i == end)] for i, x in enumerate(total.mlp)]
    return Writes(total.input / counts[0], z, mlp).map(torch.Tensor.float)
