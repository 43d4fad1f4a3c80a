"""What a run would do: stages, passes, memory and time, and what is there already. Changes nothing on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitfind.config import DEFAULT_CONTROLS, Ablation, Controls
from circuitfind.evidence_controls import DRAWS, Draws
from circuitfind.evidence_prompts import EvidenceOptions
from circuitfind.output.store import Store, run_name, stage_key
from circuitfind.pipeline import STAGES, evidence_key
from circuitfind.session import Session, configuration, stage_keys
from circuitfind.view_stage import passes, views_key

if TYPE_CHECKING:
    from circuitfind.methods.base import Cost
    from circuitfind.model.anatomy import Anatomy
    from circuitfind.model.runs import Runs

EDGE_PASS = 0.7
"""What the evaluation of a circuit costs beside a plain pass: 1.3 with half of all edges, 0.4 with a fifth of the nodes."""

NODE_PASS = 0.5
"""What a pass with one node replaced costs, from that node on and from where the prompts differ, on average."""

TYPICAL_TRIALS = 100
"""Circuits that pruning by faithfulness tries on models of this size; it depends on what it finds."""


TYPICAL_UNITS = 500
"""Passes over all prompts that finding the neurons or features takes: those that are verified, and sets of them."""

TYPICAL_TASKS = 8
"""Other tasks that a model does."""

TYPICAL_SEARCH = 50
"""Passes of a search for backups, on models and tasks where there is something to verify; a few where there is not."""


@dataclass(frozen=True)
class StagePlan:
    """One stage: ``cached`` or to ``run``; passes over all prompts, a patched pass of one patch counting as one."""

    name: str
    state: str
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Memory:
    """How the work is cut up to fit; sizes in bytes.

    Attributes:
        budget: What was planned for beyond the weights (``--memory``, or most of what is free).
        weights: Of the model.
        batches, pairs_to_batch: Batches of prompt pairs, and the most pairs in one.
        node_rows, edge_rows: Patched prompts that share a pass: those of a node, and those of an edge.
        finished_runs, kept: What all clean and corrupted runs take, and how much of it may be kept.
    """

    budget: int
    weights: int
    batches: int
    pairs_to_batch: int
    node_rows: int
    edge_rows: int
    finished_runs: int
    kept: int


@dataclass(frozen=True)
class Plan:
    """The stages of a run and what they need at the most."""

    run: str
    stages: tuple[StagePlan, ...]
    memory_bytes: int | None
    prompts: int | None
    tokens: int | None
    memory: Memory | None = None

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}


def make_plan(
    session: Session,
    outputs: Path | str | None,
    *,
    force: bool,
    formats: tuple[str, ...] = ("svg",),
    controls: Controls = DEFAULT_CONTROLS,
    views: bool = True,
) -> Plan:
    """Look up what is finished and, where something is not, load the model and time one pass of a batch.

    Raises:
        CircuitfindError: What the run itself would refuse before its first stage.
    """
    settings = session.settings
    config = configuration(session)
    store = Store(outputs)
    run = store.existing(session.spec.name, settings.model, config)
    keys = stage_keys(session)
    before = keys.get("backups", keys["circuit"])
    if controls != "none" and settings.model_b is None:
        keys["evidence"] = evidence_key(before, EvidenceOptions(controls))
    if views:
        keys["views"] = views_key(before)
    keys["pictures"] = stage_key(before, formats)
    wanted = [stage for stage in STAGES if stage in keys]
    here = {name: run is not None and run.stage(name, key) is not None for name, key in keys.items()}
    cached = {
        name: not force and (here[name] or store.finished(name, key) is not None)
        for name, key in keys.items()
    }
    name = run_name(session.spec.name, settings.model, config)[0]
    if all(cached[stage] for stage in wanted if stage != "pictures"):
        stages = tuple(StagePlan(stage, "cached" if cached[stage] else "run") for stage in wanted)
        return Plan(name, stages, None, None, None)
    return _measured(session, name, cached, wanted, DRAWS["cheap" if controls == "none" else controls])


def _measured(
    session: Session, name: str, cached: Mapping[str, bool], wanted: Sequence[str], draws: Draws
) -> Plan:
    runs = session.runs_of(session.all_pairs)
    tokens = sum(batch.clean.numel() for batch in runs.batches)
    forward = _seconds_per_pass(runs, tokens)
    work = _work(session, len(runs), forward, draws)
    stages = tuple(StagePlan(stage, "cached") if cached[stage] else work[stage] for stage in wanted)
    memory, most = _memory(runs, _trials(session))
    return Plan(name, stages, most, len(runs), tokens, memory)


def foreseen(session: Session, controls: Controls) -> dict[str, StagePlan]:
    """What each stage takes, with one forward pass over all prompts in place of a second; for a session with its model.

    Nothing is run for it.
    """
    return _work(session, len(session.kept), 1.0, DRAWS["cheap" if controls == "none" else controls])


def _trials(session: Session) -> int:
    """Circuits that pruning tries, about."""
    rule = session.settings.rule
    return 3 if rule.faithfulness is None else min(TYPICAL_TRIALS, rule.evaluations)


def _work(session: Session, prompts: int, forward: float, draws: Draws) -> dict[str, StagePlan]:
    """What each stage takes, where a forward pass over all prompts takes so many seconds."""
    from circuitfind.methods import get_method

    cost = get_method(session.settings.method, session.settings.options).cost(session.model.anatomy)
    units = session.settings.units
    across = 0 if session.settings.model_b is None else 2 * len(session.model.anatomy.writers)
    scored = ceil(cost.forward) + TYPICAL_UNITS * units + across, ceil(cost.backward) + units
    rule, trials = session.settings.rule, _trials(session)
    note = (
        ""
        if rule.faithfulness is None
        else f"as many as it takes, at most {rule.evaluations}; the time is for {trials}"
    )
    return {
        "prompts": StagePlan("prompts", "run", 1, 0, forward),
        "scores": StagePlan(
            "scores",
            "run",
            *scored,
            forward * (scored[0] + 2 * scored[1]),
            "finds the units first, by as many passes as it takes"
            if units
            else "replaces each part twice besides"
            if across
            else "",
        ),
        "circuit": StagePlan("circuit", "run", trials, 0, forward * EDGE_PASS * trials, note),
        "backups": StagePlan(
            "backups", "run", TYPICAL_SEARCH, 0, forward * TYPICAL_SEARCH, "as many as there is to verify"
        ),
        "evidence": _evidence(draws, forward, cost),
        "views": _views(session.model.anatomy, prompts, session.settings.ablation, forward),
        "pictures": StagePlan("pictures", "run", seconds=1.0),
    }


def _evidence(draws: Draws, forward: float, cost: Cost) -> StagePlan:
    """New prompts, two ablations, and the controls: circuits to run, and rankings to make."""
    thorough = draws != DRAWS["cheap"]
    rankings = draws.weights + min(draws.tasks, TYPICAL_TASKS)
    each = (cost.forward, cost.backward) if thorough else (2, 1)
    runs = 2 + 4 + draws.random + 4 * draws.pairs + rankings
    passes = runs + ceil(rankings * each[0]), ceil(rankings * each[1])
    seconds = forward * (EDGE_PASS * runs + rankings * (each[0] + 2 * each[1]))
    return StagePlan("evidence", "run", *passes, seconds, "new prompts, and controls")


def _views(anatomy: Anatomy, prompts: int, ablation: Ablation, forward: float) -> StagePlan:
    """Every node replaced alone, and the circuits of a curve."""
    nodes, circuits = passes(anatomy, prompts, ablation)
    seconds = forward * (NODE_PASS * nodes + EDGE_PASS * circuits)
    return StagePlan(
        "views", "run", ceil(nodes + circuits), 0, seconds, "every node, and circuits of all sizes"
    )


def _memory(runs: Runs, trials: int) -> tuple[Memory, int]:
    """How the work is cut up, and about how many bytes it takes at the most."""
    from circuitfind.model.memory import token_bytes

    model, plan = runs.model, runs.plan
    cost = token_bytes(model)
    tokens = [int(batch.clean.numel()) for batch in runs.batches]
    largest = max(range(len(tokens)), key=tokens.__getitem__)
    pairs, per_patch = len(runs.batches[largest].index), tokens[largest]

    def rows(most: int, patches: int) -> int:
        """Of a pass: whole patches of a batch, at least one and no more than there are."""
        return pairs * max(1, min(most // per_patch, patches))

    found = Memory(
        budget=plan.budget,
        weights=sum(p.numel() * p.element_size() for p in model.bridge.parameters()),
        batches=len(tokens),
        pairs_to_batch=max(len(batch.index) for batch in runs.batches),
        node_rows=rows(plan.pass_tokens, len(model.anatomy.writers)),
        edge_rows=rows(plan.edge_tokens, trials),
        finished_runs=2 * sum(tokens) * cost["run"],
        kept=plan.cache_bytes,
    )
    batch = 2 * per_patch * (cost["run"] + cost["kept"] + cost["gap"])
    length = per_patch // pairs
    passes = length * max(found.node_rows * cost["node"], found.edge_rows * cost["edge"])
    return found, found.weights + min(found.finished_runs, found.kept) + batch + passes


def _seconds_per_pass(runs: Runs, tokens: int) -> float:
    """Time of one forward pass over all prompts, from the second pass of the first batch."""
    import torch

    from circuitfind.model.forward import run_trace

    model, batch = runs.model, runs.batches[0]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        with torch.no_grad():
            logits = model.head(run_trace(model, model.embed(batch.clean), batch.place(0)).final)
        logits.flatten()[0].item()  # an accelerator has finished by then
        times.append(time.perf_counter() - start)
    return times[-1] * tokens / int(batch.clean.numel())
