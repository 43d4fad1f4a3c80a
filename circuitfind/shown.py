"""How objects show themselves in a notebook: who draws which class, by name, so that no class knows how it looks.

Classes of low storeys (``Circuit``, ``Scores``, ``PromptPairs``, ...) inherit ``Shown``. What draws them lies in
``circuitfind.output`` and is imported when something is shown (docs/decisions/objects-show-themselves.md).
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

MAKERS: dict[str, str] = {
    "circuitfind.task.spec.TaskSpec": "circuitfind.output.notebook_prompts:task",
    "circuitfind.task.pairs.PromptPair": "circuitfind.output.notebook_prompts:pair",
    "circuitfind.task.pairs.PromptPairs": "circuitfind.output.notebook_prompts:pairs",
    "circuitfind.circuit.scores.Scores": "circuitfind.output.notebook:scores",
    "circuitfind.circuit.graph.Evaluation": "circuitfind.output.notebook:evaluation",
    "circuitfind.circuit.graph.Circuit": "circuitfind.output.notebook:circuit",
    "circuitfind.circuit.feature_graph.FeatureGraph": "circuitfind.output.notebook:feature_graph",
    "circuitfind.attribution.prune.PrunedGraph": "circuitfind.output.notebook:attribution_graph",
    "circuitfind.backups.report.BackupReport": "circuitfind.output.notebook:backups",
    "circuitfind.evidence.report.Evidence": "circuitfind.output.notebook:evidence",
    "circuitfind.evidence.certify.Verdict": "circuitfind.output.notebook:verdict",
    "circuitfind.patch_runs.Patched": "circuitfind.output.notebook:doses",
    "circuitfind.summary.Discovery": "circuitfind.output.notebook:discovery",
}
"""By class, the function that makes its card."""


class _Card(Protocol):
    def as_html(self) -> str: ...

    def as_text(self) -> str: ...


class Shown:
    """Shows itself as a card in IPython, Jupyter and whatever else asks for ``_repr_html_``."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return card_of(self).as_html()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        # With text: a notebook would keep the whole repr, every edge of the model, beside the HTML.
        found = card_of(self)
        return {"text/plain": found.as_text(), "text/html": found.as_html()}


def card_of(thing: object) -> _Card:
    """What an object looks like.

    Raises:
        KeyError: Nothing draws it, nor what it inherits from.
    """
    for kind in type(thing).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in MAKERS:
            module, _, function = MAKERS[name].partition(":")
            made: _Card = getattr(importlib.import_module(module), function)(thing)
            return made
    raise KeyError(type(thing).__qualname__)
