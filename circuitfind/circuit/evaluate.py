"""How much of the behaviour a circuit carries, measured by running it.

``faithfulness = (m(C) - m(empty)) / (m(full) - m(empty))``, a ratio of means over prompts, never a mean of ratios. The full
model is 1 and the empty circuit 0 by construction, whatever the ablation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.graph import Evaluation, Interval
from circuitfind.circuit.intervals import BOOTSTRAP, bootstrap_ratio
from circuitfind.config import Ablation
from circuitfind.errors import RunError, UnsupportedError
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs

__all__ = ["BOOTSTRAP", "Evaluator", "bootstrap_ratio", "evaluate_twice", "measured"]

AT_ONCE = 64
"""Circuits handed to the model together, where there may be very many."""


class Evaluator:
    """Runs circuits under one ablation; counts what it ran.

    Attributes:
        n_evaluations: Circuits evaluated so far, each one patched pass over all prompts.
    """

    def __init__(self, runs: Runs, ablation: Ablation) -> None:
        self.runs = runs
        self.ablation: Ablation = ablation
        self.n_evaluations = 0

    def values(
        self, masks: Sequence[Bool[np.ndarray, "writer reader"]]
    ) -> Float[np.ndarray, "circuit prompt"]:
        """The metric of each prompt when only the marked edges carry current values."""
        self.n_evaluations += len(masks)
        every = self.runs.model.anatomy.edge_mask
        return self.runs.patched([Patch(edges=every & ~mask) for mask in masks], ablation=self.ablation)

    def each_once(
        self, masks: Iterable[Bool[np.ndarray, "writer reader"]]
    ) -> Float[np.ndarray, "circuit prompt"]:
        """The same as ``values``, some masks at a time, and each one only once however often it is there.

        The full and the empty circuit take the values of ``full`` and ``empty``, so that theirs is exactly 1 and 0.
        """
        every = self.runs.model.anatomy.edge_mask
        known = {np.packbits(every).tobytes(): self.full, bytes(len(np.packbits(every))): self.empty}
        order: list[bytes] = []
        waiting: dict[bytes, Bool[np.ndarray, "writer reader"]] = {}

        def run() -> None:
            known.update(zip(waiting, self.values(list(waiting.values())), strict=True))
            waiting.clear()

        for mask in masks:
            key = np.packbits(mask & every).tobytes()
            order.append(key)
            if key not in known and key not in waiting:
                waiting[key] = mask
                if len(waiting) == AT_ONCE:
                    run()
        if waiting:
            run()
        return np.array([known[key] for key in order]).reshape(len(order), len(self.full))

    @property
    def full(self) -> Float[np.ndarray, " prompt"]:
        """The metric of each prompt in the untouched model."""
        return self.runs.clean

    @cached_property
    def empty(self) -> Float[np.ndarray, " prompt"]:
        """The metric of each prompt when every edge is ablated."""
        return np.asarray(self.values([np.zeros_like(self.runs.model.anatomy.edge_mask)])[0])

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
                f"the metric is {full:.4g} in the model and {empty:.4g} with every edge ablated ({self.ablation}): "
                "there is no behaviour left to explain",
                hint="check that the corrupted prompts change the answer, or choose another counterfactual, metric or ablation",
            )
        return full - empty

    def faithfulness(
        self, masks: Sequence[Bool[np.ndarray, "writer reader"]]
    ) -> Float[np.ndarray, " circuit"]:
        """Faithfulness of each circuit, without interval."""
        return np.asarray((self.values(masks).mean(1) - self.empty.mean()) / self.gap)

    def evaluate(self, mask: Bool[np.ndarray, "writer reader"], *, seed: int = 0) -> Evaluation:
        """One circuit with its interval."""
        _ = self.gap
        values = self.values([mask])[0]
        return measured(values, self.full, self.empty, self.ablation, self.runs.metric.name, seed=seed)


def measured(
    values: Float[np.ndarray, " prompt"],
    full: Float[np.ndarray, " prompt"],
    empty: Float[np.ndarray, " prompt"],
    ablation: str,
    metric: str,
    *,
    seed: int = 0,
) -> Evaluation:
    """What was measured of a circuit, with its interval.

    Args:
        values: The metric of each prompt in the circuit.
        full: In the untouched model.
        empty: With everything ablated.
        ablation: What ablated parts carry.
        metric: Its name.
        seed: Of the bootstrap.
    """
    low, high = bootstrap_ratio(values - empty, full - empty, seed=seed)
    circuit, none, every = (float(x.mean()) for x in (values, empty, full))
    share = Interval((circuit - none) / (every - none), low, high)
    return Evaluation(ablation, metric, share, circuit, every, none, len(values))


def evaluate_twice(
    evaluator: Evaluator, mask: Bool[np.ndarray, "writer reader"]
) -> tuple[list[Evaluation], list[str]]:
    """A circuit under the evaluator's ablation and the next other one that the prompts allow, and why not others."""
    found, notes = [evaluator.evaluate(mask)], []
    order: tuple[Ablation, ...] = ("mean", "resample", "zero")
    for other in (a for a in order if a != evaluator.ablation):
        try:
            found.append(Evaluator(evaluator.runs, other).evaluate(mask))
            break
        except UnsupportedError as error:
            notes.append(error.what)
    return found, notes
