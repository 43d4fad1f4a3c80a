"""The mean ablation: means of what was written, over prompts of the same template and length, position by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuitfind.errors import UnsupportedError
from circuitfind.model.batches import Batch, Side
from circuitfind.model.forward import run_trace
from circuitfind.model.writes import PartWrites, Writes

if TYPE_CHECKING:
    from circuitfind.model.batch_runs import BatchRuns

Group = tuple[str, int]
"""A template and a number of tokens: within it a position means the same."""


class Means:
    """Means over the prompts of some runs, made when they are first asked for.

    Args:
        runs: Whose prompts; ``runs.mean_over`` says which side.
    """

    def __init__(self, runs: BatchRuns) -> None:
        self._runs = runs

    def of(self, batch: Batch) -> Writes:
        """The means that the rows of a batch are replaced by.

        Raises:
            UnsupportedError: A group has a single prompt, whose mean would be itself.
        """
        return _stack_rows([self._all[key] for key in self._groups(batch)], int(batch.clean.shape[1]))

    @cached_property
    def _all(self) -> dict[Group, Writes]:
        over = self._runs.mean_over
        sides: tuple[Side, ...] = ("clean", "corrupted") if over == "both" else (over,)
        totals: dict[Group, tuple[Writes, int]] = {}
        for number, batch in enumerate(self._runs.batches):
            keys = self._groups(batch)
            for side in sides:
                writes = self._all_writes(number, side)
                for key in set(keys):
                    chosen = [i for i, k in enumerate(keys) if k == key]
                    rows = torch.tensor(chosen, device=writes.input.device)
                    part = writes.map(partial(_sum_rows, rows=rows, length=int(batch.lengths[chosen[0]])))
                    old = totals.get(key)
                    if old is not None:
                        part = old[0].combined(part, torch.add)
                    totals[key] = (part, len(rows) + (old[1] if old else 0))
        lone = [key for key, (_, count) in totals.items() if count < 2 * len(sides)]
        if lone:
            raise UnsupportedError(
                f"the mean ablation needs at least two prompts of a template and length; {len(lone)} of {len(totals)} "
                f"groups have one, such as template {lone[0][0]} with {lone[0][1]} tokens",
                hint="use more prompts (--count), or another ablation (--ablation resample)",
            )
        return {key: total.map(partial(torch.mul, other=1 / count)) for key, (total, count) in totals.items()}

    @cached_property
    def _ends(self) -> dict[Group, set[int]]:
        """The positions that prompts of a group are read at, whatever batches they lie in."""
        found: dict[Group, set[int]] = {}
        for pair in self._runs.pairs:
            found.setdefault((pair.group, len(pair.clean)), set()).add(pair.answer_position)
        return found

    def _all_writes(self, number: int, side: Side) -> Writes:
        """What was written at every position that any prompt of a row's group is read at."""
        runs, batch = self._runs, self._runs.batches[number]
        if all(len(self._ends[key]) == 1 for key in self._groups(batch)):
            return runs.trace(number, side, whole=True).writes
        place = replace(batch.place(0), everywhere=True)
        with torch.no_grad():
            return run_trace(runs.model, runs.model.embed(batch.tokens(side)), place).writes

    def _groups(self, batch: Batch) -> list[Group]:
        pairs = [self._runs.pairs[int(i)] for i in batch.index]
        return [(pair.group, len(pair.clean)) for pair in pairs]


def _sum_rows(x: Tensor, rows: Tensor, length: int) -> Tensor:
    return x[rows, :length].sum(0)


def _stack_rows(rows: list[Writes], length: int) -> Writes:
    """Rows of several lengths as one batch; zeros behind the end, since nothing reads padding."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        out = tensors[0].new_zeros((len(tensors), length, *tensors[0].shape[1:]))
        for row, tensor in zip(out, tensors, strict=True):
            row[: len(tensor)] = tensor
        return out

    layers = range(len(rows[0].z))
    mlp, parts = None, None
    if rows[0].mlp is not None:
        mlp = [join([r.mlp[i] for r in rows if r.mlp is not None]) for i in layers]
    if rows[0].parts is not None:
        parts = [
            None if own is None else _join_parts([r.part(i) for r in rows], join)
            for i, own in enumerate(rows[0].parts)
        ]
    z = [join([r.z[i] for r in rows]) for i in layers]
    return Writes(join([r.input for r in rows]), z, mlp, parts)


def _join_parts(rows: list[PartWrites], join: Callable[[Sequence[Tensor]], Tensor]) -> PartWrites:
    errors = [r.error for r in rows if r.error is not None]
    return PartWrites(join([r.values for r in rows]), join(errors) if errors else None)
