"""A model on torch's ``meta`` device, which stands for a GPU: tensors have shapes and a device there, and no values.

What asks for a value of such a tensor (an ``if``, ``nonzero``, a mask as an index, a copy to the host) fails, and so does
most of what mixes it with a tensor of the CPU. A pass that runs through on it never waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from circuitfind.model.bridge import Model

META = torch.device("meta")


def on_meta(thing: Any) -> Any:
    """The same with every tensor on the device, in dataclasses, lists, tuples and dictionaries too."""
    if isinstance(thing, Tensor):
        return thing.to(META)
    if isinstance(thing, (list, tuple)):
        return type(thing)(map(on_meta, thing))
    if isinstance(thing, Mapping):
        return {key: on_meta(value) for key, value in thing.items()}
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: on_meta(getattr(thing, f.name)) for f in fields(thing) if f.init})
    return thing


def model_on_meta(model: Model) -> Model:
    """A model of the same shapes; its prompts are embedded without the bridge, which has no part in a pass."""
    found = copy(model)
    for name, value in vars(model).items():
        setattr(found, name, on_meta(value))
    found.bridge = SimpleNamespace(parameters=lambda: iter([model.w_u.to(META)]))

    def embed(tokens: Tensor) -> Tensor:
        assert tokens.device == META
        return torch.empty(*tokens.shape, model.d_model, device=META, dtype=model.w_u.dtype)

    found.embed = embed  # type: ignore[method-assign]
    return found
