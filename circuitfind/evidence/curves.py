"""Faithfulness against the share of edges kept, under two rankings, beside random ones.

CMD and CPR are the areas that the MIB benchmark takes (circuit/curve.py), each from its own ranking: CMD, the area between
the curve and 1, from the ranking by |score|; CPR, the area under the curve, from the ranking by signed score. One ranking
gives the other's area too, and it is told, but it is not that of the benchmark. The linear axis gives nine tenths of the
weight to circuits of more than a twentieth of the model, and to the full model, which is 1 whatever the ranking, a quarter:
a ranking at random has a CPR of about 0.25 and a CMD of about 0.75. So the areas over the logarithm of the share are told
beside them, and faithfulness at the smallest shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.curve import SHARES, Curve, area, circuits, edge_order, edge_strengths
from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.graph import Interval
from circuitfind.circuit.intervals import Kind, intervals, plain
from circuitfind.circuit.random import RandomCircuits
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UsageError
from circuitfind.model.anatomy import Anatomy

Ranking = Literal["absolute", "signed"]
Mask = Bool[np.ndarray, "writer reader"]

RANKINGS = 20
"""Random rankings behind a band."""
SMALL = (0.001, 0.005, 0.01)
"""Shares at which faithfulness is told by itself."""
AREAS = ("cmd", "cpr", "cmd_log", "cpr_log")


@dataclass(frozen=True)
class RankedCurve:
    """The curve of one ranking.

    Attributes:
        ranking: By |score| (``absolute``) or by score (``signed``).
        curve: Shares, edges of each connected circuit, faithfulness.
        faithfulness: By share, with its interval over prompts.
        cmd, cpr: Areas over the share, with intervals over prompts.
        cmd_log, cpr_log: The same over the logarithm of the share, divided by the width of the axis.
    """

    ranking: Ranking
    curve: Curve
    faithfulness: tuple[Interval, ...]
    cmd: Interval
    cpr: Interval
    cmd_log: Interval
    cpr_log: Interval

    def as_dict(self) -> dict[str, Any]:
        return {
            "ranking": self.ranking,
            "shares": list(self.curve.shares),
            "edges": list(self.curve.connected),
            "faithfulness": [plain(found) for found in self.faithfulness],
            **{name: plain(getattr(self, name)) for name in AREAS},
        }


@dataclass(frozen=True)
class Spread:
    """Mean, and 2.5 and 97.5 % quantile, over random rankings."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Band:
    """What random rankings do.

    Attributes:
        of: ``rankings``: the connected part of the first edges of a random order, as the benchmark's random baseline has it;
            of small shares nothing is left. ``circuits``: connected ones of as many edges as the ranking by |score| has at
            that share, a harder thing to beat.
        count: Of rankings, or of circuits for each share.
        faithfulness: By share.
        edges: The mean number of edges of their circuits, by share.
    """

    of: Literal["rankings", "circuits"]
    count: int
    seed: int
    faithfulness: tuple[Spread, ...]
    edges: tuple[float, ...]
    cmd: Spread
    cpr: Spread
    cmd_log: Spread
    cpr_log: Spread

    def as_dict(self) -> dict[str, Any]:
        spread = {name: vars(getattr(self, name)).copy() for name in AREAS}
        return {
            **vars(self),
            **spread,
            "faithfulness": [vars(found).copy() for found in self.faithfulness],
            "edges": list(self.edges),
        }


@dataclass(frozen=True)
class Curves:
    """Both curves of some scores, and what chance does.

    Attributes:
        absolute: Of the ranking by |score|; CMD is its ``cmd``.
        signed: Of the ranking by score; CPR is its ``cpr``.
        random: Of random rankings; none if none was asked for.
        same_size: Of random circuits of the sizes of ``absolute``; none if none was asked for.
    """

    absolute: RankedCurve
    signed: RankedCurve
    random: Band | None
    same_size: Band | None
    ablation: str
    metric: str
    n_prompts: int
    evaluations: int

    @property
    def cmd(self) -> Interval:
        """Circuit-model distance, from the ranking by |score|."""
        return self.absolute.cmd

    @property
    def cpr(self) -> Interval:
        """Circuit performance ratio, from the ranking by score."""
        return self.signed.cpr

    def at(self, share: float) -> Interval:
        """Faithfulness at one of the shares, ranked by |score|.

        Raises:
            ValueError: The curve was not taken there.
        """
        return self.absolute.faithfulness[self.absolute.curve.shares.index(share)]

    def as_dict(self) -> dict[str, Any]:
        shares = [share for share in SMALL if share in self.absolute.curve.shares]
        return {
            "cmd": {"ranking": "absolute", **plain(self.absolute.cmd)},
            "cpr": {"ranking": "signed", **plain(self.signed.cpr)},
            "cmd_log": {"ranking": "absolute", **plain(self.absolute.cmd_log)},
            "cpr_log": {"ranking": "signed", **plain(self.signed.cpr_log)},
            "at": {f"{share:g}": {"ranking": "absolute", **plain(self.at(share))} for share in shares},
            "absolute": self.absolute.as_dict(),
            "signed": self.signed.as_dict(),
            "random": None if self.random is None else self.random.as_dict(),
            "same_size": None if self.same_size is None else self.same_size.as_dict(),
            "ablation": self.ablation,
            "metric": self.metric,
            "n_prompts": self.n_prompts,
            "evaluations": self.evaluations,
        }


def curves(
    evaluator: Evaluator,
    scores: Scores,
    *,
    rankings: int = RANKINGS,
    same_size: int = 0,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    kind: Kind = "bca",
) -> Curves:
    """Both curves of some scores, and those of random rankings.

    Runs at the most ``len(shares) * (2 + rankings + same_size)`` circuits; the full and the empty one are not run again.

    Args:
        evaluator: Runs the circuits.
        scores: Of edges or nodes; node scores rank edges by the weaker of their ends.
        rankings: Random rankings for the band.
        same_size: Random connected circuits for each share, of the sizes of the ranking by |score|.
        shares: Of the model's edges, rising.
        seed: Of what is random, and of the bootstrap.
        kind: Of the intervals.

    Raises:
        UsageError: The scores are those of another model.
        RunError: There is no behaviour to explain.
    """
    anatomy, before = evaluator.runs.model.anatomy, evaluator.n_evaluations
    if scores.anatomy != anatomy:
        raise UsageError(
            "the scores are those of a model with other parts",
            hint="evaluate them on the model, and with the nodes, that they were computed for",
        )
    _ = evaluator.gap
    absolute, signed = (
        _ranked(evaluator, scores, ranking, shares, seed=seed, kind=kind)
        for ranking in ("absolute", "signed")
    )
    return Curves(
        absolute,
        signed,
        random_rankings(evaluator, rankings, shares=shares, seed=seed) if rankings else None,
        same_sizes(evaluator, absolute.curve, same_size, seed=seed) if same_size else None,
        evaluator.ablation,
        evaluator.runs.metric.name,
        len(evaluator.runs),
        evaluator.n_evaluations - before,
    )


def _ranked(
    evaluator: Evaluator,
    scores: Scores,
    ranking: Ranking,
    shares: Sequence[float],
    *,
    seed: int,
    kind: Kind,
) -> RankedCurve:
    order = edge_order(scores.anatomy, edge_strengths(scores, signed=ranking == "signed"))
    masks = circuits(scores.anatomy, order, shares)
    over = evaluator.each_once(masks) - evaluator.empty
    scale = evaluator.full - evaluator.empty
    linear, log = _weights(shares)

    def quantities(means: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, "draw quantity"]:
        f = means[:, :-1] / np.where(means[:, -1:] > 0, means[:, -1:], np.nan)
        gap = np.abs(1 - f)
        return np.column_stack([f, gap @ linear, f @ linear, gap @ log, f @ log])

    found = intervals(np.column_stack([over.T, scale]), quantities, seed=seed, kind=kind)
    f = np.array([one.value for one in found[: len(shares)]])
    line = Curve(tuple(shares), tuple(int(mask.sum()) for mask in masks), f)
    return RankedCurve(ranking, line, tuple(found[: len(shares)]), *found[len(shares) :])


def random_rankings(
    evaluator: Evaluator, count: int = RANKINGS, *, shares: Sequence[float] = SHARES, seed: int = 0
) -> Band:
    """The curves of random orders of the model's edges."""
    anatomy = evaluator.runs.model.anatomy
    rng = np.random.default_rng(seed)

    def masks() -> Iterator[Mask]:
        for _ in range(count):
            yield from circuits(anatomy, _shuffled(anatomy, rng), shares)

    return _band(evaluator, "rankings", masks(), count, shares, seed)


def same_sizes(evaluator: Evaluator, line: Curve, count: int = RANKINGS, *, seed: int = 0) -> Band:
    """The curves of random connected circuits that have as many edges as those of another curve."""
    rng = np.random.default_rng(seed)
    draws = RandomCircuits(evaluator.runs.model.anatomy)
    masks = (draws.draw(size, rng) for _ in range(count) for size in line.connected)
    return _band(evaluator, "circuits", masks, count, line.shares, seed)


def _shuffled(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[int, int]]:
    return [(int(w), int(r)) for w, r in rng.permutation(np.argwhere(anatomy.edge_mask))]


def _band(
    evaluator: Evaluator,
    of: Literal["rankings", "circuits"],
    masks: Iterator[Mask],
    count: int,
    shares: Sequence[float],
    seed: int,
) -> Band:
    sizes: list[int] = []

    def counted() -> Iterator[Mask]:
        for mask in masks:
            sizes.append(int(mask.sum()))
            yield mask

    gap = evaluator.gap
    f = ((evaluator.each_once(counted()).mean(1) - evaluator.empty.mean()) / gap).reshape(count, len(shares))
    linear, log = _weights(shares)
    away = np.abs(1 - f)
    return Band(
        of,
        count,
        seed,
        tuple(_spread(column) for column in f.T),
        tuple(float(size) for size in np.reshape(sizes, f.shape).mean(0)),
        *(_spread(areas) for areas in (away @ linear, f @ linear, away @ log, f @ log)),
    )


def _spread(values: Float[np.ndarray, " draw"]) -> Spread:
    low, high = np.quantile(values, [0.025, 0.975])
    return Spread(float(values.mean()), float(low), float(high))


def _weights(shares: Sequence[float]) -> tuple[Float[np.ndarray, " share"], Float[np.ndarray, " share"]]:
    """The weight of each share in an area over the share, and in one over its logarithm."""
    rows = np.eye(len(shares))
    linear, log = ([area(shares, row, log=scale) for row in rows] for scale in (False, True))
    return np.array(linear), np.array(log)
