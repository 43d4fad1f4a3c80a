"""What a run does, resolved: flags over the task file over defaults. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from circuitfind.circuit.rule import Rule
from circuitfind.config import (
    ABLATIONS,
    CROSS_METHODS,
    CROSS_PROPOSAL,
    DEFAULT_EVALUATIONS,
    DEFAULT_METHOD,
    DEFAULT_MIN_SHARE,
    DEFAULT_RATE,
    DEFAULT_TARGET,
    DEFAULT_UNIT_METHOD,
    DIRECTIONS,
    ERRORS,
    NODES,
    POSITIONS,
    PRECISIONS,
    UNIT_METHODS,
    Ablation,
    Direction,
    Errors,
    Nodes,
    Positions,
    Precision,
)
from circuitfind.errors import UsageError, did_you_mean, nearest
from circuitfind.methods import METHODS
from circuitfind.names import parse_node, parse_reader
from circuitfind.task.spec import MetricName, TaskSpec


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result of a run, except the task's prompts and the model's weights."""

    task: str
    model: str
    method: str
    options: Mapping[str, Any]
    """Of the method; only those that are not as by default."""
    metric: str
    ablation: Ablation
    mean_over: str
    direction: Direction
    counterfactual: str | None
    rule: Rule
    count: int | None
    seed: int
    min_accuracy: float
    drop_bad_pairs: bool
    positions: Positions = "none"
    precision: Precision = "fp32"
    backups: bool = True
    """Whether to look for what stands in when heads are removed."""
    include_backups: bool = False
    """Whether what stands in joins the circuit."""
    nodes: Nodes = "heads,mlps"
    """What circuits are made of."""
    dictionaries: str | None = None
    """Where the dictionaries are whose features are nodes."""
    errors: Errors = "frozen"
    """Whether what they miss stays that of the base run in patched passes, or is computed anew."""
    model_b: str | None = None
    """Another model of the same shape, whose values on the clean prompts replaced parts carry."""

    @property
    def units(self) -> bool:
        """Whether neurons or features are nodes."""
        return self.nodes != "heads,mlps"

    @property
    def method_label(self) -> str:
        """The method with all that is not as by default: ``eap-ig (steps=10, precision=bf16)``."""
        told = dict(self.options)
        told |= {} if self.positions == "none" else {"positions": self.positions}
        told |= {} if self.precision == "fp32" else {"precision": self.precision}
        return f"{self.method} ({', '.join(f'{k}={v}' for k, v in told.items())})" if told else self.method

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        if self.model_b is None:  # as before there could be one
            del found["model_b"]
        return found


@dataclass(frozen=True)
class BackupOptions:
    """What to look for, in names; empty for what the search finds out by itself.

    Attributes:
        primaries: Components to remove.
        readers: What they write to.
        rate: False-discovery rate.
        min_share: A component counts when it takes over at least this share of what was lost.
    """

    primaries: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    rate: float = DEFAULT_RATE
    min_share: float = DEFAULT_MIN_SHARE

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UsageError(
                f"a false-discovery rate of {self.rate} says nothing", hint="give one such as 0.05"
            )
        if not 0 <= self.min_share <= 1:
            raise UsageError(
                f"a share of {self.min_share} does not exist",
                hint="give a share between 0 and 1, such as 0.03",
            )
        for name in self.primaries:
            parse_node(name)
        for name in self.readers:
            parse_reader(name)


def resolve(
    spec: TaskSpec,
    *,
    model: str | None = None,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    metric: str | None = None,
    ablation: str | None = None,
    direction: str | None = None,
    counterfactual: str | None = None,
    faithfulness: float | None = None,
    edges: int | None = None,
    threshold: float | None = None,
    evaluations: int = DEFAULT_EVALUATIONS,
    count: int | None = None,
    seed: int | None = None,
    min_accuracy: float | None = None,
    drop_bad_pairs: bool = False,
    positions: str = "none",
    precision: str = "fp32",
    backups: bool = True,
    include_backups: bool = False,
    nodes: str = "heads,mlps",
    dictionaries: str | Path | None = None,
    errors: str = "frozen",
    model_b: str | Path | None = None,
) -> Settings:
    """Settings of one run; what is None comes from the task.

    Options are checked by the method itself, which is imported for that, and torch with it, only where some are given.

    Raises:
        UsageError: An unknown name or a value out of range.
    """
    if faithfulness is None and edges is None and threshold is None:
        faithfulness = DEFAULT_TARGET
    kinds = _nodes(nodes)
    units = kinds != "heads,mlps"
    method = method or (DEFAULT_UNIT_METHOD if units else DEFAULT_METHOD)
    if method not in METHODS:
        raise UsageError(f"no method is named '{method}'", hint=did_you_mean(method, METHODS))
    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise UsageError(f"an accuracy of {min_accuracy} does not exist", hint="give a share between 0 and 1")
    if count is not None and count < 1:
        raise UsageError(f"{count} prompt pairs are none", hint="give at least 1")
    if include_backups and not backups:
        raise UsageError("backups that are not looked for cannot be included", hint="leave out --no-backups")
    known = spec.counterfactuals
    if counterfactual is not None and spec.prompts.file is None and counterfactual not in known:
        raise UsageError(
            f"task {spec.name} has no counterfactual '{counterfactual}'",
            hint=did_you_mean(counterfactual, known),
        )
    if model_b is not None and method == DEFAULT_METHOD:
        options = {"propose": CROSS_PROPOSAL, **(options or {})}
    model = model or spec.model
    where = _dictionaries(kinds, dictionaries, model)
    found = Settings(
        task=spec.name,
        model=model,
        method=method,
        options=_options(method, options or {}),
        metric=_one_of("metric", metric or spec.metric, get_args(MetricName)),
        ablation=_one_of("ablation", ablation or spec.ablation, ABLATIONS),  # type: ignore[arg-type]  # checked by it
        mean_over=spec.mean_over,
        direction=_one_of("direction", direction or spec.direction, DIRECTIONS),  # type: ignore[arg-type]  # likewise
        counterfactual=counterfactual,
        rule=Rule(faithfulness, edges, threshold, evaluations),
        count=count if count is not None else spec.count,
        seed=seed if seed is not None else spec.seed,
        min_accuracy=spec.min_accuracy if min_accuracy is None else min_accuracy,
        drop_bad_pairs=drop_bad_pairs,
        positions=_one_of("way to keep positions apart", positions, POSITIONS),  # type: ignore[arg-type]  # likewise
        precision=_one_of("precision", precision, PRECISIONS),  # type: ignore[arg-type]  # likewise
        backups=backups,
        include_backups=include_backups,
        nodes=kinds,
        dictionaries=where,
        errors=_one_of("way to take errors", errors, ERRORS),  # type: ignore[arg-type]  # likewise
        model_b=None if model_b is None else str(model_b),
    )
    if found.model_b is not None:
        _check_across(found)
        found = replace(found, backups=False)
    if units or found.errors != "frozen":
        _check_units(found)
    return found


def _nodes(text: str) -> Nodes:
    """``--nodes`` in any order, with or without blanks."""
    given = {part.strip() for part in text.split(",")} - {""}
    for known in NODES:
        if given == set(known.split(",")):
            return known  # type: ignore[return-value]  # one of them
    near = nearest(text, NODES)
    told = f"did you mean '{near}'? " if near else ""
    raise UsageError(f"circuits are not made of '{text}'", hint=f"{told}give one of: {'; '.join(NODES)}")


def _dictionaries(nodes: Nodes, given: str | Path | None, model: str) -> str | None:
    """Where they are: as given, or those that come with a model of the zoo."""
    from circuitfind.zoo import has_dictionaries

    if "features" not in nodes:
        if given is not None:
            raise UsageError(
                "--dictionaries are for features, which are no nodes here",
                hint="add --nodes heads,features, or leave it out",
            )
        return None
    if given is None and not has_dictionaries(model):
        raise UsageError(
            f"no dictionaries come with {model}",
            hint="give --dictionaries FOLDER (or owner/repo:folder), or train some: `circuitfind transcoders train`",
        )
    return None if given is None else str(given)


def _check_units(settings: Settings) -> None:
    """Refuse what says nothing of neurons and features."""
    if settings.nodes == "features" and settings.method != DEFAULT_UNIT_METHOD:
        raise UsageError(
            f"features alone are not scored by {settings.method}",
            hint="leave out --method: with attention frozen they are scored by the gradient at the clean run",
        )
    if settings.errors != "frozen" and settings.nodes != "heads,features":
        raise UsageError(
            f"--errors {settings.errors} says nothing with --nodes {settings.nodes}",
            hint="add --nodes heads,features, or leave it out",
        )
    if settings.method not in UNIT_METHODS:
        raise UsageError(
            f"method {settings.method} does not score edges of neurons or features",
            hint=f"use one of {', '.join(UNIT_METHODS)}",
        )
    refused = {
        "--direction denoising": settings.direction != "noising",
        "--ablation optimal": settings.ablation == "optimal",
        f"--positions {settings.positions}": settings.positions != "none",
        f"--precision {settings.precision}": settings.precision != "fp32",
        "--include-backups": settings.include_backups,
        f"--metric {settings.metric}": settings.metric in ("accuracy", "kl"),
    }
    for flag, wrong in refused.items():
        if wrong:
            raise UsageError(
                f"neurons and features are not looked for with {flag}",
                hint="they are scored by noising, in fp32, with resample, mean or zero ablation, all positions together, "
                "by logit-diff, prob-diff or log-prob",
            )
    if settings.rule.faithfulness is None:
        raise UsageError(
            "neurons and features are pruned to a target faithfulness",
            hint="give --faithfulness in place of --edges or --threshold",
        )


def _check_across(settings: Settings) -> None:
    """Refuse what says nothing of two models."""
    if settings.model_b == settings.model:
        raise UsageError(
            f"--model-b {settings.model_b} is the model itself",
            hint="give another one, such as a fine-tuned one or another checkpoint",
        )
    if settings.direction != "noising":
        raise UsageError(
            f"models are not compared with --direction {settings.direction}",
            hint="exchange --model and --model-b: that puts values of the first into the run of the second",
        )
    if settings.method not in CROSS_METHODS:
        raise UsageError(
            f"method {settings.method} does not compare models",
            hint=f"use one of {', '.join(CROSS_METHODS)}",
        )
    refused = {
        f"--ablation {settings.ablation}": settings.ablation != "resample",
        f"--counterfactual {settings.counterfactual}": settings.counterfactual is not None,
        f"--nodes {settings.nodes}": settings.units,
        f"--precision {settings.precision}": settings.precision != "fp32",
        "--include-backups": settings.include_backups,
    }
    for flag, wrong in refused.items():
        if wrong:
            raise UsageError(
                f"{flag} says nothing with --model-b",
                hint="a replaced head or MLP carries what model B writes for the same clean prompt; leave it out",
            )
    if settings.rule.faithfulness is None:
        raise UsageError(
            "the difference of two models is pruned to a target faithfulness",
            hint="give --faithfulness in place of --edges or --threshold",
        )


def memory_bytes(size: str | int | None) -> int | None:
    """Bytes of ``--memory``, such as ``8GB``; None stands for what is free.

    Raises:
        UsageError: It is no amount of memory.
    """
    if isinstance(size, str):
        from circuitfind.sizes import parse_size

        size = parse_size(size)
    if size is not None and size < 1:
        raise UsageError(f"a memory of {size} bytes is none", hint="give an amount such as 8GB or 500MB")
    return size


def _options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError(f"options={given!r} is no mapping", hint="such as options={'steps': 10}")
    if not given:
        return {}
    from circuitfind.methods import get_method, options_of

    made, default = get_method(method, given), options_of(method)
    return {name: getattr(made, name) for name in default if getattr(made, name) != default[name]}


def _one_of(what: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UsageError(f"no {what} is named '{value}'", hint=did_you_mean(value, known))
    return value
