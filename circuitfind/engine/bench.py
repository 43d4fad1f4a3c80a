"""What a worker keeps from one job to the next: its model, and the runs that it made last. Torch comes with a model."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from circuitfind.engine.base import Recipe
from circuitfind.errors import ModelError

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model
    from circuitfind.model.runs import Runs

KEPT_RUNS = 2
"""Runs that a worker keeps. Each keeps finished passes, so many would take much memory."""


class WorkBench:
    """One model, since jobs of one model follow each other, and its latest runs.

    Args:
        index: Of the worker. Those on a machine with several GPUs take one each in turn.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self._model: tuple[tuple[str, str], Model] | None = None
        self._runs: OrderedDict[str, Runs] = OrderedDict()
        self._notes: list[str] = []

    def model(self, name: str, device: str = "auto") -> Model:
        """A model, loaded when first asked for; the one before it is forgotten.

        Raises:
            ModelError, UnsupportedError: It cannot be loaded here.
        """
        key = (name, device)
        if self._model is None or self._model[0] != key:
            from circuitfind.engine.weights import load_shared

            self.clear()
            self._model = key, load_shared(name, device=self._own(device))
        return self._model[1]

    def _own(self, device: str) -> str:
        """The device that a name means on this worker."""
        if device not in ("auto", "cuda"):
            return device
        import torch

        count = torch.cuda.device_count()
        return f"cuda:{self.index % count}" if count > 1 else device

    def runs(self, recipe: Recipe) -> Runs:
        """The runs of a recipe, made when first asked for, in its precision.

        Raises:
            ModelError: The weights here are others than those that the recipe was made with.
        """
        from circuitfind.engine.recipe import constants_on
        from circuitfind.model.runs import Runs
        from circuitfind.task.metrics import get_metric

        model = self.model(recipe.model, recipe.device)
        if model.fingerprint != recipe.fingerprint:
            raise ModelError(
                f"a worker has other weights of '{recipe.model}' than the run",
                hint="give all workers the same files, and do not change them while something runs",
                details=[f"the run: {recipe.fingerprint[:16]}", f"worker:  {model.fingerprint[:16]}"],
            )
        model.precision = recipe.precision  # type: ignore[assignment]  # it was one where the recipe was made
        found = self._runs.pop(recipe.key, None)
        if found is None:
            while len(self._runs) >= KEPT_RUNS:
                self._runs.popitem(last=False)
            found = Runs(
                model,
                recipe.pairs,
                get_metric(recipe.metric),
                mean_over=recipe.mean_over,  # type: ignore[arg-type]  # the same
                plan=recipe.plan,
                note=self.note,
            )
            found.constants = constants_on(recipe.constants, model)
        self._runs[recipe.key] = found
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._model = None
        self._runs.clear()

    def note(self, text: str) -> None:
        self._notes.append(text)

    def told(self) -> tuple[str, ...]:
        """The notes since the last time."""
        found, self._notes = tuple(dict.fromkeys(self._notes)), []
        return found
