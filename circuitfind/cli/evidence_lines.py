"""What evidence says, line by line: the verdict, and each part of an evaluation. A line is a title and a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from circuitfind.cli.common import share
from circuitfind.cli.lines import interval

Lines = Iterator[tuple[str, str]]

SHOWN = 4
"""Names that a line lists."""


def evidence_lines(found: Any) -> Lines:
    """The verdict with its reasons, what it was measured on, and what it was held against."""
    from circuitfind.evidence.certify import listed

    if found is None:
        return
    under = f"at faithfulness >= {found['faithfulness']:g} with 95 % confidence under"
    asked = f"{listed(found['ablations'])} ablation"
    yield "verdict", f"{'certified' if found['certified'] else 'not certified'} {under} {asked}"
    for reason in found["reasons"]:
        yield "", f"- {reason}"
    if found["holds_under"] and not found["certified"] and not found["refuted"]:
        yield "", f"it holds under {listed(found['holds_under'])} ablation"
    prompts = found["prompts"]
    measured = [f"{interval(one['faithfulness'])} under {one['ablation']}" for one in found["measured"]]
    right = f"{prompts['right']} of {prompts['aligned']} {'new ' if prompts['held_out'] else ''}prompts answered rightly"
    if prompts["held_out"] is False:
        right += ", those that it was pruned on: there are too few others"
    told = f"{', '.join(measured) or 'nothing'}; {right}"
    yield "held out" if prompts["held_out"] else "measured on", told
    for i, one in enumerate(found["controls"]):
        yield "" if i else "controls", _control(one)


def _control(found: Any) -> str:
    how = {True: "beats", False: "no better than", None: "not held against"}[found["beaten"]]
    return f"{how} {found['name']}: {found['what']}"


def part_lines(data: Mapping[str, Any]) -> Lines:
    """Everything else that an evaluation found."""
    for name, tell in _PARTS.items():
        if data[name]:
            yield from tell(data[name])


def _as_nodes(found: Any) -> Lines:
    under = ", ".join(f"{interval(one['faithfulness'])} under {one['ablation']}" for one in found)
    yield "as nodes", f"{under}, with all {found[0]['edges']} edges among its nodes"


def _templates(found: Any) -> Lines:
    some = [one for one in found if one["faithfulness"]["value"] is not None]
    if len(some) > 1:
        values = [one["faithfulness"]["value"] for one in some]
        low, high = min(values), max(values)
        names = [some[values.index(value)]["template"] for value in (low, high)]
        yield (
            "templates",
            f"{len(found)}, faithfulness from {low:.3f} ({names[0]}) to {high:.3f} ({names[1]})",
        )


def _outliers(found: Any) -> Lines:
    for i, one in enumerate(found[:SHOWN]):
        told = f"{one['prompt']!r}: {one['circuit']:.3f}, model {one['full']:.3f} (z {one['z']:+.1f})"
        yield "" if i else "outliers", told
    if len(found) > SHOWN:
        yield "", f"and {len(found) - SHOWN} more"


def _completeness(found: Any) -> Lines:
    yield "completeness", f"{interval(found['left']['left'])} is left without the circuit (0 is complete)"
    for level in ("nodes", "edges"):
        one = found[level]
        worst = f"{one['worst']['incompleteness']:.3f} at worst of {len(one['knock_outs'])} sets"
        told = f"with random {level} knocked out of both, circuit and model differ by {interval(one['mean'])}, {worst}"
        yield "", told


def _minimality(found: Any) -> Lines:
    for level in ("edges", "nodes"):
        one = found[level]
        spare = one["superfluous"]
        told = (
            f"{len(spare)} of {len(one['parts'])} {level} may add nothing ({share(one['superfluous_share'])})"
        )
        yield "" if level == "nodes" else "minimality", told + _some(spare)


def _curve(found: Any) -> Lines:
    ladder = ", ".join(f"{one['value']:.3f} at {100 * float(at):g} %" for at, one in found["at"].items())
    yield (
        "curve",
        f"CMD {interval(found['cmd'])} ranked by |score|, CPR {interval(found['cpr'])} by signed score",
    )
    logs = f"CMD {found['cmd_log']['value']:.3f}, CPR {found['cpr_log']['value']:.3f}"
    yield "", f"faithfulness {ladder} of the edges; on a log axis {logs}"
    band = found["random"]
    if band:
        told = f"CMD {band['cmd']['mean']:.3f}, CPR {band['cpr']['mean']:.3f}"
        yield "", f"{band['count']} random rankings: {told}"


def _tests(found: Any) -> Lines:
    for i, one in enumerate(found["tests"]):
        told = f"{one['name']}: {one['meaning']} (p {one['p_value']:.2g})"
        yield "" if i else "tests", told


def _told(title: str) -> Callable[[Any], Lines]:
    return lambda found: iter([(title, found["text"])])


def _known(found: Any) -> Lines:
    for i, one in enumerate(found["lists"]):
        first, *others = one["text"].splitlines()
        yield "" if i else "known circuit", first
        for text in others:
            yield "", text


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f": {', '.join(names[:SHOWN])}{more}" if names else ""


_PARTS: dict[str, Callable[[Any], Lines]] = {
    "as_nodes": _as_nodes,
    "by_template": _templates,
    "outliers": _outliers,
    "completeness": _completeness,
    "minimality": _minimality,
    "curve": _curve,
    "tests": _tests,
    "stability": _told("stability"),
    "counterfactuals": _told("counterfactuals"),
    "seeds": _told("seeds"),
    "known": _known,
}
