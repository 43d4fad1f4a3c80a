"""What a task expects of a model's circuit, held against what was found. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitfind.check.evidence import judge_evidence
from circuitfind.check.known import judge_known
from circuitfind.check.reasons import Kind, Reason, brief, some
from circuitfind.circuit.backup import stand_ins
from circuitfind.circuit.graph import Circuit
from circuitfind.names import Kind as NodeKind
from circuitfind.names import Node, parse_node
from circuitfind.task.findings import Contains, ExpectBackups, Range, Strongest, Top

if TYPE_CHECKING:
    from circuitfind.check.cases import Case
    from circuitfind.circuit.scores import Scores
    from circuitfind.session import Session
    from circuitfind.summary import Discovery


def judge(case: Case, session: Session, found: Discovery) -> Iterator[Reason]:
    """What does not hold, in the order in which a task file says it."""
    expect, circuit, summary = case.expect, found.circuit, found.summary
    evaluation = circuit.evaluations[0]
    yield from _number("metric", "accuracy", summary["prompts"]["accuracy"], expect.accuracy)
    told = f"faithfulness under {evaluation.ablation} ablation"
    yield from _number("faithfulness", told, evaluation.faithfulness.value, expect.faithfulness)
    yield from _number("edges", "number of nodes", len(circuit.nodes), expect.nodes)
    yield from _number("edges", "number of edges", len(circuit.edges), expect.edges)
    yield from _contains(circuit, expect.contains, expect.excludes)
    if expect.strongest is not None:
        yield from _strongest(found.scores, expect.strongest)
    if expect.top is not None:
        yield from _top(found.scores, expect.top)
    yield from _negative(found.scores, expect.negative)
    yield from judge_known(session, found, expect)
    if expect.backups is not None:
        yield from _backups(circuit, summary["backups"], expect.backups)
    yield from judge_evidence(case, session, found)


def _reason(kind: Kind, text: str, lines: Sequence[str] = ()) -> Reason:
    return Reason(kind, "expectation", text, tuple(lines))


def _number(kind: Kind, what: str, value: float, limits: Range | None) -> Iterator[Reason]:
    if limits is not None and not limits.holds(value):
        yield _reason(kind, f"the {what} is {brief(value)}, expected {limits.words}")


def _contains(circuit: Circuit, must: Contains | None, must_not: Contains | None) -> Iterator[Reason]:
    there = {"nodes": {str(n) for n in circuit.nodes}, "edges": {str(e) for e in circuit.edges}}
    for what, names in there.items():
        missing = [name for name in (getattr(must, what) if must else ()) if name not in names]
        extra = [name for name in (getattr(must_not, what) if must_not else ()) if name in names]
        if missing:
            yield _reason("edges", f"the circuit lacks {what} that it must contain: {some(missing)}", missing)
        if extra:
            yield _reason("edges", f"the circuit has {what} that it must not contain: {some(extra)}", extra)


def _strongest(scores: Scores, expected: Strongest) -> Iterator[Reason]:
    values = scores.node_values
    for kind, name in ((NodeKind.HEAD, expected.head), (NodeKind.MLP, expected.mlp)):
        if name is None:
            continue
        rows = [row for row, node in enumerate(scores.anatomy.writers) if node.kind is kind]
        yield from _first([str(scores.anatomy.writers[row]) for row in rows], values[rows], name, kind.name)
    if expected.edge is None:
        return
    if scores.level != "edge":
        text = f"the strongest edge cannot be told: {scores.method} scores nodes"
        yield _reason("scores", text)
        return
    between = [
        (edge, scores.values[w, r])
        for w, r in np.argwhere(scores.anatomy.edge_mask)
        if _is_head((edge := scores.anatomy.edge_at(int(w), int(r))).sender) and _is_head(edge.receiver)
    ]
    yield from _first(
        [str(edge) for edge, _ in between], np.array([v for _, v in between]), expected.edge, "edge"
    )


def _is_head(node: Node) -> bool:
    return node.kind in (NodeKind.HEAD, NodeKind.KV)


def _first(names: Sequence[str], values: np.ndarray, expected: str, what: str) -> Iterator[Reason]:
    by_name = {
        name: float(abs(value)) for name, value in zip(names, values, strict=True) if np.isfinite(value)
    }
    best = max(by_name, key=by_name.__getitem__, default=None)
    if best != expected:
        thing = {"MLP": "MLP", "edge": "edge between heads"}.get(what, what.lower())
        own = f", {expected} has {brief(by_name.get(expected))}"
        strength = "" if best is None else f" ({brief(by_name[best])}{own})"
        yield _reason("scores", f"the strongest {thing} is {best}{strength}, expected {expected}")


def _top(scores: Scores, expected: Top) -> Iterator[Reason]:
    strengths = {
        str(node): abs(float(value))
        for node, value in zip(scores.anatomy.writers, scores.node_values, strict=True)
        if node.kind is NodeKind.HEAD and np.isfinite(value)
    }
    first = sorted(strengths, key=lambda name: -strengths[name])[: expected.count]
    there = [name for name in expected.heads if name in first]
    needed = expected.at_least or len(expected.heads)
    if len(there) < needed:
        missing = [name for name in expected.heads if name not in first]
        yield _reason(
            "scores",
            f"{len(there)} of {len(expected.heads)} heads are among the {expected.count} strongest, expected {needed}",
            [f"not there {some(missing)}", f"strongest {some(first)}"],
        )


def _negative(scores: Scores, names: Sequence[str]) -> Iterator[Reason]:
    values = {
        str(node): float(value)
        for node, value in zip(scores.anatomy.writers, scores.node_values, strict=True)
    }
    wrong = [f"{name} ({brief(values.get(name))})" for name in names if not values.get(name, 0.0) < 0]
    if wrong:
        yield _reason("scores", f"the effect is not negative as expected: {some(wrong)}")


def _backups(circuit: Circuit, search: Any, expected: ExpectBackups) -> Iterator[Reason]:
    if search is None or search["skipped"]:
        why = "the settings say not to" if search is None else search["skipped"]
        yield _reason("backups", f"backups were not searched for: {why}")
        return
    kinds = {str(one.node): one.kind for one in circuit.backups}
    standing = {str(one.node) for one in stand_ins(circuit)}
    told = (
        f"found: {some(sorted(f'{name} ({kind})' for name, kind in kinds.items()))}"
        if kinds
        else "none found"
    )
    missing = [name for name in expected.contains if name not in standing]
    extra = [name for name in expected.excludes if name in standing]
    if missing:
        yield _reason("backups", f"not found as backups: {some(missing)} ({told})")
    if extra:
        yield _reason("backups", f"found as backups, which they must not be: {some(extra)}")
    for name, kind in expected.kinds.items():
        if kinds.get(str(parse_node(name))) != kind:
            yield _reason("backups", f"{name} is found as {kinds.get(name, 'nothing')}, expected {kind}")
