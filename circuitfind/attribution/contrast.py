"""What each feature that fires contributes to a metric's difference between a clean and a corrupted prompt, and by which edges.

Attention, norm scales and the features that fire are those of the clean run, so all is linear: with a the activations and g
the total gradient of the metric through features, errors' and tokens' paths included, the score of a feature is
``(a_clean - a_corrupted) g``. The edge from s to t is the part of s's score that passes t next: its changed write, as t
reads it, times ``g`` of t. A node's edges to all active features and to the logits sum to its score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.attribution.features import Active, Replacement, replace_mlps
from circuitfind.attribution.frozen import FrozenRun, freeze, pull
from circuitfind.attribution.reads import to_stream
from circuitfind.attribution.rows import Linear, Targets
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import AnswerBatch


@dataclass(frozen=True)
class Gradients:
    """Total gradients of one number at the sources of a frozen network.

    Attributes:
        features: By layer, at the activations that ``Active`` lists.
        written: By layer, at what its MLP adds to the stream. ``[pos, d_model]``
        embedded: At the embedded prompt. ``[pos, d_model]``
    """

    features: dict[int, Float[Tensor, " active"]]
    written: list[Float[Tensor, "pos d_model"]]
    embedded: Float[Tensor, "pos d_model"]


def total_gradients(clean: Replacement, final: Float[Tensor, " d_model"]) -> Gradients:
    """Carry a gradient down through attention, skip connections and the features that fire.

    Args:
        clean: The network.
        final: The gradient at the final stream, at the position that is read.
    """
    run = clean.run
    g = run.embedded.new_zeros(1, run.n_pos, len(final))
    g[0, run.answers[0]] = final
    found = {layer: one.reads.new_zeros(len(one)) for layer, one in clean.active.items()}
    written: list[Tensor] = []
    for layer in reversed(range(len(run.blocks))):
        block = run.blocks[layer]
        written.insert(0, g[0].clone())
        for own, one in clean.active.items():
            if 0 <= layer - own < one.writes.shape[1]:
                found[own] += (one.writes[:, layer - own] * g[0, one.position]).sum(-1)
        into = torch.zeros_like(g)
        if layer in clean.active:
            one = clean.active[layer]
            through = (found[layer] * (one.activation > 0))[:, None] * one.reads
            into[0].index_add_(0, one.position, through)
        if layer in clean.skips:
            skip = clean.skips[layer]
            into += to_stream(block, skip.site, g @ skip.weight.T, block.mlp_scale)
        if run.model.anatomy.parallel:
            g = g + block.attention_back(g, block.pattern())[0] + into
        else:
            g = g + into
            g = g + block.attention_back(g, block.pattern())[0]
    return Gradients(found, written, g[0])


@dataclass
class Contrast:
    """A clean and a corrupted prompt, both with the same features held.

    Attributes:
        clean, corrupted: Their replacement models; ``active`` lists the features that fire in either.
        final: The gradient of the metric at the clean run's final stream, norm scale frozen.
    """

    clean: Replacement
    corrupted: Replacement
    final: Float[Tensor, " d_model"]

    @cached_property
    def gradients(self) -> Gradients:
        return total_gradients(self.clean, self.final)

    def change(self, layer: int) -> Float[Tensor, " active"]:
        """Clean less corrupted activations."""
        return self.clean.active[layer].activation - self.corrupted.active[layer].activation

    def scores(self, layer: int) -> Float[Tensor, " active"]:
        """Of the features of a layer, wherever they fire."""
        return self.change(layer) * self.gradients.features[layer]

    def error_score(self, layer: int) -> float:
        """Of a layer's error, over all positions."""
        change = self.clean.errors[layer] - self.corrupted.errors[layer]
        return float((change * self.gradients.written[layer]).sum())

    @property
    def input_score(self) -> float:
        """Of the embedding: what reaches the metric by no feature and no error but by them from the tokens."""
        change = self.clean.run.embedded[0] - self.corrupted.run.embedded[0]
        return float((change * self.gradients.embedded).sum())

    @cached_property
    def linear(self) -> Linear:
        """The frozen network with every source at its change."""
        active: dict[int, Active] = {
            layer: replace(one, activation=self.change(layer)) for layer, one in self.clean.active.items()
        }
        run = self.clean.run
        changed = replace(run, embedded=run.embedded - self.corrupted.run.embedded)
        errors = [a - b for a, b in zip(self.clean.errors, self.corrupted.errors, strict=True)]
        return Linear(Replacement(changed, active, self.clean.skips, self.clean.biases, errors))

    def edges_into(self, layer: int, chosen: Tensor) -> Float[Tensor, "row column"]:
        """What each source adds to the metric by way of some of the features of a layer; columns are ``linear``'s.

        Args:
            layer: Which layer.
            chosen: Places in ``active``; a feature that does not fire in the clean run passes nothing on.
        """
        one = self.clean.active[layer]
        passed = self.gradients.features[layer][chosen] * (one.activation[chosen] > 0)
        level = torch.full_like(one.position[chosen], layer)
        targets = Targets(level, one.position[chosen], one.reads[chosen], torch.zeros_like(passed))
        parts = [
            self.linear.rows(targets.take(torch.arange(i, min(i + self.linear.chunk, len(targets)))))[0]
            for i in range(0, len(targets), self.linear.chunk)
        ]
        found = torch.cat(parts) if parts else passed.new_zeros(0, self.linear.n_columns)
        return found * passed[:, None]

    def edges_into_logits(self) -> Float[Tensor, " column"]:
        """What each source adds to the metric directly."""
        at = self.clean.run.answers
        level = torch.full_like(at, self.linear.n_layers)
        targets = Targets(level, at, self.final[None], self.final.new_zeros(1))
        return self.linear.rows(targets)[0][0]


@torch.no_grad()
def contrast(runs: Runs, number: int, dictionaries: Mapping[int, Dictionary]) -> Contrast:
    """The contrast of one of the pairs of some runs."""
    pair, model = runs.pairs[number], runs.model
    at = [pair.answer_position]
    one, other = freeze(model, [pair.clean], at), freeze(model, [pair.corrupted], at)
    made = dictionaries.values()
    (clean,) = replace_mlps([one], made, also=[other])
    (corrupted,) = replace_mlps([other], made, also=[one])
    return Contrast(clean, corrupted, metric_gradient(runs, number, one))


def metric_gradient(runs: Runs, number: int, run: FrozenRun) -> Float[Tensor, " d_model"]:
    """The gradient of the metric of a pair at the final stream of its clean run, with the norm's scale frozen."""
    model = runs.model
    answers = AnswerBatch.of(runs.pairs.subset([number]), model.device)
    with torch.enable_grad():
        leaf = model.final_norm(run.final).detach().requires_grad_()
        (found,) = torch.autograd.grad(runs.metric(model.unembed(leaf), answers).sum(), leaf)
    return pull(model.final_norm, found, run.final_scale)[0]
