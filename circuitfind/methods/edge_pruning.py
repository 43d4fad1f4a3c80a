"""Edge pruning: learn which edges (or nodes) a circuit needs, all of them together, by gradients.

Bhaskar, Wettig, Friedman and Chen 2024, arXiv 2406.16778: every edge gets a gate that is 0 (cut) or 1 (kept) most of the time
(gates.py); Adam moves the gates such that the model with its edges gated says what the whole model says (KL of the next
token) while the expected number of open gates falls to a given one. Where that number binds, a multiplier is found by
ascent, as in the paper; it moves by factors here, since the loss may be of any size. Other differences from the paper: a
gate for each prompt of a step, no gates beside those of the edges (a writer without an open edge is out), and a warm start
from any other scores, so that a few hundred steps do.

A score is the chance that the gate is open: from 0 to 1, never negative, and good for a ranking; it is no effect in units of
the metric. Unlike attribution this sees edges that are only needed, or only useless, together. What is learned is a circuit
that suffices, whatever the direction; the direction is that of the warm start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Level, Positions
from circuitfind.errors import UnsupportedError, UsageError, did_you_mean
from circuitfind.methods import get_method
from circuitfind.methods.base import Cost
from circuitfind.methods.gates import GATES
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.masked import MaskedPass, graph_bytes
from circuitfind.model.runs import Runs
from circuitfind.model.stretch import State, adam_state, in_stretches, restore_adam
from circuitfind.task.metrics import get_metric

SHARE = {"edges": 0.05, "nodes": 0.25}
"""What is kept when nothing is said."""
LEAST, MOST, WIDE = -2.0, 3.0, 8
"""Log-odds that gates begin with: even at ``WIDE`` times the wanted number, and none so low that it could not come back,
since an edge shows its worth only while those that it works with are open."""
FALL = 0.6
"""Share of the steps in which the number of open gates falls to the wanted one."""
PRICE, RATE, DAMPING = 0.03, 0.1, 2.0
"""What an open gate costs at first, as a share of what its part of the behaviour is worth; how fast that price moves, in
powers of e for each step at e times the wanted number; and how much of the price follows that number at once."""
TAIL = 0.2
"""Share of the steps, at the end, whose gates are averaged."""
AT_ONCE = 20
"""Steps that an interruption costs at the most."""


@dataclass(frozen=True)
class EdgePruning:
    """See the module.

    Attributes:
        units: Gates on ``edges``, or on ``nodes`` (all edges out of a writer together).
        keep: How many of them the circuit should have; 0 for a twentieth of the edges or a quarter of the nodes.
        gates: ``hard-concrete`` or ``ugs``.
        loss: ``kl`` to the whole model's next token, or ``metric``: the squared gap of the task's metric to its value in
            the whole model.
        warm: The method whose scores the gates begin with, a file of scores (``.npz``), or nothing: all open.
        steps: Steps of Adam.
        lr: Its rate.
        batch: Prompts in a step.
        seed: Of the noise.
    """

    units: str = "edges"
    keep: int = 0
    gates: str = "hard-concrete"
    loss: str = "kl"
    warm: str = "eap"
    steps: int = 300
    lr: float = 0.1
    batch: int = 16
    seed: int = 0

    name: ClassVar[str] = "edge-pruning"

    def __post_init__(self) -> None:
        for option, known in (("units", SHARE), ("gates", GATES), ("loss", ("kl", "metric"))):
            value = getattr(self, option)
            if value not in known:
                raise UsageError(
                    f"edge-pruning: there are no {option} '{value}'", hint=did_you_mean(value, known)
                )
        if self.keep < 0 or self.steps < 1 or self.batch < 1 or not self.lr > 0:
            raise UsageError(
                "edge-pruning: steps and batch are at least 1, lr is above 0, and keep is not negative",
                hint="leave them out for the defaults",
            )
        if self.warm == self.name:
            raise UsageError(
                "edge-pruning cannot start from itself", hint="give the file of an earlier run's scores"
            )

    @property
    def level(self) -> Level:
        return "edge" if self.units == "edges" else "node"

    def cost(self, anatomy: Anatomy) -> Cost:
        """At most: a step is a pass over ``batch`` prompts, not over all."""
        own = get_method(self.warm).cost(anatomy) if self._from_method else Cost(1, 0)
        return Cost(forward=own.forward + self.steps, backward=own.backward + self.steps)

    @property
    def _from_method(self) -> bool:
        return bool(self.warm) and not self.warm.endswith(".npz")

    def run(
        self, runs: Runs, *, ablation: Ablation, direction: Direction, positions: Positions = "none"
    ) -> Scores:
        """The chance of every gate to be open; facts tell the loss and the expected number of open gates.

        Raises:
            UnsupportedError: Positions are asked for, or the loss has no gradient, or the warm start says nothing.
            UsageError: The file of the warm start is of another model.
        """
        if positions != "none":
            raise UnsupportedError(
                "edge-pruning has one gate for an edge, whatever the position",
                hint="use --positions none, or --method eap",
            )
        if self.loss == "metric" and not runs.metric.differentiable:
            raise UnsupportedError(
                f"the metric '{runs.metric.name}' has no gradient", hint="use loss=kl, or --metric logit-diff"
            )
        odds = self._start(runs, ablation, direction)
        return runs.fitted(lambda: self._learned(runs, ablation, direction, odds))

    def target(self, anatomy: Anatomy) -> int:
        """How many gates should stay open."""
        every = anatomy.n_edges if self.units == "edges" else len(anatomy.writers)
        return min(every, self.keep or math.ceil(SHARE[self.units] * every))

    # The warm start.

    def _start(self, runs: Runs, ablation: Ablation, direction: Direction) -> Float[np.ndarray, " gate"]:
        """Log-odds of the gates: all open, or falling with the rank in other scores."""
        anatomy = runs.model.anatomy
        shape = anatomy.edge_mask.shape if self.units == "edges" else (len(anatomy.writers),)
        found = np.full(shape, MOST)
        if self.warm:
            size = self._strength(self._warm_scores(runs, ablation, direction))
            every = np.sort(size[np.isfinite(size)])
            ahead = len(every) - np.searchsorted(every, size, side="right")  # units that are stronger
            with np.errstate(invalid="ignore"):
                found = np.log(WIDE * self.target(anatomy) / (ahead + 1.0)).clip(LEAST, MOST)
                found[~(size > 0)] = LEAST
        return found[anatomy.edge_mask] if self.units == "edges" else found

    def _warm_scores(self, runs: Runs, ablation: Ablation, direction: Direction) -> Scores:
        if self._from_method:
            return get_method(self.warm).run(runs, ablation=ablation, direction=direction)
        scores = Scores.load(Path(self.warm))
        if scores.anatomy != runs.model.anatomy:
            raise UsageError(
                f"the scores in {self.warm} are of another model",
                hint="give scores of the model that is searched",
            )
        return scores

    def _strength(self, scores: Scores) -> Float[np.ndarray, " *unit"]:
        """How much other scores make of each edge or node; an edge goes by the weaker of its ends if nodes were scored."""
        nodes: Float[np.ndarray, " writer"] = np.abs(scores.node_values)
        if self.units == "nodes":
            return nodes
        if scores.level == "edge":
            return np.asarray(np.abs(scores.values))
        anatomy, rows = scores.anatomy, scores.anatomy.writer_index
        readers = np.full(len(anatomy.readers), np.inf)
        for column, (node, _) in enumerate(anatomy.readers):
            served = [nodes[rows[str(n)]] for n in anatomy.served_by(node) if str(n) in rows]
            readers[column] = max(served, default=np.inf)
        return np.asarray(np.where(anatomy.edge_mask, np.minimum(nodes[:, None], readers), np.nan))

    # Learning.

    def _learned(
        self, runs: Runs, ablation: Ablation, direction: Direction, odds: Float[np.ndarray, " gate"]
    ) -> Scores:
        model, anatomy, gates = runs.model, runs.model.anatomy, GATES[self.gates]
        problem = _Problem(runs, ablation, self.batch, self.loss, self.units)
        target, tail = self.target(anatomy), max(1, round(TAIL * self.steps))
        start = gates.theta_of(torch.from_numpy(odds).float()).clamp(gates.low, gates.high)
        first_size = float(gates.share(start).sum())

        def work(state: State, first: int, last: int) -> State:
            generator = torch.Generator()
            generator.set_state(torch.from_numpy(state["random"].copy()))
            problem.order = state["order"].tolist()
            theta = torch.from_numpy(state["theta"].copy()).to(model.device).requires_grad_()
            averaged = torch.from_numpy(state["averaged"].copy()).to(model.device)
            adam = torch.optim.Adam([theta], lr=self.lr, betas=(0.9, 0.95))
            restore_adam(adam, state, first)
            price, losses = float(state["price"]), state["losses"].tolist()
            for step in range(first, last):
                number = problem.next(generator)
                noise = torch.rand((problem.rows(number), len(theta)), generator=generator).to(model.device)
                loss = problem.loss(number, gates.sample(theta, noise))
                size = gates.share(theta).sum()
                wanted = target * (first_size / target) ** max(0.0, 1 - step / max(1.0, FALL * self.steps))
                excess = float(np.clip(math.log(float(size.detach()) / wanted), -1.0, 1.0))
                price *= math.exp(RATE * excess)
                adam.zero_grad()
                (loss + price * math.exp(DAMPING * excess) * size).backward()
                adam.step()
                with torch.no_grad():
                    theta.clamp_(gates.low, gates.high)
                    if step >= self.steps - tail:
                        averaged += theta / tail
                model.passes["backward"] += 1
                losses.append(float(loss.detach()))
            return {
                "theta": theta.detach().cpu().numpy(),
                "averaged": averaged.cpu().numpy(),
                "price": np.array(price),
                "losses": np.array(losses),
                "random": generator.get_state().numpy(),
                "order": np.array(problem.order, dtype=np.int64),
                **adam_state(adam),
            }

        state: State = {
            "theta": start.numpy(),
            "averaged": np.zeros_like(odds, dtype=np.float32),
            "price": np.array(PRICE * problem.worst() / target),
            "losses": np.empty(0),
            "random": torch.Generator().manual_seed(self.seed).get_state().numpy(),
            "order": np.empty(0, dtype=np.int64),
        }
        settings = (self, ablation, direction)
        state = in_stretches(runs.hands, runs, self.name, settings, self.steps, AT_ONCE, state, work)
        averaged, losses = torch.from_numpy(state["averaged"].copy()), state["losses"].tolist()
        price = float(state["price"])
        share = gates.share(averaged.double()).cpu().numpy()
        values = share
        if self.units == "edges":
            values = np.full(anatomy.edge_mask.shape, np.nan)
            values[anatomy.edge_mask] = share
        return Scores(
            anatomy=anatomy,
            level=self.level,
            values=values,
            method=self.name,
            direction=direction,
            metric=runs.metric.name,
            ablation=ablation,
            facts={
                "steps": self.steps,
                "target": target,
                "expected": float(share.sum()),
                "open": int((share > 0.5).sum()),
                "loss_first": float(np.mean(losses[:tail])),
                "loss": float(np.mean(losses[-tail:])),
                "price": price,
            },
        )


class _Problem:
    """What gates are learned on: small batches of the prompts, and the loss of each under given gates."""

    def __init__(self, runs: Runs, ablation: Ablation, batch: int, loss: str, units: str) -> None:
        if ablation == "optimal":
            runs.ablated(0, ablation)  # learned here, once
        self._runs = runs.smaller(batch)
        self._ablation, self._loss = ablation, loss
        mask = runs.model.anatomy.edge_mask
        self._width = mask.shape
        self._edges = (
            torch.tensor(np.flatnonzero(mask), device=runs.model.device) if units == "edges" else None
        )
        self._scale = 1.0
        if loss == "metric":
            self._scale = max(float(np.abs(self._runs.clean - self._runs.corrupted).mean()), 1e-6)
        most = max(len(b.index) * int(b.clean.shape[1]) for b in self._runs.batches)
        self._recompute = most * graph_bytes(runs.model) > runs.plan.budget // 4
        self.order: list[int] = []
        """Batches that are still to come by."""

    def next(self, generator: torch.Generator) -> int:
        """A batch; all come by before one comes again."""
        if not self.order:
            self.order = torch.randperm(len(self._runs.batches), generator=generator).tolist()
        return self.order.pop()

    def rows(self, number: int) -> int:
        return len(self._runs.batches[number].index)

    def worst(self) -> float:
        """The loss with every gate shut, of one batch."""
        gates = len(self._edges) if self._edges is not None else self._width[0]
        with torch.no_grad():
            found = self.loss(0, torch.zeros((self.rows(0), gates), device=self._runs.model.device))
        return max(float(found), 1e-6)

    def loss(self, number: int, gate: Float[Tensor, "row gate"]) -> Float[Tensor, ""]:
        """The mean over a batch's prompts, each with gates of its own."""
        runs = self._runs
        if self._edges is None:
            mask = gate[:, :, None].expand(-1, -1, self._width[1])
        else:
            mask = gate.new_zeros((len(gate), self._width[0] * self._width[1]))
            mask = mask.index_copy(1, self._edges, gate).unflatten(1, self._width)
        logits = MaskedPass(runs.contrast(number, self._ablation), recompute=self._recompute).run(mask)
        if self._loss == "metric":
            full = torch.tensor(runs.clean[runs.batches[number].index], device=logits.device)
            gap = (full.to(logits.dtype) - runs.metric_of(number, logits)) / self._scale
            return gap.square().mean()
        with torch.no_grad():
            full = runs.model.head(runs.trace(number, "clean").final).float().log_softmax(-1)
        return -get_metric("kl")(logits, runs.batches[number].answers, full).mean()
