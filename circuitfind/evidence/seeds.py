"""How much a circuit hangs on seeds: that of the prompts, and that of the method where it has one.

A seed that changes nothing makes any method look stable. So it is checked first whether the prompts, or the scores, differ
from seed to seed; seeds that give the same again are not counted, and where all do so the seed "changes nothing".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuitfind.circuit.json_form import filled, finite, number
from circuitfind.circuit.rule import Rule
from circuitfind.config import Ablation, Direction, Positions
from circuitfind.errors import UsageError
from circuitfind.evidence.overlap import Overlap, between, edge_names, jaccard, node_names
from circuitfind.evidence.search import Passes, Search
from circuitfind.methods.base import Method
from circuitfind.model.runs import Runs
from circuitfind.task.pairs import PromptPairs

ROUNDING = 1e-5
"""Scores that differ by this share of the largest one are the same."""


@dataclass(frozen=True)
class SeedAxis:
    """What one seed changes.

    Attributes:
        name: ``prompts`` or ``method``.
        seeds: Those that were tried.
        different: How many gave different prompts, or different scores; circuits of these alone are compared.
        edges, nodes: Jaccard indices of each two of them; NaN where fewer than two differ.
        sizes: Edges of each different circuit.
        in_common: Of the prompts of each two different draws, the mean Jaccard index; NaN for a method's seed.
    """

    name: str
    seeds: tuple[int, ...]
    different: int
    edges: Overlap
    nodes: Overlap
    sizes: tuple[int, ...]
    in_common: float = float("nan")

    @property
    def says_something(self) -> bool:
        """Whether the seed changes anything."""
        return self.different > 1

    @property
    def text(self) -> str:
        """What to tell of it, in a sentence."""
        what = f"the seed of the {self.name}"
        if not self.says_something:
            return f"{what} changes nothing ({len(self.seeds)} tried), so it says nothing of stability"
        same = len(self.seeds) - self.different
        less = f" ({same} more gave the same again)" if same else ""
        shared = "" if np.isnan(self.in_common) else f", whose prompts share {self.in_common:.2f},"
        return (
            f"{what}: circuits of {self.different} different seeds{less}{shared} share {self.edges.mean:.2f} of their edges "
            f"on average (Jaccard; at the least {self.edges.least:.2f}) and {self.nodes.mean:.2f} of their nodes"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with ``says_something`` and ``text``."""
        return {
            **vars(self),
            "seeds": list(self.seeds),
            "sizes": list(self.sizes),
            "edges": self.edges.as_dict(),
            "nodes": self.nodes.as_dict(),
            "in_common": finite(self.in_common),
            "says_something": self.says_something,
            "text": self.text,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SeedAxis:
        """Read what ``as_dict`` wrote."""
        return filled(
            cls,
            {
                **{name: data[name] for name in ("name", "different")},
                "seeds": tuple(data["seeds"]),
                "sizes": tuple(data["sizes"]),
                "edges": Overlap.from_dict(data["edges"]),
                "nodes": Overlap.from_dict(data["nodes"]),
                "in_common": number(data["in_common"]),
            },
        )


@dataclass(frozen=True)
class SeedStability:
    """What became of a circuit under other seeds.

    Attributes:
        axes: One for each seed that there is.
        method_has_seed: Whether the method draws anything; else its scores are fixed by the prompts.
        rule: How each circuit was pruned.
        forward, backward: Passes that it took.
    """

    axes: tuple[SeedAxis, ...]
    method_has_seed: bool
    rule: str
    forward: int
    backward: int

    @property
    def text(self) -> str:
        """What to tell of it, a sentence for each seed."""
        told = [axis.text for axis in self.axes]
        return "; ".join(told if self.method_has_seed else [*told, "the method has no seed"])

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with ``text``."""
        return {**vars(self), "axes": [axis.as_dict() for axis in self.axes], "text": self.text}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SeedStability:
        """Read what ``as_dict`` wrote.

        Raises:
            KeyError, TypeError: It is incomplete.
        """
        told = {name: value for name, value in data.items() if name != "text"}
        return filled(cls, {**told, "axes": tuple(map(SeedAxis.from_dict, data["axes"]))})


def over_seeds(
    make: Callable[[int], Runs],
    method: Method,
    *,
    ablation: Ablation,
    direction: Direction,
    rule: Rule,
    seeds: Sequence[int] = (0, 1, 2),
    positions: Positions = "none",
) -> SeedStability:
    """Look for a circuit with other seeds: of the prompts, and of the method where it has an option ``seed``.

    Args:
        make: Runs of the prompts that a seed draws, on one model.
        method: How nodes or edges are scored.
        ablation: As for a method.
        direction: The same.
        rule: How far each is pruned.
        seeds: At least two; the first one draws the prompts on which the method's seeds are tried.
        positions: As for a method.

    Raises:
        UsageError: Fewer than two seeds.
        RunError: Nothing is found with one of them.
    """
    wanted = tuple(dict.fromkeys(seeds))
    if len(wanted) < 2:
        raise UsageError(f"{len(wanted)} seeds cannot be compared", hint="give at least 2 that differ")
    search = Search(method, ablation, direction, rule, positions)
    first = make(wanted[0])
    prompts, took = _over_prompts(search, make, first, wanted)
    axes, counter = [prompts], Passes(first.model)
    has_seed = has_own_seed(method)
    if has_seed:
        axes.append(_over_method(search, first, wanted))
    forward, backward = (a + b for a, b in zip(took, counter.since(), strict=True))
    return SeedStability(tuple(axes), has_seed, str(rule), forward, backward)


def has_own_seed(method: Method) -> bool:
    """Whether a method has an option ``seed``."""
    return "seed" in getattr(method, "__dataclass_fields__", {})


def _over_prompts(
    search: Search, make: Callable[[int], Runs], first: Runs, seeds: tuple[int, ...]
) -> tuple[SeedAxis, tuple[int, int]]:
    """The axis, and the (forward, backward) passes that it took, whether or not seeds share a model."""
    contents: list[frozenset[str]] = []
    found = []
    forward = backward = 0
    for seed in seeds:
        runs = first if seed == seeds[0] else make(seed)
        content = _contents(runs.pairs)
        if content not in contents:
            contents.append(content)
            counter = Passes(runs.model)
            found.append((search.pruned(search.scores(runs), runs), runs.model.anatomy))
            took = counter.since()
            forward, backward = forward + took[0], backward + took[1]
    edges = [edge_names(anatomy, mask) for mask, anatomy in found]
    shared = [jaccard(a, b) for i, a in enumerate(contents) for b in contents[i + 1 :]]
    axis = SeedAxis(
        "prompts",
        seeds,
        len(contents),
        between(edges),
        between([node_names(anatomy, mask) for mask, anatomy in found]),
        tuple(map(len, edges)),
        float(np.mean(shared)) if shared else float("nan"),
    )
    return axis, (forward, backward)


def _over_method(search: Search, runs: Runs, seeds: tuple[int, ...]) -> SeedAxis:
    anatomy = runs.model.anatomy
    seen: list[np.ndarray] = []
    masks = []
    for seed in seeds:
        own = replace(search, method=replace(search.method, seed=seed))  # type: ignore[type-var]  # it is a dataclass
        scores = own.scores(runs)
        if not any(_alike(scores.values, old) for old in seen):
            seen.append(scores.values)
            masks.append(own.pruned(scores, runs))
    edges = [edge_names(anatomy, mask) for mask in masks]
    nodes = [node_names(anatomy, mask) for mask in masks]
    return SeedAxis("method", seeds, len(seen), between(edges), between(nodes), tuple(map(len, edges)))


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether scores differ by rounding alone."""
    return bool(np.allclose(a, b, rtol=0, atol=ROUNDING * float(np.nanmax(np.abs(b))), equal_nan=True))


def _contents(pairs: PromptPairs) -> frozenset[str]:
    """What the model gets to see of each pair, in no order: a seed that only deals pairs anew changes nothing."""
    return frozenset(pairs.subset([index]).content_hash() for index in range(len(pairs)))
