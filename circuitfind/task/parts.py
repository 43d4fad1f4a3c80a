"""The parts of a task file, as pydantic models. YAML keys have hyphens where these names have underscores."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Strict,
    StrictInt,
    StrictStr,
    StringConstraints,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from circuitfind.task.dataset import DatasetPrompts
from circuitfind.task.part import Key, Part, Text

DEFAULT_COUNTERFACTUAL = "corrupted"
"""Name of the counterfactual of a pair that gives only one, without a name."""


SlotName = Annotated[StrictStr, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
PositionName = Annotated[StrictStr, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_+-]*$")]
Number = Annotated[float, Strict()]
TokenId = Annotated[StrictInt, Field(ge=0)]
Tokens = Literal["one", "any"]


def _shape(value: Any) -> str:
    """Which branch of a union a value belongs to; the tags never reach the user."""
    if isinstance(value, dict | BaseModel):
        return "<mapping>"
    if isinstance(value, list | tuple):
        return "<list>"
    return "<number>" if isinstance(value, int) and not isinstance(value, bool) else "<text>"


def one_of_two(first: str, other: str) -> Discriminator:
    """Tells two branches of a union apart by their shape."""
    return Discriminator(lambda value: first if _shape(value) == first else other)


class SetRule(Part):
    """A set of answers picked from a list by comparing numbers, such as all years above a slot's."""

    source: SlotName = Field(alias="from", description="The slot whose values are picked from.")
    above: SlotName | None = Field(default=None, description="Pick the values greater than this slot's.")
    below: SlotName | None = Field(default=None, description="Pick the values less than this slot's.")
    at_least: SlotName | None = Field(
        default=None, description="Pick the values greater than or equal to this slot's."
    )
    up_to: SlotName | None = Field(
        default=None, description="Pick the values less than or equal to this slot's."
    )
    other_than: SlotName | None = Field(
        default=None, description="Pick every value but this slot's (compared as text)."
    )

    @property
    def bounds(self) -> dict[str, str]:
        """The comparisons that are given: name of the comparison -> slot."""
        given = {
            "above": self.above,
            "below": self.below,
            "at-least": self.at_least,
            "up-to": self.up_to,
            "other-than": self.other_than,
        }
        return {name: slot for name, slot in given.items() if slot is not None}

    @model_validator(mode="after")
    def _has_bounds(self) -> SetRule:
        if not self.bounds:
            raise PydanticCustomError(
                "no_bound",
                "says from where to pick, but not what (add above, below, at-least, up-to or other-than)",
            )
        return self


AnswerList = Annotated[tuple[Text, ...], Field(min_length=1)]
TemplateAnswer = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[AnswerList, Tag("<list>")]
    | Annotated[SetRule, Tag("<mapping>")],
    Discriminator(lambda value: "<text>" if _shape(value) == "<number>" else _shape(value)),
]
CorruptedTemplate = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[Annotated[dict[Key, Text], Field(min_length=1)], Tag("<mapping>")],
    one_of_two("<mapping>", "<text>"),
]


class TemplatePair(Part):
    """One template of a prompt pair. Slots stand in braces: ``{A}``; write ``{{`` for a plain brace."""

    name: Key | None = Field(
        default=None, description="Name of the template in reports; its number if left out."
    )
    clean: Text = Field(description="The prompt, up to right before the answer.")
    corrupted: CorruptedTemplate = Field(
        description="The prompt with one thing changed, or several of them by name; the first is the default."
    )
    answer: TemplateAnswer = Field(
        description="The right answer to the clean prompt as one token, with its leading blank; a list is "
        "a set of answers; {from: YEARS, above: YY} picks from a slot's values."
    )
    wrong: TemplateAnswer = Field(
        description="The wrong answer (or a set of them) that the right one is compared with."
    )
    weight: Annotated[float, Strict(), Field(gt=0)] = Field(
        default=1.0, description="How often it is drawn, next to the others."
    )

    @property
    def counterfactuals(self) -> dict[str, str]:
        """Corrupted templates by name."""
        return (
            self.corrupted if isinstance(self.corrupted, dict) else {DEFAULT_COUNTERFACTUAL: self.corrupted}
        )


WordList = Annotated[tuple[Text, ...], Field(min_length=1)]


class SlotRule(Part):
    """The values of a slot, with how they may be tokenised."""

    values: WordList = Field(description="The words that may stand in the slot.")
    tokens: Tokens = Field(
        default="one",
        description="one: values that are not one token in their place are left out; any: all stay.",
    )


Slot = Annotated[
    Annotated[WordList, Tag("<list>")] | Annotated[SlotRule, Tag("<mapping>")],
    one_of_two("<mapping>", "<list>"),
]
Row = Annotated[dict[SlotName, Text], Field(min_length=1)]


class RowRule(Part):
    """A table of slots whose values belong together, with how they may be tokenised."""

    values: Annotated[tuple[Row, ...], Field(min_length=1)] = Field(description="The rows.")
    tokens: Tokens = Field(
        default="one", description="one: rows with a value that is not one token are left out; any: all stay."
    )


Rows = Annotated[
    Annotated[Annotated[tuple[Row, ...], Field(min_length=1)], Tag("<list>")]
    | Annotated[RowRule, Tag("<mapping>")],
    one_of_two("<mapping>", "<list>"),
]

PromptValue = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[Annotated[tuple[TokenId, ...], Field(min_length=1)], Tag("<list>")],
    one_of_two("<list>", "<text>"),
]
Corrupted = Annotated[
    Annotated[PromptValue, Tag("<prompt>")]
    | Annotated[Annotated[dict[Key, PromptValue], Field(min_length=1)], Tag("<mapping>")],
    Discriminator(lambda value: "<mapping>" if _shape(value) == "<mapping>" else "<prompt>"),
]
AnswerToken = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[TokenId, Tag("<number>")], one_of_two("<number>", "<text>")
]
Answer = Annotated[
    Annotated[AnswerToken, Tag("<one>")]
    | Annotated[Annotated[tuple[AnswerToken, ...], Field(min_length=1)], Tag("<list>")],
    Discriminator(lambda value: "<list>" if _shape(value) == "<list>" else "<one>"),
]


class InlinePair(Part):
    """One prompt pair, written out: text, token ids, or words of ``vocab``."""

    clean: PromptValue = Field(description="The prompt: text, or a list of token ids.")
    corrupted: Corrupted = Field(
        description="The corrupted prompt, or several by name; the first is the default."
    )
    answer: Answer = Field(description="The right answer: one token as text or id, or a list of them.")
    wrong: Answer = Field(description="The wrong answer, or a list of them.")
    group: Text | None = Field(
        default=None, description="Pairs of the same group are averaged together in reports."
    )

    @property
    def counterfactuals(self) -> dict[str, str | tuple[int, ...]]:
        """Corrupted prompts by name."""
        return (
            self.corrupted if isinstance(self.corrupted, dict) else {DEFAULT_COUNTERFACTUAL: self.corrupted}
        )


Count = Annotated[StrictInt, Field(ge=1)]


class ZooPrompts(Part):
    """Prompts that the model of the zoo makes itself."""

    count: Count = Field(default=64, description="How many pairs.")
    seed: StrictInt = Field(default=0, description="Seed that they are drawn from.")


class SlotPosition(Part):
    """The token at which a slot's value ends."""

    slot: Annotated[StrictStr, StringConstraints(min_length=1)] = Field(description="Name of the slot.")
    occurrence: Count = Field(default=1, description="Which of its places in the clean prompt, from 1.")


class TokenPosition(Part):
    """A given token."""

    token: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[TokenId, Tag("<number>")],
        one_of_two("<number>", "<text>"),
    ] = Field(description="The token as text (with its leading blank) or id.")
    occurrence: Count = Field(default=1, description="Which of its places in the clean prompt, from 1.")


Position = Annotated[
    Annotated[StrictInt, Tag("<number>")]
    | Annotated[SlotPosition, Tag("<slot>")]
    | Annotated[TokenPosition, Tag("<token>")],
    Discriminator(
        lambda value: (
            "<number>"
            if _shape(value) != "<mapping>"
            else "<token>"
            if isinstance(value, TokenPosition) or (isinstance(value, dict) and "token" in value)
            else "<slot>"
        )
    ),
]


class Prompts(Part):
    """Where the prompt pairs come from: exactly one of templates, pairs, file, dataset, zoo."""

    templates: Annotated[tuple[TemplatePair, ...], Field(min_length=1)] | None = Field(
        default=None, description="Templates whose slots are filled from a seed."
    )
    slots: dict[SlotName, Slot] = Field(
        default={}, description="The values of each slot that the templates use."
    )
    rows: Rows | None = Field(
        default=None,
        description="A table of slots whose values belong together, one mapping a row; one row is drawn for "
        "each pair, {KEY.2} draws from a second, different row.",
    )
    distinct: tuple[Annotated[tuple[StrictStr, ...], Field(min_length=2)], ...] = Field(
        default=(), description="Groups of slots that take different values in each pair."
    )
    pairs: Annotated[tuple[InlinePair, ...], Field(min_length=1)] | None = Field(
        default=None, description="Prompt pairs written out here."
    )
    file: Text | None = Field(
        default=None,
        description="A .jsonl or .csv file of pairs, relative to this file: columns clean, corrupted, "
        "answer, wrong, and corrupted:NAME for further counterfactuals.",
    )
    dataset: DatasetPrompts | None = Field(
        default=None, description="Rows of a data set, in a folder or on the hub."
    )
    zoo: ZooPrompts | None = Field(
        default=None, description="Prompts that the model of the zoo makes itself."
    )
    count: Count | None = Field(
        default=None, description="Pairs to draw (64 from templates), or to read at most."
    )
    seed: StrictInt | None = Field(
        default=None, description="Seed that templates are filled from; 0 if left out."
    )

    @property
    def kind(self) -> str:
        """Which source is given: templates, pairs, file, dataset or zoo."""
        return next(kind for kind in SOURCES if getattr(self, kind) is not None)

    @property
    def slot_rules(self) -> dict[str, SlotRule]:
        """Every slot as a rule, whichever way it was written."""
        return {
            name: slot if isinstance(slot, SlotRule) else SlotRule(values=slot)
            for name, slot in self.slots.items()
        }

    @property
    def row_rule(self) -> RowRule | None:
        """The table as a rule, whichever way it was written."""
        return self.rows if self.rows is None or isinstance(self.rows, RowRule) else RowRule(values=self.rows)

    @model_validator(mode="after")
    def _one_source(self) -> Prompts:
        given = [kind for kind in SOURCES if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise PydanticCustomError(
                "one_source",
                "needs exactly one of templates, pairs, file, dataset and zoo, has {found}",
                {"found": found},
            )
        if given != ["templates"]:
            extra = [key for key in ("slots", "rows", "distinct") if getattr(self, key)]
            extra += ["seed"] if self.seed is not None else []
            extra += ["count"] if self.count is not None and given == ["zoo"] else []
            if extra:
                raise PydanticCustomError(
                    "needs_templates",
                    "{keys} mean nothing beside '{kind}'",
                    {"keys": " and ".join(f"'{key}'" for key in extra), "kind": given[0]},
                )
        return self


SOURCES = ("templates", "pairs", "file", "dataset", "zoo")
