"""What results look like in a notebook: for each class a function that makes its card (circuitfind/shown.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from circuitfind.attribution.graph import NodeKind
from circuitfind.attribution.prune import PrunedGraph
from circuitfind.backups.report import BackupReport
from circuitfind.circuit.counts import parts_in_words
from circuitfind.circuit.dose import Reading
from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit, Conditions, Evaluation
from circuitfind.circuit.scores import Scores
from circuitfind.config import ABLATIONS
from circuitfind.errors import RunError
from circuitfind.evidence.certify import Verdict
from circuitfind.evidence.report import Evidence
from circuitfind.output import backup_text
from circuitfind.output.card import Card, Table
from circuitfind.output.dose_text import sentences
from circuitfind.output.dot import to_dot
from circuitfind.output.dot_attribution import attribution_dot
from circuitfind.output.dot_features import feature_dot
from circuitfind.output.dot_style import signed
from circuitfind.output.draw import dot_binary, svg_of

ROWS = 10
"""Of a table that may have thousands."""

FEW = 6
"""Doses that are all listed; of more, every quarter."""

PATIENCE = 20.0
"""Seconds that a picture may take; a cell that only shows something is not to hang."""


class _Discovery(Protocol):
    """``circuitfind.summary.Discovery``, which lies on a higher storey."""

    @property
    def circuit(self) -> Circuit: ...
    @property
    def folder(self) -> Path: ...
    @property
    def summary(self) -> Mapping[str, Any]: ...


class _Patched(Protocol):
    """``circuitfind.patch_runs.Patched``, likewise."""

    @property
    def readings(self) -> Sequence[Reading]: ...
    @property
    def conditions(self) -> Mapping[str, Any]: ...
    @property
    def folder(self) -> Path: ...
    @property
    def files(self) -> Sequence[Path]: ...


def discovery(found: _Discovery) -> Card:
    """The verdict, the evaluations and the picture of a run."""
    circuit, summary = found.circuit, found.summary
    facts = [("under", _under(circuit.conditions)), ("kept", _kept(circuit))]
    prompts = summary["prompts"]
    facts.append(("prompts", f"{prompts['used']} used, accuracy {_share(prompts['accuracy'])}"))
    proof = summary["evidence"]
    if proof is not None:
        facts.append(("verdict", proof["verdict"]))
    if summary["backups"] is not None:
        facts.append(("backups", str(summary["backups"]["verdict"] or summary["backups"]["skipped"])))
    passes = f"{summary['forward_passes']:g} forward and {summary['backward_passes']:g} backward passes"
    facts.append(("cost", f"{summary['seconds']:g} s, {passes}, {summary['circuits_tried']} circuits tried"))
    facts.append(("run", str(found.folder)))
    if summary.get("report"):
        facts.append(("report", str(summary["report"])))
    title = _title(circuit.conditions, f"a circuit found by {circuit.conditions.method}")
    return _pictured(
        title,
        tuple(facts),
        (_evaluations(circuit.evaluations), _edges(circuit)),
        lambda: to_dot(circuit, caption=False),
    )


def circuit(found: Circuit) -> Card:
    """The picture of a circuit; where there is no Graphviz, all the more of its edges."""
    facts = (("under", _under(found.conditions)), ("kept", _kept(found)))
    tables = (_evaluations(found.evaluations), _edges(found))
    return _pictured(
        _title(found.conditions, "a circuit"), facts, tables, lambda: to_dot(found, caption=False)
    )


def feature_graph(found: FeatureGraph) -> Card:
    """The picture of a feature graph and its strongest nodes."""
    facts = (
        ("under", _under(found.conditions)),
        ("kept", f"{len(found.features)} of {found.n_active:,} features that fire, {len(found.edges)} edges"),
    )
    rows = sorted(found.node_scores.items(), key=lambda item: -_size(item[1]))
    table = _table(
        ("node", "score", "label"), [(n, _score(s), found.labels.get(n, "")) for n, s in rows], "nodes"
    )
    title = _title(found.conditions, "a feature graph")
    return _pictured(title, facts, (_evaluations(found.evaluations), table), lambda: feature_dot(found))


def attribution_graph(found: PrunedGraph) -> Card:
    """The picture of one prompt's attribution graph, and what the model expects next."""
    graph = found.graph
    facts = (
        ("prompt", "".join(graph.pieces)),
        (
            "kept",
            f"{found.count(NodeKind.FEATURE)} of {graph.n_features} features, {len(found.weights)} edges",
        ),
        ("replacement", f"{found.full.replacement:.3f}; {found.pruned.replacement:.3f} as pruned"),
        ("completeness", f"{found.full.completeness:.3f}; {found.pruned.completeness:.3f} as pruned"),
    )
    logits = zip(graph.logit_pieces, graph.probability, strict=True)
    table = _table(("next token", "probability"), [(repr(p), f"{x:.3f}") for p, x in logits], "")
    title = f"attribution graph of {graph.model} with {graph.dictionaries}"
    return _pictured(title, facts, (table,), lambda: attribution_dot(found))


def scores(found: Scores) -> Card:
    """The strongest nodes or edges."""
    table = found.values
    scored = int(math.prod(table.shape)) - int((table != table).sum())
    facts = (
        ("scored", f"{scored:,} {found.level}s"),
        ("under", f"{found.direction}, {found.ablation} ablation"),
        ("in units of", found.metric),
    )
    extra = {name: array for name, array in found.extra.items() if array.shape == table.shape}
    names = tuple(extra)
    rows: list[tuple[str, ...]] = []
    if found.level == "edge":
        for edge, score in found.top_edges(ROWS):
            at = found.anatomy.index_of(edge)
            rows.append((str(edge), signed(score), *(_score(float(extra[n][at])) for n in names)))
    else:
        for node, score in found.top_nodes(ROWS):
            row = found.anatomy.row_of(node)
            rows.append((str(node), signed(score), *(_score(float(extra[n][row])) for n in names)))
    tables = [_table((found.level, "score", *names), rows, f"strongest {found.level}s", of=scored)]
    if found.level == "edge":
        nodes = [(str(node), signed(score)) for node, score in found.top_nodes(ROWS)]
        tables.append(_table(("node", "score"), nodes, "strongest nodes"))
    return Card(f"scores by {found.method}", facts, tuple(tables))


def evaluation(found: Evaluation) -> Card:
    """How faithful a circuit is under one ablation."""
    facts = (("metric", found.metric),)
    title = f"faithfulness {found.faithfulness} under {found.ablation} ablation"
    return Card(title, facts, (_evaluations([found]),))


def evidence(found: Evidence) -> Card:
    """What was measured on new prompts, and the controls."""
    told = found.prompts
    where = {True: "new prompts", False: "the prompts that it was pruned on", None: "prompts"}[told.held_out]
    facts = (
        ("circuit", f"{found.edges} of {found.edges_in_model:,} edges"),
        ("prompts", f"{told.right} of {told.aligned} {where} answered rightly"),
        ("parts", ", ".join(found.parts) or "none"),
        *((("notes", "\n".join(found.notes)),) if found.notes else ()),
    )
    word = {True: "beaten", False: "NOT beaten", None: "not made"}
    controls = [(one.name, word[one.beaten], one.what) for one in found.controls]
    tables = (_evaluations(found.measured), _table(("control", "", "what"), controls, "controls"))
    of = found.conditions
    return Card(f"{of['task']} on {of['model']}: evidence", facts, tables)


def verdict(found: Verdict) -> Card:
    """Certified or not, and why."""
    under = f"at faithfulness ≥ {found.faithfulness:g} under {' and '.join(found.ablations)} ablation"
    facts = [("because", "\n".join(found.reasons))] if found.reasons else []
    facts += [("mind", "\n".join(found.cautions))] if found.cautions else []
    return Card(f"{'certified' if found.certified else 'not certified'} {under}", tuple(facts))


def backups(found: BackupReport) -> Card:
    """What stands in for what, and the evidence for it."""
    of = found.conditions
    seeds = "; ".join(f"{reader}: {', '.join(names)}" for reader, names in found.seeds.items() if names)
    facts = (("seeds", seeds or "none"), *((("notes", "\n".join(found.notes)),) if found.notes else ()))
    head = ("name", "class", "covers", "reader", "direct effect", "repaired", "frozen", "interaction")
    table = _table(head, [backup_text.row(one) for one in found.findings], "")
    groups = [
        (
            backup_text.joined(g.primaries),
            backup_text.joined(g.backups),
            backup_text.percent(g.alone),
            backup_text.percent(g.together),
        )
        for g in found.groups
        if g.redundant
    ]
    told = _table(("primaries", "backups", "lost alone", "lost together"), groups, "redundant groups")
    return Card(
        f"{of.get('task', '')} on {of.get('model', '')}: {backup_text.verdict(found)}", facts, (table, told)
    )


def doses(found: _Patched) -> Card:
    """The curve of each patch, and what it says."""
    of, facts = found.conditions, []
    for reading in found.readings:
        said = [f"{title}: {text}" if title else text for title, text in sentences(reading)]
        facts.append((reading.curve.label, "\n".join(said)))
    rows = []
    for reading in found.readings:
        every = zip(reading.curve.alphas, reading.metric, reading.accuracy, strict=True)
        few = len(reading.metric) <= FEW
        rows += [
            (reading.curve.label, f"{alpha:g}", str(metric), backup_text.percent(accuracy.value))
            for alpha, metric, accuracy in every
            if few or (4 * alpha).is_integer()
        ]
    table = Table(("patched", "alpha", f"{of['metric']} [95 %]", "accuracy"), tuple(rows))
    svg = next((path for path in found.files if path.suffix == ".svg" and path.is_file()), None)
    title = f"{of['task']} on {of['model']}: doses, {of['direction']}, {of['ablation']} ablation"
    picture = "" if svg is None else svg.read_text(encoding="utf-8")
    return Card(title, (*facts, ("files", str(found.folder))), (table,), svg=picture, alt=title)


# Parts of cards.


def _title(of: Conditions, what: str) -> str:
    return f"{of.task} on {of.model}: {what}"


def _under(of: Conditions) -> str:
    return (
        f"{of.ablation} ablation, counterfactual {of.counterfactual}, metric {of.metric}, {of.direction}, "
        f"pruned to {of.rule}"
    )


def _kept(found: Circuit) -> str:
    return (
        f"{len(found.nodes)} nodes ({parts_in_words(found)}), {len(found.edges)} of {found.anatomy.n_edges:,} edges "
        f"({_share(found.share_of_edges)})"
    )


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _size(score: float) -> float:
    return -1.0 if math.isnan(score) else abs(score)


def _score(score: float) -> str:
    return "–" if math.isnan(score) else signed(score)


def _table(
    head: Sequence[str], rows: Sequence[tuple[str, ...]], title: str, *, of: int | None = None
) -> Table:
    """The first rows, and how many there are more."""
    left = (len(rows) if of is None else of) - ROWS
    return Table(tuple(head), tuple(rows[:ROWS]), title, f"and {left:,} more" if left > 0 else "")


def _evaluations(found: Sequence[Evaluation]) -> Table:
    rows = [
        (
            one.ablation,
            str(one.faithfulness),
            f"{one.circuit:.3f}",
            f"{one.full:.3f}",
            f"{one.empty:.3f}",
            str(one.n_prompts),
        )
        for one in sorted(found, key=lambda e: ABLATIONS.index(e.ablation) if e.ablation in ABLATIONS else 99)
    ]
    return Table(("ablation", "faithfulness [95 %]", "circuit", "model", "empty", "prompts"), tuple(rows))


def _edges(found: Circuit) -> Table:
    rows = sorted(found.edge_scores.items(), key=lambda item: -_size(item[1]))
    named = [(name, _score(score)) for name, score in rows]
    return _table(("edge", "score"), named, "strongest edges")


def _pictured(title: str, facts: tuple[tuple[str, str], ...], tables: tuple[Table, ...], dot: Any) -> Card:
    """With its picture, or with the reason why there is none."""
    if dot_binary() is None:
        return Card(title, facts, tables, note="no picture: Graphviz's dot is not installed")
    try:
        return Card(title, facts, tables, svg=_drawn(dot()), alt=title)
    except RunError as error:
        return Card(title, facts, tables, note=f"no picture: {error.what}")


@lru_cache(maxsize=16)
def _drawn(text: str) -> str:
    return svg_of(text, timeout=PATIENCE)
