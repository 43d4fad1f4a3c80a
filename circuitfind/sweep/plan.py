"""What the cells of a sweep would take. Writes nothing; the model is loaded where something is not cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuitfind.check.run import NoModel
from circuitfind.errors import CircuitfindError
from circuitfind.plan import make_plan
from circuitfind.session import Session, stage_keys
from circuitfind.sweep.cells import Cell
from circuitfind.sweep.run import Lender, Place, refusal


@dataclass(frozen=True)
class CellPlan:
    """One cell.

    Attributes:
        run: Name of its run folder.
        cached: Whether everything is there.
        state: The same in words: ``cached``, ``3 of 7 cached``, ``to run``, ``would fail``, ``not estimated``.
        forward, backward: Passes over all prompts at the most; None where they are not known.
        seconds: About how long.
        problem: Why it would fail.
    """

    label: str
    told: dict[str, str]
    state: str
    run: str | None = None
    cached: bool = False
    forward: int | None = None
    backward: int | None = None
    seconds: float = 0.0
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_sweep(cells: Sequence[Cell], place: Place, report: Callable[[str], None]) -> list[CellPlan]:
    """Plan each cell, in the order in which they are listed; ``report`` hears the label of each."""
    lender, seen = Lender(place.device), set[str]()
    found = []
    for cell in cells:
        report(cell.label)
        found.append(_plan(cell, place, lender, seen))
    return found


def _plan(cell: Cell, place: Place, lender: Lender, seen: set[str]) -> CellPlan:
    """``seen`` holds the keys of stages that cells before this one make."""
    told = dict(cell.told)
    try:
        settings = cell.settings()
        if settings.nodes == "features":
            return CellPlan(cell.label, told, "not estimated")
        session = Session(cell.spec, settings, place.device, memory=place.memory, lend=lender.lend)
        plan = make_plan(
            session,
            place.outputs,
            force=place.force,
            formats=place.formats,
            controls=cell.controls,
            views=cell.views,
        )
        keys = stage_keys(session)
    except (CircuitfindError, NoModel) as error:
        return CellPlan(cell.label, told, "would fail", problem=str(refusal(error)["problem"]))
    left = [one for one in plan.stages if one.state != "cached" and keys.get(one.name) not in seen]
    seen |= set(keys.values())
    cached = sum(one.state == "cached" for one in plan.stages)
    whole = cached == len(plan.stages)
    return CellPlan(
        cell.label,
        told,
        "cached" if whole else f"{cached} of {len(plan.stages)} cached" if cached else "to run",
        plan.run,
        whole,
        sum(one.forward for one in left),
        sum(one.backward for one in left),
        sum(one.seconds for one in left),
    )
