"""The clean and the corrupted passes of some prompt pairs, batch by batch, and what replaced parts carry.

What a finished run left (``Trace``) is kept on the device up to a budget; beyond it it is computed again, or goes to CPU
memory or to disk where the plan says so. The corrupted
prompts are run from the first position on at which they differ from the clean ones; before it they are the clean run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitfind.config import Ablation
from circuitfind.errors import PromptError, RunError, UnsupportedError
from circuitfind.model.batches import Batch, Side, make_batches
from circuitfind.model.bridge import Model
from circuitfind.model.contrast import Contrast
from circuitfind.model.forward import Trace, keys_before, run_trace
from circuitfind.model.means import Means
from circuitfind.model.memory import MemoryPlan, make_plan, out_of_memory
from circuitfind.model.optimal import STEP_PROMPTS, learn_constants
from circuitfind.model.pieces import Hands, Own
from circuitfind.model.precision import advice
from circuitfind.model.spill import make_spill
from circuitfind.model.transfer import to_host
from circuitfind.model.writes import Writes
from circuitfind.task.metrics import AnswerBatch, Metric, correct
from circuitfind.task.pairs import PromptPairs

Found = TypeVar("Found")
Self = TypeVar("Self", bound="BatchRuns")
MeanOver = Literal["clean", "corrupted", "both"]
Carried = Ablation | Literal["clean"]
"""What replaced parts carry; ``clean`` into the corrupted run is denoising."""


class BatchRuns:
    """A model, prompt pairs and a metric, as batches that are run when first asked for.

    Args:
        model: The model.
        pairs: At least one pair.
        metric: What is measured at the answer position.
        mean_over: Which prompts the mean ablation averages. Means are taken position by position over prompts of the
            same template and length, since only there do positions mean the same.
        plan: Sizes of batches and passes; made for the memory that is free if None.
        progress: Called with the number of patched rows done.
        note: Called with what a user should hear of.
        hands: Do the pieces; this process does them if None.
    """

    def __init__(
        self,
        model: Model,
        pairs: PromptPairs,
        metric: Metric,
        *,
        mean_over: MeanOver = "both",
        plan: MemoryPlan | None = None,
        progress: Callable[[int], None] | None = None,
        note: Callable[[str], None] | None = None,
        hands: Hands | None = None,
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
        self.plan = plan or make_plan(model, None)
        self.hands: Hands = hands or Own()
        self.constants: Writes | None = None
        """What the ``optimal`` ablation carries, learned when first asked for: one position, for all."""
        self._progress = progress or (lambda done: None)
        self._note = note or (lambda text: None)
        self._noted = False
        self._spill = make_spill(self.plan.spill, model.device, self._note)
        if self.plan.prompt_tokens < longest:
            self._note(
                f"a prompt of {longest} tokens takes more memory than the {self.plan.budget / 1e9:.2g} GB planned for: "
                "going on with one at a time"
            )
        self._start()

    def __len__(self) -> int:
        return len(self.pairs)

    def _start(self) -> None:
        """Make batches; forget every run."""
        self.batches = make_batches(
            self.pairs, self.plan.batch_tokens, causal=self.model.causal, device=self.model.device
        )
        self._numbers = {batch.index.tobytes(): number for number, batch in enumerate(self.batches)}
        self._cache: OrderedDict[tuple[int, str], tuple[Trace, bool]] = OrderedDict()
        if self._spill is not None:
            self._spill.clear()
        self._values: dict[tuple[int, Side], Float[np.ndarray, " batch"]] = {}
        self._right: dict[int, Bool[np.ndarray, " batch"]] = {}
        self._logprobs: dict[int, Tensor] = {}
        self._narrow: dict[int, tuple[Tensor, AnswerBatch]] = {}
        self._contrasts: OrderedDict[tuple[int, Carried, Side, int], Contrast] = OrderedDict()
        for name in ("_means", "clean", "corrupted", "answered_rightly"):
            self.__dict__.pop(name, None)

    def fitted(self, work: Callable[[], Found]) -> Found:
        """Do some work; when memory runs out, once more with batches and passes of half the size, and so on."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or (
                    self.plan.batch_tokens <= 1 and len(self.batches) == len(self)
                ):
                    raise
            self._shrink(batch=max(batch.clean.numel() for batch in self.batches))
            self._start()

    def _shrink(self, batch: int = 0, rows: int = 0) -> None:
        """Halve the plan; to below half of the tokens in a batch, or in the rows of a pass, that did not fit."""
        self.plan = self.plan.halved(batch, rows)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self._noted:
            self._noted = True
            self._note("memory ran out: going on with smaller batches (give --memory to plan for less)")

    def smaller(self: Self, prompts: int) -> Self:
        """Runs of the same in batches of at most so many prompts, for learning step by step."""
        tokens = prompts * max(len(pair.clean) for pair in self.pairs)
        plan = replace(self.plan, batch_tokens=min(self.plan.batch_tokens, tokens))
        found = type(self)(
            self.model,
            self.pairs,
            self.metric,
            mean_over=self.mean_over,
            plan=plan,
            note=self._note,
            hands=self.hands,
        )
        found.constants = self.constants
        return found

    # Plain runs.

    def trace(self, number: int, side: Side, *, keep: bool = False, whole: bool = False) -> Trace:
        """A finished run of a batch.

        Args:
            number: Which batch.
            side: Clean or corrupted.
            keep: With what a backward pass needs.
            whole: From the first position on; a corrupted run else begins where it differs from the clean one.
        """
        batch = self.batches[number]
        start = 0 if whole or side == "clean" else batch.start
        key = (number, side if start or not batch.start or side == "clean" else "whole")
        found = self._cache.get(key)
        if found is not None and (found[1] or not keep):
            self._cache.move_to_end(key)
            return found[0]
        spilled = None if self._spill is None else self._spill.get(key, keep=keep)
        if spilled is not None:
            self._remember(key, *spilled)
            return spilled[0]
        with torch.no_grad():
            before = keys_before(self.trace(number, "clean"), start) if start else None
            embedded = self.model.embed(batch.tokens(side))[:, start:]
            trace = run_trace(self.model, embedded, batch.place(start), before, keep=keep)
        self._remember(key, trace, keep)
        return trace

    def _remember(self, key: tuple[int, str], trace: Trace, keep: bool) -> None:
        self._cache[key] = (trace, keep)
        self._cache.move_to_end(key)
        total = sum(t.n_bytes for t, _ in self._cache.values())
        # The latest two stay whatever they take: a batch needs both of its runs.
        while total > self.plan.cache_bytes // 2 and len(self._cache) > 2:
            oldest, (gone, kept) = self._cache.popitem(last=False)
            total -= gone.n_bytes
            if self._spill is not None:
                self._spill.put(oldest, gone, keep=kept)

    def metric_of(self, number: int, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        """The metric of a batch's logits."""
        reference = None
        if self.metric.needs_clean:
            if number not in self._logprobs:
                self._measure(number, "clean")
            reference = self._logprobs[number]
        return self.metric(logits, self.batches[number].answers, reference)

    def _measure(self, number: int, side: Side) -> Float[np.ndarray, " batch"]:
        """The metric of each prompt of a batch, untouched."""
        wanted = side == "clean" and self.metric.needs_clean and number not in self._logprobs
        if wanted or (number, side) not in self._values:
            batch = self.batches[number]
            with torch.no_grad():
                logits = self.model.head(self.trace(number, side).final)
            finite, right = _finite(logits), correct(logits, batch.answers)
            if side == "clean" and self.metric.needs_clean:
                self._logprobs[number] = logits.float().log_softmax(-1)
            fits, answered, values = to_host(finite, right, self.metric_of(number, logits))
            self._check_finite(fits, batch)
            if side == "clean":
                self._right[number] = answered
            self._values[number, side] = values
        return self._values[number, side]

    def _value(
        self, number: int, final: Float[Tensor, "batch d_model"]
    ) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """The metric of a batch from what the final norm reads, and whether all logits were finite.

        Logits are computed of the tokens that the metric looks at.
        """
        batch = self.batches[number]
        if not self.metric.answers_only:
            logits = self.model.head(final)
            return self.metric_of(number, logits), _finite(logits)
        if number not in self._narrow:
            self._narrow[number] = batch.answers.narrowed()
        tokens, answers = self._narrow[number]
        logits = self.model.head(final, tokens)
        return self.metric(logits, answers), _finite(logits)

    def _check_finite(self, finite: Bool[np.ndarray, "*patch batch"], batch: Batch) -> None:
        """Name the first prompt whose logits are not finite.

        Raises:
            RunError: There is one.
        """
        if not finite.all():
            pair = self.pairs[int(batch.index[int(np.argwhere(~finite)[0, -1])])]
            raise RunError(
                f"{self.model.name} gives NaN or infinite logits for '{pair.clean_text or list(pair.clean)}'",
                where=pair.where,
                hint=advice(self.model),
            )

    # What replaced parts carry.

    @cached_property
    def _means(self) -> Means:
        return Means(self)

    def ablated(self, number: int, ablation: Carried) -> Writes:
        """What replaced parts carry for a batch: the corrupted run's values, means, zeros, constants or (denoising) the
        clean run's; from the first position on that can differ (``Contrast.base.place.start``).
        """
        batch = self.batches[number]
        if ablation == "clean":
            return self.trace(number, "clean").since(batch.start).writes
        if ablation == "resample":
            return self.trace(number, "corrupted").writes
        written = self.trace(number, "clean").writes
        if ablation == "zero":
            return written.zeros()
        if ablation == "optimal":
            if self.model.anatomy.split:
                raise UnsupportedError(
                    "no optimal constants are learned for neurons and features",
                    hint="use --ablation resample, mean or zero",
                )
            if self.constants is None:
                self._note("learning the constants of the optimal ablation")
                self.constants = learn_constants(self.smaller(STEP_PROMPTS))
            return self.constants.combined(written, lambda constant, like: constant.expand_as(like))
        return self._means.of(batch)

    def contrast(
        self, number: int, ablation: Carried, base: Side = "clean", *, keep: bool = False
    ) -> Contrast:
        """What patched passes over a batch start from; the latest ones are kept, as many as the plan has room for."""
        key = (number, ablation, base, id(self.constants))
        if not keep and key in self._contrasts:
            self._contrasts.move_to_end(key)
            return self._contrasts[key]
        is_run = ablation in ("resample", "clean")
        trace = self.trace(number, base, keep=keep, whole=not is_run)
        trace = trace.since(self.batches[number].start if is_run else 0)
        exact = is_run and not any(block.parts and block.parts.level is not None for block in trace.blocks)
        found = Contrast(self.model, trace, self.ablated(number, ablation), exact)
        self._contrasts[key] = found
        edges = self.plan.edge_tokens > 0
        total = sum(contrast.n_bytes(edges=edges) for contrast in self._contrasts.values())
        while total > self.plan.cache_bytes // 2 and len(self._contrasts) > 1:
            total -= self._contrasts.popitem(last=False)[1].n_bytes(edges=edges)
        return found

    def lightened(self, contrast: Contrast) -> Contrast:
        """The same without what only a backward pass needs, in what is kept of it here too."""
        self._contrasts.clear()
        for key, (trace, _) in list(self._cache.items()):
            self._cache[key] = (trace.lightened(), False)
        return Contrast(self.model, contrast.base.lightened(), contrast.cut, contrast.cut_is_run)


def _finite(logits: Float[Tensor, "batch vocab"]) -> Bool[Tensor, " batch"]:
    return torch.isfinite(logits).all(-1)
