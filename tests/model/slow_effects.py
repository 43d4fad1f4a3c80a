"""Patches of whole nodes and direct effects the slow way: autograd through tests/methods/slow, one patch at a time.

Shares nothing with the package: no buffers of changes, no gradients written out, norms frozen by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitfind.model.effects import Observed
from circuitfind.model.node_pass import Patch
from circuitfind.task.pairs import PromptPairs
from tests.methods.slow import plain as slow
from tests.methods.slow.problem import Problem, ablated, gradients, problem

NEAR = 1e-4  # of the largest effect


def of(values: Any) -> np.ndarray:
    return np.asarray(values.detach().numpy() if isinstance(values, Tensor) else values, dtype=float)


def assert_near(found: Any, wanted: Any, of_what: Any = None, what: str = "") -> None:
    """Within NEAR of the largest number of ``of_what`` (of what is wanted, if not given)."""
    largest = float(np.abs(of(wanted if of_what is None else of_what)).max())
    np.testing.assert_allclose(of(found), of(wanted), atol=NEAR * largest + 1e-9, rtol=0, err_msg=what)


# --- the slow way -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slow:
    """A problem, its clean run, and what replaced writers carry."""

    given: Problem
    seen: dict[str, Tensor]
    carried: dict[str, Tensor]

    @property
    def writers(self) -> list[str]:
        return self.given.plain.writers()

    def run(self, patch: Patch) -> tuple[Tensor, dict[str, Tensor]]:
        """The metric and every intermediate under a patch: each write is overruled as soon as it is made."""
        chosen = dict(zip(self.writers, patch.nodes if patch.nodes is not None else [], strict=False))
        held = dict(zip(self.writers, patch.held if patch.held is not None else [], strict=False))

        def at(name: str, x: Tensor) -> Tensor:
            kind, _, writer = name.partition(" ")
            if kind != "write":
                return x
            if held.get(writer):
                return self.seen[name]
            if not chosen.get(writer):
                return x
            if patch.where is None:
                return self.carried[writer]
            return torch.where(torch.from_numpy(patch.where)[..., None], self.carried[writer], x)

        with torch.no_grad():
            logits, seen = self.given.plain.run(self.given.clean, at=at)
        return self.given.metric(logits), seen


@dataclass(frozen=True)
class Reader:
    """One linear reading: what it reads in the clean run, its norm, and the gradient behind that norm."""

    name: str
    norm: slow.Norm
    stream: Tensor
    gradient: Tensor

    def _terms(self, change: Tensor) -> Tensor:
        x = change - change.mean(-1, keepdim=True) if self.norm.kind == "LN" else change
        if self.norm.kind is not None:
            clean = (
                self.stream - self.stream.mean(-1, keepdim=True) if self.norm.kind == "LN" else self.stream
            )
            x = x / (clean.square().mean(-1, keepdim=True) + self.norm.eps).sqrt()
        x = x if self.norm.weight is None else x * self.norm.weight
        return x * self.gradient

    def frozen(self, change: Tensor) -> Tensor:
        """What a change of the stream does where the norm's scale stays that of the clean run. [..., b]"""
        return self._terms(change).sum((-1, -2))

    def size(self, change: Tensor) -> float:
        """How large that would be by chance. A norm of queries makes it zero, but rounding is of this size."""
        return float(self._terms(change).square().sum((-1, -2)).sqrt().max())

    def moved(self, stream: Tensor) -> Tensor:
        """How the reading changes through the norm as it is. [b]"""
        return ((self.norm(stream) - self.norm(self.stream)) * self.gradient).sum((-1, -2))


def slow_case(family: str, pairs: PromptPairs, ablation: str) -> Slow:
    given = problem(family, pairs)
    with torch.no_grad():
        seen = given.plain.run(given.clean)[1]
    return Slow(given, seen, ablated(given, ablation))


def readers_of(case: Slow) -> dict[str, Reader]:
    """Every reader of the model; gradients are autograd's at the projections, carried through these by hand."""
    given, model = case.given, case.given.plain
    raws = {name: f"raw {name}" for name in model.readers() if "<" in name}
    mlps = {name: [f"pre {name}", f"up {name}"] for name in model.readers() if name[0] == "m"}
    if any(block.w_gate is None for block in model.blocks):
        mlps = {name: parts[:1] for name, parts in mlps.items()}
    found = gradients(given, given.clean, [*raws.values(), *(n for parts in mlps.values() for n in parts)])
    readers: dict[str, Reader] = {}
    for name in raws:
        layer, slot = int(name[1:].split(".")[0]), name[-2]
        block, index = model.blocks[layer], model.slots(layer, slot).index(name)
        behind = found[raws[name]] @ block.w[slot][index].T
        readers[name] = Reader(name, block.ln1, case.seen[f"read {name}"], behind)
    for name, parts in mlps.items():
        block = model.blocks[int(name[1:])]
        assert block.w_in is not None
        behind = found[parts[0]] @ (block.w_in if block.w_gate is None else block.w_gate).T
        if block.w_gate is not None:
            behind = behind + found[parts[1]] @ block.w_in.T
        readers[name] = Reader(name, block.ln2, case.seen[f"read {name}"], behind)
    stream = case.seen["read logits"]
    leaf = model.final(stream).detach().requires_grad_()
    logits = leaf @ model.w_u + model.b_u
    if model.final_cap is not None:
        logits = model.final_cap * (logits / model.final_cap).tanh()
    (behind,) = torch.autograd.grad(given.metric(logits).sum(), leaf)
    return {**readers, "logits": Reader("logits", model.final, stream, behind)}


def masks(n_writers: int, pairs: PromptPairs, seed: int = 0) -> list[Patch]:
    """Replaced writers everywhere, at the answer and at random tokens, each with and without held ones; some single."""
    rng = np.random.default_rng(seed)
    longest = max(len(p.clean) for p in pairs)
    answer = np.arange(longest) == np.array([p.answer_position for p in pairs])[:, None]
    places = [None, answer, rng.random((len(pairs), longest)) < 0.4]
    found = []
    for where, density in zip(places, (0.3, 0.5, 0.3), strict=True):
        nodes = rng.random(n_writers) < density
        nodes[rng.integers(1, n_writers - 1)] = True
        held = ~nodes & (rng.random(n_writers) < 0.5)
        found += [Patch(nodes=nodes, where=where), Patch(nodes=nodes, where=where, held=held)]
        single = np.arange(n_writers) == rng.integers(0, n_writers)
        found.append(Patch(nodes=single, where=where))
    return found


@dataclass(frozen=True)
class Wanted:
    """What ``DirectEffects.observe`` must find for one reader, and how large its effects are."""

    seen: Observed
    size: float


def slowly(case: Slow, patches: list[Patch]) -> dict[str, Wanted]:
    """What patches do, for each reader."""
    readers, ran = readers_of(case), [case.run(patch) for patch in patches]
    rows, found = torch.arange(len(case.given.clean)), {}
    values = torch.stack([metric for metric, _ in ran])
    for name, reader in readers.items():
        sources = case.given.plain.sources(name)
        change = torch.zeros(len(patches), len(case.writers), len(rows), dtype=torch.float64)
        read, whole = torch.zeros_like(change[:, 0]), torch.zeros_like(change[:, 0])
        scale, size = torch.ones_like(read), 0.0
        for i, (_, seen) in enumerate(ran):
            for w, writer in enumerate(case.writers):
                if writer in sources:
                    moved = seen[f"write {writer}"] - case.seen[f"write {writer}"]
                    change[i, w], size = reader.frozen(moved), max(size, reader.size(moved))
            stream = seen[f"read {name}"]
            read[i], whole[i] = reader.moved(stream), reader.frozen(stream - reader.stream)
            one_place = name in ("logits", f"m{len(case.given.plain.blocks) - 1}")
            if one_place and reader.norm.kind is not None:
                sigma, before = (reader.norm.scale(x, slow.EXACT) for x in (stream, reader.stream))
                scale[i] = (before / sigma)[rows, case.given.position, 0]
        arrays = (of(x) for x in (values, change[None], read[None], (read - whole)[None], scale[None]))
        rounding = 0.01 * reader.size(reader.stream)  # changes are differences in single precision
        found[name] = Wanted(Observed(*arrays), max(size, rounding, float(change.abs().max())))
    return found


def assert_observed(found: Observed, wanted: Mapping[str, Wanted], names: list[str]) -> None:
    """The readers of what was found stand in the order of the names."""
    for number, name in enumerate(names):
        reader = wanted[name]
        assert_near(found.values, reader.seen.values, what="values")
        assert_near(found.scale[number], reader.seen.scale[0], what=f"scale at {name}")
        for what in ("change", "read", "bent"):
            ours, theirs = getattr(found, what)[number], getattr(reader.seen, what)[0]
            assert_near(ours, theirs, reader.size, f"{what} of {name}")


def assert_same(found: Observed, wanted: Observed) -> None:
    for what in (f.name for f in fields(Observed)):
        size = wanted.change if what in ("read", "bent") else None
        assert_near(getattr(found, what), getattr(wanted, what), size, what)
