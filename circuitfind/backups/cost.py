"""What a search costs."""

from __future__ import annotations

from circuitfind.model.runs import Runs


class Cost:
    """Work, in passes over all prompts through all layers."""

    def __init__(self, runs: Runs) -> None:
        self._model = runs.model
        self._whole = sum(batch.clean.numel() for batch in runs.batches) * len(runs.model.layers)
        self.counts = {"sets": 0, "candidates": 0}
        self._work = {"screen": 0, "verify": 0}
        self._start = 0

    def begin(self) -> None:
        self._start = self._model.passes["work"]

    def end(self, what: str) -> None:
        self._work[what] += self._model.passes["work"] - self._start

    def as_dict(self) -> dict[str, float]:
        return {**{k: v / self._whole for k, v in self._work.items()}, **self.counts}
