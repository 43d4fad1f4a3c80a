"""Write the tables of docs/known-circuits.md from the task files.

python scripts/known_cases.py            write
python scripts/known_cases.py --check    exit 1 if they are stale (the tests do this)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache

from generated import ROOT, main

from circuitfind.config import MODELS_VARIABLE
from circuitfind.task.findings import Contains, Expect, Known, Range
from circuitfind.task.spec import TaskSpec, find_tasks, load_task
from circuitfind.zoo import is_planted

PAGE = ROOT / "docs" / "known-circuits.md"
START, END = "<!-- {}: made by scripts/known_cases.py -->", "<!-- /{} -->"
RUN = (f"${MODELS_VARIABLE}/modadd-113", f"${MODELS_VARIABLE}/indhead-1h")
"""Models outside the package on which cases were run."""
TITLES = {
    1: "Tier 1: nothing to download, every commit",
    2: "Tier 2: small models of the hub, and folders",
    3: "Tier 3: a GPU",
}


@cache
def specs() -> list[TaskSpec]:
    """Every task of the project, by name."""
    return [load_task(path) for path in find_tasks([ROOT / "tasks"]).values()]


def cases(tier: int) -> Iterator[tuple[TaskSpec, str, Expect]]:
    """The cases of a tier, in the order of their tasks."""
    for spec in specs():
        for model in spec.expect:
            yield from ((spec, model, expect) for expect in spec.expect_of(model) if expect.tier == tier)


def was_run(model: str, tier: int) -> bool:
    """Whether a case was run with this tool, and not only its prompts and names tested."""
    return tier == 1 or model in RUN


def table(tier: int) -> str:
    """The cases of a tier."""
    rows = [
        "| task | model | case | held against | what is expected | run |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for spec, model, expect in cases(tier):
        run = "yes" if was_run(model, tier) else "no"
        cells = (
            f"`{spec.name}`",
            f"`{model}`",
            expect.name or "",
            against(spec, model, expect),
            told(expect),
            run,
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def against(spec: TaskSpec, model: str, expect: Expect) -> str:
    """Where the truth comes from."""
    if is_planted(model):
        return "its written weights"
    found = spec.known_of(model, expect.against)
    names = [one.name or "known" for one in found if one.replicates][:1] + list(expect.refuses)
    return ", ".join(f"`{name}`" for name in names) or "nothing published"


def told(expect: Expect) -> str:
    """What is expected, in a line."""
    parts = [
        *number("accuracy", expect.accuracy),
        *number("faithfulness", expect.faithfulness),
        *number("nodes", expect.nodes),
        *number("edges", expect.edges),
        *number("precision", expect.precision),
        *number("recall", expect.recall),
        *number("ROC-AUC", expect.roc_auc),
        *named("in it", expect.contains),
        *named("not in it", expect.excludes),
    ]
    if expect.top is not None:
        least = expect.top.at_least or len(expect.top.heads)
        parts.append(f"{least} of {len(expect.top.heads)} heads among the {expect.top.count} strongest")
    if expect.strongest is not None:
        given = filter(None, (expect.strongest.head, expect.strongest.mlp, expect.strongest.edge))
        parts.append("strongest " + ", ".join(f"`{name}`" for name in given))
    if expect.negative:
        parts.append("negative " + names(expect.negative))
    if expect.backups is not None:
        parts += [f"backups {names(expect.backups.contains)}"] if expect.backups.contains else []
        parts += [f"no backups {names(expect.backups.excludes)}"] if expect.backups.excludes else []
    parts += number("stability", expect.stability)
    if expect.certified is not None:
        parts.append("certified" if expect.certified else "not certified")
    if expect.refuses:
        parts.append("refused a certificate: " + names(expect.refuses))
    how = {
        key: value
        for key, value in expect.settings.model_dump(exclude_defaults=True).items()
        if key != "count"
    }
    with_settings = f" (with {', '.join(f'{key} {value}' for key, value in how.items())})" if how else ""
    return "; ".join(filter(None, parts)) + with_settings


def names(several: tuple[str, ...]) -> str:
    """Names in code font."""
    return ", ".join(f"`{name}`" for name in several)


def number(what: str, limits: Range | None) -> list[str]:
    """A range in words."""
    if limits is None:
        return []
    low, high = limits.min, limits.max
    if low is not None and high is not None:
        return [f"{what} {low:g}" if low == high else f"{what} {low:g} to {high:g}"]
    return [f"{what} >= {low:g}"] if low is not None else [f"{what} <= {high:g}"]


def named(where: str, part: Contains | None) -> list[str]:
    """How many nodes and edges must or must not be in it."""
    if part is None:
        return []
    counts = ((len(part.nodes), "node"), (len(part.edges), "edge"))
    return [", ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in counts if n) + f" {where}"]


def sources() -> str:
    """The published circuits."""
    rows = [
        "| task | model | list | heads | MLPs | edges | source | ablation it was stated under |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for spec in specs():
        for model in spec.known:
            rows += [row(spec, model, one) for one in spec.known_of(model)]
    return "\n".join(rows)


def row(spec: TaskSpec, model: str, known: Known) -> str:
    """One published circuit."""
    name = f"`{known.name}`" + ("" if known.replicates else " (does not replicate)")
    sizes = (str(len(part) or "") for part in (known.heads, known.mlps, known.edges))
    return (
        "| "
        + " | ".join((f"`{spec.name}`", f"`{model}`", name, *sizes, known.source or "", known.ablation or ""))
        + " |"
    )


def counts() -> str:
    """How many cases there are, and how many of them were run."""
    every = {tier: list(cases(tier)) for tier in TITLES}
    ran = {tier: sum(was_run(model, tier) for _, model, _ in found) for tier, found in every.items()}
    total = sum(map(len, every.values()))
    told = ", ".join(f"{len(found)} in tier {tier} ({ran[tier]} run)" for tier, found in every.items())
    return (
        f"There are {total} cases of {len({s.name for f in every.values() for s, _, _ in f})} tasks: {told}."
    )


def wanted(text: str) -> str:
    """The page with its made parts as they should be."""
    made = {"counts": counts(), "lists": sources()}
    made |= {f"tier {tier}": f"## {title}\n\n{table(tier)}" for tier, title in TITLES.items()}
    for name, part in made.items():
        start, end = START.format(name), END.format(name)
        head, rest = text.split(start)
        text = f"{head}{start}\n{part}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    sys.exit(main({PAGE: wanted(PAGE.read_text(encoding="utf-8"))}))
