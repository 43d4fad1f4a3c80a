"""From runs to a recipe that another process makes the same runs of, and to what that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from circuitfind.engine.base import Needs, Recipe
from circuitfind.model.memory import token_bytes
from circuitfind.model.pieces import digest
from circuitfind.model.runs import Runs
from circuitfind.model.writes import Writes

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model

_Made = tuple[Any, Any, str, str, Recipe]
_known: WeakKeyDictionary[Runs, _Made] = WeakKeyDictionary()


def why_not(runs: Runs) -> str | None:
    """What keeps another process from making the same runs; None if nothing does."""
    if type(runs) is not Runs:
        return "two models at once"
    if runs.model.anatomy.split:
        return "a model whose neurons or features are nodes"
    if runs.model.loaded_as is None:
        return "a model whose weights were changed"
    return None


def recipe_of(runs: Runs, device: str = "auto") -> Recipe:
    """The recipe of some runs as they are now; made once, and again when their batches, constants or precision change.

    Args:
        runs: Runs that nothing keeps from it (``why_not``).
        device: As the user named it; ``auto`` is the kind of device that the model is on.
    """
    model = runs.model
    before = _known.get(runs)
    if before is not None:
        plan, constants, precision, where, found = before
        if (
            plan is runs.plan
            and constants is runs.constants
            and (precision, where) == (model.precision, device)
        ):
            return found
    assert model.loaded_as is not None
    found = Recipe(
        model=model.loaded_as,
        device=model.device.type if device == "auto" else device,
        fingerprint=model.fingerprint,
        pairs=runs.pairs,
        metric=runs.metric.name,
        mean_over=runs.mean_over,
        plan=runs.plan,
        precision=model.precision,
        constants=None if runs.constants is None else constants_of(runs.constants),
    )
    found = replace(found, key=_key(found))
    _known[runs] = runs.plan, runs.constants, model.precision, device, found
    return found


def _key(recipe: Recipe) -> str:
    """A hash of everything that decides what comes of it."""
    return digest(
        recipe.model,
        recipe.device,
        recipe.fingerprint,
        recipe.pairs.content_hash(),
        [pair.group for pair in recipe.pairs],  # means are taken over those of one group
        recipe.metric,
        recipe.mean_over,
        recipe.plan,
        recipe.precision,
        recipe.constants,
        recipe.options,
    )


def needs_of(runs: Runs, recipe: Recipe) -> Needs:
    """What its pieces take beside each other: a batch and a pass of it, what is kept of both, and the weights."""
    model, plan = runs.model, runs.plan
    cost = token_bytes(model, edges=plan.edge_tokens > 0)
    sizes = [batch.clean.numel() for batch in runs.batches]
    batch = max(sizes) * 2 * (cost["run"] + cost["kept"] + cost["gap"])
    wide = max(plan.pass_tokens * cost["node"], plan.edge_tokens * cost["edge"])
    kept = min(plan.cache_bytes, 2 * sum(sizes) * (cost["run"] + cost["gap"]))
    weights = sum(one.numel() * one.element_size() for one in model.bridge.parameters())
    if model.placement is not None:
        weights = model.placement.here + model.placement.window
    return Needs(
        memory=min(plan.budget, batch + wide + kept),
        weights=weights,
        gpus=float(model.device.type == "cuda"),
        warm=f"{recipe.model} {recipe.fingerprint}",
    )


# Constants of the optimal ablation.


def constants_of(writes: Writes) -> Mapping[str, Any]:
    """Learned constants as arrays."""

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().cpu().numpy()

    return {
        "input": array(writes.input),
        "z": [array(one) for one in writes.z],
        "mlp": None if writes.mlp is None else [array(one) for one in writes.mlp],
    }


def constants_on(arrays: Mapping[str, Any] | None, model: Model) -> Writes | None:
    """The same as tensors on a model's device."""
    if arrays is None:
        return None

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.copy()).to(model.device)

    mlp = arrays["mlp"]
    return Writes(
        tensor(arrays["input"]),
        [tensor(one) for one in arrays["z"]],
        None if mlp is None else [tensor(one) for one in mlp],
    )
