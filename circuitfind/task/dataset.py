"""The part of a task file that takes prompts from the rows of a data set, on the hub or in a folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from circuitfind.task.columns import parse_columns
from circuitfind.task.part import Key, Part, Text


def _columns(text: str) -> str:
    try:
        found = parse_columns(text)
    except ValueError as error:
        raise PydanticCustomError(
            "columns",
            "{what} (a column is {{prompt}}, {{metadata.subject}} or {{choices.label[answerKey]}})",
            {"what": str(error)},
        ) from None
    if not found.columns:
        raise PydanticCustomError(
            "columns",
            "names no column: every row would give the same (write it in braces, such as {{prompt}})",
        )
    return text


RowText = Annotated[Text, AfterValidator(_columns)]
HubName = Annotated[StrictStr, StringConstraints(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")]
Named = Annotated[dict[Key, RowText], Field(min_length=1)]


class DatasetPrompts(Part):
    """Prompts from the rows of a data set. Columns stand in braces: ``{prompt}``, ``{metadata.subject}``."""

    name: HubName = Field(description="The data set on the hub, such as mib-bench/ioi.")
    config: HubName | None = Field(
        default=None, description="Which of its configurations, where it has several."
    )
    split: Key = Field(default="train", description="Which split.")
    revision: Text | None = Field(default=None, description="A branch, tag or commit of the hub.")
    folder: Text | None = Field(
        default=None,
        description="A folder of .jsonl or .parquet files, relative to this file. Without it, "
        "$CIRCUITFIND_ROWS/NAME is looked in, then the hub.",
    )
    clean: RowText = Field(description="The prompt, up to right before the answer.")
    corrupted: Named = Field(description="Corrupted prompts by name; the first is the default.")
    answer: RowText = Field(description="The right answer, with its leading blank.")
    wrong: RowText | Named = Field(
        description="The wrong answer; by name where each corrupted prompt has its own."
    )
    group: RowText | None = Field(
        default=None, description="Pairs of the same group are averaged together in reports."
    )
    where: dict[Text, StrictBool | StrictInt | StrictFloat | StrictStr] = Field(
        default={}, description="Values that columns must have; other rows are left out."
    )
    filled: tuple[Text, ...] = Field(
        default=(), description="Columns that must not be null; other rows are left out."
    )
    equal_tokens: tuple[RowText, ...] = Field(
        default=(), description="Texts that must have the same number of tokens; other rows are left out."
    )
    answer_tokens: Literal["one", "first"] = Field(
        default="one",
        description="one: rows whose answers are not one token are left out; first: the first token stands for all.",
    )

    def wrong_of(self, counterfactual: str) -> str:
        """The wrong answer beside a corrupted prompt."""
        return self.wrong[counterfactual] if isinstance(self.wrong, dict) else self.wrong

    @model_validator(mode="after")
    def _same_names(self) -> DatasetPrompts:
        if isinstance(self.wrong, dict) and set(self.wrong) != set(self.corrupted):
            raise PydanticCustomError(
                "wrong_names",
                "'wrong' has answers for {wrong}, and 'corrupted' has prompts for {corrupted}",
                {"wrong": ", ".join(self.wrong), "corrupted": ", ".join(self.corrupted)},
            )
        return self
