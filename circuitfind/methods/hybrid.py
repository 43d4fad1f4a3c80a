"""Hybrid: attribution proposes, exact patching verifies, and the run says how much the proposal can have missed.

1. ``propose`` names the attribution method; its options follow behind colons (``propose=eap-ig:steps=10``).
2. The ``verify`` strongest of its list and as many random ones of the rest are patched one by one, which gives their exact
   effects (of small models at most half of the edges are verified, and then every edge is patched).
3. The value of an edge is the larger of proposal and exact effect, by magnitude and with its sign. Of both, because pruning
   drops what is not needed by running circuits, but never finds what was ranked last: each arm of an OR of two heads
   has an exact effect of zero under noising, and an edge that attribution is blind to has a score of zero.

What can be missing: an edge that was not among the K verified ones belongs to the true k strongest only if its exact
effect is at least theta_k, the k-th largest among those of the K. Theta_k is settled before the sample is drawn. If x of n
random ones of the N others reach it, then with a confidence of 95 % at most M of the N do, where M is the largest
number under which x or fewer of n turn up with a probability above 5 % (hypergeometric: one-sided, exact, nothing is assumed
of how effects are distributed). ``at_most`` is M - x: those that were drawn are known. Each k has a confidence of its own.

AtP* (Kramar et al. 2024, arXiv 2403.00745) bounds the probability that a node of a given effect was missed, from patches
of random subsets of the remaining nodes. Here single edges or nodes are drawn and patched alone, so it need not be assumed
that the effects in a subset add up; what is bounded is how many are missing; and one pass that replaces all that were
neither verified nor drawn says what they do together (``rest_together``), which is no bound, since effects can cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lgamma
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from circuitfind.circuit.changes import spearman
from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Level, Positions
from circuitfind.errors import UsageError, did_you_mean
from circuitfind.methods import METHODS, get_method
from circuitfind.methods.base import Cost, Method
from circuitfind.methods.exact import effects, needs_corrupted_run, refuse_zeros
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs

CONFIDENCE = 0.95
BOUNDS_AT = 10
"""The bound is told for the true 10 strongest, and for as many as were verified."""
PROPOSALS = ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "relp", "gim", "atp", "atp-star")
"""Methods that estimate an effect in units of the metric, so that an exact effect can be set beside the estimate."""

Part = Int[np.ndarray, "_"]


@dataclass(frozen=True)
class Hybrid:
    """See the module.

    Attributes:
        propose: The method that proposes, with its options behind colons.
        verify: How many of the strongest, and how many random ones of the rest, are patched exactly.
        seed: Of the random ones.
    """

    propose: str = "eap-ig"
    verify: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.verify < 1:
            raise UsageError(
                f"hybrid: verify={self.verify} verifies nothing",
                hint="give verify=1 or more, or --method eap-ig",
            )
        if self.seed < 0:
            raise UsageError(f"hybrid: seed={self.seed} is no seed", hint="give 0 or more")
        self.proposal()

    @property
    def name(self) -> str:
        return "hybrid"

    @property
    def level(self) -> Level:
        return self.proposal().level

    def proposal(self) -> Method:
        """The method that proposes, with its options.

        Raises:
            UsageError: There is none of that name, or it cannot propose.
        """
        name, *options = self.propose.split(":")
        known = [other for other in PROPOSALS if other in METHODS]
        if name in METHODS and name not in known:
            raise UsageError(
                f"hybrid: '{name}' cannot propose, since it does not estimate effects in units of the metric",
                hint=f"these can: {', '.join(known)}",
            )
        if name not in known:
            raise UsageError(f"hybrid: no method is named '{name}' (propose)", hint=did_you_mean(name, known))
        bad = [option for option in options if "=" not in option]
        if bad:
            raise UsageError(
                f"hybrid: '{bad[0]}' in propose={self.propose} is no option", hint="write it as NAME=VALUE"
            )
        return get_method(name, dict(option.split("=", 1) for option in options))

    def cost(self, anatomy: Anatomy) -> Cost:
        """The proposal's, and a patched pass for each edge that is verified or drawn and for the rest together."""
        proposed = self.proposal().cost(anatomy)
        scored = anatomy.n_edges if self.level == "edge" else len(anatomy.writers)
        top = min(self.verify, scored // 2)
        drawn = min(top, scored - top)
        return Cost(proposed.forward + top + drawn + (top + drawn < scored), proposed.backward)

    def run(
        self, runs: Runs, *, ablation: Ablation, direction: Direction, positions: Positions = "none"
    ) -> Scores:
        """Proposed and exact scores as one; ``extra`` has both, NaN where nothing was patched.

        Positions are kept apart by the proposal alone: a patch replaces an edge at all of them.

        Raises:
            UnsupportedError: Denoising without a corrupted run, or what the proposal refuses.
            RunError: As for the proposal; or nothing has any effect.
        """
        needs_corrupted_run(direction, ablation)
        found = self.proposal().run(runs, ablation=ablation, direction=direction, positions=positions)
        flat = found.values.ravel()
        top, drawn, rest = self.choose(flat)
        parts = [np.array([i]) for i in (*top, *drawn)] + ([rest] if len(rest) else [])
        patched = effects(runs, [part_patch(found, part) for part in parts], direction, ablation).mean(1)
        exact = np.full(flat.shape, np.nan)
        exact[top], exact[drawn] = patched[: len(top)], patched[len(top) : len(top) + len(drawn)]
        values = joined(flat, exact)
        refuse_zeros(runs, values)
        facts = {
            "proposed_by": self.propose,
            "level": found.level,
            **verification(flat, exact, top, drawn, len(drawn) + len(rest)),
            "rest_together": float(patched[-1]) if len(rest) else None,
        }
        shape = found.values.shape
        return Scores(
            anatomy=found.anatomy,
            level=found.level,
            values=values.reshape(shape),
            nodes=None if found.level == "node" else found.nodes,
            by_position=found.by_position,
            position_names=found.position_names,
            extra={**found.extra, "proposed": flat.reshape(shape).copy(), "exact": exact.reshape(shape)},
            method=self.name,
            direction=direction,
            metric=found.metric,
            ablation=ablation,
            facts={**found.facts, "verification": facts},
        )

    def choose(self, proposed: Float[np.ndarray, " scored"]) -> tuple[Part, Part, Part]:
        """Where among proposed values those stand that are verified, those that are drawn of the others, and the rest."""
        order = np.argsort(-np.where(np.isnan(proposed), -1.0, np.abs(proposed)), kind="stable")
        order = order[: int(np.isfinite(proposed).sum())]
        top = order[: min(self.verify, len(order) // 2)]
        others = order[len(top) :]
        drawn = np.random.default_rng(self.seed).choice(
            others, size=min(len(top), len(others)), replace=False
        )
        return top, drawn, np.setdiff1d(others, drawn)


def joined(
    proposed: Float[np.ndarray, " scored"], exact: Float[np.ndarray, " scored"]
) -> Float[np.ndarray, " scored"]:
    """The larger of each proposed and exact value, by magnitude and with its sign."""
    stronger = np.abs(np.nan_to_num(exact)) > np.abs(np.nan_to_num(proposed))
    return np.where(stronger, exact, proposed)


def part_patch(like: Scores, part: Part) -> Patch:
    """Some edges or nodes, by where they stand among the values of scores, all together."""
    mask = np.zeros(like.values.shape, dtype=bool)
    mask.flat[part] = True
    return Patch(edges=mask) if like.level == "edge" else Patch(nodes=mask)


def verification(
    proposed: Float[np.ndarray, " scored"],
    exact: Float[np.ndarray, " scored"],
    top: Int[np.ndarray, " top"],
    drawn: Int[np.ndarray, " drawn"],
    others: int,
) -> dict[str, Any]:
    """What the verified ones say of the proposal, as plain data; see the module."""
    size = np.abs(exact)
    strongest = np.sort(size[top])[::-1]
    bounds = []
    for k in sorted({min(BOUNDS_AT, len(top)), len(top)} - {0}):
        theta = float(strongest[k - 1])
        reach = int((size[drawn] >= theta).sum())
        most = most_of_population(others, len(drawn), reach)
        bounds.append({"k": k, "theta": theta, "reach": reach, "at_most": most - reach})
    return {
        "verified": len(top),
        "drawn": len(drawn),
        "others": others,
        "confidence": CONFIDENCE,
        "rank_correlation": rank_correlation(proposed[top], exact[top]),
        "rank_correlation_drawn": rank_correlation(proposed[drawn], exact[drawn]),
        "bounds": bounds,
    }


def most_of_population(population: int, draws: int, hits: int, confidence: float = CONFIDENCE) -> int:
    """The one-sided upper bound on how many of a population are hits, of which some were drawn without replacement."""
    low, high = hits, population - (draws - hits)
    while low < high:
        middle = (low + high + 1) // 2
        if _chance_of_at_most(population, middle, draws, hits) > 1 - confidence:
            low = middle
        else:
            high = middle - 1
    return low


def _chance_of_at_most(population: int, marked: int, draws: int, hits: int) -> float:
    """Probability of so many or fewer marked ones among the drawn."""

    def log_choose(n: int, k: int) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    total = log_choose(population, draws)
    fewest = max(0, draws - (population - marked))
    return sum(
        exp(log_choose(marked, i) + log_choose(population - marked, draws - i) - total)
        for i in range(fewest, min(hits, marked) + 1)
    )


def rank_correlation(a: Float[np.ndarray, " scored"], b: Float[np.ndarray, " scored"]) -> float | None:
    """Spearman's, of magnitudes, since they are what is ranked; None of fewer than three or where all are equal."""
    return spearman(np.abs(a), np.abs(b))
