"""How much fits: a budget in bytes, shared out as prompts to a batch and rows to a pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from circuitfind.errors import UsageError
from circuitfind.machine import free_memory
from circuitfind.model.shapes import Widths
from circuitfind.offload import current

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model

Spilled = Literal["none", "cpu", "disk"]

SPARE = 0.8
"""Share of what is free that is used when no budget is given."""
CPU_TOKENS, GPU_TOKENS = 4096, 65536
"""Rows beyond this many tokens make a pass no faster."""
CPU_BATCH, GPU_BATCH = 1024, 65536
"""The same for the tokens of a batch, whose runs are held while it is worked on."""


def free_bytes(device: torch.device) -> int:
    """What is free on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


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
        spill: Where runs go that are not kept: ``cpu``, ``disk``, or nowhere (``none``): they are computed again.
    """

    budget: int
    prompt_tokens: int
    batch_tokens: int
    pass_tokens: int
    edge_tokens: int
    cache_bytes: int
    spill: Spilled = "none"

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
            self.spill,
        )


def token_bytes(model: Model, *, edges: bool = True) -> dict[str, int]:
    """Bytes for each token: of a finished run, of what its backward pass needs, of a pass over nodes or edges.

    Without ``edges`` no table of what each writer adds is made.
    """
    return widths(model).token_bytes(model.dtype.itemsize, edges=edges)


def widths(model: Model) -> Widths:
    """What the bytes of a token depend on, of a loaded model."""
    layer, d = model.layers[0], model.d_model
    split = [one.parts for one in model.layers if one.parts is not None]
    return Widths(
        n_layers=len(model.layers),
        d_model=d,
        qkv=int(layer.w_qkv.shape[1]),
        heads=layer.n_heads * layer.d_head,
        d_mlp=model.d_mlp,
        has_mlp=model.has_mlp,
        gated=layer.mlp is not None and layer.mlp.w_gate is not None,
        writers=len(model.anatomy.writers),
        readers=layer.n_heads + 2 * layer.n_kv_heads + int(model.has_mlp),
        units=sum(len(parts.units) + d for parts in split),
        split=len(split),
        held=max((parts.n_held for parts in split), default=0),
    )


def copied_bytes(model: Model) -> int:
    """What passes hold of the weights in another layout, beside what TransformerLens holds."""
    if model.placement is not None:  # which holds each block once
        return 0
    own = {t.untyped_storage().data_ptr() for t in (*model.bridge.parameters(), *model.bridge.buffers())}
    found = {}
    for layer in model.layers:
        tensors = [layer.w_qkv, layer.b_qkv, layer.w_o, layer.w_o_raw]
        for one in (t.untyped_storage() for t in tensors if t is not None):
            if one.data_ptr() not in own:
                found[one.data_ptr()] = one.nbytes()
    return sum(found.values())


def make_plan(model: Model, budget: int | None, *, edges: bool = True) -> MemoryPlan:
    """Share a budget out; without one, most of what is free now. ``edges`` says whether any will be looked at."""
    placement = model.placement
    if budget is None:
        # Room for the blocks that are still to be brought is no room for passes.
        budget = int(SPARE * max(0, free_bytes(model.device) - (placement.window if placement else 0)))
    cuda = model.device.type == "cuda"
    found = share_out(budget, token_bytes(model, edges=edges), cuda=cuda, edges=edges)
    return replace(found, spill=spilled(cuda=cuda, offloaded=placement is not None and placement.offloads))


def spilled(*, cuda: bool, offloaded: bool) -> Spilled:
    """Where runs go that are not kept. By itself only an offloaded model's: all its weights come along to compute them again.

    Raises:
        UsageError: They are in CPU memory already.
    """
    asked = current().activations
    if asked == "cpu" and not cuda:
        raise UsageError(
            "--offload-activations cpu says nothing with --device cpu, where they are already",
            hint="use --offload-activations disk, or leave it out",
        )
    if asked != "auto":
        return asked
    return ("cpu" if cuda else "disk") if offloaded else "none"


def share_out(budget: int, cost: Mapping[str, int], *, cuda: bool, edges: bool = True) -> MemoryPlan:
    """Share a budget out where a token takes what ``token_bytes`` says."""
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
