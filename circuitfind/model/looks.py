"""Where heads look: attention from each prompt's answer position in the clean run."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from circuitfind.model.runs import Runs


def answer_attention(runs: Runs) -> Float[np.ndarray, "writer prompt pos"]:
    """The attention of every head from the answer position; zero for other writers and beyond a prompt's end."""
    anatomy = runs.model.anatomy
    longest = max(int(batch.clean.shape[1]) for batch in runs.batches)
    out = np.zeros((len(anatomy.writers), len(runs), longest))
    for number, batch in enumerate(runs.batches):
        trace = runs.trace(number, "clean")
        place, rows = trace.place, torch.arange(len(batch.index))
        for index, (layer, block) in enumerate(zip(runs.model.layers, trace.blocks, strict=True)):
            q = block.q
            if index < len(trace.blocks) - 1:
                q = q[rows, :, place.answers][:, :, None]
            with torch.no_grad():
                seen = layer.attention.pattern(q, block.k, place.visible(layer, True))[:, :, 0]
            out[anatomy.head_slice(index), batch.index[:, None], np.arange(seen.shape[-1])] = (
                seen.transpose(0, 1).float().cpu().numpy()
            )
    return out
