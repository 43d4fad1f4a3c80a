"""How the work on a model is cut up to fit into memory, and about how many bytes it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuitfind.model.batches import Batch
    from circuitfind.model.memory import MemoryPlan


@dataclass(frozen=True)
class Memory:
    """How the work is cut up to fit; sizes in bytes.

    Attributes:
        budget: What was planned for beyond the weights (``--memory``, or most of what is free).
        weights: Of the model, as it is loaded.
        copies: Of weights that passes want in another layout, and hold besides.
        batches, pairs_to_batch: Batches of prompt pairs, and the most pairs in one.
        node_rows, edge_rows: Patched prompts that share a pass: those of a node, and those of an edge.
        finished_runs, kept: What all clean and corrupted runs take, and how much of it may be kept.
        placed: Bytes of weights by where they lie, of a model that is not all on one device.
        brought: Bytes of blocks that are brought at once to the device that computes.
        spill: Where runs go that are not kept: ``cpu``, ``disk`` or ``none``.
    """

    budget: int
    weights: int
    copies: int
    batches: int
    pairs_to_batch: int
    node_rows: int
    edge_rows: int
    finished_runs: int
    kept: int
    placed: Mapping[str, int] | None = None
    brought: int = 0
    spill: str = "none"


@dataclass(frozen=True)
class Sized:
    """What of a model and its prompts the bytes depend on; of a loaded model, or of a configuration.

    Attributes:
        cost: Bytes of a token, as ``token_bytes`` says.
        weights, copies: Bytes, as in ``Memory``.
        writers: Of the model.
        placed, brought: As in ``Memory``.
        here: Bytes of weights that stay on the device that computes, where not all do.
    """

    cost: Mapping[str, int]
    weights: int
    copies: int
    writers: int
    placed: Mapping[str, int] | None = None
    brought: int = 0
    here: int = 0

    def least(self, length: int) -> int:
        """Bytes beside the weights with one prompt of so many tokens to a batch, and one patch to a pass."""
        cost = self.cost
        batch = 2 * (cost["run"] + cost["kept"] + cost["gap"])
        return length * (batch + max(cost["node"], cost["edge"]))

    def memory(self, plan: MemoryPlan, batches: Sequence[Batch], trials: int) -> tuple[Memory, int]:
        """How the work is cut up, and about how many bytes it takes at the most."""
        cost = self.cost
        tokens = [int(batch.clean.numel()) for batch in batches]
        largest = max(range(len(tokens)), key=tokens.__getitem__)
        pairs, per_patch = len(batches[largest].index), tokens[largest]

        def rows(most: int, patches: int) -> int:
            """Of a pass: whole patches of a batch, at least one and no more than there are."""
            return pairs * max(1, min(most // per_patch, patches))

        found = Memory(
            budget=plan.budget,
            weights=self.weights,
            copies=self.copies,
            batches=len(tokens),
            pairs_to_batch=max(len(batch.index) for batch in batches),
            node_rows=rows(plan.pass_tokens, self.writers),
            edge_rows=rows(plan.edge_tokens, trials),
            finished_runs=2 * sum(tokens) * cost["run"],
            kept=plan.cache_bytes,
            placed=self.placed,
            brought=self.brought,
            spill=plan.spill,
        )
        weights = self.weights + self.copies if self.placed is None else self.here + self.brought
        batch = 2 * per_patch * (cost["run"] + cost["kept"] + cost["gap"])
        length = per_patch // pairs
        passes = length * max(found.node_rows * cost["node"], found.edge_rows * cost["edge"])
        return found, weights + min(found.finished_runs, found.kept) + batch + passes
