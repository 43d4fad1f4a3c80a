"""What MLPs read and write, streamed from texts; and the one pass in which an MLP can be another function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitfind.dictionaries.dictionary import Site
from circuitfind.dictionaries.texts import Texts, Tokens
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.bridge import Model
from circuitfind.model.forward import Place, attend
from circuitfind.task.pairs import pad

PASS_TOKENS = 4096
"""Tokens of one forward pass, padding included."""
BUFFER_BYTES = 1 << 29

MlpFunction = Callable[[int, Tensor, Tensor], Tensor]
"""What stands for an MLP: (layer, stream that its norm reads, normalised stream) -> what is added to the stream."""
See = Callable[[int, Site, Tensor], None]
"""Is shown what stands at ``attn_out``, ``mlp_out`` and ``resid_post`` of each layer."""


@dataclass(frozen=True)
class Rows:
    """Some token sequences as tensors, right-padded.

    Attributes:
        index: Where each row stands in the list that it is from.
        real: False at padding.
    """

    index: list[int]
    tokens: Int[Tensor, "row pos"]
    real: Bool[Tensor, "row pos"]


def batched(
    sequences: Sequence[Tokens], device: torch.device | str, tokens: int = PASS_TOKENS
) -> Iterator[Rows]:
    """Rows of similar length, in passes of at most so many tokens or of one row."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    order = [i for i in order if len(sequences[i])]
    first = 0
    while first < len(order):
        stop = first + 1
        while stop < len(order) and (stop + 1 - first) * len(sequences[order[stop]]) <= tokens:
            stop += 1
        index = order[first:stop]
        padded = pad([sequences[i] for i in index])
        yield Rows(
            index,
            torch.from_numpy(padded.ids).long().to(device),
            torch.from_numpy(padded.mask).bool().to(device),
        )
        first = stop


@torch.no_grad()
def run_mlps(
    model: Model, rows: Rows, mlp: MlpFunction, see: See = lambda layer, site, x: None
) -> Float[Tensor, "row pos d_model"]:
    """A whole forward pass in which ``mlp`` stands for every MLP; the stream that the final norm reads."""
    mask = None if model.causal or bool(rows.real.all()) else rows.real
    stop = rows.tokens.shape[1]
    place = Place(0, stop, rows.real.sum(1) - 1, mask, everywhere=True)
    model.passes["forward"] += 1
    x = model.embed(rows.tokens)
    for index, layer in enumerate(model.layers):
        model.passes["work"] += rows.tokens.numel()
        z = attend(layer, x, place, None, last=False)[3]
        written = layer.heads_out(z)
        see(index, "attn_out", written)
        read, x = x, x + written
        if layer.mlp is not None:
            read = read if model.anatomy.parallel else x
            written = mlp(index, read, layer.mlp_norm(read))
            see(index, "mlp_out", written)
            x = x + written
        see(index, "resid_post", x)
    return x


def own_mlp(model: Model) -> MlpFunction:
    """The model's own MLPs."""

    def run(index: int, read: Tensor, normed: Tensor) -> Tensor:
        mlp = model.layers[index].mlp
        assert mlp is not None
        return mlp(normed)

    return run


def check_layers(model: Model, layers: Sequence[int] | None, site: str | None = None) -> list[int]:
    """The layers to work on, in order; all of them if None. SAEs of a ``site`` may need no MLPs.

    Raises:
        UnsupportedError: The model has no MLPs.
        UsageError: It has no such layer.
    """
    if not model.has_mlp and site in (None, "mlp_out"):
        raise UnsupportedError(
            f"{model.name} has no MLPs, so there is nothing that a transcoder could stand for",
            hint="give a model with MLPs",
        )
    n_layers = len(model.layers)
    if layers is None:
        return list(range(n_layers))
    if not layers:
        raise UsageError("no layer is named", hint="name some, such as --layers 0,1, or all")
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise UsageError(
                f"{model.name} has no layer {layer}", hint=f"give layers from 0 to {n_layers - 1}, or all"
            )
    return sorted(set(layers))


@dataclass(frozen=True)
class Sample:
    """What the MLP of one layer read (behind the norm and its weight) and wrote, token by token; for an SAE, twice the same."""

    x: Float[Tensor, "token d_model"]
    y: Float[Tensor, "token d_model"]


def collect(
    model: Model, sequences: Sequence[Tokens], layers: Sequence[int], site: str | None = None
) -> dict[int, Sample]:
    """Inputs and outputs of some MLPs, or what stands at a site of some layers, at every token of some sequences.

    Raises:
        UsageError: A sequence is longer than the model's context.
    """
    longest = max(map(len, sequences), default=0)
    if longest > model.n_ctx:
        raise UsageError(
            f"a text has {longest} tokens, but {model.name} reads at most {model.n_ctx}",
            hint="cut the text into shorter ones",
        )
    seen: dict[int, tuple[list[Tensor], list[Tensor]]] = {layer: ([], []) for layer in layers}
    plain = own_mlp(model)
    for rows in batched(sequences, model.device):

        def watch(index: int, read: Tensor, normed: Tensor, real: Tensor = rows.real) -> Tensor:
            out = plain(index, read, normed)
            if index in seen and site is None:
                seen[index][0].append(normed[real].float())
                seen[index][1].append(out[real].float())
            return out

        def see(index: int, where: Site, x: Tensor, real: Tensor = rows.real) -> None:
            if index in seen and where == site:
                seen[index][0].append(x[real].float())

        run_mlps(model, rows, watch, see)
    return {layer: _sample(xs, ys) for layer, (xs, ys) in seen.items()}


def _sample(xs: list[Tensor], ys: list[Tensor]) -> Sample:
    x = torch.cat(xs)
    return Sample(x, torch.cat(ys) if ys else x)


class Buffer:
    """Activations of one portion of text after the other, each shuffled: bounded memory, and any place found again.

    Args:
        model: The model.
        texts: Where tokens come from.
        layers: Of which layers.
        batch: Tokens of each batch.
        tokens: Tokens of a portion; fewer where they would take more than ``BUFFER_BYTES``.
        seed: Of the order.
        site: What an SAE is of; None for what MLPs read and write.
        at: (portion, batch) to go on from.
    """

    def __init__(
        self,
        model: Model,
        texts: Texts,
        layers: Sequence[int],
        *,
        batch: int,
        tokens: int,
        seed: int,
        site: str | None = None,
        at: tuple[int, int] = (0, 0),
    ) -> None:
        self._model, self._texts, self._layers, self._site = model, texts, layers, site
        self._batch, self._seed = batch, seed
        self._tokens = max(batch, min(tokens, BUFFER_BYTES // (8 * model.d_model * len(layers))))
        self._number, self._next = at
        self._held: dict[int, Sample] | None = None

    @property
    def at(self) -> tuple[int, int]:
        """(portion, batch) that comes next."""
        return self._number, self._next

    def portion(self, number: int) -> dict[int, Sample]:
        """All of one portion, shuffled alike in every layer.

        Raises:
            UsageError: It holds less than one batch.
        """
        sequences = self._texts.portion(number, self._tokens, self._seed)
        found = collect(self._model, sequences, self._layers, self._site)
        count = len(next(iter(found.values())).x)
        if count < self._batch:
            raise UsageError(
                f"the text is too short: it has {count} tokens, and a batch takes {self._batch}",
                hint="give a longer text, or smaller batches (--batch)",
            )
        generator = torch.Generator().manual_seed((self._seed + 1) * 1_000_003 + number)
        order = torch.randperm(count, generator=generator).to(self._model.device)
        return {layer: Sample(sample.x[order], sample.y[order]) for layer, sample in found.items()}

    def next(self) -> dict[int, Sample]:
        """The next batch."""
        if self._held is None:
            self._held = self.portion(self._number)
        count = len(next(iter(self._held.values())).x)
        if (self._next + 1) * self._batch > count:
            self._number, self._next, self._held = self._number + 1, 0, None
            return self.next()
        here = slice(self._next * self._batch, (self._next + 1) * self._batch)
        self._next += 1
        return {layer: Sample(sample.x[here], sample.y[here]) for layer, sample in self._held.items()}
