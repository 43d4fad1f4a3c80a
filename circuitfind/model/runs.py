"""Runs: the clean and the corrupted passes of some prompt pairs, and patched passes between them.

What takes long is cut into pieces (model/pieces.py), which ``hands`` do: this process, unless others are given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitfind.errors import UnsupportedError
from circuitfind.model.batch_runs import BatchRuns, Carried
from circuitfind.model.batches import Side
from circuitfind.model.forward import Trace
from circuitfind.model.gradients import Part, Visitor, backward, metric_gradient, not_finite
from circuitfind.model.memory import out_of_memory
from circuitfind.model.node_pass import Patch
from circuitfind.model.pieces import CPU_PIECE, GPU_PIECE, Piece
from circuitfind.model.rules import PLAIN, Rules
from circuitfind.model.schedule import Share, Watcher, shares
from circuitfind.model.transfer import to_host


class Runs(BatchRuns):
    """A model, prompt pairs and a metric, ready for patching. Arguments are those of ``BatchRuns``."""

    # Pieces.

    def number_of(self, index: Int[np.ndarray, " row"]) -> int:
        """The batch of some prompts.

        Raises:
            KeyError: They make none here: these runs have other batches.
        """
        return self._numbers[np.ascontiguousarray(index, dtype=np.int64).tobytes()]

    def progressed(self, rows: int) -> None:
        """Patched rows were done elsewhere."""
        self._progress(rows)

    @cached_property
    def flops_per_token(self) -> float:
        """Of a forward pass through all blocks, without attention: two for each weight."""
        layer, d = self.model.layers[0], self.model.d_model
        gated = layer.mlp is not None and layer.mlp.w_gate is not None
        weights = d * (int(layer.w_qkv.shape[1]) + layer.n_heads * layer.d_head)
        return 2.0 * len(self.model.layers) * (weights + (2 + gated) * d * self.model.d_mlp)

    def tokens_in_piece(self) -> int:
        """Tokens whose forward passes make up a piece, if a single pass has fewer."""
        most = GPU_PIECE if self.model.device.type == "cuda" else CPU_PIECE
        return max(1, int(most / self.flops_per_token))

    # All prompts, untouched.

    def _gathered(self, side: Side) -> Float[np.ndarray, " prompt"]:
        left = [number for number in range(len(self.batches)) if (number, side) not in self._values]
        pieces = (Measure(self.batches[number].index, side) for number in left)
        for done, found in self.hands.do(self, pieces):
            self._values[left[done], side] = found.arrays["values"]
            if side == "clean":
                self._right[left[done]] = found.arrays["right"].astype(bool)
        values = np.empty(len(self))
        for number, batch in enumerate(self.batches):
            values[batch.index] = self._values[number, side]
        return values

    def measured(self, number: int, side: Side) -> Mapping[str, np.ndarray]:
        """The metric of each prompt of a batch, and of clean ones whether they are answered rightly."""
        values = self._measure(number, side)
        return {"values": values, "right": self._right[number]} if side == "clean" else {"values": values}

    @cached_property
    def clean(self) -> Float[np.ndarray, " prompt"]:
        """The metric of each clean prompt."""
        return self._gathered("clean")

    @cached_property
    def corrupted(self) -> Float[np.ndarray, " prompt"]:
        """The metric (with the clean prompt's answers) of each corrupted prompt."""
        return self._gathered("corrupted")

    @cached_property
    def answered_rightly(self) -> Bool[np.ndarray, " prompt"]:
        """Whether each clean prompt's answer is likelier than the wrong one."""
        _ = self.clean
        right = np.empty(len(self), dtype=bool)
        for number, batch in enumerate(self.batches):
            right[batch.index] = self._right[number]
        return right

    # Patched runs.

    def patched(
        self,
        patches: Sequence[Patch],
        *,
        base: Side = "clean",
        ablation: Carried = "resample",
    ) -> Float[np.ndarray, "patch prompt"]:
        """The metric of every prompt under every patch, as rows of as few passes as fit.

        Args:
            patches: What is replaced.
            base: Which prompt runs; replaced parts carry values from elsewhere.
            ablation: What they carry; ``clean`` with ``base="corrupted"`` is denoising.
        """

        def make(index: Int[np.ndarray, " row"], some: tuple[Patch, ...]) -> Piece:
            return Patched(index, some, base, ablation)

        out = np.full((len(patches), len(self)), np.nan)
        for place, found in self.in_pieces(patches, base, ablation, out, make):
            out[place] = found["values"]
        return out

    def in_pieces(
        self,
        patches: Sequence[Patch],
        base: Side,
        ablation: Carried,
        out: Float[np.ndarray, "patch prompt"],
        make: Callable[[Int[np.ndarray, " row"], tuple[Patch, ...]], Piece],
    ) -> Iterator[tuple[tuple[np.ndarray, ...], Mapping[str, np.ndarray]]]:
        """Do patches in pieces: for each the place (patches x prompts) of what it gives.

        Args:
            patches: What is replaced.
            base: As for ``patched``.
            ablation: The same.
            out: Values of patches that need no pass are put there.
            make: The piece of some prompts and of patches that share passes.
        """
        places: list[tuple[np.ndarray, ...]] = []

        def pieces() -> Iterator[Piece]:
            for number, batch in enumerate(self.batches):
                for part in self._shares(number, patches, base, ablation, out):
                    for some in self._cut(part):
                        places.append(np.ix_(np.array(some), batch.index))
                        yield make(batch.index, tuple(patches[i] for i in some))

        for done, found in self.hands.do(self, pieces()):
            yield places[done], found.arrays

    def patched_batch(
        self,
        number: int,
        patches: Sequence[Patch],
        base: Side,
        ablation: Carried,
        watcher: Watcher | None = None,
    ) -> Float[np.ndarray, "patch row"]:
        """The metric of the prompts of one batch under every patch, in this process.

        ``watcher`` sees what patches of whole nodes change on the way up.
        """
        out = np.full((len(patches), len(self)), np.nan)
        for part in self._shares(number, patches, base, ablation, out):
            self._run_share(number, part, patches, out, watcher)
        return out[:, self.batches[number].index]

    def _shares(
        self,
        number: int,
        patches: Sequence[Patch],
        base: Side,
        ablation: Carried,
        out: Float[np.ndarray, "patch prompt"],
    ) -> list[Share]:
        """What passes over a batch share; values of patches that need none are put in place."""
        batch = self.batches[number]
        parts, idle = shares(self.contrast(number, ablation, base), patches, batch.index)
        if idle:
            out[np.ix_(np.array(idle), batch.index)] = self._measure(number, base)
            self._progress(len(idle) * len(batch.index))
        return parts

    def _cut(self, part: Share) -> Iterator[list[int]]:
        """The members of a share, as many whole passes at a time as a piece has."""
        in_pass = self._in_pass(part)
        size = in_pass * max(1, self.tokens_in_piece() // (in_pass * part.tokens))
        for first in range(0, len(part.members), size):
            yield part.members[first : first + size]

    def _in_pass(self, part: Share) -> int:
        """Members of a share that one pass has room for."""
        limit = self.plan.pass_tokens if part.light else self.plan.edge_tokens
        return max(1, limit // part.tokens)

    def _run_share(
        self,
        number: int,
        part: Share,
        patches: Sequence[Patch],
        out: Float[np.ndarray, "patch prompt"],
        watcher: Watcher | None,
    ) -> None:
        """Run patches that share passes; those of a pass are halved as long as memory runs out."""
        batch, done = self.batches[number], 0
        while done < len(part.members):
            some = part.members[done : done + self._in_pass(part)]
            try:
                with torch.no_grad():
                    watch = None if watcher is None else watcher.begin(number, part.contrast, len(some))
                    values = [self._value(number, rows) for rows in part.run(patches, some, watch)]
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(some) == 1:
                    raise
                self._shrink(rows=len(some) * part.tokens)
                continue
            measured, finite = to_host(*(torch.stack(one) for one in zip(*values, strict=True)))
            self._check_finite(finite, batch)
            out[np.ix_(np.array(some), batch.index)] = measured
            if watcher is not None and watch is not None:
                watcher.end(number, some, watch)
            done += len(some)
            self._progress(len(some) * len(batch.index))

    # Gradients.

    def check_gradient(self, side: Side) -> None:
        """Refuse a metric that has no useful gradient at a run.

        Raises:
            UnsupportedError: It has none at all, or it is zero there.
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

    def backward(
        self,
        number: int,
        trace: Trace,
        visit: Visitor,
        *,
        rules: Rules = PLAIN,
        drop_each: bool = False,
        dropped: Collection[Part] = (),
    ) -> tuple[Float[np.ndarray, " batch"], Float[Tensor, "cut row pos d_model"]]:
        """Gradients of the sum of the metric over a batch, at a run of it that kept what this needs.

        Returns the metric of each prompt and the gradient on the embedded prompts; see ``gradients.backward``.

        Raises:
            RunError: The gradient of the metric is not finite; what the visitor saw is then worth nothing.
        """
        with torch.no_grad():
            values, final = metric_gradient(self.model, trace, partial(self.metric_of, number), rules)
            behind = backward(
                self.model, trace, final, visit, rules=rules, drop_each=drop_each, dropped=dropped
            )
        measured, finite = to_host(values, torch.isfinite(final).all())
        if not finite:
            raise not_finite()
        return measured, behind


@dataclass(frozen=True)
class Measure:
    """The metric of the prompts of a batch, untouched."""

    index: Int[np.ndarray, " row"]
    side: Side

    rows = 0
    portable = True

    def run(self, runs: Runs) -> Mapping[str, np.ndarray]:
        return runs.measured(runs.number_of(self.index), self.side)


@dataclass(frozen=True)
class Patched:
    """The metric of the prompts of a batch under some patches, in the order in which they join a pass."""

    index: Int[np.ndarray, " row"]
    patches: tuple[Patch, ...]
    base: Side
    ablation: Carried

    portable = True

    @property
    def rows(self) -> int:
        return len(self.patches) * len(self.index)

    def run(self, runs: Runs) -> Mapping[str, np.ndarray]:
        number = runs.number_of(self.index)
        return {"values": runs.patched_batch(number, self.patches, self.base, self.ablation)}
