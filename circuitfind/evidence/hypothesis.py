"""Hypothesis tests of a circuit (Shi et al. 2024, arXiv 2410.13032).

Three ask whether the circuit is ideal, and can only speak against it; two ask whether it is better than chance, and can only
speak for it. s(X) is the metric of each prompt under the edges X, M the model, C the circuit.

    equivalence        s(C) beats s(M) on about half of the prompts
    independence       s(M \\ C) says nothing about s(M)
    minimality         each edge matters more than random edges that were added to the circuit
    sufficiency        C is closer to M than random circuits of its size
    partial necessity  without C the model is further from itself than without such random circuits

How far apart two sets of edges are is the mean over prompts of the squared difference of their metrics. The last three
count among random draws: a binomial tail at a quantile. A test that could not have rejected, whatever the outcome, says so:
at the quantile 0.9 twenty draws cannot give a p-value of 0.05, and a hundred can give one of 0.00003.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.json_form import finite
from circuitfind.circuit.random import RandomCircuits
from circuitfind.errors import UsageError
from circuitfind.evidence.knockouts import NOISE, cut, parts_of
from circuitfind.evidence.statistics import at_least, at_most, far_from_half, hsic_test

Mask = Bool[np.ndarray, "writer reader"]
Values = Float[np.ndarray, " prompt"]
Says = Literal["for", "against", "nothing"]

ALPHA = 0.05
DRAWS = 100
"""Random circuits, and inflated ones."""
PERMUTATIONS = 1000
QUANTILE = 0.9
"""q*: what a circuit must beat this share of."""
EPSILON = 0.1
"""How far from 1/2 the share of wins may be."""


@dataclass(frozen=True)
class Test:
    """One test.

    Attributes:
        name: Which.
        null: What is tested, in words.
        statistic: What was seen; ``statistic_name`` says of what kind.
        p_value: How likely it is under the null, or something further from it.
        smallest_p: The smallest p-value that so many prompts and draws could have given.
        alpha: Rejected at or below this.
        meaning: What the outcome means for the circuit.
        n_prompts: Prompts behind it.
        draws: Random circuits, inflated circuits or permutations.
        evaluations: Circuits run for it.
        facts: More, such as the p-value of each edge.
    """

    __test__ = False  # it is no test of pytest's

    name: str
    null: str
    statistic_name: str
    statistic: float
    p_value: float
    smallest_p: float
    alpha: float
    says: Says
    meaning: str
    n_prompts: int
    draws: int
    evaluations: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rejected(self) -> bool:
        """Whether the null is."""
        return self.p_value <= self.alpha

    def as_dict(self) -> dict[str, Any]:
        numbers = {name: finite(getattr(self, name)) for name in ("statistic", "p_value", "smallest_p")}
        return {**vars(self), **numbers, "rejected": self.rejected, "facts": dict(self.facts)}


def all_tests(
    evaluator: Evaluator,
    mask: Mask,
    *,
    draws: int = DRAWS,
    permutations: int = PERMUTATIONS,
    alpha: float = ALPHA,
    seed: int = 0,
) -> tuple[Test, ...]:
    """All five, one by one at ``alpha``. Runs about ``4 * draws`` circuits, and one for each edge of the circuit.

    Without independence where there is only one prompt, and without minimality where the circuit is the whole model.

    Raises:
        UsageError: The circuit is empty, or there is nothing to draw.
        RunError: There is no behaviour to explain.
    """
    found = [equivalence(evaluator, mask, alpha=alpha)]
    if len(evaluator.full) > 1:
        found.append(independence(evaluator, mask, permutations=permutations, alpha=alpha, seed=seed))
    if (evaluator.runs.model.anatomy.edge_mask & ~mask).any():
        found.append(minimality(evaluator, mask, draws=draws, alpha=alpha, seed=seed))
    found.append(sufficiency(evaluator, mask, draws=draws, alpha=alpha, seed=seed))
    found.append(partial_necessity(evaluator, mask, draws=draws, alpha=alpha, seed=seed))
    return tuple(found)


def equivalence(evaluator: Evaluator, mask: Mask, *, epsilon: float = EPSILON, alpha: float = ALPHA) -> Test:
    """Whether circuit and model win against each other about equally often. Runs the circuit.

    H0: |P(s(C) > s(M)) - 1/2| < epsilon. The statistic is the share of prompts that the circuit wins, a tie counting half; the
    p-value is the exact binomial chance of a share as far from 1/2, at 1/2 + epsilon.

    Raises:
        RunError: There is no behaviour to explain.
    """
    before, noise = evaluator.n_evaluations, NOISE * evaluator.gap
    gaps = evaluator.each_once([mask])[0] - evaluator.full
    n, ties = len(gaps), int((np.abs(gaps) <= noise).sum())
    wins = float((gaps > noise).sum()) + ties / 2
    p = far_from_half(wins, n, epsilon)
    better = "better" if wins > n / 2 else "worse"
    return _test(
        evaluator,
        before,
        name="equivalence",
        null=f"the circuit does better than the model on a share of prompts within {epsilon:g} of one half",
        statistic_name="share of prompts on which the circuit does better",
        statistic=wins / n,
        p_value=p,
        smallest_p=far_from_half(n, n, epsilon),
        alpha=alpha,
        rejected=("against", f"the circuit does {better} than the model too often to be equivalent to it"),
        kept="nothing shows that the circuit is not equivalent to the model",
        draws=0,
        facts={"epsilon": epsilon, "ties": ties, "mean_difference": float(gaps.mean())},
    )


def independence(
    evaluator: Evaluator,
    mask: Mask,
    *,
    permutations: int = PERMUTATIONS,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Test:
    """Whether the metric without the circuit still tells something about the metric of the model. Runs the complement.

    H0: s(M \\ C) and s(M) are independent. A permutation test of the Hilbert-Schmidt independence criterion, with Gaussian
    kernels as wide as the median distance of each. Prompts that share a template are no independent draws: what they share
    can show in both metrics, and is not the circuit's fault.

    Raises:
        UsageError: There are fewer than two prompts, or no permutation.
        RunError: There is no behaviour to explain.
    """
    before = evaluator.n_evaluations
    _ = evaluator.gap
    if len(evaluator.full) < 2 or permutations < 1:
        raise UsageError("nothing to permute", hint="give at least two prompts and one permutation")
    rest = evaluator.each_once([evaluator.runs.model.anatomy.edge_mask & ~mask])[0]
    found = hsic_test(
        _rounded(evaluator, rest), _rounded(evaluator, evaluator.full), permutations=permutations, seed=seed
    )
    return _test(
        evaluator,
        before,
        name="independence",
        null="the metric without the circuit is independent of the metric of the model",
        statistic_name="Hilbert-Schmidt independence criterion",
        statistic=found.statistic,
        p_value=found.p_value,
        smallest_p=max(1 / (1 + permutations), 1 / math.factorial(min(len(rest), 20))),
        alpha=alpha,
        rejected=("against", "what is left without the circuit still goes along with what the model does"),
        kept="nothing shows that what is left without the circuit goes along with what the model does",
        draws=permutations,
        facts={"seed": seed},
    )


def minimality(
    evaluator: Evaluator,
    mask: Mask,
    *,
    draws: int = DRAWS,
    quantile: float = QUANTILE,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Test:
    """Whether each edge matters more than random ones. Runs two circuits for each draw, and one for each edge.

    H0, for each edge: cutting it changes the circuit more than cutting an added edge changes an inflated circuit, at least at
    the share ``quantile`` of the time. An inflated circuit is the circuit and one random way more, of which one edge is cut. The
    p-values of the edges are multiplied by their number (Bonferroni).

    Raises:
        UsageError: The circuit has no edge, or is the whole model, or there is no draw.
        RunError: There is no behaviour to explain.
    """
    before, anatomy = evaluator.n_evaluations, evaluator.runs.model.anatomy
    _check(mask, draws)
    random, rng = RandomCircuits(anatomy), np.random.default_rng(seed)
    edges = parts_of(anatomy, mask, "edge")

    def masks() -> Iterator[Mask]:
        yield mask
        yield from (cut(mask, [place]) for _, place in edges)
        for _ in range(draws):
            inflated = random.inflate(mask, rng)
            w, r = rng.permutation(np.argwhere(inflated & ~mask))[0]
            yield inflated
            yield cut(inflated, [(int(w), int(r))])

    whole, *values = evaluator.each_once(masks())
    pairs = values[len(edges) :]
    added = np.array([_apart(one, other) for one, other in zip(pairs[::2], pairs[1::2], strict=True)])
    found: list[dict[str, Any]] = []
    for (name, _), value in zip(edges, values[: len(edges)], strict=True):
        effect = _apart(whole, value)
        wins = int((effect > added + _noise(evaluator)).sum())
        p = min(1.0, len(edges) * at_most(wins, draws, quantile))
        found.append({"edge": name, "effect": effect, "share": wins / draws, "p_value": p})
    found.sort(key=lambda one: (one["p_value"], one["effect"], str(one["edge"])))
    weak = [one["edge"] for one in found if one["p_value"] <= alpha]
    return _test(
        evaluator,
        before,
        name="minimality",
        null=f"every edge matters more than {quantile:.0%} of random edges that are added to the circuit",
        statistic_name="smallest share of added edges that an edge of the circuit matters more than",
        statistic=min(one["share"] for one in found),
        p_value=found[0]["p_value"],
        smallest_p=min(1.0, len(edges) * at_most(0, draws, quantile)),
        alpha=alpha,
        rejected=(
            "against",
            f"{len(weak)} of {len(edges)} edges beat too few random ones to be needed: the circuit is not minimal",
        ),
        kept="nothing shows that an edge of the circuit beats too few random ones to be needed",
        draws=draws,
        facts={"quantile": quantile, "edges": found, "not_needed": weak, "seed": seed},
    )


def sufficiency(
    evaluator: Evaluator,
    mask: Mask,
    *,
    draws: int = DRAWS,
    quantile: float = QUANTILE,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Test:
    """Whether the circuit is closer to the model than random ones of its size. Runs it and one for each draw.

    H0: P(C is closer to M than a random circuit) <= ``quantile``. A draw as close as the circuit counts against it.

    Raises:
        UsageError: The circuit has no edge, or there is no draw.
        RunError: There is no behaviour to explain.
    """
    words = (
        f"the circuit is closer to the model than at most {quantile:.0%} of random circuits of its size",
        "share of random circuits that are further from the model",
        f"the circuit is closer to the model than more than {quantile:.0%} of random ones of its size",
    )
    return _beside_random(evaluator, mask, "sufficiency", words, (draws, quantile, alpha, seed))


def partial_necessity(
    evaluator: Evaluator,
    mask: Mask,
    *,
    draws: int = DRAWS,
    quantile: float = QUANTILE,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Test:
    """Whether the model loses more without the circuit than without random ones. Runs the complements.

    H0: P(M \\ C is further from M than M \\ R) <= ``quantile``, for random circuits R of the same size.

    Raises:
        UsageError: The circuit has no edge, or there is no draw.
        RunError: There is no behaviour to explain.
    """
    words = (
        f"cutting the circuit changes the model more than cutting at most {quantile:.0%} of random ones of its size",
        "share of random circuits whose cutting changes the model less",
        f"cutting the circuit changes the model more than cutting more than {quantile:.0%} of random ones of its size",
    )
    return _beside_random(evaluator, mask, "partial necessity", words, (draws, quantile, alpha, seed))


def _beside_random(
    evaluator: Evaluator,
    mask: Mask,
    name: Literal["sufficiency", "partial necessity"],
    words: tuple[str, str, str],
    options: tuple[int, float, float, int],
) -> Test:
    """A test against random circuits: the words are its null, what its statistic is, and what rejection means."""
    draws, quantile, alpha, seed = options
    without = name == "partial necessity"
    before, anatomy = evaluator.n_evaluations, evaluator.runs.model.anatomy
    _check(mask, draws)
    random, rng = RandomCircuits(anatomy), np.random.default_rng(seed)
    size, noise = int(mask.sum()), _noise(evaluator)

    def masks() -> Iterator[Mask]:
        for m in chain([mask], (random.draw(size, rng) for _ in range(draws))):
            yield anatomy.edge_mask & ~m if without else m

    values = evaluator.each_once(masks())
    apart = np.array([_apart(one, evaluator.full) for one in values])
    wins = int((apart[0] > apart[1:] + noise if without else apart[0] + noise < apart[1:]).sum())
    return _test(
        evaluator,
        before,
        name=name,
        null=words[0],
        statistic_name=words[1],
        statistic=wins / draws,
        p_value=at_least(wins, draws, quantile),
        smallest_p=at_least(draws, draws, quantile),
        alpha=alpha,
        rejected=("for", words[2]),
        kept=f"nothing shows that {words[2]}",
        draws=draws,
        facts={
            "quantile": quantile,
            "distance": float(apart[0]),
            "random_median": float(np.median(apart[1:])),
            "seed": seed,
        },
    )


def _test(
    evaluator: Evaluator,
    before: int,
    *,
    p_value: float,
    smallest_p: float,
    alpha: float,
    rejected: tuple[Says, str],
    kept: str,
    **more: Any,
) -> Test:
    """A result, with what it means."""
    says, meaning = rejected if p_value <= alpha else ("nothing", kept)
    if smallest_p > alpha:
        meaning = f"so few prompts or draws could show nothing (no p-value below {smallest_p:.2g})"
    return Test(
        p_value=p_value,
        smallest_p=smallest_p,
        alpha=alpha,
        says=says,
        meaning=meaning,
        n_prompts=len(evaluator.full),
        evaluations=evaluator.n_evaluations - before,
        **more,
    )


def _check(mask: Mask, draws: int) -> None:
    if not mask.any():
        raise UsageError("the circuit has no edge", hint="give a circuit with edges")
    if draws < 1:
        raise UsageError(f"{draws} draws show nothing", hint="give at least 1; 100 is a good number")


def _apart(one: Values, other: Values) -> float:
    """The mean squared difference."""
    return float(((one - other) ** 2).mean())


def _noise(evaluator: Evaluator) -> float:
    """Mean squared differences below this are those of arithmetic."""
    return (NOISE * evaluator.gap) ** 2


def _rounded(evaluator: Evaluator, values: Values) -> Values:
    """Values without the noise of arithmetic, which a kernel as wide as their median distance would blow up."""
    step = NOISE * evaluator.gap
    return np.asarray(np.round(values / step) * step)
