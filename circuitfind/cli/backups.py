"""``circuitfind backups``, and how ``show --backups`` prints the same."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from circuitfind.cli.common import Screen, common_options, duration, number, share, table
from circuitfind.cli.engine_options import engine_options, engined
from circuitfind.cli.lines import print_line, print_title
from circuitfind.cli.options import (
    complete_runs,
    complete_tasks,
    counterfactual_option,
    draw_options,
    model_option,
    place_options,
)
from circuitfind.cli.placing import placed, placing_options
from circuitfind.config import DEFAULT_MIN_SHARE, DEFAULT_RATE
from circuitfind.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from circuitfind.backups.report import Account, BackupReport, RemovedSet
    from circuitfind.output.store import Run, Store
    from circuitfind.summary import Searched

MOST = 20
"""Findings that are printed without --all."""
BAR = 56
"""Characters of a bar at the most; with what stands before and behind it, a line fits 80."""
OF_TASKS = ("model", "count", "seed", "counterfactual", "ablation")
"""Options that a finished run has settled."""


def complete_things(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of tasks and of runs, for the shell."""
    return [*complete_tasks(ctx, param, incomplete), *complete_runs(ctx, param, incomplete)]


@click.command()
@click.argument("thing", metavar="TASK|RUN", shell_complete=complete_things)
@click.option(
    "--primaries",
    metavar="NODES",
    help="What to remove, such as a9.h9,a9.h6.  [default: found by direct effects]",
)
@click.option(
    "--reader",
    "readers",
    metavar="NAME",
    multiple=True,
    help="What is written to: logits, a9.h9<q>, m5; may be repeated.  [default: logits and one chosen input]",
)
@click.option(
    "--min-share",
    type=float,
    metavar="SHARE",
    default=DEFAULT_MIN_SHARE,
    show_default=True,
    help="Count what takes over at least this share.",
)
@click.option(
    "--rate",
    type=float,
    metavar="SHARE",
    default=DEFAULT_RATE,
    show_default=True,
    help="False-discovery rate.",
)
@model_option()
@draw_options
@counterfactual_option
@click.option(
    "--ablation", metavar="NAME", help="resample, mean, zero: the first of two.  [default: the task's]"
)
@click.option("--all", "everything", is_flag=True, help=f"Print every finding, not only {MOST}.")
@place_options
@placing_options
@engine_options
@click.option("--force", is_flag=True, help="Search again.")
@common_options
@placed
@engined
def backups(
    screen: Screen,
    thing: str,
    primaries: str | None,
    readers: tuple[str, ...],
    min_share: float,
    rate: float,
    everything: bool,
    memory: str | None,
    device: str,
    outputs: str | None,
    force: bool,
    **flags: Any,
) -> None:
    """Find what stands in when heads are removed, in a TASK or in the circuit of a RUN.

    \b
    circuitfind backups ioi
    circuitfind backups ioi --primaries a9.h9,9.6,L10H0 --reader logits
    circuitfind backups latest
    """
    from circuitfind.backup_runs import search_run, search_task
    from circuitfind.cli.progress import Progress
    from circuitfind.output.store import Store
    from circuitfind.settings import BackupOptions, memory_bytes, resolve
    from circuitfind.task.spec import load_task

    options = BackupOptions(_listed(primaries), readers, rate, min_share)
    shared: dict[str, Any] = {"device": device, "force": force, "memory": memory_bytes(memory)}
    store = Store(outputs)
    run = find_run(thing, store)
    with Progress(screen) as progress:
        if run is None:
            spec = load_task(thing)
            settings = resolve(spec, metric="logit-diff", **flags)
            found = search_task(spec, settings, options, outputs=outputs, reporter=progress, **shared)
        else:
            _settled(flags)
            found = search_run(run, store, options, reporter=progress, **shared)
    print_searched(screen, found, everything=everything)


def _listed(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError(
            "--primaries names no component", hint="name some, such as a9.h9,a9.h6, or leave it out"
        )
    return names


def find_run(thing: str, store: Store) -> Run | None:
    """The run of that name; None for a task, which goes before where both have the name."""
    from circuitfind.output.store import LATEST
    from circuitfind.task.spec import SUFFIXES, find_tasks

    if (Path(thing) / "manifest.json").is_file() or thing == LATEST:
        return store.find(thing)
    tasks = find_tasks()
    if thing in tasks or Path(thing).suffix in SUFFIXES:
        return None
    try:
        return store.find(thing)
    except UsageError as error:
        if "is the beginning of" in error.what:
            raise
        near = did_you_mean(thing, [*tasks, *(info.name for info in store.runs()), LATEST])
        raise UsageError(
            f"neither a task nor a run is named '{thing}'",
            hint=f"{near} (`circuitfind list tasks` and `circuitfind list runs` show all)",
        ) from error


def _settled(flags: dict[str, Any]) -> None:
    given = [name for name in OF_TASKS if flags.get(name) is not None]
    if given:
        raise UsageError(
            f"--{given[0]} cannot be changed in a finished run", hint="give a task, or leave the option out"
        )


# The printout.


def print_searched(screen: Screen, found: Searched, *, everything: bool = False) -> None:
    """The report as JSON, or for people."""
    screen.result({"version": 1, **found.as_dict()}, lambda: _print(screen, found, everything))


def _listed_with_and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _print(screen: Screen, found: Searched, everything: bool) -> None:
    from circuitfind.output.backup_text import telling

    report, c = found.report, found.report.conditions
    print_title(screen, c, found.facts["verdict"])
    told = (
        f"{_listed_with_and(c['ablations'])} ablation",
        f"counterfactual {c['counterfactual']}",
        f"metric {c['metric']}",
        number(c["n_prompts"], "prompt"),
    )
    print_line(screen, "under", ", ".join(told))
    for reader, seeds in report.seeds.items():
        title = "seeds" if reader == report.readers[0] else ""
        print_line(screen, title, f"{reader}: {', '.join(seeds) or 'none'}")
    for one in telling(report):
        _print_bars(screen, one)
    _print_findings(screen, report, everything)
    _print_groups(screen, report)
    for text in dict.fromkeys((*report.notes, *found.facts["notes"])):
        print_line(screen, "note", text)
    _print_cost(screen, found)


def _print_bars(screen: Screen, one: RemovedSet) -> None:
    """Where what a removed set wrote has gone, under each ablation."""
    from circuitfind.output.backup_text import joined

    woke = f", found {joined(one.found)}" if one.found else ""
    screen.out.print()
    screen.out.print(f"without {joined(one.members)}, at {one.reader} ({one.name}{woke})", markup=False)
    for account in one.accounts:
        _print_bar(screen, account)


def _print_bar(screen: Screen, account: Account) -> None:
    from rich.text import Text

    from circuitfind.output.backup_text import PARTS, STYLES, TITLES, bar, percent, shares_of, signs

    blocks = _has_blocks()
    drawn, shares, sign = (
        bar(account, width=min(BAR, screen.out.width - 20), blocks=blocks),
        shares_of(account),
        signs(blocks),
    )

    def line(title: str, parts: tuple[tuple[str, str], ...]) -> None:
        text = Text(f"  {title:<10} ")
        for part, cells in parts:
            text.append(cells, style=STYLES[part])
        screen.out.print(text)

    line(account.ablation, drawn.repaired)
    if drawn.worse:
        line("minus", drawn.worse)
        screen.out.print(f"  {'':<10} {'':<{drawn.hundred - 1}}^ 100 %", markup=False)
    legend = [
        f"{sign[p]} {TITLES[p]} {percent(shares[p])}"
        for p in PARTS
        if p in dict(drawn.repaired + drawn.worse)
    ]
    screen.out.print(f"  {'':<10} {'  '.join(legend)}", markup=False)
    screen.out.print(
        f"  {'':<10} 100 % is {account.lost_direct:.3g}, what was written and is no more; "
        f"{account.lost:.3g} was lost",
        markup=False,
    )


def _has_blocks() -> bool:
    try:
        "█▓▒░·".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _print_findings(screen: Screen, report: BackupReport, everything: bool) -> None:
    from circuitfind.output.backup_text import row

    screen.out.print()
    if not report.findings:
        screen.out.print("nothing was found to write more when others are removed", markup=False)
        return
    right = ("direct effect", "repaired", "frozen", "interaction")
    shown = table("name", "class", "covers", "reader", *right, right=right)
    rows = report.findings if everything else report.findings[:MOST]
    for finding in rows:
        shown.add_row(*row(finding))
    screen.out.print(shown, markup=False)
    left = len(report.findings) - len(rows)
    if left:
        screen.out.print(f"... and {left} more: --all", markup=False)


def _print_groups(screen: Screen, report: BackupReport) -> None:
    from circuitfind.output.backup_text import joined

    screen.out.print()
    for group in report.groups:
        title = "redundant group" if group.redundant else "group"
        screen.out.print(
            f"  {title}: {joined(group.primaries)} and {joined(group.backups)}: the first alone cost "
            f"{share(group.alone)} of the metric, all of them {share(group.together)}",
            markup=False,
        )


def _print_cost(screen: Screen, found: Searched) -> None:
    cost, facts = found.report.cost, found.facts
    print_line(
        screen,
        "cost",
        f"{duration(facts['seconds'])}, {cost['screen'] + cost['verify']:.1f} passes over all prompts: "
        f"{int(cost['sets'])} sets removed, {int(cost['candidates'])} candidates verified",
    )
    print_line(screen, "report", str(found.file))
