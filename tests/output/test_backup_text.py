"""Bars and sentences of a search for backups."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitfind.backups.report import Account, BackupReport, Estimate, Evidence, Finding, RemovedSet
from circuitfind.output.backup_text import bar, percent, repaired, row, shares_of, telling, verdict

PLAIN = Account("resample", 10.0, 4.0, 1.0, 0.5, 0.0, 4.5, 0.0)
WORSE = Account("mean", 2.0, 0.5, -3.0, 0.1, 0.0, 4.4, 0.0)
OVER = Account("mean", 4.0, 6.0, 0.0, -0.2, 0.0, -1.8, 0.0)


def finding(name: str, kind: str = "backup", share: float = 0.2, **changes: object) -> Finding:
    one = Estimate(1, 0.9, 1.1)
    evidence = Evidence(
        ablation="resample",
        direct_after=1.0,
        compensation=Estimate(2.0, 1.5, 2.5),
        p=0.0,
        share=share,
        floor=0.1,
        sure=True,
        freeze=one,
        interaction=one,
    )
    made = Finding(name, kind, ("a9.h6", "a9.h9"), "logits", Estimate(0.1, 0, 0.2), (evidence,))  # type: ignore[arg-type]
    return replace(made, **changes)


def report(
    *findings: Finding, sets: tuple[RemovedSet, ...] = (), readers: tuple[str, ...] = ("logits",)
) -> BackupReport:
    return BackupReport(readers, {}, sets, findings, (), {}, {}, {})


@pytest.mark.parametrize("account", [PLAIN, WORSE, OVER], ids=["plain", "worse", "over"])
@pytest.mark.parametrize("width", [20, 56])
def test_a_bar_is_true_to_scale(account: Account, width: int) -> None:
    shares = shares_of(account)
    assert sum(shares.values()) == pytest.approx(1)
    found = bar(account, width=width)
    drawn = {p: len(cells) for p, cells in found.repaired}
    minus = {p: -len(cells) for p, cells in found.worse}
    assert sum(drawn.values()) <= width
    assert drawn.keys() | minus.keys() == {p for p, s in shares.items() if abs(s) >= 0.005}, (
        "nothing is left out"
    )
    for part, cells in (drawn | minus).items():
        assert cells / found.hundred == pytest.approx(shares[part], abs=2 / found.hundred)


def test_parts_can_be_told_apart_without_colour() -> None:
    for blocks in (True, False):
        found = bar(replace(PLAIN, metric=1.0, lost=3.5), blocks=blocks)
        signs = [cells[0] for _, cells in found.repaired]
        assert len(set(signs)) == 5
        assert blocks or all(sign.isascii() for sign in signs)


def test_percent() -> None:
    assert [percent(x) for x in (0.343, 0.0, -0.001, 2.5, -1.2)] == ["34 %", "0 %", "0 %", "250 %", "-120 %"]
    assert [percent(x) for x in (10.0, 23.4, -18.0)] == ["1000 %", "over 1,000 %", "below -1,000 %"]


def test_verdict_of_backups() -> None:
    found = report(finding("a10.h2"), finding("a10.h6"), finding("a11.h10", "relief"))
    assert (
        verdict(found)
        == "a10.h2, a10.h6 stand in for a9.h6 + a9.h9 (repair 40 % of what they write); 1 relieves"
    )
    inner = report(finding("a8.h1", covers=("a7.h3",), reader="a9.h9<q>"))
    assert verdict(inner) == "a8.h1 stands in for a7.h3 at a9.h9<q> (repair 20 % of what it writes)"


def test_verdict_of_nothing() -> None:
    one = RemovedSet("strongest 1 alone", ("a9.h9",), "logits", (PLAIN, WORSE))
    assert verdict(report(sets=(one,))) == (
        "no backup: without a9.h9, 45 % of what it writes to logits is lost under resample ablation, "
        "repaired by heads 40 %, MLPs 10 %, norm 5 %"
    )
    only_worse = replace(one, accounts=(WORSE,))
    assert "repaired by heads 25 %, norm 5 %, made worse by MLPs 150 %" in verdict(report(sets=(only_worse,)))
    assert verdict(report()) == "no backup: nothing that could be removed writes to logits for sure"


def test_the_most_telling_set_is_one_that_woke_something() -> None:
    quiet = RemovedSet("strongest 2", ("a9.h6", "a9.h9"), "logits", (PLAIN,))
    woke = replace(quiet, name="strongest 1 alone", accounts=(WORSE,), found=("a10.h2",))
    silent = replace(quiet, reader="m5", accounts=(replace(PLAIN, lost_direct=-1.0),))
    assert telling(report(sets=(quiet, woke, silent), readers=("logits", "m5"))) == [woke]
    assert telling(report(sets=(quiet,))) == [quiet]


def test_a_row() -> None:
    assert repaired(finding("a10.h2").evidence[0]) == "20 % [15, 25]"
    assert row(finding("a10.h2"))[:6] == (
        "a10.h2",
        "backup",
        "a9.h6 + a9.h9",
        "logits",
        "+0.10 -> +1.00",
        "20 % [15, 25]",
    )
    assert row(finding("a10.h2", evidence=()))[4:] == ("", "", "", "")
    bare = replace(finding("a10.h2").evidence[0], freeze=None, interaction=None)
    assert row(finding("a9.h6", "co-worker", evidence=(bare,)))[5:] == ("", "", "")
