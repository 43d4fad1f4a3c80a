"""What a model says next, for prompts of any length; for looking at prompts, not for patching them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.errors import PromptError
from circuitfind.model.bridge import Model
from circuitfind.model.forward import Place, run_trace
from circuitfind.model.memory import make_plan


def next_logits(model: Model, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompt vocab"]:
    """Logits behind the last token of each prompt, on the CPU. Prompts of one length share passes.

    Raises:
        PromptError: A prompt is empty or longer than the model reads.
    """
    lengths: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= model.n_ctx:
            raise PromptError(
                f"a prompt has {len(prompt)} tokens, and {model.name} reads 1 to {model.n_ctx}",
                hint="give a prompt of another length",
            )
        lengths[len(prompt)].append(i)
    out = torch.empty(len(prompts), int(model.w_u.shape[-1]))
    tokens = make_plan(model, None, edges=False).pass_tokens
    with torch.no_grad():
        for length, members in lengths.items():
            step = max(1, tokens // length)
            for start in range(0, len(members), step):
                some = members[start : start + step]
                ids = torch.tensor([list(prompts[i]) for i in some], device=model.device)
                last = torch.full((len(some),), length - 1, device=model.device)
                trace = run_trace(model, model.embed(ids), Place(0, length, last))
                out[some] = model.head(trace.final).float().cpu()
    return out
