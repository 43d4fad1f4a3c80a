"""Ensemble: several methods' scores as one (after the parallel ensembles of Mondorf et al. 2025, arXiv 2510.06811).

``of`` names the members, separated by commas; options of a member follow its name behind colons, such as
``of=eap,eap-ig:steps=10,relp``. The default are the three of that paper. All must score edges, or all nodes. ``how``:

    rank   a member's scores become normalised ranks of |score|: the share of its scored values that are smaller, equal ones
           counting half, and 0 for a score of 0. The value is their mean, with the sign of the sum of the signed ranks: the
           members' vote, weighted by rank (a member without signs, such as ifr, votes +).            (default)
    mean   the mean of the scores, each member's divided by its largest |score|

The largest |score| of both is 1 at most, whatever the metric; neither is in its units. What one member did not score is
NaN. With positions kept apart, the scores at all positions are ranked, or scaled, together.

It takes the passes of its members; clean and corrupted runs that are still in memory are not taken again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Level, Positions
from circuitfind.errors import RunError, UsageError, did_you_mean
from circuitfind.methods import get_method
from circuitfind.methods.base import Cost, Method
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.runs import Runs

Values = Float[np.ndarray, " *scores"]
Combine = Callable[[Sequence[Values]], Values]


def normalised_ranks(values: Values) -> Values:
    """Ranks of |value| between 0 (zero, or the weakest of many) and 1; see the module. NaN stays NaN."""
    size = np.abs(values).ravel()
    scored = size[~np.isnan(size)]
    ordered = np.sort(scored)
    below, upto = np.searchsorted(ordered, size, "left"), np.searchsorted(ordered, size, "right")
    ranks = (below + upto) / (2 * max(1, len(scored)))
    ranks[size == 0] = 0.0
    ranks[np.isnan(size)] = np.nan
    return np.asarray(ranks.reshape(values.shape))


def mean_of_ranks(members: Sequence[Values]) -> Values:
    """See the module; an even vote is +."""
    ranks = [normalised_ranks(values) for values in members]
    vote = np.sum([np.sign(v) * r for v, r in zip(members, ranks, strict=True)], axis=0)
    return np.asarray(np.where(vote < 0, -1.0, 1.0) * np.mean(ranks, axis=0))


def mean_of_scores(members: Sequence[Values]) -> Values:
    """See the module."""
    return np.asarray(np.mean([values / np.nanmax(np.abs(values)) for values in members], axis=0))


HOW: dict[str, Combine] = {"rank": mean_of_ranks, "mean": mean_of_scores}


@dataclass(frozen=True)
class Ensemble:
    """See the module.

    Attributes:
        of: Its members, with commas; options of each behind colons.
        how: ``rank`` or ``mean``.
    """

    of: str = "eap,eap-ig,eap-ig-activations"
    how: str = "rank"

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise UsageError(f"no way to join scores is named '{self.how}'", hint=did_you_mean(self.how, HOW))
        names = [text.strip() for text in self.of.split(",")]
        if len(set(names)) != len(names):
            raise UsageError(f"the ensemble of={self.of} has a member twice", hint="name each once")
        levels = {method.level for method in self.members()}
        if len(names) < 2:
            raise UsageError(
                f"an ensemble of={self.of} has one member", hint="name two or more, such as of=eap-ig,relp"
            )
        if len(levels) > 1:
            kinds = ", ".join(f"{method.name} {method.level}s" for method in self.members())
            raise UsageError(
                f"the members of an ensemble must all score edges or all nodes, and here {kinds}",
                hint="see `circuitfind list methods` for what each scores",
            )

    @property
    def name(self) -> str:
        return "ensemble"

    @property
    def level(self) -> Level:
        return self.members()[0].level

    def members(self) -> list[Method]:
        """The methods, with their options.

        Raises:
            UsageError: One does not exist, or is an ensemble.
        """
        found = []
        for text in self.of.split(","):
            name, *options = text.strip().split(":")
            if name == "ensemble":
                raise UsageError("an ensemble cannot be a member of one", hint="name its members")
            bad = [option for option in options if "=" not in option]
            if bad:
                raise UsageError(f"'{bad[0]}' in of={self.of} is no option", hint="write it as NAME=VALUE")
            found.append(get_method(name, dict(option.split("=", 1) for option in options)))
        return found

    def cost(self, anatomy: Anatomy) -> Cost:
        costs = [method.cost(anatomy) for method in self.members()]
        return Cost(sum(cost.forward for cost in costs), sum(cost.backward for cost in costs))

    def run(
        self, runs: Runs, *, ablation: Ablation, direction: Direction, positions: Positions = "none"
    ) -> Scores:
        """The members' scores as one.

        Raises:
            UnsupportedError: A member says nothing true for this metric, ablation, direction or model.
            RunError: A member scored nothing, or all its scores are zero.
        """
        found = [
            method.run(runs, ablation=ablation, direction=direction, positions=positions)
            for method in self.members()
        ]
        for scores in found:
            if not np.nan_to_num(scores.values).any():
                raise RunError(
                    f"{scores.method} scored nothing, or zero everywhere, so it has no say in an ensemble",
                    hint="leave it out of the ensemble (of=...)",
                )
        combine = HOW[self.how]
        apart = [scores.by_position for scores in found if scores.by_position is not None]
        by_position, values = None, None
        if len(apart) == len(found):
            by_position = combine(apart)
            values = np.abs(by_position).sum(0)
        else:
            values = combine([scores.values for scores in found])
        first = found[0]
        return Scores(
            anatomy=first.anatomy,
            level=first.level,
            values=np.asarray(values),
            by_position=by_position,
            position_names=None if by_position is None else first.position_names,
            method=self.name,
            direction=direction,
            metric=first.metric,
            ablation=ablation,
            facts={"members": self.of, "how": self.how},
        )
