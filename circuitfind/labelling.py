"""Labels of a finished run's parts, and its picture drawn again with them. Loads no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.errors import RunError, UsageError, nearest
from circuitfind.names import UNITS, Node, parse_node
from circuitfind.output.dot import to_dot
from circuitfind.output.dot_features import feature_dot
from circuitfind.output.draw import dot_binary, render
from circuitfind.output.labels import FILE, Labels, Owner
from circuitfind.output.report.write import renew_report
from circuitfind.output.store import Run, Stage, stage_key
from circuitfind.output.words import Words, owner_of, picture_key, read_names, words_of
from circuitfind.session import Reporter
from circuitfind.summary import finished_stages, stored


@dataclass(frozen=True)
class Subject:
    """What a run found, as far as labels and names go.

    Attributes:
        units: Its neurons and features.
        inside: Names of all its nodes.
        known: Names of all parts of the run that may be in it or not, as far as they are listed.
        scores, roles: By name.
        key: Of the stage that the picture is of.
        picture: Files of the picture begin with this.
        draw: The picture as DOT text.
    """

    units: tuple[Node, ...]
    inside: frozenset[str]
    known: frozenset[str]
    scores: Mapping[str, float]
    roles: Mapping[str, str]
    key: str
    picture: str
    draw: Callable[[Words], str]


def subject_of(run: Run) -> Subject:
    """The circuit of a run, of heads and units or of SAE features.

    Raises:
        RunError: It has none yet, or its files were changed.
    """
    done = finished_stages(run)
    if "features" in done:
        return _of_features(done["features"])
    circuit = stored(run).circuit
    anatomy = circuit.anatomy
    known = {*anatomy.writer_names, *(str(node) for node, _ in anatomy.readers)}
    for node in anatomy.writers:
        known.update(str(Node(node.kind, node.layer, u, family=node.family)) for u in node.units)
    return Subject(
        units=tuple(dict.fromkeys(node.bare for node in circuit.units)),
        inside=frozenset(str(node.bare) for node in circuit.nodes),
        known=frozenset(known),
        scores=circuit.node_scores,
        roles=circuit.roles,
        key=done.get("backups", done["circuit"]).key,
        picture="circuit",
        draw=lambda words: to_dot(circuit, words=words),
    )


def _of_features(stage: Stage) -> Subject:
    graph = FeatureGraph.load(stage.files["graph.json"])
    scores: dict[str, float] = {}
    for node in graph.nodes:  # a feature at several positions is one
        scores[str(node.bare)] = scores.get(str(node.bare), 0.0) + graph.score(node)
    inside = frozenset(scores)
    return Subject(
        units=tuple(dict.fromkeys(node.bare for node in graph.features)),
        inside=inside,
        known=inside,
        scores=scores,
        roles={},
        key=stage.key,
        picture="graph",
        draw=lambda words: feature_dot(graph, labels=words.texts),
    )


def labels_file(run: Run) -> Labels:
    """The labels that a run shows: those beside its folder."""
    return Labels(run.path.parent / FILE)


def label_owner(run: Run, dictionaries: str | None) -> Owner:
    """What a run's labels are kept under; for a folder of dictionaries in place of its own, by the hash of that."""
    if dictionaries is None:
        return owner_of(run)
    from circuitfind.dictionaries.identity import dictionaries_identity

    return owner_of(run, dictionaries=dictionaries, dictionaries_hash=dictionaries_identity(dictionaries))


def known_node(run: Run, subject: Subject, name: str) -> Node:
    """A part of a run: of its model, a unit that stands in a group, or one that was named beside the circuit.

    Raises:
        UsageError: It has no such part; with the nearest that it has.
    """
    known = set(subject.known)
    named = read_names(run)
    known.update(node["name"] for node in (named["nodes"] if named else ()))
    try:
        found = parse_node(name).bare
    except UsageError as error:
        near = nearest(name, known)
        raise UsageError(error.what, hint=f"the nearest is '{near}'" if near else error.hint) from error
    if str(found) not in known:
        near = nearest(str(found), known)
        raise UsageError(
            f"the run has no '{found}'",
            hint=(f"the nearest is '{near}'" if near else "see `circuitfind show RUN --nodes`")
            + (
                f"; look at a unit outside the circuit with: circuitfind name {run.name} --node {found}"
                if found.kind in UNITS
                else ""
            ),
        )
    return found


def redraw(run: Run, subject: Subject, reporter: Reporter) -> list[Path]:
    """Draw a run's pictures again with its labels and names, where it has some and Graphviz is there; and its report."""
    pictures = _redraw(run, subject, reporter)
    renew_report(run, reporter.note)
    return pictures


def _redraw(run: Run, subject: Subject, reporter: Reporter) -> list[Path]:
    words, name = words_of(run), subject.picture
    drawn = finished_stages(run).get("pictures")
    if drawn is None:
        if (run.path / f"{name}.dot").is_file():
            return [run.write(f"{name}.dot", subject.draw(words))]
        return []
    formats = tuple(path.suffix[1:] for path in drawn.files.values() if path.suffix != ".dot")
    key = picture_key(stage_key(subject.key, formats), words)
    if key == drawn.key:
        return [drawn.files[f"{name}.{one}"] for one in formats]
    if dot_binary() is None:
        reporter.note("the picture is as it was: Graphviz's 'dot' is missing")
        return []
    started = time.perf_counter()
    text = subject.draw(words)
    try:
        files: dict[str, bytes | str] = {f"{name}.dot": text}
        for path in render(text, run.path / name, formats):
            files[path.name] = path.read_bytes()
    except RunError as error:
        reporter.note(f"the picture is as it was: {error.what}")
        return []
    facts = {"seconds": round(time.perf_counter() - started, 3), "forward_passes": 0, "backward_passes": 0}
    stage = run.finish_stage("pictures", key, files, facts)
    return [stage.files[f"{name}.{one}"] for one in formats]
