"""Doing a stage that is not finished: what it gives is written and recorded, and what an interrupted run kept is taken up."""

from __future__ import annotations

import time
from collections.abc import Callable

from circuitfind.backup_stage import Made
from circuitfind.engine.chosen import engine
from circuitfind.errors import RunError
from circuitfind.output.store import Run, Stage
from circuitfind.session import Session


def carry_out(
    session: Session, run: Run, name: str, key: str, work: Callable[[], Made], *, fresh: bool
) -> Stage:
    """Do a stage from where an interrupted run left it, and record it.

    Args:
        session: What the stages share.
        run: The folder, entered.
        name: Of the stage.
        key: What it depends on.
        work: Gives its files and facts.
        fresh: Begin at the beginning, whatever was kept.

    Raises:
        CircuitfindError: What the work raised; a ``RunError`` names the stage.
    """
    tell = session.reporter
    tell.stage(name, "running")
    loaded = "model" in vars(session)
    before = session.passes() if loaded else {"forward": 0, "backward": 0}
    start = time.perf_counter()
    journal = run.journal(name, key, fresh=fresh)
    if journal.damaged:
        tell.note(f"{name}: part of what the interrupted run kept is damaged and is computed again")
    try:
        with session.hands.stage(journal, [session.model.passes] if loaded else []):
            made, facts = work()
    except RunError as error:
        error.details = (*error.details, f"in the stage '{name}'")
        raise
    if journal.problem is not None:
        tell.note(f"{name}: not all was kept for the case of an interruption: {journal.problem}")
    seconds = time.perf_counter() - start
    after = session.passes() if "model" in vars(session) else before
    facts = {
        **facts,
        "seconds": round(seconds, 3),
        "forward_passes": after["forward"] - before["forward"],
        "backward_passes": after["backward"] - before["backward"],
    }
    resumed = session.hands.resumed
    if resumed:
        facts["resumed_pieces"] = resumed
    if run.manifest["device"] is None:
        record_device(session, run)  # now: a run that is killed and goes on may load no model any more
    stage = run.finish_stage(name, key, made, facts)
    journal.remove()
    kept = f", {resumed} pieces of it kept from the run that was interrupted" if resumed else ""
    tell.stage(name, "finished", f"{seconds:.1f} s{kept}")
    return stage


def record_device(session: Session, run: Run) -> None:
    """Where the model ran, if it did."""
    if "model" in vars(session):
        model = session.model
        run.record(device=str(model.device), dtype=str(model.dtype).removeprefix("torch."))
        if (used := engine()) is not None:
            run.record(engine=used.facts)
        if model.placement is not None:
            run.record(placement=model.placement.facts())
