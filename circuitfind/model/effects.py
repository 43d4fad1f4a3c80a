"""Direct effects over all prompts of some runs, in the clean run and under patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.config import Ablation
from circuitfind.model.contrast import Contrast
from circuitfind.model.gradients import BlockGradients, unembed_gradient
from circuitfind.model.node_pass import Patch, Watch
from circuitfind.model.readout import (
    Effects,
    Readout,
    clean_effects,
    head_readout,
    logits_readout,
    mlp_readout,
)
from circuitfind.model.runs import Runs
from circuitfind.model.transfer import to_host, upload
from circuitfind.names import Kind, Node, parse_node

Reader = tuple[Node, str | None]
"""A reader as the anatomy lists it: a node and the input of it: (a9.h9, "q"), (m5, None), (logits, None)."""


@dataclass(frozen=True)
class Observed:
    """What patches did.

    Attributes:
        values: The metric.
        change: Of each writer's direct effect on each reader.
        read: How the reading itself changes.
        bent: How much of that comes of the reader's norm dividing by something else than in the clean run.
        scale: What the norm multiplies by, as a ratio to the clean run; 1 where a reader reads many positions.
    """

    values: Float[np.ndarray, "patch prompt"]
    change: Float[np.ndarray, "reader patch writer prompt"]
    read: Float[np.ndarray, "reader patch prompt"]
    bent: Float[np.ndarray, "reader patch prompt"]
    scale: Float[np.ndarray, "reader patch prompt"]


UNLIKE = 0.5
"""Two prompts ask for different things when the cosine of their directions at the end is below this."""


class DirectEffects:
    """Direct effects on some readers. One backward pass if one of them is no end of the model; else none.

    Args:
        runs: Prompts and metric.
        readers: What is written to.
        shuffled: So many further readings at the logits, each prompt with the direction of another one that asks for
            something else: what is written to them is no answer. They stand behind the readers, in every array.
        seed: Of the shuffling.

    Attributes:
        clean: The direct effect of every writer in the clean run; zero where none is possible.
    """

    def __init__(self, runs: Runs, readers: Sequence[Reader], *, shuffled: int = 0, seed: int = 0) -> None:
        self.runs, self.readers, self.n_shuffled, self.seed = runs, tuple(readers), shuffled, seed
        self._n_writers = len(runs.model.anatomy.writers)
        self._batches = runs.batches
        self._gradients = np.zeros((len(runs), runs.model.d_model), dtype=np.float32)
        for number, batch in enumerate(runs.batches):
            self._gradients[batch.index] = self._gradient(number).float().cpu().numpy()
        self._partners = self._others(np.random.default_rng(seed))
        self._readouts: dict[int, list[Readout]] = {}
        self.clean = np.zeros((len(self.readers) + shuffled, self._n_writers, len(runs)))
        for number, batch in enumerate(runs.batches):
            self._readouts[number] = self._read(number)
            whole = runs.contrast(number, "zero")
            with torch.no_grad():
                found = clean_effects(whole, self._readouts[number])
            self.clean[:, :, batch.index] = found.cpu().numpy()
        self._keep()

    def _keep(self) -> None:
        """For pieces that are done on the same runs."""
        kept: dict[Any, DirectEffects] = vars(self.runs).setdefault("_direct_effects", {})
        for key, other in list(kept.items()):
            if other._batches is not self._batches:  # the runs were begun anew
                del kept[key]
        kept[self.readers, self.n_shuffled, self.seed] = self

    @classmethod
    def on(cls, runs: Runs, readers: Sequence[Reader], shuffled: int, seed: int) -> DirectEffects:
        """The same as were made on these runs before, or new ones."""
        found = vars(runs).get("_direct_effects", {}).get((tuple(readers), shuffled, seed))
        if found is not None and found._batches is runs.batches:
            same: DirectEffects = found
            return same
        return cls(runs, readers, shuffled=shuffled, seed=seed)

    def only(self, readers: Sequence[Reader]) -> DirectEffects:
        """The same on some of the readers, without running anything again."""
        rows = [self.readers.index(reader) for reader in readers]
        rows += range(len(self.readers), len(self.clean))
        found = copy(self)
        found.readers, found.clean = tuple(readers), self.clean[rows]
        found._readouts = {number: [all_[row] for row in rows] for number, all_ in self._readouts.items()}
        found._keep()
        return found

    def observe(self, patches: Sequence[Patch], ablation: Ablation) -> Observed:
        """The metric and the direct effects of every writer under patches of whole nodes."""
        runs, readers = self.runs, tuple((str(node), slot) for node, slot in self.readers)
        n_readers, n_patches, n_prompts = len(self.clean), len(patches), len(runs)
        values = np.full((n_patches, n_prompts), np.nan)
        change = np.zeros((n_readers, n_patches, self._n_writers, n_prompts))
        read, bent = np.zeros((2, n_readers, n_patches, n_prompts))
        scale = np.ones_like(read)

        def make(index: Int[np.ndarray, " row"], some: tuple[Patch, ...]) -> Observing:
            return Observing(index, some, ablation, readers, self.n_shuffled, self.seed)

        every = np.arange(n_readers)
        for (members, index), found in runs.in_pieces(patches, "clean", ablation, values, make):
            values[members, index] = found["values"]
            here = np.ix_(every, members[:, 0], index[0])
            change[np.ix_(every, members[:, 0], np.arange(self._n_writers), index[0])] = found["change"]
            read[here], bent[here], scale[here] = found["read"], found["bent"], found["scale"]
        return Observed(values, change, read, bent, scale)

    def observed(self, number: int, patches: Sequence[Patch], ablation: Ablation) -> dict[str, np.ndarray]:
        """The same of the prompts of one batch, in this process."""
        found = _Gathered(self, number, len(patches))
        values = self.runs.patched_batch(number, patches, "clean", ablation, found)
        return {"values": values, **found.arrays}

    def readouts(self, number: int) -> list[Readout]:
        """Those of a batch, in the order of the readers."""
        return self._readouts[number]

    def _read(self, number: int) -> list[Readout]:
        runs = self.runs
        inner = any(node.kind is not Kind.LOGITS for node, _ in self.readers)
        trace = runs.trace(number, "clean", keep=inner)
        found: dict[Reader, Readout] = {}

        def visit(block: BlockGradients) -> None:
            for node, slot in self.readers:
                if node.layer != block.layer or node.kind is Kind.LOGITS:
                    continue
                if slot is not None:
                    found[node, slot] = head_readout(runs.model, trace, block, slot, node.index)
                else:
                    found[node, slot] = mlp_readout(runs.model, trace, block)

        if inner:
            runs.backward(number, trace, visit)

        def at_end(gradients: Float[np.ndarray, "row d_model"]) -> Readout:
            return logits_readout(runs.model, trace, upload(gradients, trace.final.device, trace.final.dtype))

        index = runs.batches[number].index
        end = at_end(self._gradients[index])
        others = []
        for partners in self._partners:
            chosen = partners[index]
            others.append(at_end(self._gradients[chosen] * (chosen >= 0)[:, None]))
        return [found.get(reader, end) for reader in self.readers] + others

    def _gradient(self, number: int) -> Float[Tensor, "row d_model"]:
        """The direction of each prompt of a batch at what the final norm gives."""
        runs = self.runs
        return unembed_gradient(runs.model, runs.trace(number, "clean"), partial(runs.metric_of, number))[1]

    def _others(self, rng: np.random.Generator) -> Int[np.ndarray, "shuffle prompt"]:
        """For each shuffling a prompt that asks for something else; -1 for a prompt that all are like."""
        size = np.linalg.norm(self._gradients, axis=1, keepdims=True)
        unit = self._gradients / np.where(size > 0, size, 1)
        unlike = [np.flatnonzero(unit @ row < UNLIKE) for row in unit]
        found = [
            [int(rng.choice(some)) if len(some) else -1 for some in unlike] for _ in range(self.n_shuffled)
        ]
        return np.array(found, dtype=int).reshape(self.n_shuffled, len(unit))


@dataclass(frozen=True)
class Observing:
    """What patches that share passes do to the metric and the direct effects of the prompts of a batch.

    Readers are named, as (node, input of it).
    """

    index: Int[np.ndarray, " row"]
    patches: tuple[Patch, ...]
    ablation: Ablation
    readers: tuple[tuple[str, str | None], ...]
    shuffled: int
    seed: int

    portable = True

    @property
    def rows(self) -> int:
        return len(self.patches) * len(self.index)

    def run(self, runs: Runs) -> Mapping[str, np.ndarray]:
        readers = [(parse_node(name), slot) for name, slot in self.readers]
        effects = DirectEffects.on(runs, readers, self.shuffled, self.seed)
        return effects.observed(runs.number_of(self.index), self.patches, self.ablation)


class _Gathered:
    """Collects what the watches of all passes over a batch saw."""

    def __init__(self, of: DirectEffects, number: int, count: int) -> None:
        shape = len(of.clean), count, len(of.runs.batches[number].index)
        self._of = of
        self.arrays = {name: np.zeros(shape) for name in ("read", "bent")} | {"scale": np.ones(shape)}
        self.arrays["change"] = np.zeros((*shape[:2], of._n_writers, shape[2]))

    def begin(self, number: int, contrast: Contrast, count: int) -> Watch:
        return Effects(contrast, self._of.readouts(number), count)

    def end(self, number: int, members: Sequence[int], watch: Watch) -> None:
        seen, some = cast(Effects, watch), np.array(members)
        found = to_host(seen.change, seen.read, seen.bent, seen.scale)
        for name, array in zip(("change", "read", "bent", "scale"), found, strict=True):
            self.arrays[name][:, some] = array
