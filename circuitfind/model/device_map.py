"""Which block of a model lies where: accelerate's device map over whole blocks, for a budget of each device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from circuitfind.errors import ModelError, UsageError, did_you_mean
from circuitfind.model.memory import free_bytes
from circuitfind.offload import Device, Offload
from circuitfind.sizes import size_text

FREE_SHARE = 0.5
"""Share of what is free on the device that computes that weights may take where no budget is given; passes take the rest."""
OTHER_SHARE = 0.9
"""The same on the other devices, where no passes run."""
FP32 = 4


@dataclass(frozen=True)
class DeviceMap:
    """Where modules lie.

    Attributes:
        modules: Module names to devices; what is in a module lies where it does.
        device: The one that computes.
        budget: Bytes that weights may take there.
        block: Bytes of the largest block in 32 bits.
    """

    modules: Mapping[str, Device]
    device: torch.device
    budget: int
    block: int

    def of(self, name: str) -> str:
        """Where a module lies: ``here`` (where the passes run), ``cuda:1``, ``cpu`` or ``disk``."""
        parts = name.split(".") if name else []
        for end in range(len(parts), -1, -1):
            prefix = ".".join(parts[:end])
            if prefix in self.modules:
                return self._told(self.modules[prefix])
        raise UsageError(
            f"the device map has no device for '{name}'", hint='add it, or "" for all that is not named'
        )

    def _told(self, where: Device) -> str:
        if where == key_of(self.device):
            return "here"
        return f"cuda:{where}" if isinstance(where, int) else where


def key_of(device: torch.device) -> Device:
    """What a device is called in a device map."""
    return (device.index or 0) if device.type == "cuda" else "cpu"


def make_device_map(hf_model: Any, offload: Offload, device: torch.device) -> DeviceMap:
    """Place a model without weights.

    Args:
        hf_model: On the meta device; its parameters are counted in 32 bits.
        offload: What the user asked for.
        device: The one that computes.

    Raises:
        ModelError: A block does not fit the budget of the device that computes, or all budgets together are too small.
        UsageError: The map names what is not there.
    """
    if device.type not in ("cuda", "cpu"):
        raise UsageError(
            f"weights are not placed around {device.type}",
            hint="use --device cuda or cpu, or no --device-map",
        )
    _check_devices(offload, device)
    if str(device) == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    blocks = _blocks(hf_model)
    block = max((_bytes(one) for one in blocks.values()), default=0)
    budget = int(offload.max_memory.get(key_of(device), FREE_SHARE * free_bytes(device)))
    if not isinstance(offload.device_map, str):
        assert offload.device_map is not None
        _check_names(hf_model, offload.device_map)
        return DeviceMap(offload.device_map, device, budget, block)
    if offload.device_map == "disk" or (offload.device_map == "cpu" and device.type == "cuda"):
        _check_block(block, budget, device)
        return DeviceMap({"": offload.device_map}, device, budget, block)
    if offload.device_map == "cpu" and key_of(device) not in offload.max_memory:
        return DeviceMap({"": "cpu"}, device, budget, block)
    return DeviceMap(_computed(hf_model, offload, device, budget, block), device, budget, block)


def _computed(
    hf_model: Any, offload: Offload, device: torch.device, budget: int, block: int
) -> dict[str, Device]:
    """Accelerate's map; where not all fits, room is left for the block that computes and the one that comes next."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    here = key_of(device)
    room: dict[Device, int] = {here: budget}
    for index in range(torch.cuda.device_count() if device.type == "cuda" else 0):
        if index != here:
            free = int(OTHER_SHARE * torch.cuda.mem_get_info(index)[0])
            room[index] = offload.max_memory.get(index, free)
    if here != "cpu":
        cpu = torch.device("cpu")
        room["cpu"] = offload.max_memory.get("cpu", int(OTHER_SHARE * free_bytes(cpu)))
    whole = _bytes(hf_model)
    # One GPU computes: only with a budget for it that is too small does anything lie on another.
    if whole <= budget and offload.device_map not in ("balanced", "balanced_low_0"):
        return {"": here}
    _check_block(block, budget, device)
    split = {"no_split_module_classes": list(getattr(hf_model, "_no_split_modules", None) or ())}
    if offload.device_map != "sequential" and len([one for one in room if isinstance(one, int)]) > 1:
        room = get_balanced_memory(
            hf_model, room, dtype=torch.float32, low_zero=offload.device_map == "balanced_low_0", **split
        )
    if whole > room[here]:
        # Accelerate itself leaves room for one block on the devices that compute.
        room[here] = max(0, room[here] - min(block, max(0, budget - block)))
    found: dict[str, Device] = infer_auto_device_map(hf_model, room, dtype=torch.float32, **split)
    return found


def _check_block(block: int, budget: int, device: torch.device) -> None:
    if block > budget:
        raise ModelError(
            f"one block of the model takes {size_text(block)} in 32 bits, and weights may take {size_text(budget)} on {device}",
            hint=f"passes bring one block at a time: give it room, such as --max-memory {key_of(device)}={size_text(2 * block)}",
        )


def _check_devices(offload: Offload, device: torch.device) -> None:
    """Refuse GPUs that are not there."""
    named = set(offload.max_memory)
    if isinstance(offload.device_map, Mapping):
        named |= set(offload.device_map.values())
    count = torch.cuda.device_count()
    missing = sorted(one for one in named if isinstance(one, int) and one >= count)
    if missing:
        there = (
            f"there are {count}, numbered from 0" if count else "there is none here: name cpu and disk alone"
        )
        raise UsageError(f"there is no GPU {missing[0]}", hint=there)
    if device.type == "cpu" and any(isinstance(one, int) for one in named):
        raise UsageError("weights on a GPU are of no use to --device cpu", hint="use --device cuda")


def _check_names(hf_model: Any, given: Mapping[str, Device]) -> None:
    names = [name for name, _ in hf_model.named_modules()]
    for name in given:
        if name not in names:
            raise UsageError(
                f"the device map names a module '{name}' that the model does not have",
                hint=did_you_mean(name, names),
            )
    for name, one in _blocks(hf_model).items():
        inside = [key for key in given if key.startswith(f"{name}.")]
        if inside:
            raise UsageError(
                f"the device map splits a block: '{inside[0]}'",
                hint=f"a {type(one).__name__} lies on one device: name '{name}'",
            )


def _blocks(hf_model: Any) -> dict[str, nn.Module]:
    """Modules that lie on one device whole."""
    kinds = set(getattr(hf_model, "_no_split_modules", None) or ())
    return {name: one for name, one in hf_model.named_modules() if type(one).__name__ in kinds}


def _bytes(module: nn.Module) -> int:
    return FP32 * sum(parameter.numel() for parameter in module.parameters())
