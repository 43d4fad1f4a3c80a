"""Loops whose steps rest on each other, such as learning: they are done in stretches, and what a stretch left can be kept.

A stretch takes all that the loop holds as arrays, and gives it as arrays: parameters, the optimiser's moments, the state of
random numbers. So a loop that is broken off goes on from its last stretch to the last bit as it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from circuitfind.model.pieces import Hands

State = Mapping[str, np.ndarray]
Work = Callable[[State, int, int], State]
"""State before a stretch, its first step, the step behind its last; gives the state after it."""


@dataclass(frozen=True)
class Stretch:
    """Some steps of a loop; a piece that is done in the process that has what the loop works on."""

    loop: str
    settings: tuple[Any, ...]
    first: int
    last: int
    state: State
    work: Work = field(compare=False)

    rows = 0
    portable = False

    def run(self, runs: Any) -> State:
        return self.work(self.state, self.first, self.last)


def in_stretches(
    hands: Hands,
    runs: Any,
    loop: str,
    settings: tuple[Any, ...],
    steps: int,
    at_once: int,
    state: State,
    work: Work,
) -> State:
    """The state after all steps.

    Args:
        hands: Of the runs.
        runs: What the loop works on, in the form in which it decides the result.
        loop: Its name.
        settings: Whatever else decides the result, as plain data and data classes.
        steps: How many.
        at_once: Steps in a stretch.
        state: Before the first one.
        work: Does a stretch.
    """
    for first in range(0, steps, at_once):
        piece = Stretch(loop, settings, first, min(steps, first + at_once), state, work)
        ((_, found),) = hands.do(runs, [piece])
        state = found.arrays
    return state


def adam_state(adam: torch.optim.Adam) -> dict[str, np.ndarray]:
    """The moments of each parameter, as arrays."""
    found: dict[str, np.ndarray] = {}
    for number, parameter in enumerate(adam.param_groups[0]["params"]):
        for name in ("exp_avg", "exp_avg_sq"):
            found[f"{name}.{number}"] = adam.state[parameter][name].detach().cpu().numpy().copy()
    return found


def restore_adam(adam: torch.optim.Adam, state: State, steps: int) -> None:
    """Put the moments back, after so many steps; nothing after none."""
    if not steps:
        return
    for number, parameter in enumerate(adam.param_groups[0]["params"]):
        adam.state[parameter] = {
            "step": torch.tensor(float(steps)),
            **{
                name: torch.from_numpy(state[f"{name}.{number}"].copy()).to(parameter)
                for name in ("exp_avg", "exp_avg_sq")
            },
        }
