"""The parts of a task file that speak of circuits: what is known, and what a check expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictStr, Tag, model_validator
from pydantic_core import PydanticCustomError

from circuitfind.config import Ablation, Direction, Nodes
from circuitfind.errors import UsageError
from circuitfind.names import Edge, Kind, Node, parse_edge, parse_node
from circuitfind.task.parts import Count, Key, Number, Part, Text, one_of_two


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

    name: Key | None = Field(default=None, description="What it is called, where a model has several.")
    source: Text | None = Field(default=None, description="Who found it: authors, year, link.")
    heads: tuple[HeadName, ...] = Field(default=(), description="Its attention heads.")
    mlps: tuple[MlpName, ...] = Field(default=(), description="Its MLP layers.")
    roles: dict[Key, tuple[NodeName, ...]] = Field(default={}, description="What each group of nodes does.")
    edges: tuple[EdgeName, ...] = Field(default=(), description="Its edges, where they are known.")
    ablation: Text | None = Field(
        default=None,
        description="What took the place of the rest when it was found, such as resample, or the mean of what.",
    )
    replicates: StrictBool = Field(
        default=True, description="false: others could not find it again; nothing may certify it."
    )
    note: Text | None = Field(
        default=None, description="What a reader should know, such as a failed replication."
    )

    @property
    def nodes(self) -> tuple[str, ...]:
        """Its heads and MLPs."""
        return (*self.heads, *self.mlps)


KnownList = Annotated[
    Annotated[Known, Tag("<mapping>")]
    | Annotated[Annotated[tuple[Known, ...], Field(min_length=1)], Tag("<list>")],
    one_of_two("<mapping>", "<list>"),
]
"""One known circuit of a model, or several."""


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


class ExpectBackups(Part):
    """What must be found to stand in for others, and what must not."""

    contains: tuple[NodeName, ...] = Field(default=(), description="Nodes that must be found as backups.")
    excludes: tuple[NodeName, ...] = Field(default=(), description="Nodes that must not be.")


class CheckSettings(Part):
    """How a check runs ``discover``, where that is not as by default."""

    method: Text | None = Field(default=None, description="How nodes or edges are scored.")
    options: dict[Text, Any] = Field(default={}, description="Options of the method.")
    ablation: Ablation | None = Field(default=None, description="What cut edges carry.")
    direction: Direction | None = Field(default=None, description="noising or denoising.")
    counterfactual: Text | None = Field(default=None, description="Which corrupted prompts.")
    metric: Text | None = Field(default=None, description="What is measured.")
    nodes: Nodes | None = Field(default=None, description="What circuits are made of.")
    faithfulness: Number | None = Field(
        default=None, description="Prune to the smallest circuit that reaches it."
    )
    edges: Count | None = Field(default=None, description="Prune to so many of the strongest edges instead.")
    count: Count | None = Field(default=None, description="How many prompt pairs.")
    min_accuracy: Number | None = Field(
        default=None, description="Share of pairs that must be answered rightly."
    )
    backups: StrictBool | None = Field(default=None, description="Whether to look for backups.")


class Expect(Part):
    """What ``circuitfind check`` holds a model's circuit to."""

    tier: Literal[1, 2, 3] = Field(
        default=1,
        description="1: needs no download and runs on every commit; 2: a small hub model; 3: a GPU.",
    )
    settings: CheckSettings = Field(default=CheckSettings(), description="How discover is run.")
    accuracy: Range | None = Field(default=None, description="Share of pairs that the model answers rightly.")
    faithfulness: Range | None = Field(default=None, description="Faithfulness of the pruned circuit.")
    nodes: Range | None = Field(default=None, description="Number of nodes kept.")
    edges: Range | None = Field(default=None, description="Number of edges kept.")
    contains: Contains | None = Field(default=None, description="What must be in the circuit.")
    excludes: Contains | None = Field(default=None, description="What must not be in the circuit.")
    strongest: Strongest | None = Field(default=None, description="What must have the greatest effect.")
    against: Key | None = Field(
        default=None, description="Name of the known circuit that precision, recall and roc-auc are against."
    )
    precision: Range | None = Field(default=None, description="Share of what was found that is known.")
    recall: Range | None = Field(default=None, description="Share of what is known that was found.")
    roc_auc: Range | None = Field(
        default=None, description="Chance that something known is scored higher than something else."
    )
    backups: ExpectBackups | None = Field(default=None, description="What must be found to stand in.")
    stability: Range | None = Field(
        default=None, description="Mean Jaccard index of the edges when prompts are drawn again."
    )
    certified: StrictBool | None = Field(
        default=None, description="Whether the circuit must be certified, or must be refused."
    )
    refuses: tuple[Key, ...] = Field(
        default=(), description="Names of known circuits that must not be certified."
    )
