"""What a search costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from circuitfind.model.runs import Runs


class Cost:
    """Work, in passes over all prompts through all layers."""

    def __init__(self, runs: Runs) -> None:
        self._model = runs.model
        self._whole = sum(batch.clean.numel() for batch in runs.batches) * len(runs.model.layers)
        self.counts = {"sets": 0, "candidates": 0}
        self._work = {"screen": 0, "verify": 0}

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Count what is run in the block as work of the ``screen`` or of ``verify``."""
        before = self._model.passes["work"]
        yield
        self._work[what] += self._model.passes["work"] - before

    def as_dict(self) -> dict[str, float]:
        return {**{k: v / self._whole for k, v in self._work.items()}, **self.counts}
