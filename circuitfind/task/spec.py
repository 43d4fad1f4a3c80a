"""A task: what the model should do, on which prompts, and what is known of how. One YAML file each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    PrivateAttr,
    Strict,
    StrictBool,
    StrictInt,
    StrictStr,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

import circuitfind
from circuitfind.config import DEFAULT_MIN_ACCURACY, Ablation, Direction
from circuitfind.errors import TaskError, did_you_mean, nearest
from circuitfind.reading import expanded
from circuitfind.shown import Shown
from circuitfind.task.checks import END, find_problems
from circuitfind.task.findings import Expect, ExpectList, Known, KnownList
from circuitfind.task.part import Part, Text
from circuitfind.task.parts import DEFAULT_COUNTERFACTUAL, Position, PositionName, Prompts
from circuitfind.task.source import Source, explain, parse_yaml, read_text
from circuitfind.task.starter import STARTER

TASKS_VARIABLE = "CIRCUITFIND_TASKS"
"""Environment variable that names folders of task files, looked through first."""

MetricName = Literal["logit-diff", "prob-diff", "log-prob", "kl", "accuracy"]
MeanOver = Literal["clean", "corrupted", "both"]
SUFFIXES = (".yaml", ".yml")
KIND = "task file"


class TaskSpec(Shown, Part):
    """One task file."""

    name: Annotated[StrictStr, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")] = Field(
        description="Short name: a-z, 0-9, -."
    )
    description: Text | None = Field(
        default=None, description="What the model is asked to do, in a sentence."
    )
    model: Text = Field(
        default="mini",
        description="Default model: of the zoo (mini, planted/induction:7), of the hub (gpt2), or a folder.",
    )
    prompts: Prompts = Field(description="The prompt pairs.")
    vocab: Annotated[tuple[Text, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="For models without a tokenizer: word i is token i; prompts are words and blanks.",
    )
    prepend_bos: Annotated[
        Annotated[Literal["auto"], Tag("<text>")] | Annotated[StrictBool, Tag("<bool>")],
        Discriminator(lambda value: "<bool>" if isinstance(value, bool) else "<text>"),
    ] = Field(
        default="auto",
        description="Start prompts with the beginning-of-text token: auto does as the tokenizer does.",
    )
    answer_position: Annotated[
        Annotated[PositionName, Tag("<text>")] | Annotated[StrictInt, Tag("<number>")],
        Discriminator(lambda value: "<number>" if isinstance(value, int) else "<text>"),
    ] = Field(
        default=END, description="Where the answer is read: a named position, or an index into the prompt."
    )
    positions: dict[PositionName, Position] = Field(
        default={},
        description="Named positions: {slot: B, occurrence: 2}, {token: ' gave'}, or an index into the "
        "prompt (0 is its first token, not counting a beginning-of-text token; -1 its last). END is -1.",
    )
    metric: MetricName = Field(default="logit-diff", description="How well the model does on a prompt.")
    ablation: Ablation = Field(default="resample", description="What takes the place of what is cut out.")
    mean_over: MeanOver = Field(
        default="both", description="Prompts that ablation by the mean averages over."
    )
    direction: Direction = Field(
        default="noising",
        description="noising puts corrupted into clean runs (what is necessary); denoising the reverse.",
    )
    min_accuracy: Annotated[float, Strict(), Field(ge=0, le=1)] = Field(
        default=DEFAULT_MIN_ACCURACY, description="Share of pairs that a model must answer rightly."
    )
    known: dict[Text, KnownList] = Field(
        default={}, description="Circuits that are known, by model; one, or a list of several with names."
    )
    expect: dict[Text, ExpectList] = Field(
        default={},
        description="What `circuitfind check` holds each model to; one case, or a list of several.",
    )

    _source: Source | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _fits_together(self) -> TaskSpec:
        problems = find_problems(self.prompts, self.positions, self.answer_position)
        if self.vocab is not None and len(set(self.vocab)) < len(self.vocab):
            raise PydanticCustomError("vocab", "'vocab' lists a word twice")
        if problems:
            raise PydanticCustomError(
                "task", "{what}", {"what": f"{problems[0].what} ({problems[0].hint})", "problems": problems}
            )
        return self

    @property
    def path(self) -> Path | None:
        """The file that it was read from."""
        return self._source.path if self._source else None

    def where(self, *keys: str | int) -> str:
        """A key's place for messages: ``tasks/ioi.yaml:12 (prompts.count)``."""
        return self._source.where(keys) if self._source else f"task {self.name}"

    def place(self, *keys: str | int) -> str:
        """The same without the key: ``tasks/ioi.yaml:12``."""
        return self._source.place(keys) if self._source else f"task {self.name}"

    @property
    def counterfactuals(self) -> tuple[str, ...]:
        """Names of the counterfactuals, the default first (those of a prompt file: once it is read)."""
        if self.prompts.dataset is not None:
            return tuple(self.prompts.dataset.corrupted)
        items = self.prompts.templates or self.prompts.pairs
        return tuple(items[0].counterfactuals) if items else (DEFAULT_COUNTERFACTUAL,)

    def known_of(self, model: str, name: str | None = None) -> tuple[Known, ...]:
        """The known circuits of a model, or that of a name; empty where none is."""
        found = self.known.get(model, ())
        every = (found,) if isinstance(found, Known) else found
        return tuple(one for one in every if name is None or one.name == name)

    def expect_of(self, model: str) -> tuple[Expect, ...]:
        """The cases of a model; empty where nothing is expected of it."""
        found = self.expect.get(model, ())
        return (found,) if isinstance(found, Expect) else found

    @property
    def count(self) -> int | None:
        """How many pairs are asked for; None means all there are."""
        if self.prompts.zoo is not None:
            return self.prompts.zoo.count
        if self.prompts.count is None and self.prompts.templates is not None:
            return 64
        return self.prompts.count

    @property
    def seed(self) -> int:
        """The seed that prompts are drawn from."""
        return self.prompts.zoo.seed if self.prompts.zoo is not None else self.prompts.seed or 0


def load_task(name_or_path: str | Path, search: Sequence[Path] | None = None) -> TaskSpec:
    """Read a task by its name, looked up in ``search`` (default: `task_folders`), or by its path.

    Raises:
        TaskError: no such task, or a file that is no task; all of its problems are listed.
    """
    text = str(name_or_path)
    path = expanded(text)
    if path.suffix not in SUFFIXES and os.sep not in text:
        tasks = find_tasks(search)
        if text not in tasks:
            folders = task_folders() if search is None else search
            raise TaskError(
                f"no task is named '{text}'",
                hint=f"{did_you_mean(text, tasks)} (`circuitfind list tasks` shows all; a path ends in .yaml)"
                if nearest(text, tasks) is not None
                else "`circuitfind list tasks` shows all; a path ends in .yaml",
                details=[f"looked in {folder}" for folder in folders],
            )
        path = tasks[text]
    elif not path.exists() and path.parent == Path() and path.stem in find_tasks(search):
        raise TaskError(
            f"no task file at '{text}'",
            hint=f"there is a task of that name: write '{path.stem}', without {path.suffix}",
        )
    return _spec_of(path, read_text(path, KIND))


@lru_cache(maxsize=128)  # controls, checks and sweeps look through all tasks, over and over
def _spec_of(path: Path, text: str) -> TaskSpec:
    data, source = parse_yaml(text, path, KIND)
    known: dict[int, list[str]] = {}
    try:
        spec = TaskSpec.model_validate(data, context=known)
    except ValidationError as error:
        raise explain(error.errors(include_url=False), data, source, known) from None
    spec._source = source
    return spec


def task_folders() -> list[Path]:
    """Folders that are searched for tasks: $CIRCUITFIND_TASKS, ./tasks, and the packaged one."""
    named = [expanded(part) for part in os.environ.get(TASKS_VARIABLE, "").split(os.pathsep) if part]
    package = Path(circuitfind.__file__).parent
    packaged = [package / "_tasks", package.parent / "tasks"]
    shipped = next((folder for folder in packaged if folder.is_dir()), packaged[0])
    return list({folder.resolve(): folder for folder in (*named, Path.cwd() / "tasks", shipped)}.values())


def find_tasks(search: Sequence[Path] | None = None) -> dict[str, Path]:
    """Tasks by name (the file's name without its ending), sorted; the first folder that has a name wins."""
    found: dict[str, Path] = {}
    for folder in task_folders() if search is None else search:
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if path.suffix in SUFFIXES and path.is_file():
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of task files, for editors."""
    schema = TaskSpec.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "circuitfind task"}


def template() -> str:
    """A commented task file to start from."""
    return STARTER


__all__ = [
    "TASKS_VARIABLE",
    "TaskSpec",
    "find_tasks",
    "json_schema",
    "load_task",
    "task_folders",
    "template",
]
