"""How much a circuit hangs on which prompts were drawn: the bootstrap (Efron 1979).

The prompt pairs are drawn again with replacement, as many as there are; the same method scores and the same pruning cuts each
draw. Told are how often each edge returns (its inclusion frequency), what two draws have in common, and what they have in
common with the circuit. Meloux et al. (2025, arXiv 2510.00845) advise to report this, and for a claim about structure a mean
Jaccard index above 0.8 and at least 100 prompts.

Where a score is a mean over prompts, all draws come from one run of the method (methods/redrawn.py); else the method is run
again on each. Under ``mean`` ablation prompts are drawn within their template and length, since a mean needs two of a kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.json_form import filled, finite, number
from circuitfind.circuit.rule import Rule
from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Positions
from circuitfind.errors import RunError, UsageError
from circuitfind.evidence.overlap import (
    Overlap,
    Specificity,
    beside,
    between,
    edge_names,
    jaccard,
    node_names,
    specificity,
)
from circuitfind.evidence.search import Maker, Mask, Passes, Pruning, Search, runs_over
from circuitfind.methods.base import Method
from circuitfind.methods.redrawn import is_additive, redrawn_scores
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.runs import Runs
from circuitfind.names import parse_edge, parse_node
from circuitfind.task.pairs import PromptPairs

ENOUGH_JACCARD, ENOUGH_PROMPTS = 0.8, 100
"""What Meloux et al. advise."""
ROUNDING = 1e-6
"""Scores that are no larger than this share of those on all prompts are zero."""
OUTSIDE = 20
"""Edges outside the circuit that are listed, those that draws return most often."""

Draws = Int[np.ndarray, "draw prompt"]


@dataclass(frozen=True)
class Inclusion:
    """How often an edge or node was in the circuit of a draw, as a share of the draws."""

    name: str
    frequency: float


@dataclass(frozen=True)
class PromptStability:
    """What became of a circuit when its prompts were drawn again.

    Attributes:
        prompts: Pairs, and so pairs in each draw.
        draws: How often they were drawn.
        different: How many of these draws differ as sets of prompts.
        seed: Of the draws.
        pruning: How each draw was pruned, in words.
        reran: Whether the method was run again on each draw; else one run served all.
        within_groups: Whether prompts were drawn within template and length.
        edges, nodes: Jaccard indices of each two draws.
        edges_with_circuit, nodes_with_circuit: Of each draw with the circuit.
        whole_with_circuit: Of the edges of the circuit with those that the same procedure finds on all prompts, undrawn:
            below 1 where the circuit was pruned in another way.
        circuit_edges, circuit_nodes: The circuit's, with how often each returned.
        other_edges: Those outside the circuit that returned most often.
        sizes: Edges of each draw's circuit; 0 where nothing was left.
        faithfulness: Of each draw's circuit on all prompts; empty if not measured.
        specificity: What the circuit has in common with circuits that it should not be like; None if not asked for.
        forward, backward: Passes that all this took.
    """

    prompts: int
    draws: int
    different: int
    seed: int
    pruning: str
    reran: bool
    within_groups: bool
    edges: Overlap
    nodes: Overlap
    edges_with_circuit: Overlap
    nodes_with_circuit: Overlap
    whole_with_circuit: float
    circuit_edges: tuple[Inclusion, ...]
    circuit_nodes: tuple[Inclusion, ...]
    other_edges: tuple[Inclusion, ...]
    sizes: tuple[int, ...]
    faithfulness: tuple[float, ...]
    specificity: Specificity | None
    forward: int
    backward: int

    @property
    def says_something(self) -> bool:
        """Whether the draws differ at all."""
        return self.different > 1

    @property
    def reached(self) -> bool:
        """Whether what Meloux et al. advise is reached."""
        return self.says_something and self.edges.mean > ENOUGH_JACCARD and self.prompts >= ENOUGH_PROMPTS

    @property
    def text(self) -> str:
        """What to tell of it, in a sentence or two."""
        if not self.says_something:
            return f"says nothing: drawing the {self.prompts} prompts again changes nothing"
        told = (
            f"two draws of the prompts share {self.edges.mean:.2f} of their edges on average (Jaccard; 95 % of pairs "
            f"{self.edges.low:.2f} to {self.edges.high:.2f}) and {self.nodes.mean:.2f} of their nodes"
        )
        short = []
        if not self.edges.mean > ENOUGH_JACCARD:
            short.append(f"an index above {ENOUGH_JACCARD:g}")
        if self.prompts < ENOUGH_PROMPTS:
            short.append(f"{ENOUGH_PROMPTS} prompts (there are {self.prompts})")
        advice = "Meloux et al. 2025"
        told += (
            f"; short of {' and '.join(short)}, as advised ({advice})" if short else f"; enough ({advice})"
        )
        if self.specificity is not None:
            name, shared = self.specificity.nearest
            less = "only " if shared < self.edges.mean else "no less: "
            told += f". With {name} the circuit shares {less}{shared:.2f}"
        return told

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with ``reached`` and ``text``."""
        ranges = ("edges", "nodes", "edges_with_circuit", "nodes_with_circuit")
        listed = ("circuit_edges", "circuit_nodes", "other_edges")
        return {
            **vars(self),
            **{name: getattr(self, name).as_dict() for name in ranges},
            **{name: [asdict(one) for one in getattr(self, name)] for name in listed},
            "whole_with_circuit": finite(self.whole_with_circuit),
            "sizes": list(self.sizes),
            "faithfulness": [finite(x) for x in self.faithfulness],
            "specificity": None if self.specificity is None else self.specificity.as_dict(),
            "reached": self.reached,
            "text": self.text,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PromptStability:
        """Read what ``as_dict`` wrote.

        Raises:
            KeyError, TypeError: It is incomplete.
        """
        told = {name: value for name, value in data.items() if name not in ("reached", "text")}
        ranges = ("edges", "nodes", "edges_with_circuit", "nodes_with_circuit")
        listed = ("circuit_edges", "circuit_nodes", "other_edges")
        null = data["specificity"]
        return filled(
            cls,
            {
                **told,
                **{name: Overlap.from_dict(data[name]) for name in ranges},
                **{name: tuple(filled(Inclusion, one) for one in data[name]) for name in listed},
                "whole_with_circuit": number(data["whole_with_circuit"]),
                "sizes": tuple(data["sizes"]),
                "faithfulness": tuple(number(x) for x in data["faithfulness"]),
                "specificity": None if null is None else Specificity.from_dict(null),
            },
        )


def over_prompts(
    runs: Runs,
    method: Method,
    *,
    ablation: Ablation,
    direction: Direction,
    rule: Rule,
    circuit: Mask | None = None,
    prune: Pruning = "count",
    draws: int = 20,
    seed: int = 0,
    positions: Positions = "none",
    make: Maker | None = None,
    measure: bool = True,
    others: Mapping[str, Mask] | None = None,
    rerun: bool = False,
) -> PromptStability:
    """Find the circuit again on prompts drawn again.

    Args:
        runs: The prompts that the circuit was found on.
        method: The method that it was found by.
        ablation: Under which.
        direction: The same.
        rule: How it was pruned.
        circuit: Its edges; what the procedure finds on all prompts if None.
        prune: ``count`` cuts each draw to the number of edges of the circuit, which runs no circuits; ``rule`` prunes each
            as the circuit was. Without a circuit, ``count`` is for a rule that names a number of edges.
        draws: How often to draw.
        seed: Of the draws.
        positions: As for a method.
        make: Makes runs of drawn pairs; as ``runs`` are made if None.
        measure: Whether to run each draw's circuit on all prompts.
        others: By name, circuits that this one should not be like; see ``specificity``.
        rerun: Run the method again on each draw even where one run would do.

    Raises:
        UsageError: No draws, or nothing says how many edges to keep.
        RunError: Nothing is found on all prompts.
    """
    if draws < 2:
        raise UsageError(
            f"{draws} draws of the prompts cannot be compared", hint="draw at least 2 times, best 20"
        )
    counter, anatomy = Passes(runs.model), runs.model.anatomy
    search = _search(Search(method, ablation, direction, rule, positions), circuit, prune)
    again = make or partial(runs_over, runs)
    drawn = draw_prompts(runs.pairs, draws, seed, within_groups=ablation == "mean")
    by_rule = search.rule.faithfulness is not None
    reran = rerun or positions != "none" or not is_additive(method, ablation)
    subsets = (runs.pairs.subset(row.tolist()) for row in drawn)
    if reran:
        first = search.scores(runs)
        whole = search.pruned(first, runs)
        masks = [_circuit(search, again(subset), first) for subset in subsets]
    else:
        n = len(runs)
        weights = np.stack([np.ones(n), *(np.bincount(row, minlength=n) for row in drawn)]) / n
        first, *rest = redrawn_scores(runs, method, weights, ablation=ablation, direction=direction)
        whole = search.pruned(first, runs)
        masks = [
            _circuit(search, again(subset) if by_rule else runs, first, scores)
            for subset, scores in zip(subsets, rest, strict=True)
        ]
    found = whole if circuit is None else circuit
    faithfulness = _measured(runs, ablation, masks) if measure else ()
    forward, backward = counter.since()
    return _report(
        anatomy,
        found,
        whole,
        masks,
        drawn,
        different=_different(runs.pairs, drawn),
        seed=seed,
        pruning=_words(search.rule, prune),
        reran=reran,
        within_groups=ablation == "mean",
        faithfulness=faithfulness,
        specificity=specificity(anatomy, found, others, seed=seed),
        forward=forward,
        backward=backward,
    )


def draw_prompts(pairs: PromptPairs, draws: int, seed: int, *, within_groups: bool = False) -> Draws:
    """Indices of pairs, drawn with replacement, as many as there are in each draw.

    Args:
        pairs: What to draw from.
        draws: How often.
        seed: Of the generator.
        within_groups: Draw from each template and length as many as it has.
    """
    generator, n = np.random.default_rng(seed), len(pairs)
    if not within_groups:
        return generator.integers(0, n, size=(draws, n))
    found = np.empty((draws, n), dtype=np.int64)
    keys = [(pair.group, len(pair.clean)) for pair in pairs]
    for key in dict.fromkeys(keys):
        members = np.flatnonzero([other == key for other in keys])
        found[:, members] = generator.choice(members, size=(draws, len(members)))
    return found


def _search(search: Search, circuit: Mask | None, prune: Pruning) -> Search:
    if prune == "rule" or search.rule.edges is not None:
        return search
    if circuit is None:
        raise UsageError(
            f"nothing says how many edges to keep of each draw ({search.rule})",
            hint='give the circuit, a rule with a number of edges, or prune="rule"',
        )
    return search.counted(int(circuit.sum()))


def _circuit(search: Search, runs: Runs, whole: Scores, scores: Scores | None = None) -> Mask:
    """The circuit of a draw, empty where none is found; what is rounding beside the scores on all prompts is none."""
    try:
        scores = search.scores(runs) if scores is None else scores
        if np.nanmax(np.abs(scores.values)) > ROUNDING * np.nanmax(np.abs(whole.values)):
            return search.pruned(scores, runs)
    except RunError:
        pass
    return np.zeros_like(runs.model.anatomy.edge_mask)


def _measured(runs: Runs, ablation: Ablation, masks: Sequence[Mask]) -> tuple[float, ...]:
    return tuple(float(x) for x in Evaluator(runs, ablation).faithfulness(masks))


def _different(pairs: PromptPairs, drawn: Draws) -> int:
    """How many draws are different prompts, whatever their order."""
    keys = [(p.clean, p.corrupted, p.answer, p.wrong, p.answer_position) for p in pairs]
    return len({tuple(sorted(keys[int(i)] for i in row)) for row in drawn})


def _words(rule: Rule, prune: Pruning) -> str:
    if prune == "count" and rule.edges is not None:
        return f"the first connected edges of each ranking, {rule.edges} at the most"
    return f"each as the circuit was: {rule}"


def _report(
    anatomy: Anatomy, circuit: Mask, whole: Mask, masks: Sequence[Mask], drawn: Draws, **told: Any
) -> PromptStability:
    edges = [edge_names(anatomy, mask) for mask in masks]
    nodes = [node_names(anatomy, mask) for mask in masks]
    own, own_nodes = edge_names(anatomy, circuit), node_names(anatomy, circuit)
    seen, seen_nodes = (Counter(name for one in found for name in one) for found in (edges, nodes))

    def share(name: str, counts: Counter[str]) -> Inclusion:
        return Inclusion(name, counts[name] / len(masks))

    outside = sorted(
        (-count, parse_edge(name).order, name) for name, count in seen.items() if name not in own
    )
    return PromptStability(
        prompts=drawn.shape[1],
        draws=len(masks),
        edges=between(edges),
        nodes=between(nodes),
        edges_with_circuit=beside(edges, own),
        nodes_with_circuit=beside(nodes, own_nodes),
        whole_with_circuit=jaccard(edge_names(anatomy, whole), own),
        circuit_edges=tuple(share(e, seen) for e in sorted(own, key=lambda e: parse_edge(e).order)),
        circuit_nodes=tuple(
            share(n, seen_nodes) for n in sorted(own_nodes, key=lambda n: parse_node(n).order)
        ),
        other_edges=tuple(share(name, seen) for _, _, name in outside[:OUTSIDE]),
        sizes=tuple(map(len, edges)),
        **told,
    )
