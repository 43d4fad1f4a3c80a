"""Really ablating features: a forward pass in which some transcoder features are live and all others carry corrupted values.

The MLPs are their dictionaries plus the error of the clean run. Attention is either frozen (patterns and norm scales of the
clean run) or live. With every feature live both give the clean run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitfind.attribution.frozen import FrozenBlock, FrozenRun, apply, freeze, scale_of
from circuitfind.attribution.reads import norm_of, read
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.model.forward import Place, attend
from circuitfind.model.runs import Runs

Candidates = Mapping[int, Int[np.ndarray, " feature"]]
"""By layer, the features that may be live; all others never fire in either run."""
Masks = Mapping[int, Bool[np.ndarray, " feature"]]
"""Which of the candidates are live."""


@dataclass(frozen=True)
class _Layer:
    """The candidates of one layer, and what a batch's corrupted run has in its place.

    Attributes:
        part: The dictionary of the candidates alone; the whole one for TopK, whose features compete.
        columns: Which of the features of ``part`` are candidates.
        writes: Their decoder rows, to each layer that they write to.
        corrupted: Their corrupted activations.
        constant: What the layer's dictionary writes with all corrupted, skip connection aside.
    """

    part: Dictionary
    columns: Tensor | None
    writes: Float[Tensor, "feature layer d_model"]
    corrupted: Float[Tensor, "row pos feature"]
    constant: Float[Tensor, "row pos layer d_model"]

    def live(
        self, x: Float[Tensor, "row pos d_model"], kept: Int[Tensor, " kept"]
    ) -> Float[Tensor, "row pos kept"]:
        """Activations of some candidates; of TopK all features have to be computed for them."""
        if self.columns is None:
            return self.part.features(kept).encode(x)
        return self.part.encode(x)[..., self.columns[kept]]


@dataclass(frozen=True)
class _Batch:
    number: int
    clean: FrozenRun
    layers: dict[int, _Layer]
    errors: list[Float[Tensor, "row pos d_model"]]
    other_errors: list[Float[Tensor, "row pos d_model"]]


class Ablation:
    """Runs with features ablated, on all pairs of some runs.

    Args:
        runs: The pairs and the metric.
        dictionaries: By layer.
        candidates: Features that fire in a clean or a corrupted run.
    """

    def __init__(self, runs: Runs, dictionaries: Mapping[int, Dictionary], candidates: Candidates) -> None:
        self._runs = runs
        self._dictionaries = dictionaries
        self._candidates = {layer: torch.from_numpy(index) for layer, index in candidates.items()}
        self.evaluations = 0
        with torch.no_grad():
            self._batches = [self._batch(number) for number in range(len(runs.batches))]

    def nothing(self) -> dict[int, np.ndarray]:
        """No feature is live."""
        return {layer: np.zeros(len(index), dtype=bool) for layer, index in self._candidates.items()}

    def everything(self) -> dict[int, np.ndarray]:
        """Every candidate is live."""
        return {layer: np.ones(len(index), dtype=bool) for layer, index in self._candidates.items()}

    def metric(self, live: Masks, *, attention: bool = False, errors: bool = True) -> float:
        """The mean metric; see ``values``."""
        return float(self.values(live, attention=attention, errors=errors).mean())

    @torch.no_grad()
    def values(
        self, live: Masks, *, attention: bool = False, errors: bool = True
    ) -> Float[np.ndarray, " prompt"]:
        """The metric of each pair.

        Args:
            live: Which candidates are live.
            attention: Whether attention and norms are live too.
            errors: Whether errors are those of the clean run; else of the corrupted one.
        """
        self.evaluations += 1
        values = np.empty(len(self._runs))
        for batch in self._batches:
            logits = self._logits(batch, live, attention, errors)
            index = self._runs.batches[batch.number].index
            values[index] = self._runs.metric_of(batch.number, logits).cpu().numpy()
        return values

    def _logits(self, batch: _Batch, live: Masks, attention: bool, errors: bool) -> Tensor:
        run, model = batch.clean, self._runs.model
        place = self._place(batch)
        sums = list(batch.errors if errors else batch.other_errors)
        x = run.embedded
        model.passes["forward"] += 1
        for index, block in enumerate(run.blocks):
            if attention:
                z = attend(block.layer, x, place, None, last=False)[3]
                mid = x + block.layer.heads_out(z)
            else:
                mid = x + block.attention(x)
            before = x if model.anatomy.parallel else mid
            if index in batch.layers:
                self._write(batch.layers[index], block, index, before, live[index], attention, sums)
            x = mid + sums[index]
        final = run.at_answers(x)
        return model.head(final) if attention else run.logits(final)

    def _write(
        self,
        layer: _Layer,
        block: FrozenBlock,
        index: int,
        before: Tensor,
        live: np.ndarray,
        attention: bool,
        sums: list[Tensor],
    ) -> None:
        """Add what a layer's dictionary writes to it and later layers."""
        one = self._dictionaries[index]
        found = _read(block, one, before, attention)
        kept = torch.from_numpy(np.flatnonzero(live)).to(before.device)
        if len(kept):
            gap = layer.live(found, kept) - layer.corrupted[..., kept]
        for step in range(layer.constant.shape[2]):
            written = layer.constant[:, :, step]
            if len(kept):
                written = written + gap @ layer.writes[kept, step]
            sums[index + step] = sums[index + step] + written
        if one.w_skip is not None:
            sums[index] = sums[index] + found @ one.w_skip * (one.scale_in / one.scale_out)

    def _place(self, batch: _Batch) -> Place:
        mask = self._runs.batches[batch.number].mask
        return Place(0, batch.clean.n_pos, batch.clean.answers, mask, everywhere=True)

    # What stays the same in every run.

    def _batch(self, number: int) -> _Batch:
        runs = self._runs
        pairs = [runs.pairs[int(i)] for i in runs.batches[number].index]
        at = [pair.answer_position for pair in pairs]
        clean = freeze(runs.model, [pair.clean for pair in pairs], at)
        corrupted = freeze(runs.model, [pair.corrupted for pair in pairs], at)
        layers = {
            index: self._layer(one, self._candidates[index], corrupted)
            for index, one in self._dictionaries.items()
        }
        return _Batch(number, clean, layers, self._errors(clean), self._errors(corrupted))

    def _errors(self, run: FrozenRun) -> list[Tensor]:
        left = [block.written for block in run.blocks]
        for index, one in self._dictionaries.items():
            x = _read(run.blocks[index], one, run.blocks[index].read, False)
            written = one.decode(one.encode(x), x)
            parts: Sequence[Tensor] = written.unbind(-2) if one.w_dec.ndim == 3 else (written,)
            for step, part in enumerate(parts):
                left[index + step] = left[index + step] - part
        return left

    def _layer(self, one: Dictionary, index: Tensor, corrupted: FrozenRun) -> _Layer:
        index = index.to(corrupted.embedded.device)
        block = corrupted.blocks[one.layer]
        features = one.encode(_read(block, one, block.read, False))
        constant = one.decode(features)
        writes = one.w_dec[index] / one.scale_out
        cross = one.w_dec.ndim == 3
        return _Layer(
            part=one if one.activation == "topk" else one.features(index),
            columns=index if one.activation == "topk" else None,
            writes=writes if cross else writes[:, None],
            corrupted=features[..., index],
            constant=constant if cross else constant[:, :, None],
        )


def _read(block: FrozenBlock, one: Dictionary, x: Tensor, live: bool) -> Float[Tensor, "row pos d_in"]:
    """What a dictionary reads, with the norm's scale of the run or (live) of ``x``."""
    if not live:
        return read(block, one.site_in, x)
    return apply(norm_of(block, one.site_in), x, scale_of(block.layer.mlp_norm, x))
