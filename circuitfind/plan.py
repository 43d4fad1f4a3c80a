"""What a run would do: stages, passes, memory and time, and what is there already. Changes nothing on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from circuitfind.output.store import Store, run_name, stage_key
from circuitfind.pipeline import STAGES
from circuitfind.session import Session, configuration, stage_keys

EDGE_PASS = 2.5
"""What an edge-patched pass costs beside a plain one (every head is projected twice, and corrections are summed)."""

TYPICAL_TRIALS = 200
"""Circuits that pruning by faithfulness tries on models of this size; it depends on what it finds."""


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
class Plan:
    """The stages of a run and what they need at the most."""

    run: str
    stages: tuple[StagePlan, ...]
    memory_bytes: int | None
    prompts: int | None
    tokens: int | None

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}


def make_plan(
    session: Session, outputs: Path | str | None, *, force: bool, formats: tuple[str, ...] = ("svg",)
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
    keys["pictures"] = stage_key(keys["circuit"], formats)
    here = {name: run is not None and run.stage(name, key) is not None for name, key in keys.items()}
    cached = {
        name: not force and (here[name] or store.finished(name, key) is not None)
        for name, key in keys.items()
    }
    name = run_name(session.spec.name, settings.model, config)[0]
    if all(cached[stage] for stage in STAGES if stage != "pictures"):
        stages = tuple(StagePlan(stage, "cached" if cached[stage] else "run") for stage in STAGES)
        return Plan(name, stages, None, None, None)
    return _measured(session, name, cached)


def _measured(session: Session, name: str, cached: Mapping[str, bool]) -> Plan:
    from circuitfind.methods import get_method
    from circuitfind.model import runs as limits

    runs = session.runs_of(session.all_pairs)
    tokens = sum(batch.clean.numel() for batch in runs.batches)
    forward = _seconds_per_pass(runs, tokens)
    model, anatomy = session.model, session.model.anatomy
    cost = get_method(session.settings.method).cost(anatomy)
    rule = session.settings.rule
    trials = 3 if rule.faithfulness is None else min(TYPICAL_TRIALS, rule.evaluations)
    note = (
        ""
        if rule.faithfulness is None
        else f"as many as it takes, at most {rule.evaluations}; the time is for {trials}"
    )
    work = {
        "prompts": StagePlan("prompts", "run", 1, 0, forward),
        "scores": StagePlan(
            "scores", "run", cost.forward, cost.backward, forward * (cost.forward + 2 * cost.backward)
        ),
        "circuit": StagePlan("circuit", "run", trials, 0, forward * EDGE_PASS * trials, note),
        "pictures": StagePlan("pictures", "run", seconds=1.0),
    }
    stages = tuple(StagePlan(stage, "cached") if cached.get(stage) else work[stage] for stage in STAGES)
    weights = sum(p.numel() * p.element_size() for p in model.bridge.parameters())
    width = (
        model.d_model * (1 + anatomy.n_layers * int(model.has_mlp))
        + anatomy.n_layers * anatomy.n_heads * model.d_head
    )
    writes = min(limits.CACHE_BYTES, 2 * tokens * width * 4)
    largest = max(b.clean.numel() for b in runs.batches)
    per_pass = max(limits.TOKENS_PER_PASS, largest)
    activations = per_pass * model.d_model * 4 * (12 + 8 * anatomy.n_layers)
    per_token = len(anatomy.writers) * model.d_model * 4
    delta = max(limits.DELTA_BYTES, per_token * largest)
    most = per_token * tokens * trials
    return Plan(name, stages, weights + writes + activations + min(delta, most), len(runs), tokens)


def _seconds_per_pass(runs: Any, tokens: int) -> float:
    """Time of one forward pass over all prompts, from the second pass of the first batch."""
    batch = runs.batches[0]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        runs.model.logits(batch.clean, batch.answer_positions, batch.mask)
        times.append(time.perf_counter() - start)
    return times[-1] * tokens / int(batch.clean.numel())
