"""``discover --nodes features``: the transcoder features that carry a task with attention frozen, in a run folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from circuitfind.backup_stage import Made
from circuitfind.circuit.feature_graph import ErrorShare, FeatureGraph, Source
from circuitfind.circuit.graph import Conditions, Evaluation, Interval
from circuitfind.errors import UsageError
from circuitfind.feature_store import GRAPH, FoundFeatures
from circuitfind.names import Kind, parse_edge, parse_node
from circuitfind.output.store import Store, stage_key
from circuitfind.sae_runs import GraphStages, graph_files, reported
from circuitfind.session import Reporter, Session, Silent, configuration, stage_keys
from circuitfind.settings import Settings
from circuitfind.task.spec import TaskSpec

if TYPE_CHECKING:
    from circuitfind.attribution.features_graph import FeaturesGraph
    from circuitfind.model.bridge import Model

COVERED = 0.98
"""Of what goes into a node, the strongest edges are kept up to this share (as in attribution graphs)."""


def discover_features(
    spec: TaskSpec,
    settings: Settings,
    *,
    outputs: Path | str | None = None,
    device: str = "auto",
    force: bool = False,
    formats: tuple[str, ...] = ("svg",),
    memory: int | None = None,
    reporter: Reporter | None = None,
    lend: Callable[[str], Model] | None = None,
) -> FoundFeatures:
    """Find them, or read what the same command found before.

    Args:
        spec: The task.
        settings: With ``nodes`` ``features``.
        outputs: Folder of run folders.
        device: Where the model runs.
        force: Run finished stages again.
        formats: Pictures to draw; empty for none.
        memory: Bytes to plan for; what is free if None.
        reporter: Hears of progress.
        lend: Gives the model, with no passes counted yet; it is loaded if None.

    Raises:
        CircuitfindError: Whatever the command would print.
    """
    if settings.ablation != "resample":
        raise UsageError(
            f"with attention frozen, features are not ablated by {settings.ablation}",
            hint="use --ablation resample, or --nodes heads,features",
        )
    session = Session(spec, settings, device, reporter or Silent(), memory=memory, lend=lend)
    run = Store(outputs).open(spec.name, settings.model, {**configuration(session), "saes": {}})
    with run:
        stages = GraphStages(session, Store(outputs), run, force=force)
        keys = stage_keys(session)
        prompts = stages.prompts(keys["prompts"])
        key = stage_key(keys["scores"], vars(settings.rule), GRAPH)
        work = partial(_find, session, str(prompts.facts["counterfactual"]))
        found = stages.finish(key, work, prompts, formats)
    return reported(found, run, session)


def _find(session: Session, counterfactual: str) -> Made:
    from circuitfind.attribution.features_graph import features_graph

    settings = session.settings
    target = settings.rule.faithfulness
    assert target is not None
    found = features_graph(
        session.runs,
        session.dictionaries,
        target=target,
        evaluations=settings.rule.evaluations,
        report=lambda text: session.reporter.stage("features", "running", text),
    )
    conditions = Conditions(
        task=session.spec.name,
        model=settings.model,
        method="gradient at the clean run, attention frozen",
        metric=settings.metric,
        ablation="resample",
        direction="noising",
        counterfactual=counterfactual,
        rule=str(settings.rule),
        nodes="features",
        dictionaries=settings.dictionaries or "",
        errors="frozen",
    )
    graph = as_graph(found, conditions, session)
    facts = {
        "evaluations": found.evaluations,
        "prefix": found.prefix,
        "share_through_errors": found.error_share,
        "notes": [],
    }
    return graph_files(graph, found.scores), facts


def as_graph(found: FeaturesGraph, conditions: Conditions, session: Session) -> FeatureGraph:
    """What was found as a graph with its conditions and its evidence."""
    scores = {str(one.node): one.score for one in found.nodes} | dict(found.errors)
    edges = strongest_edges(found.edges)
    used = {end for pair in edges for end in pair} | set(found.names)
    evaluations = tuple(
        Evaluation(
            ablation=f"{how}-attention resample",
            metric=conditions.metric,
            faithfulness=Interval(one.value, one.low, one.high),
            circuit=one.circuit,
            full=one.full,
            empty=one.empty,
            n_prompts=found.n_prompts,
        )
        for how, one in (("frozen", found.frozen), ("live", found.live))
    )
    missed = sum(abs(score) for name, score in found.errors.items() if parse_node(name).kind is Kind.ERROR)
    total = missed + sum(abs(score) for score in found.scores.values())
    return FeatureGraph(
        nodes=tuple(parse_node(name) for name in sorted(used) if name != "logits"),
        edges=tuple(parse_edge(f"{source}->{target}") for source, target in edges),
        conditions=conditions,
        node_scores={name: score for name, score in scores.items() if name in used},
        edge_weights={f"{source}->{target}": weight for (source, target), weight in edges.items()},
        evaluations=evaluations,
        sources=tuple(
            Source(
                name=f"t{one.layer}",
                hook=f"blocks.{one.layer}: {one.site_in} to {one.site_out}",
                file=one.source,
                activation=one.activation,
                n_features=one.n_features,
                n_active=sum(parse_node(name).layer == one.layer for name in found.scores),
                features=sum(s for name, s in found.scores.items() if parse_node(name).layer == one.layer),
                errors=found.errors.get(f"t{one.layer}.err", 0.0),
            )
            for one in session.dictionaries
        ),
        errors=ErrorShare(by_score=missed / total if total else 0.0),
        n_active=found.candidates,
        minimal=found.minimal,
    )


def strongest_edges(edges: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Of the edges into each node the strongest, up to ``COVERED`` of the sum of their sizes."""
    into: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for (source, target), weight in edges.items():
        into[target].append((weight, source))
    kept: dict[tuple[str, str], float] = {}
    for target, found in into.items():
        found.sort(key=lambda one: (-abs(one[0]), one[1]))
        total, seen = sum(abs(weight) for weight, _ in found), 0.0
        for weight, source in found:
            if seen >= COVERED * total:
                break
            kept[source, target] = weight
            seen += abs(weight)
    return kept
