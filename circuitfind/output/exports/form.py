"""What an export is made of and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UnsupportedError
from circuitfind.output.words import Words


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        what: A circuit or a feature graph.
        scores: Of all nodes or edges of the model, where they are known.
        words: What people call the nodes.
        prompts: The pairs that it was found on, as ``prompts.jsonl`` has them; none where they are not known.
        tracer: A graph of circuit-tracer that ``what`` was read from.
        d_model: Width of the residual stream, where the user gives it or the run tells it.
    """

    what: Circuit | FeatureGraph
    scores: Scores | None = None
    words: Words = field(default_factory=Words)
    prompts: Sequence[Mapping[str, Any]] = ()
    tracer: Mapping[str, Any] | None = None
    d_model: int | None = None

    def circuit(self, form: str) -> Circuit:
        """The circuit that a form needs.

        Raises:
            UnsupportedError: It is a feature graph.
        """
        if isinstance(self.what, Circuit):
            return self.what
        raise UnsupportedError(
            f"a feature graph cannot be written as {form}",
            hint="export it as graphml, node-link, csv or neuronpedia, or give a run of `circuitfind discover` with heads",
        )


@dataclass(frozen=True)
class Exported:
    """A circuit in another form.

    Attributes:
        files: Content by the ending that takes the place of ``.json``.
        counts: What is in it, by name, in numbers.
        notes: What the other form cannot hold.
    """

    files: Mapping[str, str | bytes]
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """A form that circuits can be exported in.

    Attributes:
        summary: What reads it.
        ending: Of its file, in place of ``.json``.
        make: Makes it.
    """

    summary: str
    ending: str
    make: Callable[[Source], Exported]
