"""Scores hold numbers: what is no number is told by the stage that made it, and never written."""

from __future__ import annotations

import numpy as np

from circuitfind.circuit.scores import Scores
from circuitfind.errors import RunError
from circuitfind.model.bridge import Model
from circuitfind.model.precision import advice


def checked(scores: Scores, model: Model) -> Scores:
    """The scores, when every node or edge that there is has one and none is infinite.

    NaN stands for what does not exist, and in ``extra`` for what was not computed.

    Raises:
        RunError: A score is no number.
    """
    anatomy, edges = scores.anatomy, scores.level == "edge"
    real = anatomy.edge_mask if edges else np.ones(len(anatomy.writers), dtype=bool)
    bad = np.argwhere(real & ~np.isfinite(scores.values))
    if len(bad):
        first = anatomy.edge_at(*map(int, bad[0])) if edges else anatomy.writers[int(bad[0][0])]
        raise _told(
            scores, model, f"{len(bad)} of {int(real.sum())} {scores.level}s, {first} the first of them"
        )
    if scores.by_position is not None:
        bad = np.argwhere(real & ~np.isfinite(scores.by_position))
        if len(bad) and scores.position_names is not None:
            raise _told(scores, model, f"position {scores.position_names[int(bad[0][0])]}")
    for name, array in (("nodes", scores.nodes), ("per_prompt", scores.per_prompt)):
        if array is not None and not np.isfinite(array).all():
            place = np.argwhere(~np.isfinite(array))[0]
            node = anatomy.writers[int(place[-1])]
            prompt = f" on prompt {int(place[0]) + 1}" if name == "per_prompt" else ""
            raise _told(scores, model, f"the node {node}{prompt}")
    wrong = next((name for name, array in scores.extra.items() if _infinite(array)), None)
    if wrong is not None:
        raise _told(scores, model, f"what it says of '{wrong}'")
    return scores


def _infinite(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and bool(np.isinf(array).any())


def _told(scores: Scores, model: Model, where: str) -> RunError:
    return RunError(f"{scores.method} gives NaN or infinite scores: {where}", hint=advice(model))
