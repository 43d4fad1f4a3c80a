"""What a task expects of evidence: certificates, stability, and known circuits that must not be certified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from circuitfind.task.spec import TaskSpec, load_task
from tests.check.test_command import checked, task
from tests.cli.helpers import Cli

DOCS = Path(__file__).resolve().parents[2] / "docs" / "check.md"
MODEL = "planted/and-gate"


def reasons(cli: Cli, expect: dict[str, Any], code: int, count: int = 32, **keys: Any) -> list[str]:
    path = task(cli.folder, expect={MODEL: expect}, prompts={"zoo": {"count": count}}, **keys)
    (case,) = checked(cli, path, "--json", code=code).json["cases"]
    return [reason["text"] for reason in case["reasons"] if reason["kind"] == "evidence"]


def test_a_circuit_that_must_be_certified(cli: Cli) -> None:
    assert reasons(cli, {"certified": True, "settings": {"faithfulness": 0.9}}, 0) == []
    (text,) = reasons(cli, {"certified": False}, 1)
    assert text.startswith("the circuit is certified, and must not be: certified at faithfulness >= ")


@pytest.mark.slow
def test_too_few_prompts_certify_nothing(cli: Cli) -> None:
    assert reasons(cli, {"certified": False}, 0, count=6) == []
    (text,) = reasons(cli, {"certified": True}, 1, count=6)
    assert text.startswith("the circuit is not certified: ")


def test_stability(cli: Cli) -> None:
    assert reasons(cli, {"stability": {"min": 0.99}}, 0) == []
    (text,) = reasons(cli, {"stability": {"max": 0.5}}, 1)
    assert text == "the stability over prompts is 1, expected at most 0.5"
    (text,) = reasons(cli, {"stability": {"min": 0}, "settings": {"nodes": "heads,neurons"}}, 1)
    assert text == "stability is measured of circuits of heads and MLPs, and not of units"


@pytest.fixture
def true_edges() -> list[str]:
    from circuitfind.model.load import planted

    return sorted(planted(MODEL).edges["resample"])


@pytest.mark.slow
def test_known_circuits_that_must_be_refused(cli: Cli, true_edges: list[str]) -> None:
    known = {MODEL: [{"name": "wrong", "heads": ["a0.h0"]}, {"name": "right", "edges": true_edges}]}
    assert reasons(cli, {"refuses": ["wrong"]}, 0, known=known) == []
    (text,) = reasons(cli, {"refuses": ["wrong", "right"]}, 1, known=known)
    assert text.startswith("the known circuit 'right' is certified, and must not be: certified at ")


def test_a_list_that_there_is_not(cli: Cli) -> None:
    path = task(cli.folder, expect={MODEL: {"refuses": ["them"]}})
    found = checked(cli, path, code=1)
    assert "knows no circuit named 'them'" in found.out


def test_the_examples_of_the_page_are_expectations() -> None:
    blocks = DOCS.read_text(encoding="utf-8").split("```yaml\n")[1:]
    examples = [yaml.safe_load(block.split("```")[0]) for block in blocks]
    spec = load_task("ioi").model_dump(by_alias=True, exclude_defaults=True)
    checks = [example for example in examples if "expect" in example]
    assert len(checks) == 2
    for example in checks:
        TaskSpec.model_validate({**spec, **example})
