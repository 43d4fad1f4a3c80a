"""The parts of a task file that speak of circuits: what is known, and what a check expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field, StrictStr, model_validator
from pydantic_core import PydanticCustomError

from circuitfind.errors import UsageError
from circuitfind.names import Edge, Kind, Node, parse_edge, parse_node
from circuitfind.task.parts import Key, Number, Part, Text


def _reads_as(kind: str, read: Callable[[str], object]) -> AfterValidator:
    def check(text: str) -> str:
        try:
            return str(read(text))
        except UsageError as error:
            raise PydanticCustomError(
                "circuit_name", "{what} ({hint})", {"what": error.what, "hint": error.hint}
            ) from None

    check.__name__ = f"check_{kind}"
    return AfterValidator(check)


def _head(text: str) -> Node:
    node = parse_node(text)
    if node.kind is not Kind.HEAD:
        raise UsageError(f"'{text}' is not an attention head", hint="heads are named like a9.h6")
    return node


def _mlp(text: str) -> Node:
    node = parse_node(text)
    if node.kind is not Kind.MLP:
        raise UsageError(f"'{text}' is not an MLP", hint="MLPs are named like m5")
    return node


def _edge(text: str) -> Edge:
    return parse_edge(text)


NodeName = Annotated[StrictStr, _reads_as("node", parse_node)]
HeadName = Annotated[StrictStr, _reads_as("head", _head)]
MlpName = Annotated[StrictStr, _reads_as("mlp", _mlp)]
EdgeName = Annotated[StrictStr, _reads_as("edge", _edge)]


class Known(Part):
    """A circuit that others found for this task on one model."""

    source: Text | None = Field(default=None, description="Who found it: authors, year, link.")
    heads: tuple[HeadName, ...] = Field(default=(), description="Its attention heads.")
    mlps: tuple[MlpName, ...] = Field(default=(), description="Its MLP layers.")
    roles: dict[Key, tuple[NodeName, ...]] = Field(default={}, description="What each group of nodes does.")
    edges: tuple[EdgeName, ...] = Field(default=(), description="Its edges, where they are known.")
    note: Text | None = Field(
        default=None, description="What a reader should know, such as a failed replication."
    )


class Range(Part):
    """What a number must lie between; either end may be left out."""

    min: Number | None = Field(default=None, description="Lowest value that passes.")
    max: Number | None = Field(default=None, description="Highest value that passes.")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.min is None and self.max is None:
            raise PydanticCustomError("empty_range", "gives neither min nor max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise PydanticCustomError("empty_range", "min is greater than max")
        return self

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the range, ends included; NaN never does."""
        low = self.min is None or value >= self.min
        return low and (self.max is None or value <= self.max) and value == value


class Contains(Part):
    """Nodes and edges that must be in the circuit."""

    nodes: tuple[NodeName, ...] = Field(default=(), description="Nodes that must be kept.")
    edges: tuple[EdgeName, ...] = Field(default=(), description="Edges that must be kept.")


class Strongest(Part):
    """What must have the greatest effect."""

    head: HeadName | None = Field(default=None, description="The head with the greatest effect.")
    mlp: MlpName | None = Field(default=None, description="The MLP with the greatest effect.")
    edge: EdgeName | None = Field(
        default=None, description="The edge between heads with the greatest effect."
    )


class Expect(Part):
    """What ``circuitfind check`` holds a model's circuit to."""

    accuracy: Range | None = Field(default=None, description="Share of pairs that the model answers rightly.")
    faithfulness: Range | None = Field(default=None, description="Faithfulness of the pruned circuit.")
    nodes: Range | None = Field(default=None, description="Number of nodes kept.")
    edges: Range | None = Field(default=None, description="Number of edges kept.")
    contains: Contains | None = Field(default=None, description="What must be in the circuit.")
    strongest: Strongest | None = Field(default=None, description="What must have the greatest effect.")
