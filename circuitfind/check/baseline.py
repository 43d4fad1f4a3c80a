"""What a case gave the last time: a small JSON file beside the tasks, made by ``check --update``. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import circuitfind
from circuitfind.circuit.json_form import check_form, filled, finite, read_object, reading
from circuitfind.output.files import plain, stage_key
from circuitfind.session import prompt_files
from circuitfind.settings import Settings
from circuitfind.task.spec import TaskSpec

FORMAT = "circuitfind.baseline"
VERSION = 1
DIGITS = 6
"""Significant digits of a stored number."""

STRONGEST = 16
"""Nodes whose scores are kept."""

Weights = Mapping[str, tuple[float, float]]
"""Norm and projection of the weights of each part of a model."""


@dataclass(frozen=True)
class Prompts:
    """The prompt pairs of a case: how many, and hashes of what they are made of.

    Attributes:
        aligned: Pairs that line up.
        accuracy: Share of them that the model answers rightly.
        content: Of all that follows.
        texts: Of clean and corrupted texts.
        tokens: Of their tokens, pair by pair.
        answers: Of answer and wrong tokens.
        answer_positions: Of where answers are read.
        positions: Of named positions.
        pairs, clean_prompts, corrupted_prompts: Of the tokens of both, or of one of them alone, in whatever order.
        first: The first pair, for messages.
    """

    aligned: int
    accuracy: float
    content: str
    texts: str
    tokens: str
    answers: str
    answer_positions: str
    positions: str
    pairs: str
    clean_prompts: str
    corrupted_prompts: str
    first: Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """Mean metric over all pairs that line up; ``empty``: of the circuit without edges, by ablation, over those that are
    answered rightly.
    """

    name: str
    clean: float
    corrupted: float
    empty: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """What decided a case, and what came of it; the latter is None where the run was refused.

    Attributes:
        program: Version that made it; only told.
        task, model, case: Which case.
        task_hash: Of what the task says that decides a run; not of what is expected or known.
        model_hash: Of the model's files; None for written weights, which are those of the program.
        weights: Norm and projection of each part's weights.
        settings: Those that are not as by default.
        used: Pairs that were answered rightly.
        edges: Score by edge of the circuit; None where the method gave none.
        nodes: The strongest nodes of the model, in the circuit or not.
        faithfulness: By ablation.
        backups: Class by node.
    """

    program: str
    task: str
    model: str
    case: str | None
    task_hash: str
    model_hash: str | None
    settings: Mapping[str, Any]
    weights: Weights | None = None
    prompts: Prompts | None = None
    metric: Metric | None = None
    used: int | None = None
    edges: Mapping[str, float | None] | None = None
    nodes: Mapping[str, float | None] | None = None
    faithfulness: Mapping[str, float] | None = None
    backups: Mapping[str, str] | None = None

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return self.edges is not None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, numbers rounded."""
        found: dict[str, Any] = _rounded({"format": FORMAT, "version": VERSION, **plain(asdict(self))})
        return found

    def text(self) -> str:
        """What its file holds: an entry of a mapping on each line, so that a change is one line of a diff."""
        lines = []
        for key, value in self.as_dict().items():
            if isinstance(value, dict) and value:
                inner = ",\n".join(f"  {json.dumps(k)}: {_compact(v)}" for k, v in value.items())
                lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
            else:
                lines.append(f" {json.dumps(key)}: {_compact(value)}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read what ``text`` gave.

        Raises:
            UsageError: It is damaged, or of another version.
        """
        again = "look at `git diff` of it, or make it anew with `circuitfind check TASK --update`"
        data = read_object(path, "baseline", file="baseline")
        check_form(data, "baseline", FORMAT, VERSION, where=str(path), hint=again)
        with reading("baseline", where=str(path), hint=again):
            given = {key: value for key, value in data.items() if key not in ("format", "version")}
            given["prompts"] = filled(Prompts, given["prompts"])
            given["metric"] = filled(Metric, given["metric"])
            given["weights"] = {name: (float(a), float(b)) for name, (a, b) in given["weights"].items()}
            for key in ("settings", "edges", "nodes", "faithfulness", "backups"):
                given[key] = dict(given[key])
            return filled(cls, given)

    def rounded(self) -> Baseline:
        """As it will be read from its file."""
        metric = None if self.metric is None else replace(self.metric, **_rounded(asdict(self.metric)))
        names = ("edges", "nodes", "faithfulness")
        return replace(self, metric=metric, **{name: _rounded(getattr(self, name)) for name in names})


def task_hash(spec: TaskSpec) -> str:
    """Hash of what a task says that decides a run: not of its description, nor of what is known and expected.

    What a task leaves out is left out here too, so that a later version with more keys gives the same hash.
    """
    said = spec.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude={"description", "known", "expect"}
    )
    return stage_key([said, *prompt_files(spec)])[:16]


def settings_of(settings: Settings) -> dict[str, Any]:
    """The settings that are not as by default; task and model have names of their own."""
    found = {}
    for one in fields(settings):
        value = getattr(settings, one.name)
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if one.name not in ("task", "model") and value != default:
            found[one.name] = plain(vars(value) if one.name == "rule" else value)
    return found


def begun(spec: TaskSpec, settings: Settings, case: str | None, model_hash: str | None) -> Baseline:
    """A baseline before anything was measured."""
    return Baseline(
        program=circuitfind.__version__,
        task=spec.name,
        model=settings.model,
        case=case,
        task_hash=task_hash(spec),
        model_hash=None if model_hash is None else model_hash[:16],
        settings=settings_of(settings),
    )


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        number = finite(value)
        return None if number is None else float(f"{number:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
