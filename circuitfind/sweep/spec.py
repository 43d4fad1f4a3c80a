"""A sweep file: tasks, models, methods and settings, of which every combination is a run. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, PrivateAttr, StrictBool, StrictInt, Tag, ValidationError

from circuitfind.config import Ablation, Controls, Direction, Errors, Nodes, Positions, Precision
from circuitfind.errors import CircuitfindError, ModelError, TaskError, did_you_mean
from circuitfind.methods import METHODS
from circuitfind.model.identity import model_folder
from circuitfind.reading import expanded
from circuitfind.task.checks import Problem
from circuitfind.task.outside import check_inside
from circuitfind.task.part import Key, Part, Text
from circuitfind.task.parts import Count, Number, one_of_two
from circuitfind.task.source import Source, explain, read_yaml, task_error
from circuitfind.task.spec import MetricName, TaskSpec, load_task, task_folders
from circuitfind.zoo import is_zoo, split_zoo

KIND = "sweep file"
RULES = ("faithfulness", "edges", "threshold")
"""Settings of which a run has one."""

T = TypeVar("T")
OneOrMore = Annotated[
    Annotated[T, Tag("<one>")] | Annotated[tuple[T, ...], Field(min_length=1), Tag("<list>")],
    one_of_two("<list>", "<one>"),
]
"""A value, or a list of values: each makes a run of its own."""


class MethodChoice(Part):
    """A method with options."""

    name: Text = Field(description="How nodes or edges are scored.")
    options: dict[Text, Any] = Field(default={}, description="Options of the method.")


MethodItem = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[MethodChoice, Tag("<mapping>")],
    one_of_two("<mapping>", "<text>"),
]


class SweepSettings(Part):
    """How runs are made, where that is not as by default; a list makes a run for each of its values."""

    counterfactual: OneOrMore[Text] | None = Field(default=None, description="Which corrupted prompts.")
    metric: OneOrMore[MetricName] | None = Field(default=None, description="What is measured.")
    ablation: OneOrMore[Ablation] | None = Field(default=None, description="What cut edges carry.")
    direction: OneOrMore[Direction] | None = Field(default=None, description="noising or denoising.")
    faithfulness: OneOrMore[Number] | None = Field(
        default=None, description="Prune to the smallest circuit that reaches it."
    )
    edges: OneOrMore[Count] | None = Field(
        default=None, description="Prune to so many of the strongest edges instead."
    )
    threshold: OneOrMore[Number] | None = Field(
        default=None, description="Prune to edges with at least this score instead."
    )
    evaluations: OneOrMore[Count] | None = Field(default=None, description="Circuits to try at the most.")
    nodes: OneOrMore[Nodes] | None = Field(default=None, description="What circuits are made of.")
    dictionaries: OneOrMore[Text] | None = Field(
        default=None, description="Transcoders whose features are nodes."
    )
    errors: OneOrMore[Errors] | None = Field(
        default=None, description="What dictionaries miss: frozen or recomputed."
    )
    count: OneOrMore[Count] | None = Field(default=None, description="Prompt pairs to draw.")
    seed: OneOrMore[StrictInt] | None = Field(
        default=None, description="Seed that templates are filled from."
    )
    min_accuracy: OneOrMore[Number] | None = Field(
        default=None, description="Share of pairs that a model must answer rightly."
    )
    drop_bad_pairs: OneOrMore[StrictBool] | None = Field(
        default=None, description="Go on without pairs that do not line up."
    )
    positions: OneOrMore[Positions] | None = Field(
        default=None, description="Which positions are scored apart."
    )
    precision: OneOrMore[Precision] | None = Field(
        default=None, description="What scores and pruning are computed in."
    )
    backups: OneOrMore[StrictBool] | None = Field(
        default=None, description="Whether to look for what stands in."
    )
    include_backups: OneOrMore[StrictBool] | None = Field(
        default=None, description="Let what stands in join the circuit."
    )
    controls: OneOrMore[Controls] | None = Field(
        default=None, description="How thoroughly circuits are held against controls."
    )
    views: OneOrMore[StrictBool] | None = Field(
        default=None, description="Whether to compute what a report shows beside."
    )
    model_b: OneOrMore[Text] | None = Field(
        default=None, description="Another model of the same shape, whose values cut edges carry."
    )

    def values(self) -> dict[str, tuple[Any, ...]]:
        """By name, with underscores: the values that were given."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: every(value) for name, value in given.items() if value is not None}


SETTINGS = tuple(field.alias or name for name, field in SweepSettings.model_fields.items())
"""Their names, as they are written in the file."""


def every(value: Any) -> tuple[Any, ...]:
    """One value or several, as several."""
    return value if isinstance(value, tuple) else (value,)


class SweepSpec(Part):
    """One sweep file."""

    name: Key | None = Field(
        default=None, description="What the sweep is called.  [default: the name of the file]"
    )
    tasks: OneOrMore[Text] = Field(description="Names of tasks, or files.")
    models: OneOrMore[Text] | None = Field(
        default=None,
        description="Of the zoo, of the hub, or folders.  [default: the model of each task]",
    )
    methods: OneOrMore[MethodItem] | None = Field(
        default=None, description="Methods, each a name or {name: ..., options: {...}}."
    )
    settings: SweepSettings = Field(default=SweepSettings(), description="How runs are made.")
    leave_out: tuple[dict[Text, Any], ...] = Field(
        default=(), description="Combinations that are not run, such as {task: ioi, model: gpt2}."
    )

    _source: Source | None = PrivateAttr(default=None)
    _tasks: tuple[TaskSpec, ...] = PrivateAttr(default=())

    @property
    def source(self) -> Source:
        """The file that it was read from."""
        assert self._source is not None
        return self._source

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def title(self) -> str:
        """Its name, else that of the file."""
        return self.name or self.path.stem

    @property
    def task_specs(self) -> tuple[TaskSpec, ...]:
        """The tasks, read."""
        return self._tasks

    @property
    def method_choices(self) -> tuple[MethodChoice | None, ...]:
        """The methods, each with its options; None for the default."""
        if self.methods is None:
            return (None,)
        return tuple(MethodChoice(name=m) if isinstance(m, str) else m for m in every(self.methods))

    def place(self, name: str) -> str:
        """A file or folder that the sweep names, seen from where the command runs: its paths begin at the sweep file."""
        path = expanded(name)
        beside = self.path.parent / path
        if path.is_absolute() or self.path.parent.resolve() == Path.cwd() or not beside.exists():
            return name
        return str(beside)


def load_sweep(path: str | Path) -> SweepSpec:
    """Read a sweep file and the tasks that it names.

    Raises:
        TaskError: There is no such file, or it is no sweep; all of its problems are listed, with their lines.
    """
    try:
        data, source = read_yaml(expanded(path), KIND)
    except TaskError as error:
        hint = error.hint.replace("circuitfind init", "circuitfind sweep --template")
        raise TaskError(error.what, hint=hint, where=error.where, details=error.details) from None
    known: dict[int, list[str]] = {}
    try:
        spec = SweepSpec.model_validate(data, context=known)
    except ValidationError as error:
        found = explain(error.errors(include_url=False), data, source, known)
        hint = found.hint.replace("circuitfind init", "circuitfind sweep --template")
        raise TaskError(found.what, hint=hint, where=found.where, details=found.details) from None
    spec._source = source
    problems = list(_problems(spec))
    if problems:
        raise task_error(source, problems)
    return spec


def _problems(spec: SweepSpec) -> Iterator[Problem]:
    """What the schema does not see."""
    tasks: list[TaskSpec] = []
    for path, name in _items(spec.tasks, "tasks"):
        try:
            tasks.append(load_task(_task(spec, name) if "." in name else name))
        except CircuitfindError as error:
            what = f"{error.where}: {error.what}" if error.where else error.what
            yield Problem(path, what, error.hint)
    spec._tasks = tuple(tasks)
    for path, choice in _items(spec.methods, "methods"):
        name = choice if isinstance(choice, str) else choice.name
        if name not in METHODS:
            place = path if isinstance(choice, str) else (*path, "name")
            yield Problem(place, f"no method is named '{name}'", did_you_mean(name, METHODS))
    for path, name in _items(spec.models, "models"):
        yield from _model(spec, path, name)
    given = spec.settings.values()
    rules = [name for name in RULES if name in given]
    if len(rules) > 1:
        yield Problem(
            ("settings", rules[1]),
            f"a circuit is pruned to {rules[0]} or to {rules[1]}, not to both",
            "keep one of them",
        )
    yield from _counterfactuals(spec, tasks)
    yield from _left_out(spec)


def _task(spec: SweepSpec, name: str) -> str:
    """The path of a task that the sweep names.

    Raises:
        TaskError: It lies neither beside or below the sweep file nor where tasks are looked for.
    """
    place = spec.place(name)
    folders = [spec.path.parent, spec.path.resolve().parent, *task_folders()]
    check_inside(expanded(place), folders, name, None)
    return place


def _model(spec: SweepSpec, path: tuple[str | int, ...], name: str) -> Iterator[Problem]:
    """A name that is meant for the zoo or for a folder, and is of neither; the hub is asked when a run begins."""
    if is_zoo(name):
        try:
            split_zoo(name)
        except ModelError as error:
            yield Problem(path, error.what, error.hint)
    elif name.startswith((".", "/", "~")) and not model_folder(spec.place(name)).is_dir():
        yield Problem(path, f"there is no model folder '{name}'", "paths begin where the sweep file is")


def _items(value: Any, *keys: str | int) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Each value of a key with its place in the file."""
    if isinstance(value, tuple):
        yield from (((*keys, i), one) for i, one in enumerate(value))
    elif value is not None:
        yield keys, value


def _counterfactuals(spec: SweepSpec, tasks: list[TaskSpec]) -> Iterator[Problem]:
    """A name that no task has; one that some have not makes runs that are refused."""
    if not tasks or any(task.prompts.file is not None for task in tasks):
        return
    known = sorted({name for task in tasks for name in task.counterfactuals})
    for path, name in _items(spec.settings.counterfactual, "settings", "counterfactual"):
        if name not in known:
            what = f"none of the tasks has a counterfactual '{name}'"
            yield Problem(path, what, did_you_mean(name, known))


def _left_out(spec: SweepSpec) -> Iterator[Problem]:
    known = ("task", "model", "method", *SETTINGS)
    for i, one in enumerate(spec.leave_out):
        if not one:
            yield Problem(("leave-out", i), "leaves out everything", "name what is left out, or drop it")
        for key in one:
            if key not in known:
                yield Problem(("leave-out", i, key), f"unknown key '{key}'", did_you_mean(key, known))


def word(value: Any) -> str:
    """A value as it is written in the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def method_word(choice: MethodChoice) -> str:
    """``eap-ig (steps=10)``, as runs tell it."""
    options = ", ".join(f"{name}={word(value)}" for name, value in choice.options.items())
    return f"{choice.name} ({options})" if options else choice.name


def matches(told: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    """Whether what a cell is told by has all of some values; a value may be a list, of which one is enough."""
    return all(
        told.get(key) in [word(one) for one in (value if isinstance(value, list | tuple) else [value])]
        for key, value in wanted.items()
    )
