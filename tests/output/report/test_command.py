"""The command that a report gives makes the same run: its words are parsed again and resolve to the same settings."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import Any

import pytest

from circuitfind.cli.discover import _named, discover
from circuitfind.output.report.command import reproduce
from circuitfind.settings import resolve
from circuitfind.task.spec import load_task

FLAGS: list[dict[str, Any]] = [
    {},
    {
        "method": "eap-ig",
        "options": {"steps": "3"},
        "metric": "prob-diff",
        "ablation": "mean",
        "direction": "denoising",
        "counterfactual": "abc",
        "threshold": 0.0125,
        "evaluations": 50,
        "count": 17,
        "seed": 5,
        "min_accuracy": 0.6,
        "drop_bad_pairs": True,
        "positions": "named",
        "precision": "bf16",
        "backups": False,
    },
    {"edges": 40, "include_backups": True, "model": "./a model with spaces"},
    {"nodes": "heads,neurons"},
    {"model_b": "planted/ioi-planted", "faithfulness": 0.123456789},
]


@pytest.mark.parametrize("flags", FLAGS)
def test_the_words_resolve_to_the_same_settings(flags: dict[str, Any]) -> None:
    spec = load_task("ioi")
    settings = resolve(spec, **flags)
    assert spec.path is not None
    manifest = {
        "task": "ioi",
        "task_file": str(spec.path.resolve()),
        "config": {"settings": settings.as_dict()},
        "command": ["/bin/circuitfind", "evaluate", "latest"],
    }
    words = shlex.split(reproduce(manifest))
    assert words[:3] == ["circuitfind", "discover", "ioi"]
    given = discover.make_context("discover", words[2:]).params
    known = inspect.signature(resolve).parameters.keys() & given.keys() - {"options"}
    again = resolve(spec, options=_named(given["options"]), **{name: given[name] for name in known})
    assert again == settings


def test_a_task_of_the_user_is_named_by_its_file(tmp_path: Path) -> None:
    settings = resolve(load_task("ioi")).as_dict()
    file = tmp_path / "my tasks" / "ioi.yaml"
    manifest = {"task": "ioi", "task_file": str(file), "config": {"settings": settings}, "command": []}
    assert shlex.split(reproduce(manifest))[2] == str(file)


def test_other_commands_are_told_as_they_were_given() -> None:
    manifest = {"task": "ioi", "config": {"saes": {"k": 3}}, "command": ["/bin/circuitfind", "saes", "a b"]}
    assert reproduce(manifest) == "circuitfind saes 'a b'"
