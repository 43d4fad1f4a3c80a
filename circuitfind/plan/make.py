"""The plan of a run: what is finished, and what the rest takes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitfind.config import DEFAULT_CONTROLS, Controls
from circuitfind.engine.chosen import engine
from circuitfind.evidence_controls import Draws
from circuitfind.evidence_prompts import EvidenceOptions
from circuitfind.output.store import Store, run_name, stage_key
from circuitfind.pipeline import STAGES, evidence_key
from circuitfind.plan.memory import Memory, Sized
from circuitfind.plan.stages import StagePlan, draws_of, trials_of, work
from circuitfind.plan.unloaded import Asked, Estimate, Unloaded, find
from circuitfind.session import Session, configuration, stage_keys
from circuitfind.view_stage import views_key

if TYPE_CHECKING:
    from circuitfind.model.runs import Runs


@dataclass(frozen=True)
class Plan:
    """The stages of a run and what they need at the most.

    Attributes:
        run: Name of the run folder; without its hash where the model is not loaded.
        stages: In order.
        memory_bytes: About what everything takes at the most, the weights included; None where nothing is to run.
        prompts, tokens: Pairs of prompts, and the tokens of a pass over one side of them.
        memory: How the work is cut up.
        workers: How many share the work; they take ``shared_seconds`` at best.
        estimate: From what the plan was made, where the model was not loaded.
    """

    run: str
    stages: tuple[StagePlan, ...]
    memory_bytes: int | None
    prompts: int | None
    tokens: int | None
    memory: Memory | None = None
    workers: int = 1
    estimate: Estimate | None = None

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def shared_seconds(self) -> float:
        """With the work shared out evenly, which is the best that can come of it."""
        return self.seconds / self.workers

    def as_dict(self) -> dict[str, Any]:
        estimate = None if self.estimate is None else self.estimate.as_dict()
        seconds = {"seconds": self.seconds, "shared_seconds": self.shared_seconds}
        return {**asdict(self), **seconds, "estimate": estimate}


def make_plan(
    session: Session,
    outputs: Path | str | None,
    *,
    force: bool,
    formats: tuple[str, ...] = ("svg",),
    controls: Controls = DEFAULT_CONTROLS,
    views: bool = True,
    asked: Asked | None = None,
) -> Plan:
    """Look up what is finished and, where something is not, load the model and time one pass of a batch.

    Args:
        session: Task, model and settings.
        outputs: Where run folders are.
        force: Take finished stages for unfinished.
        formats: Of pictures.
        controls: How thorough.
        views: Whether they are made.
        asked: How to go on where the model is not here, does not fit, or shall not be loaded: from its configuration.
            None loads it in any case.

    Raises:
        CircuitfindError: What the run itself would refuse before its first stage.
    """
    settings = session.settings
    unloaded = None if asked is None else find(session, asked)
    if unloaded is not None:
        session = unloaded.session
    config = configuration(session)
    keys = stage_keys(session)
    before = keys.get("backups", keys["circuit"])
    if controls != "none" and settings.model_b is None:
        keys["evidence"] = evidence_key(before, EvidenceOptions(controls))
    if views:
        keys["views"] = views_key(before)
    keys["pictures"] = stage_key(before, formats)
    wanted = [stage for stage in STAGES if stage in keys]
    name, identity = run_name(session.spec.name, settings.model, config)
    if unloaded is not None:
        return _estimated(unloaded, name.removesuffix(f"-{identity}"), wanted, draws_of(controls))
    store = Store(outputs)
    run = store.existing(session.spec.name, settings.model, config)
    here = {stage: run is not None and run.stage(stage, key) is not None for stage, key in keys.items()}
    cached = {
        stage: not force and (here[stage] or store.finished(stage, key) is not None)
        for stage, key in keys.items()
    }
    if all(cached[stage] for stage in wanted if stage != "pictures"):
        stages = tuple(StagePlan(stage, "cached" if cached[stage] else "run") for stage in wanted)
        return Plan(name, stages, None, None, None)
    return _measured(session, name, cached, wanted, draws_of(controls))


def _measured(
    session: Session, name: str, cached: Mapping[str, bool], wanted: Sequence[str], draws: Draws
) -> Plan:
    runs = session.runs_of(session.all_pairs)
    tokens = sum(batch.clean.numel() for batch in runs.batches)
    forward = _seconds_per_pass(runs, tokens)
    stages_of = work(session, len(runs), forward, draws)
    stages = tuple(StagePlan(stage, "cached") if cached[stage] else stages_of[stage] for stage in wanted)
    memory, most = _sized(runs).memory(runs.plan, runs.batches, trials_of(session))
    return Plan(name, stages, most, len(runs), tokens, memory, _workers())


def _estimated(unloaded: Unloaded, name: str, wanted: Sequence[str], draws: Draws) -> Plan:
    session, batches = unloaded.session, unloaded.batches
    stages_of = work(session, len(unloaded.pairs), unloaded.seconds, draws)
    memory, most = unloaded.sized.memory(unloaded.plan, batches, trials_of(session))
    stages = tuple(stages_of[stage] for stage in wanted)
    return Plan(
        name, stages, most, len(unloaded.pairs), unloaded.tokens, memory, _workers(), unloaded.estimate
    )


def _workers() -> int:
    """Of the engine that is chosen."""
    chosen = engine()
    return 1 if chosen is None else chosen.workers


def _sized(runs: Runs) -> Sized:
    """What the bytes of a loaded model depend on."""
    from circuitfind.model.memory import copied_bytes, token_bytes

    model = runs.model
    weights = sum(p.numel() * p.element_size() for p in model.bridge.parameters())
    placement = model.placement
    placed = () if placement is None else (placement.bytes_on, placement.window, placement.here)
    return Sized(token_bytes(model), weights, copied_bytes(model), len(model.anatomy.writers), *placed)


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
