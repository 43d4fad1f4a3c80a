"""What clean prompts give at every site, what ablated nodes carry there, and which features there are at all.

A node is a feature that fires at some token of what is compared, or an SAE's error; the features that never do carry nothing
in either run and are no nodes. Nothing as wide as a dictionary is kept: activations are taken again from what stands at a
site, for as many tokens at once as there is memory for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitfind.config import Ablation
from circuitfind.errors import UnsupportedError
from circuitfind.model.batches import Batch, Side
from circuitfind.model.forward import Place
from circuitfind.model.runs import Runs
from circuitfind.names import Node
from circuitfind.sparse.passes import recorded
from circuitfind.sparse.sites import Point, Site, tokens_at_once

Group = tuple[str, int]
"""A template and a number of tokens: within it a position means the same."""
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")


@dataclass(frozen=True, eq=False)
class Nodes:
    """Every node in the order of the forward pass: the features of a site that are held, then its error.

    Attributes:
        sites: Where the SAEs stand.
        held: By site, which of its features are nodes; ascending.
    """

    sites: tuple[Site, ...]
    held: tuple[Int[np.ndarray, " _"], ...]

    def __len__(self) -> int:
        return sum(len(index) + 1 for index in self.held)

    def span(self, site: int) -> slice:
        """Where the nodes of a site stand, its error last."""
        start = sum(len(index) + 1 for index in self.held[:site])
        return slice(start, start + len(self.held[site]) + 1)

    @property
    def errors(self) -> Bool[np.ndarray, " node"]:
        """True for errors."""
        found = np.zeros(len(self), dtype=bool)
        found[[self.span(i).stop - 1 for i in range(len(self.sites))]] = True
        return found

    @property
    def n_features(self) -> int:
        """How many of the nodes are features."""
        return sum(map(len, self.held))

    def __getitem__(self, at: int) -> Node:
        for number, site in enumerate(self.sites):
            span = self.span(number)
            if span.start <= at < span.stop:
                return (
                    site.error_node
                    if at == span.stop - 1
                    else site.feature(int(self.held[number][at - span.start]))
                )
        raise IndexError(at)

    def __iter__(self) -> Iterator[Node]:
        return (self[at] for at in range(len(self)))


@dataclass(frozen=True, eq=False)
class Compared:
    """One batch.

    Attributes:
        place: Where its rows stand.
        entry: The clean stream into each block that a pass may begin with.
        clean, cut: By point, what stands there in the clean run, and when every node of the site is ablated.
        errors: What ablated errors carry.
    """

    place: Place
    entry: dict[int, Float[Tensor, "row pos d_model"]]
    clean: dict[Point, Float[Tensor, "row pos d_model"]]
    cut: dict[Point, Float[Tensor, "row pos d_model"]]
    errors: dict[Point, Float[Tensor, "row pos d_model"]]

    @property
    def n_bytes(self) -> int:
        return sum(
            t.numel() * t.element_size()
            for part in (self.entry, self.clean, self.cut, self.errors)
            for t in part.values()
        )


class Baseline:
    """Prompts, SAEs and an ablation, ready for scores and for passes with some nodes ablated.

    Args:
        runs: The model, its prompts and the metric.
        sites: Where SAEs stand.
        ablation: ``resample`` (what the corrupted prompt gives), ``mean`` (over prompts of one template and length, position
            by position) or ``zero``.

    Raises:
        UnsupportedError: Another ablation, or means over a single prompt.
    """

    def __init__(self, runs: Runs, sites: Sequence[Site], ablation: Ablation) -> None:
        if ablation not in ABLATIONS:
            raise UnsupportedError(
                f"features of SAEs have no {ablation} ablation", hint=f"use --ablation {', '.join(ABLATIONS)}"
            )
        self.runs, self.sites, self.ablation = runs, tuple(sites), ablation
        self.model = runs.model
        self.at_once = tokens_at_once(self.sites, runs.plan.budget, runs.plan.pass_tokens)
        self._means: dict[Point, dict[Group, tuple[Tensor, Tensor]]] = {}
        self._kept: OrderedDict[int, Compared] = OrderedDict()
        self._cut: OrderedDict[tuple[int, Point], Tensor] = OrderedDict()
        with torch.no_grad():
            self.nodes = Nodes(self.sites, self._scan())

    # Batches.

    def batch(self, number: int) -> Compared:
        """One batch; the latest are kept, as many as the plan has room for."""
        if number not in self._kept:
            with torch.no_grad():
                self._kept[number] = self._compare(number)
            total = sum(found.n_bytes for found in self._kept.values())
            while total > self.runs.plan.cache_bytes and len(self._kept) > 1:
                total -= self._kept.popitem(last=False)[1].n_bytes
        self._kept.move_to_end(number)
        return self._kept[number]

    def cut_features(
        self, number: int, site: Site, index: Int[Tensor, " some"], rows: slice = slice(None)
    ) -> Float[Tensor, "row pos some"]:
        """What some ablated features carry in a batch, or in some rows of it."""
        x = self.batch(number).cut[site.point][rows]
        if self.ablation == "zero":
            return x.new_zeros((*x.shape[:2], len(index)))
        if self.ablation == "mean":
            return self._stacked(number, self._means[site.point], 1, rows)[..., index]
        if rows != slice(None):
            return chunked(lambda part: site.encode_some(part, index), x, self.at_once)
        return self._cut_held(number, site)[..., self._column(site, index)]

    def metric(self, number: int, final: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """The metric of a batch from what the final norm reads."""
        return self.runs.metric_of(number, self.model.head(final))

    def _cut_held(self, number: int, site: Site) -> Float[Tensor, "row pos held"]:
        """The ablated activations of all features of a site that are nodes; those of the latest sites are kept."""
        key = (number, site.point)
        if key not in self._cut:
            index = torch.from_numpy(self.nodes.held[self.sites.index(site)]).to(self.model.device)
            x = self.batch(number).cut[site.point]
            self._cut[key] = chunked(lambda part: site.encode_some(part, index), x, self.at_once)
            total = sum(found.numel() * found.element_size() for found in self._cut.values())
            while total > self.runs.plan.cache_bytes // 2 and len(self._cut) > 1:
                gone = self._cut.popitem(last=False)[1]
                total -= gone.numel() * gone.element_size()
        self._cut.move_to_end(key)
        return self._cut[key]

    def _column(self, site: Site, index: Int[Tensor, " some"]) -> Int[Tensor, " some"]:
        """Where some features of a site stand among those that are nodes."""
        held = torch.from_numpy(self.nodes.held[self.sites.index(site)]).to(index.device)
        return torch.searchsorted(held, index)

    def _compare(self, number: int) -> Compared:
        batch = self.runs.batches[number]
        place = batch.place(0)
        begins = {site.begin for site in self.sites} | {site.point[0] for site in self.sites}
        blocks = sorted(b for b in begins if b < len(self.model.layers))
        seen = self._seen(batch, "clean", [(b, "in") for b in blocks])
        entry = {b: seen[b, "in"] for b in blocks}
        clean = {site.point: seen[site.point] for site in self.sites}
        other = self._seen(batch, "corrupted") if self.ablation == "resample" else {}
        cut, errors = {}, {}
        for site in self.sites:
            x = clean[site.point]
            if self.ablation == "zero":
                cut[site.point], errors[site.point] = site.bias.expand_as(x), torch.zeros_like(x)
            elif self.ablation == "resample":
                cut[site.point] = other[site.point]
                errors[site.point] = self.errors_of(site, other[site.point])
            else:
                means = self._means[site.point]
                cut[site.point] = self._stacked(number, means, 0)
                errors[site.point] = self._stacked(
                    number, {key: (site.error(*pair), pair[1]) for key, pair in means.items()}, 0
                )
        return Compared(place, entry, clean, cut, errors)

    def errors_of(self, site: Site, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """What an SAE misses of ``x``."""
        return chunked(lambda part: site.error(part, site.encode(part)), x, self.at_once)

    def _seen(self, batch: Batch, side: Side, more: Sequence[Point] = ()) -> dict[Point, Tensor]:
        points = [*(site.point for site in self.sites), *more]
        stream = self.model.embed(batch.tokens(side))
        return recorded(self.model, batch.place(0), stream, points)[1]

    # What fires, and means.

    def _scan(self) -> tuple[Int[np.ndarray, " _"], ...]:
        """One run over all prompts: which features fire, and the sums behind means."""
        over = self.runs.mean_over
        averaged: tuple[Side, ...] = ("clean", "corrupted") if over == "both" else (over,)
        sides: dict[str, tuple[Side, ...]] = {
            "resample": ("clean", "corrupted"),
            "zero": ("clean",),
            "mean": tuple(dict.fromkeys(("clean", *averaged))),
        }
        fired = [
            torch.zeros(s.dictionary.n_features, dtype=torch.bool, device=self.model.device)
            for s in self.sites
        ]
        sums: dict[Point, dict[Group, tuple[Tensor, Tensor]]] = {site.point: {} for site in self.sites}
        counts: dict[Group, int] = {}
        for number, batch in enumerate(self.runs.batches):
            real = real_tokens(batch, self.model.device)
            for side in sides[self.ablation]:
                seen = self._seen(batch, side)
                adds = self.ablation == "mean" and side in averaged
                for at, site in enumerate(self.sites):
                    for rows in self._row_chunks(batch):
                        x = seen[site.point][rows]
                        found = site.encode(x)
                        fired[at] |= (found > 0)[real[rows]].any(0)
                        if adds:
                            self._add(number, rows, x, found, sums[site.point])
                if adds:
                    for key in self._groups(number):
                        counts[key] = counts.get(key, 0) + 1
        if self.ablation == "mean":
            self._check_counts(counts, len(averaged))
            self._means = {
                point: {key: (x / counts[key], f / counts[key]) for key, (x, f) in found.items()}
                for point, found in sums.items()
            }
        return tuple(found.nonzero()[:, 0].cpu().numpy() for found in fired)

    def _row_chunks(self, batch: Batch) -> Iterator[slice]:
        rows, length = batch.clean.shape
        step = max(1, self.at_once // int(length))
        return (slice(start, start + step) for start in range(0, int(rows), step))

    def _add(
        self, number: int, rows: slice, x: Tensor, found: Tensor, sums: dict[Group, tuple[Tensor, Tensor]]
    ) -> None:
        batch = self.runs.batches[number]
        for row, key in enumerate(self._groups(number)[rows]):
            length = int(batch.lengths[rows][row])
            parts = x[row, :length], found[row, :length]
            old = sums.get(key)
            sums[key] = parts if old is None else (old[0] + parts[0], old[1] + parts[1])

    def _check_counts(self, counts: dict[Group, int], sides: int) -> None:
        lone = [key for key, count in counts.items() if count < 2 * sides]
        if lone:
            raise UnsupportedError(
                f"the mean ablation needs at least two prompts of a template and length, and {len(lone)} of "
                f"{len(counts)} groups have one, such as template {lone[0][0]} with {lone[0][1]} tokens",
                hint="use more prompts (--count), or --ablation resample",
            )

    def _groups(self, number: int) -> list[Group]:
        pairs = [self.runs.pairs[int(i)] for i in self.runs.batches[number].index]
        return [(pair.group, len(pair.clean)) for pair in pairs]

    def _stacked(
        self,
        number: int,
        means: dict[Group, tuple[Tensor, Tensor]],
        part: int,
        rows: slice = slice(None),
    ) -> Tensor:
        """The means of each row's group, zeros behind its end, since nothing reads padding."""
        chosen = [means[key][part] for key in self._groups(number)[rows]]
        length = int(self.runs.batches[number].clean.shape[1])
        out = chosen[0].new_zeros((len(chosen), length, chosen[0].shape[-1]))
        for into, row in zip(out, chosen, strict=True):
            into[: len(row)] = row
        return out


def real_tokens(batch: Batch, device: torch.device) -> Bool[Tensor, "row pos"]:
    """False at padding."""
    lengths = torch.from_numpy(np.ascontiguousarray(batch.lengths)).to(device)
    return torch.arange(batch.clean.shape[1], device=device)[None] < lengths[:, None]


def chunked(
    work: Callable[[Tensor], Tensor], x: Float[Tensor, "row pos d_model"], tokens: int
) -> Float[Tensor, "row pos _"]:
    """``work`` on so many tokens at a time."""
    parts = [work(part) for part in x.flatten(0, 1).split(tokens)]
    return torch.unflatten(torch.cat(parts), 0, x.shape[:2])
