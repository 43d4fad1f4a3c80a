"""What is left when parts are knocked out: of the model without the circuit, of both without random parts, of the circuit
without each of its parts.

Everything is told on the scale of faithfulness, F(X) = (m(X) - m(empty)) / (m(full) - m(empty)), a ratio of means over the
same prompts, so that differences of F are paired.

    completeness     F(M \\ C): 0 where the circuit is all there is, 1 where nothing is lost without it
    incompleteness   |F(C \\ K) - F(M \\ K)| over random sets K of the circuit's parts (Wang et al. 2022, arXiv 2211.00593,
                     section 4.2); a complete circuit answers to every knock-out as the model does
    minimality       F(C) - F(C \\ part), for each edge or node

A node is knocked out by cutting every edge that leaves it: what reaches it then matters to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.graph import Interval
from circuitfind.circuit.intervals import Kind, intervals, plain, ratio_interval, ratio_intervals
from circuitfind.config import Level
from circuitfind.errors import UsageError
from circuitfind.model.anatomy import Anatomy

Mask = Bool[np.ndarray, "writer reader"]
Values = Float[np.ndarray, " prompt"]
Index = tuple[int, ...]

DRAWS = 50
"""Random sets of parts that are knocked out."""
NOISE = 1e-5
"""Differences of faithfulness below this are those of arithmetic in single precision."""


@dataclass(frozen=True)
class Completeness:
    """What of the behaviour is left when the circuit's edges are cut and all others stay.

    Attributes:
        left: F(M \\ C).
        ablation: What cut edges carry.
        n_prompts: Prompts behind it.
        evaluations: Circuits run for it.
    """

    left: Interval
    ablation: str
    metric: str
    n_prompts: int
    evaluations: int

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "left": plain(self.left)}


@dataclass(frozen=True)
class KnockOut:
    """One set of parts, and what is left without it.

    Attributes:
        parts: Names of the nodes or edges.
        circuit: F(C \\ K).
        model: F(M \\ K).
    """

    parts: tuple[str, ...]
    circuit: float
    model: float

    @property
    def incompleteness(self) -> float:
        """|F(C \\ K) - F(M \\ K)|."""
        return abs(self.circuit - self.model)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "parts": list(self.parts), "incompleteness": self.incompleteness}


@dataclass(frozen=True)
class Incompleteness:
    """How differently circuit and model answer to random knock-outs.

    Attributes:
        level: Whether the parts are nodes or edges.
        mean: Over the sets, with an interval over prompts for these sets.
        worst: The set with the largest difference.
        worst_difference: F(C \\ K) - F(M \\ K) at that set; it was chosen as the worst on the same prompts, and the interval
            does not know.
        knock_outs: All sets, in the order drawn.
        seed: Of the draws.
    """

    level: Level
    mean: Interval
    worst: KnockOut
    worst_difference: Interval
    knock_outs: tuple[KnockOut, ...]
    seed: int
    ablation: str
    metric: str
    n_prompts: int
    evaluations: int

    def as_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "mean": plain(self.mean),
            "worst": self.worst.as_dict(),
            "worst_difference": plain(self.worst_difference),
            "knock_outs": [knock_out.as_dict() for knock_out in self.knock_outs],
        }


@dataclass(frozen=True)
class Contribution:
    """What one part adds to the circuit.

    Attributes:
        part: Its name.
        share: F(C) - F(C \\ part).
    """

    part: str
    share: Interval

    @property
    def superfluous(self) -> bool:
        """Whether the interval contains 0, up to the noise of single precision: nothing shows that it is needed."""
        return self.share.low <= NOISE and self.share.high >= -NOISE

    @property
    def harmful(self) -> bool:
        """Whether the circuit is surely better without it."""
        return self.share.high < -NOISE

    def as_dict(self) -> dict[str, Any]:
        kept = {"superfluous": self.superfluous, "harmful": self.harmful}
        return {"part": self.part, "contribution": plain(self.share), **kept}


@dataclass(frozen=True)
class Minimality:
    """The contribution of each part of a circuit, when it alone is cut.

    Two parts that stand in for each other are both superfluous by this measure, and not together.

    Attributes:
        level: Whether the parts are nodes or edges.
        faithfulness: F(C).
        parts: The largest contribution first.
    """

    level: Level
    faithfulness: float
    parts: tuple[Contribution, ...]
    ablation: str
    metric: str
    n_prompts: int
    evaluations: int

    @property
    def superfluous(self) -> tuple[str, ...]:
        """Names of the parts that nothing shows to be needed."""
        return tuple(part.part for part in self.parts if part.superfluous)

    @property
    def superfluous_share(self) -> float:
        """How many of the parts that are; 0 for a circuit of none."""
        return len(self.superfluous) / max(1, len(self.parts))

    def as_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "parts": [part.as_dict() for part in self.parts],
            "superfluous": list(self.superfluous),
            "superfluous_share": self.superfluous_share,
        }


def parts_of(anatomy: Anatomy, mask: Mask, level: Level) -> list[tuple[str, Index]]:
    """The parts of a circuit by name, each with the place of its edges in a mask.

    Edges are those of the circuit; nodes are the writers of its edges but for the input, with all that leaves them.
    """
    if level == "edge":
        found = [(int(w), int(r)) for w, r in np.argwhere(mask)]
        return [(str(anatomy.edge_at(*edge)), edge) for edge in found]
    return [(anatomy.writer_names[row], (int(row),)) for row in np.flatnonzero(mask.any(1)) if row]


def cut(mask: Mask, places: Iterable[Index]) -> Mask:
    """Some edges less others."""
    left = np.array(mask)
    for place in places:
        left[place] = False
    return left


def completeness(evaluator: Evaluator, mask: Mask, *, seed: int = 0, kind: Kind = "bca") -> Completeness:
    """What of the behaviour is left without a circuit.

    Raises:
        RunError: There is no behaviour to explain.
    """
    before = evaluator.n_evaluations
    _ = evaluator.gap
    every = evaluator.runs.model.anatomy.edge_mask
    values = evaluator.each_once([every & ~mask])[0]
    left = ratio_interval(values - evaluator.empty, evaluator.full - evaluator.empty, seed=seed, kind=kind)
    return Completeness(left, *_conditions(evaluator, before))


def incompleteness(
    evaluator: Evaluator,
    mask: Mask,
    *,
    level: Level = "node",
    draws: int = DRAWS,
    seed: int = 0,
    kind: Kind = "bca",
) -> Incompleteness:
    """How differently a circuit and the model answer when random parts of the circuit are knocked out of both.

    Runs two circuits for each set that is new, so at the most ``2 * draws``, and the empty one.

    Args:
        evaluator: Runs the circuits.
        mask: Edges of the circuit.
        level: Whether to knock out nodes or edges.
        draws: Sets; each part is in a set with probability 1/2.
        seed: Of the sets and of the bootstrap.
        kind: Of the intervals.

    Raises:
        UsageError: The circuit has no such part, or no set is asked for.
        RunError: There is no behaviour to explain.
    """
    anatomy, before = evaluator.runs.model.anatomy, evaluator.n_evaluations
    parts = parts_of(anatomy, mask, level)
    if not parts or draws < 1:
        raise UsageError(
            f"no {level} of the circuit to knock out" if draws > 0 else f"{draws} sets knock out nothing",
            hint=f"give a circuit that has {level}s, and at least one draw",
        )
    _ = evaluator.gap
    chosen = np.random.default_rng(seed).random((draws, len(parts))) < 0.5

    def masks() -> Iterator[Mask]:
        for picked in chosen:
            places = [parts[i][1] for i in np.flatnonzero(picked)]
            yield cut(mask, places)
            yield cut(anatomy.edge_mask, places)

    values = evaluator.each_once(masks())
    over = values - evaluator.empty
    scale = evaluator.full - evaluator.empty
    f = over.mean(1) / scale.mean()
    knock_outs = tuple(
        KnockOut(tuple(parts[i][0] for i in np.flatnonzero(picked)), float(f[2 * k]), float(f[2 * k + 1]))
        for k, picked in enumerate(chosen)
    )
    worst = max(range(draws), key=lambda k: knock_outs[k].incompleteness)
    gaps = over[0::2] - over[1::2]
    return Incompleteness(
        level,
        _mean_gap(gaps, scale, seed=seed, kind=kind),
        knock_outs[worst],
        ratio_interval(gaps[worst], scale, seed=seed, kind=kind),
        knock_outs,
        seed,
        *_conditions(evaluator, before),
    )


def _mean_gap(gaps: Float[np.ndarray, "set prompt"], scale: Values, *, seed: int, kind: Kind) -> Interval:
    """The mean over sets of |mean gap| / mean scale, with its interval over prompts."""

    def mean_gap(means: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, "draw 1"]:
        below = np.where(means[:, -1:] > 0, means[:, -1:], np.nan)
        return np.asarray((np.abs(means[:, :-1]) / below).mean(1, keepdims=True))

    return intervals(np.column_stack([gaps.T, scale]), mean_gap, seed=seed, kind=kind)[0]


def minimality(
    evaluator: Evaluator, mask: Mask, *, level: Level = "edge", seed: int = 0, kind: Kind = "bca"
) -> Minimality:
    """What each edge or node contributes to a circuit. Runs the circuit, and once more for each of its parts.

    The intervals are one by one at their level: of twenty parts that add nothing about one looks needed by chance.

    Raises:
        RunError: There is no behaviour to explain.
    """
    anatomy, before = evaluator.runs.model.anatomy, evaluator.n_evaluations
    _ = evaluator.gap
    parts = parts_of(anatomy, mask, level)
    whole = evaluator.each_once([mask])[0]
    without = evaluator.each_once(cut(mask, [place]) for _, place in parts)
    scale = evaluator.full - evaluator.empty
    shares = ratio_intervals(whole - without, scale, seed=seed, kind=kind) if parts else []
    found = [Contribution(name, share) for (name, _), share in zip(parts, shares, strict=True)]
    found.sort(key=lambda part: -part.share.value)
    faithfulness = float((whole - evaluator.empty).mean() / scale.mean())
    return Minimality(level, faithfulness, tuple(found), *_conditions(evaluator, before))


def _conditions(evaluator: Evaluator, before: int) -> tuple[str, str, int, int]:
    """What every result says of how it was measured: ablation, metric, prompts, evaluations."""
    runs = evaluator.runs
    return evaluator.ablation, runs.metric.name, len(runs), evaluator.n_evaluations - before
