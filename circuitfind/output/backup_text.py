"""What a search for backups found, in words and in bars of characters. Plain text; the command line adds colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from circuitfind.backups.report import Account, BackupReport, Evidence, Finding, RemovedSet

PARTS = ("lost", "heads", "mlps", "norm", "metric")
"""Where a lost direct effect went; the names of `Account`'s fields."""
TITLES = {"lost": "really lost", "heads": "heads", "mlps": "MLPs", "norm": "norm", "metric": "metric's curve"}
BLOCKS = {"lost": "█", "heads": "▓", "mlps": "▒", "norm": "░", "metric": "·"}
PLAIN = {"lost": "#", "heads": "=", "mlps": "-", "norm": ":", "metric": "."}
"""The same where the terminal has no block characters."""
STYLES = {"lost": "red", "heads": "green", "mlps": "cyan", "norm": "blue", "metric": "magenta"}
LEAST = 0.005
"""Shares below this are zero in whole percents: they are not drawn."""


MOST = 10
"""Shares beyond this, either way, are of next to nothing: how far beyond is noise."""


def percent(share: float) -> str:
    """``34 %``, also beyond 100 and below 0; ``over 1,000 %`` beyond ten times."""
    if abs(share) > MOST:
        return "over 1,000 %" if share > 0 else "below -1,000 %"
    whole = round(100 * share)  # an integer has no minus zero
    return f"{whole} %"


def joined(names: Sequence[str], *, most: int = 6) -> str:
    """``a9.h6 + a9.h9``; of many, the first ones and how many more."""
    shown = " + ".join(names[:most])
    return shown if len(names) <= most else f"{shown} + {len(names) - most} more"


# One sentence.


def verdict(report: BackupReport) -> str:
    """What was found, or why nothing was, in one sentence."""
    found = _stand_ins(report)
    relief = len({f.name for f in report.of_kind("relief")})
    let_go = f"; {relief} {'relieves' if relief == 1 else 'relieve'}" if relief else ""
    if found:
        return "; ".join(found) + let_go
    if relief:
        names = list(dict.fromkeys(f.name for f in report.of_kind("relief")))
        first = report.of_kind("relief")[0]
        at = "" if first.reader == "logits" else f" at {first.reader}"
        gone = f"{joined(first.covers)} {_is(first.covers)} gone"
        return f"no backup; {joined(names)} {_works(names)} less against the answer{at} when {gone}"
    return nothing(report)


def _stand_ins(report: BackupReport) -> list[str]:
    """For each removed set, what stands in for it."""
    grouped: dict[tuple[str, tuple[str, ...]], list[Finding]] = {}
    for f in report.backups:
        grouped.setdefault((f.reader, f.covers), []).append(f)
    lines = []
    for (reader, covers), group in grouped.items():
        names = [f.name for f in group]
        at = "" if reader == "logits" else f" at {reader}"
        second = "also " if group[0].kind == "second-order backup" else ""
        verb = "stands in" if len(names) == 1 else "stand in"
        share = percent(sum(f.share for f in group))
        lines.append(
            f"{', '.join(names)} {second}{verb} for {joined(covers)}{at} (repair {share} of what {_it(covers)})"
        )
    return lines


def _it(names: Sequence[str]) -> str:
    return "it writes" if len(names) == 1 else "they write"


def _works(names: Sequence[str]) -> str:
    return "works" if len(names) == 1 else "work"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def nothing(report: BackupReport) -> str:
    """Why no backup was found: what was removed, what that cost, and where the rest of it went."""
    tried = telling(report)
    silent = [reader for reader in report.readers if reader not in {one.reader for one in tried}]
    parts = [f"nothing that could be removed writes to {reader} for sure" for reader in silent]
    unsure = len({f.name for f in report.of_kind("uncertain")})
    head = f"no sure backup ({unsure} uncertain)" if unsure else "no backup"
    return f"{head}: {'; '.join([*map(_went, tried), *parts])}"


def _went(one: RemovedSet) -> str:
    """Under the ablation in which other heads repair most."""
    account = max(one.accounts, key=lambda a: a.heads / _whole(a))
    shares = shares_of(account)
    others = {p: shares[p] for p in PARTS[1:] if abs(shares[p]) >= LEAST}
    mended = [f"{TITLES[p]} {percent(s)}" for p, s in others.items() if s > 0]
    worse = [f"{TITLES[p]} {percent(-s)}" for p, s in others.items() if s < 0]
    wrote = f"{_it(one.members)} to {one.reader}"
    if shares["lost"] > 1 + LEAST:  # they act through others, too
        left = f"{shares['lost']:.1f} times what {wrote}"
    else:
        left = f"{percent(shares['lost']) if shares['lost'] >= 0 else 'nothing'} of what {wrote}"
    text = f"without {joined(one.members)}, {left} is lost under {account.ablation} ablation"
    text += f", repaired by {', '.join(mended)}" if mended else ", nothing is repaired"
    return text + (f", made worse by {', '.join(worse)}" if worse else "")


# The bars.


def telling(report: BackupReport) -> list[RemovedSet]:
    """For each reader the removed set that says most: one that woke backups, else the one that cost most."""
    found = []
    for reader in report.readers:
        sets = [s for s in report.sets if s.reader == reader and s.accounts[0].lost_direct > 0]
        if sets:
            found.append(max(sets, key=lambda s: (bool(s.found), s.accounts[0].lost_direct)))
    return found


@dataclass(frozen=True)
class Bar:
    """A stacked bar: for each drawn part its name and its characters, and in the same scale what made it worse.

    Attributes:
        hundred: After how many characters the whole of the lost direct effect ends.
        repaired: Positive parts, which add up to the whole and to what ``worse`` added.
        worse: Negative parts.
    """

    hundred: int
    repaired: tuple[tuple[str, str], ...]
    worse: tuple[tuple[str, str], ...]


def shares_of(account: Account) -> dict[str, float]:
    """Each part as a share of the lost direct effect; they add up to 1."""
    return {part: getattr(account, part) / _whole(account) for part in PARTS}


def _whole(account: Account) -> float:
    return account.lost_direct if account.lost_direct > 0 else float("inf")


def bar(account: Account, *, width: int = 60, blocks: bool = True) -> Bar:
    """The account of a removed set as a bar of at most ``width`` characters; every part of 0.5 % or more has one."""
    shares = shares_of(account)
    up = {p: s for p, s in shares.items() if s >= LEAST}
    down = {p: -s for p, s in shares.items() if s <= -LEAST}
    most = max(1.0, sum(up.values()), sum(down.values()))
    sign = signs(blocks)

    def drawn(parts: dict[str, float]) -> tuple[tuple[str, str], ...]:
        return tuple(
            (p, sign[p] * n) for p, n in zip(parts, _cells(list(parts.values()), most, width), strict=True)
        )

    return Bar(round(width / most), drawn(up), drawn(down))


def signs(blocks: bool) -> dict[str, str]:
    """The character of each part."""
    return BLOCKS if blocks else PLAIN


def _cells(shares: list[float], most: float, width: int) -> list[int]:
    """Characters for each share: by where its end falls, and at least one."""
    ends, at = [], 0.0
    for share in shares:
        at += share
        ends.append(round(at / most * width))
    cells = [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    while sum(cells) > width:
        cells[cells.index(max(cells))] -= 1
    return cells


# The table.


def decisive(finding: Finding) -> Evidence | None:
    """The evidence that its share comes from."""
    return min(finding.evidence, key=lambda e: abs(e.share - finding.share), default=None)


def repaired(evidence: Evidence) -> str:
    """``34 % [28, 40]``: the share with its interval."""
    if not evidence.share:
        return "0 %"
    whole = evidence.compensation.value / evidence.share
    ends = sorted(100 * end / whole for end in (evidence.compensation.low, evidence.compensation.high))
    return f"{percent(evidence.share)} [{round(ends[0])}, {round(ends[1])}]"


def row(finding: Finding) -> tuple[str, ...]:
    """Name, class, covers, reader, direct effect before and after, share repaired, freeze, interaction."""
    found = decisive(finding)
    if found is None:
        return (finding.name, finding.kind, joined(finding.covers), finding.reader, "", "", "", "")
    verified = found.freeze is not None and found.interaction is not None
    return (
        finding.name,
        finding.kind,
        joined(finding.covers),
        finding.reader,
        f"{finding.direct.value:+.2f} -> {found.direct_after:+.2f}",
        repaired(found) if verified else "",
        f"{found.freeze.value:+.2g}" if found.freeze is not None else "",
        f"{found.interaction.value:+.2g}" if found.interaction is not None else "",
    )
