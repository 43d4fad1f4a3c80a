"""Runs: the clean and the corrupted passes of some prompt pairs, and patched passes between them.

Prompts are sorted by length and batched; a batch with several lengths is padded on the right with a mask made here, so
positions and causal attention are those of the unpadded prompt. What the writers wrote is kept on the device up to a
budget and computed again beyond it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitfind.config import Ablation
from circuitfind.errors import PromptError, RunError, UnsupportedError
from circuitfind.model.bridge import Model
from circuitfind.model.gradients import Gradients, take_gradients
from circuitfind.model.patched import Patch, PatchedPass
from circuitfind.model.writes import Writes, WritesRecorder
from circuitfind.task.metrics import AnswerBatch, Metric, correct
from circuitfind.task.pairs import PromptPairs, pad

Side = Literal["clean", "corrupted"]
MeanOver = Literal["clean", "corrupted", "both"]

TOKENS_PER_PASS = 4096
CACHE_BYTES = 2 << 30
DELTA_BYTES = 512 << 20


@dataclass(frozen=True)
class Batch:
    """Some prompt pairs as tensors.

    Attributes:
        index: Where each row stands in the list of pairs.
        clean, corrupted: Right-padded token ids.
        mask: False at padding; None when nothing is padded.
        answer_positions: Where each row is read.
        lengths: Tokens in each row.
    """

    index: Int[np.ndarray, " batch"]
    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"] | None
    answer_positions: Int[Tensor, " batch"]
    answers: AnswerBatch
    lengths: Int[np.ndarray, " batch"]

    def tokens(self, side: Side) -> Int[Tensor, "batch pos"]:
        return self.clean if side == "clean" else self.corrupted


class Runs:
    """A model, prompt pairs and a metric, ready for patching.

    Args:
        model: The model.
        pairs: At least one pair.
        metric: What is measured at the answer position.
        mean_over: Which prompts the mean ablation averages. Means are taken position by position over prompts of the
            same template and length, since only there do positions mean the same.
        tokens_per_pass: Rows are batched up to this many tokens.
        cache_bytes: Writers' outputs kept on the device.
        delta_bytes: Largest buffer of an edge-patched pass.
        progress: Called with the number of patched rows done.
    """

    def __init__(
        self,
        model: Model,
        pairs: PromptPairs,
        metric: Metric,
        *,
        mean_over: MeanOver = "both",
        tokens_per_pass: int = TOKENS_PER_PASS,
        cache_bytes: int = CACHE_BYTES,
        delta_bytes: int = DELTA_BYTES,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if not len(pairs):
            raise PromptError("there are no prompt pairs", hint="give the task at least one usable pair")
        longest = max(len(pair.clean) for pair in pairs)
        if longest > model.n_ctx:
            raise PromptError(
                f"a prompt has {longest} tokens, but {model.name} reads at most {model.n_ctx}",
                hint="shorten the prompts",
            )
        self.model = model
        self.pairs = pairs
        self.metric = metric
        self.mean_over = mean_over
        self._tokens_per_pass = tokens_per_pass
        self._cache_bytes = cache_bytes
        self._delta_bytes = delta_bytes
        self._progress = progress or (lambda done: None)
        self._cache: OrderedDict[tuple[int, Side], Writes] = OrderedDict()
        self.batches = self._make_batches()

    def __len__(self) -> int:
        return len(self.pairs)

    def _make_batches(self) -> list[Batch]:
        lengths = np.array([len(pair.clean) for pair in self.pairs])
        order = np.argsort(lengths, kind="stable")
        answers = AnswerBatch.of(self.pairs, self.model.device)
        batches, start = [], 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= self._tokens_per_pass:
                stop += 1
            index = order[start:stop]
            chosen = [self.pairs[int(i)] for i in index]
            device = self.model.device
            clean, corrupted = pad([p.clean for p in chosen]), pad([p.corrupted for p in chosen])
            batches.append(
                Batch(
                    index=index,
                    clean=torch.from_numpy(clean.ids).to(device),
                    corrupted=torch.from_numpy(corrupted.ids).to(device),
                    mask=None if clean.mask.all() else torch.from_numpy(clean.mask).to(device),
                    answer_positions=torch.tensor([p.answer_position for p in chosen], device=device),
                    answers=answers[[int(i) for i in index]],
                    lengths=lengths[index],
                )
            )
            start = stop
        return batches

    # Plain runs.

    def _plain(self, number: int, side: Side) -> tuple[Float[Tensor, "batch vocab"], Writes]:
        batch = self.batches[number]
        recorder = WritesRecorder(self.model)
        with torch.no_grad(), self.model.hooked(recorder.hooks()):
            logits = self.model.logits(batch.tokens(side), batch.answer_positions, batch.mask)
        writes = recorder.writes()
        self._remember((number, side), writes)
        return logits, writes

    def _remember(self, key: tuple[int, Side], writes: Writes) -> None:
        self._cache[key] = writes
        total = sum(w.n_bytes for w in self._cache.values())
        while total > self._cache_bytes and len(self._cache) > 1:
            total -= self._cache.popitem(last=False)[1].n_bytes

    def writes(self, number: int, side: Side) -> Writes:
        """What the writers wrote for a batch."""
        found = self._cache.get((number, side))
        if found is None:
            return self._plain(number, side)[1]
        self._cache.move_to_end((number, side))
        return found

    @cached_property
    def _clean(self) -> tuple[Float[np.ndarray, " prompt"], Bool[np.ndarray, " prompt"], list[Tensor | None]]:
        values, right = np.empty(len(self)), np.empty(len(self), dtype=bool)
        kept: list[Tensor | None] = []
        for number, batch in enumerate(self.batches):
            logits = self._plain(number, "clean")[0]
            self._check_finite(logits, batch)
            logprobs = logits.float().log_softmax(-1) if self.metric.needs_clean else None
            kept.append(logprobs)
            values[batch.index] = self.metric(logits, batch.answers, logprobs).cpu().numpy()
            right[batch.index] = correct(logits, batch.answers).cpu().numpy()
        return values, right, kept

    @property
    def clean(self) -> Float[np.ndarray, " prompt"]:
        """The metric of each clean prompt."""
        return self._clean[0]

    @property
    def answered_rightly(self) -> Bool[np.ndarray, " prompt"]:
        """Whether each clean prompt's answer is likelier than the wrong one."""
        return self._clean[1]

    @cached_property
    def corrupted(self) -> Float[np.ndarray, " prompt"]:
        """The metric (with the clean prompt's answers) of each corrupted prompt."""
        values = np.empty(len(self))
        for number, batch in enumerate(self.batches):
            logits = self._plain(number, "corrupted")[0]
            self._check_finite(logits, batch)
            values[batch.index] = self.metric_of(number, logits).cpu().numpy()
        return values

    def metric_of(self, number: int, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        """The metric of a batch's logits."""
        reference = self._clean[2][number] if self.metric.needs_clean else None
        return self.metric(logits, self.batches[number].answers, reference)

    def _check_finite(self, logits: Tensor, batch: Batch) -> None:
        bad = ~torch.isfinite(logits).all(-1)
        if bool(bad.any()):
            pair = self.pairs[int(batch.index[int(bad.nonzero()[0])])]
            raise RunError(
                f"{self.model.name} gives NaN or infinite logits for '{pair.clean_text or list(pair.clean)}'",
                where=pair.where,
                hint="check the model's weights; a damaged or wrongly converted model does this",
            )

    # Ablated values.

    @cached_property
    def _means(self) -> dict[tuple[str, int], Writes]:
        sides: tuple[Side, ...] = ("clean", "corrupted") if self.mean_over == "both" else (self.mean_over,)
        totals: dict[tuple[str, int], tuple[Writes, int]] = {}
        for number, batch in enumerate(self.batches):
            keys = self._groups(batch)
            for side in sides:
                writes = self.writes(number, side)
                for key in set(keys):
                    rows = torch.tensor([i for i, k in enumerate(keys) if k == key], device=self.model.device)
                    part = _sum_rows(writes, rows, key[1])
                    old = totals.get(key)
                    totals[key] = (
                        (part, len(rows)) if old is None else (_add(old[0], part), old[1] + len(rows))
                    )
        lone = [key for key, (_, count) in totals.items() if count < 2 * len(sides)]
        if lone:
            raise UnsupportedError(
                f"the mean ablation needs at least two prompts of a template and length; {len(lone)} of {len(totals)} "
                f"groups have one, such as template {lone[0][0]} with {lone[0][1]} tokens",
                hint="use more prompts (--count), or another ablation (--ablation resample)",
            )
        return {key: _scale(total, 1 / count) for key, (total, count) in totals.items()}

    def _groups(self, batch: Batch) -> list[tuple[str, int]]:
        return [(self.pairs[int(i)].group, int(n)) for i, n in zip(batch.index, batch.lengths, strict=True)]

    def ablated(self, number: int, ablation: Ablation | Literal["clean"]) -> Writes:
        """What replaced parts carry for a batch: the corrupted run's, mean or zero values, or (denoising) the clean run's."""
        if ablation == "clean":
            return self.writes(number, "clean")
        if ablation == "resample":
            return self.writes(number, "corrupted")
        if ablation == "zero":
            return self.writes(number, "clean").zeros()
        length = self.batches[number].clean.shape[1]
        return _stack([_lengthen(self._means[key], length) for key in self._groups(self.batches[number])])

    # Patched runs.

    def patched(
        self,
        patches: Sequence[Patch],
        *,
        base: Side = "clean",
        ablation: Ablation | Literal["clean"] = "resample",
    ) -> Float[np.ndarray, "patch prompt"]:
        """The metric of every prompt under every patch, as rows of as few passes as fit.

        Args:
            patches: What is replaced.
            base: Which prompt runs; replaced parts carry values from elsewhere.
            ablation: What they carry; ``clean`` with ``base="corrupted"`` is denoising.
        """
        out = np.full((len(patches), len(self)), np.nan)
        for number, batch in enumerate(self.batches):
            ablated = self.ablated(number, ablation)
            tokens = batch.tokens(base)
            width = self._rows(tokens.numel(), any(p.edges is not None for p in patches))
            for start in range(0, len(patches), width):
                some = patches[start : start + width]
                logits = PatchedPass(self.model, some, ablated).run(
                    tokens, batch.answer_positions, batch.mask
                )
                for i, rows in enumerate(logits):
                    self._check_finite(rows, batch)
                    out[start + i, batch.index] = self.metric_of(number, rows).cpu().numpy()
                self._progress(len(some) * len(batch.index))
        return out

    def _rows(self, tokens: int, edges: bool) -> int:
        """How many patches go into one pass over a batch of this many tokens."""
        limit = self._tokens_per_pass
        if edges:
            per_token = len(self.model.anatomy.writers) * self.model.d_model * 4
            limit = min(limit, self._delta_bytes // per_token)
        return max(1, limit // tokens)

    def gradients(self, number: int, side: Side) -> Gradients:
        """The gradient of the sum of the metric over a batch, at every reader.

        Raises:
            UnsupportedError: The metric has no useful gradient there.
        """
        if not self.metric.differentiable:
            raise UnsupportedError(
                f"the metric '{self.metric.name}' has no gradient",
                hint="use --metric logit-diff, or --method activation-patching",
            )
        if self.metric.gradient_at_clean_is_zero and side == "clean":
            raise UnsupportedError(
                f"the gradient of '{self.metric.name}' at the clean run is zero, so it says nothing about any edge",
                hint="use --metric logit-diff, --direction denoising, or --method activation-patching",
            )
        batch = self.batches[number]
        if self.metric.needs_clean:
            _ = self._clean  # a pass of its own: it must not run inside the one that is hooked here
        metric = partial(self.metric_of, number)
        found = take_gradients(self.model, batch.tokens(side), batch.answer_positions, batch.mask, metric)
        self._remember((number, side), found.writes)
        return found


def _sum_rows(writes: Writes, rows: Tensor, length: int) -> Writes:
    mlp = None if writes.mlp is None else writes.mlp[:, rows, :length].sum(1)
    return Writes(writes.input[rows, :length].sum(0), writes.z[:, rows, :length].sum(1), mlp)


def _add(a: Writes, b: Writes) -> Writes:
    return Writes(a.input + b.input, a.z + b.z, None if a.mlp is None or b.mlp is None else a.mlp + b.mlp)


def _scale(a: Writes, factor: float) -> Writes:
    return Writes(a.input * factor, a.z * factor, None if a.mlp is None else a.mlp * factor)


def _lengthen(a: Writes, length: int) -> Writes:
    """Zeros behind the end: nothing reads padding."""
    extra = length - a.input.shape[0]
    if not extra:
        return a
    pads = torch.nn.functional.pad
    mlp = None if a.mlp is None else pads(a.mlp, (0, 0, 0, extra))
    return Writes(pads(a.input, (0, 0, 0, extra)), pads(a.z, (0, 0, 0, 0, 0, extra)), mlp)


def _stack(rows: list[Writes]) -> Writes:
    mlps = [r.mlp for r in rows if r.mlp is not None]
    return Writes(
        torch.stack([r.input for r in rows]),
        torch.stack([r.z for r in rows], dim=1),
        torch.stack(mlps, dim=1) if mlps else None,
    )
