"""``circuitfind evaluate`` and ``certify``: what is printed, what is used again, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import circuitfind
from circuitfind.summary import Discovery
from tests.cli.helpers import Cli

TASK = "second-order"
"""A planted model of which a circuit has two edges: of so few there are hardly twenty."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Discovery:
    return circuitfind.discover(
        TASK, outputs=tmp_path_factory.mktemp("outputs"), formats=(), count=24, backups=False
    )


def _of(found: Discovery) -> tuple[str, ...]:
    return str(found.folder), "--outputs", str(found.folder.parent)


def test_a_certificate_does_not_hang_on_the_last_evaluation(cli: Cli, found: Discovery) -> None:
    first = cli.good("certify", *_of(found), "--json").json
    for others in (("--controls", "none"), ("--count", "4"), ("--seed", "2"), ("--ablation", "zero")):
        cli("evaluate", *_of(found), "--parts", "known", "-q", *others)
        assert cli("certify", *_of(found), "--json").json == first
    wide = cli("evaluate", *_of(found), "--ablation", "resample", "--ablation", "zero", "--json").json
    zero = cli("certify", *_of(found), "--ablation", "zero", "--json").json
    assert zero["measured"] == wide["measured"], "what was measured is used again"


def test_another_ablation_alone_is_held_against_controls_too(cli: Cli, found: Discovery) -> None:
    told = cli.good("certify", *_of(found), "--ablation", "mean", "--count", "20", "--json").json
    assert [one["ablation"] for one in told["measured"]] == ["mean"]
    assert told["certified"]
    assert {one["name"] for one in told["controls"] if one["beaten"]} >= {"random circuits", "shuffled pairs"}


@pytest.mark.parametrize("command", ["evaluate", "certify"])
@pytest.mark.parametrize("flag", ["--model", "--metric", "--counterfactual", "--task"])
def test_a_run_has_its_own_task_and_model(cli: Cli, found: Discovery, command: str, flag: str) -> None:
    cli.fails(2, command, *_of(found), flag, "kl", says=[f"{flag} is for circuit files", "a run has its own"])


def test_a_file_does_not_say_which_prompts_it_is_from(cli: Cli, found: Discovery) -> None:
    path = found.folder / "circuit.json"
    told = cli("certify", path, "--task", TASK, "--count", "20", "--json").json
    assert told["prompts"]["held_out"] is None
    assert any("not known" in one for one in told["cautions"])
    assert "held out" not in cli("certify", path, "--task", TASK, "--count", "20").out


def test_copies_of_a_prompt_are_one_prompt(cli: Cli, tmp_path: Path) -> None:
    from circuitfind.session import Session
    from circuitfind.settings import resolve
    from circuitfind.task.spec import load_task

    spec = load_task("gendered-pronoun")
    pair = Session(spec, resolve(spec, count=1)).all_pairs[0]
    row = {name: list(getattr(pair, name)) for name in ("clean", "corrupted", "answer", "wrong")}
    task = {"name": "copies", "model": "mini", "prompts": {"pairs": [row] * 20}}
    (tmp_path / "copies.yaml").write_text(yaml.safe_dump(task))
    told = cli("discover", "copies.yaml", "--no-backups", "--no-views", "--method", "eap", "--json").json[
        "evidence"
    ]
    assert told["prompts"]["aligned"] == 1
    assert not told["certified"]
    assert not told["refuted"], "one prompt says nothing"
    printed = cli.good("evaluate", "latest", "--parts", "completeness", "--draws", "3", "-q").out
    assert "only 1 prompt that the model" in printed
    assert "[-inf, inf]" in printed
    data = cli.good("evaluate", "latest", "--parts", "completeness", "--draws", "3", "--json").json
    assert data["completeness"]["left"]["left"]["low"] is None


def test_kl_is_not_held_against_shuffled_answers(cli: Cli) -> None:
    words = (
        "gendered-pronoun",
        "--count",
        "20",
        "--no-backups",
        "--no-views",
        "--method",
        "activation-patching",
    )
    told = cli.good("discover", *words, "--metric", "kl", "--json").json["evidence"]
    beaten = {one["name"]: one["beaten"] for one in told["controls"]}
    assert beaten["shuffled pairs"] is None
    assert beaten["random circuits"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--parts", "curv"), "did you mean 'curve'"),
        (("--ablation", "resampel"), "did you mean 'resample'"),
        (("--task", TASK), "a run has its own"),
        (("-o", "."), "is a folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    cli: Cli, found: Discovery, words: tuple[str, ...], what: str
) -> None:
    result = cli("evaluate", *_of(found), *words)
    assert result.code == 2
    assert what in result.err
    assert not result.out


@pytest.mark.parametrize("content", [b"", b"{", b"[]", bytes(range(256))])
def test_files_that_hold_no_circuit(cli: Cli, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    result = cli("certify", "bad.json", "--task", TASK, "--json")
    assert result.code == 2
    assert result.json["where"] == "bad.json"


def test_all_parts_and_valid_json(cli: Cli, found: Discovery) -> None:
    def refuse(name: str) -> Any:
        raise AssertionError(name)

    out = cli.good("evaluate", *_of(found), "--parts", "all,tests", "--draws", "4", "--json", "-q").out
    data = json.loads(out, parse_constant=refuse)
    assert all(data[name] for name in ("completeness", "minimality", "curve", "tests", "stability", "seeds"))
    assert data["verdict"]["certified"]
    assert np.isfinite(data["curve"]["cmd"]["value"])
