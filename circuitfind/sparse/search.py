"""Everything: scores of all nodes, the few that are needed, the edges among them, and how much passes through errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.feature_graph import ErrorShare, FeatureGraph, Source
from circuitfind.circuit.graph import Conditions, Evaluation
from circuitfind.config import Ablation
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.sites import hook_name
from circuitfind.errors import RunError, UnsupportedError
from circuitfind.model.runs import Runs
from circuitfind.names import LOGITS, Edge
from circuitfind.sparse.ablate import Mask, NodeEvaluator
from circuitfind.sparse.baseline import Baseline
from circuitfind.sparse.edges import score_edges
from circuitfind.sparse.options import SparseOptions
from circuitfind.sparse.prune import PrunedNodes, prune_by_threshold, prune_nodes
from circuitfind.sparse.scores import score_nodes
from circuitfind.sparse.sites import Site, read_sites


@dataclass(frozen=True)
class Searched:
    """A graph, and what finding it took.

    Attributes:
        graph: What was found.
        scores: Of every node that has one, by name, the strongest first.
        facts: ``prefix``, ``evaluations`` and ``notes`` (why there is no second ablation); plain data.
    """

    graph: FeatureGraph
    scores: dict[str, float]
    facts: dict[str, Any]


def find_circuit(
    runs: Runs,
    dictionaries: Sequence[Dictionary],
    conditions: Conditions,
    options: SparseOptions | None = None,
    *,
    report: Callable[[str], None] = lambda text: None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Searched:
    """Find few features, and errors, of SAEs that carry what a model does on some prompts.

    Args:
        runs: The model, its prompts and the metric.
        dictionaries: SAEs.
        conditions: What is told of the graph; ``ablation`` is what ablated nodes carry.
        options: How far it goes.
        report: Hears what is being done.
        progress: Called with the prompts that a gradient was taken of.

    Raises:
        UnsupportedError: Dictionaries, metric or ablation that this cannot be done with.
        UsageError: No dictionaries, or two for one place.
        RunError: Nothing to explain, or nothing to score.
    """
    options = options or SparseOptions()
    sites = read_sites(runs.model, dictionaries)
    runs.check_gradient("clean")

    def work() -> Searched:
        return _search(runs, sites, conditions, options, report, progress)

    return runs.fitted(work)


def _search(
    runs: Runs,
    sites: tuple[Site, ...],
    conditions: Conditions,
    options: SparseOptions,
    report: Callable[[str], None],
    progress: Callable[[int], None],
) -> Searched:
    ablation: Ablation = conditions.ablation  # type: ignore[assignment]  # Baseline checks it
    report("what fires, and what ablated nodes carry")
    base = Baseline(runs, sites, ablation)
    report(f"scores of {len(base.nodes):,} nodes at {len(sites)} sites")
    scores = score_nodes(base, options.steps, progress=progress)
    evaluator = NodeEvaluator(base)
    _ = evaluator.gap  # before any work on what is no behaviour
    report("pruning")
    pruned = _prune(scores, evaluator, options, report)
    evaluations, notes = _evaluate(evaluator, pruned.mask)
    report(f"edges among {int(pruned.mask.sum())} nodes")
    weights = score_edges(base, pruned.mask, progress=progress)
    report("what passes through errors")
    graph = _graph(base, pruned, scores, weights, conditions, options, evaluations, evaluator)
    strongest = np.argsort(-np.abs(scores), kind="stable")
    facts = {"prefix": pruned.prefix, "evaluations": pruned.evaluations, "notes": notes}
    named = {str(base.nodes[int(i)]): float(scores[i]) for i in strongest if scores[i] != 0}
    return Searched(graph, named, facts)


def _prune(
    scores: Float[np.ndarray, " node"],
    evaluator: NodeEvaluator,
    options: SparseOptions,
    report: Callable[[str], None],
) -> PrunedNodes:
    if options.node_threshold is not None:
        return prune_by_threshold(scores, options.node_threshold)
    assert options.faithfulness is not None
    return prune_nodes(
        scores, evaluator, options.faithfulness, evaluations=options.evaluations, report=report
    )


def _evaluate(evaluator: NodeEvaluator, mask: Mask) -> tuple[list[Evaluation], list[str]]:
    """Under its ablation, and under the next other one that the prompts allow; why not under others."""
    found, notes = [evaluator.evaluate(mask)], []
    base = evaluator.base
    kept = {str(base.nodes[int(i)]) for i in np.flatnonzero(mask)}
    order: tuple[Ablation, ...] = ("mean", "resample", "zero")
    for other in (a for a in order if a != base.ablation):
        try:
            second = Baseline(base.runs, base.sites, other)
            # Other features may fire there; those that are not nodes here are ablated.
            chosen = np.array([str(node) in kept for node in second.nodes])
            found.append(NodeEvaluator(second).evaluate(chosen))
        except (UnsupportedError, RunError) as error:
            notes.append(error.what)
        else:
            return found, []
    return found, notes


def _graph(
    base: Baseline,
    pruned: PrunedNodes,
    scores: Float[np.ndarray, " node"],
    weights: Float[np.ndarray, "sender receiver"],
    conditions: Conditions,
    options: SparseOptions,
    evaluations: list[Evaluation],
    evaluator: NodeEvaluator,
) -> FeatureGraph:
    chosen = [int(i) for i in np.flatnonzero(pruned.mask)]
    nodes = [base.nodes[i] for i in chosen]
    ends = [*nodes, LOGITS]
    edges = {
        Edge(nodes[sender], ends[receiver]): float(weights[sender, receiver])
        for sender, receiver in np.argwhere((np.abs(weights) >= options.edge_threshold) & (weights != 0))
    }
    return FeatureGraph(
        nodes=tuple(nodes),
        edges=tuple(edges),
        conditions=conditions,
        node_scores={str(node): float(scores[i]) for node, i in zip(nodes, chosen, strict=True)},
        edge_weights={str(edge): weight for edge, weight in edges.items()},
        evaluations=tuple(evaluations),
        sources=_sources(base, scores, evaluator),
        errors=_errors(base, scores, evaluator),
        n_active=base.nodes.n_features,
        minimal=pruned.minimal,
    )


def _sources(
    base: Baseline, scores: Float[np.ndarray, " node"], evaluator: NodeEvaluator
) -> tuple[Source, ...]:
    """Each SAE, with what its nodes are scored together and what they do together."""
    masks = []
    for at in range(len(base.sites)):
        mask = np.ones(len(base.nodes), dtype=bool)
        mask[base.nodes.span(at)] = False
        masks.append(mask)
    effects = evaluator.full.mean() - evaluator.values(masks).mean(1)
    found = []
    for at, site in enumerate(base.sites):
        own, one = scores[base.nodes.span(at)], site.dictionary
        found.append(
            Source(
                name=site.name,
                hook=hook_name(one.layer, one.site_in),
                file=one.source,
                activation=one.activation,
                n_features=one.n_features,
                n_active=len(base.nodes.held[at]),
                features=float(own[:-1].sum()),
                errors=float(own[-1]),
                effect=float(effects[at]),
            )
        )
    return tuple(found)


def _errors(base: Baseline, scores: Float[np.ndarray, " node"], evaluator: NodeEvaluator) -> ErrorShare:
    errors = base.nodes.errors
    return ErrorShare(
        by_score=float(np.abs(scores[errors]).sum() / np.abs(scores).sum()),
        without_errors=evaluator.evaluate(~errors).faithfulness,
        errors_alone=evaluator.evaluate(errors).faithfulness,
    )
