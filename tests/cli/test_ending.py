"""The summary at the end of ``discover``: one screen, and the command to try next by what happened."""

from __future__ import annotations

import copy
import math
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from circuitfind.cli import wanted
from circuitfind.cli.common import Screen
from circuitfind.cli.console import Paper
from circuitfind.cli.ending import COLUMNS, LINES, Line, fitting, next_commands, show_ending, warnings
from circuitfind.output.store import Store
from circuitfind.summary import Found, stored


@pytest.fixture
def found(one_run: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """The run, from its own folder."""
    monkeypatch.chdir(one_run)
    monkeypatch.setattr(wanted, "words", ("discover", "small.yaml", "-q"))
    return stored(Store().find("latest"))


def changed(found: Found, **changes: Any) -> dict[str, Any]:
    """Its summary with keys replaced; ``evidence__certified`` is a key inside another."""
    data = copy.deepcopy(dict(found.summary))
    for name, value in changes.items():
        *outer, key = name.split("__")
        place: Any = data
        for one in outer:
            place = place[one]
        place[key] = value
    return data


NEXT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "too few prompts": ({}, ["discover small.yaml -q --count 32", "view small-"]),
    "certified": (
        {"evidence__certified": True, "evidence__reasons": [], "evidence__prompts__right": 64},
        ["evaluate small-and-gate-", "view small-and-gate-"],
    ),
    "refuted": (
        {"evidence__refuted": True, "evidence__prompts__right": 64, "evidence__holds_under": []},
        ["show small-and-gate-", "view small-and-gate-"],
    ),
    "under one ablation": (
        {"evidence__prompts__right": 64, "evidence__holds_under": ["mean"]},
        ["show small-and-gate-", "certify small-and-gate-"],
    ),
    "no evidence": ({"evidence": None}, ["evaluate small-and-gate-", "view small-"]),
    "no backups": ({"backups": None}, ["discover small.yaml", "backups small-and-gate-"]),
    "two models": ({"conditions__model_b": "other", "evidence": None}, ["show small-and-gate-"]),
}


@pytest.mark.parametrize(("changes", "commands"), NEXT.values(), ids=list(NEXT))
def test_what_to_do_next(found: Found, changes: dict[str, Any], commands: list[str]) -> None:
    told = list(next_commands(changed(found, **changes)))
    assert len(told) == len(commands)
    for (command, why), start in zip(told, commands, strict=True):
        assert command.startswith(f"circuitfind {start}")
        assert why or "--ablation" in command
    if changes.get("evidence__holds_under") == ["mean"]:
        assert told[1][0].endswith(" --ablation mean")


def test_a_run_elsewhere_is_named_by_its_folder(found: Found, tmp_path: Path) -> None:
    folder = tmp_path / "some where" / found.summary["run"]
    (command, _), *_ = next_commands(changed(found, evidence=None, folder=str(folder)))
    assert command == f"circuitfind evaluate '{folder}'"


def told(found: Found, summary: dict[str, Any], width: int = COLUMNS) -> list[str]:
    screen, out = Screen(), StringIO()
    screen.__dict__["out"] = Paper(width, file=out)
    show_ending(screen, summary, found.circuit)
    return out.getvalue().splitlines()


LONG = {
    "evidence__reasons": [
        f"a reason of many words that goes on and on until the line is full, {i}" for i in range(9)
    ],
    "backups__verdict": "nothing stands in: " + "and one thing more was looked at, " * 4,
    "known": {"precision": 0.5, "recall": 0.25, "level": "heads"},
    "minimal": False,
    "evidence__cautions": ["a caution of many words that is needed to understand what was measured"] * 3,
}


@pytest.mark.parametrize(
    "changes", [{}, LONG, {"evidence": None}, NEXT["certified"][0]], ids=["run", "long", "none", "yes"]
)
def test_it_is_one_screen(found: Found, changes: dict[str, Any]) -> None:
    lines = told(found, changed(found, **changes))
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    assert lines[1].startswith("  verdict       "), "the verdict first"
    titles = [line[2:15].strip() for line in lines[1:]]
    assert {"verdict", "faithfulness", "kept", "run", "next"} <= {*titles}
    assert len([title for title in titles if title]) == len({*titles} - {""}), "a title is told once"


def test_no_reason_is_hidden(found: Found) -> None:
    text = " ".join(" ".join(told(found, changed(found, **LONG))).split())
    assert text.count("a reason of many words") == 2
    assert "- and 7 reasons more" in text


def test_lines_give_way_by_weight() -> None:
    lines = [Line("a", "x"), Line("b", "x", 3), Line("c", "x", 9), Line("d", "x", 3)]
    assert [line.title for line in fitting(lines, 4)] == ["a", "b", "c", "d"]
    assert [line.title for line in fitting(lines, 3)] == ["a", "b", "d"]
    assert [line.title for line in fitting(lines, 2)] == ["a", "b"]
    assert [line.title for line in fitting(lines, 0)] == ["a"], "what must be said stays"
    assert Line("a", "word " * 30).height == math.ceil(150 / 64)


def test_warnings(found: Found) -> None:
    assert list(warnings(changed(found))) == []
    shaky = {"proposed_by": "eap", "level": "edge", "rank_correlation": 0.2}
    low = {"precision": "bf16", "overlap": 0.5, "k": 20}
    some = [*warnings(changed(found, minimal=False, verification=shaky, precision_check=low, evidence=None))]
    assert [text.split()[0] for text in some] == ["only", "not", "eap", "scored"]
