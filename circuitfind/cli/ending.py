"""What ``discover`` says at its end: the verdict on one screen, and the command to try next. ``show`` tells everything."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitfind.cli.common import Screen, duration, number, share, wanted
from circuitfind.cli.lines import START, interval, print_line, print_title, shortened, under
from circuitfind.cli.verdict import across, below, prompts_line

LINES, COLUMNS = 24, 80
"""The screen that it fits."""

SHOWN = 2
"""Reasons that are told; `show` has them all."""

LOW = 0.5
"""A rank correlation of proposed and exact scores below it is worth a warning."""


@dataclass(frozen=True)
class Line:
    """A text behind a title. ``weight`` says how soon it is left out where there is no room: 0 never, 9 first."""

    title: str
    text: str
    weight: int = 0
    style: str = ""

    @property
    def height(self) -> int:
        """Lines that it takes on the smallest screen."""
        return len(textwrap.wrap(self.text, COLUMNS - START, break_on_hyphens=False)) or 1


def show_ending(screen: Screen, summary: Any, circuit: Any) -> None:
    """Print what was found, what speaks for and against it, where it is, and what to do next; a title is told once."""
    print_title(screen, summary["conditions"], f"a circuit found by {summary['conditions']['method']}")
    said = ""
    for line in fitting([*_lines(summary, circuit)], LINES - 1):
        print_line(screen, line.title if line.title != said else "", (line.text, line.style))
        said = line.title


def fitting(lines: Sequence[Line], room: int) -> list[Line]:
    """As many lines as there is room for; those of the largest weight go first, of equals the last."""
    kept = list(lines)
    while sum(line.height for line in kept) > room:
        out = max(range(len(kept)), key=lambda i: (kept[i].weight, i))
        if not kept[out].weight:
            break
        del kept[out]
    return kept


def _lines(summary: Any, circuit: Any) -> Iterator[Line]:
    from circuitfind.circuit.counts import parts_in_words

    conditions, counts, evidence = summary["conditions"], summary["counts"], summary["evidence"]
    yield from _verdict(evidence)
    found = [f"{interval(one['faithfulness'])} under {one['ablation']}" for one in summary["evaluations"]]
    yield Line("faithfulness", f"{', '.join(found)} ablation, on its own prompts")
    if evidence is not None:
        yield from _held_out(evidence)
    kept = f"{counts['nodes']} nodes ({parts_in_words(circuit)}), {counts['edges']} of {counts['edges_in_model']} edges"
    minimal = ", minimal" if summary["minimal"] else ""
    yield Line("kept", f"{kept} ({share(counts['share_of_edges'])}){minimal}")
    yield Line("under", under(conditions, conditions["direction"]), 4)
    told = prompts_line(summary["prompts"])
    yield Line("prompts", told, 1 if "left out" in told else 3)
    if summary["known"]:
        known = summary["known"]
        text = f"precision {known['precision']:.2f}, recall {known['recall']:.2f} over its {known['level']}"
        yield Line("known circuit", text, 5)
    for title, text in (*across(summary), *below(summary, circuit)):
        yield Line(title or "units", text, 6)
    yield from _backups(summary)
    for text in warnings(summary):
        yield Line("warning", text, 2)
    scored = {name: abs(s) for name, s in circuit.edge_scores.items() if s == s and s}
    if scored:
        first = sorted(scored, key=lambda name: -scored[name])[:3]
        names = ", ".join(f"{shortened(name)} {circuit.edge_scores[name]:+.2g}" for name in first)
        yield Line("strongest", names, 8)
    passes = f"{summary['forward_passes']} forward and {summary['backward_passes']} backward passes"
    yield Line("cost", f"{duration(summary['seconds'])}, {passes}", 5)
    folder = Path(summary["folder"])
    yield Line("run", str(folder))
    for title, path in _files(summary, folder):
        yield Line(title, path, 1 if title == "picture" else 0)
    for command, why in next_commands(summary):
        yield Line("next", f"{command}  # {why}" if why else command)


def _verdict(found: Any) -> Iterator[Line]:
    from circuitfind.evidence.certify import listed

    if found is None:
        yield Line("verdict", "none: it was not held against controls on new prompts")
        return
    asked = f"at faithfulness >= {found['faithfulness']:g} under {listed(found['ablations'])} ablation"
    style = "green" if found["certified"] else "red" if found["refuted"] else "yellow"
    yield Line("verdict", f"{'certified' if found['certified'] else 'not certified'} {asked}", style=style)
    for reason in found["reasons"][:SHOWN]:
        yield Line("verdict", f"- {reason}")
    more = len(found["reasons"]) - SHOWN
    if more > 0:
        yield Line("verdict", f"- and {number(more, 'reason')} more")
    if found["holds_under"] and not found["certified"] and not found["refuted"]:
        yield Line("verdict", f"it holds under {listed(found['holds_under'])} ablation")


def _held_out(found: Any) -> Iterator[Line]:
    from circuitfind.evidence.certify import listed

    prompts = found["prompts"]
    measured = ", ".join(
        f"{interval(one['faithfulness'])} under {one['ablation']}" for one in found["measured"]
    )
    new = "new prompts" if prompts["held_out"] else "prompts, those that it was pruned on"
    title = "held out" if prompts["held_out"] else "measured on"
    yield Line(title, f"{measured or 'nothing measured'}; {prompts['right']} {new}")
    words = {True: "beats", False: "no better than", None: "not held against"}
    told = []
    for how, word in words.items():
        names = [one["name"] for one in found["controls"] if one["beaten"] is how]
        told += [f"{word} {listed(names)}"] if names else []
    if told:
        yield Line("controls", "; ".join(told))


def _backups(summary: Any) -> Iterator[Line]:
    found = summary["backups"]
    if found is None:
        if not summary["conditions"]["model_b"]:  # between two models there is nothing to look for
            yield Line("backups", "not looked for", 3)
        return
    yield Line("backups", f"not searched: {found['skipped']}" if found["skipped"] else found["verdict"], 3)
    complete = summary["completeness"]
    if complete is not None:
        left = interval(complete["without_circuit"])
        yield Line("completeness", f"{left} is left without the circuit (0 is complete)", 6)


def warnings(summary: Any) -> Iterator[str]:
    """What a reader should know before the numbers are passed on, beside the reasons of the verdict."""
    from circuitfind.evidence.certify import ENOUGH

    evidence, checked, low = summary["evidence"], summary["verification"], summary["precision_check"]
    if evidence is None and summary["prompts"]["used"] < ENOUGH:
        yield f"only {number(summary['prompts']['used'], 'prompt')}; {ENOUGH} are the least that a verdict rests on"
    if not summary["minimal"]:
        yield "not minimal: single edges may still be spare"
    if checked is not None and checked["rank_correlation"] is not None and checked["rank_correlation"] < LOW:
        agreed = f"{checked['rank_correlation']:.2f}"
        yield f"{checked['proposed_by']} and exact patching rank the strongest {checked['level']}s unlike ({agreed})"
    if low is not None and low["overlap"] < 0.9:
        yield f"scored in {low['precision']}: only {share(low['overlap'])} of the {low['k']} strongest as in fp32"
    for text in (evidence or {}).get("cautions", ()):
        if not text.startswith("not held against"):  # told by the controls
            yield text


def _files(summary: Any, folder: Path) -> Iterator[tuple[str, str]]:
    from circuitfind.summary import report_file

    report = report_file(folder)
    if report is not None:
        yield "report", report
    for path in summary["pictures"]:
        yield "picture", path


def next_commands(summary: Any) -> Iterator[tuple[str, str]]:
    """What to do now, with why where it does not say so itself: at most two, chosen by what happened."""
    from circuitfind.cli import COMMANDS
    from circuitfind.evidence.certify import ENOUGH

    evidence, conditions = summary["evidence"], summary["conditions"]
    run = _run(summary)
    if conditions["model_b"]:
        yield f"circuitfind show {run} --nodes", "every part that changed"
        return
    if evidence is None:
        yield f"circuitfind evaluate {run}", "measure it on new prompts, against controls"
    elif evidence["certified"]:
        yield f"circuitfind evaluate {run} --parts all", "curves, tests, stability"
    elif evidence["prompts"]["right"] < ENOUGH:
        more = max(2 * ENOUGH, 2 * summary["prompts"]["used"])
        given = "discover" in wanted.words
        again = shlex.join(wanted.words if given else ["discover", conditions["task"]])
        yield f"circuitfind {again} --count {more}", "too few prompts for a verdict"
    elif evidence["holds_under"] and not evidence["refuted"]:
        name = evidence["holds_under"][0]
        yield f"circuitfind show {run}", "why it is not certified"
        yield f"circuitfind certify {run} --ablation {name}", ""
        return
    else:
        yield f"circuitfind show {run}", "why it is not certified"
    if summary["backups"] is None:
        yield f"circuitfind backups {run}", "what stands in when it is removed"
    elif "view" in COMMANDS:
        yield f"circuitfind view {run}", "the report in a browser"


def _run(summary: Any) -> str:
    """The run's name; its folder, where commands would not look for it."""
    from circuitfind.output.store import Store

    folder = Path(summary["folder"])
    here = folder.parent.resolve() == Store().root.resolve()
    return shlex.quote(summary["run"] if here else str(folder))
