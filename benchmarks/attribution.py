"""The attribution graph of one prompt, with wide transcoders read from the disk, beside one pass over that prompt.

Random JumpReLU transcoders in circuit-tracer's format: what fires is chance, and the work depends on how much does. Thresholds
let about one feature in 250 fire on a token, as trained sets do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.case import TOKENS, Case, Closure

WIDTH = {"gpt2-small": 24_576, "four-layers": 4096, "tiny": 512}
"""Features of each layer."""
THRESHOLD = 2.65
"""Of pre-activations that are about standard normal: four in a thousand are larger."""


def transcoders(case: Case) -> Path:
    """The folder of the set, written when it is not there yet."""
    folder = case.folder / f"transcoders-{case.shape}"
    if (folder / "config.yaml").exists():
        return folder
    import torch
    from safetensors.torch import save_file

    config = case.bare.config
    width, d_model = WIDTH[case.shape], config.n_embd
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for layer in range(config.n_layer):
        tensors = {
            "W_enc": torch.randn(width, d_model, generator=generator) / d_model**0.5,
            "W_dec": torch.randn(width, d_model, generator=generator) / d_model**0.5,
            "b_enc": torch.zeros(width),
            "b_dec": torch.zeros(d_model),
            "activation_function.threshold": torch.full((width,), THRESHOLD),
        }
        save_file(tensors, folder / f"layer_{layer}.safetensors")
    lines = (
        "model_kind: transcoder_set",
        "feature_input_hook: mlp.hook_in",
        "feature_output_hook: hook_mlp_out",
    )
    (folder / "config.yaml").write_text("\n".join((*lines, f"model_name: {case.shape}", "")))
    return folder


def graph(case: Case) -> Closure:
    """From a prompt and a folder to the graph, pruned: dictionaries are read each time."""
    from circuitfind.attribution.build import attribute
    from circuitfind.attribution.prune import prune
    from circuitfind.attribution.sets import stream_dictionaries

    folder, model, prompt = transcoders(case), case.model, case.rows("early", 1)[0][0]

    def run() -> Any:
        (found,) = attribute(model, [prompt], stream_dictionaries(folder))
        return prune(found)

    return run


def one_prompt(case: Case) -> Closure:
    """One forward and backward pass of the bare model over that prompt."""
    import torch

    model = case.bare
    tokens = torch.tensor(case.rows("early", 1)[0], device=case.device)

    def run() -> None:
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits[:, -1]
        torch.autograd.grad((logits[:, 1] - logits[:, 2]).sum(), embedded)

    return run


PROMPT = f"F+B of one prompt of {TOKENS} tokens"
SIDES = {"attribution": graph, PROMPT: one_prompt}
