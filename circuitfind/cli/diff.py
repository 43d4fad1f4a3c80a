"""``circuitfind diff``: two runs or circuits side by side. No model is loaded."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.common import Screen, common_options, number, table
from circuitfind.cli.lines import interval, print_line, shortened
from circuitfind.cli.options import PICTURES, complete_runs, outputs_option
from circuitfind.errors import CheckDiffers, UsageError

if TYPE_CHECKING:
    from circuitfind.circuit.changes import Agreement, Change, Changes
    from circuitfind.circuit.compare import Comparison, Side


@click.command()
@click.argument("before", metavar="RUN", shell_complete=complete_runs)
@click.argument("after", metavar="RUN", shell_complete=complete_runs)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    default=10,
    show_default=True,
    help="How many changes of nodes and of edges to print.",
)
@click.option(
    "--at-least",
    type=click.FloatRange(0, 1),
    metavar="JACCARD",
    help="Exit with 1 when the circuits have a smaller share of their edges in common.",
)
@click.option(
    "--to", metavar="FILE", help="Draw both as one picture: gained edges green, lost ones red and dashed."
)
@outputs_option
@common_options
def diff(
    screen: Screen,
    before: str,
    after: str,
    top: int,
    at_least: float | None,
    to: str | None,
    outputs: str | None,
) -> None:
    """Say what changed between two circuits: each is a RUN (as for `show`), a circuit.json or a JSON graph of EAP-IG.

    \b
    circuitfind diff ioi-mini-1a2b latest
    circuitfind diff baseline/circuit.json ioi-mini-1a2b --at-least 0.8
    circuitfind diff ioi-base-1a2b ioi-tuned-3c4d --to changes.svg
    """
    from circuitfind.circuit.compare import compare

    target = None if to is None else _target(to)
    sides = [read_side(name, outputs) for name in (before, after)]
    found = compare(*sides, top=top)
    data: dict[str, Any] = {"version": 1, **found.as_dict()}
    if target is not None:
        data["picture"] = str(_draw(target, found, sides))

    def show() -> None:
        _show(screen, found, top)
        if target is not None:
            print_line(screen, "picture", str(target))
        if all(side.scores is not None for side in sides):
            words = ["circuitfind", "report", before, after, *(["--outputs", outputs] if outputs else [])]
            print_line(screen, "as a page", shlex.join(words))

    screen.result(data, show)
    if at_least is not None and found.edges.jaccard < at_least:
        screen.fail(
            CheckDiffers(
                f"the circuits have {found.edges.jaccard:.2f} of their edges in common, less than {at_least:g}",
                hint="look at the edges gained and lost, or lower --at-least",
            )
        )


def read_side(name: str, outputs: str | None) -> Side:
    """A run, or a circuit in a file.

    Raises:
        CircuitfindError: There is no such run or file, or it holds no circuit.
    """
    from circuitfind.circuit.compare import Side
    from circuitfind.circuit.mib import read_circuit
    from circuitfind.output.report.sides import side_of
    from circuitfind.output.store import Store

    path = Path(name)
    if path.is_file():
        return Side(name, *read_circuit(path))
    if path.suffix == ".json":
        raise UsageError(f"there is no file {name}", hint="give a circuit.json, or the name of a run")
    return side_of(Store(outputs).find(name))


def _target(to: str) -> Path:
    path = Path(to)
    if path.suffix.removeprefix(".") not in PICTURES:
        raise UsageError(
            f"'{to}' has no ending that names a format",
            hint="such as changes.svg, changes.png, changes.pdf or changes.dot",
        )
    return path


def _draw(target: Path, found: Comparison, sides: Sequence[Side]) -> Path:
    from circuitfind.output.dot_diff import diff_dot
    from circuitfind.output.draw import render
    from circuitfind.output.files import write_atomic

    text = diff_dot(found, *(side.circuit for side in sides))
    if target.suffix == ".dot":
        return write_atomic(target, text)
    return render(text, target, (target.suffix.removeprefix("."),))[0]


def _show(screen: Screen, found: Comparison, top: int) -> None:
    """The comparison, for people."""
    screen.out.print(f"{found.before} -> {found.after}", style="bold", markup=False)
    for i, (what, a, b) in enumerate(found.differs):
        print_line(screen, "" if i else "differs", f"{what}: {a or 'none'} -> {b or 'none'}")
    if not found.differs:
        print_line(screen, "differs", "nothing that they were found under")
    print_line(screen, "alike", ", ".join(f"{what} {value}" for what, value in found.alike))
    for i, (one, other) in enumerate(found.evaluations):
        values = ["not measured" if e is None else interval(vars(e.faithfulness)) for e in (one, other)]
        name = next(e.ablation for e in (one, other) if e is not None)
        print_line(screen, "" if i else "faithfulness", f"{values[0]} -> {values[1]} ({name})")
        if one is not None and other is not None:
            ends = (
                f"{part} {getattr(one, part):.3f} -> {getattr(other, part):.3f}"
                for part in ("full", "circuit", "empty")
            )
            metric = one.metric if one.metric == other.metric else f"{one.metric} -> {other.metric}"
            print_line(screen, "", f"{metric}: {', '.join(ends)}")
    for title, changes in (("nodes", found.nodes), ("edges", found.edges)):
        print_line(screen, title, _counts(changes))
        for fate in ("gained", "lost"):
            told = [shortened(one.name) for one in changes.every if one.fate == fate]
            more = f" and {len(told) - top} more" if len(told) > top else ""
            if told:
                print_line(screen, "", f"{fate}: {', '.join(told[:top])}{more}")
    for title, agreement in (("all nodes", found.node_scores), ("all edges", found.edge_scores)):
        if agreement is not None:
            print_line(screen, title, _agreed(agreement))
    if found.backups.every:
        print_line(screen, "backups", _counts(found.backups))
    for i, note in enumerate(found.notes):
        print_line(screen, "" if i else "note", note)
    if found.set_aside:
        names = ", ".join(found.set_aside[:top]) + (" ..." if len(found.set_aside) > top else "")
        print_line(screen, "set aside", names)
    what = "full - empty" if found.of_gap else "the largest score"
    if any(one.size for one in (*found.edges.every, *found.nodes.every)):
        print_line(screen, "shift", f"how far a score moved, as a share of {what} of each")
    _changed(screen, "edge", found.edges.every, top)
    _changed(screen, "node", found.nodes.every, top)
    if found.edge_scores is not None or found.node_scores is not None:
        agreement, what = (found.edge_scores, "edge") if found.edge_scores else (found.node_scores, "node")
        assert agreement is not None
        outside = [one for one in agreement.moved if one.fate == "outside" and one.size]
        _changed(screen, f"{what} of no circuit", outside, top)
    _changed(screen, "backup", [one for one in found.backups.every if one.fate != "kept"], top)


def _counts(changes: Changes) -> str:
    parts = [f"{len(changes.of(fate))} {fate}" for fate in ("kept", "gained", "lost")]
    return f"{', '.join(parts)} (Jaccard {changes.jaccard:.2f})"


def _agreed(found: Agreement) -> str:
    tops = ", ".join(f"{round(k * part)} of {k}" for k, part in found.overlap.items())
    ranks = "" if found.spearman is None else f"Spearman {found.spearman:.2f} over "
    return f"{ranks}{found.common:,}" + (f"; strongest in common: {tops}" if tops else "")


def _changed(screen: Screen, title: str, changes: Sequence[Change], top: int) -> None:
    """The largest changes as a table; what did not change is left out."""
    shown = [one for one in changes if one.size or one.fate in ("gained", "lost")]
    if not shown:
        return
    rows = table(title, "before", "after", "shift", "", right=("before", "after", "shift"))
    for one in shown[:top]:
        turned = "sign turned" if one.before * one.after < 0 else ""
        fate = one.fate if one.fate in ("gained", "lost") else turned
        rows.add_row(shortened(one.name), _signed(one.before), _signed(one.after), _points(one.shift), fate)
    screen.out.print()
    screen.out.print(rows, markup=False)
    if len(shown) > top:
        screen.out.print(
            f"and {number(len(shown) - top, 'smaller change')} (--top {len(shown)})", markup=False
        )


def _points(shift: float) -> str:
    return "" if math.isnan(shift) else f"{100 * shift:+.1f} %"


def _signed(score: float) -> str:
    return "" if math.isnan(score) else f"{score:+.4f}"
