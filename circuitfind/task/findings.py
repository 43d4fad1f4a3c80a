"""The parts of a task file that speak of circuits: what is known, and what a check expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict, StrictBool, StrictInt, StrictStr, Tag, model_validator
from pydantic_core import PydanticCustomError

from circuitfind.config import Ablation, Direction, Nodes
from circuitfind.errors import UsageError
from circuitfind.names import Edge, Kind, Node, parse_edge, parse_node
from circuitfind.task.part import Key, Part, Text
from circuitfind.task.parts import Count, Number, PositionName, one_of_two


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
Share = Annotated[float, Strict(), Field(ge=0, le=1)]


class Known(Part):
    """A circuit that others found for this task on one model."""

    name: Key | None = Field(default=None, description="What it is called, where a model has several.")
    source: Text | None = Field(default=None, description="Who found it: authors, year, link.")
    heads: tuple[HeadName, ...] = Field(default=(), description="Its attention heads.")
    mlps: tuple[MlpName, ...] = Field(default=(), description="Its MLP layers.")
    roles: dict[Key, tuple[NodeName, ...]] = Field(default={}, description="What each group of nodes does.")
    positions: dict[PositionName, tuple[NodeName, ...]] = Field(
        default={}, description="Where nodes act, by the name of a position."
    )
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

    @property
    def words(self) -> str:
        """The range, such as ``at least 0.9`` or ``3 to 5``."""
        if self.min is None:
            return f"at most {self.max:g}"
        if self.max is None:
            return f"at least {self.min:g}"
        return f"{self.min:g}" if self.min == self.max else f"{self.min:g} to {self.max:g}"

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


class Top(Part):
    """Heads that must be among those with the greatest effect."""

    count: Count = Field(description="How many of the heads with the greatest effect are looked at.")
    heads: Annotated[tuple[HeadName, ...], Field(min_length=1)] = Field(
        description="Heads to be found there."
    )
    at_least: Count | None = Field(default=None, description="How many of them must be; all if left out.")

    @model_validator(mode="after")
    def _can_hold(self) -> Top:
        needed = self.at_least or len(self.heads)
        if needed > min(self.count, len(self.heads)):
            raise PydanticCustomError(
                "top",
                "asks for {needed} of {heads} heads among {count}",
                {"needed": needed, "heads": len(self.heads), "count": self.count},
            )
        return self


class ExpectBackups(Part):
    """What must be found to stand in for others, and what must not."""

    contains: tuple[NodeName, ...] = Field(
        default=(), description="Nodes that must be found as backups, of the first or second order."
    )
    excludes: tuple[NodeName, ...] = Field(default=(), description="Nodes that must not be.")
    kinds: dict[NodeName, Literal["backup", "second-order backup", "relief"]] = Field(
        default={}, description="What nodes must be found as: backup, second-order backup or relief."
    )


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


class Tolerance(Part):
    """How far a run may be from the stored baseline before a check says that it differs."""

    accuracy: Share | None = Field(
        default=None, description="Change in the share of pairs answered rightly.  [default: one pair]"
    )
    metric: Share = Field(
        default=0.005,
        description="Change in the mean metric, as a share of what lies between clean and corrupted prompts.",
    )
    scores: Share = Field(
        default=0.02, description="Change in a score, as a share of the greatest of the baseline."
    )
    faithfulness: Share = Field(default=0.02, description="Change in faithfulness.")
    edges: Share | None = Field(
        default=None,
        description="Least Jaccard index of the edges with those of the baseline; below 1, no edge of the stronger half "
        "may come or go either.  [default: 1 for planted models, 0.9 for others]",
    )
    backups: Annotated[StrictInt, Field(ge=0)] = Field(
        default=0, description="How many findings of the search for backups may differ."
    )


class Expect(Part):
    """What ``circuitfind check`` holds a model's circuit to."""

    name: Key | None = Field(default=None, description="What the case is called, where a model has several.")
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
    top: Top | None = Field(default=None, description="Heads that must be among the strongest.")
    negative: tuple[NodeName, ...] = Field(
        default=(), description="Nodes whose effect must be negative: they work against the answer."
    )
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
    tolerance: Tolerance = Field(default=Tolerance(), description="How far the stored baseline may be.")


def _named_apart(cases: tuple[Expect, ...]) -> tuple[Expect, ...]:
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise PydanticCustomError(
            "case_names", "lists two cases of the same name (give each but one a 'name' of its own)"
        )
    return cases


ExpectList = Annotated[
    Annotated[Expect, Tag("<mapping>")]
    | Annotated[
        Annotated[tuple[Expect, ...], Field(min_length=1), AfterValidator(_named_apart)], Tag("<list>")
    ],
    one_of_two("<mapping>", "<list>"),
]
"""What is expected of a model: one case, or several with names that run ``discover`` each in its own way."""
