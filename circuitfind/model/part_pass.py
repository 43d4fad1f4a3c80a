"""The parts of a split MLP in patched passes: replaced for every reader, or each computed from its own input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitfind.model.contrast import Contrast
from circuitfind.model.features import FeatureParts
from circuitfind.model.parts import NeuronParts, PartRun, Parts
from circuitfind.model.precision import moved
from circuitfind.model.transfer import index_of, upload
from circuitfind.model.writes import PartWrites

Inputs = Callable[[Sequence[int]], Iterator[tuple[list[list[int]], Tensor]]]
"""What some parts read: tensors [patch or 1, row, token, d_model], and which of those asked for read each row."""


def swapped(
    parts: Parts,
    any_part: Bool[np.ndarray, " node"],
    chosen: Float[Tensor, "patch _ _ node"],
    now: tuple[Float[Tensor, "#patch row pos d_model"], PartRun],
    cut: tuple[Float[Tensor, "row pos d_model"], PartWrites],
) -> Float[Tensor, "patch row pos d_model"]:
    """What an MLP adds to the stream when some of its parts carry other values.

    Args:
        parts: Its parts.
        any_part: Which of them any patch replaces.
        chosen: How far a patch moves a part: 1 where it replaces it.
        now: What they add together, and what each does.
        cut: The same of what replaced ones carry.
    """
    (out, seen), (total, carried) = now, cut
    used = index_of(np.flatnonzero(any_part[parts.owners]), chosen.device)
    if not any_part[parts.rest :].any() and len(used) < len(parts.units):
        gap = (carried.values - seen.values)[..., used] * chosen[..., parts.owner[used]]
        return out + parts.added(gap, used)
    # Not as a difference: what is replaced by zeros must be zero, since a norm may stand behind it.
    units = moved(seen.values, carried.values, chosen[..., parts.owner])
    theirs, ours = (
        parts.left(total, carried.values, carried.error),
        parts.left(out, seen.values, seen.error),
    )
    found = parts.added(units) + moved(ours, theirs, chosen[..., parts.rest, None])
    if parts.error is None or seen.error is None or carried.error is None:
        return found
    return found + moved(seen.error, carried.error, chosen[..., parts.error, None])


class PartsOfPass:
    """The parts of one MLP.

    Args:
        contrast: The run and what replaced parts carry.
        index: The layer.
        last: Whether it is the last one, in which only the answer position counts.
        from_base: Whether values are told as differences from the base run, rather than from what replaced parts carry.
    """

    def __init__(self, contrast: Contrast, index: int, last: bool, *, from_base: bool) -> None:
        layer, run = contrast.model.layers[index], contrast.base.blocks[index]
        assert layer.parts is not None
        assert run.parts is not None
        assert run.mlp is not None
        assert contrast.cut.mlp is not None
        self._parts, self._run = layer.parts, run.parts
        cut, place = contrast.cut.part(index), contrast.base.place

        def tokens(x: Tensor) -> Tensor:
            return (place.at_answer(x) if last else x).flatten(0, 1)

        self._cut = tokens(cut.values)
        self._cut_error = None if cut.error is None else tokens(cut.error)
        self._cut_total = tokens(contrast.cut.mlp[index])
        self._total = run.mlp.flatten(0, 1)
        self._from_base = from_base

    def write(
        self,
        some: Sequence[int],
        replaced: Bool[np.ndarray, "patch _"],
        inputs: Inputs,
        into: Float[Tensor, "patch some token d_model"],
    ) -> None:
        """Compute some parts in each patch, and put how far they are from the known run.

        Args:
            some: Which parts, in order.
            replaced: Which parts each patch replaces.
            inputs: What parts read.
            into: Where their values go.
        """
        parts, run, patches = self._parts, self._run, len(into)
        units = parts.of_nodes(some)
        at = index_of(units, self._cut.device)
        column = {unit: at for at, unit in enumerate(units)}
        values = self._cut[:, at].repeat(patches, 1, 1)
        level = None if run.level is None else run.level.flatten(0, 1)
        rest: Tensor | None = None
        error: Tensor | None = None
        asking = [i for i in some if i < parts.n_readers and (parts.together or not replaced[:, i].all())]
        for rows, read in inputs(asking) if asking else ():
            for row, members in enumerate(rows):
                x, mine = read[:, row], [asking[m] for m in members]
                chosen = parts.of_nodes(mine)
                if chosen:
                    into_columns = index_of((column[unit] for unit in chosen), values.device)
                    values[:, :, into_columns] = parts.some(x, chosen, level)
                if parts.rest in mine:
                    rest = self._rest(x)
                if parts.error in mine:
                    assert isinstance(parts, FeatureParts)
                    error = parts.missed(x, level)
        if parts.together and asking:
            assert isinstance(parts, NeuronParts)
            assert rest is not None
            values, rest = parts.scaled(values, rest)
        nodes = upload(replaced, values.device)
        if units:
            values = torch.where(nodes[:, None, parts.owner[at]], self._cut[:, at], values)
            known = run.values.flatten(0, 1) if self._from_base else self._cut
            self._put(values - known[:, at], units, some, into)
        if parts.rest in some:
            cut = parts.left(self._cut_total, self._cut, self._cut_error)
            now = cut[None] if rest is None else torch.where(nodes[:, parts.rest, None, None], cut, rest)
            base = None if run.error is None else run.error.flatten(0, 1)
            known = parts.left(self._total, run.values.flatten(0, 1), base) if self._from_base else cut
            into[:, some.index(parts.rest)] = now - known
        if parts.error in some:
            assert parts.error is not None
            assert self._cut_error is not None
            assert run.error is not None
            base = run.error.flatten(0, 1)
            current = base[None] if error is None else error
            now = torch.where(nodes[:, parts.error, None, None], self._cut_error, current)
            into[:, some.index(parts.error)] = now - (base if self._from_base else self._cut_error)

    def _rest(self, read: Float[Tensor, "patch token d_model"]) -> Float[Tensor, "patch token d_model"]:
        """What the rest adds, from its own input; before a post-norm where there is one."""
        parts, run = self._parts, self._run
        if isinstance(parts, NeuronParts):
            return parts.raw_rest(read)
        out, seen = parts.again(read, run.flat.over(len(read)))
        return parts.left(out, seen.values, seen.error)

    def _put(
        self,
        gap: Float[Tensor, "patch token unit"],
        units: Sequence[int],
        some: Sequence[int],
        into: Float[Tensor, "patch some token d_model"],
    ) -> None:
        each = gap.transpose(1, 2)[..., None] * self._parts.w_out[index_of(units, gap.device)][None, :, None]
        slots = [some.index(int(i)) for i in self._parts.owners[list(units)]]
        at = index_of(slots, gap.device)
        if len(set(slots)) == len(slots):
            into[:, at] = each
            return
        into[:, index_of(sorted(set(slots)), gap.device)] = 0.0
        into.index_add_(1, at, each)
