"""Exact effects of every writer on the metric, prompt by prompt: replaced alone, restored alone, and written directly.

    noising    m(clean) - m(clean run with the node's ablated value)
    denoising  m(corrupted run with the node's clean value) - m(corrupted)
    direct     what the node adds to the metric through the stream alone: its output at the answer position times the
               gradient of the metric there, with the final norm divided by its clean scale

Where the metric is linear in the logits, the direct effects of all writers and what biases write add up to it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from circuitfind.circuit.graph import Interval
from circuitfind.circuit.intervals import intervals
from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction
from circuitfind.methods.exact import effects, needs_corrupted_run
from circuitfind.model.gradients import unembed_gradient
from circuitfind.model.node_pass import Patch
from circuitfind.model.readout import logits_readout
from circuitfind.model.runs import Runs
from circuitfind.model.transfer import to_host

ByPrompt = Float[np.ndarray, "writer prompt"]


def patched_effects(runs: Runs, direction: Direction, ablation: Ablation) -> ByPrompt:
    """What each writer does to the metric when it alone is replaced, or has its clean value.

    Raises:
        UnsupportedError: There is no corrupted run to put clean values into, or what is carried cannot be had.
    """
    needs_corrupted_run(direction, ablation)
    each = [Patch(nodes=row) for row in np.eye(len(runs.model.anatomy.writers), dtype=bool)]
    return runs.fitted(lambda: effects(runs, each, direction, ablation))


def scored_effects(scores: Scores, runs: Runs, direction: Direction, ablation: Ablation) -> ByPrompt | None:
    """The same from scores that are just that; None where they are not."""
    found = scores.per_prompt
    alike = (scores.method, scores.direction, scores.ablation, scores.metric) == (
        "activation-patching",
        direction,
        ablation,
        runs.metric.name,
    )
    # With further arrays both directions were run, and the values are of the larger effect.
    if not alike or found is None or scores.extra or scores.anatomy != runs.model.anatomy:
        return None
    return found.T.copy() if found.shape == (len(runs), len(scores.anatomy.writers)) else None


def direct_effects(runs: Runs) -> ByPrompt:
    """What each writer adds to the metric through the stream alone, in the clean run.

    Parts of MLPs that are split count one by one.

    Raises:
        UnsupportedError: The metric has no gradient there.
    """
    runs.check_gradient("clean")
    model, anatomy = runs.model, runs.model.anatomy
    out = np.zeros((len(anatomy.writers), len(runs)))
    for number, batch in enumerate(runs.batches):
        trace = runs.trace(number, "clean")
        _, gradient = unembed_gradient(model, trace, partial(runs.metric_of, number))
        direction = logits_readout(model, trace, gradient).direction[:, 0]
        written = trace.writes.map(trace.place.at_answer)
        with torch.no_grad():
            found = direction.new_empty((len(out), len(direction)), dtype=torch.float32)
            found[0] = (written.input[:, 0] * direction).sum(-1).float()
            for index, layer in enumerate(model.layers):
                back = torch.einsum("rm,hdm->rhd", direction, layer.w_o)
                found[anatomy.head_slice(index)] = (written.z[index][:, 0] * back).sum(-1).T.float()
                rows = anatomy.mlp_slice(index)
                if rows.stop > rows.start:
                    each = direction.new_empty((rows.stop - rows.start, *direction.shape))
                    written.into(model, index, each)
                    found[rows] = (each * direction).sum(-1).float()
        out[:, batch.index] = to_host(found)[0]
    return out


def means(values: ByPrompt, *, seed: int = 0) -> list[Interval]:
    """The mean of each row over prompts, with its interval.

    Raises:
        ValueError: There is no prompt, or a value is not finite.
    """
    return intervals(values.T, lambda drawn: drawn, seed=seed)
