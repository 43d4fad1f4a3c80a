"""Controls: what a circuit must do better than before anybody believes it.

    random circuits     connected circuits of the same size, grown along random paths
    shuffled weights    as many edges as a method picks on a model whose weights are shuffled, run in the real model
    cross-task          as many edges as it picks for another task, run on this one
    shuffled pairs      the circuit itself, on prompts with the answers of others: it should carry little

The first three are compared by how far they are from faithful, |1 - f|, since a circuit that does twice as much as the
model is no better than one that does nothing; the last by what is carried, m(circuit) - m(empty). All on the same prompts.
A control that equals the circuit edge by edge says nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.graph import Interval, connected
from circuitfind.circuit.intervals import BOOTSTRAP, intervals
from circuitfind.circuit.prune import prefix_mask, rank
from circuitfind.circuit.random import RandomCircuits
from circuitfind.circuit.scores import Scores
from circuitfind.evidence.report import Control
from circuitfind.model.anatomy import Anatomy

Mask = Bool[np.ndarray, "writer reader"]

RATE = 0.05
"""How often a circuit may be called better than random ones that are as good."""

TRIES = 20
"""Random circuits that are looked at for each that is wanted, where a model has few of a size."""

FEWEST = 5
"""Other circuits of a size that a model must have; where it has no more than these all are run, and none may be as good."""


def random_circuits(
    evaluator: Evaluator,
    mask: Mask,
    *,
    draws: int,
    seed: int = 0,
    beside: Sequence[Mask] = (),
) -> Control:
    """Circuits of the same size that were picked by chance, no two of them the same.

    Args:
        evaluator: On the prompts and under the ablation that count.
        mask: The circuit.
        draws: How many; at least 19, or no rank test can reject at 5 %.
        seed: That they are drawn from.
        beside: Circuits that are no controls, though they may be drawn.
    """
    anatomy, size = evaluator.runs.model.anatomy, int(mask.sum())
    generator = np.random.default_rng(seed)
    source, others = RandomCircuits(anatomy), []
    known = {one.tobytes() for one in (mask, *beside)}
    for _ in range(TRIES * draws):
        one = source.draw(size, generator)
        if one.tobytes() not in known:
            known.add(one.tobytes())
            others.append(one)
        if len(others) == draws:
            break
    own, *found = evaluator.faithfulness([mask, *others])
    misses = np.abs(1 - np.array(found))
    as_good = int((misses <= abs(1 - own)).sum())
    p = (1 + as_good) / (1 + len(others))
    exhausted = len(others) < draws  # many times as many draws found no more: there are about as many
    enough = len(others) >= FEWEST if exhausted else 1 / (1 + len(others)) <= RATE
    best = float(np.array(found)[misses.argmin()]) if len(found) else float("nan")
    return Control(
        name="random circuits",
        what=(
            f"{as_good} of {'all ' if exhausted else ''}{len(others)} with {size} edges are as faithful; the best has {best:.2f}"
            if enough
            else f"only {len(others)} others of {size} edges were found, too few to tell"
        ),
        statistic="faithfulness",
        own=float(own),
        values=tuple(map(float, found)),
        beaten=(not as_good if exhausted else bool(p <= RATE)) if enough else None,
        p_value=p,
    )


def other_ranking(
    evaluator: Evaluator,
    mask: Mask,
    scores: Sequence[Scores],
    name: str,
    what: str,
    *,
    seed: int = 0,
    leave_out_equal: bool = False,
) -> Control:
    """The strongest edges of scores that were not made for this task or model, as many as the circuit has.

    Args:
        evaluator: On the prompts and under the ablation that count.
        mask: The circuit.
        scores: One for each draw of the control.
        name: Of the control.
        what: Where the scores are from.
        seed: Of the bootstrap.
        leave_out_equal: Whether a draw that picks the circuit itself is no control; it is lost to otherwise.
    """
    size = int(mask.sum())
    masks = [strongest(one, size) for one in scores]
    others = [one for one in masks if not (one == mask).all()]
    if not others or (len(others) < len(masks) and not leave_out_equal):
        return Control(
            name, f"{what} picks the circuit itself", "faithfulness", float("nan"), (), beaten=False
        )
    own, *values = evaluator.values([mask, *others])
    full, empty = evaluator.full, evaluator.empty
    gaps = [_how_much_worse(one, own, full, empty, seed=seed) for one in values]
    found = [float((one - empty).mean() / evaluator.gap) for one in values]
    hardest = min(range(len(gaps)), key=lambda i: gaps[i].low)
    return Control(
        name=name,
        what=f"{what}, {size} edges: faithfulness {round(found[hardest], 2) + 0.0:.2f}",  # without the sign of zero
        statistic="faithfulness",
        own=float((own - empty).mean() / evaluator.gap),
        values=tuple(found),
        beaten=gaps[hardest].low > 0,
        difference=gaps[hardest],
    )


def shuffled_pairs(
    own: Float[np.ndarray, " prompt"], carried: Sequence[Float[np.ndarray, " prompt"]], *, seed: int = 0
) -> Control:
    """What the circuit carries of tasks that are none.

    Args:
        own: ``m(circuit) - m(empty)`` of each prompt of the task.
        carried: The same of each prompt of each draw of shuffled pairs.
        seed: Of the bootstrap.
    """
    draws = np.random.default_rng(seed).integers(0, len(own), size=(BOOTSTRAP, len(own)))
    low = float(np.quantile(own[draws].mean(1), RATE / 2))
    found = [float(one.mean()) for one in carried]
    most = max(found, key=abs)
    return Control(
        name="shuffled pairs",
        what=f"on prompts with the answers of others it carries up to {most:.3g} of the metric, and {own.mean():.3g} on its own",
        statistic="metric carried",
        own=float(own.mean()),
        values=tuple(found),
        beaten=low > abs(most),
        p_value=(1 + sum(abs(one) >= own.mean() for one in found)) / (1 + len(found)),
    )


def not_made(name: str, why: str) -> Control:
    """A control that could not be made."""
    return Control(name, why, "", float("nan"), (), beaten=None)


def strongest(scores: Scores, size: int) -> Mask:
    """The connected part of the shortest prefix of a ranking in which that has at least ``size`` edges.

    At least, so that the control is no smaller than the circuit; all that there is where that is less.
    """
    anatomy, order = scores.anatomy, rank(scores)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if _connected(anatomy, order, middle).sum() >= size:
            high = middle
        else:
            low = middle + 1
    return _connected(anatomy, order, low)


def _connected(anatomy: Anatomy, order: list[tuple[int, int]], size: int) -> Mask:
    return connected(anatomy, prefix_mask(anatomy, order, size))


def _how_much_worse(
    other: Float[np.ndarray, " prompt"],
    own: Float[np.ndarray, " prompt"],
    full: Float[np.ndarray, " prompt"],
    empty: Float[np.ndarray, " prompt"],
    *,
    seed: int,
) -> Interval:
    """``|1 - f(other)| - |1 - f(own)|`` with its percentile interval over prompts, drawn together for both."""

    def gaps(means: np.ndarray) -> np.ndarray:
        below = np.where(means[:, 2:] > 0, means[:, 2:], np.nan)
        misses = np.abs(1 - means[:, :2] / below)
        return np.asarray(misses[:, :1] - misses[:, 1:])

    columns = np.column_stack([other - empty, own - empty, full - empty])
    return intervals(columns, gaps, seed=seed, kind="percentile")[0]
