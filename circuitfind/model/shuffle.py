"""A model whose weights are shuffled: the same parts and the same numbers in each of them, and nothing learned.

What a pipeline says of such a model is what it says of anything (Adebayo et al. 2018, arXiv 1810.03292; Heap et al. 2025,
arXiv 2501.17727).
"""

from __future__ import annotations

from copy import deepcopy

import torch

from circuitfind.errors import UnsupportedError
from circuitfind.model.bridge import Model


def shuffled(model: Model, seed: int) -> Model:
    """The model with the entries of every weight tensor in another order; tied weights stay tied.

    The model itself stays as it is: another copy of its weights is made.

    Raises:
        UnsupportedError: Its MLPs are split, and what its units are belongs to the weights that it has; or it is offloaded.
    """
    if model.anatomy.split:
        raise UnsupportedError(
            "neurons and features are those of the model as it was trained",
            hint="shuffle the weights of the model before it is split",
        )
    if model.placement is not None:
        raise UnsupportedError(
            "a model whose weights are offloaded has no second copy to shuffle",
            hint="look at the other controls, or leave out --device-map and --max-memory",
        )
    bridge = deepcopy(model.bridge)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bridge.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    return Model(
        bridge,
        name=f"{model.name} (weights shuffled)",
        fingerprint=f"{model.fingerprint}-shuffled-{seed}",
        tokenizer=model.tokenizer,
        source=model.source,
        n_vocab_out=model.n_vocab_out,
    )
