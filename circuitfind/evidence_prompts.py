"""Prompts for evidence: others than those that a circuit was pruned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitfind.circuit.graph import Circuit
from circuitfind.config import ABLATIONS, CONTROLS, DEFAULT_CONTROLS, Ablation, Controls
from circuitfind.errors import CircuitfindError, UsageError, did_you_mean
from circuitfind.evidence.certify import ENOUGH
from circuitfind.session import Session

if TYPE_CHECKING:
    from circuitfind.model.runs import Runs
    from circuitfind.task.pairs import PromptPairs

TRIES = 4
"""How often more prompts are drawn to find some that are new, each time twice as many."""

STRIDE = 1009
"""Between the seeds of a run's prompts and of those that it is measured on."""


@dataclass(frozen=True)
class EvidenceOptions:
    """What is measured.

    Attributes:
        controls: ``none``, ``cheap`` or ``full``.
        ablations: Under which; the circuit's own and a second one if empty.
        count: Prompt pairs to draw; as many as the run has if None.
        seed: Of the prompts, relative to the run's, and of everything that is drawn.
    """

    controls: Controls = DEFAULT_CONTROLS
    ablations: tuple[Ablation, ...] = ()
    count: int | None = None
    seed: int = 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def options_named(
    ablations: Sequence[str], controls: str = DEFAULT_CONTROLS, count: int | None = None, seed: int = 1
) -> EvidenceOptions:
    """Options from words that people wrote.

    Raises:
        UsageError: An ablation or a kind of controls is not known, or a number is too small.
    """
    for name in ablations:
        if name not in ABLATIONS:
            raise UsageError(f"no ablation is named '{name}'", hint=did_you_mean(name, ABLATIONS))
    if controls not in CONTROLS:
        raise UsageError(f"no controls are called '{controls}'", hint=did_you_mean(controls, CONTROLS))
    if seed < 1 or (count is not None and count < 1):
        raise UsageError("count and seed are whole numbers from 1", hint="seed 1 draws new prompts")
    return EvidenceOptions(controls, tuple(dict.fromkeys(ablations)), count, seed)  # type: ignore[arg-type]  # checked


@dataclass(frozen=True)
class Fresh:
    """Prompts for evidence, and the circuit's model on those that it answers rightly.

    Attributes:
        held_out: Whether the circuit was pruned on others; None where that is not known.
        every: All that line up.
        kept: Those that are answered rightly.
        whole: Runs of all.
        runs: Runs of the kept ones.
    """

    held_out: bool | None
    every: PromptPairs
    kept: PromptPairs
    whole: Runs
    runs: Runs


def fresh(session: Session, circuit: Circuit, options: EvidenceOptions) -> Fresh:
    """Prompts that the circuit was not pruned on; its own where the task has too few others. Each counts once."""
    pairs = held_out(session, options)
    new = pairs is not None
    pairs = pairs or session.all_pairs.subset(_first_ones(session.all_pairs))
    model = session.runs_for(circuit.anatomy).model if circuit.anatomy.split else session.model
    whole = session.runs_of(pairs, model=model)
    right = whole.answered_rightly
    kept = pairs.subset(np.flatnonzero(right).tolist())
    runs = whole if right.all() or not right.any() else session.runs_of(kept, model=model)
    if "optimal" in (session.settings.ablation, *options.ablations) and not circuit.anatomy.split:
        session.full_runs.ablated(
            0, "optimal"
        )  # learns the constants on the run's own prompts, if that is not done
        runs.constants = whole.constants = session.full_runs.constants
    return Fresh(new, pairs, kept, whole, runs)


def held_out(session: Session, options: EvidenceOptions) -> PromptPairs | None:
    """Pairs whose clean prompts are none of the run's, about as many as it has; None where there are fewer than a
    certificate needs.
    """
    seen = {pair.clean for pair in session.all_pairs}
    wanted = options.count or len(session.all_pairs)
    new: PromptPairs | None = None
    for times in range(1, TRIES):
        asked = wanted * 2**times
        try:
            found = session.draw(asked, session.settings.seed + STRIDE * options.seed, drop_bad_pairs=True)
        except CircuitfindError:  # the run's own pairs line up: these then have no other
            break
        new = found.subset([i for i in _first_ones(found) if found[i].clean not in seen])
        if len(new) >= wanted or len(found) < asked:
            break
    return None if new is None or len(new) < min(ENOUGH, wanted) else _in_company(new, wanted)


def _first_ones(pairs: PromptPairs) -> list[int]:
    """Where each clean prompt stands first."""
    return sorted({pair.clean: i for i, pair in reversed(list(enumerate(pairs)))}.values())


def _in_company(pairs: PromptPairs, wanted: int) -> PromptPairs:
    """The first ones, but none that is alone of its template and length: there would be no mean to replace it by."""
    alike = [(pair.group, len(pair.clean)) for pair in pairs]
    chosen = list(range(min(wanted, len(pairs))))
    for i in list(chosen):
        if sum(alike[j] == alike[i] for j in chosen) == 1:
            other = next((j for j in range(wanted, len(pairs)) if alike[j] == alike[i]), None)
            if other is None:
                chosen.remove(i)
            else:
                chosen.append(other)
    return pairs.subset(chosen or range(min(wanted, len(pairs))))
