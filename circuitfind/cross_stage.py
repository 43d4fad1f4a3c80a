"""The scores of a run across two models: what the method says, and what each part's own weights changed.

Two things are measured of every part beside the method's scores, both by patching it alone. Its **total** effect: it writes
what it writes in model B, because its weights or because its inputs differ there. Its **own** effect: it writes what B's
part makes of A's stream, so only its own weights differ; zero for a part that was not trained.

Where a method scores edges, the scores of nodes are their total effects and not the sums of their edges: by a gradient such a
sum can be far off, as the two models need not be near.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuitfind.session import Session

if TYPE_CHECKING:
    from circuitfind.methods.base import Method
    from circuitfind.model.cross import CrossRuns

TOLD = 20
"""Parts that are listed at the most, those whose own weights changed most first."""

NOTHING = 1e-5
"""Share of the difference below which an effect is rounding."""

ROUNDING = 1e-6
"""The same of scores, as a share of the largest."""

Made = tuple[dict[str, bytes | str], dict[str, Any]]


def score_across(session: Session, method: Method) -> Made:
    """Files and facts of the stage.

    Raises:
        CircuitfindError: The models do not fit, do not differ on the task, or B does it better.
    """
    from circuitfind.methods.finite import checked
    from circuitfind.model.cross import CrossRuns

    settings, runs = session.settings, session.runs
    assert isinstance(runs, CrossRuns)
    runs.check_gap()
    scores = method.run(
        runs, ablation=settings.ablation, direction=settings.direction, positions=settings.positions
    )
    checked(scores, session.model)
    effects = {"total": node_effects(runs), "own": node_effects(runs.transplanting())}
    means = {f"across.{name}": _rounded(found.mean(1)) for name, found in effects.items()}
    facts = {"level": scores.level, **scores.facts, "model_b": _told(runs, effects)}
    session.reporter.note("backups are not looked for, and no evidence is gathered: both are of one model")
    if scores.nodes is not None:
        means["across.attributed"] = scores.nodes
        scores = replace(scores, nodes=means["across.total"])
    scores = replace(scores, values=_rounded(scores.values), extra={**scores.extra, **means})
    return {"scores.npz": scores.to_bytes()}, facts


def _rounded(values: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """Scores with those set to zero that are rounding: below the first part that differs, both models write the same."""
    least = ROUNDING * float(np.nanmax(np.abs(values), initial=0.0))
    return np.where(np.abs(values) < least, 0.0, values)


def node_effects(runs: CrossRuns) -> Float[np.ndarray, "writer prompt"]:
    """What replacing each part alone takes from the metric of A."""
    from circuitfind.model.node_pass import Patch

    every = np.eye(len(runs.model.anatomy.writers), dtype=bool)
    return np.asarray(runs.clean - runs.patched([Patch(nodes=row) for row in every]))


def _told(runs: CrossRuns, effects: dict[str, Float[np.ndarray, "writer prompt"]]) -> dict[str, Any]:
    """What the two models do, and the parts whose own weights changed most, as plain data."""
    from circuitfind.circuit.evaluate import bootstrap_ratio

    gap = runs.clean - runs.corrupted
    total, own = (found.mean(1) for found in (effects["total"], effects["own"]))
    changed = np.flatnonzero(np.abs(own) > NOTHING * abs(gap.mean()))
    order = changed[np.argsort(-np.abs(own[changed]), kind="stable")]
    rows = []
    for row in order[:TOLD]:
        low, high = bootstrap_ratio(effects["own"][row], gap, seed=0)
        rows.append(
            {
                "name": runs.model.anatomy.writer_names[row],
                "own": float(own[row]),
                "total": float(total[row]),
                "share": {"value": float(own[row] / gap.mean()), "low": low, "high": high},
            }
        )
    return {
        "name": runs.model_b.name,
        "metric": {
            "model": float(runs.clean.mean()),
            "model_b": float(runs.in_b().mean()),
            "read_by_model": float(runs.corrupted.mean()),
        },
        "unembedding_differs": runs.heads_differ,
        "n_changed": len(changed),
        "n_parts": len(own),
        "changed": rows,
    }
