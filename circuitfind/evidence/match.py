"""Parts of one kind, found against known: sets and rankings. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitfind.circuit.curve import roc_auc
from circuitfind.circuit.json_form import filled, finite, number
from circuitfind.evidence.overlap import jaccard

Values = Float[np.ndarray, " part"]
Chosen = Bool[np.ndarray, " part"]


@dataclass(frozen=True)
class Ranked:
    """A node or edge with its score and its place, from 1, among all of its kind; ties share their mean place.

    NaN where it was not scored.
    """

    name: str
    score: float
    rank: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data; NaN is null."""
        return {"name": self.name, "score": finite(self.score), "rank": finite(self.rank)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ranked:
        """Read what ``as_dict`` wrote."""
        numbers = {name: number(data[name]) for name in ("score", "rank")}
        return filled(cls, {**data, **numbers})


@dataclass(frozen=True)
class Match:
    """Parts of one kind: those found against those known.

    Attributes:
        kind: ``heads``, ``mlps``, ``edges``, or ``edges between heads``: of a list that names no MLP, edges without MLPs.
        known, found, shared: How many.
        precision, recall, f1, jaccard: Of what was found. Precision is NaN where nothing was.
        roc_auc: The chance that a known part is stronger than another one, ties half.
        average_precision: The mean over known parts of the precision at the place of each, ties as one step.
        recall_at_size: Share of the known parts among as many of the strongest, ties by their share.
        missing: Known and not found, in the order of the model, with their rank.
        extra: Found and not known.

    What scores say is NaN where there are none, or where every part of the model is known.
    """

    kind: str
    known: int
    found: int
    shared: int
    precision: float
    recall: float
    f1: float
    jaccard: float
    roc_auc: float
    average_precision: float
    recall_at_size: float
    missing: tuple[Ranked, ...]
    extra: tuple[str, ...]

    def __str__(self) -> str:
        told = f"{self.kind}: {self.shared} of {self.known} known found (recall {self.recall:.2f}), "
        told += "none found" if isnan(self.precision) else f"precision {self.precision:.2f} of {self.found}"
        return told if isnan(self.roc_auc) else f"{told}, ROC-AUC {self.roc_auc:.2f}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data; NaN is null."""
        told = {name: finite(x) if isinstance(x, float) else x for name, x in vars(self).items()}
        return {**told, "missing": [one.as_dict() for one in self.missing], "extra": list(self.extra)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Match:
        """Read what ``as_dict`` wrote."""
        numbers = (*_SHARES, *_SCORED)
        return filled(
            cls,
            {
                **data,
                **{name: number(data[name]) for name in numbers},
                "missing": tuple(map(Ranked.from_dict, data["missing"])),
                "extra": tuple(data["extra"]),
            },
        )


_SHARES = ("precision", "recall", "f1", "jaccard")
_SCORED = ("roc_auc", "average_precision", "recall_at_size")


def average_precision(strengths: Values, truth: Chosen) -> float:
    """The sum over steps of the ranking of precision times what recall gains; equally strong parts are one step.

    NaN counts as weaker than everything. NaN if nothing is true.
    """
    if not truth.any():
        return nan
    key = np.where(np.isnan(strengths), -np.inf, strengths)
    order = np.argsort(-key, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.append(key[order][1:] != key[order][:-1], True)  # of each step of equal ones
    at = np.flatnonzero(last)
    precision = hits[at] / (at + 1)
    gained = np.diff(np.append(0, hits[at])) / truth.sum()
    return float((precision * gained).sum())


def recall_at_size(strengths: Values, truth: Chosen) -> float:
    """Share of the true parts among as many of the strongest; of equally strong ones at the end, what chance would give."""
    size = int(truth.sum())
    if not size:
        return nan
    key = np.where(np.isnan(strengths), -np.inf, strengths)
    least = np.sort(key)[-size]
    above, tied = key > least, key == least
    left = (size - above.sum()) / tied.sum()
    return float((truth[above].sum() + left * truth[tied].sum()) / size)


def places(strengths: Values) -> Values:
    """The place of each part, 1 for the strongest; ties share their mean place, and NaN has none."""
    scored = ~np.isnan(strengths)
    ordered = np.sort(-strengths[scored])
    found = np.full(strengths.shape, nan)
    below, upto = (np.searchsorted(ordered, -strengths[scored], side) for side in ("left", "right"))
    found[scored] = (below + upto + 1) / 2
    return found


def match(
    kind: str, every: Sequence[str], known: Sequence[str], found: Collection[str], values: Values | None
) -> Match:
    """Parts by name: all that the model has, with their scores, those known and those found."""
    wanted, had = set(known), set(found)
    shared = len(wanted & had)
    precision = shared / len(had) if had else nan
    recall = shared / len(wanted)
    by_name = ranked(every, values)
    truth = np.array([name in wanted for name in every], dtype=bool)
    auc = average = top = nan
    if values is not None and truth.any() and not truth.all() and np.isfinite(values).any():
        strengths = np.abs(values)
        auc = roc_auc(strengths, truth)
        average, top = average_precision(strengths, truth), recall_at_size(strengths, truth)
    # What the model has in its order, then what it has not in that of the list: a set has none.
    order = {name: i for i, name in enumerate(dict.fromkeys((*every, *known, *sorted(had))))}
    return Match(
        kind=kind,
        known=len(wanted),
        found=len(had),
        shared=shared,
        precision=precision,
        recall=recall,
        f1=2 * shared / (len(wanted) + len(had)),
        jaccard=jaccard(wanted, had),
        roc_auc=auc,
        average_precision=average,
        recall_at_size=top,
        missing=tuple(
            by_name.get(name, Ranked(name, nan, nan)) for name in sorted(wanted - had, key=order.__getitem__)
        ),
        extra=tuple(sorted(had - wanted, key=order.__getitem__)),
    )


def ranked(every: Sequence[str], values: Values | None) -> dict[str, Ranked]:
    """Each part with its score and place; nothing without scores."""
    if values is None:
        return {}
    ranks = places(np.abs(values))
    return {
        name: Ranked(name, float(value), float(rank))
        for name, value, rank in zip(every, values, ranks, strict=True)
    }
