"""How much fits: a budget in bytes, shared out as prompts to a batch and rows to a pass."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model

SPARE = 0.8
"""Share of what is free that is used when no budget is given."""
CPU_TOKENS, GPU_TOKENS = 4096, 65536
"""Rows beyond this many tokens make a pass no faster."""
CPU_BATCH, GPU_BATCH = 1024, 65536
"""The same for the tokens of a batch, whose runs are held while it is worked on."""

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``8GB``, ``500 MB`` or ``2GiB``.

    Raises:
        UsageError: It is none.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].lower() not in _UNITS:
        raise UsageError(
            f"'{text}' is no amount of memory", hint="give a number and a unit, such as 8GB or 500MB"
        )
    return int(float(found[1]) * _UNITS[found[2].lower()])


def free_bytes(device: torch.device) -> int:
    """What is free on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 4 << 30  # not Linux: a size that any machine with a model on it has


@dataclass(frozen=True)
class MemoryPlan:
    """What a budget allows.

    Attributes:
        budget: Bytes beyond the model's weights.
        prompt_tokens: Tokens of the longest prompt that it has room for.
        batch_tokens: Tokens of one side in a batch.
        pass_tokens: Tokens in the rows of a pass that replaces nodes.
        edge_tokens: The same for a pass that replaces edges.
        cache_bytes: What is kept of finished work: half for runs, half for what patched passes start from.
    """

    budget: int
    prompt_tokens: int
    batch_tokens: int
    pass_tokens: int
    edge_tokens: int
    cache_bytes: int

    def halved(self, batch: int = 0, rows: int = 0) -> MemoryPlan:
        """A plan for when this one was too large after all.

        Args:
            batch: Tokens of the batch that did not fit, if it was a batch.
            rows: Tokens in the rows of the pass that did not fit, if it was a pass.
        """
        batch = min(self.batch_tokens, batch or self.batch_tokens)
        wide, edges = (min(most, rows or most) for most in (self.pass_tokens, self.edge_tokens))
        return MemoryPlan(
            self.budget // 2,
            max(1, self.prompt_tokens // 2),
            max(1, batch if rows else batch // 2),
            max(1, wide // 2),
            max(min(1, edges), edges // 2),
            self.cache_bytes // 2,
        )


def token_bytes(model: Model, *, edges: bool = True) -> dict[str, int]:
    """Bytes for each token: of a finished run, of what its backward pass needs, of a pass over nodes or edges.

    Without ``edges`` no table of what each writer adds is made.
    """
    size, d, layers = model.dtype.itemsize, model.d_model, len(model.layers)
    layer, anatomy = model.layers[0], model.anatomy
    heads, qkv = layer.n_heads * layer.d_head, int(layer.w_qkv.shape[1])
    gated = 2 if layer.mlp is not None and layer.mlp.w_gate is not None else 1
    readers = layer.n_heads + 2 * layer.n_kv_heads + int(model.has_mlp)
    split = [one.parts for one in model.layers if one.parts is not None]
    held = max((parts.n_held for parts in split), default=0)
    units = sum(len(parts.units) + d for parts in split)
    run = (layers * (2 * d + qkv + heads + d * int(model.has_mlp)) + units) * size
    return {
        "run": run,
        "kept": (layers * (gated * model.d_mlp + qkv) + len(split) * held) * size,
        "node": (6 * d + 2 * qkv + heads + (2 + gated) * model.d_mlp + 4 * held) * size,
        "edge": ((len(anatomy.writers) + 3 * readers) * d + (2 + gated) * model.d_mlp) * size,
        "gap": len(anatomy.writers) * d * size if edges else 0,
    }


def make_plan(model: Model, budget: int | None, *, edges: bool = True) -> MemoryPlan:
    """Share a budget out; without one, most of what is free now. ``edges`` says whether any will be looked at."""
    if budget is None:
        budget = int(SPARE * free_bytes(model.device))
    cost = token_bytes(model, edges=edges)
    cuda = model.device.type == "cuda"
    most, largest = (GPU_TOKENS, GPU_BATCH) if cuda else (CPU_TOKENS, CPU_BATCH)
    # Half for the batch (both runs, the table of differences, its scores), a quarter for the rows of a pass.
    batch = int(0.5 * budget) // (2 * (cost["run"] + cost["kept"]) + 2 * cost["gap"])
    return MemoryPlan(
        budget=budget,
        prompt_tokens=max(1, batch),
        batch_tokens=max(1, min(largest, batch)),
        pass_tokens=max(1, min(most, int(0.25 * budget) // cost["node"])),
        edge_tokens=max(1, min(most, int(0.25 * budget) // cost["edge"])) if edges else 0,
        cache_bytes=int(0.25 * budget),
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate" in text)
