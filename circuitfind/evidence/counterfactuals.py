"""How much a circuit hangs on what the clean prompts are contrasted with.

A node shows only where the counterfactual changes what it carries: on one circuit one counterfactual showed 3 of 6 heads,
another 5, both together all 6. So a circuit is looked for under every counterfactual of a task, and what one of them does not
show is "not visible under" it, never absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitfind.circuit.json_form import filled
from circuitfind.circuit.rule import Rule
from circuitfind.config import Ablation, Direction, Positions
from circuitfind.errors import CircuitfindError, UsageError
from circuitfind.evidence.overlap import Overlap, between, edge_names, jaccard, node_names
from circuitfind.evidence.search import Mask, Passes, Search
from circuitfind.methods.base import Method
from circuitfind.model.runs import Runs
from circuitfind.names import parse_edge, parse_node

Seen = Mapping[str, tuple[str, ...]]
"""By node or edge, the counterfactuals under which it was found."""


@dataclass(frozen=True)
class CounterfactualStability:
    """What several counterfactuals show, by one method and rule.

    Attributes:
        names: Counterfactuals under which a circuit was found.
        failed: By counterfactual, why none was; nothing is said of what is visible under it.
        rule: How each was pruned.
        prompts: By counterfactual, how many pairs.
        sizes: By counterfactual, how many edges.
        edges, nodes: Under which counterfactuals each was found, from the input to the logits.
        edge_overlap, node_overlap: Jaccard indices of each two counterfactuals.
        pairs: Jaccard index of the edges of two counterfactuals, as (one, other, index).
        forward, backward: Passes that it took.
    """

    names: tuple[str, ...]
    failed: Mapping[str, str]
    rule: str
    prompts: Mapping[str, int]
    sizes: Mapping[str, int]
    edges: Seen
    nodes: Seen
    edge_overlap: Overlap
    node_overlap: Overlap
    pairs: tuple[tuple[str, str, float], ...]
    forward: int
    backward: int

    @property
    def says_something(self) -> bool:
        """Whether there are two to compare."""
        return len(self.names) > 1

    def under_all(self, seen: Seen) -> tuple[str, ...]:
        """Those found under every counterfactual; ``seen`` is ``edges`` or ``nodes``."""
        return tuple(name for name, under in seen.items() if len(under) == len(self.names))

    def under_some(self, seen: Seen) -> tuple[str, ...]:
        """Those found under several, not all."""
        return tuple(name for name, under in seen.items() if 1 < len(under) < len(self.names))

    def under_one(self, seen: Seen) -> tuple[str, ...]:
        """Those found under a single one of several."""
        return tuple(name for name, under in seen.items() if len(under) == 1 < len(self.names))

    def not_visible(self, name: str) -> tuple[str, ...]:
        """The counterfactuals that do not show a node or edge which others show."""
        under = self.nodes.get(name) or self.edges.get(name) or ()
        return tuple(one for one in self.names if one not in under)

    @property
    def disagreements(self) -> tuple[str, ...]:
        """A line for each node on which they disagree."""
        return tuple(
            f"{name}: found under {', '.join(under)}; not visible under {', '.join(self.not_visible(name))}"
            for name, under in self.nodes.items()
            if len(under) < len(self.names)
        )

    @property
    def text(self) -> str:
        """What to tell of it, in a sentence or two."""
        lost = "".join(f"; none under {name}: {why}" for name, why in self.failed.items())
        if not self.says_something:
            found = f"a circuit under {self.names[0]} alone" if self.names else "no circuit"
            return f"says nothing of counterfactuals: {found}{lost}"
        both = "both" if len(self.names) == 2 else f"all {len(self.names)}"
        return (
            f"{len(self.under_all(self.nodes))} of {len(self.nodes)} nodes and {len(self.under_all(self.edges))} of "
            f"{len(self.edges)} edges are found under {both} counterfactuals ({', '.join(self.names)}); edges of two of "
            f"them have a Jaccard index of {self.edge_overlap.mean:.2f}{lost}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with ``disagreements`` and ``text``, and what is found under all, some and one."""
        told: dict[str, Any] = {
            **vars(self),
            "names": list(self.names),
            "failed": dict(self.failed),
            "prompts": dict(self.prompts),
            "sizes": dict(self.sizes),
            "edges": {name: list(under) for name, under in self.edges.items()},
            "nodes": {name: list(under) for name, under in self.nodes.items()},
            "edge_overlap": self.edge_overlap.as_dict(),
            "node_overlap": self.node_overlap.as_dict(),
            "pairs": [list(pair) for pair in self.pairs],
        }
        for kind in ("edges", "nodes"):
            seen = getattr(self, kind)
            told[f"{kind}_under"] = {
                "all": list(self.under_all(seen)),
                "some": list(self.under_some(seen)),
                "one": list(self.under_one(seen)),
            }
        return {**told, "disagreements": list(self.disagreements), "text": self.text}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CounterfactualStability:
        """Read what ``as_dict`` wrote.

        Raises:
            KeyError, TypeError: It is incomplete.
        """
        derived = ("edges_under", "nodes_under", "disagreements", "text")
        return filled(
            cls,
            {
                **{name: value for name, value in data.items() if name not in derived},
                "names": tuple(data["names"]),
                "edges": {name: tuple(under) for name, under in data["edges"].items()},
                "nodes": {name: tuple(under) for name, under in data["nodes"].items()},
                "edge_overlap": Overlap.from_dict(data["edge_overlap"]),
                "node_overlap": Overlap.from_dict(data["node_overlap"]),
                "pairs": tuple((one, other, float(index)) for one, other, index in data["pairs"]),
            },
        )


def over_counterfactuals(
    make: Callable[[str], Runs],
    names: Sequence[str],
    method: Method,
    *,
    ablation: Ablation,
    direction: Direction,
    rule: Rule,
    positions: Positions = "none",
    known: Mapping[str, Mask] | None = None,
) -> CounterfactualStability:
    """Look for a circuit under each counterfactual of a task.

    Args:
        make: Runs of the prompts of a counterfactual, on one model.
        names: The counterfactuals; those of ``TaskSpec.counterfactuals``.
        method: How nodes or edges are scored.
        ablation: As for a method.
        direction: The same.
        rule: How far each is pruned.
        positions: As for a method.
        known: By counterfactual, circuits that were found already by the same method and rule.

    Raises:
        UsageError: No counterfactuals are named.
        CircuitfindError: None of them can be run.
    """
    if not names:
        raise UsageError("no counterfactuals to compare", hint="name at least one, best two")
    search = Search(method, ablation, direction, rule, positions)
    found: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    prompts, failed = {}, {}
    forward = backward = 0
    last: CircuitfindError | None = None
    for name in dict.fromkeys(names):
        try:
            runs = make(name)
            counter, anatomy = Passes(runs.model), runs.model.anatomy
            mask = (known or {}).get(name)
            if mask is None:
                mask = search.pruned(search.scores(runs), runs)
        except CircuitfindError as error:
            failed[name], last = error.what, error
            continue
        found[name] = edge_names(anatomy, mask), node_names(anatomy, mask)
        prompts[name] = len(runs)
        took = counter.since()
        forward, backward = forward + took[0], backward + took[1]
    if last is not None and not found:
        raise last
    edges = {edge: None for own, _ in found.values() for edge in own}
    nodes = {node: None for _, own in found.values() for node in own}
    kept = tuple(found)
    return CounterfactualStability(
        names=kept,
        failed=failed,
        rule=str(rule),
        prompts=prompts,
        sizes={name: len(own) for name, (own, _) in found.items()},
        edges={
            edge: tuple(name for name in kept if edge in found[name][0])
            for edge in sorted(edges, key=lambda e: parse_edge(e).order)
        },
        nodes={
            node: tuple(name for name in kept if node in found[name][1])
            for node in sorted(nodes, key=lambda n: parse_node(n).order)
        },
        edge_overlap=between([own for own, _ in found.values()]),
        node_overlap=between([own for _, own in found.values()]),
        pairs=tuple(
            (one, other, jaccard(found[one][0], found[other][0]))
            for i, one in enumerate(kept)
            for other in kept[i + 1 :]
        ),
        forward=forward,
        backward=backward,
    )
