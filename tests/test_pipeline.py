"""The whole way on models whose circuit is known, and what each stage depends on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import circuitfind
from circuitfind.errors import PromptError
from circuitfind.pipeline import STAGES, Silent, discover_task
from circuitfind.session import Session, stage_keys, task_hash
from circuitfind.settings import BackupOptions, Settings, resolve
from circuitfind.task.spec import TaskSpec, load_task

PLAIN: dict[str, Any] = {"formats": (), "backups": False, "controls": "none", "views": False}
"""Scores and a circuit, and no stage behind them."""
PLANTED = ("planted-induction", "ioi-planted", "and-gate", "or-gate")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are so small that a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to a folder of the test."""
    monkeypatch.delenv("CIRCUITFIND_OUTPUTS", raising=False)
    monkeypatch.chdir(tmp_path)


class Heard(Silent):
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.rows = 0
        self.notes: list[str] = []

    def stage(self, name: str, state: str, detail: str = "") -> None:
        self.stages.append((name, state))

    def progress(self, rows: int) -> None:
        self.rows += rows

    def note(self, text: str) -> None:
        self.notes.append(text)


# --- known circuits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANTED)
def test_planted_circuit_is_found(name: str) -> None:
    found = circuitfind.discover(name)
    known = found.summary["known"]
    assert known["missing"] == known["extra"] == []
    assert known["precision"] == known["recall"] == 1.0
    assert known["level"] == "edges"
    resample, other = found.summary["evaluations"]
    value = resample["faithfulness"]
    assert resample["ablation"] == "resample"
    assert 0.9 <= value["low"] <= value["value"] <= value["high"] < 1.1
    # What clean and corrupted prompts share is no part of a circuit under resample, but may be needed under mean.
    assert other["ablation"] == "mean"
    assert other["n_prompts"] == resample["n_prompts"] == 64
    # Denoising keeps both arms of the OR on purpose, so that circuit is not minimal.
    assert found.summary["minimal"] is (name != "or-gate")
    assert found.summary["prompts"]["accuracy"] == 1.0
    shown = {node["role"] for node in found.circuit.as_dict()["nodes"]} - {None}
    assert shown, "nodes carry their roles"
    assert not shown & {"idle", "noise"}


@pytest.mark.parametrize("name", ["planted-induction", "ioi-planted", "and-gate"])
def test_nodes_by_activation_patching_find_it_too(name: str) -> None:
    found = circuitfind.discover(name, method="activation-patching", count=16, **PLAIN)
    assert found.scores.level == "node"
    assert found.summary["known"]["recall"] == 1.0
    assert found.summary["known"]["precision"] == 1.0


def test_noising_misses_an_arm_of_the_or_gate() -> None:
    """Why the task says denoising: alone, neither arm is necessary."""
    found = circuitfind.discover("or-gate", direction="noising", count=16, **PLAIN)
    assert found.summary["known"]["recall"] < 1.0


def test_another_seed_of_the_model() -> None:
    found = circuitfind.discover("and-gate", "planted/and-gate:5", count=16, **PLAIN)
    assert found.summary["known"]["precision"] == found.summary["known"]["recall"] == 1.0


# --- stages -------------------------------------------------------------------------------------------------


@pytest.fixture
def spec() -> TaskSpec:
    return load_task("and-gate")


def test_what_a_reporter_hears(spec: TaskSpec) -> None:
    heard = Heard()
    settings = resolve(spec, count=8)
    discover_task(spec, settings, reporter=heard)
    assert [name for name, state in heard.stages if state == "finished"] == list(STAGES)
    assert heard.rows > 0
    assert heard.notes == []
    again = Heard()
    discover_task(spec, settings, reporter=again)
    assert again.stages == [(name, "reused") for name in STAGES]
    assert again.rows == 0


def test_a_stage_says_what_it_took(spec: TaskSpec) -> None:
    found = discover_task(spec, resolve(spec, count=8, method="eap"))
    manifest = json.loads((found.folder / "manifest.json").read_text(encoding="utf-8"))
    facts = {name: stage["facts"] for name, stage in manifest["stages"].items()}
    passes = {name: (fact["forward_passes"], fact["backward_passes"]) for name, fact in facts.items()}
    assert passes["scores"] == (2, 1)
    assert passes["pictures"] == (0, 0)
    assert passes["prompts"][0] >= 1
    assert facts["prompts"]["kept"] == list(range(8))
    assert found.summary["forward_passes"] == sum(forward for forward, _ in passes.values())


def test_pairs_that_are_answered_wrongly_are_left_out(tmp_path: Path) -> None:
    task = load_task("and-gate")
    from circuitfind.zoo.planted import build

    pairs = [
        {"clean": pair.clean, "corrupted": pair.corrupted, "answer": pair.answer, "wrong": pair.wrong}
        for pair in build("and-gate").pairs(8)
    ]
    pairs[2]["answer"], pairs[2]["wrong"] = pairs[2]["wrong"], pairs[2]["answer"]
    path = tmp_path / "turned.yaml"
    path.write_text(json.dumps({"name": "turned", "model": task.model, "prompts": {"pairs": pairs}}))
    heard = Heard()
    spec = load_task(path)
    found = discover_task(spec, resolve(spec), formats=(), reporter=heard)
    assert found.summary["prompts"]["used"] == 7
    assert found.summary["prompts"]["answered_wrongly"] == 1
    assert heard.notes == ["1 of 8 pairs left out: the model answers them wrongly"]
    rows = [json.loads(line) for line in (found.folder / "prompts.jsonl").read_text().splitlines()]
    assert [row["kept"] for row in rows] == [i != 2 for i in range(8)]
    with pytest.raises(PromptError, match="answers 88% of the 8"):
        discover_task(spec, resolve(spec, min_accuracy=0.9))


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"rule": {"faithfulness": 0.5}}, "circuit"),
    ({"rule": {"edges": 3}}, "circuit"),
    ({"rule": {"evaluations": 7}}, "circuit"),
    ({"include_backups": True}, "backups"),
    ({"method": "activation-patching"}, "scores"),
    ({"options": {"verify": 3}}, "scores"),
    ({"positions": "all"}, "scores"),
    ({"precision": "bf16"}, "scores"),
    ({"ablation": "mean"}, "scores"),
    ({"direction": "denoising"}, "scores"),
    ({"metric": "prob-diff"}, "prompts"),
    ({"count": 7}, "prompts"),
    ({"seed": 7}, "prompts"),
    ({"counterfactual": "corrupted"}, "prompts"),
    ({"min_accuracy": 0.5}, "prompts"),
    ({"drop_bad_pairs": True}, "prompts"),
    ({"model": "planted/or-gate"}, "prompts"),
]


@pytest.mark.parametrize(("change", "first"), CHANGES, ids=lambda value: str(value))
def test_what_a_stage_depends_on(spec: TaskSpec, change: dict[str, Any], first: str) -> None:
    def keys(settings: Settings) -> dict[str, str]:
        return stage_keys(Session(spec, settings))

    flags = dict(change)
    rule = flags.pop("rule", {})
    before, after = keys(resolve(spec)), keys(resolve(spec, **flags, **rule))
    order = [name for name in STAGES if name in before]
    changed = [name for name in order if before[name] != after[name]]
    assert changed == order[order.index(first) :], "what comes later depends on what came before"


def test_an_option_that_is_as_by_default_is_none(spec: TaskSpec) -> None:
    plain = resolve(spec)
    assert resolve(spec, options={"verify": "64", "propose": "eap-ig"}) == plain
    assert plain.method_label == "hybrid"
    more = resolve(spec, options={"verify": "3"}, positions="all", precision="bf16")
    assert more.options == {"verify": 3}
    assert more.method_label == "hybrid (verify=3, positions=all, precision=bf16)"


def test_no_backups_changes_no_other_key(spec: TaskSpec) -> None:
    with_them, without = (stage_keys(Session(spec, resolve(spec, backups=on))) for on in (True, False))
    assert with_them.keys() - without.keys() == {"backups"}
    assert without.items() <= with_them.items()


def test_options_of_a_search_are_those_of_the_search() -> None:
    from circuitfind.backups.reading import Search

    options, search = BackupOptions(), Search()
    assert (options.rate, options.min_share) == (search.rate, search.min_share)


def test_memory_changes_no_key(spec: TaskSpec) -> None:
    settings = resolve(spec)
    assert stage_keys(Session(spec, settings, memory=10**6)) == stage_keys(Session(spec, settings))


@pytest.mark.slow
def test_little_memory_gives_the_same_circuit(spec: TaskSpec) -> None:
    settings = resolve(spec, count=8)
    one = discover_task(spec, settings, formats=(), outputs="one")
    two = discover_task(spec, settings, formats=(), outputs="two", memory=100_000)
    assert [str(edge) for edge in one.circuit.edges] == [str(edge) for edge in two.circuit.edges]
    np.testing.assert_allclose(one.scores.values, two.scores.values, atol=1e-5)


def test_a_note_comes_once(spec: TaskSpec) -> None:
    heard = Heard()
    session = Session(spec, resolve(spec, count=4), reporter=heard)
    for _ in range(2):
        session.runs_of(session.all_pairs)._note("memory ran out")
    assert heard.notes == ["memory ran out"]


def test_mixed_precision_is_checked_and_told(spec: TaskSpec) -> None:
    heard = Heard()
    found = discover_task(spec, resolve(spec, count=12, precision="bf16"), formats=(), reporter=heard)
    check = found.summary["precision_check"]
    assert (check["precision"], check["pairs"], check["k"]) == ("bf16", 8, 20)
    assert 0 <= check["overlap"] <= 1
    (note,) = heard.notes
    assert note.startswith("scored in bf16, not in fp32: ")
    assert ("too few to trust" in note) == (check["overlap"] < 0.9)
    full = discover_task(spec, resolve(spec, count=12), formats=())
    assert full.summary["precision_check"] is None
    if found.circuit.edges == full.circuit.edges:  # then what is told was measured alike, in single precision
        assert found.summary["evaluations"] == full.summary["evaluations"]
    gap = np.abs(found.scores.values - full.scores.values)[full.scores.anatomy.edge_mask]
    assert 0 < gap.max() < 0.1


def test_keys_are_the_same_in_every_process(spec: TaskSpec) -> None:
    session = Session(spec, resolve(spec), known_identity="fixed")
    assert stage_keys(session) == stage_keys(replace(session))
    assert len(set(stage_keys(session).values())) == 4


def test_hash_of_a_task_is_of_its_content(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"

    def hashed(text: str) -> str:
        path.write_text(text, encoding="utf-8")
        return task_hash(load_task(path))

    first = hashed("name: x\nprompts: {file: p.csv}\n")
    assert hashed("# the same\nprompts:\n  file: p.csv\nname: x\n") == first
    (tmp_path / "p.csv").write_text("a")
    second = hashed("name: x\nprompts: {file: p.csv}\n")
    (tmp_path / "p.csv").write_text("b")
    assert len({first, second, hashed("name: x\nprompts: {file: p.csv}\n")}) == 3
