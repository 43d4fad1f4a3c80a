"""The whole search where the truth is planted, where there is nothing to find, and what must hold of any report."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.backups.reading import Search
from circuitfind.backups.report import BackupReport
from circuitfind.backups.search import END, find_backups
from circuitfind.model.runs import Runs
from circuitfind.model.tl_format import boot_native
from circuitfind.names import parse_node
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.metrics import get_metric
from circuitfind.task.spec import load_task
from tests import families
from tests.backups.cases import (
    ABLATIONS,
    BACKUPS,
    IOI,
    WITH_BACKUPS,
    WITHOUT,
    case,
    classes_of,
    found,
    seeds,
)
from tests.families import NATIVE_CONFIGS, native_state, pairs_for, random_pairs

KINDS = (*WITH_BACKUPS, *WITHOUT)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def claims(report: BackupReport) -> set[str]:
    """Who is called a backup, at whatever reader."""
    return {f.name for f in report.findings if f.kind in BACKUPS}


def assert_adds_up(report: BackupReport, clean: float, near: float = 1e-4) -> None:
    """Everything that a set lost is accounted for."""
    assert report.sets
    for removed in report.sets:
        assert [a.ablation for a in removed.accounts] == list(ABLATIONS)
        for a in removed.accounts:
            left = a.lost_direct - a.heads - a.mlps - a.norm - a.metric
            assert left == pytest.approx(a.lost, abs=1e-3)
            assert abs(a.gap) <= near * abs(clean)
            assert left - a.lost == pytest.approx(a.gap, abs=1e-6)
            if removed.reader == "logits":
                assert abs(a.metric) <= near * abs(clean), "answers of one token are linear in the logits"


# --- planted truth ------------------------------------------------------------------------------------------------


@seeds(KINDS, 2, 20, missed={(IOI, 5): "a weak negative head gets no class"})
def test_planted_classes_are_found(name: str, seed: int) -> None:
    """Every class, and no other component is called a backup, at no reader."""
    truth, report = case(name, seed).truth, found(name, seed)
    classes = classes_of(report)
    assert {head: classes.get(head) for head in truth.classes} == truth.classes
    assert claims(report) == case(name, seed).backups
    assert {h for h, kind in classes.items() if kind == "relief"} <= {
        h for h, kind in truth.classes.items() if kind == "relief"
    }


@seeds([IOI], 3, 20)
def test_no_backup_is_reported_where_none_is_planted(name: str, seed: int) -> None:
    report = found(name, seed, 0)
    assert set(report.seeds["logits"]) >= set(case(name, seed, 0).truth.primaries)
    assert claims(report) == set()
    assert report.groups == ()


@seeds(WITH_BACKUPS, 2, 8)
def test_what_backups_cover_is_found(name: str, seed: int) -> None:
    """What must be gone holds only planted primaries and backups, and wakes the backup by brute force of the report."""
    truth, report = case(name, seed).truth, found(name, seed)
    for finding in report.backups:
        assert set(finding.covers) <= {*truth.primaries, *truth.covers}
        if truth.name != IOI:
            assert set(finding.covers) == set(truth.covers[finding.name])
        for e in finding.evidence:
            assert e.freeze is not None
            assert e.interaction is not None
            assert min(e.compensation.low, e.freeze.low, e.interaction.low, e.direct_after) > 0
            assert e.compensation.value > e.floor
            assert e.direct_after == pytest.approx(finding.direct.value + e.compensation.value, abs=1e-6) or (
                finding.kind == "second-order backup"
            )
    # In ``single-blind`` a backup does nothing before, exactly.
    if name == "single-blind":
        assert all(f.dormant and abs(f.direct.value) < 2e-3 for f in report.backups)


@seeds(KINDS, 2, 20)
def test_accounts_of_planted_models_add_up(name: str, seed: int) -> None:
    assert_adds_up(found(name, seed), float(case(name, seed).runs.clean.mean()))


@seeds([name for name in WITH_BACKUPS if name != "second-order"], 2, 20)
def test_freezing_the_backups_undoes_their_repair(name: str, seed: int) -> None:
    """At least 55 % of what they take over goes when they keep their clean values, as far as the norm let it count."""
    report = found(name, seed)
    sets = [removed for removed in report.sets if removed.found]
    assert bool(sets) == bool(case(name, seed).backups)
    for removed in sets:
        assert not set(removed.found) & set(removed.members)
        mine = [f for f in report.backups if f.name in removed.found]
        assert all(f.covers == removed.members for f in mine)
        for i, a in enumerate(removed.accounts):
            repair = sum(f.evidence[i].compensation.value for f in mine)
            counted = min(repair, a.lost_direct - a.lost)
            assert removed.freed[a.ablation] >= 0.55 * counted > 0


@seeds(["second-order"], 2, 20)
def test_freezing_a_backup_that_has_one_itself_wakes_the_other(name: str, seed: int) -> None:
    """Less than its whole repair goes, but some."""
    (removed,) = [s for s in found(name, seed).sets if s.found]
    for a in removed.accounts:
        assert 0 < removed.freed[a.ablation] < 0.9 * a.heads


@seeds(KINDS, 1, 20)
def test_what_a_search_costs(name: str, seed: int) -> None:
    """A pass for each set and ablation, and two for each candidate; the clean and the corrupted run beside."""
    report = find_backups(case(name, seed).runs, ABLATIONS, options=Search(inner=0))
    assert report.readers == ("logits",)
    assert 0 < report.cost["screen"] <= report.cost["sets"] + 2
    assert report.cost["verify"] <= 2 * report.cost["candidates"]
    assert report.cost["sets"] >= len(report.sets) * len(ABLATIONS)
    named = {f.name for f in report.findings if f.evidence[0].freeze is not None}
    assert report.cost["candidates"] >= len(named) * len(ABLATIONS)


# --- what may be given --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_BACKUPS)
def test_primaries_may_be_given(name: str) -> None:
    c = case(name, 0)
    given = [parse_node(p) for p in c.truth.primaries]
    report = find_backups(c.runs, ABLATIONS, primaries=given, readers=[END])
    assert claims(report) == c.backups
    alone = {(p,) for p in c.truth.primaries}
    assert {s.members for s in report.sets} >= {tuple(sorted(c.truth.primaries)), *alone}
    assert {s.members for s in report.sets} <= {tuple(sorted(c.truth.primaries)), *alone}
    assert_adds_up(report, float(c.runs.clean.mean()))


def with_mlps() -> Any:
    """A planted model that has MLPs."""
    return next(c for c in (case("gated-backup", s) for s in range(20)) if c.model.has_mlp)


@pytest.mark.parametrize("beside", [True, False])
def test_an_mlp_may_be_given(beside: bool) -> None:
    """MLPs hold noise here: removing one wakes nobody, and is no hindrance to what the primary beside it wakes."""
    c = with_mlps()
    given = [parse_node("m0"), *([parse_node(c.truth.primaries[0])] if beside else [])]
    report = find_backups(c.runs, ABLATIONS, primaries=given, readers=[END])
    assert claims(report) == (c.backups if beside else set())
    assert any("m0" in s.members for s in report.sets)
    assert_adds_up(report, float(c.runs.clean.mean()))
    assert "m0" not in {f.name for f in report.findings if "m0" in f.covers}


def test_a_circuit_may_be_given() -> None:
    c = case(IOI, 1)
    rest = [parse_node(p) for p in c.truth.primaries[:2]]
    assert len(c.truth.primaries) > 2
    report = find_backups(c.runs, ABLATIONS, circuit=rest, readers=[END], options=Search(rounds=1))
    assert tuple(sorted(c.truth.primaries[:2])) in {s.members for s in report.sets}


def test_readers_may_be_given() -> None:
    """The queries of a name mover, to which the S-inhibition head writes alone."""
    c = case(IOI, 0)
    node = parse_node(c.truth.primaries[0])
    (inhibition,) = [head for head, role in c.truth.roles.items() if role == "s-inhibition"]
    report = find_backups(c.runs, ABLATIONS, readers=[(node, "q")])
    assert report.readers == (f"{node}<q>",)
    assert {s.reader for s in report.sets} == {f"{node}<q>"}
    assert report.seeds[f"{node}<q>"][0] == inhibition
    assert claims(report) == set()
    assert_adds_up(report, float(c.runs.clean.mean()))
    for removed in report.sets:
        assert all(parse_node(member).layer < node.layer for member in removed.members)


def test_the_same_seed_gives_the_same_report() -> None:
    one, two = (find_backups(case(IOI, 1).runs, ABLATIONS, readers=[END]).as_dict() for _ in range(2))
    assert one == two


def test_only_the_logit_difference_adds_up() -> None:
    c = case("gated-backup", 0)
    for metric in ("prob-diff", "log-prob", "kl", "accuracy"):
        with pytest.raises(ValueError, match="logit difference"):
            find_backups(Runs(c.model, c.pairs, get_metric(metric)), ABLATIONS)


# --- where there is nothing ----------------------------------------------------------------------------------------


def assert_silent(report: BackupReport) -> None:
    """No backup and no group; where nothing is removed, a note says why."""
    assert claims(report) == set()
    assert report.groups == ()
    for reader in report.readers:
        if not report.seeds[reader]:
            assert any(reader in note and "nothing to remove" in note for note in report.notes)


@seeds(("gated-backup", "three-way", "second-order", IOI), 2, 20)
def test_answers_of_other_prompts_have_no_backups(name: str, seed: int) -> None:
    c = case(name, seed)
    runs = Runs(c.model, c.answered_by_others(seed), get_metric("logit-diff"))
    assert_silent(find_backups(runs, ABLATIONS))


@seeds(("ln",), 5, 20)
def test_random_weights_have_no_backups(name: str, seed: int) -> None:
    assert_random_is_silent(name, seed)


@seeds(("no-norm", "rms-gated", "attn-only", "kv-groups"), 1, 5)
def test_other_random_weights_have_none_either(name: str, seed: int) -> None:
    assert_random_is_silent(name, seed)


def assert_random_is_silent(family: str, seed: int) -> None:
    config = NATIVE_CONFIGS[family]
    model = boot_native(
        config, native_state(config, seed), family, torch.device("cpu"), family, source=family
    )
    runs = Runs(model, random_pairs(count=64, seed=seed), get_metric("logit-diff"))
    assert_silent(find_backups(runs, ABLATIONS))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "kv-groups", "neox"])
def test_one_prompt_pair_is_enough_to_say_nothing(family: str) -> None:
    model = families.model(family)
    runs = families.runs_of(model, pairs_for(model, count=1))
    assert_silent(find_backups(runs, ("resample", "zero")))


@pytest.mark.parametrize("name", ["gated-backup", IOI])
def test_one_prompt_of_a_planted_model(name: str) -> None:
    """With primaries given there is something to remove, but one prompt proves nothing."""
    c = case(name, 0)
    runs = Runs(c.model, c.pairs.subset([0]), get_metric("logit-diff"))
    given = [parse_node(p) for p in c.truth.primaries]
    report = find_backups(runs, ("resample", "zero"), primaries=given)
    assert claims(report) == set()
    assert report.sets


# --- a trained model ----------------------------------------------------------------------------------------------


@cache
def trained() -> tuple[BackupReport, float]:
    """``mini`` on ``ioi``, in the order in which the program does it."""
    spec = load_task("ioi")
    session = Session(spec, resolve(spec, metric="logit-diff"), "cpu")
    session.kept = [int(i) for i in np.flatnonzero(session.runs_of(session.all_pairs).answered_rightly)]
    report = find_backups(session.runs, ABLATIONS, readers=[END, (parse_node("m1"), None)])
    return report, float(session.runs.clean.mean())


def test_accounts_of_a_trained_model_add_up() -> None:
    report, clean = trained()
    assert_adds_up(report, clean)
    assert {s.reader for s in report.sets} == {r for r in report.readers if report.seeds[r]}
