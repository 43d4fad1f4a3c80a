"""``circuitfind check`` as it is used: exit codes, what it prints and writes, baselines, processes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from circuitfind.check import cases, pool, run
from circuitfind.check.cases import Case, find_cases
from circuitfind.check.outcome import Outcome, of_case
from circuitfind.check.run import Shelf, Where, run_case
from circuitfind.cli import check as command
from circuitfind.errors import UsageError
from circuitfind.task.spec import find_tasks
from tests.check.dying import DyingCase
from tests.cli.helpers import Cli, Result


def task(folder: Path, name: str = "small", expect: Any = None, **keys: Any) -> Path:
    """A task on a model of the zoo, whose circuit is found in a fraction of a second."""
    path = folder / f"{name}.yaml"
    usual: dict[str, Any] = {"planted/and-gate": {"accuracy": {"min": 0.9}}}
    data = {
        "name": name,
        "model": "planted/and-gate",
        "prompts": {"zoo": {"count": 8}},
        "expect": usual if expect is None else expect,
        **keys,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({key: value for key, value in data.items() if value != {}}))
    return path


def checked(cli: Cli, *words: str | Path, code: int = 0) -> Result:
    """One process, so that what a test puts in place is there."""
    found = cli("check", *words, "--jobs", "1")
    assert found.code == code, found.err + found.out
    return found


# --- what is run --------------------------------------------------------------------------------------------


def test_a_task_that_expects_nothing(cli: Cli) -> None:
    path = task(cli.folder, expect={})
    cli.fails(2, "check", path, says=("expects nothing", "expect: {planted/and-gate: {faithfulness"))
    assert not cli.outputs.exists()


def test_words_that_name_no_case(cli: Cli) -> None:
    path = task(cli.folder, expect={"planted/and-gate": [{}, {"name": "other", "tier": 2}]})
    cli.fails(2, "check", "ioo", says=("no task is named 'ioo'", "did you mean 'ioi'?"))
    cli.fails(2, "check", path, "--tier", "3", says=("no case of tier 3", "its cases are of tier 1, 2"))
    cli.fails(2, "check", path, "--model", "planted/or-gate", says=("expects nothing of", "did you mean"))
    cli.fails(2, "check", path, "--case", "othr", says=("no case named othr", "did you mean 'other'?"))
    cli.fails(2, "check", path, "--tier", "4", says=("--tier",))
    cli.fails(2, "check", path, "--force", says=("--update",))
    cli.fails(2, "check", path, "--junit", cli.folder, says=("is a folder",))
    cli.fails(2, "check", path, "--memory", "much", says=("much",))
    assert not cli.outputs.exists()


def labels(*given: Any, **named: Any) -> list[str]:
    return [case.label for case in find_cases(*given, **named)[0]]


def test_cases_of_a_task(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    expect = {
        "planted/and-gate": [{}, {"name": "other", "settings": {"edges": 3}}],
        "planted/or-gate": {"tier": 2},
    }
    only(monkeypatch, cli.folder / "tasks")
    path = str(task(cli.folder / "tasks", expect=expect))
    every = ["small", "small (other)", "small on planted/or-gate"]
    assert labels([path]) == labels([path, path]) == every
    assert labels([path], tier=1) == every[:2]
    assert labels([path], model="planted/or-gate") == every[2:]
    assert labels([path], name="other") == every[1:2]
    assert labels() == every[:2], "without a name, tier 1"
    assert labels(tier=2) == every[2:]
    (case,) = find_cases([path], name="other")[0]
    assert str(case.settings().rule) == "edges 3"
    assert case.baseline().name == "small.and-gate.other.json"


def test_names_of_cases_differ(cli: Cli) -> None:
    path = task(cli.folder, expect={"planted/and-gate": [{}, {"tier": 2}]})
    cli.fails(2, "check", path, says=("lists two cases of the same name",))


def test_every_case_of_tier_1_has_a_baseline_to_be_held_against() -> None:
    found, damaged = find_cases(tier=1)
    assert not damaged
    assert len(found) >= 25
    missing = [case.label for case in found if not case.baseline().is_file()]
    assert not missing, "write them with: circuitfind check --update"
    shipped = list(found[0].baseline().parent.glob("*.json"))
    every = {case.baseline().name for name in find_tasks() for case in find_cases([name])[0]}
    assert {path.name for path in shipped} <= every, "baselines of no case"
    assert all(path.stat().st_size < 12_000 for path in shipped)


# --- what is said -------------------------------------------------------------------------------------------


def test_a_case_as_expected(cli: Cli) -> None:
    path = task(cli.folder)
    found = checked(cli, path)
    assert "1 case: 1 as expected, 0 differ, 0 skipped" in found.out
    assert "1 case has no baseline yet" in found.out
    assert found.err.split()[:4] == ["+", "small", "as", "expected,"]
    checked(cli, path, "--strict", code=1)
    checked(cli, path, "--update")
    found = checked(cli, path, "--strict")
    assert "no baseline" not in found.out
    runs = [path for path in (cli.outputs / "check").iterdir() if (path / "circuit.json").is_file()]
    assert len(runs) == 1
    cli.good("show", runs[0])
    cli.tidy()


def test_expectations_that_do_not_hold(cli: Cli) -> None:
    expect: dict[str, Any] = {
        "faithfulness": {"max": 0.5},
        "nodes": {"min": 40},
        "edges": {"min": 2, "max": 3},
        "contains": {"nodes": ["a0.h1"], "edges": ["input->logits"]},
        "excludes": {"nodes": ["logits"]},
        "strongest": {"head": "a0.h1", "edge": "a0.h1->a1.h1<q>"},
        "recall": {"max": 0.1},
        "roc-auc": {"max": 0.1},
        "backups": {"contains": ["a0.h0"]},
    }
    path = task(cli.folder, expect={"planted/and-gate": expect})
    found = checked(cli, path, code=1)
    for text in (
        "faithfulness under resample ablation is ",
        "expected at most 0.5",
        "the number of nodes is ",
        "expected 2 to 3",
        "the circuit lacks edges that it must contain: input->logits",
        "the circuit has nodes that it must not contain: logits",
        "the recall over the known edges is 1, expected at most 0.1",
        "the ROC-AUC over the known edges is 1, expected at most 0.1",
        "not found as backups: a0.h0 (none found)",
        "circuitfind show ",
    ):
        assert text in found.out, text
    assert "--update" not in found.out, "no baseline would mend that"
    data = checked(cli, path, "--json", code=1).json
    (case,) = data["cases"]
    assert data["counts"] == {"as expected": 0, "differs": 1, "skipped": 0, "error": 0}
    assert {reason["source"] for reason in case["reasons"]} == {"expectation"}
    assert case["measured"]["edges"]
    assert case["baseline"] is None


def test_against_a_circuit_that_nobody_knows(cli: Cli) -> None:
    expect = {"planted/and-gate": {"against": "them", "precision": {"min": 0.5}}}
    found = checked(cli, task(cli.folder, expect=expect), code=1)
    assert "no circuit of planted/and-gate is known named 'them', but precision is expected" in found.out


def test_a_refused_run_is_a_difference(cli: Cli) -> None:
    path = task(cli.folder, expect={"planted/and-gate": {"settings": {"method": "eapp"}}})
    assert "no method is named 'eapp'" in checked(cli, path, code=1).out
    path = task(cli.folder, prompts={"pairs": [{"clean": [1], "corrupted": [2], "answer": 3, "wrong": 4}]})
    assert "refused" in {
        reason["kind"] for reason in checked(cli, path, "--json", code=1).json["cases"][0]["reasons"]
    }


def test_a_model_that_is_not_to_be_had(cli: Cli) -> None:
    path = task(cli.folder, expect={"planted/and-gate": {}, "nobody/no-model": {}})
    found = checked(cli, path)
    assert "2 cases: 1 as expected, 0 differ, 1 skipped" in found.out
    assert "cannot find the model 'nobody/no-model'" in found.out
    checked(cli, path, "--strict", code=1)


def test_a_case_that_breaks_does_not_take_the_others_with_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run.begun

    def breaks(spec: Any, settings: Any, *given: Any) -> Any:
        if spec.name == "first":
            raise KeyError("lost")
        return right(spec, settings, *given)

    monkeypatch.setattr(run, "begun", breaks)
    first, second = task(cli.folder, "first"), task(cli.folder, "second")
    found = checked(cli, first, second, code=3)
    assert "2 cases: 1 as expected, 0 differ, 0 skipped, 1 broke" in found.out
    assert "KeyError: 'lost'" in found.out
    assert "Traceback" not in found.out + found.err
    assert "Traceback" in checked(cli, first, "-v", code=3).out
    (case,) = checked(cli, first, "--json", code=3).json["cases"]
    assert case["verdict"] == "error"
    assert "Traceback" in case["trace"]


def only(monkeypatch: pytest.MonkeyPatch, tasks: Path) -> None:
    """No tasks but those of one folder."""
    monkeypatch.setattr(cases, "find_tasks", lambda: find_tasks([tasks]))


def test_a_task_that_cannot_be_read_differs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = cli.folder / "tasks"
    task(tasks)
    (tasks / "damaged.yaml").write_text("name: [")
    only(monkeypatch, tasks)
    found = checked(cli, code=1)
    assert "2 cases: 1 as expected, 1 differs, 0 skipped" in found.out
    assert "damaged.yaml" in found.out
    cli.fails(2, "check", tasks / "damaged.yaml", says=("damaged.yaml",))


def test_junit(cli: Cli) -> None:
    path = task(cli.folder, expect={"planted/and-gate": {"nodes": {"max": 1}}})
    checked(cli, path, "--junit", "results/check.xml", code=1)
    root = ET.parse("results/check.xml").getroot()
    (failure,) = root.iter("failure")
    assert failure.attrib["message"].endswith("expected at most 1")


def test_the_table_fits_a_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = checked(cli, task(cli.folder, "a-task-with-quite-a-long-name"))
    rows = found.out.splitlines()[:3]
    assert max(map(len, rows)) <= 80


# --- baselines ----------------------------------------------------------------------------------------------


@pytest.fixture
def kept(cli: Cli) -> Path:
    """A task with a baseline."""
    path = task(cli.folder)
    found = checked(cli, path, "--update")
    assert "baseline new: " in found.out
    return path


def stored(cli: Cli) -> Path:
    (found,) = (cli.folder / "baselines").iterdir()
    return found


def change(path: Path, **keys: Any) -> str:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, **keys}), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def test_update_shows_the_difference_and_rewrites(cli: Cli, kept: Path) -> None:
    whole = stored(cli).read_text(encoding="utf-8")
    edges = json.loads(whole)["edges"]
    gone = next(iter(edges))
    before = change(stored(cli), edges={**edges, gone: None, "a0.h2->logits": 4.5})
    found = checked(cli, kept, code=1)
    assert "the circuit lost a0.h2->logits" in found.out
    assert "if that is intended:  circuitfind check small --update" in found.out
    assert stored(cli).read_text(encoding="utf-8") == before, "nothing is rewritten unasked"
    found = checked(cli, kept, "--update")
    assert "lost a0.h2->logits" in found.out
    assert found.out.index("lost a0.h2->logits") < found.out.index("baseline rewritten: ")
    assert stored(cli).read_text(encoding="utf-8") == whole
    assert "every baseline stays as it is" in checked(cli, kept, "--update").out


def test_update_leaves_what_does_not_hold(cli: Cli, kept: Path) -> None:
    before = change(stored(cli), faithfulness={"resample": 0.1})
    task(cli.folder, expect={"planted/and-gate": {"nodes": {"max": 1}}})
    found = checked(cli, kept, "--update", code=1)
    assert "not written, since they do not hold: small" in found.out
    assert stored(cli).read_text(encoding="utf-8") == before
    checked(cli, kept, "--update", "--force", code=1)
    assert stored(cli).read_text(encoding="utf-8") != before


def test_update_mends_a_damaged_baseline(cli: Cli, kept: Path) -> None:
    whole = stored(cli).read_text(encoding="utf-8")
    stored(cli).write_text(whole[: len(whole) // 2])
    assert "cannot read the baseline" in checked(cli, kept, code=1).out
    data = checked(cli, kept, "--update", "--json").json
    assert [Path(path).name for path in data["baselines"]["rewritten"]] == ["small.and-gate.json"]
    assert stored(cli).read_text(encoding="utf-8") == whole


def test_baselines_elsewhere(cli: Cli) -> None:
    path = task(cli.folder)
    checked(cli, path, "--update", "--baselines", "mine")
    assert [one.name for one in Path("mine").iterdir()] == ["small.and-gate.json"]
    assert not (cli.folder / "baselines").exists()
    assert "no baseline" not in checked(cli, path, "--baselines", "mine").out


def test_what_was_computed_before_is_not_trusted(cli: Cli, kept: Path) -> None:
    (folder,) = (cli.outputs / "check").iterdir()
    marked = (folder / "scores.npz").stat().st_mtime_ns
    checked(cli, kept)
    assert (folder / "scores.npz").stat().st_mtime_ns > marked


# --- processes ----------------------------------------------------------------------------------------------


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.told: list[str] = []

    def started(self, case: Case) -> None:
        self.began.append(case.label)

    def ended(self, outcome: Outcome) -> None:
        self.told.append(outcome.label)


def some_cases(folder: Path, *names: str) -> list[Case]:
    return find_cases([str(task(folder, name)) for name in names])[0]


@pytest.mark.slow
def test_processes_side_by_side_give_the_same(cli: Cli) -> None:
    several = some_cases(cli.folder, "first", "second", "third")
    where = Where(cli.outputs, "cpu")
    heard = Heard()
    found, finished = pool.run_cases(several, where, heard, jobs=2)
    assert finished
    assert [one.label for one in found] == ["first", "second", "third"], "in order"
    assert sorted(heard.began) == sorted(heard.told) == ["first", "second", "third"]
    shelf = Shelf("cpu")
    for one, case in zip(found, several, strict=True):
        here = run_case(case, where, shelf)
        assert one.verdict == here.verdict == "as expected"
        assert one.now is not None
        assert here.now is not None
        assert one.now.text() == here.now.text()


@pytest.mark.parametrize("jobs", [2, 3])
def test_a_process_that_dies(cli: Cli, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(pool, "CaseJob", DyingCase)
    several = some_cases(cli.folder, "first", "second", "third")
    found, finished = pool.run_cases(several, Where(cli.outputs), Heard(), jobs=jobs)
    assert finished
    verdicts = {one.label: (one.verdict, one.problem) for one in found}
    assert verdicts.pop("second") == ("error", "its process ended with exit code 7")
    assert set(verdicts.values()) == {("as expected", None)}


def test_an_interruption_keeps_what_was_finished(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(case: Case, *given: Any) -> Outcome:
        if case.label == "second":
            raise KeyboardInterrupt
        return of_case(case, "as expected", has_baseline=True)

    monkeypatch.setattr(pool, "run_case", interrupted)
    paths = [task(cli.folder, name) for name in ("first", "second", "third")]
    found = checked(cli, *paths, "--update", code=130)
    assert "1 case: 1 as expected" in found.out
    assert "interrupted: 1 of 3 cases were run" in found.err
    data = checked(cli, *paths, "--json", code=130).json
    assert not data["finished"]
    assert [case["task"] for case in data["cases"]] == ["first"]


@pytest.mark.parametrize(
    ("models", "device", "one"),
    [(["mini"], "auto", False), (["mini", "gpt2"], "auto", True), (["mini"], "cuda", True)],
)
def test_how_many_processes(cli: Cli, models: Sequence[str], device: str, one: bool) -> None:
    path = task(cli.folder, expect={model: {} for model in models})
    some = find_cases([str(path)])[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert command._jobs(some, device) == (1 if one else cores)


def test_a_model_is_loaded_once_for_its_cases(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from circuitfind.model import load

    right, loaded = load.load_model, []

    def counted(name: str, **named: Any) -> Any:
        loaded.append(name)
        return right(name, **named)

    monkeypatch.setattr(load, "load_model", counted)
    first = task(cli.folder, "first", expect={"planted/and-gate": {}, "planted/or-gate": {}})
    second = task(cli.folder, "second", expect={"planted/and-gate": {}})
    found = checked(cli, first, second)
    assert "3 cases: 3 as expected" in found.out
    assert loaded == ["planted/and-gate", "planted/or-gate"]


def test_outputs_that_cannot_be_written(cli: Cli) -> None:
    (cli.folder / "file").write_text("")
    cli.fails(2, "check", task(cli.folder), "--outputs", "file/runs", says=("cannot be written to",))


def test_no_tasks_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only(monkeypatch, tmp_path)
    with pytest.raises(UsageError, match="there is no case of tier 1"):
        find_cases()
