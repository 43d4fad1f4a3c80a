"""A model whose MLPs are a sparse code by construction, and texts for tiny models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from circuitfind.dictionaries.activations import Sample
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.texts import Sequences
from circuitfind.dictionaries.train import TranscoderSettings
from circuitfind.dictionaries.trainee import Trainee
from circuitfind.model.bridge import Model


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


class Known:
    """Inputs are sums of a few known directions; each present one writes its own known direction."""

    def __init__(self, *, features: int = 24, dims: int = 20, present: int = 3, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.read = unit(torch.randn(features, dims, generator=self.generator))
        self.write = unit(torch.randn(features, dims, generator=self.generator))
        self.rate = present / features

    def sample(self, tokens: int) -> Sample:
        shape = (tokens, len(self.read))
        there = torch.rand(shape, generator=self.generator) < self.rate
        size = 1 + torch.rand(shape, generator=self.generator)
        code = there * size
        return Sample(code @ self.read, code @ self.write)


def learn(known: Known, settings: TranscoderSettings) -> Trainee:
    """Train on fresh samples."""
    trainee = Trainee(0, settings, known.sample(8192))
    for step in range(settings.steps):
        trainee.step(known.sample(settings.batch), step)
    return trainee


def random_texts(model: Model, *, count: int = 40, seed: int = 0) -> Sequences:
    """Random token sequences of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, min(12, model.n_ctx), (count,), generator=generator).tolist()
    return Sequences(
        tuple(tuple(torch.randint(0, model.n_vocab, (n,), generator=generator).tolist()) for n in lengths)
    )


def random_dictionary(
    model: Model, layer: int, *, width: int = 10, seed: int = 0, cross: bool = False, **changes: object
) -> Dictionary:
    """A dictionary with random weights, far from what the MLP does."""
    generator = torch.Generator().manual_seed(seed + 100 * layer)
    d = model.d_model

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / math.sqrt(shape[0])

    out = (len(model.layers) - layer,) if cross else ()
    given: dict[str, object] = {
        "kind": "cross-layer" if cross else "transcoder",
        "layer": layer,
        "site_in": "mlp_normed",
        "site_out": "mlp_out",
        "activation": "relu",
        "w_enc": draw(d, width),
        "b_enc": draw(width),
        "w_dec": draw(width, *out, d),
        "b_dec": draw(*out, d),
        **changes,
    }
    return Dictionary(**given)  # type: ignore[arg-type]
